"""A store built in parts is the one built in memory. Run: pytest tests/data/test_preparation.py."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.data.formats import read_tables
from bst.data.preparation import stream_store
from bst.data.sequences import build_sequences, load_store, save_store
from bst.utils.errors import DataError
from scripts.support.synthetic import write_synthetic
from tests.command import ROOT, call
from tests.conftest import contents, random_tables
from tests.faults.child import limit_files
from tests.raw_formats import write_1m

BAD = ("1::5::9::978300760", "x", "1::5::3", "2::5::3::978300760", "1::6::3::978300760",
       "1::5::3::12", "1::5::é::978300760", "1::5::3::978300760 ", "1::5::+3::978300760", "")
REPEAT = "again"  # stands for a line that the file has already


def raw_folder(folder: Path, *, seed=0, num_ratings=60, tie_share=0.5, bad=(),
               wrap=lambda content: content) -> Path:
    """The three files of `random_tables`, with `bad` (place, line) pairs put in."""
    tables = random_tables(seed, num_ratings=num_ratings, tie_share=tie_share)
    lines = [f"{u}::{i}::{r:.0f}::{t}" for u, i, r, t in tables.ratings.iter_rows()]
    for place, line in bad:
        at = place % (len(lines) + 1)
        lines.insert(at, lines[place % len(lines)] if line == REPEAT else line)
    write_1m(folder, tables)
    (folder / "ratings.dat").write_bytes(wrap("".join(f"{k}\n" for k in lines).encode("latin-1")))
    return folder


def in_memory(source: Path, folder: Path, **options) -> None:
    save_store(build_sequences(read_tables(source, report_dir=folder, **options)), folder)


def outcome(build, source: Path, folder: Path, **options) -> tuple[str | None, dict[str, bytes]]:
    """What a build raised, and every file that it left."""
    folder.mkdir()
    try:
        build(source, folder, **options)
    except DataError as error:
        return str(error), contents(folder)
    return None, contents(folder)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), tie_share=st.sampled_from([0.0, 0.5, 1.0]),
       chunk=st.sampled_from([64, 301, 4096]), parts=st.sampled_from([1, 3, 16]),
       alone=st.booleans(), on_bad=st.sampled_from(["stop", "quarantine"]),
       bad=st.just([]) | st.lists(
           st.tuples(st.integers(0, 200), st.sampled_from([*BAD, REPEAT, REPEAT])), max_size=14),
       wrap=st.sampled_from([
           lambda c: c, lambda c: c.replace(b"\n", b"\r\n"), lambda c: b"\xef\xbb\xbf" + c,
           lambda c: c.rstrip(), lambda c: b"\n" + c.replace(b"\n", b"\n\n", 3)]))
def test_any_chunks_and_parts_give_the_files_and_the_words_of_the_store_in_memory(
        tmp_path_factory, seed, tie_share, chunk, parts, alone, on_bad, bad, wrap):
    work = tmp_path_factory.mktemp("work")
    source = raw_folder(work / "raw", seed=seed, tie_share=tie_share, bad=bad, wrap=wrap)
    part = -(-(source / "ratings.dat").stat().st_size // parts)
    if alone:  # a table without users and items: a big file is read twice
        rows = (source / "ratings.dat").read_text("latin-1")
        source = work / "ratings.csv"
        source.write_text("user::item::rating::time\n" + rows, encoding="utf-8")
    expected = outcome(in_memory, source, work / "one", on_bad=on_bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bst.data.raw.CHUNK_BYTES", chunk)
        patch.setattr("bst.data.preparation.PART", part)
        assert outcome(stream_store, source, work / "other", on_bad=on_bad) == expected


def test_bad_rows_come_in_the_order_of_the_lines_whatever_their_defect(tmp_path):
    bad = [(9, "1::5::9::978300760")] * 12 + [(5, "2::5::3::978300760")]
    source = raw_folder(tmp_path / "raw", bad=bad)
    with pytest.raises(DataError, match="^13 bad rows.*is not in users.dat.*; ...;") as caught:
        read_tables(source)
    listed = [int(line) for line in re.findall(r"ratings\.dat:(\d+)", str(caught.value))]
    assert len(listed) == 10 and listed == sorted(listed)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_change_no_byte(tmp_path, threads):
    source = raw_folder(tmp_path / "raw", num_ratings=700)
    in_memory(source, tmp_path / "one")
    code = ("import sys; from pathlib import Path; from bst.data import preparation, raw; "
            "raw.CHUNK_BYTES, preparation.PART = 5000, 4000; "
            "preparation.stream_store(*map(Path, sys.argv[1:]))")
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "other")], cwd=ROOT,
                   env={**os.environ, "POLARS_MAX_THREADS": threads}, check=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_bad_rows_leave_the_store_and_leftovers_of_a_killed_run_do_no_harm(tmp_path):
    source = raw_folder(tmp_path / "good")
    stream_store(source, tmp_path / "store")
    before = contents(tmp_path / "store")
    for bad, message in (("x", "1 bad rows"), (REPEAT, "1 ratings of an item that the user has")):
        with pytest.raises(DataError, match=message):
            stream_store(raw_folder(tmp_path / "bad", bad=[(3, bad)]), tmp_path / "store",
                         repeats="stop")
        assert contents(tmp_path / "store") == before
    (tmp_path / "store" / "store.tmp").mkdir()
    for name in ("0", "rating.npy"):
        (tmp_path / "store" / "store.tmp" / name).write_bytes(b"from another run, of any length")
    stream_store(source, tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_a_full_disk_is_one_line_and_the_old_store_stays(tmp_path):
    source = write_synthetic(tmp_path / "raw", num_users=150, num_movies=200, num_ratings=6000)
    out = tmp_path / "store"
    stream_store(raw_folder(tmp_path / "first"), out)
    before = contents(out)
    said = call("make_sequences.py", "--data", source, "--out", out, code=74,
                fault=partial(limit_files, 20_000)).stderr
    assert re.fullmatch(f"error: disk full writing {out}.*a store .* is as it was.*\n", said)
    assert contents(out) == before


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("bst.data.raw.CHUNK_BYTES", 1000)
    source = raw_folder(tmp_path / "raw")
    (source / "ratings.dat").write_bytes(b"1" * 10_000)
    with pytest.raises(DataError, match="ratings.dat: a line of more than 1,000 bytes"):
        stream_store(source, tmp_path / "store")


def test_columns_are_what_numpy_saves_and_the_digest_is_of_the_whole(tmp_path):
    store = build_sequences(random_tables())
    save_store(replace(store, item_idx=store.item_idx.astype(np.int64)), tmp_path)  # is cast
    for name in ("item_idx", "rating", "timestamp", "offsets"):
        file = io.BytesIO()
        np.save(file, getattr(store, name))
        assert (tmp_path / f"{name}.npy").read_bytes() == file.getvalue()
    digest = hashlib.sha256()
    for name in ("item_idx", "rating", "timestamp", "offsets"):
        digest.update(getattr(store, name).tobytes())
    for frame in (store.users, store.movies):
        digest.update(frame.write_json().encode())
    assert load_store(tmp_path).digest == store.digest == digest.hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_while_the_ratings_grow_tenfold(tmp_path):
    peak = {}
    for count in (1_000_000, 10_000_000):
        source = write_synthetic(tmp_path / "raw", num_users=count // 166, num_movies=3883,
                                 num_ratings=count)
        # not ru_maxrss, in which Linux counts what pytest held when it started the child
        code = ("import re, sys; from pathlib import Path; from bst.data.preparation import "
                "stream_store; stream_store(Path(sys.argv[1]), Path(sys.argv[2])); status = "
                "Path('/proc/self/status').read_text(); "
                r"print(int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024)")
        done = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "store")],
                              cwd=ROOT, capture_output=True, text=True, check=True)
        peak[count] = float(done.stdout)
        shutil.rmtree(source)
    assert peak[10_000_000] < min(600, 1.3 * peak[1_000_000])
