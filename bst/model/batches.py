"""Store -> tensors. A row of a batch is one user: events in chunks, and targets that see them.

b rows, c chunks of a row, n = `CHUNK` events of a chunk, t = last chunks with targets, i targets
of a chunk. A training batch, a request, an explanation and an exported program are all a `Batch`.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX, OOV, PAD, USER_FEATURES
from bst.data.sequences import SequenceStore
from bst.data.splits import History, Split

TARGETS_PER_EVENT = 4  # targets of a chunk that cost as much as one event; see `packed`
CHUNK = 32  # events that are read together; a state carries over what came before


@dataclass(frozen=True)
class Batch:
    """One batch on one device. Events are padded in front: a row ends with its newest event.

    A field that is equal for all targets of a chunk may have last size 1, and broadcasts.
    """

    event_item: Tensor  # (b, c, n) int64, oldest first, PAD where there is none
    event_rating: Tensor  # (b, c, n) float32, stars
    event_time: Tensor  # (b, c, n) int64, seconds since the first event of the row
    target_item: Tensor  # (b, t, i) int64, PAD where the chunk has fewer targets
    target_time: Tensor  # (b, t, i) int64
    stop: Tensor  # (b, t, i) int64: it sees all earlier chunks, and this many slots of its own
    user: Tensor  # (b, 1 + features) int64: user index, then one index per user feature
    label: Tensor  # (b, t, i) float32, stars; 0 where padded
    position: Tensor  # (b, t, i) int64, the target's position in the store; -1 where padded
    is_request: bool = False  # no target is padded, and each sees all events of its row

    @cached_property
    def is_event(self) -> Tensor:
        """(b, c, n) bool, True at a real event."""
        return self.event_item != PAD

    @cached_property
    def is_target(self) -> Tensor:
        """(b, t, i) bool, True at a real target."""
        return self.target_item != PAD

    @cached_property
    def slot(self) -> Tensor:
        """`stop`, counted over all c * n slots of the row."""
        chunk = torch.arange(self.stop.shape[1], device=self.stop.device)
        chunk = chunk + self.event_item.shape[1] - self.stop.shape[1]
        return self.stop + rearrange(chunk, "t -> t 1") * self.event_item.shape[2]

    @cached_property
    def seen(self) -> Tensor:
        """Number of events that each target sees, shaped as `stop`."""
        return self.slot - (~self.is_event).sum(dim=(1, 2))[:, None, None]

    @cached_property
    def event_gap(self) -> Tensor:
        """Log hours between an event and the one before, (b, c, n); -1: none before, or padded."""
        time = rearrange(self.event_time, "b c n -> b (c n)")
        is_event = rearrange(self.is_event, "b c n -> b (c n)")
        has_earlier = F.pad(is_event[:, :-1], (1, 0)) & is_event
        gap = torch.where(has_earlier, log_hours(time.diff(dim=1, prepend=time[:, :1])), -1.0)
        return gap.view_as(self.event_time)

    @cached_property
    def target_gap(self) -> Tensor:
        """Log hours since the last event that each target sees, shaped as `stop`; -1: none."""
        last = at_slots(self.event_time, self.slot - 1)
        return torch.where(self.seen > 0, log_hours(self.target_time - last), -1.0)

    def about(self, items: np.ndarray | Tensor) -> "Batch":
        """The same request with items (b, i) as its targets; what was computed of it is kept."""
        other = replace(self, target_item=rearrange(torch.as_tensor(items), "b i -> b 1 i"))
        other.__dict__.update({name: self.__dict__[name] for name in self.__dict__.keys()
                               & {"is_event", "slot", "seen", "event_gap", "target_gap"}})
        return other

    def real(self, values: Tensor) -> Tensor:
        """Values (b, t, 1 or i, ...) of the m real targets, (m, ...); of a request as they are."""
        if self.is_request:
            return values
        return values.expand(*self.target_item.shape, *values.shape[3:])[self.is_target]

    def in_place(self, values: Tensor) -> Tensor:
        """Values of the real targets, as of `real`, in their places, (b, t, i); 0 where padded."""
        if self.is_request:
            return values
        return values.new_zeros(self.is_target.shape).masked_scatter(self.is_target, values)

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> "Batch":
        """The batch on `device`, its floats as `dtype`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "is_request"}
        return replace(self, **{name: x.to(device, dtype if x.is_floating_point() else x.dtype)
                                for name, x in values.items()})


def log_hours(seconds: Tensor) -> Tensor:
    """Log of hours + 1, float; times out of order count as none."""
    return torch.log1p(seconds.clamp(min=0).float() / 3600)


def at_slots(values: Tensor, slot: Tensor) -> Tensor:
    """Values (b, c, n, ...) at slots (b, *k), counted over the row, at least 0: (b, *k, ...)."""
    row = torch.arange(len(values), device=slot.device).view(-1, *[1] * (slot.ndim - 1))
    return values.flatten(1, 2)[row, slot.clamp(min=0)]


