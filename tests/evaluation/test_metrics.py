"""Metrics against brute force. Run: pytest tests/evaluation/test_metrics.py."""

import numpy as np
import pytest

from bst.evaluation.metrics import calibration, mae, rmse, user_bootstrap

RNG = np.random.default_rng(1)
SCORE, LABEL = RNG.uniform(1, 5, 101), RNG.integers(1, 6, 101).astype(float)
USER = RNG.integers(0, 13, 101) * 2
USER[0] = 26  # with one row


def test_metrics_equal_brute_force():
    errors = [abs(s - t) for s, t in zip(SCORE, LABEL, strict=True)]
    assert mae(SCORE, LABEL) == pytest.approx(sum(errors) / 101)
    assert rmse(SCORE, LABEL) == pytest.approx((sum(e * e for e in errors) / 101) ** 0.5)


def test_calibration_cuts_the_rows_in_order_of_score_into_equal_groups():
    score = np.round(SCORE, 1)  # ties keep the order of the rows
    order = sorted(range(101), key=lambda k: score[k])
    cuts = [0, 6, *range(11, 102, 5)]  # 101 rows: one group of 6, then 19 of 5
    expected = [[sum(values[k] for k in order[low:high]) / (high - low)
                 for values in (score, LABEL)]
                for low, high in zip(cuts, cuts[1:], strict=False)]
    np.testing.assert_allclose(calibration(score, LABEL), expected)
    assert calibration(score[:3], LABEL[:3], groups=4) == [
        [score[k], LABEL[k]] for k in np.argsort(score[:3])]


def test_float32_predictions_lose_nothing_in_a_sum():
    many = np.full(3_000_001, 3.1, np.float32)
    assert calibration(many, many, groups=1)[0] == pytest.approx([np.float32(3.1)] * 2, 1e-9)
    assert mae(many, np.full_like(many, 3)) == pytest.approx(float(np.float32(3.1)) - 3, 1e-9)


@pytest.mark.parametrize("runs", [[LABEL], [LABEL, SCORE, LABEL + 3]])
def test_the_bootstrap_draws_users_not_rows_of_one_run_after_the_other(runs):
    """A user with more rows weighs more in each draw; the draws are those of the seed."""
    rng, means = np.random.default_rng(5), []
    rows = [np.flatnonzero(user == USER) for user in np.unique(USER)]
    for draw in range(1000):
        drawn = np.concatenate([rows[k] for k in rng.integers(0, len(rows), len(rows))])
        means.append(runs[draw % len(runs)][drawn].mean())
    expected = pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
    users, order = [USER] * len(runs), RNG.permutation(101)
    assert user_bootstrap(runs, users, seed=5) == expected
    assert user_bootstrap(runs, users, seed=6) != expected
    moved = [values[order] for values in runs], [USER[order]] * len(runs)
    assert user_bootstrap(*moved, seed=5) == expected
