"""A person's history: what it may hold, and how it becomes a `Batch`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import NamedTuple

import numpy as np
from einops import repeat

from bst.data.raw import EARLIEST, LATEST
from bst.data.schema import id_text
from bst.evaluation.metrics import to_stars
from bst.model.batches import Batch, Events, request_batch
from bst.utils.errors import DataError

NUMBER = int, float, Real  # isinstance is fast for the first two


class Interaction(NamedTuple):
    """One rating of a history."""

    movie: int | str  # item_id
    rating: float  # stars
    time: int | None = None  # seconds since 1970 UTC
    where: str = ""  # source for messages, such as "mine.csv:3"


@dataclass(frozen=True)
class Person:
    """A person's history, oldest first; j events."""

    item: np.ndarray  # (j,) int64 item index
    rating: np.ndarray  # (j,) float32, stars
    time: np.ndarray  # (j,) int64, seconds since 1970 UTC
    user: np.ndarray  # (1 + features,) int64, see `UserVocabulary.encode`
    notes: tuple[str, ...] = ()  # what was changed in the ratings that were given

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def given(self) -> dict[int, float]:
        """Stars by item index."""
        return dict(zip(self.item.tolist(), self.rating.tolist(), strict=True))

    def before(self, at: int) -> "Person":
        """The same person at an earlier time: the events before `at`, seconds since 1970 UTC."""
        return self.take(np.arange(np.searchsorted(self.time, at)))

    def take(self, rows: np.ndarray) -> "Person":
        """The same person with some of the events, by place or bool."""
        return replace(self, item=self.item[rows], rating=self.rating[rows], time=self.time[rows])


def checked(history: Sequence[tuple], levels: np.ndarray
            ) -> tuple[list, np.ndarray, np.ndarray, list[str]]:
    """Ids, stars and times of a history, oldest first, and what was changed in it, a line each.

    The one rule, wherever ratings come from: stars between two levels of the scale, or up to half a
    step below it, become the nearest level, the higher of two; milliseconds become seconds; without
    times ratings count as a minute apart, in the order given: only gaps of time matter.

    Raises:
        DataError: stars further off the scale, no time of `seconds`, or only some have a time.
    """
    events = [_typed(event, rank) for rank, event in enumerate(history)]
    without = [event.time is None for event in events]
    if any(without) and not all(without):
        rank = without.index(not without[0])
        raise DataError(f"{_place(events[rank], rank)}: only some events have a time; give all of "
                        "them one, or none")
    time = 60 * np.arange(len(events)) if all(without) else _seconds(events)
    given = np.array([event.rating for event in events], dtype=np.float64)
    stars = to_stars(given, levels)
    is_off = ~np.isclose(given, stars, rtol=1e-5, atol=0)  # 2.1 is 2.0999999 in float32
    least, scale = levels[0] - np.diff(levels[:2]).sum() / 2, ", ".join(f"{x:g}" for x in levels)
    scale = scale if len(levels) <= 20 else f"{len(levels)} levels of {scale[:20]}..."
    notes = []
    too_far = np.flatnonzero(is_off & ~((least <= given) & (given < levels[-1])))
    if len(too_far):
        k = too_far[0]
        raise DataError(f"{_place(events[k], k)}: {given[k]:g} stars, expected one of {scale}")
    if is_off.any():
        k = np.flatnonzero(is_off)[-1]
        notes.append(f"{is_off.sum()} of {len(events)} ratings are none of {scale}: the nearest "
                     f"one counts, {stars[k]:g} for {given[k]:g}")
    late = [event.time for event in events if (event.time or 0) > LATEST]
    if late:
        notes.append(f"{len(late)} of {len(events)} times count as milliseconds, like {late[0]}")
    order = np.argsort(time, kind="stable")
    return [events[k].movie for k in order], stars[order].astype(np.float32), time[order], notes


def seconds(time: float, where: str) -> int:
    """Seconds since 1970 UTC of a time in seconds or milliseconds, of 1990 to 2050 as in training.

    Raises a DataError that names `where` the time stands if it is none.
    """
    for unit in (1, 1000):
        if isinstance(time, NUMBER) and EARLIEST * unit <= time <= LATEST * unit:
            return int(time // unit)
    raise DataError(f"{where}: time {time!r:.40}, expected seconds since 1970 UTC, {EARLIEST} to "
                    f"{LATEST} (1990 to 2050)")


def _seconds(events: list[Interaction]) -> np.ndarray:
    """`seconds` of the time of each event, (j,) int64, all at once."""
    time = np.array([event.time if isinstance(event.time, NUMBER) and abs(event.time) < 1e15
                     else np.nan for event in events], dtype=np.float64)
    unit = np.where(time > LATEST, 1000, 1)
    is_right = (EARLIEST * unit <= time) & (time <= LATEST * unit)
    if not is_right.all():
        rank = int(is_right.argmin())
        seconds(events[rank].time, _place(events[rank], rank))  # raises
    return (time // unit).astype(np.int64)


def _place(event: Interaction, rank: int) -> str:
    """Where an event stands, for messages."""
    return event.where or f"history event {rank}"


def _typed(event: Sequence, rank: int) -> Interaction:
    try:
        typed = Interaction(*event)
        id_text(typed.movie)
        if not isinstance(typed.rating, NUMBER):
            raise TypeError
        float(typed.rating)
        return typed
    except (TypeError, OverflowError, DataError) as error:
        raise DataError(f"history event {rank}: {event!r}, expected (item id, stars, seconds "
                        "since 1970 UTC) or (item id, stars)") from error


def person_batch(person: Person, at: int, kept: np.ndarray | None = None) -> Batch:
    """A row for each of p variants of a person, with one target each; see `request_batch`.

    Args:
        person: has j events, none after `at`.
        at: seconds since 1970 UTC.
        kept: (p, j) bool, the events that each variant has; None: one variant with all of them.
    """
    kept = np.ones((1, len(person)), dtype=bool) if kept is None else kept
    event = np.broadcast_to(np.arange(len(person)), kept.shape)[kept]
    events = Events(person.item[event], person.rating[event], person.time[event])
    size = kept.sum(axis=1)
    return request_batch(events, np.cumsum(size) - size, size,
                         repeat(person.user, "k -> p k", p=len(kept)), np.full(len(kept), at))
