"""A tiny run to break, and the list of survived faults at the end of the report."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.support.synthetic import write_synthetic
from tests.conftest import bits
from tests.faults.child import Child

TINY = ["--epochs", "3", "--steps", "1", "--width", "8", "--heads", "2",
        "--widths", "4", "2", "4", "--history-len", "10", "--hidden", "16", "8", "8", "--threads",
        "1", "--batch-size", "128", "--save-every", "3", "--no-text", "--lr", "0.01"]
# 42 steps with dropout and AdamW


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("raw"), num_users=60, num_movies=40,
                           num_ratings=1500)


@pytest.fixture(scope="session")
def start(raw, tmp_path_factory):
    """(run folder, flags, fault, what about it) -> a train.py of the tiny run."""
    folder, count = tmp_path_factory.mktemp("said"), iter(range(1000))

    def begin(out, *flags, fault=None, about=(), data=raw):
        return Child(folder / f"{next(count)}.log", "train.py",
                     ["--data", data, "--cache", folder / "cache", "--out", out, *TINY, *flags],
                     fault, about)

    return begin


@pytest.fixture(scope="session")
def whole(start, tmp_path_factory):
    """The folder of a run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole")
    start(out).ends()
    return out


@pytest.fixture
def finish(start, whole):
    """(run folder, options of `start`) -> what the run says that ends there with whole's bits."""

    def finish(out, **options):
        child = start(out, **options)
        child.ends()
        assert bits(out) == bits(whole) and not (out / "run.lock").exists()
        return child.said

    return finish


@pytest.fixture
def mounted(tmp_path):
    """(mount options) -> an empty folder of its own file system; needs root."""
    folders = []

    def mount(*options):
        folder = tmp_path / f"mounted{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount ({done.stderr.strip()})")
        folders.append(folder)
        return folder

    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)
