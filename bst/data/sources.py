"""A folder, a zip or one CSV file -> the bytes of its files, in blocks of whole lines.

Nothing of a zip goes to the disk, and no path in it is followed: a file is found by its name.
"""

import hashlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bst.utils.errors import DataError

GROWTH = 100  # times that a file of a zip may grow when it is unpacked; MovieLens: 4 times
SMALL_FILE, LARGEST_FILE = 2**26, 2**36  # bytes, unpacked: always taken, never taken
DAMAGE = (OSError, EOFError, LookupError, RuntimeError, ValueError, struct.error, zlib.error,
          lzma.LZMAError, zipfile.BadZipFile)  # what a damaged file makes Python raise


class RawFiles:
    """The files of a data set, without BOM and carriage returns, hashed while they are read.

    `sha256` holds the hash of each file that was read to its end.

    Args:
        source: a folder, a zip, or one `.csv` file that stands alone.
    """

    def __init__(self, source: Path) -> None:
        self.source, self.sha256 = source, {}
        self.is_alone = source.suffix.lower() == ".csv" and source.is_file()

    def names(self) -> set[str]:
        """Names of the files, without their folders.

        Raises:
            DataError: the source is missing or no zip.
        """
        if self.is_alone:
            return {self.source.name}
        with self._told("it"):
            if self.source.is_dir():
                return {path.name for path in self.source.iterdir()}
            with zipfile.ZipFile(self.source) as archive:
                return {member.split("/")[-1] for member in archive.namelist()} - {""}

    def size(self, name: str) -> int:
        """Bytes of the file, unpacked."""
        with self._opened(name) as (_, size):
            return size

    def chunks(self, name: str, chunk_bytes: int) -> Iterator[bytes]:
        """The file in blocks of whole lines, each of about `chunk_bytes`.

        Raises:
            DataError: the file is missing, damaged or empty, or a line is longer than a block.
        """
        digest, is_blank = hashlib.sha256(), True
        with self._opened(name) as (file, _):
            for number, lines in enumerate(_whole_lines(file, name, chunk_bytes)):
                if number == 0:
                    lines = lines.removeprefix(b"\xef\xbb\xbf")
                if b"\r" in lines:
                    lines = lines.replace(b"\r\n", b"\n")
                digest.update(lines)
                is_blank = is_blank and (not lines or lines.isspace())
                yield lines
        if is_blank:
            raise DataError(f"{self.source}: {name} is empty, expected a row a line")
        self.sha256[name] = digest.hexdigest()

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """The open file and its size."""
        with self._told(name):
            if self.is_alone or self.source.is_dir():
                path = self.source if self.is_alone else self.source / name
                with open(path, "rb", buffering=0) as file:
                    yield file, path.stat().st_size
                return
            with zipfile.ZipFile(self.source) as archive:
                member = next((m for m in archive.infolist() if m.filename.split("/")[-1] == name),
                              None)
                if member is None:
                    raise DataError(f"{self.source}: no {name} in the zip, expected it beside the "
                                    "other files of the data set, see data/README.md")
                self._refuse_bomb(name, member)
                with archive.open(member) as file:
                    yield file, member.file_size

    def _refuse_bomb(self, name: str, member: zipfile.ZipInfo) -> None:
        """Raise if the file would fill the memory; never more is unpacked than it declares."""
        size, packed = member.file_size, min(member.compress_size, self.source.stat().st_size)
        if size > min(max(SMALL_FILE, GROWTH * packed), LARGEST_FILE):
            raise DataError(
                f"{self.source}: {name} grows from {packed:,} to {size:,} bytes when it is "
                f"unpacked, expected at most {GROWTH} times as many, and {LARGEST_FILE:,}; if you "
                "trust the zip, unpack it yourself and give the folder")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns what a damaged or missing file raises into a DataError."""
        try:
            yield
        except DataError:
            raise
        except DAMAGE as error:
            raise DataError(
                f"{self.source}: cannot read {what} ({error}); expected a folder or zip with the "
                "files of a data set, see data/README.md") from error


def _whole_lines(file: IO[bytes], name: str, chunk_bytes: int) -> Iterator[bytes]:
    rest = b""
    while block := file.read(chunk_bytes):
        end = block.rfind(b"\n") + 1
        if not end and len(rest) > chunk_bytes:
            raise DataError(f"{name}: a line of more than {chunk_bytes:,} bytes, expected a row "
                            "a line")
        if end:
            yield rest + block[:end]
            rest = b""
        rest += block[end:]
    if rest:
        yield rest
