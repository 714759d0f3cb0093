"""Which interaction is a target of train, valid or test, and what each may see; the leak audit."""

from dataclasses import dataclass, replace

import numpy as np

from bst.config import Part, Protocol, Ties, check_option
from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.utils.errors import DataError

TIES_TOLD = 10  # with fewer tied pairs, ascending item ids may be chance


@dataclass(frozen=True)
class Split:
    """Which interactions are targets of which part, and what each target may see.

    The history of the target at position p is every position q with
    offsets[user] <= q < history_stop[p] and is_history[q].
    """

    protocol: str
    ties: str
    train: np.ndarray  # int64 positions, ascending
    valid: np.ndarray
    test: np.ndarray
    history_stop: np.ndarray  # (n,) int64
    is_history: np.ndarray  # (n,) bool

    def part(self, name: Part) -> np.ndarray:
        """Target positions of a part; an OptionError on a name that is none."""
        check_option("part", name, Part)
        return getattr(self, name)

    def item_counts(self, store: SequenceStore) -> np.ndarray:
        """Train ratings of each item index, (num_items + 2,) int64."""
        return np.bincount(store.item_idx[self.train], minlength=store.num_items + FIRST_IDX)


@dataclass(frozen=True)
class History:
    """The interactions that may be history, in store order, and each target's slice of them."""

    position: np.ndarray  # (m,) positions of the store
    start: np.ndarray  # (n,) at p: first history row of the user who made rating p
    stop: np.ndarray  # (n,) at p: one past the last row that rating p may see as a target

    @classmethod
    def of(cls, store: SequenceStore, split: Split) -> "History":
        """The history rows of a split; m = n unless the protocol hides ratings."""
        count = np.concatenate([[0], np.cumsum(split.is_history)])
        return cls(position=np.flatnonzero(split.is_history), stop=count[split.history_stop],
                   start=count[store.offsets[:-1][store.user_row]])


def shuffle_ties(store: SequenceStore, seed: int) -> SequenceStore:
    """The store with tied ratings of a user in random order instead of the file's."""
    drawn = np.random.default_rng([seed, 93]).random(len(store))
    order = np.lexsort((drawn, store.timestamp, store.user_row))
    return replace(store, item_idx=store.item_idx[order], rating=store.rating[order])


def split_interactions(
    store: SequenceStore, *, protocol: Protocol = "temporal", ties: Ties = "strict", seed: int = 0
) -> Split:
    """Assign every interaction to train, valid or test by the named protocol.

    Args:
        store: sequences.
        protocol: `temporal` cuts all ratings at the 0.8 and 0.9 quantiles of time;
            `leave-last-one` tests on each user's last rating and validates on the one before;
            `random` tests on 10 % of the ratings and validates on 5 %, and only train ratings
            make history; `keras-windows` draws 15 % of windows of 4 with step 2 (leaky);
            `cold-items` is temporal with a tenth of the items for test and a tenth for valid:
            no rating of them is in train or in a history.
        ties: `strict`: history has timestamps before the target's; `stable`: file order decides.
        seed: of the protocols that draw at random.
    """
    check_option("protocol", protocol, Protocol)
    check_option("ties", ties, Ties)
    position = np.arange(len(store))
    is_history = np.ones(len(store), dtype=bool)
    rng = np.random.default_rng([seed, 90])
    if protocol == "temporal":
        parts = _parts(_period(store))
    elif protocol == "leave-last-one":
        size = np.diff(store.offsets)[store.user_row]
        from_end = store.offsets[1:][store.user_row] - 1 - position
        parts = _parts(np.where(size < 3, 0, 2 * (from_end == 0) + (from_end == 1)))
    elif protocol == "random":
        draw = rng.permutation(len(store)) / len(store)
        parts, is_history = _parts(1 * (draw >= 0.85) + (draw >= 0.9)), draw < 0.85
    elif protocol == "cold-items":
        draw = (rng.permutation(store.num_items) / store.num_items)[store.item_idx - FIRST_IDX]
        of_part, period = 1 * (draw >= 0.8) + (draw >= 0.9), _period(store)
        parts, is_history = _parts(np.where(of_part == period, period, -1)), of_part == 0
    elif protocol == "keras-windows":
        targets = _keras_window_ends(store)
        draw = rng.random(len(targets))
        parts = targets[draw < 0.8], targets[(draw >= 0.8) & (draw < 0.85)], targets[draw >= 0.85]
    else:
        raise AssertionError(f"split_interactions has no branch for protocol {protocol}")
    if ties == "strict":
        is_later = np.diff(store.timestamp, prepend=0) != 0  # than the rating before
        is_later |= np.diff(store.user_row, prepend=-1) > 0  # or another user's
        history_stop = np.maximum.accumulate(np.where(is_later, position, 0))
    else:
        history_stop = position
    return Split(protocol, ties, *parts, history_stop=history_stop, is_history=is_history)


