"""A folder, a zip or one file -> the bytes of its files, in blocks of whole lines.

A file may be packed with gzip. Nothing of a zip goes to the disk, and no path in it is followed: a
file is found by its name.
"""

import gzip
import hashlib
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bst.utils.errors import DataError
from bst.utils.files import sha256_of

GROWTH = 100  # largest ratio of unpacked to packed size; of MovieLens: 4
SMALL_FILE = 2**26  # bytes, unpacked, that are always taken
MAGIC = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\3\4": "a zip", b"\x1f\x8b": "gzip",
         b"PAR1": "parquet", b"SQLite": "SQLite", b"\xd0\xcf\x11\xe0": "Excel", b"%PDF": "PDF"}


class RawFiles:
    """The files of a folder or zip, or one file that stands alone, without BOM.

    `sha256` holds the hash of each file that was read, as sha256sum prints it.
    """

    def __init__(self, source: Path) -> None:
        self.source, self.sha256 = source, {}
        self.is_alone = source.is_file() and source.suffix.lower() != ".zip"
        self.is_zip = not self.is_alone and not source.is_dir()
        self.folder = source.parent if self.is_alone else source

    def names(self) -> set[str]:
        """Names of the files, without their folders; a DataError if it is missing or no zip."""
        if self.is_alone:
            return {self.source.name}
        with self._as_data_error("it"):
            if not self.is_zip:
                return {path.name for path in self.source.iterdir() if path.is_file()}
            with zipfile.ZipFile(self.source) as archive:
                return {member.split("/")[-1] for member in _visible(archive)} - {""}

    def size(self, name: str) -> int:
        """Bytes of the file, unpacked; an estimate for gzip."""
        with self._opened(name) as (_, size):
            return size * (4 if name.endswith(".gz") else 1)

    def chunks(self, name: str, chunk_bytes: int) -> Iterator[bytes]:
        """The file in blocks of whole lines, each of about `chunk_bytes`.

        Raises:
            DataError: the file is missing, damaged, empty or no text, or a line is longer than a
                block.
        """
        with self._unpacked(name) as file:
            blocks = _whole_lines(file, name, chunk_bytes)
            first = next(blocks, b"").removeprefix(b"\xef\xbb\xbf")
            if not first.strip():
                raise DataError(f"{self.source}: {name} is empty, expected one row per line")
            _refuse_binary(f"{self.source}: {name}", first)
            yield first
            yield from blocks

    def whole(self, name: str) -> Path | bytes:
        """A file for random access: its path, or its unpacked content."""
        if not self.is_zip and not name.endswith(".gz"):
            with self._as_data_error(name):
                self.sha256[name] = sha256_of(self.folder / name)
            return self.folder / name
        with self._unpacked(name) as file:
            return file.read()

    @contextmanager
    def _unpacked(self, name: str) -> Iterator[IO[bytes]]:
        """The file, unpacked; its packed content is hashed."""
        with self._opened(name) as (file, _):
            if name not in self.sha256:
                self.sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            yield gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """The open file and its size."""
        with self._as_data_error(name):
            if not self.is_zip:
                with open(self.folder / name, "rb", buffering=0) as file:
                    yield file, (self.folder / name).stat().st_size
                return
            with zipfile.ZipFile(self.source) as archive:
                found = [m for m in _visible(archive) if m.split("/")[-1] == name]
                if len(found) != 1:
                    held = f"holds {' and '.join(map(ascii, found[:4])) or f'no {name}'}"
                    raise DataError(f"{self.source}: {held}, expected one data set with {name}; "
                                    "unpack it and give the folder, see data/README.md")
                member = archive.getinfo(found[0])
                size, packed = member.file_size, min(member.compress_size,
                                                     self.source.stat().st_size)
                if size > max(SMALL_FILE, GROWTH * packed):
                    raise DataError(
                        f"{self.source}: {name} grows from {packed:,} to {size:,} bytes when it is "
                        f"unpacked, expected at most {GROWTH} times as many; if you trust the zip, "
                        "unpack it yourself and give the folder")
                with archive.open(member) as file:
                    yield file, size

    @contextmanager
    def _as_data_error(self, what: str) -> Iterator[None]:
        """Turns what a damaged or missing file raises, a dozen kinds, into a DataError."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.source}: cannot read {what} ({error}); expected a folder, a zip or a file "
                "of a data set, see data/README.md") from error


def _visible(archive: zipfile.ZipFile) -> list[str]:
    """The members of a zip without what macOS adds."""
    return [m for m in archive.namelist() if not re.match(r"__MACOSX/|(.*/)?\._", m)]


def _refuse_binary(what: str, start: bytes) -> None:
    """Raise if a file does not begin like text in UTF-8 or latin-1."""
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{what} looks like {kind}, expected text in UTF-8; convert it, or "
                            "give it the ending of such files")


def _whole_lines(file: IO[bytes], name: str, chunk_bytes: int) -> Iterator[bytes]:
    while block := file.read(chunk_bytes):
        rest = file.readline(chunk_bytes)  # the rest of the last line, or the next line
        if len(rest) == chunk_bytes and not rest.endswith(b"\n"):
            raise DataError(f"{name}: a line of more than {chunk_bytes:,} bytes, expected one "
                            "row per line")
        yield block + rest
