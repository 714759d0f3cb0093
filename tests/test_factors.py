"""Streaming factors against a plain-loop posterior, and what they must not know."""

from dataclasses import replace

import numpy as np
import pytest

from bst import factors
from bst.factors import FOLDS, FORGET, NUM_FACTORS, fit_factors, streaming_factors
from bst.features import streaming_bias
from bst.sequences import split_interactions
from tests.test_features import visible


def posterior_score(fitted, store, seen, p):
    """Ridge regression of the residuals of the events seen, the newest weighing FORGET ** 0."""
    k = NUM_FACTORS
    gram, moment = np.eye(k), np.zeros(k)
    for age, q in enumerate(reversed(seen)):
        x = fitted.loading[store.item_idx[q]]
        residual = store.rating[q] - fitted.item_score[store.item_idx[q]]
        gram += FORGET**age * np.outer(x, x) / fitted.noise
        moment += FORGET**age * x * residual / fitted.noise
    item = store.item_idx[p]
    return fitted.item_score[item] + fitted.loading[item] @ np.linalg.solve(gram, moment)


@pytest.mark.parametrize(("protocol", "block"),
                         [("temporal", 4), ("temporal", 1024), ("random", 4)])
def test_scores_are_the_posterior_of_a_plain_loop(store, monkeypatch, protocol, block):
    monkeypatch.setattr(factors, "BLOCK", block)
    split = split_interactions(store, protocol=protocol)
    found = streaming_factors(store, split)
    full = fit_factors(store, split.train)
    for p in [*split.valid[:10], *split.test[:10]]:
        expected = posterior_score(full, store, visible(store, split, p), p)
        assert found[p] == pytest.approx(expected, abs=1e-5)
    for p in split.train[::17]:
        other = store.user_row[split.train] % FOLDS != store.user_row[p] % FOLDS
        fitted = fit_factors(store, split.train[other])
        expected = posterior_score(fitted, store, visible(store, split, p), p)
        assert found[p] == pytest.approx(expected, abs=1e-5)


def test_a_train_target_does_not_depend_on_its_own_rating_or_later_ones(store, split):
    p = split.train[len(split.train) // 2]
    late = (store.user_row == store.user_row[p]) & (store.timestamp >= store.timestamp[p])
    changed = replace(store, rating=np.where(late, 6 - store.rating, store.rating))
    before, after = streaming_factors(store, split), streaming_factors(changed, split)
    assert after[p] == pytest.approx(before[p], abs=1e-6)
    assert not np.allclose(after[split.train], before[split.train])


def test_held_out_ratings_do_not_change_the_items(store, split):
    held_out = np.concatenate([split.valid, split.test])
    rating = store.rating.copy()
    rating[held_out] = 6 - rating[held_out]
    before = fit_factors(store, split.train)
    after = fit_factors(replace(store, rating=rating), split.train)
    np.testing.assert_array_equal(before.loading, after.loading)


def test_factors_find_tastes_that_a_bias_cannot(store, split):
    """Users who like even items and dislike odd ones, and the reverse: the bias knows nothing."""
    rng = np.random.default_rng(0)
    side = np.where(store.user_row % 2, 1, -1) * np.where(store.item_idx % 2, 1, -1)
    rating = (3 + side + rng.integers(0, 2, len(store))).astype(np.float32)
    taste = replace(store, rating=rating)

    def error(score):
        return np.abs(score - rating)[split.test].mean()

    assert error(streaming_factors(taste, split)) < 0.8 * error(streaming_bias(taste, split))
