"""Which part a rating is in, what it sees, and leaks. Run: pytest tests/data/test_splits.py."""

import re
from dataclasses import replace

import numpy as np
import pytest

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import audit_split, shuffle_ties, split_interactions
from bst.utils.errors import DataError


def rated_at(*times: list[int], movies: int = 40) -> SequenceStore:
    """A store of users who rated at these times, one film after the other."""
    flat = np.concatenate(times).astype(np.int64)
    return SequenceStore(
        item_idx=np.arange(len(flat), dtype=np.int32) % movies + FIRST_IDX,
        rating=np.ones(len(flat), np.float32), timestamp=flat, movies=range(movies), users=None,
        offsets=np.cumsum([0, *map(len, times)]))


def audited(store, split) -> list[str]:
    lines = audit_split(store, split)
    assert all(re.match("[a-z]+ |LEAKY by", line) for line in lines), lines
    return lines


@pytest.mark.parametrize("protocol", ["temporal", "leave-last-one", "random"])
@pytest.mark.parametrize("ties", ["strict", "stable"])
def test_a_history_is_what_the_rule_says(store, protocol, ties):
    split = split_interactions(store, protocol=protocol, ties=ties)
    assert len(audited(store, split)) >= 3
    hidden = set(split.valid) | set(split.test) if protocol == "random" else set()
    assert set(np.flatnonzero(~split.is_history)) == hidden
    for p in range(len(store)):
        begin = store.offsets[store.user_row[p]]
        found = list(range(begin, split.history_stop[p]))
        earlier = [q for q in range(begin, store.offsets[store.user_row[p] + 1])
                   if store.timestamp[q] < store.timestamp[p]]
        assert found == (earlier if ties == "strict" else list(range(begin, p)))


@pytest.mark.parametrize("seed", [1, 4, 14])  # hold out the film at both cuts: test, valid, test
def test_the_cuts_of_time_belong_to_the_earlier_part(seed):
    store = rated_at(list(range(401)))  # the quantiles are the times 320 and 360
    split = split_interactions(store)
    assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == (
        list(range(321)), list(range(321, 361)), list(range(361, 401)))
    rank = np.random.default_rng([seed, 90]).permutation(40)[store.item_idx - FIRST_IDX]
    cold = split_interactions(store, protocol="cold-items", seed=seed)
    np.testing.assert_array_equal(cold.is_history, rank < 32)
    assert any("no held-out item" in line for line in audited(store, cold))
    assert cold.train.tolist() == [p for p in range(321) if rank[p] < 32]
    assert cold.valid.tolist() == [p for p in range(321, 361) if 32 <= rank[p] < 36]
    assert cold.test.tolist() == [p for p in range(361, 401) if rank[p] >= 36]


def test_random_tests_on_a_tenth_and_validates_on_a_twentieth(store):
    rank = np.random.default_rng([3, 90]).permutation(700)
    split = split_interactions(store, protocol="random", seed=3)
    assert split.test.tolist() == np.flatnonzero(rank >= 630).tolist()
    assert split.valid.tolist() == np.flatnonzero((rank >= 595) & (rank < 630)).tolist()
    np.testing.assert_array_equal(split.is_history, rank < 595)
    assert any("595 train, 35 valid, 70 test" in line for line in audited(store, split))


def test_a_history_begins_with_its_user_whatever_the_neighbours_times():
    store = rated_at([], [7, 7, 7], [], [7, 7], [7], [])
    strict = split_interactions(store, protocol="leave-last-one")
    assert strict.history_stop.tolist() == [0, 0, 0, 3, 3, 5]
    assert (strict.train.tolist(), strict.valid.tolist(), strict.test.tolist()) == (
        [0, 3, 4, 5], [1], [2])  # two ratings are too few to hold two out
    stable = split_interactions(store, protocol="leave-last-one", ties="stable")
    assert stable.history_stop.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("sizes", [None, (3, 4, 0, 5, 6, 7)])
def test_keras_windows_end_where_the_keras_loop_ends_them(store, sizes):
    """The loop of keras.io's `create_sequences`, its doubled tails included."""
    expected = []
    store = rated_at(*map(list, map(range, sizes))) if sizes else store
    for begin, end in zip(store.offsets, store.offsets[1:], strict=False):
        values, start = list(range(begin, end)), 0
        while True:
            window = values[start:start + 4]
            if len(window) < 4:
                window = values[-4:]
                if len(window) == 4:
                    expected.append(window[-1])
                break
            expected.append(window[-1])
            start += 2
    split = split_interactions(store, protocol="keras-windows", ties="stable")
    found = sorted([*split.train, *split.valid, *split.test])
    assert found == sorted(expected)
    draw = np.random.default_rng([0, 90]).random(len(expected))
    for part, low, high in (("train", 0, 0.8), ("valid", 0.8, 0.85), ("test", 0.85, 1)):
        share = np.sort(expected)[(draw >= low) & (draw < high)]
        assert split.part(part).tolist() == share.tolist()
    assert sizes or any("LEAKY" in line for line in audited(store, split))


