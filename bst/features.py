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
STARS = (1, 2, 3, 4, 5)  # fractions of a scale that runs from the lowest to the highest rating
DENSE = (
    "release year", "log hours since first rating", "log hours since last rating",
    "log history length", "item bias", "log train ratings of the item",
    *(f"share of {s}-star ratings, user" for s in STARS),
    *(f"share of {s}-star ratings, item" for s in STARS),
    "mean residual, last 3", "mean residual, last 20", "mean residual, all",
    "mean residual, same genres", "mean squared residual",
    "streaming bias", "factor score", "neighbour sum", "base score", "doubt",
)


@dataclass(frozen=True)
class Base:
    """What the network corrects, known before each rating; n positions of a store."""

    score: np.ndarray  # (n,) float32, stars
    factors: np.ndarray  # (n,) float32, the streaming factors' share of the score, stars
    neighbours: np.ndarray  # (n,) float32, sum over the neighbours in the history, unscaled
    doubt: np.ndarray  # (n,) float32, standard deviation of the rating around `factors`, stars


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


def dense_features(store: SequenceStore, split: Split, base: Base) -> np.ndarray:
    """The features named in `DENSE` for every position, (n, f) float32, unscaled.

    A residual is rating minus base score. Means are shrunk to the train mean, or to 0.

    Args:
        store: sequences.
        split: which ratings count as history.
        base: what the network corrects.
    """
    _, bias = item_bias(store, split)
    history, item = History.of(store, split), store.item_idx
    residual = store.rating - base.score.astype(np.float64)
    count = np.bincount(item[split.train], minlength=store.num_items + FIRST_IDX)
    year = store.movies["year"]
    year = year.fill_null(int(year.median() or 0)).to_numpy()
    of_user, of_item = _star_shares(store, split, history, count)
    columns = [
        year[item - FIRST_IDX],
        *_log_hours(store, history),
        np.log1p(history.stop - history.start),
        bias[item],
        np.log1p(count[item]),
        *of_user,
        *of_item,
        *(history.running_mean(residual, last=size) for size in (3, 20, None)),
        _same_genre_mean(store, history, residual),
        history.running_mean(residual**2 - np.mean(residual[split.train] ** 2)),
        streaming_bias(store, split),
        base.factors,
        base.neighbours,
        base.score,
        base.doubt,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _log_hours(store: SequenceStore, history: History) -> list[np.ndarray]:
    """Log hours since the first and since the last rating of the history, 0 without one."""
    seen = history.stop > history.start
    rows = history.position if len(history.position) else np.zeros(1, dtype=np.int64)
    first = store.timestamp[rows[np.minimum(history.start, len(rows) - 1)]]
    last = store.timestamp[rows[np.maximum(history.stop - 1, 0)]]
    hours = [np.where(seen, (store.timestamp - when) / 3600, 0.0) for when in (first, last)]
    return [np.log1p(np.maximum(h, 0.0)) for h in hours]


def _star_shares(
    store: SequenceStore, split: Split, history: History, count: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Share of each fifth of the rating scale in the user's history and in the item's train part.

    Both are less the train share, drawn to 0 by pseudo-counts.
    """
    train = store.rating[split.train]
    low, high = train.min(), train.max()
    fifth = np.clip(np.round((store.rating - low) / max(high - low, 1e-6) * 4), 0, 4) + 1
    of_user, of_item = [], []
    for star in STARS:
        over = (fifth == star) - float(np.mean(fifth[split.train] == star))
        total = np.bincount(store.item_idx[split.train], weights=over[split.train],
                            minlength=len(count))
        of_user.append(history.running_mean(over))
        of_item.append((total / (count + ITEM_SHRINK))[store.item_idx])
    return of_user, of_item


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
