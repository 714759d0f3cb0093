"""Full disks, folders that nobody may write, data that change, memory. Run: pytest -m faults."""

import shutil
import subprocess
import zipfile

import pytest

from bst.config import DataConfig
from bst.data import preparation
from bst.data.formats import read_tables
from bst.training.checkpoint import load_resume
from tests.command import call
from tests.conftest import bits, refused
from tests.faults.child import fill_disk, limit_memory, slow_steps


def test_a_full_disk_names_file_and_step_and_the_old_checkpoint_loads(start, finish, mounted):
    """A tiny tmpfs: room for two resume points at first, then for none."""
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    out, stuff = disk / "run", disk / "stuff"
    child = start(out, fault=fill_disk, about=(stuff,))
    child.ends(74)
    assert load_resume(out)["progress"]["step"] == 24
    (line,) = child.errors
    assert line in [f"error: disk full writing {out / name}; last good checkpoint is step 24; free "
                    "space and give the same command again" for name in ("sums.json", "resume.pt")]
    assert not list(out.glob("*.tmp"))
    stuff.unlink()
    assert "resuming from step 24" in finish(out)


@pytest.mark.parametrize("flag", [
    "--out", pytest.param("--cache", marks=pytest.mark.slow)])
def test_a_folder_that_nobody_may_write_is_one_line(start, raw, mounted, tmp_path, flag):
    folder = mounted("-t", "tmpfs", "tmpfs")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    flags = [tmp_path / "run", flag, folder, "--text", "--metadata", raw / "movies_metadata.csv"]
    child = start(*([folder / "run"] if flag == "--out" else flags))
    child.ends(74)
    (line,) = child.errors
    assert str(folder) in line and "Read-only file system" in line


def test_data_that_change_while_they_are_read_are_refused(raw, tmp_path, monkeypatch):
    shutil.copytree(raw, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(preparation, "read_tables", lambda *_, **__: (
        tmp_path / "ratings.dat").write_text("1::1::5::978300760\n"))
    with refused(f"{tmp_path}/ratings.dat changed while it was read, expected a file at rest"):
        preparation.open_store(DataConfig(data=tmp_path))


@pytest.mark.slow
def test_a_new_store_does_not_change_the_run_of_the_old_one(start, raw, whole, tmp_path):
    store, other = tmp_path / "store", tmp_path / "other"
    call("make_sequences.py", "--data", raw, "--out", store)
    child = start(tmp_path / "run", data=store, fault=slow_steps)
    child.wait_for("epoch 1:")
    shutil.copytree(raw, other)
    lines = (other / "ratings.dat").read_text().splitlines(keepends=True)
    (other / "ratings.dat").write_text("".join(lines[::2]))
    call("make_sequences.py", "--data", other, "--out", store)
    child.ends()
    assert bits(tmp_path / "run") == bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize("spare", [2**26, 2**27])
def test_memory_that_runs_out_is_one_line(start, tmp_path, spare):
    """Of numpy and torch. Without a few MB for its threads, polars ends the process by itself."""
    child = start(tmp_path / "run", "--width", "1024", "--heads", "2", "--batch-size", "1000000",
                  fault=limit_memory, about=(spare,))
    child.ends(1)
    assert len(child.errors) == 1 and child.errors[0].startswith("error: out of memory")


def test_no_path_of_a_zip_is_followed(raw, tmp_path):
    """Members are found by their last name and are read, never unpacked."""
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("users.dat", "movies.dat", "ratings.dat"):
            archive.writestr(f"../../{name}", (raw / name).read_bytes())
        archive.writestr("../../../evil", "x")
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(read_tables(path).ratings) == len(read_tables(raw).ratings)
    assert sorted(tmp_path.parent.rglob("*")) == before
