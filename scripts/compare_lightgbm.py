"""Gradient-boosted trees on features made by hand: dense features, item statistics, user, genres.

The dense features are those of `bst.model.dense`, which sum up the history and are causal; of an
item the trees read bias, count, streaming bias, year and genres. These statistics of a train row
come from the train rows of other people (out of fold: none of them has seen its stars). The trees
correct the streaming bias. Of what bst reads they lack the history itself, the item's id, audience,
overview and further features, and the user's id.

Needs LightGBM, which bst itself does not: pip install lightgbm==4.7.0
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bst.config import RunConfig
from scripts.report import Compared, format_report, table
from scripts.support.command import command

LEAVES = (31, 63, 127)  # the best on valid is kept
FOLDS = 10  # of the people with train ratings


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


def item_statistics(store, split) -> np.ndarray:
    """Item bias, log item count and streaming bias at every position, (n, 3).

    Of a train row they are fitted on the train rows of the people outside its fold.
    """
    from bst.data.schema import FIRST_IDX
    from bst.evaluation.baselines import item_bias, streaming_bias

    def fitted_on(train: np.ndarray) -> np.ndarray:
        part, size = replace(split, train=train), store.num_items + FIRST_IDX
        count = np.bincount(store.item_idx[train], minlength=size) * len(split.train) / len(train)
        columns = item_bias(store, part)[1], np.log1p(count)
        return np.stack([*(column[store.item_idx] for column in columns),
                         streaming_bias(store, part)], axis=1)

    found = fitted_on(split.train)
    fold = np.random.default_rng(0).permutation(store.num_users)[store.user_row[split.train]]
    for k in range(FOLDS):
        held_out = split.train[fold % FOLDS == k]
        if len(held_out):
            found[held_out] = fitted_on(split.train[fold % FOLDS != k])[held_out]
    return found


def dense_features_of(model, batches) -> np.ndarray:
    """The dense features of every target, (n, f); NaN at what is no target."""
    from bst.model.dense import DENSE_FEATURES

    found = np.full((len(batches.store), len(DENSE_FEATURES)), np.nan, dtype=np.float32)
    for part in ("train", "valid", "test"):
        for rows in batches.epoch(part, batch_size=8192):
            batch = batches.gather(rows)
            real = batch.is_target
            found[batch.position[real]] = model.dense_features(batch)[real]
    return found


def predict_trees(prepared) -> np.ndarray:
    """Stars of the trees at every position, (n,)."""
    from bst.data.schema import FIRST_IDX
    from bst.model.build import build_model, genre_names

    batches, store, config = prepared.batches, prepared.store, prepared.config
    model = build_model(config.model, batches, prepared.text, seed=0)
    statistics, names = item_statistics(store, prepared.split), genre_names(store.movies)
    genres = np.array([[name in of for name in names] for of in store.movies["genres"]])
    features = np.concatenate([
        dense_features_of(model, batches), statistics, batches.user[store.user_row][:, 1:],
        genres.reshape(store.num_items, len(names))[store.item_idx - FIRST_IDX]], axis=1)
    start = statistics[:, -1]
    rest = store.rating - start
    return start + fit_trees(features, rest, prepared.split, config.train.threads or 1)


def main(args: Compared) -> None:
    """Train what is missing of bst, fit the trees, compare, print."""
    from bst.evaluation.report import write_results
    from bst.run import prepare, use_device
    from scripts.studies.runs import train_all
    from scripts.support.synthetic import with_builtin

    config = RunConfig(data=with_builtin(args.data), model=args.model, train=args.train)
    use_device(config.train)
    done = train_all({"bst": config}, range(args.seeds), args.runs, jobs=args.jobs)["bst"]
    prepared = prepare(config)
    rows = table(prepared, done, {"LightGBM": predict_trees(prepared)}, {})
    print(format_report(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Compared, __doc__)
