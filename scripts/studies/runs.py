"""Compare variants of a run over seeds: each trained once, resumable, paired with the first."""

import contextlib
import io
import json
import multiprocessing
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bst.config import DataConfig, ModelConfig, Options, RunConfig, TrainConfig
from bst.evaluation.metrics import mae, rmse, spread, to_stars
from bst.evaluation.report import interval, paired_difference
from bst.utils.errors import DataError, OptionError
from bst.utils.files import write_atomic
from bst.utils.guard import folder_lock
from scripts.support.flags import CORES, JOBS, SEEDS
from scripts.support.synthetic import with_builtin

PREDICTIONS = "predictions.npz"  # of a finished run
Variants = dict[str, RunConfig]  # by name; the first one is what the others are compared with


@dataclass(frozen=True)
class AblationArgs(Options):
    """Train every variant with every seed, then print, save and draw the comparison."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seeds: int = SEEDS
    jobs: int = JOBS
    quick: bool = False
    """1 seed, 1 epoch: a look at the built-in data within 3 minutes"""
    only: tuple[str, ...] = ()
    """names of variants to run besides the first; none: all"""
    runs: Path = Path("runs")
    """folder of the runs; what is finished there is not run again"""
    json: Path | None = None
    """also write the table to this file"""
    figure: Path | None = None
    """also draw the differences to this PNG"""


def run_ablation(args: AblationArgs, variants_of: Callable[[RunConfig], Variants]) -> None:
    """The whole study: what `scripts/ablate.py` does.

    Raises:
        OptionError: `--only` names a variant that is not there.
    """
    train = replace(args.train, threads=args.train.threads or max(1, CORES // args.jobs))
    if args.quick:
        train = replace(train, epochs=1, steps=1)
    data = with_builtin(args.data)
    variants = variants_of(RunConfig(data=data, model=args.model, train=train))
    first = next(iter(variants))
    unknown = sorted(set(args.only) - set(variants))
    if unknown:
        raise OptionError(f"--only names {unknown}, expected some of {sorted(variants)}")
    if args.only:
        variants = {name: variants[name] for name in variants if name in (first, *args.only)}
    seeds = range(1 if args.quick else args.seeds)
    done = train_all(variants, seeds, args.runs, jobs=args.jobs)
    rows = [compare_variant(n, variants[n], done[n], done[first]) for n in variants]
    print(format_study(rows, first))
    if args.json is not None:
        write_atomic(args.json, (json.dumps(rows, indent=1) + "\n").encode())
    if args.figure is not None:
        draw_study(rows, first, args.figure)


def train_all(
    variants: Variants, seeds: range, runs: Path, *, jobs: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What `run_one` gives for each variant and seed; `jobs` processes work side by side."""
    seeded = [with_seed(c, seed) for seed in seeds for c in variants.values()]
    by_hash = {c.hash: c for c in seeded}
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        todo = [c for c in by_hash.values() if not (runs / c.name / PREDICTIONS).exists()]
        texts = {c.data: c for c in todo if c.model.text}
        list(pool.map(_embed_overviews, texts.values()))  # or each run would compute the same
        finished = pool.map(run_one, by_hash.values(), [runs] * len(by_hash))
        done = dict(zip(by_hash, tqdm(finished, total=len(by_hash), desc="runs", unit="run",
                                      leave=False, disable=None), strict=True))
    return {name: [done[with_seed(config, seed).hash] for seed in seeds]
            for name, config in variants.items()}


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same run with another seed of training."""
    return replace(config, train=replace(config.train, seed=seed))


def run_one(config: RunConfig, runs: Path) -> dict[str, np.ndarray]:
    """Train one run, or go on with it, and score it.

    Returns:
        `valid_mae` and `valid_rmse`; for the m test targets `label`, `score` (expected stars),
        `star` (the nearest rating of the scale) and `user` (row), each (m,).
    """
    from bst.run import prepare, train_run, use_device

    out = runs / config.name
    saved = out / PREDICTIONS
    if not saved.exists():
        with folder_lock(out), open(out / "log.txt", "a") as log, \
                contextlib.redirect_stdout(log):
            use_device(config.train)
            prepared = prepare(config, report_dir=out)
            train_run(prepared, out)
            scored = score_run(prepared, out)
        content = io.BytesIO()
        np.savez(content, **scored)
        write_atomic(saved, content.getvalue())
        print(f"{out}: seed {config.train.seed}, "
              f"valid MAE {scored['valid_mae']:.4f}", flush=True)
    try:
        with np.load(saved, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{saved}: damaged ({error}); delete it to compute it again") from error


def train_quietly(config: RunConfig, folder: Path) -> tuple:
    """Train a run in a folder of its own, without messages: what was prepared, and its stars (n,).

    The stars are those of the test targets; those of other positions are NaN.
    """
    from bst.run import predict_run, prepare, train_run, use_device

    with contextlib.redirect_stdout(io.StringIO()):
        use_device(config.train)
        prepared = prepare(config, report_dir=folder)
        train_run(prepared, folder)
        return prepared, predict_run(prepared, folder, "test")


def score_run(prepared, out: Path) -> dict[str, np.ndarray]:
    """Errors on valid, and what is needed for any comparison on test; see `run_one`."""
    from bst.run import predict_run

    store, split = prepared.store, prepared.split
    valid = predict_run(prepared, out, "valid")[split.valid]
    score = predict_run(prepared, out, "test")[split.test]
    star = to_stars(score, np.unique(store.rating[split.train]))
    label = store.rating[split.valid]
    return {"valid_mae": np.array(mae(valid, label)), "valid_rmse": np.array(rmse(valid, label)),
            "label": store.rating[split.test], "user": store.user_row[split.test],
            "score": score, "star": star}


def compare_variant(
    name: str, config: RunConfig, runs: list[dict[str, np.ndarray]],
    reference: list[dict[str, np.ndarray]],
) -> dict:
    """One row of the table: means over seeds, their spread, and the difference to `reference`.

    The difference is that of the absolute errors on the same test rows, with the interval of
    `paired_difference`; a spread is the standard deviation between seeds, None of a single one.
    """
    label, user = runs[0]["label"], runs[0]["user"]
    by_seed = {
        "valid_mae": [float(r["valid_mae"]) for r in runs],
        "mae": [mae(r["score"], label) for r in runs],
        "rmse": [rmse(r["score"], label) for r in runs],
        "mae_star": [mae(r["star"], label) for r in runs]}
    paired = paired_difference(*([r["score"] for r in group] for group in (runs, reference)),
                               [label] * len(runs), [user] * len(runs))
    return {
        "variant": name, "protocol": config.data.protocol, "ties": config.data.ties,
        "part": "test", "n": len(label), "seeds": len(runs), "config": config.essentials(),
        "config_hash": config.hash,
        **{key: float(np.mean(values)) for key, values in by_seed.items()},
        **{f"{key}_spread": spread(by_seed[key]) for key in ("valid_mae", "mae")},
        **{f"{key}_by_seed": by_seed[key] for key in ("mae", "rmse")},
        "difference": paired["mae"], "low": paired["mae_low"], "high": paired["mae_high"],
    }


def format_study(rows: list[dict], first: str) -> str:
    """The table in Markdown."""
    head = rows[0]
    several = "s; +- is the standard deviation between seeds" * (head["seeds"] > 1)
    lines = [
        f"protocol {head['protocol']}, ties {head['ties']}, part test, n = {head['n']:,}, "
        f"{head['seeds']} seed{several}",
        "",
        f"| variant | valid MAE | MAE | RMSE | MAE* | MAE minus {first} [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = (f"{row[key]:.4f}" + (f" +- {row[f'{key}_spread']:.4f}" if head["seeds"] > 1
                                       else "") for key in ("valid_mae", "mae"))
        ends = {"d": row["difference"], "d_low": row["low"], "d_high": row["high"]}
        lines.append(f"| {row['variant']} | {' | '.join(errors)} | {row['rmse']:.4f} | "
                     f"{row['mae_star']:.4f} | "
                     f"{interval(ends, 'd') if row['variant'] != first else ''} |")
    return "\n".join(lines)


def finding(rows: list[dict], first: str) -> str:
    """What a study found, in one line: its largest significant difference."""
    others = [row for row in rows if row["variant"] != first]
    sure = [row for row in others if row["low"] > 0 or row["high"] < 0]
    if not sure:
        return f"No variant differs from '{first}'"
    row = max(sure, key=lambda row: abs(row["difference"]))
    change = "worse" if row["low"] > 0 else "better"
    return f"'{row['variant']}' is {abs(row['difference']):.4f} stars {change} than '{first}'"


def draw_study(rows: list[dict], first: str, path: Path) -> None:
    """Differences of MAE to the first variant with their intervals, as a PNG.

    All studies share one range, unless a difference lies outside: what is small looks small.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    others = [row for row in reversed(rows) if row["variant"] != first]
    figure, axes = plt.subplots(figsize=(8, 1.3 + 0.45 * len(others)))
    for y, row in enumerate(others):
        color = "#d55e00" if row["low"] > 0 else "#0072b2" if row["high"] < 0 else "#7f8c8d"
        axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.5)
        axes.plot(row["difference"], y, "o", color=color)
        axes.annotate(f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
                      (max(row["high"], 0), y), (9, 0), textcoords="offset points", va="center",
                      fontsize=9)
    axes.axvline(0, color="#22303c", linewidth=1)
    low, high = min(row["low"] for row in others), max(row["high"] for row in others)
    axes.set(yticks=range(len(others)), yticklabels=[row["variant"] for row in others],
             ylim=(-0.6, len(others) - 0.4), xlim=(min(low, -0.01), max(1.5 * high, 0.07)),
             xlabel=f"test MAE minus '{first}', stars (right is worse)\n{rows[0]['protocol']}, "
                    f"{rows[0]['seeds']} seeds, 95 % intervals")
    axes.set_title(finding(rows, first), loc="left", fontweight="bold", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _embed_overviews(config: RunConfig) -> None:
    """Fill the cache that runs of the same data share."""
    from bst.run import prepare, use_device

    with contextlib.redirect_stdout(io.StringIO()):
        use_device(config.train)
        prepare(config)
