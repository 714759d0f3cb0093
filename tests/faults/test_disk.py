"""Full disks, folders that nobody may write, data that change, memory. Run: pytest -m faults."""

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from bst.data.formats import read_tables
from bst.training.checkpoint import load_model, load_resume
from bst.utils.errors import DataError
from scripts.download_data import unpack
from tests.faults.child import Child, change_while_read, limit_files, limit_memory
from tests.faults.conftest import digest
from tests.faults.test_kill import slow_steps


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_disk_that_fills_up_names_the_file_and_the_step_and_the_old_checkpoint_loads(
    start, whole, mounted, tmp_path
):
    """A tiny tmpfs: room for two resume points at first, then for none."""
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    out, stuff = disk / "run", disk / "stuff"
    child = start(out, fault=fill_disk, about=(stuff,))
    assert child.wait() == 74, child.said
    step = load_resume(out)["progress"]["step"]
    assert step == 24 and child.errors == [
        f"error: disk full writing {out}/sums.json; last good checkpoint is step {step}; free "
        "space and give the same command again"] or child.errors == [
        f"error: disk full writing {out}/resume.pt; last good checkpoint is step {step}; free "
        "space and give the same command again"]
    assert not list(out.glob("*.tmp"))
    stuff.unlink()
    again = start(out)
    assert again.wait() == 0 and f"resuming from step {step}" in again.said, again.said
    assert digest(out) == digest(whole)


def fill_disk(stuff: Path) -> None:
    """Fill the disk before the 26th update."""
    import bst.training.loop

    real, count = bst.training.loop.train_step, iter(range(1, 10**6))

    def train_step(*args, **options):
        if next(count) == 26:
            stuff.write_bytes(bytes(free_bytes(stuff.parent)))
        return real(*args, **options)

    bst.training.loop.train_step = train_step


@pytest.mark.slow
def test_a_limit_on_files_is_a_full_disk_too(start, tmp_path):
    child = start(tmp_path / "run", fault=limit_files, about=(50_000,))
    assert child.wait() == 74
    (line,) = child.errors
    assert line.startswith("error: disk full writing ") and "no checkpoint yet" in line
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("flag", [
    "--out", pytest.param("--cache", marks=pytest.mark.slow)])
def test_a_folder_that_nobody_may_write_is_one_line(start, raw, mounted, tmp_path, flag):
    folder = mounted("-t", "tmpfs", "tmpfs")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    flags = [tmp_path / "run", flag, folder, "--text", "--metadata", raw / "movies_metadata.csv"]
    child = start(*([folder / "run"] if flag == "--out" else flags))
    assert child.wait() == 74, child.said
    (line,) = child.errors
    assert str(folder) in line and "Read-only file system" in line


def test_data_that_change_while_they_are_read_are_refused(start, raw, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(raw, data)
    child = start(tmp_path / "run", data=data, fault=change_while_read,
                  about=(data / "ratings.dat",))
    assert child.wait() == 1
    assert child.errors == [f"error: {data}/ratings.dat changed while it was read, expected a file "
                            "at rest; give the same command again once it is written"]


@pytest.mark.slow
def test_a_store_that_is_made_anew_does_not_change_the_run_that_reads_the_old_one(
    start, raw, whole, tmp_path
):
    store = tmp_path / "store"
    make = ["--data", raw, "--out", store]
    assert Child(tmp_path / "made", "make_sequences.py", make).wait() == 0
    child = start(tmp_path / "run", data=store, fault=slow_steps)
    child.wait_for("epoch 1:")
    other = tmp_path / "other"
    shutil.copytree(raw, other)
    lines = (other / "ratings.dat").read_text().splitlines(keepends=True)
    (other / "ratings.dat").write_text("".join(lines[::2]))
    assert Child(tmp_path / "made", "make_sequences.py",
                 ["--data", other, "--out", store]).wait() == 0
    assert child.wait() == 0, child.said
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.slow
@pytest.mark.parametrize("spare", [2**26, 2**27])
def test_memory_that_runs_out_is_one_line(start, tmp_path, spare):
    """Of numpy and torch. Without a few MB for its threads, polars ends the process by itself."""
    child = start(tmp_path / "run", "--width", "1024", "--heads", "2", "--batch-size", "1000000",
                  fault=limit_memory, about=(spare,))
    assert child.wait() == 1, child.said
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
    with pytest.raises(KeyError):  # the download's zip has its members in ml-1m/
        unpack(path, tmp_path / "unpacked")
    found = set(tmp_path.parent.rglob("*")) - set(before)
    assert found == {tmp_path / "unpacked"}


def test_a_run_folder_names_no_file_outside_of_it(whole, tmp_path):
    """The names of sums.json are never opened; the files that are read have fixed names."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    sums = json.loads((copy / "sums.json").read_text())
    (copy / "sums.json").write_text(json.dumps({**sums, "../../etc/passwd": ["0"]}))
    load_model(copy)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(whole / "fitted.json")
    with pytest.raises(DataError):
        load_model(copy)

