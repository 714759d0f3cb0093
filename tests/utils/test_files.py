"""Whole files or none, and their seals. Run: pytest tests/utils/test_files.py."""

import errno
import hashlib
import json
import os
from unittest.mock import Mock

import pytest

import bst.utils.files
from bst.utils.errors import DataError
from bst.utils.files import open_atomic, read_sealed, write_atomic, write_sealed


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(
        ("fsync", os.readlink(f"/proc/self/fd/{number}"))) or fsync(number))
    monkeypatch.setattr(os, "replace", lambda source, target: calls.append(
        ("replace", str(target))) or replace(source, target))
    write_atomic(tmp_path / "a", b"new")
    new = f"{tmp_path}/a"
    assert calls == [("fsync", f"{new}.{os.getpid()}.tmp"), ("replace", new),
                     ("fsync", str(tmp_path))]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, name):
    write_atomic(tmp_path / "a", b"old")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, name, Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a") and caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    with pytest.raises(KeyError), open_atomic(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old" and [*tmp_path.iterdir()] == [tmp_path / "a"]


def test_a_sealed_file_comes_back_and_any_other_content_does_not(tmp_path):
    path = tmp_path / "a"
    write_sealed(path, b"one")
    write_sealed(path, b"two")
    assert read_sealed(path) == b"two"
    for content in (b"twp", b"tw", b"two ", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="^a is not the file whose sha256 is in sums.json"):
            read_sealed(path)
    write_sealed(path, b"new")  # does not seal the damage
    assert json.loads((tmp_path / "sums.json").read_text())["a"] == [
        hashlib.sha256(b"new").hexdigest()]
    (tmp_path / "b").write_bytes(b"two")
    with pytest.raises(DataError, match="b is not the file"):  # it has no seal
        read_sealed(tmp_path / "b")
    write_sealed(tmp_path / "b", b"two")
    assert read_sealed(path) == b"new" and read_sealed(tmp_path / "b") == b"two"


def test_a_crash_between_seal_and_file_leaves_a_good_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_sealed(path, b"old")
    real = bst.utils.files.write_atomic

    def crash(to, content):
        if to == path:
            raise KeyboardInterrupt
        real(to, content)

    monkeypatch.setattr(bst.utils.files, "write_atomic", crash)
    for content in (b"new", b"newer"):
        with pytest.raises(KeyboardInterrupt):
            write_sealed(path, content)
        assert read_sealed(path) == b"old"
    path.write_bytes(b"new")  # of the first crash: nobody has written it
    with pytest.raises(DataError, match="damaged"):
        read_sealed(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 3}', b"\xff", b"[" * 100_000])
def test_damaged_sums_are_told_in_words(tmp_path, content):
    write_sealed(tmp_path / "a", b"one")
    (tmp_path / "sums.json").write_bytes(content)
    for call in (lambda: read_sealed(tmp_path / "a"), lambda: write_sealed(tmp_path / "a", b"x")):
        with pytest.raises(DataError, match="^sums.json is damaged"):
            call()
    assert (tmp_path / "a").read_bytes() == b"one"