def test_a_scale_that_changes_after_train_is_told(store):
    split = split_interactions(store)
    assert "NOTE" not in " ".join(audit_split(store, split))
    told = store.rating.copy()
    told[split.test] *= 10
    (line,) = [line for line in audit_split(replace(store, rating=told), split) if "NOTE" in line]
    assert re.search("NOTE 70 of 139 valid and test .* train, 1 to 5.* they run from 1 to 50", line)


def test_last_ratings_that_the_order_of_a_file_by_item_decides_are_told_and_can_be_drawn():
    by_item, untied = (rated_at(*[[1, 2, 3, 4, *last]] * 8, movies=48)
                       for last in ([4, 4], [5, 6]))
    drawn = shuffle_ties(by_item, 1)
    for store, protocol, count in ((by_item, "leave-last-one", 1), (by_item, "random", 0),
                                   (untied, "leave-last-one", 0), (drawn, "leave-last-one", 0)):
        audit = audit_split(store, split_interactions(store, protocol=protocol))
        assert sum("NOTE 8 of 8 test ratings share their time" in line for line in audit) == count
    events = [{*zip(s.user_row, s.item_idx, s.timestamp, strict=True)} for s in (by_item, drawn)]
    assert events[0] == events[1] and (drawn.timestamp == by_item.timestamp).all()
    assert drawn.item_idx.tolist() == shuffle_ties(by_item, 1).item_idx.tolist()
    assert len({item % 6 for item in drawn.item_idx[5::6]}) == 3  # the last is any of those tied


def moved(values, position, value):
    """The values with another one at one position."""
    values = values.copy()
    values[position] = value
    return values


def after_a_tie(store):
    """A rating that its user gave at the time of the one before."""
    return 1 + np.flatnonzero((np.diff(store.timestamp) == 0) & (np.diff(store.user_row) == 0))[0]


PARTS = ("train", "valid", "test")
LEAKS = [
    ("temporal", lambda s, x: {"train": np.append(x.train, x.test[0])},
     "target of no part or of two, at 1 positions, the first is {test}"),
    ("random", lambda s, x: {name: x.part(name)[x.part(name) != 699] for name in PARTS},
     "target of no part or of two, at 1 positions, the first is 699"),
    ("cold-items", lambda s, x: {"train": np.append(x.train, x.test[0])},
     "target of two parts, at 1 positions, the first is {test}"),
    ("cold-items", lambda s, x: {"train": np.append(
        x.train, np.flatnonzero(np.isin(s.item_idx, s.item_idx[x.test]))[0])},
     "a held-out item is a train target, at 1 "),
    ("cold-items", lambda s, x: {"is_history": moved(x.is_history, x.valid[0], True)},
     "a held-out item stands in a history, at 1 positions, the first is {valid}"),
    ("random", lambda s, x: {"is_history": moved(x.is_history, x.valid[0], True)},
     "a held-out rating stands in a history, at 1 positions, the first is {valid}"),
    ("temporal", lambda s, x: {"valid": x.test, "test": x.valid}, "the parts overlap in time"),
    ("temporal", lambda s, x: {"valid": x.valid[:0]},
     "protocol temporal leaves no valid ratings of 700 at {times} different times"),
    ("temporal", lambda s, x: {
        "history_stop": moved(x.history_stop, after_a_tie(s), after_a_tie(s))},
     "past its target's time, at 1 positions, the first is {tied}"),
    ("random", lambda s, x: {"ties": "stable", "history_stop": np.arange(1, 701)},
     "a history holds its own target or another user's rating, at 700 positions"),
    ("random", lambda s, x: {"history_stop": moved(x.history_stop, 699, s.offsets[-2] - 1)},
     "a history holds its own target or another user's rating, at 1 positions, the first is 699"),
]


@pytest.mark.parametrize(("protocol", "leak", "message"), LEAKS)
def test_the_audit_names_each_leak_and_where_it_begins(store, protocol, leak, message):
    split = split_interactions(store, protocol=protocol)
    leaking = replace(split, **leak(store, split))
    told = message.format(test=split.test[0], valid=split.valid[0],
                          tied=after_a_tie(store), times=len(set(store.timestamp)))
    with pytest.raises(DataError, match=told):
        audit_split(store, leaking)


def test_the_audit_finds_ratings_that_are_out_of_time_order():
    store = rated_at([5, 1, 2], [0, 3, 9, 4])  # a later user may begin earlier
    split = replace(split_interactions(store, protocol="leave-last-one"),
                    history_stop=np.array([0, 0, 0, 3, 3, 3, 3]))
    with pytest.raises(DataError, match="out of time order, at 2 positions, the first is 0"):
        audit_split(store, split)
