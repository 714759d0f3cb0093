"""Train bst with its defaults, and every baseline, on generated sets of other shapes."""

import contextlib
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tyro

from bst.config import DataConfig, RunConfig, TrainConfig
from bst.data.synthetic import RatingsShape, write_ratings
from bst.utils.guard import guarded

FILMS = {"genres": True, "years": True}
SHAPES = {
    "300 users x 20": RatingsShape(users=300, each=20, items=300, **FILMS),
    "3,000 x 5, half stars, bare, new items": RatingsShape(
        users=3000, each=5, items=900, levels=(0.5, 5, 0.5), news=30.0),
    "1,000 x 100, 1 to 10": RatingsShape(
        users=1000, each=100, items=1500, levels=(1, 10, 1), **FILMS),
    "2,000 x 30, half stars": RatingsShape(
        users=2000, each=30, items=1000, levels=(0.5, 5, 0.5), **FILMS),
    "600 x 10, no years, new users": RatingsShape(
        users=600, each=10, items=300, genres=True, stay=0.15),
}


def miss(shape: RatingsShape, folder: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """Absolute errors (m,) of each scorer, user (m,), and whether user and item are new (2, m)."""
    from bst.evaluation.baselines import BASELINES
    from bst.run import predict_run, prepare, train_run, use_device

    config = RunConfig(
        data=DataConfig(data=write_ratings(folder / "data", shape), cache=folder / "cache"),
        train=TrainConfig(seed=shape.seed, threads=1))
    with contextlib.redirect_stdout(io.StringIO()):
        use_device(config)
        prepared = prepare(config, report_dir=folder)
        train_run(prepared, folder / "run")
        scores = {"bst": predict_run(prepared, folder / "run", "test")[0]}
    store, train, test = prepared.store, prepared.split.train, prepared.split.test
    scores |= {name: scorer(store, prepared.split) for name, scorer in BASELINES.items()}
    stars, ends = store.rating, (store.rating[train].min(), store.rating[train].max())
    errors = {k: np.abs(np.clip(score[test], *ends) - stars[test]) for k, score in scores.items()}
    is_new = [~np.isin(key[test], key[train]) for key in (store.user_row, store.item_idx)]
    return errors, store.user_row[test], np.array(is_new)


def main(seeds: int = 5) -> None:
    """Print a row for each shape and scorer, over `seeds` sets; intervals over their users."""
    from bst.evaluation.metrics import user_bootstrap

    print(f"protocol temporal, ties strict, part test, {seeds} seeds\n\n"
          "| data | scorer | MAE [95 %] | bst minus the best baseline |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = [miss(replace(shape, seed=k), Path(folder) / str(k)) for k in range(seeds)]
        misses, users, is_new = zip(*found, strict=True)
        user = np.concatenate([rows + k * shape.users for k, rows in enumerate(users)])
        errors = {k: np.concatenate([m[k] for m in misses]) for k in misses[0]}
        best = min(list(errors)[1:], key=lambda k: errors[k].mean())
        new_users, new_items = np.concatenate(is_new, axis=1).mean(axis=1)
        about = f"{name} (n = {len(user):,}; new: {new_users:.0%} users, {new_items:.0%} items)"
        for scorer, values in errors.items():
            (low, high), rest = user_bootstrap(values, user, seed=0), values - errors[best]
            ends = user_bootstrap(rest, user, seed=0)
            paired = f"{rest.mean():+.4f} [{ends[0]:+.4f}, {ends[1]:+.4f}], {best}"
            print(f"| {about} | {scorer} | {values.mean():.4f} [{low:.4f}, {high:.4f}] | "
                  f"{paired if scorer == 'bst' else ''} |", flush=True)
            about = ""


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
