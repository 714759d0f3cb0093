"""Train bst with its defaults, and every baseline, on generated sets of other shapes."""

import sys
import tempfile
from dataclasses import replace
from json import dumps
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tyro

from bst.config import DataConfig, RunConfig, TrainConfig
from scripts.support.command import guarded
from scripts.support.shapes_data import RatingsShape, write_ratings

DESCRIBED = {"genres": True, "years": True}
SHAPES = {
    "300 users x 20": RatingsShape(users=300, each=20, items=300, **DESCRIBED),
    "3,000 x 5, half stars, bare, new items": RatingsShape(
        users=3000, each=5, items=900, levels=(0.5, 5, 0.5), news=30.0),
    "1,000 x 100, 1 to 10": RatingsShape(
        users=1000, each=100, items=1500, levels=(1, 10, 1), **DESCRIBED),
    "2,000 x 30, half stars": RatingsShape(
        users=2000, each=30, items=1000, levels=(0.5, 5, 0.5), **DESCRIBED),
    "600 x 10, no years, new users": RatingsShape(
        users=600, each=10, items=300, genres=True, stay=0.15),
    "3,000 x 5, bare, most items new": RatingsShape(
        users=3000, each=5, items=3000, news=80.0, stay=0.1),
}


def scores(shape: RatingsShape, folder: Path) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Stars (m,) of each scorer, those given (m,), user (m,), and whether user and item are new."""
    from bst.evaluation.report import on_scale
    from bst.run import predict_baselines
    from scripts.studies.runs import train_quietly

    config = RunConfig(
        data=DataConfig(data=write_ratings(folder / "data", shape), cache=folder / "cache"),
        train=TrainConfig(seed=shape.seed, threads=1))
    prepared, ours = train_quietly(config, folder / "run")
    store, split, test = prepared.store, prepared.split, prepared.split.test
    found = {"bst": ours, **predict_baselines(prepared)[0]}
    is_new = [~np.isin(key[test], key[split.train]) for key in (store.user_row, store.item_idx)]
    return ({name: on_scale(stars, store, split, "test") for name, stars in found.items()},
            store.rating[test], store.user_row[test], np.array(is_new))


def row_of(name: str, shape: RatingsShape, seeds: int) -> dict:
    """MAE of each scorer, mean over `seeds` generated sets, and bst minus the best baseline."""
    from bst.evaluation.metrics import mae
    from bst.evaluation.report import paired_difference

    with tempfile.TemporaryDirectory() as folder:
        found = [scores(replace(shape, seed=k), Path(folder) / str(k)) for k in range(seeds)]
    stars, label, user, is_new = zip(*found, strict=True)
    miss = {name: float(np.mean([mae(of[name], y) for of, y in zip(stars, label, strict=True)]))
            for name in stars[0] if all(name in of for of in stars)}
    best = min((name for name in miss if name != "bst"), key=miss.get)
    paired = paired_difference(*([of[name] for of in stars] for name in ("bst", best)), label, user)
    new_users, new_items = np.concatenate(is_new, axis=1).mean(axis=1).tolist()
    return {"data": name, "seeds": seeds, "n": sum(map(len, label)), "new_users": new_users,
            "new_items": new_items, "mae": miss, "best": best,
            "difference": paired["mae"], "low": paired["mae_low"], "high": paired["mae_high"]}


def format_shapes(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = [f"protocol temporal, ties strict, part test, {rows[0]['seeds']} sets each", "",
             "| data | n | new users / items | bst MAE | best baseline | bst minus it [95 %] |",
             "|---|---|---|---|---|---|"]
    lines += [f"| {r['data']} | {r['n']:,} | {r['new_users']:.0%} / {r['new_items']:.0%} | "
              f"{r['mae']['bst']:.4f} | {r['best']} {r['mae'][r['best']]:.4f} | "
              f"{r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}] |" for r in rows]
    return "\n".join(lines)


def main(seeds: int = 5, json: Path | None = None) -> None:
    """Print a row for each shape; intervals over the users of all sets.

    Args:
        seeds: sets of each shape.
        json: also write the rows to this file.
    """
    rows = [row_of(name, shape, seeds) for name, shape in SHAPES.items()]
    print(format_shapes(rows))
    if json is not None:
        json.write_text(dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
