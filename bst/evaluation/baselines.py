"""Strong simple scorers, each `(store, split) -> (n,) stars` for every position of the store."""

from collections.abc import Callable

import numpy as np

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.model.features import item_bias, streaming_bias

FACTORS, FACTOR_REG, FACTOR_SWEEPS = 32, 12.0, 8  # chosen on the valid part of MovieLens-1M


def global_mean(store: SequenceStore, split: Split) -> np.ndarray:
    """The mean of the train stars."""
    return np.full(len(store), item_bias(store, split)[0])


def item_mean(store: SequenceStore, split: Split) -> np.ndarray:
    """The item's shrunken train mean."""
    mean, bias = item_bias(store, split)
    return mean + bias[store.item_idx]


def user_mean(store: SequenceStore, split: Split, *, shrink: float = 5.0) -> np.ndarray:
    """The user's shrunken train mean; a new user has the global one."""
    mean, _ = item_bias(store, split)
    return mean + _shrunken(store.rating[split.train] - mean, store.user_row[split.train],
                            store.num_users, shrink)[store.user_row]


def user_item_bias(store: SequenceStore, split: Split, *, sweeps: int = 10) -> np.ndarray:
    """Train mean plus user and item bias, fitted in turns.

    Source: Koren 2010, "Factor in the Neighbors", section 2.1; Surprise's BaselineOnly.
    """
    mean, user, item = _biases(store, split, sweeps)
    return mean + user[store.user_row] + item[store.item_idx]


def matrix_factorisation(store: SequenceStore, split: Split) -> np.ndarray:
    """User and item bias plus factors, by alternating least squares; a new user has none.

    Source: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques".
    """
    mean, user_b, item_b = _biases(store, split, 10)
    user, item = store.user_row[split.train], store.item_idx[split.train]
    residual = store.rating[split.train] - mean - user_b[user] - item_b[item]
    rng = np.random.default_rng(0)
    users = np.zeros((store.num_users, FACTORS))
    items = rng.normal(0, 0.1, (store.num_items + FIRST_IDX, FACTORS))
    for _ in range(FACTOR_SWEEPS):
        users = _solve(residual, user, items[item], len(users))
        items = _solve(residual, item, users[user], len(items))
    score = np.einsum("nk,nk->n", users[store.user_row], items[store.item_idx])
    return mean + user_b[store.user_row] + item_b[store.item_idx] + score


def _biases(
    store: SequenceStore, split: Split, sweeps: int
) -> tuple[float, np.ndarray, np.ndarray]:
    mean = float(store.rating[split.train].mean(dtype=np.float64))
    user, item = store.user_row[split.train], store.item_idx[split.train]
    centred = store.rating[split.train] - mean
    user_b, item_b = np.zeros(store.num_users), np.zeros(store.num_items + FIRST_IDX)
    for _ in range(sweeps):
        item_b = _shrunken(centred - user_b[user], item, len(item_b), 10.0)
        user_b = _shrunken(centred - item_b[item], user, len(user_b), 15.0)
    return mean, user_b, item_b


def _shrunken(values: np.ndarray, group: np.ndarray, size: int, shrink: float) -> np.ndarray:
    total = np.bincount(group, weights=values, minlength=size)
    return total / (np.bincount(group, minlength=size) + shrink)


def _solve(residual: np.ndarray, group: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    """Ridge factors of each group, (size, k), from its rows' residuals and other-side factors."""
    order = np.argsort(group, kind="stable")
    present, begin = np.unique(group[order], return_index=True)
    ends = np.append(begin[1:], len(order))
    solved = np.zeros((size, other.shape[1]))
    ridge = FACTOR_REG * np.eye(other.shape[1])
    for key, low, high in zip(present, begin, ends, strict=True):
        rows = order[low:high]
        x = other[rows]
        solved[key] = np.linalg.solve(x.T @ x + ridge, x.T @ residual[rows])
    return solved


BASELINES: dict[str, Callable[[SequenceStore, Split], np.ndarray]] = {
    "global mean": global_mean,
    "item mean": item_mean,
    "user mean": user_mean,
    "user + item bias": user_item_bias,
    "streaming bias": streaming_bias,
    "matrix factorisation": matrix_factorisation,
}
