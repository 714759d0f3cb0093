"""Pure functions of predictions and labels, in float64, independent of batch order."""

from collections.abc import Sequence

import numpy as np


def mae(score: np.ndarray, label: np.ndarray) -> float:
    """Mean absolute error in stars.

    Example:
        >>> mae(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
        0.5
    """
    return float(np.abs(_difference(score, label)).mean())


def rmse(score: np.ndarray, label: np.ndarray) -> float:
    """Root of the mean squared error in stars.

    Example:
        >>> rmse(np.array([1.0, 5.0]), np.array([4.0, 1.0])) == 12.5**0.5
        True
    """
    return float(np.sqrt(np.square(_difference(score, label)).mean()))


def macro_mae(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
    """Mean over users of each user's MAE; `user` holds row numbers, (n,).

    Example:
        >>> macro_mae(np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 4.0]), np.array([0, 0, 2]))
        2.5
    """
    total, count = user_sums(np.abs(_difference(score, label)), user)
    return float((total / count).mean())


def to_stars(score: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The nearest rating of the scale, halfway the lower one: the `star` decode of a prediction.

    Args:
        score: stars, any shape.
        levels: (c,) ratings that occur, ascending.

    Example:
        >>> to_stars(np.array([0.2, 3.4, 3.6]), np.array([0.5, 3.0, 3.5])).tolist()
        [0.5, 3.5, 3.5]
    """
    levels = np.asarray(levels, dtype=np.float64)
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, score)]


def calibration(score: np.ndarray, label: np.ndarray, *, groups: int = 20) -> list[list[float]]:
    """[mean score, mean label] of equal groups of rows, in order of score.

    Example:
        >>> calibration(np.array([4.0, 1.0, 2.0, 3.0]), np.array([5.0, 1.0, 1.0, 3.0]), groups=2)
        [[1.5, 1.0], [3.5, 4.0]]
    """
    parts = np.array_split(np.argsort(score, kind="stable"), min(groups, len(score)))
    return [[float(score[p].mean(dtype=np.float64)), float(label[p].mean(dtype=np.float64))]
            for p in parts]


def hit_at_k(is_relevant: np.ndarray, k: int) -> np.ndarray:
    """1 for each list that has a relevant item among its first k: (u,) float64; HR@k is the mean.

    Args:
        is_relevant: (u, n) bool, each list best first.
        k: length that counts.

    Example:
        >>> hit_at_k(np.array([[False, True, False], [False, False, True]]), k=2).tolist()
        [1.0, 0.0]
    """
    return is_relevant[:, :k].any(axis=1).astype(np.float64)


def ndcg_at_k(is_relevant: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain of each list over that of the best possible list: (u,) float64, in [0, 1].

    Args:
        is_relevant: (u, n) bool, each list best first.
        num_relevant: (u,) relevant items among all candidates, at least 1.
        k: length that counts.

    Source: Jarvelin and Kekalainen 2002, gain 1, discount log2(rank + 1).

    Example:
        >>> ndcg_at_k(np.array([[True, False, False], [False, False, True]]), np.array([1, 1]), k=3)
        array([1. , 0.5])
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discount)[np.minimum(num_relevant, k) - 1]
    return is_relevant[:, :k] @ discount[:is_relevant.shape[1]] / best


def user_sums(values: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of `values` of each user that occurs, in user order, float64.

    Example:
        >>> [a.tolist() for a in user_sums(np.array([1.0, 2.0, 5.0]), np.array([3, 3, 8]))]
        [[3.0, 5.0], [2.0, 1.0]]
    """
    count = np.bincount(user)
    total = np.bincount(user, weights=values)
    return total[count > 0], count[count > 0].astype(np.float64)


def user_bootstrap(
    runs: list[np.ndarray], users: list[np.ndarray], *, seed: int, num_samples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of the mean of one run, when users, not rows, are drawn again.

    The one definition of an interval over seeds: the runs take turns to be drawn from, so that it
    spans what one of them gives on other users, and is as wide however many they are.

    Args:
        runs: of each run one number a row, (n,): an absolute error, or a difference of two.
        users: of each run the number of each row's user, (n,).
        seed: of the draws.
        num_samples: draws.
        level: of the interval.

    Example:
        >>> user_bootstrap([np.ones(6)], [np.array([0, 0, 1, 1, 2, 2])], seed=0)
        (1.0, 1.0)
    """
    sums = [user_sums(values, user) for values, user in zip(runs, users, strict=True)]
    rng = np.random.default_rng(seed)
    means = np.empty(num_samples)
    for k in range(num_samples):  # a draw at a time keeps memory flat
        total, count = sums[k % len(sums)]
        drawn = rng.integers(0, len(total), len(total))
        means[k] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation between runs, over their number less one; None of a single run.

    Example:
        >>> spread([1.0, 3.0]), spread([2.0])
        (1.4142135623730951, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _difference(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    if score.shape != label.shape or not len(label):
        raise ValueError(f"expected as many scores as labels and at least one, got "
                         f"{score.shape} and {label.shape}")
    return np.asarray(score, dtype=np.float64) - label
