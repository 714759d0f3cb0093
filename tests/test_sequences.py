"""Order, splits, leaks, the store on disk. Run: pytest tests/test_sequences.py."""

import errno
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.files import write_sealed
from bst.schema import FIRST_IDX, DataError, Tables
from bst.sequences import (
    AS_IT_WAS,
    SequenceStore,
    StoreWriter,
    _header,
    audit_split,
    build_sequences,
    load_store,
    make_windows,
    save_store,
    split_interactions,
    time_order,
)
from tests.conftest import random_tables


def rated_at(*times: list[int], movies: int = 40) -> SequenceStore:
    """A store of users who rated at these times, one film after the other."""
    flat = np.concatenate(times).astype(np.int64)
    return SequenceStore(
        item_idx=np.arange(len(flat), dtype=np.int32) % movies + FIRST_IDX,
        rating=np.ones(len(flat), np.float32), timestamp=flat, movies=range(movies), users=None,
        offsets=np.cumsum([0, *map(len, times)]))


def oracle(tables: Tables) -> list[tuple]:
    """Sequences by plain Python: (user_id, item_id, rating, timestamp), in order."""
    rows = list(enumerate(tables.ratings.iter_rows()))
    rank = {u: k for k, u in enumerate(tables.users["user_id"])}
    rows.sort(key=lambda row: (rank[row[1][0]], row[1][3], row[0]))
    return [row for _, row in rows]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), tie_share=st.sampled_from([0.0, 0.5, 1.0]))
def test_sequences_equal_the_plain_python_oracle(seed, tie_share):
    tables = random_tables(seed, num_ratings=60, tie_share=tie_share)
    store = build_sequences(tables)
    ids = tables.movies["item_id"].to_numpy()[store.item_idx - FIRST_IDX]
    users = tables.users["user_id"].to_numpy()[store.user_row]
    found = list(zip(users, ids, store.rating, store.timestamp, strict=True))
    assert found == oracle(tables)


def test_a_store_keeps_types_source_and_users_who_have_rated_nothing(tables):
    last = tables.users.tail(1).with_columns(pl.col("user_id") + 1)
    store = build_sequences(replace(tables, users=pl.concat([tables.users, last]),
                                    source={"ratings.dat": "0f"}))
    assert store.num_users == 24 and store.num_items == 41 and len(store) == 700
    assert store.offsets[0] == 0 and store.offsets[-1] == store.offsets[-2] == 700
    assert store.manifest == {"source": {"ratings.dat": "0f"}}
    dtypes = [a.dtype for a in (store.item_idx, store.rating, store.timestamp, store.offsets,
                                store.user_row)]
    assert dtypes == [np.int32, np.float32, np.int64, np.int64, np.int32]
    none = build_sequences(replace(tables, ratings=tables.ratings.clear()))
    assert len(none) == 0 and none.offsets.tolist() == [0] * 24


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ratings_of_nobody_or_nothing_are_counted_and_refused(tables, column):
    ids = pl.when(pl.int_range(pl.len()) < 3).then(9999).otherwise(column).cast(pl.Int32)
    strays = replace(tables, ratings=tables.ratings.with_columns(ids.alias(column)))
    with pytest.raises(DataError, match="^3 ratings name a user or movie that the tables lack"):
        build_sequences(strays)


@pytest.mark.parametrize("first", [0, -10])
@pytest.mark.parametrize("span", [10, 2**32 - 1, 2**32, 2**32 + 5, 2**62])
@pytest.mark.parametrize("last_user", [1, 2**31 - 1])
def test_time_order_holds_for_any_span_of_time_and_any_user(last_user, span, first):
    """The one key of 64 bits would mix the users up from a span of 2**32 seconds on."""
    user = np.array([1, 0, 0, 1, 1, 0], np.int32) * np.int32(last_user)
    when = first + np.array([0, span, span, 1, 1, 0])
    assert time_order(user, when).tolist() == [5, 1, 2, 0, 3, 4]


def test_row_order_matters_only_among_ties(tables):
    shuffled = replace(tables, ratings=tables.ratings.sample(fraction=1, shuffle=True, seed=3))
    ours, theirs = build_sequences(tables), build_sequences(shuffled)
    key = pl.DataFrame({"u": ours.user_row, "t": ours.timestamp})
    single = ~key.is_duplicated().to_numpy()
    assert single.sum() > 100
    np.testing.assert_array_equal(ours.item_idx[single], theirs.item_idx[single])
    np.testing.assert_array_equal(ours.timestamp, theirs.timestamp)


