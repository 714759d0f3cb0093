"""Order, splits, leaks, the store on disk. Run: pytest tests/test_sequences.py."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.files import write_sealed
from bst.schema import FIRST_IDX, DataError, Tables
from bst.sequences import (
    audit_split,
    build_sequences,
    load_store,
    make_windows,
    save_store,
    split_interactions,
)
from tests.conftest import random_tables


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


def test_leave_last_one_holds_out_the_last_two_of_each_user(store):
    split = split_interactions(store, protocol="leave-last-one")
    ends = store.offsets[1:]
    np.testing.assert_array_equal(split.test, ends - 1)
    np.testing.assert_array_equal(split.valid, ends - 2)


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


def test_keras_windows_end_where_the_keras_loop_ends_them(store):
    """The loop of keras.io's `create_sequences`, its doubled tails included."""
    expected = []
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
    assert any("LEAKY" in line for line in audit_split(store, split))


def test_the_audit_finds_a_history_that_reaches_too_far(store, split):
    stop = split.history_stop.copy()
    tied = np.flatnonzero((np.diff(store.timestamp) == 0) & (np.diff(store.user_row) == 0))[0] + 1
    stop[tied] = tied
    with pytest.raises(DataError, match=f"past its target's time, at 1 positions.* {tied}"):
        audit_split(store, replace(split, history_stop=stop))


def test_the_audit_finds_a_target_in_two_parts(store, split):
    doubled = replace(split, train=np.append(split.train, split.test[0]))
    with pytest.raises(DataError, match="target of no part or of two"):
        audit_split(store, doubled)


def test_a_store_comes_back_as_it_was_saved(store, tmp_path):
    save_store(store, tmp_path)
    loaded = load_store(tmp_path)
    assert loaded.digest == store.digest
    assert loaded.movies.equals(store.movies) and loaded.users.equals(store.users)


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
    (lambda f: (f / "rating.npy").write_bytes(b""), "rating.npy: "),
    (lambda f: (f / "users.parquet").write_bytes((f / "movies.parquet").read_bytes()),
     "users.parquet: its sha256 is not the manifest's"),
    (lambda f: (f / "movies.parquet").unlink(), "movies.parquet: "),
])
def test_a_damaged_store_is_refused_in_one_line(store, tmp_path, damage, message):
    save_store(store, tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_store(tmp_path)
    assert "\n" not in str(caught.value)


def test_windows_are_left_padded_and_none_is_lost_or_made_up(tables):
    store = build_sequences(tables)
    windows = make_windows(store, length=4, step=2)
    sizes = np.diff(store.offsets)
    assert len(windows) == sum((n + 1) // 2 for n in sizes)
    user_id = store.users["user_id"][3]
    items = store.item_idx[store.offsets[3]:store.offsets[4]].tolist()
    mine = windows.filter(pl.col("user_id") == user_id)
    padded = [0, 0, 0, *items]
    expected = [(padded[k:k + 3], items[k]) for k in range(0, len(items), 2)]
    assert list(mine.select("history", "target").iter_rows()) == expected


def test_windows_refuse_a_length_without_history(store):
    with pytest.raises(ValueError, match="expected length >= 2"):
        make_windows(store, length=1)