@dataclass(frozen=True)
class Events:
    """Ratings, flat; each history is a slice: one person's ratings, oldest first."""

    item: np.ndarray  # (m,) item index
    rating: np.ndarray  # (m,) stars
    time: np.ndarray  # (m,) seconds since 1970 UTC


@dataclass(frozen=True)
class Targets:
    """k targets, row by row."""

    row: np.ndarray  # (k,) row of the batch
    item: np.ndarray  # (k,) item index
    time: np.ndarray  # (k,) seconds since 1970 UTC
    seen: np.ndarray  # (k,) number of the row's events before it
    label: np.ndarray  # (k,) stars
    position: np.ndarray  # (k,) position in the store


def lay_out(events: Events, begin: np.ndarray, size: np.ndarray, targets: Targets,
            user: np.ndarray) -> Batch:
    """The batch of some histories and their targets.

    Chunks are cut at multiples of `CHUNK` from the newest event, so that a row's numbers do not
    depend on the other rows. A target belongs to the chunk that holds the slot after its last seen
    event; a target that sees the whole row belongs to the last chunk.

    Args:
        events: of all rows.
        begin: (b,) the first event of each row.
        size: (b,) events of each row.
        targets: of all rows.
        user: (b, 1 + features) see `UserVocabulary.encode`.
    """
    b, c = len(size), int(num_chunks(size).max())
    slot, empty = np.arange(c * CHUNK), c * CHUNK - size
    is_real = slot >= empty[:, None]
    source = np.where(is_real, (begin - empty)[:, None] + slot, 0)

    row, target_slot = targets.row, empty[targets.row] + targets.seen
    chunk = np.minimum(target_slot // CHUNK, c - 1)
    t = c - int(chunk.min())
    cell = row * t + chunk - (c - t)
    order = np.argsort(cell, kind="stable")
    new = np.flatnonzero(np.diff(cell[order], prepend=-1))
    rank = np.arange(len(cell)) - np.repeat(new, np.diff(new, append=len(cell)))
    i = int(rank.max()) + 1
    place = cell[order] * i + rank

    start = np.zeros(b, np.int64)  # time 0 of each row: its first event, or else its first target
    start[row[::-1]] = targets.time[::-1]  # backwards: the first of a row is written last
    start[size > 0] = events.time[begin[size > 0]]

    def of_events(values: np.ndarray, dtype: type) -> Tensor:
        table = np.zeros((b, c * CHUNK), dtype)
        table[is_real] = values[source[is_real]]
        return rearrange(torch.from_numpy(table), "b (c n) -> b c n", n=CHUNK)

    def of_targets(values: np.ndarray, dtype: type, padding: int = 0) -> Tensor:
        table = np.full(b * t * i, padding, dtype)
        table[place] = values[order]
        return rearrange(torch.from_numpy(table), "(b t i) -> b t i", t=t, i=i)

    time = of_events(events.time, np.int64) - torch.from_numpy(start)[:, None, None]
    item = of_events(events.item, np.int64)
    return Batch(
        event_item=item, event_rating=of_events(events.rating, np.float32),
        event_time=torch.where(item == PAD, 0, time),
        target_item=of_targets(targets.item, np.int64),
        target_time=of_targets(targets.time - start[row], np.int64),
        stop=of_targets(target_slot - chunk * CHUNK, np.int64), user=torch.from_numpy(user),
        label=of_targets(targets.label, np.float32),
        position=of_targets(targets.position, np.int64, padding=-1),
    )


def request_batch(events: Events, begin: np.ndarray, size: np.ndarray, user: np.ndarray,
                  at: np.ndarray) -> Batch:
    """Histories with one target each, at (b,) seconds; `Batch.about` says of which items."""
    b = len(size)
    return replace(lay_out(events, begin, size, Targets(
        row=np.arange(b), item=np.full(b, OOV), time=at, seen=size, label=np.zeros(b),
        position=np.arange(b)), user), is_request=True)


def num_chunks(size: np.ndarray) -> np.ndarray:
    """Chunks of histories of these sizes, at least one each."""
    return np.maximum(1, -(-size // CHUNK))


def packed(order: np.ndarray, chunks: np.ndarray, largest: np.ndarray, batch_size: int
           ) -> list[list[int]]:
    """Groups of rows, in order, that share a batch.

    Args:
        order: (b,) rows.
        chunks: (b,) of each row.
        largest: (b,) largest number of targets in one chunk of each row.
        batch_size: cost of a batch, at most. A batch costs as much as its slots for events, padded
            ones included, or its slots for targets / `TARGETS_PER_EVENT`, whichever is more. A
            single row that costs more is a batch of its own.
    """
    groups, longest, fullest = [], 0, 0
    for row in order:
        longest, fullest = max(longest, chunks[row]), max(fullest, largest[row])
        size = longest * max(CHUNK, fullest / TARGETS_PER_EVENT)
        if not groups or (len(groups[-1]) + 1) * size > batch_size:
            groups.append([])
            longest, fullest = chunks[row], largest[row]
        groups[-1].append(row)
    return groups


@dataclass(frozen=True)
class UserVocabulary:
    """Values of the user table that train knows; index 0 is PAD, 1 is OOV."""

    user_id: list[int | str]
    features: dict[str, list[str]]  # values in index order, from FIRST_IDX on
    always: list[str] = field(default_factory=list)  # columns where no user of train has a gap

    @classmethod
    def fit(cls, store: SequenceStore, split: Split) -> "UserVocabulary":
        """Values that occur among the users of train targets."""
        rows = np.unique(store.user_row[split.train])
        users = store.users[rows]
        features = {f: sorted(users[f].drop_nulls().unique().to_list()) for f in USER_FEATURES}
        always = [name for name in ("user_id", *features) if not users[name].null_count()]
        return cls(users["user_id"].to_list(), features, always)

    def encode(self, users) -> np.ndarray:
        """Indices (u, 1 + features) int64 of a user table; what train did not have is OOV."""
        columns = [[index.get(value, OOV) for value in users[name]]
                   for name, index in self._index.items()]
        return np.array(columns, dtype=np.int64).T

    @cached_property
    def _index(self) -> dict[str, dict]:
        """Index of each value of each column of a user table."""
        return {name: {value: k for k, value in enumerate(values, start=FIRST_IDX)}
                for name, values in {"user_id": self.user_id, **self.features}.items()}

    @property
    def sizes(self) -> list[int]:
        """Rows of each embedding table, PAD and OOV included."""
        return [len(v) + FIRST_IDX for v in (self.user_id, *self.features.values())]


class Batches:
    """Gathers batches of one store; the split says what is a target, and what each may see."""

    def __init__(self, store: SequenceStore, split: Split, vocabulary: UserVocabulary) -> None:
        self.store, self.split, self.vocabulary = store, split, vocabulary
        self.history = History.of(store, split)
        rows = self.history.position
        self.events = Events(store.item_idx[rows], store.rating[rows], store.timestamp[rows])
        self.user = vocabulary.encode(store.users)

    def epoch(self, part: str, *, batch_size: int, seed: int | None = None,
              epoch: int = 0) -> list[list[np.ndarray]]:
        """Plan the batches of one epoch; the plan depends only on (seed, epoch).

        Users of about equally long histories share a batch, so that little is padded.

        Args:
            part: train, valid or test.
            batch_size: see `packed`.
            seed: shuffles users and batches; None keeps a fixed order for evaluation.
            epoch: number of the pass.

        Returns:
            For each batch, for each of its rows, the positions of the targets.
        """
        rows, chunks, largest = self._rows(part)
        order = np.argsort(chunks, kind="stable")
        rng = np.random.default_rng([seed or 0, epoch])
        if seed is not None:
            order = np.argsort(chunks * np.exp(rng.normal(0, 0.1, len(rows))), kind="stable")
        groups = packed(order, chunks, largest, batch_size)
        plan = [[rows[row] for row in group] for group in groups]
        return plan if seed is None else [plan[k] for k in rng.permutation(len(plan))]

    def _rows(self, part: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """List each user's target positions; count chunks, and targets of the fullest chunk."""
        targets = self.split.part(part)
        if not len(targets):
            return [], np.zeros(0, int), np.zeros(0, int)
        new = np.flatnonzero(np.diff(self.store.user_row[targets], prepend=-1))
        seen = (self.history.stop - self.history.start)[targets]
        row = np.repeat(np.arange(len(new)), np.diff(new, append=len(targets)))
        size = np.maximum.reduceat(seen, new)
        chunks = num_chunks(size)
        chunk = np.minimum(((chunks * CHUNK - size)[row] + seen) // CHUNK, chunks[row] - 1)
        cell = row * chunks.max() + chunk
        _, back, count = np.unique(cell, return_inverse=True, return_counts=True)
        return np.split(targets, new[1:]), chunks, np.maximum.reduceat(count[back], new)

    def gather(self, rows: list[np.ndarray]) -> Batch:
        """The batch of some targets, given by their positions: an array per row."""
        position = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        first = np.array([r[0] for r in rows])
        begin, stop = self.history.start[first], self.history.stop[position]
        size = np.zeros(len(rows), np.int64)
        np.maximum.at(size, row, stop - begin[row])
        store = self.store
        targets = Targets(row, store.item_idx[position], store.timestamp[position],
                          stop - begin[row], store.rating[position], position)
        return lay_out(self.events, begin, size, targets, self.user[store.user_row[first]])
