"""Predictions over a split -> named numbers with intervals and slices; the results table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bst.config import Part
from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import History, Split
from bst.evaluation.metrics import calibration, mae, rmse, to_stars, user_bootstrap, user_sums
from bst.utils.errors import one_line
from bst.utils.files import read_sealed, write_atomic

METRICS = {"mae": "MAE", "rmse": "RMSE", "user_macro_mae": "user MAE", "mae_star": "MAE*"}  # heads


def evaluate(
    predictions: np.ndarray, store: SequenceStore, split: Split, part: Part, *, scorer: str,
    seed: int, config_hash: str,
) -> dict:
    """One row of `results.json`.

    `predictions` are (n,) expected stars at every position of the store; the targets of `part`
    count. `seed` is that of the run and of the bootstrap.

    Returns:
        `METRICS`, each with `_low` and `_high`, its 95 % interval; `mae_star` is of the nearest
        rating of the scale, the others are of the expected stars; `calibration`; some by slice.
    """
    target = split.part(part)
    label, user = store.rating[target], store.user_row[target]
    levels = np.unique(store.rating[split.train]).astype(np.float64)
    score = on_scale(predictions, store, split, part)
    miss = np.abs(score - label)
    total, count = user_sums(miss, user)
    errors = {  # of each metric: values to average, and the user of each value
        "mae": (miss, user), "rmse": (miss**2, user),
        "mae_star": (np.abs(to_stars(score, levels) - label), user),
        "user_macro_mae": (total / count, np.arange(len(total)))}
    found = {}
    for name, (values, of) in errors.items():
        numbers = np.array([values.mean(), *user_bootstrap([values], [of], seed=seed)])
        numbers = (np.sqrt(numbers) if name == "rmse" else numbers).tolist()  # root of the mean
        found |= zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True)
    return {
        "protocol": split.protocol, "ties": split.ties, "part": part, "scorer": scorer,
        "n": len(target), **found, "seed": seed, "config_hash": config_hash,
        "calibration": calibration(score, label), "slices": {
            name: {"n": int(rows.sum()), "mae": mae(score[rows], label[rows]),
                   "rmse": rmse(score[rows], label[rows])}
            for name, rows in slices(store, split, target).items() if rows.any()}}


def slices(store: SequenceStore, split: Split, target: np.ndarray) -> dict[str, np.ndarray]:
    """Named subsets of the targets, each (len(target),) bool."""
    history = History.of(store, split)
    length = (history.stop - history.start)[target]
    user, item = store.user_row[target], store.item_idx[target]
    rated = split.item_counts(store)[item]
    is_warm = np.isin(user, store.user_row[split.train])
    has_overview = store.movies["overview"].is_not_null().to_numpy()[item - FIRST_IDX]
    named = {
        "history 0": length == 0, "history 1-5": (length >= 1) & (length <= 5),
        "history 6-20": (length >= 6) & (length <= 20), "history 21+": length > 20,
        "history 21-100": (length > 20) & (length <= 100),
        "history 101-300": (length > 100) & (length <= 300), "history 301+": length > 300,
        "warm user": is_warm, "cold user": ~is_warm,
        "rare item (1-9 train ratings)": (rated >= 1) & (rated <= 9),
        "unseen item": rated == 0, "with overview": has_overview, "no overview": ~has_overview,
    }
    for column in ("sex", "age"):
        values = store.users[column].to_numpy()[user]
        for value in store.users[column].drop_nulls().unique().sort():
            named[f"{column} {value}"] = values == value
    return named


def paired_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], label: Sequence[np.ndarray],
    user: Sequence[np.ndarray],
) -> dict[str, float]:
    """Our error minus theirs on the same rows: `mae` and `mse`, each with `_low` and `_high`, its
    95 % interval by `user_bootstrap`.

    Each argument has one (n,) array per run: our stars, a rival's, the true ones, the users' rows.
    """
    found = {}
    for name, measure in (("mae", np.abs), ("mse", np.square)):
        runs = [measure(a.astype(np.float64) - y) - measure(b.astype(np.float64) - y)
                for a, b, y in zip(ours, theirs, label, strict=True)]
        low, high = user_bootstrap(runs, user, seed=0)
        mean = float(np.mean([run.mean() for run in runs]))
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return found


def on_scale(predictions: np.ndarray, store: SequenceStore, split: Split, part: Part) -> np.ndarray:
    """Stars of the targets of a part, clipped to the range of train: (m,) float64."""
    train = store.rating[split.train]
    return np.clip(predictions[split.part(part)].astype(np.float64), train.min(), train.max())


def scored(rows: list[dict]) -> list[dict]:
    """The rows of scorers that worked; the others say in `failed` why not."""
    return [row for row in rows if "failed" not in row]


def best_baseline(rows: list[dict]) -> dict:
    """The row with the lowest MAE that is not bst's."""
    return min((r for r in scored(rows) if r["scorer"] != "bst"), key=lambda row: row["mae"])


def interval(row: dict, name: str) -> str:
    """A difference and its interval, as shown in tables."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:+.4f} [{low:+.4f}, {high:+.4f}]"


def format_table(rows: list[dict]) -> str:
    """The rows as text; the heading names protocol, ties and part."""
    head = rows[0]
    leaky = " LEAKY" if head["protocol"] == "keras-windows" else ""
    lines = [
        f"protocol {head['protocol']}{leaky}, ties {head['ties']}, part {head['part']}, "
        f"n = {head['n']:,}, seed {head['seed']}",
        f"{'scorer':<22}{'MAE':>8}  {'95 % interval':<16}{'RMSE':>8}{'user MAE':>10}{'MAE*':>8}",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"{row['scorer']:<24}{row['failed']}")
            continue
        ends = f"{row['mae_low']:.4f}-{row['mae_high']:.4f}"
        lines.append(f"{row['scorer']:<22}{row['mae']:>8.4f}  {ends:<16}{row['rmse']:>8.4f}"
                     f"{row['user_macro_mae']:>10.4f}{row['mae_star']:>8.4f}{leaky}")
    lines.append("MAE, RMSE of the expected stars; MAE* of the nearest rating; user MAE: mean over "
                 "users")
    if "paired" in head:
        p = head["paired"]
        lines.append(f"bst minus {p['against']}, same rows: MAE {interval(p, 'mae')}, "
                     f"MSE {interval(p, 'mse')}")
    return "\n".join(lines)


def write_results(
    rows: list[dict], path: Path, *, write: Callable[[Path, bytes], None] = write_atomic
) -> None:
    """Write the rows as JSON, in a run folder with `write_sealed`."""
    write(path, (json.dumps(rows, indent=1) + "\n").encode())


def read_results(path: Path) -> list[dict]:
    """The rows of a run folder; a DataError if the file is missing or damaged."""
    with one_line(path, "the results of a finished run; delete what is there and give the run's "
                  "scripts/train.py command again, which computes them"):
        return json.loads(read_sealed(path))
