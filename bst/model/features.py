"""Numbers known about a target before its rating: streaming bias and dense features.

Item statistics are fitted on train targets only (`fit_statistics`), then applied to any history
(`dense_at`). A user's running means use what the target's history holds, as `Split` defines it, so
they stay honest after the cut: known at request time.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split

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

    def of_targets(self, rows: np.ndarray) -> "History":
        """The slices of the targets at positions `rows` alone."""
        return History(self.position, self.start[rows], self.stop[rows])

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


@dataclass(frozen=True)
class Statistics:
    """What the dense features need of train; i items."""

    mean: float  # train stars
    bias: np.ndarray  # (i + 2,) float64, see `item_bias`
    count: np.ndarray  # (i + 2,) int64, train ratings
    scale: tuple[float, float]  # lowest and highest train stars
    usual: tuple[float, ...]  # train share of each fifth of the scale
    of_item: np.ndarray  # (5, i + 2) float64, each item's share of each fifth less the usual one
    squared: float  # mean squared residual of train, stars squared
    genres: tuple[str, ...]  # names, in the order of the columns of `hot`
    hot: np.ndarray  # (i, g) float32, 1 where an item has a genre
    year: np.ndarray  # (i,) int64, the usual year where it is unknown
    usual_year: int

    def fifth(self, rating: np.ndarray) -> np.ndarray:
        """Which fifth of the scale a rating is in, 1 to 5."""
        low, high = self.scale
        return np.clip(np.round((rating - low) / max(high - low, 1e-6) * 4), 0, 4) + 1


def fit_statistics(store: SequenceStore, split: Split, base_score: np.ndarray) -> Statistics:
    """Statistics of the train targets, given the base score (n,) of every position."""
    mean, bias = item_bias(store, split)
    train, item = store.rating[split.train], store.item_idx[split.train]
    count = np.bincount(item, minlength=store.num_items + FIRST_IDX)
    residual = store.rating - base_score.astype(np.float64)
    usual_year = int(store.movies["year"].median() or 0)
    genres, hot = genre_matrix(store.movies)
    found = Statistics(
        mean, bias, count, (float(train.min()), float(train.max())), (), np.zeros((0, len(count))),
        float(np.mean(residual[split.train] ** 2)), tuple(genres), hot,
        store.movies["year"].fill_null(usual_year).to_numpy().astype(np.int64), usual_year,
    )
    fifth = found.fifth(train)
    usual = tuple(float(np.mean(fifth == star)) for star in STARS)
    total = [np.bincount(item, weights=(fifth == star) - share, minlength=len(count))
             for star, share in zip(STARS, usual, strict=True)]
    return replace(found, usual=usual, of_item=np.stack(total) / (count + ITEM_SHRINK))


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
    item_score, history = mean + bias[store.item_idx], History.of(store, split)
    return add_user_bias(item_score, item_score, store, history, last=last, shrink=shrink)


def add_user_bias(
    target_score: np.ndarray, item_score: np.ndarray, store: SequenceStore, history: History, *,
    last: int | None = 20, shrink: float = USER_SHRINK,
) -> np.ndarray:
    """The streaming bias of the targets of `history`, from the item part of the score.

    Args:
        target_score: (targets,) train mean plus item bias.
        item_score: (n,) the same at every position of the store.
        store: sequences.
        history: what each target sees.
        last: events that count.
        shrink: pseudo-events.
    """
    residual = store.rating - item_score
    return (target_score + history.running_mean(residual, last=last, shrink=shrink)).astype(
        np.float32)


def dense_features(store: SequenceStore, split: Split, base: Base) -> np.ndarray:
    """The features named in `DENSE` for every position, (n, f) float32, unscaled.

    A residual is rating minus base score. Means are shrunk to the train mean, or to 0.

    Args:
        store: sequences.
        split: which ratings count as history.
        base: what the network corrects.
    """
    statistics = fit_statistics(store, split, base.score)
    return dense_at(statistics, store, History.of(store, split), base, np.arange(len(store)))


def dense_at(
    statistics: Statistics, store: SequenceStore, history: History, base: Base, rows: np.ndarray
) -> np.ndarray:
    """The features named in `DENSE` of the targets at positions `rows`, (len(rows), f) float32.

    Args:
        statistics: fitted on train.
        store: sequences; their items are those of the statistics.
        history: what each position may see.
        base: what the network corrects.
        rows: positions of the targets.
    """
    item, seen = store.item_idx[rows], history.of_targets(rows)
    residual = store.rating - base.score.astype(np.float64)
    item_score = statistics.mean + statistics.bias[store.item_idx]
    fifth = statistics.fifth(store.rating)
    columns = [
        statistics.year[item - FIRST_IDX],
        *_log_hours(store, seen, store.timestamp[rows]),
        np.log1p(seen.stop - seen.start),
        statistics.bias[item],
        np.log1p(statistics.count[item]),
        *(seen.running_mean((fifth == star) - usual)
          for star, usual in zip(STARS, statistics.usual, strict=True)),
        *statistics.of_item[:, item],
        *(seen.running_mean(residual, last=size) for size in (3, 20, None)),
        _same_genre_mean(statistics.hot, store, seen, item, residual),
        seen.running_mean(residual**2 - statistics.squared),
        add_user_bias(item_score[rows], item_score, store, seen),
        base.factors[rows],
        base.neighbours[rows],
        base.score[rows],
        base.doubt[rows],
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def cold_dense(
    statistics: Statistics, dense: np.ndarray, item: np.ndarray, base: Base, rows: np.ndarray
) -> np.ndarray:
    """The features of targets if nobody had rated their film, (len(rows), f) float32.

    Args:
        statistics: fitted on train.
        dense: (len(rows), f) the real features.
        item: (len(rows),) the films.
        base: what the network would correct, at every position.
        rows: positions of the targets.
    """
    of_item = [f"share of {s}-star ratings, item" for s in STARS]
    values = dict.fromkeys(["item bias", "log train ratings of the item", *of_item], 0.0) | {
        "streaming bias": dense[:, DENSE.index("streaming bias")] - statistics.bias[item],
        "factor score": base.factors[rows], "neighbour sum": base.neighbours[rows],
        "base score": base.score[rows], "doubt": base.doubt[rows],
    }
    found = dense.copy()
    for name, column in values.items():
        found[:, DENSE.index(name)] = column
    return found


def _log_hours(store: SequenceStore, history: History, when: np.ndarray) -> list[np.ndarray]:
    """Log hours since the first and since the last rating of the history, 0 without one."""
    seen = history.stop > history.start
    rows = history.position if len(history.position) else np.zeros(1, dtype=np.int64)
    first = store.timestamp[rows[np.minimum(history.start, len(rows) - 1)]]
    last = store.timestamp[rows[np.maximum(history.stop - 1, 0)]]
    hours = [np.where(seen, (when - then) / 3600, 0.0) for then in (first, last)]
    return [np.log1p(np.maximum(h, 0.0)) for h in hours]


def genre_matrix(movies: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    """Genre names in alphabetical order, and the multi-hot rows (num_items, g) float32."""
    genres = sorted(movies["genres"].explode(empty_as_null=True).drop_nulls().unique().to_list())
    hot = movies.select(pl.col("genres").list.contains(g).fill_null(False).alias(g) for g in genres)
    return genres, hot.to_numpy().astype(np.float32) if genres else np.zeros((len(movies), 0))


def _same_genre_mean(
    hot: np.ndarray, store: SequenceStore, history: History, item: np.ndarray, residual: np.ndarray
) -> np.ndarray:
    """Shrunken mean residual over history rows, weighted by genres shared with the target."""
    total, weight = np.zeros(len(item)), np.zeros(len(item))
    for column in hot.T:  # 18 genres, each a vectorised pass
        has, of_target = column[store.item_idx - FIRST_IDX], column[item - FIRST_IDX]
        total += of_target * history.running_sum(has * residual)
        weight += of_target * history.running_sum(has)
    return total / (weight + USER_SHRINK)
