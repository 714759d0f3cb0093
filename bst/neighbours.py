"""Item neighbours: what the factors leave over on a film, read off similar films of the history.

    score = factor score + slope * sum over history films j of s |s| e_j

e is rating minus factor score, s the shrunken correlation of e between the target and film j over
the users who rated both. Sixteen factors say what kind of film somebody likes; neighbours add that
who liked the first part better than expected will like the second.

Source: Koren 2008, "Factorization meets the neighborhood", section 2.2, on residuals.
"""

from collections.abc import Iterator

import numpy as np

from bst.features import History
from bst.schema import FIRST_IDX
from bst.sequences import SequenceStore, Split

SHRINK = 200.0  # pseudo-evidence of a correlation, stars squared; chosen on the valid part
MAX_ITEMS = 4096  # items with neighbours, the most rated ones: the square of it fits in memory


def neighbour_sum(
    store: SequenceStore, split: Split, factor_score: np.ndarray, *, folds: int
) -> np.ndarray:
    """Sum of s |s| e over the history of every position: (n,) float32.

    The correlations for a train target leave out the users of its fold, its own user among them.

    Args:
        store: sequences.
        split: which ratings are train, and what each target may see.
        factor_score: (n,) stars, each known before its rating.
        folds: groups of users.
    """
    residual = (store.rating - factor_score).astype(np.float32)
    history, slot = History.of(store, split), _item_slots(store, split)
    fold = store.user_row[split.train] % folds
    parts = [split.train[fold == k] for k in range(folds)]
    total = sum(_co_ratings(store, slot, residual, part) for part in parts)
    found = np.zeros(len(store), dtype=np.float32)
    is_held_out = np.ones(len(store), dtype=bool)
    is_held_out[split.train] = False
    jobs = [(np.flatnonzero(is_held_out), 0.0)]
    jobs += [(part, _co_ratings(store, slot, residual, part)) for part in parts]
    for rows, without in jobs:
        similarity = _similarity(total - without)
        for here, events in _by_user(store, history, rows):
            weight = similarity[np.ix_(slot[store.item_idx[here]], slot[store.item_idx[events]])]
            is_visible = np.arange(len(events)) < (history.stop - history.start)[here][:, None]
            found[here] = (weight * is_visible) @ residual[events]
    return found


def add_neighbours(
    store: SequenceStore, split: Split, factor_score: np.ndarray, sums: np.ndarray
) -> np.ndarray:
    """Factor score plus the sums times their least-squares slope on train targets: (n,) float32."""
    x = sums[split.train].astype(np.float64)
    rest = store.rating[split.train] - factor_score[split.train].astype(np.float64)
    slope = (x @ rest) / max(x @ x, 1e-9)
    return (factor_score + slope * sums).astype(np.float32)


def _item_slots(store: SequenceStore, split: Split) -> np.ndarray:
    """Row of each item in the matrices, (num_items + 2,); the last row stands for no neighbours."""
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
    most_rated = np.argsort(-count, kind="stable")[: min(MAX_ITEMS, np.count_nonzero(count))]
    slot = np.full(len(count), len(most_rated))
    slot[most_rated] = np.arange(len(most_rated))
    return slot


def _co_ratings(
    store: SequenceStore, slot: np.ndarray, residual: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Sums over users who rated both items: of e_i e_j, and of e_i squared: (2, items, items)."""
    _, user = np.unique(store.user_row[rows], return_inverse=True)
    item, num_slots = slot[store.item_idx[rows]], slot.max() + 1
    e = np.zeros((user.max(initial=-1) + 1, num_slots), dtype=np.float32)
    e[user, item] = residual[rows]
    is_rated = np.zeros_like(e)
    is_rated[user, item] = 1
    return np.stack([e.T @ e, (e * e).T @ is_rated])


def _similarity(sums: np.ndarray) -> np.ndarray:
    """Value of s |s| for each pair of items, 0 for those without neighbours: (items, items)."""
    together, own = sums
    s = together / np.sqrt((own + SHRINK) * (own.T + SHRINK))
    s[-1], s[:, -1] = 0.0, 0.0
    return s * np.abs(s)


def _by_user(
    store: SequenceStore, history: History, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each user, and the positions of the history that the last of them sees."""
    user = store.user_row[rows]
    for here in np.split(rows, np.flatnonzero(np.diff(user)) + 1):
        if len(here):
            yield here, history.position[history.start[here[0]]:history.stop[here].max()]
