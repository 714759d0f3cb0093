"""Locks of folders, and data that may not change while they are read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bst.utils.errors import DataError
from bst.utils.files import stamp


class FolderInUseError(DataError):
    """Another process works in the folder; its arguments are the folder and the process's id."""

    exit_code = 73  # EX_CANTCREAT of sysexits.h

    def __str__(self) -> str:
        folder, pid = self.args
        return (f"process {pid} is working in {folder}, expected nobody; wait for it or choose "
                "another folder")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder`, which is made if it is not there.

    The kernel drops the lock of a process that is gone, so a file that a kill left is no lock. A
    FolderInUseError names the process that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    # 0.2 seconds: the owner may be writing its id, or leaving
    lock = FileLock(path, timeout=0.2, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(folder, int(path.read_text() or 0)) from error
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def unchanged(*paths: Path | None) -> Iterator[None]:
    """A DataError if a file, or one in a folder, was written while the block read it."""
    folders = (p.iterdir() if p.is_dir() else [p] for p in paths if p is not None)
    before = {path: stamp(path) for files in folders for path in files if not path.is_dir()}
    yield
    for path, was in before.items():
        if stamp(path) != was:
            raise DataError(f"{path} changed while it was read, expected a file at rest; give the "
                            "same command again once it is written")