@pytest.mark.parametrize("protocol", ["temporal", "leave-last-one", "random"])
@pytest.mark.parametrize("ties", ["strict", "stable"])
def test_a_history_is_what_the_rule_says(store, protocol, ties):
    split = split_interactions(store, protocol=protocol, ties=ties)
    assert len(audit_split(store, split)) >= 3
    hidden = set(split.valid) | set(split.test) if protocol == "random" else set()
    assert set(np.flatnonzero(~split.is_history)) == hidden
    for p in range(len(store)):
        begin = store.offsets[store.user_row[p]]
        found = list(range(begin, split.history_stop[p]))
        earlier = [q for q in range(begin, store.offsets[store.user_row[p] + 1])
                   if store.timestamp[q] < store.timestamp[p]]
        assert found == (earlier if ties == "strict" else list(range(begin, p)))


def test_temporal_cuts_at_the_quantiles_of_time(store, split):
    low, high = np.quantile(store.timestamp, [0.8, 0.9])
    when = store.timestamp
    assert when[split.train].max() <= low < when[split.valid].min()
    assert when[split.valid].max() <= high < when[split.test].min()
    assert sorted([*split.train, *split.valid, *split.test]) == list(range(len(store)))


@pytest.mark.parametrize("seed", [1, 4, 14])  # hold out the film at both cuts: test, valid, test
def test_the_cuts_of_time_belong_to_the_earlier_part(seed):
    store = rated_at(list(range(401)))  # the quantiles are the times 320 and 360
    split = split_interactions(store)
    assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == (
        list(range(321)), list(range(321, 361)), list(range(361, 401)))
    rank = np.random.default_rng([seed, 90]).permutation(40)[store.item_idx - FIRST_IDX]
    cold = split_interactions(store, protocol="cold-items", seed=seed)
    np.testing.assert_array_equal(cold.is_history, rank < 32)
    assert cold.train.tolist() == [p for p in range(321) if rank[p] < 32]
    assert cold.valid.tolist() == [p for p in range(321, 361) if 32 <= rank[p] < 36]
    assert cold.test.tolist() == [p for p in range(361, 401) if rank[p] >= 36]


def test_random_tests_on_a_tenth_and_validates_on_a_twentieth(store):
    rank = np.random.default_rng([3, 90]).permutation(700)
    split = split_interactions(store, protocol="random", seed=3)
    assert split.test.tolist() == np.flatnonzero(rank >= 630).tolist()
    assert split.valid.tolist() == np.flatnonzero((rank >= 595) & (rank < 630)).tolist()
    np.testing.assert_array_equal(split.is_history, rank < 595)
    assert any("595 train, 35 valid, 70 test" in line for line in audit_split(store, split))
    usual = split_interactions(store, protocol="random")
    zero = split_interactions(store, protocol="random", seed=0)
    np.testing.assert_array_equal(usual.test, zero.test)


def test_a_history_begins_with_its_user_whatever_the_neighbours_times():
    store = rated_at([], [7, 7, 7], [], [7, 7], [7], [])
    strict = split_interactions(store, protocol="leave-last-one")
    assert strict.history_stop.tolist() == [0, 0, 0, 3, 3, 5]
    assert (strict.train.tolist(), strict.valid.tolist(), strict.test.tolist()) == (
        [0, 3, 4, 5], [1], [2])  # two ratings are too few to hold two out
    stable = split_interactions(store, protocol="leave-last-one", ties="stable")
    assert stable.history_stop.tolist() == [0, 1, 2, 3, 4, 5]


def test_leave_last_one_holds_out_the_last_two_of_each_user(store):
    split = split_interactions(store, protocol="leave-last-one")
    ends = store.offsets[1:]
    np.testing.assert_array_equal(split.test, ends - 1)
    np.testing.assert_array_equal(split.valid, ends - 2)
    assert len(split.train) == len(store) - 2 * len(ends)


