"""Baselines see train only and find what is there.

Run: pytest tests/evaluation/test_baselines.py.
"""


import numpy as np
import polars as pl
import pytest

from bst.data.schema import MOVIES, RATINGS, USERS, Tables
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from bst.evaluation.baselines import BASELINES, matrix_factorisation, user_item_bias
from tests.conftest import turned


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_sees_a_rating_from_its_targets_time_on(store, split, name):
    target = split.test[len(split.test) // 2]
    late = np.setdiff1d(np.concatenate([split.valid, split.test]), split.train)
    late = late[store.timestamp[late] >= store.timestamp[target]]
    before = BASELINES[name](store, split)
    after = BASELINES[name](turned(store, late), split)
    assert after[target] == pytest.approx(before[target], abs=1e-9)


def additive_store(rank: int):
    """Ratings 3 + user + item + factors without noise; each user rates most films."""
    rng = np.random.default_rng(4)
    users, items = 60, 50
    bias_u, bias_i = rng.normal(0, 0.5, users), rng.normal(0, 0.5, items)
    low = rng.normal(0, 0.8, (users, rank)) @ rng.normal(0, 0.8, (rank, items)) if rank else 0
    truth = 3 + bias_u[:, None] + bias_i[None] + low
    tables = Tables(
        pl.DataFrame({"user_id": np.arange(users), "sex": ["F"] * users, "age": ["1"] * users,
                      "occupation": ["0"] * users, "zip_region": ["0"] * users}, schema=USERS),
        pl.DataFrame({"item_id": np.arange(items), "title": ["x"] * items, "year": [1990] * items,
                      "genres": [["Drama"]] * items, "overview": [None] * items,
                      "match": ["none"] * items}, schema=MOVIES),
        pl.DataFrame({"user_id": np.repeat(np.arange(users), items),
                      "item_id": np.tile(np.arange(items), users), "rating": truth.ravel(),
                      "timestamp": rng.permutation(users * items)}, schema=RATINGS, strict=False))
    store = build_sequences(tables)
    return store, split_interactions(store, protocol="random")


def test_user_and_item_bias_recover_an_additive_world():
    store, split = additive_store(rank=0)
    error = np.abs(user_item_bias(store, split) - store.rating)[split.test].mean()
    assert error < 0.15 < 0.5 < store.rating.std()


def test_matrix_factorisation_finds_factors_that_biases_cannot():
    store, split = additive_store(rank=1)

    def error(scorer):
        return np.abs(scorer(store, split) - store.rating)[split.test].mean()

    assert error(matrix_factorisation) < 0.75 * error(user_item_bias)
