"""Causal features against plain loops. Run: pytest tests/model/test_features.py."""


import numpy as np
import pytest

from bst.data.schema import FIRST_IDX
from bst.data.splits import split_interactions
from bst.model.base import base_scores
from bst.model.features import (
    DENSE,
    ITEM_SHRINK,
    Base,
    History,
    dense_features,
    item_bias,
    streaming_bias,
)
from tests.conftest import from_then_on, turned


def visible(store, split, p):
    """Positions that the target at p may see, by plain Python."""
    begin = store.offsets[store.user_row[p]]
    return [q for q in range(begin, split.history_stop[p]) if split.is_history[q]]


@pytest.mark.parametrize("protocol", ["temporal", "random"])
@pytest.mark.parametrize("ties", ["strict", "stable"])
def test_the_streaming_bias_is_item_bias_plus_shrunken_mean_of_the_last_residuals(
    store, protocol, ties
):
    split = split_interactions(store, protocol=protocol, ties=ties)
    mean, bias = item_bias(store, split)
    found = streaming_bias(store, split, last=7, shrink=3.0)
    for p in range(len(store)):
        last = visible(store, split, p)[-7:]
        residuals = [store.rating[q] - mean - bias[store.item_idx[q]] for q in last]
        expected = mean + bias[store.item_idx[p]] + sum(residuals) / (len(last) + 3)
        assert found[p] == pytest.approx(expected, abs=1e-5)


def test_item_bias_is_a_shrunken_mean_over_train_only(store, split):
    mean, bias = item_bias(store, split)
    train = store.rating[split.train]
    assert mean == pytest.approx(train.mean(), abs=1e-6)
    item = store.item_idx[split.train[0]]
    stars = train[store.item_idx[split.train] == item]
    expected = (stars - mean).sum() / (len(stars) + ITEM_SHRINK)
    assert bias[item] == pytest.approx(expected, abs=1e-5)


def test_nothing_fitted_sees_a_held_out_rating(store, split):
    changed = turned(store, np.concatenate([split.valid, split.test]))
    for before, after in zip(item_bias(store, split), item_bias(changed, split), strict=True):
        np.testing.assert_array_equal(before, after)


def test_dense_features_know_nothing_of_the_targets_rating(store, split):
    before = dense_features(store, split, base_scores(store, split, "neighbours"))
    for p in split.test[:5]:
        other = turned(store, from_then_on(store, p))
        after = dense_features(other, split, base_scores(other, split, "neighbours"))[p]
        np.testing.assert_allclose(after, before[p], atol=1e-6)


def test_dense_features_are_what_their_names_say(store, split):
    score, *others = np.random.default_rng(1).uniform(1, 5, (4, len(store))).astype(np.float32)
    base = Base(score, *others)
    found = dict(zip(DENSE, dense_features(store, split, base).T, strict=True))
    for name, values in zip(("factor score", "neighbour sum", "doubt"), others, strict=True):
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found["base score"], score)
    residual = store.rating - score
    train = store.rating[split.train]
    mse = np.square(residual[split.train]).mean()
    genres = [set(g) for g in store.movies["genres"]]
    for p in range(0, len(store), 5):
        seen, item = visible(store, split, p), store.item_idx[p]
        assert found["log history length"][p] == pytest.approx(np.log1p(len(seen)), abs=1e-5)
        mine = genres[item - FIRST_IDX]
        shared = [len(mine & genres[store.item_idx[q] - FIRST_IDX]) for q in seen]
        expected = np.dot(shared, residual[seen]) / (sum(shared) + 3) if seen else 0.0
        assert found["mean residual, same genres"][p] == pytest.approx(expected, abs=1e-5)
        hours = [(store.timestamp[p] - store.timestamp[q]) / 3600 for q in seen] or [0]
        first, last = np.log1p(hours[0]), np.log1p(hours[-1])
        assert found["log hours since first rating"][p] == pytest.approx(first, rel=1e-5)
        assert found["log hours since last rating"][p] == pytest.approx(last, rel=1e-5)
        last = residual[seen[-3:]]
        assert found["mean residual, last 3"][p] == pytest.approx(
            last.sum() / (len(last) + 3), abs=1e-5)
        assert found["mean squared residual"][p] == pytest.approx(
            (residual[seen] ** 2 - mse).sum() / (len(seen) + 3), abs=1e-5)
        for star in (1, 4):
            usual = (train == star).mean()
            of_user = (store.rating[seen] == star) - usual
            assert found[f"share of {star}-star ratings, user"][p] == pytest.approx(
                of_user.sum() / (len(seen) + 3), abs=1e-5)
            of_item = (train[store.item_idx[split.train] == item] == star) - usual
            assert found[f"share of {star}-star ratings, item"][p] == pytest.approx(
                of_item.sum() / (len(of_item) + ITEM_SHRINK), abs=1e-5)


def test_history_of_a_protocol_that_hides_ratings_is_a_slice_of_what_is_left(store):
    split = split_interactions(store, protocol="random")
    history = History.of(store, split)
    for p in range(0, len(store), 3):
        found = history.position[history.start[p]:history.stop[p]].tolist()
        assert found == visible(store, split, p)