def test_cold_items_are_in_no_train_target_and_no_history(store):
    split = split_interactions(store, protocol="cold-items")
    valid, test = (set(store.item_idx[part]) for part in (split.valid, split.test))
    known = set(store.item_idx[split.train]) | set(store.item_idx[split.is_history])
    assert len(valid) >= 3 and len(test) >= 3
    assert not known & valid and not known & test and not valid & test
    low, high = np.quantile(store.timestamp, [0.8, 0.9])
    assert store.timestamp[split.train].max() <= low < store.timestamp[split.valid].min()
    assert store.timestamp[split.valid].max() <= high < store.timestamp[split.test].min()
    warm = (store.timestamp <= low) & np.isin(store.item_idx, list(known))
    assert set(np.flatnonzero(warm)) == set(split.train)
    assert any("no held-out movie" in line for line in audit_split(store, split))
    split.is_history[split.test[0]] = True
    with pytest.raises(DataError, match="a held-out movie stands in a history"):
        audit_split(store, split)


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
    assert sizes or any("LEAKY" in line for line in audit_split(store, split))


def test_the_audit_finds_a_history_that_reaches_too_far(store, split):
    stop = split.history_stop.copy()
    tied = np.flatnonzero((np.diff(store.timestamp) == 0) & (np.diff(store.user_row) == 0))[0] + 1
    stop[tied] = tied
    with pytest.raises(DataError, match=f"past its target's time, at 1 positions.* {tied}"):
        audit_split(store, replace(split, history_stop=stop))


def moved(values, position, value):
    """The values with another one at one position."""
    values = values.copy()
    values[position] = value
    return values


def cold_and_early(store, split):
    """A rating before the cut of a film that is held out."""
    held_out = store.item_idx[np.concatenate([split.valid, split.test])]
    return np.flatnonzero(np.isin(store.item_idx, held_out))[0]


PARTS = ("train", "valid", "test")
LEAKS = [
    ("temporal", lambda s, x: {"train": np.append(x.train, x.test[0])},
     "target of no part or of two, at 1 positions, the first is {test}"),
    ("random", lambda s, x: {name: x.part(name)[x.part(name) != 699] for name in PARTS},
     "target of no part or of two, at 1 positions, the first is 699"),
    ("cold-items", lambda s, x: {"train": np.append(x.train, x.test[0])},
     "target of two parts, at 1 positions, the first is {test}"),
    ("cold-items", lambda s, x: {"train": np.append(x.train, cold_and_early(s, x))},
     "a held-out movie is a train target, at 1 "),
    ("cold-items", lambda s, x: {"is_history": moved(x.is_history, x.valid[0], True)},
     "a held-out movie stands in a history, at 1 positions, the first is {valid}"),
    ("random", lambda s, x: {"is_history": moved(x.is_history, x.valid[0], True)},
     "a held-out rating stands in a history, at 1 positions, the first is {valid}"),
    ("random", lambda s, x: {"is_history": moved(x.is_history, x.test[0], True)},
     "a held-out rating stands in a history, at 1 positions, the first is {test}"),
    ("temporal", lambda s, x: {"valid": x.test, "test": x.valid}, "the parts overlap in time"),
    ("cold-items", lambda s, x: {"valid": x.test, "test": x.valid}, "the parts overlap in time"),
    ("temporal", lambda s, x: {"valid": x.valid[:0]},
     "protocol temporal leaves no valid ratings of 700 at {times} different times"),
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
                          times=len(set(store.timestamp)))
    with pytest.raises(DataError, match=told):
        audit_split(store, leaking)


def test_the_audit_finds_ratings_that_are_out_of_time_order():
    store = rated_at([5, 1, 2], [0, 3, 9, 4])  # a later user may begin earlier
    split = replace(split_interactions(store, protocol="leave-last-one"),
                    history_stop=np.array([0, 0, 0, 3, 3, 3, 3]))
    with pytest.raises(DataError, match="out of time order, at 2 positions, the first is 0"):
        audit_split(store, split)


@pytest.mark.parametrize(("protocol", "told"), [
    ("temporal", "all train targets are older than all valid ones, these than all test ones"),
    ("leave-last-one", "654 train, 23 valid, 23 test"),
    ("random", "no valid or test rating stands in a history"),
    ("cold-items", "no held-out movie is a train target or stands in a history"),
    ("keras-windows", "LEAKY by design: test targets stand in train histories")])
def test_the_audit_tells_what_it_checked(store, protocol, told):
    lines = audit_split(store, split_interactions(store, protocol=protocol))
    for fact in ("without the target", "every user's ratings are in time order", told):
        assert sum(fact in line for line in lines) == 1, fact


