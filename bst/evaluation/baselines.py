"""Strong simple scorers, each `(store, split) -> (n,) stars` for every position of the store."""

from collections.abc import Callable

import numpy as np

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import History, Split

ITEM_SHRINK, USER_SHRINK = 5.0, 3.0  # pseudo-counts, chosen on the valid part of MovieLens-1M
MEAN_SHRINK, BIAS_SHRINK = 5.0, (10.0, 15.0)  # of user means; of item and user, as in Surprise
NEIGHBOURS, SIMILARITY_SHRINK = 20, 100.0  # of a target; co-ratings that halve a similarity
MOST_ITEMS = 4096  # with neighbours: those with the most train ratings; the others have none
BIAS_SWEEPS = 10
CELLS = 2**23  # residuals of users by items at a time: 32 MB
FACTORS, FACTOR_REG, FACTOR_SWEEPS = 32, 12.0, 8  # chosen on the valid part of MovieLens-1M

SLOW = ("matrix factorisation", "item kNN")
MANY = 5_000_000  # train ratings up to which the slow ones are made without being asked for


def global_mean(store: SequenceStore, split: Split) -> np.ndarray:
    """The mean of the train stars."""
    return np.full(len(store), item_bias(store, split)[0])


def item_mean(store: SequenceStore, split: Split) -> np.ndarray:
    """The item's shrunken train mean."""
    mean, bias = item_bias(store, split)
    return mean + bias[store.item_idx]


def item_bias(store: SequenceStore, split: Split) -> tuple[float, np.ndarray]:
    """Train mean, and each item's shrunken mean deviation from it: (num_items + 2,) float64."""
    mean = float(store.rating[split.train].mean(dtype=np.float64))
    return mean, _shrunken(store.rating[split.train] - mean, store.item_idx[split.train],
                           store.num_items + FIRST_IDX, ITEM_SHRINK)


def user_mean(store: SequenceStore, split: Split) -> np.ndarray:
    """The user's shrunken train mean; a new user has the global one."""
    mean, _ = item_bias(store, split)
    return mean + _shrunken(store.rating[split.train] - mean, store.user_row[split.train],
                            store.num_users, MEAN_SHRINK)[store.user_row]


def streaming_bias(store: SequenceStore, split: Split, *, last: int | None = 20) -> np.ndarray:
    """Item bias plus the shrunken mean of the user's last residuals in the history."""
    mean, bias = item_bias(store, split)
    item_score, history = mean + bias[store.item_idx], History.of(store, split)
    residual = (store.rating - item_score)[history.position]
    total = np.concatenate([[0.0], np.cumsum(residual, dtype=np.float64)])
    stop, start = history.stop, history.start
    if last is not None:
        start = np.maximum(start, stop - last)
    return item_score + (total[stop] - total[start]) / (stop - start + USER_SHRINK)


def item_knn(store: SequenceStore, split: Split) -> np.ndarray:
    """Item and streaming user bias, plus the residuals of similar items of the target's history.

    The weights are cosines between the items' train residuals, shrunk by their co-ratings. The
    `NEIGHBOURS` most similar items of the target's history count. Users whom training never saw
    are scored in the same way. NaN in train, where the target's own rating is in the cosines.

    Source: Deshpande and Karypis 2004, "Item-Based Top-N Recommendation Algorithms".
    """
    base = streaming_bias(store, split, last=None)
    count = split.item_counts(store)
    kept = np.argsort(-count, kind="stable")[:MOST_ITEMS]
    slot = np.full(len(count), -1)
    slot[kept[count[kept] > 0]] = np.arange((count[kept] > 0).sum())
    similarity = _similarity(store, split, base, slot)
    history, residual = History.of(store, split), store.rating - base
    targets, score = np.sort(np.concatenate([split.valid, split.test])), base.copy()
    score[np.setdiff1d(split.train, targets)] = np.nan
    targets = targets[slot[store.item_idx[targets]] >= 0]
    of_users = np.split(targets, np.flatnonzero(np.diff(store.user_row[targets])) + 1)
    for mine in of_users if len(targets) else ():
        first = history.start[mine[0]]
        seen = history.position[first:history.stop[mine].max()]
        slots = slot[store.item_idx[seen]]
        near = similarity[np.ix_(slot[store.item_idx[mine]], slots)] * (slots >= 0)
        near = near * (np.arange(len(seen)) < (history.stop[mine] - first)[:, None])
        if len(seen) > NEIGHBOURS:
            least = np.partition(near, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]
            near = np.where(near >= least, near, 0)
        score[mine] += near @ residual[seen] / (near.sum(axis=1) + 0.5)
    return score


