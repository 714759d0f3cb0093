"""Gradient-boosted trees on the causal features that BST reads, as rivals on the same rows.

Needs LightGBM, which bst itself does not: pip install lightgbm==4.7.0
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bst.config import RunConfig
from bst.utils.guard import command
from scripts.report import Args, format_report, table

LEAVES = (31, 63, 127)  # the best on valid is kept
ARMS = {"LightGBM": "bias", "LightGBM + base": "neighbours"}  # base score that it corrects


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


def predict_trees(config: RunConfig) -> np.ndarray:
    """Stars at every position by trees that correct the base of the config, (n,)."""
    from bst.run import prepare

    prepared = prepare(config)
    batches, store = prepared.batches, prepared.store
    features = np.concatenate([batches.dense, batches.user[store.user_row][:, 1:]], axis=1)
    rest = store.rating - batches.base
    return batches.base + fit_trees(features, rest, prepared.split, config.train.threads or 1)


def main(args: Args) -> None:
    """Train what is missing of bst, fit the trees, compare, print."""
    from bst.ablation import train_all
    from bst.evaluation.report import write_results
    from bst.run import prepare, use_device

    config = RunConfig(data=args.data, model=args.model, train=args.train)
    use_device(config)
    done = train_all({"bst": config}, range(args.seeds), args.runs, jobs=args.jobs)["bst"]
    trees = {name: predict_trees(replace(config, model=replace(config.model, base=base)))
             for name, base in ARMS.items()}
    rows = table(prepare(config), done, trees)
    print(format_report(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