@pytest.mark.parametrize(("parts", "good"), [
    (([0, 4], [1, 5], [2, 3, 6, 7]), True), (([0, 4, 1], [5], [2, 3, 6, 7]), False),
    (([0, 4, 1], [5, 2, 6], [3, 7]), False), (([0, 4], [1, 5, 2], [3, 6, 7]), False),
    (([0, 4], [1, 5, 2, 6, 3], [7]), False)])
def test_no_time_may_be_in_two_parts_of_temporal(parts, good):
    store = rated_at([1, 2, 3, 4], [1, 2, 3, 4])
    train, valid, test = map(np.array, parts)
    split = replace(split_interactions(store), train=train, valid=valid, test=test)
    if good:
        lines = audit_split(store, split)
        assert "2 train, 2 valid, 4 test" in lines[2] and "ends before its target" in lines[0]
        lines = audit_split(store, replace(split, ties="stable"))
        assert "ends not after its target" in lines[0]
    else:
        with pytest.raises(DataError, match="overlap in time, expected train < valid < test"):
            audit_split(store, split)


def test_a_store_comes_back_as_it_was_saved(store, tmp_path):
    save_store(store, tmp_path)
    loaded = load_store(tmp_path)
    assert loaded.digest == store.digest
    assert loaded.movies.equals(store.movies) and loaded.users.equals(store.users)
    assert not loaded.rating.flags.writeable  # nobody changes the files through the arrays


@pytest.mark.parametrize("table", ["users", "movies"])
def test_a_store_with_another_table_is_refused(store, tmp_path, table):
    other = getattr(store, table).rename({"sex" if table == "users" else "title": "other"})
    save_store(replace(store, **{table: other}), tmp_path)
    with pytest.raises(DataError, match=f"^table '{table}': column '(sex|title)' should be String"):
        load_store(tmp_path)


@pytest.mark.parametrize("number", range(6))
def test_a_kill_between_two_files_leaves_no_store_of_two_halves(
    store, tmp_path, monkeypatch, number
):
    save_store(store, tmp_path)
    real, left = os.replace, iter(range(number))

    def kill(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        save_store(replace(store, rating=store.rating + 1), tmp_path)
    with pytest.raises(DataError, match="no readable manifest.json .*No such file"):
        load_store(tmp_path)


def test_the_manifest_says_what_the_folder_holds_and_a_copy_says_the_same(tables, tmp_path):
    store = build_sequences(replace(tables, source={"ratings.dat": "0f"}))
    save_store(store, tmp_path / "made" / "here")
    loaded = load_store(tmp_path / "made" / "here")
    columns = {"item_idx": "int32", "rating": "float32", "timestamp": "int64", "offsets": "int64"}
    files = {f.name: f.read_bytes() for f in (tmp_path / "made" / "here").iterdir()}
    assert json.loads(files["manifest.json"]) == loaded.manifest == {
        "version": 2, "source": {"ratings.dat": "0f"}, "digest": store.digest,
        "columns": {name: {"dtype": dtype, "shape": [len(getattr(store, name))],
                           "sha256": hashlib.sha256(getattr(store, name)).hexdigest()}
                    for name, dtype in columns.items()},
        "tables": {name: hashlib.sha256(files[f"{name}.parquet"]).hexdigest()
                   for name in ("users", "movies")},
        "sort_key": ["user", "timestamp", "source line"],
        "num_users": 23, "num_items": 41, "num_interactions": 700}
    save_store(loaded, tmp_path / "copy")
    assert {f.name: f.read_bytes() for f in (tmp_path / "copy").iterdir()} == files


def test_a_store_in_pieces_of_any_number_type_is_the_one_written_at_once(store, tmp_path):
    save_store(store, tmp_path / "one")
    with StoreWriter(tmp_path / "other") as writer:
        for piece in (slice(0, 300), slice(300, 301), slice(301, 700)):
            writer.append(item_idx=store.item_idx[piece].astype(np.int64),
                          rating=store.rating[piece].astype(np.float64),
                          timestamp=store.timestamp[piece])
        writer.append(offsets=store.offsets.astype(np.int32))
        writer.finish(store.users, store.movies, {"source": {}})
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}
                  for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("number", range(6))
