"""Ratings -> SequenceStore: one flat time-ordered array per column.

Order is (user, timestamp, line of the source file): half of MovieLens-1M's ratings share their
timestamp with the user's previous one, so (user, timestamp) alone is not reproducible.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from bst.data.schema import FIRST_IDX, Tables, rows_of
from bst.utils.errors import DataError, one_line
from bst.utils.files import naming, read_sealed, sha256_of, sync, write_sealed

STORE_VERSION = 4
COLUMNS = {"item_idx": np.int32, "rating": np.float32, "timestamp": np.int64, "offsets": np.int64}
TABLES = ("users.parquet", "movies.parquet")
FILES = (*(f"{name}.npy" for name in COLUMNS), *TABLES)


@dataclass(frozen=True)
class SequenceStore:
    """All interactions, each user's in one slice, oldest first; n interactions, u users."""

    item_idx: np.ndarray  # (n,) int32, >= FIRST_IDX
    rating: np.ndarray  # (n,) float32, stars
    timestamp: np.ndarray  # (n,) int64, seconds since 1970 UTC
    offsets: np.ndarray  # (u + 1,) int64: user row r owns positions offsets[r] .. offsets[r + 1]
    users: pl.DataFrame
    movies: pl.DataFrame
    manifest: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item_idx)

    @property
    def num_users(self) -> int:
        """Users of the user table, those without ratings included."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Items of the item table, those without ratings included."""
        return len(self.movies)

    @cached_property
    def user_row(self) -> np.ndarray:
        """Row of each interaction's user, (n,) int32."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.offsets))

    @cached_property
    def digest(self) -> str:
        """sha256 over the columns and tables: equal digests, equal sequences."""
        digest = hashlib.sha256()
        for name in COLUMNS:
            digest.update(np.ascontiguousarray(getattr(self, name)))
        for table in (self.users, self.movies):
            digest.update(table.write_json().encode())
        return digest.hexdigest()


def build_sequences(tables: Tables) -> SequenceStore:
    """Sort the ratings by user and time; of equal times the order of the rows counts.

    User row r and item index r + FIRST_IDX are row r of `tables.users` and of `tables.movies`. A
    DataError if a rating names a user or item that the tables lack.
    """
    rows = tables.ratings.select(
        "rating", "timestamp", user=rows_of(tables.ratings["user_id"], tables.users["user_id"]),
        item=rows_of(tables.ratings["item_id"], tables.movies["item_id"]) + np.int32(FIRST_IDX))
    if strays := len(rows.filter((pl.col("user") < 0) | (pl.col("item") < FIRST_IDX))):
        raise DataError(f"{strays} ratings name a user or item that the tables lack, expected "
                        "none; check that the three files belong together")
    rows = rows.sort("user", "timestamp", maintain_order=True)
    counts = np.bincount(rows["user"], minlength=len(tables.users))
    return SequenceStore(
        *(rows[name].to_numpy() for name in ("item", "rating", "timestamp")),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), users=tables.users,
        movies=tables.movies, manifest={"source": tables.source})


class StoreWriter(AbstractContextManager):
    """Writes a store whose columns come in pieces, users in order, oldest rating first.

    A folder with a manifest is complete: all files stand in the folder `scratch` until `finish`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch = folder, folder / "store.tmp"
        self.count = dict.fromkeys(COLUMNS, 0)
        shutil.rmtree(self.scratch, ignore_errors=True)  # of a run that was killed
        self.scratch.mkdir(parents=True)

    def __exit__(self, *_) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def append(self, **columns: np.ndarray) -> None:
        """Add values to the end of the named columns."""
        for name, values in columns.items():
            with self.writing(f"{name}.npy", "ab") as file:
                if not file.tell():
                    self._write_header(file, name)  # again at the end, when the length is known
                file.write(np.ascontiguousarray(values, dtype=COLUMNS[name]))
            self.count[name] += len(values)

    def finish(self, users: pl.DataFrame, movies: pl.DataFrame, source: dict[str, str]) -> None:
        """Put the files in place, the manifest last; `source`: sha256 of each raw file."""
        for name in COLUMNS:
            with self.writing(f"{name}.npy", "r+b") as file:
                self._write_header(file, name)
                sync(file)
        for name, table in zip(TABLES, (users, movies), strict=True):
            with self.writing(name, "wb") as file:
                table.write_parquet(file)
                sync(file)
        sha256 = {name: sha256_of(self.scratch / name) for name in FILES}
        (self.folder / "manifest.json").unlink(missing_ok=True)  # from here on there is no store
        for name in FILES:
            os.replace(self.scratch / name, self.folder / name)
        manifest = {
            "version": STORE_VERSION, "sha256": sha256, "source": source,
            "sort_key": ["user", "timestamp", "source line"], "num_users": len(users),
            "num_items": len(movies), "num_interactions": self.count["item_idx"]}
        write_sealed(self.folder / "manifest.json", json.dumps(manifest, indent=2).encode())

    @contextmanager
    def writing(self, name: str, mode: str) -> Iterator[IO[bytes]]:
        """An open file of `scratch`; an OSError names the file and says what is still good."""
        path = self.scratch / name
        with naming(path, "a store that was there is as it was"), open(path, mode) as file:
            yield file

    def _write_header(self, file: IO[bytes], name: str) -> None:
        """What `np.save` writes before the values: as long for any number of them."""
        np.lib.format.write_array_header_1_0(file, {
            "descr": np.dtype(COLUMNS[name]).str, "fortran_order": False,
            "shape": (self.count[name],)})


def save_store(store: SequenceStore, folder: Path) -> None:
    """Write the store to a folder, see `StoreWriter`."""
    with StoreWriter(folder) as writer:
        writer.append(**{name: getattr(store, name) for name in COLUMNS})
        writer.finish(store.users, store.movies, store.manifest.get("source", {}))


def load_store(folder: Path) -> SequenceStore:
    """Open a store that `save_store` wrote; arrays are memory-mapped and checked.

    A DataError if there is no manifest, another version, or a file that it does not describe.
    """
    with one_line(folder, "a whole store; make it again with scripts/make_sequences.py"):
        manifest = json.loads(read_sealed(folder / "manifest.json"))
        if manifest["version"] != STORE_VERSION:
            raise ValueError(f"store version {manifest['version']} is not {STORE_VERSION}")
        for name in FILES:
            if sha256_of(folder / name) != manifest["sha256"][name]:
                raise ValueError(f"{name} is damaged or of another store")
    users, movies = (pl.read_parquet(folder / name) for name in TABLES)
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    return SequenceStore(**columns, users=users, movies=movies, manifest=manifest)
