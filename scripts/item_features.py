"""What --item-features buys on items that nobody has rated, on generated data; prints a table.

Each item of the data has an author, who has to do with what it is about, and pages, which have to
do with how good it is. No rating of a test item is in train (protocol cold-items).
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tyro

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from scripts.support.command import guarded
from scripts.support.shapes_data import RatingsShape, write_ratings

NAMES = (None, "author,pages")
SHAPE = RatingsShape(users=800, each=30, items=600, genres=True, years=True, features=True)


def scores(data: Path, folder: Path, names: str | None, seed: int) -> tuple[np.ndarray, ...]:
    """Absolute errors (m,) of the test part, stars, and the user of each row (m,)."""
    from scripts.studies.runs import train_quietly

    config = RunConfig(
        data=DataConfig(data=data, item_features=names, protocol="cold-items", split_seed=seed),
        model=ModelConfig(text=False), train=TrainConfig(seed=seed, threads=1))
    prepared, stars = train_quietly(config, folder)
    test, store = prepared.split.test, prepared.store
    return np.abs(stars[test] - store.rating[test]), store.user_row[test]


def main(seeds: int = 2) -> None:
    """Print the MAE with and without each feature, and the difference over the users.

    Args:
        seeds: generated sets.
    """
    from bst.evaluation.metrics import user_bootstrap

    with tempfile.TemporaryDirectory() as scratch:
        data = [write_ratings(Path(scratch) / f"{k}", RatingsShape(**vars(SHAPE) | {"seed": k}))
                for k in range(seeds)]
        found = {names: [scores(of, Path(scratch) / f"{names}-{k}", names, k)
                         for k, of in enumerate(data)] for names in NAMES}
    print(f"protocol cold-items, ties strict, part test, {seeds} sets, n = "
          f"{sum(len(miss) for miss, _ in found[None]):,}", "",
          "| --item-features | MAE of each set | MAE | minus none [95 %] |", "|---|---|---|---|",
          sep="\n")
    for names, rows in found.items():
        each = [float(miss.mean()) for miss, _ in rows]
        less = [miss - none for (miss, _), (none, _) in zip(rows, found[None], strict=True)]
        low, high = user_bootstrap(less, [user for _, user in rows], seed=0)
        print(f"| {names or 'none'} | {', '.join(f'{mae:.4f}' for mae in each)} | "
              f"{np.mean(each):.4f} | " + (f"{np.concatenate(less).mean():+.4f} [{low:+.4f}, "
                                           f"{high:+.4f}] |" if names else " |"))


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