def test_a_disk_that_fails_at_any_file_is_named_and_the_old_store_stays(
    store, tmp_path, monkeypatch, number
):
    save_store(store, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    names = ["item_idx.npy", "rating.npy", "timestamp.npy", "offsets.npy", "users.parquet",
             "movies.parquet"]
    left = iter(range(number))

    def sync(file):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bst.sequences.sync", sync)
    with pytest.raises(OSError, match="No space left") as caught:
        save_store(replace(store, rating=store.rating + 1), tmp_path)
    assert caught.value.filename == str(tmp_path / names[number])
    assert caught.value.__notes__ == [AS_IT_WAS]
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_full_disk_is_named_by_the_column_and_leaves_no_litter(store, tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, StoreWriter(tmp_path) as writer:
        writer.files["rating"].close()
        writer.files["rating"] = open("/dev/full", "wb")
        writer.append(rating=store.rating)  # into the buffer, which closing cannot write either
        writer.append(rating=np.zeros(10**6))
    assert caught.value.filename == str(tmp_path / "rating.npy")
    assert caught.value.__notes__ == [AS_IT_WAS]
    assert not list(tmp_path.iterdir())


def test_a_header_of_another_length_is_a_bug_that_is_told():
    with pytest.raises(RuntimeError, match="header of 192 bytes, expected 128"):
        _header(np.int32, (10**80,))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "manifest.json").unlink(), "no readable manifest.json"),
    (lambda f: (f / "rating.npy").write_bytes((f / "rating.npy").read_bytes()[:-8]), "rating.npy"),
    (lambda f: (f / "rating.npy").write_bytes((f / "rating.npy").read_bytes()[:-1] + b"?"),
     "sha256 is not the manifest's"),
    (lambda f: write_sealed(f / "manifest.json", b'{"version": 0}'), "store version 0, expected 2"),
    (lambda f: write_sealed(f / "manifest.json", b"[]"), "store version None, expected 2"),
    (lambda f: write_sealed(f / "manifest.json", b'{"version": 2}'), "KeyError 'columns'"),
    (lambda f: (f / "rating.npy").write_bytes((f / "rating.npy").read_bytes().replace(
        b"<f4", b">f4")), "rating.npy: its dtype is not the manifest's"),
    (lambda f: (f / "rating.npy").unlink(), "rating.npy: .*No such file"),
    (lambda f: (f / "rating.npy").write_bytes(b""), "rating.npy: "),
    (lambda f: (f / "rating.npy").write_bytes((f / "rating.npy").read_bytes().replace(
        b" \n", b"\t\n", 1)), "rating.npy: its header is not the one of a column"),
    (lambda f: (f / "item_idx.npy").write_bytes((f / "offsets.npy").read_bytes()),
     "item_idx.npy: its dtype is not the manifest's"),
    (lambda f: (f / "users.parquet").write_bytes((f / "movies.parquet").read_bytes()),
     "users.parquet: its sha256 is not the manifest's"),
    (lambda f: (f / "movies.parquet").unlink(), "movies.parquet: .*No such file"),
])
def test_a_damaged_store_is_refused_in_one_line(store, tmp_path, damage, message):
    save_store(store, tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_store(tmp_path)
    assert "\n" not in str(caught.value) and " again" in str(caught.value)  # says what to do


def test_windows_are_left_padded_and_none_is_lost_or_made_up(tables):
    store = build_sequences(tables)
    windows = make_windows(store, length=4, step=2)
    sizes = np.diff(store.offsets)
    assert len(windows) == sum((n + 1) // 2 for n in sizes)
    user_id = store.users["user_id"][3]
    items = store.item_idx[store.offsets[3]:store.offsets[4]].tolist()
    mine = windows.filter(pl.col("user_id") == user_id)
    padded = [0, 0, 0, *items]
    stars = [0.0, 0.0, 0.0, *store.rating[store.offsets[3]:store.offsets[4]].tolist()]
    when = store.timestamp[store.offsets[3]:store.offsets[4]].tolist()
    assert mine.columns == ["user_id", "history", "history_rating", "target", "label", "timestamp"]
    assert mine.drop("user_id").rows() == [
        (padded[k:k + 3], stars[k:k + 3], items[k], stars[k + 3], when[k])
        for k in range(0, len(items), 2)]
    shortest = make_windows(store, length=2)
    assert len(shortest) == len(store) and shortest["history"].list.len().unique().item() == 1


@pytest.mark.parametrize(("length", "step"), [(1, 1), (2, 0)])
def test_windows_refuse_a_length_without_history_and_a_step_of_nothing(store, length, step):
    with pytest.raises(ValueError, match=f"expected length >= 2 .* got {length} and {step}"):
        make_windows(store, length=length, step=step)
