"""People at request time: any history -> base scores, dense features and a `Batch`.

Training reads these numbers off a store and a split; here a small store is made of the people of
one request and goes through the same functions. A person whom training knew keeps what training
did: ratings that the items were fitted on are scored by items fitted without that person's fold.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, repeat

from bst.base import BaseFit
from bst.batches import Batch
from bst.factors import read_histories, read_one
from bst.features import Base, History, Statistics, add_user_bias, dense_at
from bst.neighbours import add_neighbours, sum_visible
from bst.schema import PAD
from bst.sequences import SequenceStore


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
    """People who are asked about the same items at one time; p people, i items."""

    people: list[Person]
    items: np.ndarray  # (i,) item indices
    at: int  # seconds since 1970 UTC
    store: SequenceStore  # each person's events, then the items
    history: History  # what every position of that store sees
    rows: np.ndarray  # (p * i,) positions of the items

    @classmethod
    def of(cls, people: list[Person], items: np.ndarray, at: int, *, ties: str) -> "Request":
        """Lay the people out as a store; `ties` as in `split_interactions`."""
        size = np.array([len(person) for person in people])
        offsets = np.concatenate([[0], np.cumsum(size + len(items))])
        begin = np.concatenate([[0], np.cumsum(size)[:-1]])
        unrated, when = np.zeros(len(items), np.float32), np.full(len(items), at)
        store = SequenceStore(
            item_idx=np.concatenate([a for p in people for a in (p.item, items)]),
            rating=np.concatenate([a for p in people for a in (p.rating, unrated)]),
            timestamp=np.concatenate([a for p in people for a in (p.time, when)]),
            offsets=offsets, users=None, movies=(),
        )
        is_event = np.arange(len(store)) < (offsets[:-1] + size)[store.user_row]
        seen = [np.append(_seen(p, ties), np.full(len(items), len(p))) for p in people]
        start = begin[store.user_row]
        history = History(np.flatnonzero(is_event), start, start + np.concatenate(seen))
        return cls(people, items, at, store, history, np.flatnonzero(~is_event))


def _seen(person: Person, ties: str) -> np.ndarray:
    """How many events each event sees, (j,): those before it, or before its time."""
    if ties == "stable":
        return np.arange(len(person))
    return np.searchsorted(person.time, person.time)


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
    read = _read_alone if len(request.people) == 1 else _read_together
    score, doubt = read(request, fit)
    if fit.neighbours is None:
        return Base(score, score, empty, doubt)
    sums = np.concatenate([
        _neighbour_sums(request, fit, k, score[low:high])
        for k, (low, high) in enumerate(zip(store.offsets, store.offsets[1:], strict=False))
    ])
    return Base(add_neighbours(fit.neighbours.slope, score, sums), score, sums, doubt)


def _read_alone(request: Request, fit: BaseFit) -> tuple[np.ndarray, np.ndarray]:
    """Factor scores and doubts at the positions of the only person, (n,); no doubt at events."""
    (person,), seen = request.people, request.history.stop
    score = np.empty(len(request.store), dtype=np.float32)
    doubt = np.zeros_like(score)
    size, known = len(person), person.num_train
    score[:size], targets = read_one(fit.factors, person.traits @ fit.factors.user_slope.numpy(),
                                     person.item, person.rating, seen[:size], request.items)
    score[size:], doubt[size:] = targets.score, targets.doubt
    if known:
        fold = fit.folds[person.fold]
        score[:known], _ = read_one(fold, person.traits @ fold.user_slope.numpy(),
                                    person.item[:known], person.rating[:known], seen[:known],
                                    request.items[:0])
    return score, doubt


def _read_together(request: Request, fit: BaseFit) -> tuple[np.ndarray, np.ndarray]:
    """Factor scores and doubts at every position, (n,), an event of each person at a time."""
    store, people = request.store, request.people
    traits = torch.from_numpy(np.stack([person.traits for person in people]))
    rank = np.arange(len(store)) - store.offsets[:-1][store.user_row]
    known = rank < np.array([person.num_train for person in people])[store.user_row]
    fold = np.array([person.fold for person in people])[store.user_row]
    score, doubt = np.empty((2, len(store)), dtype=np.float32)
    jobs = [(fit.factors, np.flatnonzero(~known))]
    jobs += [(fit.folds[k], np.flatnonzero(known & (fold == k))) for k in np.unique(fold[known])]
    for factors, rows in jobs:
        factors = replace(factors, prior=traits @ factors.user_slope)
        reading = read_histories(factors, store, request.history, rows)
        score[rows], doubt[rows] = reading.score, reading.doubt
    return score, doubt


def _neighbour_sums(request: Request, fit: BaseFit, k: int, score: np.ndarray) -> np.ndarray:
    """Sums over the neighbours at the positions of person k, given their factor scores."""
    person, neighbours = request.people[k], fit.neighbours
    residual = person.rating - score[: len(person)]
    low = request.store.offsets[k]
    seen = (request.history.stop - request.history.start)[low:low + len(score)]
    of_event, known = neighbours.slot[person.item], person.num_train
    among = neighbours.similarity[np.ix_(of_event[known:], of_event)]
    sums = [sum_visible(among, seen[known:len(person)], residual),
            neighbours.sum_all(request.items, of_event, residual)]
    if known:
        sums.insert(0, sum_visible(person.within, seen[:known], residual[:known]))
    return np.concatenate(sums)


def batch_of(
    request: Request, fit: BaseFit, statistics: Statistics, *, history_len: int, shared: bool
) -> Batch:
    """The request as `Batches.gather` would make it.

    Args:
        request: people and items.
        fit: the base.
        statistics: of the dense features.
        history_len: events that a target sees, at most the last ones.
        shared: a row a person with all items (True), or a row for each item.
    """
    store, history, rows = request.store, request.history, request.rows
    base = base_of(request, fit, statistics)
    dense = torch.from_numpy(dense_at(statistics, store, history, base, rows))
    stop = np.array([len(person) for person in request.people])
    first = np.maximum(0, stop - history_len)
    slot = np.arange(max(1, (stop - first).max()))
    is_real = slot < (stop - first)[:, None]  # (p, j)
    position = np.where(is_real, (store.offsets[:-1] + first)[:, None] + slot, 0)
    start = np.array([p.time[0] if len(p) else request.at for p in request.people])
    p, i = len(stop), len(request.items)
    per_row = i if shared else 1

    def events(values: np.ndarray, dtype: type) -> torch.Tensor:
        table = torch.from_numpy(np.where(is_real, values[position], PAD).astype(dtype))
        return table if shared else repeat(table, "p j -> (p i) j", i=i)

    def targets(values: np.ndarray, dtype: type) -> torch.Tensor:
        return rearrange(torch.from_numpy(values.astype(dtype)), "(b i) -> b i", i=per_row)

    since = store.timestamp - start[store.user_row]
    user = torch.from_numpy(np.stack([person.user for person in request.people]))
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
        position=targets(rows, np.int64),
    )
