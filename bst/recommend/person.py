"""Somebody's history, and what is asked about it, as a `Batch`."""

from dataclasses import dataclass, replace

import numpy as np
from einops import repeat

from bst.model.batches import Batch, Events, Targets, lay_out


@dataclass(frozen=True)
class Person:
    """Somebody's history, oldest first; j events."""

    item: np.ndarray  # (j,) int64 item index
    rating: np.ndarray  # (j,) float32, stars
    time: np.ndarray  # (j,) int64, seconds since 1970 UTC
    user: np.ndarray  # (1 + features,) int64, see `UserVocabulary.encode`

    def __len__(self) -> int:
        return len(self.item)

    def before(self, at: int) -> "Person":
        """The same person at an earlier time: the events before `at`, seconds since 1970 UTC."""
        return self._keep(np.arange(np.searchsorted(self.time, at)))

    def without(self, event: int) -> "Person":
        """The same person without one event, counted from 0."""
        return self._keep(np.delete(np.arange(len(self)), event))

    def _keep(self, rows: np.ndarray) -> "Person":
        return replace(self, item=self.item[rows], rating=self.rating[rows], time=self.time[rows])


def ask(person: Person, items: np.ndarray, at: int, kept: np.ndarray | None = None) -> Batch:
    """One person, in p variants that lack some events, asked about i items at one time.

    Args:
        person: somebody with j events, none after `at`.
        items: (i,) item indices.
        at: seconds since 1970 UTC.
        kept: (p, j) bool, the events that each variant has; None: one variant with all of them.

    Returns:
        A row a variant, all items in its last chunk.
    """
    kept = np.ones((1, len(person)), dtype=bool) if kept is None else kept
    p, i = len(kept), len(items)
    event = np.broadcast_to(np.arange(len(person)), kept.shape)[kept]
    size = kept.sum(axis=1)
    targets = Targets(
        row=np.repeat(np.arange(p), i), item=np.tile(items, p), time=np.full(p * i, at),
        seen=np.repeat(size, i), label=np.zeros(p * i), position=np.arange(p * i))
    events = Events(person.item[event], person.rating[event], person.time[event])
    return lay_out(events, np.cumsum(size) - size, size, targets,
                   repeat(person.user, "k -> p k", p=p))