def _similarity(store: SequenceStore, split: Split, base: np.ndarray, slot: np.ndarray
                ) -> np.ndarray:
    """Shrunken cosines, at least 0, between the items with a slot; 0 with itself: (k, k)."""
    size = int(slot.max()) + 1
    rows = split.train[slot[store.item_idx[split.train]] >= 0]
    user, item = store.user_row[rows], slot[store.item_idx[rows]]
    product, common = np.zeros((2, size, size), np.float32)
    block = max(1, CELLS // max(1, size))  # users at a time
    for low in range(0, store.num_users, block):
        here = (user >= low) & (user < low + block)
        residual = np.zeros((min(block, store.num_users - low), size), np.float32)
        residual[user[here] - low, item[here]] = (store.rating - base)[rows[here]]
        product += residual.T @ residual
        has = (residual != 0).astype(np.float32)
        common += has.T @ has
    norm = np.sqrt(np.maximum(product.diagonal(), 1e-9))
    product *= common / (common + SIMILARITY_SHRINK) / norm / norm[:, None]
    np.fill_diagonal(product, 0)
    return np.maximum(product, 0)


def user_item_bias(store: SequenceStore, split: Split) -> np.ndarray:
    """Train mean plus user and item bias, fitted in turns.

    Source: Koren 2010, "Factor in the Neighbors", section 2.1; Surprise's BaselineOnly.
    """
    mean, item_b = item_bias(store, split)
    user, item = store.user_row[split.train], store.item_idx[split.train]
    centred, user_b = store.rating[split.train] - mean, np.zeros(store.num_users)
    for _ in range(BIAS_SWEEPS):
        item_b = _shrunken(centred - user_b[user], item, len(item_b), BIAS_SHRINK[0])
        user_b = _shrunken(centred - item_b[item], user, len(user_b), BIAS_SHRINK[1])
    return mean + user_b[store.user_row] + item_b[store.item_idx]


def matrix_factorisation(store: SequenceStore, split: Split) -> np.ndarray:
    """User and item bias plus factors, by alternating least squares; a new user has none.

    Source: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques".
    """
    base = user_item_bias(store, split)
    user, item = store.user_row[split.train], store.item_idx[split.train]
    residual = (store.rating - base)[split.train]
    rng = np.random.default_rng(0)
    users = np.zeros((store.num_users, FACTORS))
    items = rng.normal(0, 0.1, (store.num_items + FIRST_IDX, FACTORS))
    for _ in range(FACTOR_SWEEPS):
        users = _solve(residual, user, items[item], len(users))
        items = _solve(residual, item, users[user], len(items))
    return base + np.einsum("nk,nk->n", users[store.user_row], items[store.item_idx])


def _shrunken(values: np.ndarray, group: np.ndarray, size: int, shrink: float) -> np.ndarray:
    total = np.bincount(group, weights=values, minlength=size)
    return total / (np.bincount(group, minlength=size) + shrink)


def _solve(residual: np.ndarray, group: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    """Ridge factors of each group, (size, k), from its rows' residuals and other-side factors."""
    order = np.argsort(group, kind="stable")
    present, begin = np.unique(group[order], return_index=True)
    solved = np.zeros((size, other.shape[1]))
    ridge = FACTOR_REG * np.eye(other.shape[1])
    for key, rows in zip(present, np.split(order, begin[1:]), strict=True):
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
    "item kNN": item_knn,
}
