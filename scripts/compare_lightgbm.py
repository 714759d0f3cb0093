"""Gradient-boosted trees on the causal features that BST reads, as a baseline on the same rows.

Needs LightGBM, which bst itself does not: pip install lightgbm==4.7.0
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bst.config import DataConfig, RunConfig
from bst.guard import command

LEAVES = (31, 63, 127)  # the best on valid is kept
ARMS = {"LightGBM": "bias", "LightGBM + base": "neighbours"}  # base score that it corrects


@dataclass(frozen=True)
class Args:
    """Fit the trees and score them."""

    data: DataConfig = DataConfig()
    threads: int = 1
    """threads of LightGBM"""
    json: Path | None = None
    """also write the rows to this file"""


def fit_trees(features: np.ndarray, rest: np.ndarray, split, threads: int) -> np.ndarray:
    """Predicted `rest` at every position; number of leaves and of trees chosen on valid."""
    import lightgbm

    train = lightgbm.Dataset(features[split.train], rest[split.train], free_raw_data=False)
    valid = lightgbm.Dataset(features[split.valid], rest[split.valid], free_raw_data=False)
    boosters = [
        lightgbm.train(
            {"objective": "l2", "learning_rate": 0.05, "num_leaves": leaves, "lambda_l2": 20.0,
             "min_data_in_leaf": 500, "feature_fraction": 0.6, "bagging_fraction": 0.6,
             "bagging_freq": 1, "num_threads": threads, "verbose": -1, "seed": 0},
            train, 500, valid_sets=[valid],
            callbacks=[lightgbm.early_stopping(30, verbose=False)])
        for leaves in LEAVES
    ]
    best = min(boosters, key=lambda booster: booster.best_score["valid_0"]["l2"])
    return best.predict(features, num_threads=threads)


def main(args: Args) -> None:
    """Prepare each arm's features, fit, score, print."""
    from bst.evaluation import evaluate, format_table, write_results
    from bst.pipeline import prepare

    rows = []
    for name, kind in ARMS.items():
        config = RunConfig(data=args.data)
        config = replace(config, model=replace(config.model, base=kind))
        prepared = prepare(config)
        batches, store, split = prepared.batches, prepared.store, prepared.split
        features = np.concatenate([batches.dense, batches.user[store.user_row][:, 1:]], axis=1)
        score = batches.base + fit_trees(features, store.rating - batches.base, split, args.threads)
        rows.append(evaluate(score, store, split, "test", scorer=name, seed=0,
                             config_hash=config.hash))
    print(format_table(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
