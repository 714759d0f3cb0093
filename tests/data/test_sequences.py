"""Order, splits, leaks, the store on disk. Run: pytest tests/data/test_sequences.py."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from unittest.mock import DEFAULT, Mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.data.schema import FIRST_IDX, Tables
from bst.data.sequences import FILES, build_sequences, load_store, save_store
from bst.utils.errors import DataError
from bst.utils.files import write_sealed
from tests.conftest import contents, random_tables, refused


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
    ids = pl.when(pl.int_range(pl.len()) < 3).then(9999).otherwise(column).cast(pl.Int64)
    strays = replace(tables, ratings=tables.ratings.with_columns(ids.alias(column)))
    with pytest.raises(DataError, match="^3 ratings name a user or item that the tables lack"):
        build_sequences(strays)


@pytest.mark.parametrize("number", range(6))
def test_a_kill_between_two_files_leaves_no_store_of_two_halves(
        store, tmp_path, monkeypatch, number):
    save_store(store, tmp_path)
    kill = Mock(wraps=os.replace, side_effect=[DEFAULT] * number + [KeyboardInterrupt])
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        save_store(replace(store, rating=store.rating + 1), tmp_path)
    with pytest.raises(DataError, match="No such file .*manifest.json"):
        load_store(tmp_path)


def test_the_manifest_says_what_the_folder_holds_and_a_copy_says_the_same(tables, tmp_path):
    store = build_sequences(replace(tables, source={"ratings.dat": "0f"}))
    save_store(store, tmp_path / "made" / "here")
    loaded = load_store(tmp_path / "made" / "here")
    files = contents(tmp_path / "made" / "here")
    assert json.loads(files["manifest.json"]) == loaded.manifest == {
        "version": 4, "source": {"ratings.dat": "0f"},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()
                   if name.endswith(("npy", "parquet"))},
        "sort_key": ["user", "timestamp", "source line"],
        "num_users": 23, "num_items": 41, "num_interactions": 700}
    assert not loaded.rating.flags.writeable  # nobody changes the files through the arrays
    save_store(loaded, tmp_path / "copy")
    assert contents(tmp_path / "copy") == files


@pytest.mark.parametrize("number", range(6))
def test_a_disk_that_fails_at_any_file_is_named_and_the_old_store_stays(
        store, tmp_path, monkeypatch, number):
    save_store(store, tmp_path)
    before, full = contents(tmp_path), OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("bst.data.sequences.sync", Mock(side_effect=[None] * number + [full]))
    with pytest.raises(OSError, match="No space left") as caught:
        save_store(replace(store, rating=store.rating + 1), tmp_path)
    assert caught.value.filename == str(tmp_path / "store.tmp" / FILES[number])
    assert caught.value.__notes__ == ["a store that was there is as it was"]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "content", "told"), [
    ("manifest.json", None, "No such file"), ("rating.npy", None, "No such file"),
    ("manifest.json", b'{"version": 0}', "store version 0 is not 4"),
    ("manifest.json", b'{"version": 4}', "'sha256'"),
    ("rating.npy", b"another", "rating.npy is damaged or of another store")])
def test_a_store_of_which_a_file_is_missing_or_another_says_what_to_do(
        store, tmp_path, name, content, told):
    save_store(store, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        write_sealed(tmp_path / name, content)
    with refused(f"{tmp_path}: .*{told}.* make it again with scripts/make_sequences.py"):
        load_store(tmp_path)
