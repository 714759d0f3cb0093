"""Metrics against brute force. Run: pytest tests/test_metrics.py."""

import numpy as np
import pytest

from bst.metrics import macro_mae, mae, rmse, to_stars, user_bootstrap

RNG = np.random.default_rng(1)
SCORE, LABEL = RNG.uniform(1, 5, 101), RNG.integers(1, 6, 101).astype(float)
USER = RNG.integers(0, 13, 101) * 2


def test_metrics_equal_brute_force():
    errors = [abs(s - t) for s, t in zip(SCORE, LABEL, strict=True)]
    assert mae(SCORE, LABEL) == pytest.approx(sum(errors) / 101)
    assert rmse(SCORE, LABEL) == pytest.approx((sum(e * e for e in errors) / 101) ** 0.5)
    by_user = [np.mean([e for e, u in zip(errors, USER, strict=True) if u == v])
               for v in sorted(set(USER))]
    assert macro_mae(SCORE, LABEL, USER) == pytest.approx(np.mean(by_user))


def test_float32_predictions_lose_nothing_in_the_sum():
    score = np.full(3_000_001, 3.1, np.float32)
    assert mae(score, np.full(len(score), 3.0)) == pytest.approx(float(np.float32(3.1)) - 3, 1e-9)


def test_stars_are_whole_and_on_the_scale():
    assert to_stars(np.array([-3, 1.4, 2.5, 9]), np.arange(1, 6)).tolist() == [1, 1, 2, 5]


def test_an_empty_or_uneven_input_is_refused():
    for score, label in ((np.ones(0), np.ones(0)), (np.ones(2), np.ones(3))):
        with pytest.raises(ValueError, match="expected as many scores as labels"):
            mae(score, label)


def test_the_bootstrap_draws_users_not_rows():
    """Ten users with one value each: the spread is that of ten draws, not of a thousand rows."""
    value = RNG.normal(size=10)
    user = np.repeat(np.arange(10), 100)
    low, high = user_bootstrap(value[user], user, seed=0, num_samples=4000)
    expected = 1.96 * value.std() / 10**0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert low < value.mean() < high


def test_the_bootstrap_does_not_depend_on_row_order():
    order = RNG.permutation(101)
    first = user_bootstrap(LABEL, USER, seed=2)
    assert user_bootstrap(LABEL[order], USER[order], seed=2) == pytest.approx(first, abs=1e-12)
