"""Item neighbours: what the factors leave over on a film, read off similar films of the history.

    score = factor score + slope * sum over history films j of s |s| e_j

e is rating minus factor score, s the shrunken correlation of e between the target and film j over
the users who rated both. Sixteen factors say what kind of film somebody likes; neighbours add that
who liked the first part better than expected will like the second.

Source: Koren 2008, "Factorization meets the neighborhood", section 2.2, on residuals.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.model.features import History

SHRINK = 200.0  # pseudo-evidence of a correlation, stars squared; chosen on the valid part
MAX_ITEMS = 4096  # items with neighbours, the most rated ones: the square of it fits in memory


@dataclass(frozen=True)
class Neighbours:
    """Fitted neighbours; s slots, m train ratings."""

    slot: np.ndarray  # (num_items + 2,) int64, row of each item; the last one: no neighbours
    similarity: np.ndarray  # (s, s) float32, s |s| of each pair of items
    slope: float
    folds: int  # groups of users
    user: np.ndarray  # (m,) int32, row of the user of each train rating
    item_slot: np.ndarray  # (m,) int32
    residual: np.ndarray  # (m,) float32, rating less factor score, stars

    def sum_all(self, item: np.ndarray, of_event: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Sum over all events at once, (p, i); see `sum_visible`.

        Args:
            item: (i,) item indices of the targets.
            of_event: (j,) slots of the events.
            residual: (p, j) of the events.
        """
        if len(item) <= len(of_event):
            return residual @ self.similarity[np.ix_(of_event, self.slot[item])]
        whole = residual @ self.similarity[of_event]  # rows are read faster than cells are picked
        return whole[:, self.slot[item]]

    def without(self, fold: int, item: np.ndarray) -> np.ndarray:
        """Similarities between `item` (j,) that leave out the users of a fold: (j, j)."""
        slots, row = np.unique(self.slot[item], return_inverse=True)
        is_real = slots < len(self.similarity) - 1
        local = np.full(len(self.similarity), is_real.sum())  # the last row: no neighbours
        local[slots[is_real]] = np.arange(is_real.sum())
        rows = np.flatnonzero((local[self.item_slot] < is_real.sum())
                              & (self.user % self.folds != fold))
        sums = _co_ratings(self.user[rows], local[self.item_slot[rows]], self.residual[rows],
                           num_slots=is_real.sum() + 1)
        here = local[slots][row]
        return _similarity(sums)[np.ix_(here, here)]


def fit_neighbours(
    store: SequenceStore, split: Split, factor_score: np.ndarray, *, folds: int
) -> tuple[Neighbours, np.ndarray]:
    """The similarities, and the sum of s |s| e over the history of every position: (n,) float32.

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

    def co_ratings(rows: np.ndarray) -> np.ndarray:
        return _co_ratings(store.user_row[rows], slot[store.item_idx[rows]], residual[rows],
                           num_slots=slot.max() + 1)

    total = sum(co_ratings(part) for part in parts)
    full = _similarity(total)
    found = np.zeros(len(store), dtype=np.float32)
    is_held_out = np.ones(len(store), dtype=bool)
    is_held_out[split.train] = False
    for k, rows in enumerate([np.flatnonzero(is_held_out), *parts]):
        similarity = full if k == 0 else _similarity(total - co_ratings(rows))
        for here, events in _by_user(store, history, rows):
            weight = similarity[np.ix_(slot[store.item_idx[here]], slot[store.item_idx[events]])]
            size = (history.stop - history.start)[here]
            found[here] = sum_visible(weight, size, residual[events])
    fitted = Neighbours(slot, full, fit_slope(store, split, factor_score, found), folds,
                        store.user_row[split.train], slot[store.item_idx[split.train]].astype(
                            np.int32), residual[split.train])
    return fitted, found


def sum_visible(weight: np.ndarray, size: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Sum over the events that each target sees: the first `size` of them; (i, ...).

    Args:
        weight: (i, j) similarity of target i and event j.
        size: (i,) events that each target sees.
        residual: (j, ...) rating less factor score of the events.
    """
    is_visible = np.arange(len(residual)) < size[:, None]
    return (weight * is_visible) @ residual


def add_neighbours(slope: float, factor_score: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Factor score plus slope times sums, float32 stars; the product in float64."""
    return (factor_score + np.float64(slope) * sums).astype(np.float32)


def fit_slope(
    store: SequenceStore, split: Split, factor_score: np.ndarray, sums: np.ndarray
) -> float:
    """Least-squares slope, on train targets, of what the factors leave over on the sums."""
    x = sums[split.train].astype(np.float64)
    rest = store.rating[split.train] - factor_score[split.train].astype(np.float64)
    return float((x @ rest) / max(x @ x, 1e-9))


def _item_slots(store: SequenceStore, split: Split) -> np.ndarray:
    """Row of each item in the matrices, (num_items + 2,); the last row stands for no neighbours."""
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
    most_rated = np.argsort(-count, kind="stable")[: min(MAX_ITEMS, np.count_nonzero(count))]
    slot = np.full(len(count), len(most_rated))
    slot[most_rated] = np.arange(len(most_rated))
    return slot


def _co_ratings(
    user: np.ndarray, slot: np.ndarray, residual: np.ndarray, *, num_slots: int
) -> np.ndarray:
    """Sums over users who rated both items: of e_i e_j, and of e_i squared: (2, items, items)."""
    _, row = np.unique(user, return_inverse=True)
    e = np.zeros((row.max(initial=-1) + 1, num_slots), dtype=np.float32)
    e[row, slot] = residual
    is_rated = np.zeros_like(e)
    is_rated[row, slot] = 1
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
