"""People at request time: any history -> base scores, dense features and a `Batch`.

Training reads these numbers off a store and a split; here a small store is made of one person, as
often as there are variants without some event, and goes through the same functions. A person whom
training knew keeps what training did: ratings that the items were fitted on are scored by items
fitted without that person's fold.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, repeat

from bst.data.schema import PAD
from bst.data.sequences import SequenceStore
from bst.model.base import BaseFit
from bst.model.batches import Batch
from bst.model.features import Base, History, Statistics, add_user_bias, dense_at
from bst.model.kalman import read_histories, read_one
from bst.model.neighbours import add_neighbours, sum_visible


@dataclass(frozen=True)
class Person:
    """Somebody's history, oldest first; j events."""

    item: np.ndarray  # (j,) int64 item index
    rating: np.ndarray  # (j,) float32, stars
    time: np.ndarray  # (j,) int64, seconds since 1970 UTC
    user: np.ndarray  # (1 + features,) int64, see `UserVocabulary.encode`
    traits: np.ndarray  # (1 + values,) float32, see `factors.user_features`
    num_train: int = 0  # the first so many events are train ratings
    fold: int = 0  # of this user, if training knew some events
    within: np.ndarray | None = None  # (num_train, num_train) similarities without the fold

    def __len__(self) -> int:
        return len(self.item)

    def before(self, at: int) -> "Person":
        """The same person at an earlier time: the events before `at`, seconds since 1970 UTC."""
        return self._keep(np.arange(np.searchsorted(self.time, at)))

    def without(self, event: int) -> "Person":
        """The same person without one event, counted from 0."""
        return self._keep(np.delete(np.arange(len(self)), event))

    def _keep(self, rows: np.ndarray) -> "Person":
        known = rows[rows < self.num_train]
        within = None if self.within is None else self.within[np.ix_(known, known)]
        return replace(self, item=self.item[rows], rating=self.rating[rows], time=self.time[rows],
                       num_train=len(known), within=within)


@dataclass(frozen=True)
class Request:
    """One person, in p variants that lack some events, asked about i items at one time."""

    person: Person
    kept: np.ndarray  # (p, j) bool, the events that each variant has
    items: np.ndarray  # (i,) item indices
    seen: np.ndarray  # (j,) how many events each event sees, none left out
    is_real: np.ndarray  # (p, j + i) bool, the cells of a table of events and items that exist
    store: SequenceStore  # a user a variant: its events, then the items
    history: History  # what every position of that store sees
    rows: np.ndarray  # (p * i,) positions of the items

    @classmethod
    def of(cls, person: Person, items: np.ndarray, at: int, *, ties: str,
           kept: np.ndarray | None = None) -> "Request":
        """Lay the variants out as a store.

        Args:
            person: somebody with j events, all before `at`.
            items: (i,) item indices.
            at: seconds since 1970 UTC.
            ties: as in `split_interactions`.
            kept: (p, j) bool; None: one variant with all events.
        """
        kept = np.ones((1, len(person)), dtype=bool) if kept is None else kept
        is_real = np.concatenate([kept, np.ones((len(kept), len(items)), dtype=bool)], axis=1)

        def cells(events: np.ndarray, targets: np.ndarray) -> np.ndarray:
            return np.broadcast_to(np.append(events, targets), is_real.shape)[is_real]

        size = kept.sum(axis=1)
        store = SequenceStore(
            item_idx=cells(person.item, items),
            rating=cells(person.rating, np.zeros(len(items), np.float32)),
            timestamp=cells(person.time, np.full(len(items), at)),
            offsets=np.append(0, np.cumsum(size + len(items))), users=None, movies=(),
        )
        whole = np.arange(len(person)) if ties == "stable" else np.searchsorted(person.time,
                                                                                person.time)
        left = np.concatenate([np.zeros((len(kept), 1), int), np.cumsum(kept, axis=1)], axis=1)
        seen = left[:, np.append(whole, np.full(len(items), len(person)))][is_real]
        is_item = cells(np.zeros(len(person), bool), np.ones(len(items), bool))
        start = (np.cumsum(size) - size)[store.user_row]
        history = History(np.flatnonzero(~is_item), start, start + seen)
        return cls(person, kept, items, whole, is_real, store, history, np.flatnonzero(is_item))


def base_of(request: Request, fit: BaseFit, statistics: Statistics) -> Base:
    """The base at every position of the request's store, as training has it."""
    store = request.store
    empty = np.zeros(len(store), dtype=np.float32)
    if fit.kind == "mean":
        return Base(np.full_like(empty, fit.mean), empty, empty, empty)
    if fit.kind == "bias":
        item_score = statistics.mean + statistics.bias[store.item_idx]
        score = add_user_bias(item_score, item_score, store, request.history)
        return Base(score, empty, empty, empty)
    read = _read_alone if len(request.kept) == 1 else _read_together
    score, doubt = read(request, fit)
    if fit.neighbours is None:
        return Base(score, score, empty, doubt)
    sums = _neighbour_sums(request, fit, score)
    return Base(add_neighbours(fit.neighbours.slope, score, sums), score, sums, doubt)


