"""Baselines see train alone. Run: pytest tests/evaluation/test_baselines.py."""

from dataclasses import replace

import numpy as np
import pytest

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore, build_sequences
from bst.data.splits import split_interactions
from bst.evaluation import baselines
from tests.conftest import random_tables, turned


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_no_baseline_sees_a_rating_from_its_targets_time_on(store, split, name):
    target = split.test[len(split.test) // 2]
    late = np.setdiff1d(np.concatenate([split.valid, split.test]), split.train)
    late = late[store.timestamp[late] >= store.timestamp[target]]
    before = baselines.BASELINES[name](store, split)
    after = baselines.BASELINES[name](turned(store, late), split)
    assert after[target] == pytest.approx(before[target], abs=1e-9)


def visible(store, split, p):
    """Positions that the target at p may see, by plain Python."""
    begin = store.offsets[store.user_row[p]]
    return [q for q in range(begin, split.history_stop[p]) if split.is_history[q]]


@pytest.mark.parametrize("protocol", ["temporal", "random"])
@pytest.mark.parametrize("last", [7, None])
def test_the_streaming_bias_is_item_bias_plus_shrunken_mean_of_the_last_residuals(
        store, protocol, last):
    split = split_interactions(store, protocol=protocol)
    found = baselines.streaming_bias(store, split, last=last)
    train = store.rating[split.train].astype(float)
    of = [store.item_idx[split.train] == item for item in range(store.num_items + 2)]
    mean = train.mean()
    bias = [(train[rows] - mean).sum() / (rows.sum() + baselines.ITEM_SHRINK) for rows in of]
    for p in range(len(store)):
        sees = visible(store, split, p)[-(last or 999):]
        rest = [store.rating[q] - mean - bias[store.item_idx[q]] for q in sees]
        expected = mean + bias[store.item_idx[p]] + sum(rest) / (len(rest) + baselines.USER_SHRINK)
        assert found[p] == pytest.approx(expected, abs=1e-5)


def store_of(rating: np.ndarray, timestamp: np.ndarray) -> SequenceStore:
    """A store in which each user has rated each item: (u, i) stars and their times, flat."""
    users, items = rating.shape
    order = np.lexsort((timestamp, np.arange(rating.size) // items))
    item = np.tile(np.arange(items, dtype=np.int32), users) + FIRST_IDX
    return SequenceStore(item[order], rating.ravel()[order].astype(np.float32), timestamp[order],
                         np.arange(users + 1) * items, users=None, movies=range(items))


@pytest.mark.parametrize("rank", [0, 1])
def test_biases_recover_an_additive_world_and_matrix_factorisation_more(rank):
    """Ratings 3 + user + item + factors without noise; each user rates most films."""
    rng = np.random.default_rng(4)
    users, items = 60, 50
    bias_u, bias_i = rng.normal(0, 0.5, users), rng.normal(0, 0.5, items)
    low = rng.normal(0, 0.8, (users, rank)) @ rng.normal(0, 0.8, (rank, items)) if rank else 0
    truth = 3 + bias_u[:, None] + bias_i[None] + low
    store = store_of(truth, rng.permutation(users * items))
    split = split_interactions(store, protocol="random")
    biases, factors = (np.abs(scorer(store, split) - store.rating)[split.test].mean()
                       for scorer in (baselines.user_item_bias, baselines.matrix_factorisation))
    assert factors < 0.75 * biases if rank else biases < 0.15 < 0.5 < store.rating.std()


def brute_knn(store, split):
    """`item_knn` of valid and test by plain loops."""
    base = baselines.streaming_bias(store, split, last=None)
    rest, score = store.rating - base, base.copy()
    table = np.full((store.num_users, store.num_items + 2), np.nan)
    table[store.user_row[split.train], store.item_idx[split.train]] = rest[split.train]
    count = np.bincount(store.item_idx[split.train], minlength=table.shape[1])
    known = sorted(range(len(count)), key=lambda i: -count[i])[:baselines.MOST_ITEMS]
    known = {i for i in known if count[i]}

    def similarity(i, j):
        if i == j or not {i, j} <= known:
            return 0.0
        both = ~np.isnan(table[:, i]) & ~np.isnan(table[:, j])
        product = (table[both, i] * table[both, j]).sum()
        norm = np.sqrt(np.nansum(table[:, i]**2) * np.nansum(table[:, j]**2))
        return max(0.0, product / norm * both.sum() / (both.sum() + baselines.SIMILARITY_SHRINK))

    for p in {*split.valid, *split.test}:
        near = sorted(((similarity(store.item_idx[p], store.item_idx[q]), rest[q])
                       for q in visible(store, split, p)), reverse=True)[:baselines.NEIGHBOURS]
        weight = sum(weight for weight, _ in near)
        score[p] += sum(weight * value for weight, value in near) / (weight + 0.5)
    return score


@pytest.mark.parametrize("protocol", ["temporal", "random", "cold-items", "keras-windows"])
@pytest.mark.parametrize(("most_items", "neighbours", "cells", "again"), [
    (4096, 20, 2**25, 1), (4096, 99, 2**25, 2), (4096, 3, 200, 1), (15, 20, 1, 1),
    (0, 20, 2**25, 1)])
def test_item_neighbours_are_those_of_plain_loops(
        monkeypatch, protocol, most_items, neighbours, cells, again):
    monkeypatch.setattr(baselines, "MOST_ITEMS", most_items)
    monkeypatch.setattr(baselines, "NEIGHBOURS", neighbours)
    monkeypatch.setattr(baselines, "CELLS", cells)
    monkeypatch.setattr(baselines, "SIMILARITY_SHRINK", 2.0)
    store = build_sequences(random_tables(num_ratings=800))
    store = replace(store, item_idx=(store.item_idx - 2) // again + 2)  # 2: each is rated twice
    split = split_interactions(store, protocol=protocol)
    asked = np.concatenate([split.valid, split.test])
    found = baselines.item_knn(store, split)
    base = baselines.streaming_bias(store, split, last=None)
    np.testing.assert_allclose(found[asked], brute_knn(store, split)[asked], atol=1e-5)
    moves = np.abs(found - base)[asked] > 1e-3
    assert moves.any() == (most_items > 0 and protocol != "cold-items")  # cold ones have none
    only_train = np.setdiff1d(split.train, asked)  # keras-windows may ask what is in train too
    assert np.isnan(found[only_train]).all()  # it would have seen the answer
    assert (len(only_train) < len(set(split.train))) == (protocol == "keras-windows")
