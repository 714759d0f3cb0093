"""Ratings -> SequenceStore: one flat time-ordered array per column.

Order is (user, timestamp, line of the source file): half of MovieLens-1M's ratings share their
timestamp with the user's previous one, so (user, timestamp) alone is not reproducible.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from bst.data.schema import FIRST_IDX, MOVIES, USERS, Tables, check_table, rows_of
from bst.utils.errors import DataError
from bst.utils.files import naming, read_sealed, sha256_of, sync, write_sealed

STORE_VERSION = 4
COLUMNS = {"item_idx": np.int32, "rating": np.float32, "timestamp": np.int64, "offsets": np.int64}
TABLES = ("users.parquet", "movies.parquet")
FILES = (*(f"{name}.npy" for name in COLUMNS), *TABLES)
AS_IT_WAS = "a store that was there is as it was"


@dataclass(frozen=True)
class SequenceStore:
    """All interactions, each user's in one run, oldest first; n interactions, u users."""

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
        """Movies of the movie table, those without ratings included."""
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
        for text in _json_of(self.users, self.movies):
            digest.update(text)
        return digest.hexdigest()


def build_sequences(tables: Tables) -> SequenceStore:
    """Sort the ratings into per-user sequences.

    Args:
        tables: typed tables; rows of `ratings` in file order, which breaks ties of time.

    Returns:
        A store whose user row r and item index r + 2 are the rows of `tables.users`, `.movies`.

    Raises:
        DataError: a rating names a user or movie that the tables lack.
    """
    user = rows_of(tables.ratings["user_id"], tables.users["user_id"]).to_numpy()
    item = rows_of(tables.ratings["item_id"], tables.movies["item_id"]).to_numpy()
    rating, timestamp = (tables.ratings[name].to_numpy() for name in ("rating", "timestamp"))
    if strays := np.count_nonzero((user < 0) | (item < 0)):
        raise DataError(f"{strays} ratings name a user or movie that the tables lack, expected "
                        "none; check that the three files belong together")
    order = time_order(user, timestamp)
    counts = np.bincount(user, minlength=len(tables.users))
    return SequenceStore(
        item[order] + np.int32(FIRST_IDX), rating[order], timestamp[order],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), users=tables.users,
        movies=tables.movies, manifest={"source": tables.source})


def time_order(user_row: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Order by (user, timestamp, position), (n,) int64."""
    n, since = len(timestamp), timestamp - timestamp.min(initial=2**62)
    of_user, of_time, of_position = (
        int(most).bit_length() for most in (user_row.max(initial=0), since.max(initial=0), n))
    if of_user + of_time + of_position > 63:
        return np.lexsort((timestamp, user_row))
    # all three in one number: no two are equal, so the fastest sort will do, and it needs no index
    key = (user_row.astype(np.int64) << of_time | since) << of_position | np.arange(n)
    key.sort()
    return key & ((1 << of_position) - 1)


def _json_of(*tables: pl.DataFrame) -> Iterator[bytes]:
    """`write_json` of each table, a block of rows at a time."""
    for table in tables:
        texts = (rows.write_json()[1:-1].encode() for rows in table.iter_slices(2**14))
        yield b"["
        for number, text in enumerate(texts):
            yield b"," + text if number else text
        yield b"]"


class StoreWriter(AbstractContextManager):
    """Writes a store whose columns come in pieces, users in order, oldest rating first.

    A folder with a manifest is complete: the columns stand in temporary files until `finish`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, dict.fromkeys(COLUMNS, 0)
        self.files = {name: open(self._temporary(f"{name}.npy"), "wb") for name in COLUMNS}
        for name in COLUMNS:
            self._write_header(name)  # again at the end, when the length is known

    def __exit__(self, *_) -> None:
        for file in self.files.values():
            with suppress(OSError):  # a full disk refuses what is still in the buffer
                file.close()
        for name in FILES:
            self._temporary(name).unlink(missing_ok=True)

    def append(self, **columns: np.ndarray) -> None:
        """Add values to the end of the named columns."""
        for name, values in columns.items():
            values = np.ascontiguousarray(values, dtype=COLUMNS[name])
            with naming(self.folder / f"{name}.npy", AS_IT_WAS):
                self.files[name].write(values)
            self.count[name] += len(values)

    def finish(self, users: pl.DataFrame, movies: pl.DataFrame, source: dict[str, str]) -> None:
        """Put the files in place, the manifest last; `source`: sha256 of each raw file."""
        for name in COLUMNS:
            with naming(self.folder / f"{name}.npy", AS_IT_WAS), self.files[name] as file:
                file.seek(0)
                self._write_header(name)
                sync(file)
        for name, table in zip(TABLES, (users, movies), strict=True):
            with naming(self.folder / name, AS_IT_WAS), open(self._temporary(name), "wb") as file:
                table.write_parquet(file)
                sync(file)
        sha256 = {name: sha256_of(self._temporary(name)) for name in FILES}
        (self.folder / "manifest.json").unlink(missing_ok=True)  # from here on there is no store
        for name in FILES:
            os.replace(self._temporary(name), self.folder / name)
        manifest = {
            "version": STORE_VERSION, "sha256": sha256, "source": source,
            "sort_key": ["user", "timestamp", "source line"], "num_users": len(users),
            "num_items": len(movies), "num_interactions": self.count["item_idx"],
        }
        write_sealed(self.folder / "manifest.json", json.dumps(manifest, indent=2).encode())

    def _write_header(self, name: str) -> None:
        """What `np.save` writes before the values: as long for any number of them."""
        np.lib.format.write_array_header_1_0(self.files[name], {
            "descr": np.dtype(COLUMNS[name]).str, "fortran_order": False,
            "shape": (self.count[name],)})

    def _temporary(self, file: str) -> Path:
        return self.folder / f"{file}.tmp"


def save_store(store: SequenceStore, folder: Path) -> None:
    """Write the store; the manifest comes last, so a folder with a manifest is complete."""
    with StoreWriter(folder) as writer:
        writer.append(**{name: getattr(store, name) for name in COLUMNS})
        writer.finish(store.users, store.movies, store.manifest.get("source", {}))


def load_store(folder: Path) -> SequenceStore:
    """Open a store that `save_store` wrote; arrays are memory-mapped and checked.

    Raises:
        DataError: no manifest, another version, or a file that is not what the manifest says.
    """
    try:
        manifest = json.loads(read_sealed(folder / "manifest.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: no readable manifest.json ({error}); "
                        "make the store again with scripts/make_sequences.py") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != STORE_VERSION:
        raise DataError(f"{folder}: store version {version}, expected "
                        f"{STORE_VERSION}; make it again with scripts/make_sequences.py")
    for name in FILES:
        try:
            is_same = sha256_of(folder / name) == manifest["sha256"][name]
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder}/manifest.json: {type(error).__name__} {error}; it is "
                            "damaged, make the store again") from error
        except OSError as error:
            raise DataError(f"{folder / name}: {error.strerror}; make the store again") from error
        if not is_same:
            raise DataError(f"{folder / name}: its sha256 is not the manifest's; the store is "
                            "damaged or mixed, make it again")
    users, movies = (pl.read_parquet(folder / name) for name in TABLES)
    check_table(users, USERS, "users")
    check_table(movies, MOVIES, "movies")
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    return SequenceStore(**columns, users=users, movies=movies, manifest=manifest)
