"""A tiny run to break, and the list of survived faults at the end of the report."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from bst.data.synthetic import write_synthetic
from tests.faults.child import Child

TINY = ["--epochs", "3", "--steps", "1", "--width", "8", "--heads", "2",
        "--widths", "4", "2", "4", "--history-len", "10", "--hidden", "16", "8", "8", "--threads",
        "1", "--batch-size", "128", "--save-every", "3", "--no-text", "--lr", "0.01"]
# 42 steps with dropout and AdamW


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("faults")


def pytest_terminal_summary(terminalreporter) -> None:
    survived = [report.nodeid.split("::")[1] for report in terminalreporter.getreports("passed")
                if "faults/" in report.nodeid and report.when == "call"]
    if survived:
        terminalreporter.section("survived faults")
        for name in survived:
            terminalreporter.write_line(name.removeprefix("test_").replace("_", " "))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def losses(folder: Path) -> list[tuple]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row.get("train_loss"), row["valid_mae"]) for row in rows]


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("raw"), num_users=60, num_movies=40,
                           num_ratings=1500)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(raw, cache, tmp_path):
    """(run folder, flags, fault, what about it) -> a train.py of the tiny run."""
    count = iter(range(100))

    def begin(out, *flags, fault=None, about=(), data=raw):
        return Child(tmp_path / f"said{next(count)}.log", "train.py",
                     ["--data", data, "--cache", cache, "--out", out, *TINY, *flags],
                     fault, about)

    return begin


@pytest.fixture(scope="session")
def whole(raw, cache, tmp_path_factory):
    """The folder of a run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole")
    child = Child(tmp_path_factory.mktemp("said") / "log", "train.py",
                  ["--data", raw, "--cache", cache, "--out", out, *TINY])
    assert child.wait() == 0, child.said
    return out


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
