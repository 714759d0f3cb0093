"""Store -> tensors. A row holds consecutive targets of one user and the history they share.

b rows, j history events of a row, i targets of a row, f dense features. The window form (one
target a row) and the shared-history form (many) are the same `Batch`: target i sees events
first[i] <= j < stop[i].
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bst.data.schema import FIRST_IDX, OOV, PAD, USER_FEATURES
from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.model.features import Base, History, cold_dense, dense_features, fit_statistics

TARGETS_PER_ROW = 64  # targets that share one pass over their history
POOL = 16  # batches that are sorted by length together: less padding, still a random order


@dataclass(frozen=True)
class Batch:
    """One batch on one device."""

    event_item: Tensor  # (b, j) int64, oldest first, PAD on the right
    event_rating: Tensor  # (b, j) float32, stars
    event_base: Tensor  # (b, j) float32, the base score of the event
    event_time: Tensor  # (b, j) int32, seconds since the user's first rating
    target_item: Tensor  # (b, i) int64, PAD where the row has fewer targets
    target_time: Tensor  # (b, i) int32
    first: Tensor  # (b, i) int32, target sees events first <= j < stop
    stop: Tensor  # (b, i) int32
    user: Tensor  # (b, 1 + features) int64: user index, then one index per user feature
    dense: Tensor  # (b, i, f) float32, unscaled
    base: Tensor  # (b, i) float32, base score of the target, stars, that the network corrects
    label: Tensor  # (b, i) float32, stars; 0 where padded
    position: Tensor  # (b, i) int64, the target's position in the store; -1 where padded
    is_cold: Tensor  # (b, i) bool, True where the target is shown as if nobody had rated its film

    def __post_init__(self) -> None:
        events = [self.event_item.shape, self.event_rating.shape, self.event_base.shape,
                  self.event_time.shape]
        targets = [self.target_item.shape, self.target_time.shape, self.first.shape,
                   self.stop.shape, self.base.shape, self.label.shape, self.dense.shape[:2]]
        # no sets: the sizes of a program that is exported have no hash
        if (any(shape != events[0] for shape in events) or self.user.shape[0] != self.label.shape[0]
                or any(shape != targets[0] for shape in targets)):
            raise ValueError(f"expected one (b, j) and one (b, i), got {events} and {targets}")

    @property
    def is_target(self) -> Tensor:
        """(b, i) bool, True at a real target."""
        return self.target_item != PAD

    @property
    def is_visible(self) -> Tensor:
        """(b, i, j) bool, True where the target may see the event."""
        slot = torch.arange(self.event_item.shape[1], device=self.stop.device, dtype=torch.int32)
        return (slot >= self.first[..., None]) & (slot < self.stop[..., None])

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> "Batch":
        """The batch on `device`, its floats as `dtype`."""
        moved = {}
        for f in fields(self):
            tensor = getattr(self, f.name).to(device)
            moved[f.name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return Batch(**moved)


@dataclass(frozen=True)
class UserVocabulary:
    """Known values of the user table; index 0 is PAD, 1 is OOV."""

    user_id: list[int]
    features: dict[str, list[str]]  # values in index order, from FIRST_IDX on

    @classmethod
    def fit(cls, store: SequenceStore, split: Split) -> "UserVocabulary":
        """Values that occur among the users of train targets."""
        rows = np.unique(store.user_row[split.train])
        known = store.users[rows]
        features = {f: sorted(known[f].drop_nulls().unique().to_list()) for f in USER_FEATURES}
        return cls(known["user_id"].to_list(), features)

    def encode(self, users) -> np.ndarray:
        """Indices (u, 1 + features) int64 of a user table; what train did not have is OOV."""
        columns = [_indices(users["user_id"].to_list(), self.user_id)]
        columns += [_indices(users[f].to_list(), values) for f, values in self.features.items()]
        return np.stack(columns, axis=1)

    @property
    def sizes(self) -> list[int]:
        """Rows of each embedding table, PAD and OOV included."""
        return [len(v) + FIRST_IDX for v in (self.user_id, *self.features.values())]


def _indices(values: list, known: list) -> np.ndarray:
    index = {value: i for i, value in enumerate(known, start=FIRST_IDX)}
    return np.array([index.get(value, OOV) for value in values], dtype=np.int64)


class Batches:
    """Gathers batches of one store and split.

    Args:
        store: sequences.
        split: which positions are targets, and what each may see.
        vocabulary: indices of the users.
        base: what the network corrects.
        history_len: events that a target sees, at most the last ones.
        shared: many targets a row (True) or the window form, one target a row.
        cold: what the network would correct at train targets if nobody had rated their film; None:
            no target is shown so.
    """

    def __init__(self, store: SequenceStore, split: Split, vocabulary: UserVocabulary, *,
                 base: Base, history_len: int, shared: bool, cold: Base | None = None) -> None:
        self.store, self.split, self.vocabulary, self.shared = store, split, vocabulary, shared
        history = History.of(store, split)
        self.stop = history.stop
        self.first = np.maximum(history.start, history.stop - history_len)
        self.base = base.score
        self.dense = dense_features(store, split, base)
        self.cold = None
        if cold is not None:
            rows, dense = split.train, np.zeros_like(self.dense)
            dense[rows] = cold_dense(fit_statistics(store, split, base.score), self.dense[rows],
                                     store.item_idx[rows], cold, rows)
            self.cold = cold.score, dense
        self.user = vocabulary.encode(store.users)
        starts = store.timestamp[np.minimum(store.offsets[:-1], len(store) - 1)]
        self.time = (store.timestamp - starts[store.user_row]).astype(np.int32)
        rows = history.position
        self.event_item = store.item_idx[rows].astype(np.int64)
        self.event_rating, self.event_base = store.rating[rows], self.base[rows]
        self.event_time = self.time[rows]

    def epoch(self, part: str, *, batch_targets: int, seed: int | None = None,
              epoch: int = 0) -> list[list[np.ndarray]]:
        """Rows of each batch of one epoch: a function of (seed, epoch) alone.

        Args:
            part: train, valid or test.
            batch_targets: targets of a batch, at most (a row is never cut).
            seed: shuffles rows and batches; None keeps a fixed order for evaluation.
            epoch: number of the pass.
        """
        rows = self._rows(self.split.part(part))
        order = np.arange(len(rows[0]))
        rng = np.random.default_rng([seed or 0, epoch])
        if seed is not None:
            order = rng.permutation(order)
        begin, end = rows
        targets = self.split.part(part)
        width = self.stop[targets[end - 1]] - self.first[targets[begin]]
        rows_per_batch = max(1, batch_targets // (TARGETS_PER_ROW if self.shared else 1))
        batches = []
        for pool in np.array_split(order, max(1, len(order) // (rows_per_batch * POOL))):
            pool = pool[np.argsort(width[pool], kind="stable")]
            batches += _cut(pool, (end - begin)[pool], batch_targets)
        if seed is not None:
            batches = [batches[k] for k in rng.permutation(len(batches))]
        return [[targets[begin[r]:end[r]] for r in batch] for batch in batches]

    def draw_cold(self, share: float, *, seed: int, epoch: int) -> np.ndarray | None:
        """Which positions of an epoch are shown as cold, (n,) bool, a function of (seed, epoch)."""
        if self.cold is None:
            return None
        return np.random.default_rng([seed, epoch, 93]).random(len(self.store)) < share

    def _rows(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begin and end, in `targets`, of each run of one user's targets, cut to row size."""
        if not self.shared:
            return np.arange(len(targets)), np.arange(1, len(targets) + 1)
        user = self.store.user_row[targets]
        new = np.flatnonzero(np.diff(user, prepend=-1))
        rank = np.arange(len(targets)) - np.repeat(new, np.diff(new, append=len(targets)))
        begin = np.flatnonzero(rank % TARGETS_PER_ROW == 0)
        return begin, np.append(begin[1:], len(targets))

    def gather(self, rows: list[np.ndarray], cold: np.ndarray | None = None) -> Batch:
        """Tensors of one batch from the positions of its targets, an array per row.

        Args:
            rows: positions.
            cold: see `draw_cold`; None: none is shown as cold.
        """
        size = np.array([len(r) for r in rows])
        real = np.arange(size.max())[None, :] < size[:, None]  # (b, i)
        position = np.full(real.shape, -1)
        position[real] = np.concatenate(rows)
        safe = np.where(real, position, position[:, :1])
        first, stop = self.first[safe], self.stop[safe]  # (b, i)
        begin = first.min(axis=1, keepdims=True)  # (b, 1)
        length = stop.max(axis=1, keepdims=True) - begin
        slot = np.arange(max(1, length.max()))[None, :]  # (1, j)
        filled = slot < length
        event = np.where(filled, begin + slot, 0)
        store, base, dense = self.store, self.base[safe], self.dense[safe]
        is_cold = np.zeros_like(real) if cold is None else cold[safe] & real
        if is_cold.any():
            base[is_cold], dense[is_cold] = (values[safe[is_cold]] for values in self.cold)

        def events(values: np.ndarray) -> Tensor:
            if not len(values):
                return torch.zeros(event.shape, dtype=torch.from_numpy(values).dtype)
            return torch.from_numpy(np.where(filled, values[event], 0).astype(values.dtype))

        def targets(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.where(real, values[safe], 0).astype(values.dtype))

        return Batch(
            event_item=events(self.event_item), event_rating=events(self.event_rating),
            event_base=events(self.event_base), event_time=events(self.event_time),
            target_item=targets(store.item_idx).long(), target_time=targets(self.time),
            first=torch.from_numpy((first - begin).astype(np.int32)),
            stop=torch.from_numpy((stop - begin).astype(np.int32)),
            user=torch.from_numpy(self.user[store.user_row[safe[:, 0]]]),
            dense=torch.from_numpy(dense), base=torch.from_numpy(np.where(real, base, 0)),
            label=targets(store.rating), position=torch.from_numpy(position),
            is_cold=torch.from_numpy(is_cold),
        )


def _cut(rows: np.ndarray, size: np.ndarray, batch_targets: int) -> list[np.ndarray]:
    """Cut `rows` where the running number of targets passes a multiple of `batch_targets`."""
    group = (np.cumsum(size) - 1) // batch_targets
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1)
