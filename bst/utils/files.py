"""Files that are written whole or not at all, and that are checked when they are read."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bst.utils.errors import DataError, one_line

SUMS = "sums.json"  # by file: its old sha256, then the new one, as a crash may leave either file


@contextmanager
def open_atomic(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """A file that replaces `path` when the block ends; a crash leaves the old one or the new one.

    An OSError if it cannot be written; it names `path`, which stays as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, mode, **options) as file:
                yield file
                sync(file)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def naming(path: Path, note: str | None = None) -> Iterator[None]:
    """Name `path` in an OSError of the block: that of a failed write names no file.

    `note` says what is still good; see `BaseException.add_note`.
    """
    try:
        yield
    except OSError as error:
        named = OSError(error.errno, error.strerror or str(error), str(path))
        if note is not None:
            named.add_note(note)
        raise named from error


def sync(file: IO) -> None:
    """Put on the disk what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names of the folder's files on the disk, so that a power cut keeps them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_sealed(path: Path, content: bytes) -> None:
    """`write_atomic`, and the sha256 of the content in `SUMS`, where `read_sealed` looks.

    The sums are written first. They hold the sha256 of the old content too, so that a crash
    between the two writes leaves the old file valid. A DataError if the sums are damaged.
    """
    sums = _read_sums(path.parent)
    old = sha256_of(path) if path.exists() else None
    kept = [digest for digest in sums.get(path.name, []) if digest == old]
    sums[path.name] = [*kept, hashlib.sha256(content).hexdigest()]
    write_atomic(path.parent / SUMS, json.dumps(sums, indent=1).encode())
    write_atomic(path, content)


def read_sealed(path: Path) -> bytes:
    """The content of a file; a DataError if it is not what `write_sealed` wrote, or has no sums."""
    content = path.read_bytes()
    if not (path.parent / SUMS).exists():
        raise DataError(f"no {SUMS} beside {path.name} tells whether it is whole: an older "
                        "version made the folder, or the file was removed; make it again with "
                        "this version")
    if hashlib.sha256(content).hexdigest() not in _read_sums(path.parent).get(path.name, []):
        raise DataError(f"{path.name} is not the file whose sha256 is in {SUMS}: it was damaged "
                        "or replaced")
    return content


def stamp(path: Path) -> tuple | None:
    """What changes when a file is written or replaced; None while it is not there."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def sha256_of(path: Path) -> str:
    """sha256 of a file; read in blocks, so that memory stays flat."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(folder: Path) -> dict[str, list[str]]:
    path = folder / SUMS
    if not path.exists():
        return {}
    with one_line(f"{SUMS} is damaged", "the sha256 of each file beside it"):
        return {name: [*digests] for name, digests in json.loads(path.read_bytes()).items()}