def _read_alone(request: Request, fit: BaseFit) -> tuple[np.ndarray, np.ndarray]:
    """Factor scores and doubts of the only variant, with all events, (n,); no doubt at events."""
    person, seen = request.person, request.seen
    score = np.empty(len(request.store), dtype=np.float32)
    doubt = np.zeros_like(score)
    size, known = len(person), person.num_train
    score[:size], targets = read_one(fit.factors, person.traits @ fit.factors.user_slope.numpy(),
                                     person.item, person.rating, seen, request.items)
    score[size:], doubt[size:] = targets.score, targets.doubt
    if known:
        fold = fit.folds[person.fold]
        score[:known], _ = read_one(fold, person.traits @ fold.user_slope.numpy(),
                                    person.item[:known], person.rating[:known], seen[:known],
                                    request.items[:0])
    return score, doubt


def _read_together(request: Request, fit: BaseFit) -> tuple[np.ndarray, np.ndarray]:
    """Factor scores and doubts at every position, (n,), an event of each variant at a time."""
    store, person = request.store, request.person
    column = np.broadcast_to(np.arange(request.is_real.shape[1]), request.is_real.shape)
    is_known = column[request.is_real] < person.num_train
    score, doubt = np.empty((2, len(store)), dtype=np.float32)
    parts = [(fit.factors, ~is_known)]
    if person.num_train:
        parts.append((fit.folds[person.fold], is_known))
    for factors, rows in parts:
        prior = torch.from_numpy(person.traits) @ factors.user_slope
        factors = replace(factors, prior=repeat(prior, "k -> p k", p=len(request.kept)))
        reading = read_histories(factors, store, request.history, np.flatnonzero(rows))
        score[rows], doubt[rows] = reading.score, reading.doubt
    return score, doubt


def _neighbour_sums(request: Request, fit: BaseFit, score: np.ndarray) -> np.ndarray:
    """Sums over the neighbours at every position, (n,), given the factor scores.

    All variants share one matrix of weights: an event that is left out has the residual 0.
    """
    person, neighbours, known = request.person, fit.neighbours, request.person.num_train
    known_score = np.zeros(request.is_real.shape, dtype=np.float32)
    known_score[request.is_real] = score
    residual = (person.rating - known_score[:, :len(person)]) * request.kept  # (p, j)
    slot = neighbours.slot[person.item]
    among = neighbours.similarity[np.ix_(slot[known:], slot)]
    sums = [sum_visible(among, request.seen[known:], residual.T).T,
            neighbours.sum_all(request.items, slot, residual)]
    if known:
        of_known = residual[:, :known].T
        sums.insert(0, sum_visible(person.within, request.seen[:known], of_known).T)
    return np.concatenate(sums, axis=1)[request.is_real]


def batch_of(
    request: Request, fit: BaseFit, statistics: Statistics, *, history_len: int, shared: bool
) -> Batch:
    """The request as `Batches.gather` would make it.

    Args:
        request: variants and items.
        fit: the base.
        statistics: of the dense features.
        history_len: events that a target sees, at most the last ones.
        shared: a row a variant with all items (True), or a row for each item.
    """
    store, history, rows = request.store, request.history, request.rows
    base = base_of(request, fit, statistics)
    dense = torch.from_numpy(dense_at(statistics, store, history, base, rows))
    stop = request.kept.sum(axis=1)
    first = np.maximum(0, stop - history_len)
    slot = np.arange(max(1, (stop - first).max()))
    is_real = slot < (stop - first)[:, None]  # (p, j)
    position = np.where(is_real, (store.offsets[:-1] + first)[:, None] + slot, 0)
    start = store.timestamp[store.offsets[:-1]]  # of the first event, or of the items
    p, i = len(stop), len(request.items)
    per_row = i if shared else 1

    def events(values: np.ndarray, dtype: type) -> torch.Tensor:
        table = torch.from_numpy(np.where(is_real, values[position], PAD).astype(dtype))
        return table if shared else repeat(table, "p j -> (p i) j", i=i)

    def targets(values: np.ndarray, dtype: type) -> torch.Tensor:
        return rearrange(torch.from_numpy(values.astype(dtype)), "(b i) -> b i", i=per_row)

    since = store.timestamp - start[store.user_row]
    user = repeat(torch.from_numpy(request.person.user), "c -> p c", p=p)
    return Batch(
        event_item=events(store.item_idx, np.int64), event_rating=events(store.rating, np.float32),
        event_base=events(base.score, np.float32), event_time=events(since, np.int32),
        target_item=targets(store.item_idx[rows], np.int64),
        target_time=targets(since[rows], np.int32),
        first=targets(np.zeros(p * i), np.int32),
        stop=targets(np.repeat(stop - first, i), np.int32),
        user=user if shared else repeat(user, "p c -> (p i) c", i=i),
        dense=rearrange(dense, "(b i) f -> b i f", i=per_row),
        base=targets(base.score[rows], np.float32), label=targets(np.zeros(p * i), np.float32),
        position=targets(rows, np.int64), is_cold=targets(np.zeros(p * i), bool),
    )
