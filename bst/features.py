"""Numbers known about a target before its rating: streaming bias and dense features.

Item statistics are fitted on train targets only. A user's running means use what the target's
history holds, as `Split` defines it, so they stay honest after the cut: known at request time.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from bst.schema import FIRST_IDX
from bst.sequences import SequenceStore, Split

ITEM_SHRINK, USER_SHRINK = 5.0, 3.0  # pseudo-counts, chosen on the valid part of MovieLens-1M
DENSE = (
    "release year", "item bias", "log train ratings of the item", "log history length",
    "mean residual, last 5", "mean residual, last 20", "mean residual, all",
    "mean residual, same genres", "log hours since first rating", "log hours since last rating",
    "streaming bias", "base score",
)


@dataclass(frozen=True)
class History:
    """The interactions that may be history, in store order, and each target's slice of them."""

    position: np.ndarray  # (m,) positions of the store
    start: np.ndarray  # (n,) first history row of the user of the target at each position
    stop: np.ndarray  # (n,) one past the last row that the target may see

    @classmethod
    def of(cls, store: SequenceStore, split: Split) -> "History":
        """The history rows of a split; m = n unless the protocol hides ratings."""
        count = np.concatenate([[0], np.cumsum(split.is_history)])
        return cls(
            position=np.flatnonzero(split.is_history),
            start=count[store.offsets[:-1][store.user_row]],
            stop=count[split.history_stop],
        )

    def running_sum(self, values: np.ndarray, last: int | None = None) -> np.ndarray:
        """Sum of `values` (n,) over the last `last` history rows of each target, (n,) float64."""
        total = np.concatenate([[0.0], np.cumsum(values[self.position], dtype=np.float64)])
        start = self.start if last is None else np.maximum(self.start, self.stop - last)
        return total[self.stop] - total[start]

    def running_mean(
        self, values: np.ndarray, *, last: int | None = None, shrink: float = USER_SHRINK
    ) -> np.ndarray:
        """Mean of `values` over the same rows, drawn to 0 by `shrink` pseudo-counts."""
        size = self.stop - self.start
        if last is not None:
            size = np.minimum(size, last)
        return self.running_sum(values, last) / (size + shrink)


def item_bias(
    store: SequenceStore, split: Split, *, shrink: float = ITEM_SHRINK
) -> tuple[float, np.ndarray]:
    """Train mean, and each item's shrunken mean deviation from it: (num_items + 2,) float64."""
    mean = float(store.rating[split.train].mean(dtype=np.float64))
    item, size = store.item_idx[split.train], store.num_items + FIRST_IDX
    total = np.bincount(item, weights=store.rating[split.train] - mean, minlength=size)
    return mean, total / (np.bincount(item, minlength=size) + shrink)


def streaming_bias(
    store: SequenceStore, split: Split, *, last: int | None = 20, shrink: float = USER_SHRINK
) -> np.ndarray:
    """Item bias plus the shrunken mean of the user's last residuals: (n,) float32 stars.

    A residual is rating minus train mean minus item bias.
    """
    mean, bias = item_bias(store, split)
    item_score = mean + bias[store.item_idx]
    residual = store.rating - item_score
    running = History.of(store, split).running_mean(residual, last=last, shrink=shrink)
    return (item_score + running).astype(np.float32)


def dense_features(store: SequenceStore, split: Split, base: np.ndarray) -> np.ndarray:
    """The features named in `DENSE` for every position, (n, f) float32, unscaled.

    Args:
        store: sequences.
        split: which ratings count as history.
        base: the score that the network corrects, (n,) stars.
    """
    mean, bias = item_bias(store, split)
    history = History.of(store, split)
    residual = store.rating - mean - bias[store.item_idx]
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
    year = store.movies["year"]
    year = year.fill_null(int(year.median() or 0)).to_numpy()
    seen = history.stop > history.start
    rows = history.position if len(history.position) else np.zeros(1, dtype=np.int64)
    first = store.timestamp[rows[np.minimum(history.start, len(rows) - 1)]]
    last = store.timestamp[rows[np.maximum(history.stop - 1, 0)]]
    hours = [np.where(seen, (store.timestamp - when) / 3600, 0.0) for when in (first, last)]
    columns = [
        year[store.item_idx - FIRST_IDX],
        bias[store.item_idx],
        np.log1p(count[store.item_idx]),
        np.log1p(history.stop - history.start),
        *(history.running_mean(residual, last=size) for size in (5, 20, None)),
        _same_genre_mean(store, history, residual),
        *(np.log1p(np.maximum(h, 0.0)) for h in hours),
        streaming_bias(store, split),
        base,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def genre_matrix(movies: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    """Genre names in alphabetical order, and the multi-hot rows (num_items, g) float32."""
    genres = sorted(movies["genres"].explode(empty_as_null=True).drop_nulls().unique().to_list())
    hot = movies.select(pl.col("genres").list.contains(g).fill_null(False).alias(g) for g in genres)
    return genres, hot.to_numpy().astype(np.float32) if genres else np.zeros((len(movies), 0))


def _same_genre_mean(store: SequenceStore, history: History, residual: np.ndarray) -> np.ndarray:
    """Shrunken mean residual over history rows, weighted by genres shared with the target."""
    _, hot = genre_matrix(store.movies)
    total, weight = np.zeros(len(store)), np.zeros(len(store))
    for column in hot.T:  # 18 genres, each a vectorised pass
        has = column[store.item_idx - FIRST_IDX]
        total += has * history.running_sum(has * residual)
        weight += has * history.running_sum(has)
    return total / (weight + USER_SHRINK)