def _period(store: SequenceStore) -> np.ndarray:
    """(n,) 0 up to the 0.8 quantile of all timestamps, 1 up to the 0.9 quantile, 2 after it."""
    low, high = np.quantile(store.timestamp, [0.8, 0.9])
    return 1 * (store.timestamp > low) + (store.timestamp > high)


def _parts(code: np.ndarray) -> tuple[np.ndarray, ...]:
    """Positions of train, valid and test, whose codes are 0, 1 and 2."""
    return tuple(np.flatnonzero(code == part) for part in (0, 1, 2))


def _keras_window_ends(store: SequenceStore) -> np.ndarray:
    """Target positions of the Keras example's `create_sequences`, its repeated tails included.

    The windows have 4 ratings and begin at every other one.
    """
    rank = np.arange(len(store)) - store.offsets[:-1][store.user_row]
    tails = store.offsets[1:][np.diff(store.offsets) >= 4] - 1
    return np.sort(np.concatenate([np.flatnonzero((rank >= 3) & (rank % 2 == 1)), tails]))


def audit_split(store: SequenceStore, split: Split) -> list[str]:
    """Check the split for leaks: one line per check; a DataError at a leak."""
    for name in ("train", "valid", "test"):
        if not len(split.part(name)):
            raise DataError(f"protocol {split.protocol} leaves no {name} ratings of {len(store):,} "
                            f"at {len(np.unique(store.timestamp)):,} different times; expected "
                            "more ratings or times, or choose another --protocol")
    start = store.offsets[:-1][store.user_row]
    stop, when = split.history_stop, store.timestamp
    last = np.maximum(stop - 1, start)
    late = when[last] > when if split.ties == "stable" else when[last] >= when
    _refuse((stop > start) & late, "a history reaches past its target's time")
    _refuse((stop < start) | (stop > np.arange(len(store))),
            "a history holds its own target or another user's rating")
    ordered = (np.diff(when) >= 0) | (np.diff(store.user_row) > 0)
    _refuse(~ordered, "a user's ratings are out of time order")
    relation = "before" if split.ties == "strict" else "not after"
    held_out = np.concatenate([split.valid, split.test])
    lines = [f"every history ends {relation} its target's timestamp, without the target",
             "every user's ratings are in time order", *_notes(store, split, held_out)]
    if split.protocol == "keras-windows":
        lines.append("LEAKY by design: test targets stand in train histories, and in train itself")
        return lines
    seen = np.bincount(np.concatenate([split.train, held_out]), minlength=len(store))
    sizes = (f"{len(split.train):,} train, {len(split.valid):,} valid, {len(split.test):,} test")
    if split.protocol == "cold-items":
        _refuse(seen > 1, "an interaction is target of two parts")
        lines.append(f"no interaction is target of two parts: {sizes}")
        cold = np.isin(store.item_idx, store.item_idx[held_out])
        _refuse(cold & split.is_history, "a held-out item stands in a history")
        _refuse(cold[split.train], "a held-out item is a train target")
        lines.append("no held-out item is a train target or stands in a history")
    else:
        _refuse(seen != 1, "an interaction is target of no part or of two")
        lines.append(f"every interaction is target of one part: {sizes}")
    if split.protocol in ("temporal", "cold-items"):
        ends = [(when[p].min(), when[p].max()) for p in (split.train, split.valid, split.test)]
        if not ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]:
            raise DataError("leak: the parts overlap in time, expected train < valid < test")
        lines.append("all train targets are older than all valid ones, these than all test ones")
    if split.protocol == "random":
        _refuse(split.is_history & np.isin(np.arange(len(store)), held_out),
                "a held-out rating stands in a history")
        lines.append("no valid or test rating stands in a history (but train holds later ones)")
    return lines


def _notes(store: SequenceStore, split: Split, held_out: np.ndarray) -> list[str]:
    """What is no leak but changes the meaning of the numbers, one line each."""
    lines, train, stars = [], store.rating[split.train], store.rating[held_out]
    low, high = train.min(), train.max()
    off = np.count_nonzero((stars < low) | (stars > high))
    if off:
        lines.append(f"NOTE {off:,} of {len(stars):,} valid and test ratings are off the scale of "
                     f"train, {low:g} to {high:g}: they run from {stars.min():g} to "
                     f"{stars.max():g}; predictions stay on it")
    tied = (np.diff(store.timestamp) == 0) & (np.diff(store.user_row) == 0)
    last = np.count_nonzero(tied[split.test - 1]) if split.protocol == "leave-last-one" else 0
    if last and tied.sum() >= TIES_TOLD and (np.diff(store.item_idx)[tied] > 0).all():
        lines.append(f"NOTE {last:,} of {len(split.test):,} test ratings share their time with the "
                     "one before, and the file is sorted by item, so that its order makes the "
                     "highest item the last one; --tie-order shuffled draws the order")
    return lines


def _refuse(is_leak: np.ndarray, what: str) -> None:
    if is_leak.any():
        raise DataError(f"leak: {what}, at {is_leak.sum()} positions, the first is "
                        f"{is_leak.argmax()}")
