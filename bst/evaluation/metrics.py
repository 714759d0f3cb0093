"""Pure functions of predictions and labels, in float64, independent of batch order."""

from collections.abc import Sequence

import numpy as np

DRAWS = 1000  # of the bootstrap


def mae(score: np.ndarray, label: np.ndarray) -> float:
    """Mean absolute error in stars."""
    return float(np.abs(np.subtract(score, label, dtype=np.float64)).mean())


def rmse(score: np.ndarray, label: np.ndarray) -> float:
    """Root of the mean squared error in stars."""
    return float(np.sqrt(np.square(np.subtract(score, label, dtype=np.float64)).mean()))


def to_stars(score: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The nearest of the ratings `levels`, (c,) ascending, for each score; halfway the higher one.

    Example:
        >>> to_stars(np.array([-3, 1.75, 3.4, 9]), np.array([0.5, 3.0, 3.5])).tolist()
        [0.5, 3.0, 3.5, 3.5]
    """
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, score, side="right")]


def calibration(score: np.ndarray, label: np.ndarray, *, groups: int = 20) -> list[list[float]]:
    """[mean score, mean label] of equally large groups of rows, in order of score."""
    parts = np.array_split(np.argsort(score, kind="stable"), min(groups, len(score)))
    return [[float(score[p].mean(dtype=np.float64)), float(label[p].mean(dtype=np.float64))]
            for p in parts]


def user_sums(values: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of `values` of each user that occurs, in user order, float64."""
    count = np.bincount(user)
    total = np.bincount(user, weights=values)
    return total[count > 0], count[count > 0].astype(np.float64)


def user_bootstrap(
    runs: list[np.ndarray], users: list[np.ndarray], *, seed: int
) -> tuple[float, float]:
    """95 % interval of the mean of `runs`, one (n,) array per run; resamples users, not rows.

    `users` has, for each run, the number of each row's user, (n,). Bootstrap draws cycle through
    the runs, so the interval is for one run, not for their mean.
    """
    sums = [user_sums(values, user) for values, user in zip(runs, users, strict=True)]
    rng = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    for k in range(DRAWS):  # a draw at a time keeps memory flat
        total, count = sums[k % len(sums)]
        drawn = rng.integers(0, len(total), len(total))
        means[k] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation between runs, over their number less one; None of a single run."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
