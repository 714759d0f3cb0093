"""Ratings -> SequenceStore: one flat time-ordered array per column; splits; leak audit; windows.

Order is (user, timestamp, line of the source file): half of MovieLens-1M's ratings share their
timestamp with the user's previous one, so (user, timestamp) alone is not reproducible.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from bst.files import naming, read_sealed, sha256_of, sync, write_sealed
from bst.schema import FIRST_IDX, MOVIES, PAD, USERS, DataError, RowIndex, Tables, check_table

STORE_VERSION = 2
COLUMNS = {"item_idx": np.int32, "rating": np.float32, "timestamp": np.int64, "offsets": np.int64}
TABLES = ("users", "movies")
HEADER = 128  # bytes before the values of a column's .npy
FILES = (*(f"{name}.npy" for name in COLUMNS), *(f"{name}.parquet" for name in TABLES))
AS_IT_WAS = "a store that was there is as it was"
BLOCK = 2**20  # bytes or rows that are hashed at a time: memory stays flat


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


@dataclass(frozen=True)
class Split:
    """Which interactions are targets of which part, and what each target may see.

    The history of the target at position p is every position q with
    offsets[user] <= q < history_stop[p] and is_history[q].
    """

    protocol: str
    ties: str
    train: np.ndarray  # int64 positions, ascending
    valid: np.ndarray
    test: np.ndarray
    history_stop: np.ndarray  # (n,) int64
    is_history: np.ndarray  # (n,) bool

    def part(self, name: str) -> np.ndarray:
        """Target positions of "train", "valid" or "test"."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def build_sequences(tables: Tables) -> SequenceStore:
    """Sort the ratings into per-user sequences.

    Args:
        tables: typed tables; rows of `ratings` in file order, which breaks ties of time.

    Returns:
        A store whose user row r and item index r + 2 are the rows of `tables.users`, `.movies`.

    Raises:
        DataError: a rating names a user or movie that the tables lack.
    """
    ids = {name: column.to_numpy() for name, column in tables.ratings.to_dict().items()}
    user = RowIndex(tables.users["user_id"].to_numpy()).rows(ids["user_id"])
    item = RowIndex(tables.movies["item_id"].to_numpy()).rows(ids["item_id"])
    strays = np.count_nonzero((user < 0) | (item < 0))
    if strays:
        raise DataError(
            f"{strays} ratings name a user or movie that the tables lack, "
            "expected none; check that the three files belong together"
        )
    order = time_order(user, ids["timestamp"])
    counts = np.bincount(user, minlength=len(tables.users))
    return SequenceStore(
        item_idx=item[order] + np.int32(FIRST_IDX),
        rating=ids["rating"][order],
        timestamp=ids["timestamp"][order],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        users=tables.users,
        movies=tables.movies,
        manifest={"source": tables.source},
    )


def time_order(user_row: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Order by (user, timestamp, position), (n,) int64."""
    since = timestamp - timestamp.min(initial=2**62)
    if since.max(initial=0) >= 2**32:
        return np.lexsort((timestamp, user_row))
    # one key sorts twice as fast as two
    return np.argsort(user_row.astype(np.int64) * 2**32 + since, kind="stable")


def _json_of(*tables: pl.DataFrame) -> Iterator[bytes]:
    """`write_json` of each table, a block of rows at a time."""
    for table in tables:
        texts = (rows.write_json()[1:-1].encode() for rows in table.iter_slices(2**14))
        yield b"["
        for number, text in enumerate(texts):
            yield b"," + text if number else text
        yield b"]"


class StoreWriter:
    """Writes a store whose columns come in pieces, users in order, oldest rating first.

    A folder with a manifest is complete: the columns stand in temporary files until `finish`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, dict.fromkeys(COLUMNS, 0)
        self.sha256 = {name: hashlib.sha256() for name in COLUMNS}
        self.files = {name: open(self._temporary(f"{name}.npy"), "wb") for name in COLUMNS}
        for file in self.files.values():
            file.write(bytes(HEADER))  # written at the end, when the length is known

    def __enter__(self) -> "StoreWriter":
        return self

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
            self.sha256[name].update(values)
            self.count[name] += len(values)

    def finish(self, users: pl.DataFrame, movies: pl.DataFrame, extra: dict) -> None:
        """Put the files in place, the manifest last; `extra` goes into the manifest."""
        described, tables = {}, {}
        for name, dtype in COLUMNS.items():
            shape = (self.count[name],)
            with naming(self.folder / f"{name}.npy", AS_IT_WAS), self.files[name] as file:
                file.seek(0)
                file.write(_header(dtype, shape))
                sync(file)
            described[name] = {"dtype": str(np.dtype(dtype)), "shape": list(shape),
                               "sha256": self.sha256[name].hexdigest()}
        for name, table in zip(TABLES, (users, movies), strict=True):
            temporary = self._temporary(f"{name}.parquet")
            with naming(self.folder / f"{name}.parquet", AS_IT_WAS), open(temporary, "wb") as file:
                table.write_parquet(file)
                sync(file)
            tables[name] = sha256_of(temporary)
        (self.folder / "manifest.json").unlink(missing_ok=True)  # from here on there is no store
        for name in FILES:
            os.replace(self._temporary(name), self.folder / name)
        manifest = {
            "version": STORE_VERSION, "columns": described, "tables": tables,
            "sort_key": ["user", "timestamp", "source line"], "num_users": len(users),
            "num_items": len(movies), "num_interactions": self.count["item_idx"],
            "digest": self._digest(users, movies), **extra,
        }
        write_sealed(self.folder / "manifest.json", json.dumps(manifest, indent=2).encode())

    def _digest(self, users: pl.DataFrame, movies: pl.DataFrame) -> str:
        """`SequenceStore.digest` of what stands in the folder."""
        first, *others = COLUMNS
        digest = self.sha256[first].copy()
        for name in others:
            with open(self.folder / f"{name}.npy", "rb") as file:
                file.seek(HEADER)
                while block := file.read(BLOCK):
                    digest.update(block)
        for text in _json_of(users, movies):
            digest.update(text)
        return digest.hexdigest()

    def _temporary(self, file: str) -> Path:
        return self.folder / f"{file}.tmp"


def _header(dtype: type, shape: tuple[int]) -> bytes:
    """What `np.save` writes before the values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    if file.tell() != HEADER:
        raise RuntimeError(f"a .npy header of {file.tell()} bytes, expected {HEADER}")
    return file.getvalue()


def save_store(store: SequenceStore, folder: Path) -> None:
    """Write the store; the manifest comes last, so a folder with a manifest is complete."""
    with StoreWriter(folder) as writer:
        writer.append(**{name: getattr(store, name) for name in COLUMNS})
        described = {k: v for k, v in store.manifest.items() if k == "source"}  # all else is new
        writer.finish(store.users, store.movies, described)


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
    try:
        columns = {name: _load_column(folder / f"{name}.npy", manifest["columns"][name])
                   for name in COLUMNS}
        users, movies = (_load_table(folder / f"{name}.parquet", manifest["tables"][name])
                         for name in TABLES)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}/manifest.json: {type(error).__name__} {error}; it is damaged, "
                        "make the store again") from error
    check_table(users, USERS, "users")
    check_table(movies, MOVIES, "movies")
    return SequenceStore(**columns, users=users, movies=movies, manifest=manifest)


def _load_column(path: Path, described: dict) -> np.ndarray:
    """The mapped values of a .npy that is as the manifest describes it."""
    try:
        column = np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as file:
            header = file.read(HEADER)
        found = {"dtype": str(column.dtype), "shape": list(column.shape),
                 "sha256": sha256_of(path, skip=HEADER)}
    except Exception as error:  # numpy raises what its header parser meets
        raise DataError(f"{path}: {str(error).splitlines()[0]}; make the store again") from error
    for name, value in found.items():
        if value != described[name]:
            raise DataError(f"{path}: its {name} is not the manifest's; "
                            "the store is damaged or mixed, make it again")
    if header != _header(column.dtype, column.shape):
        raise DataError(f"{path}: its header is not the one of a column; the store is damaged, "
                        "make it again")
    return column


def _load_table(path: Path, sha256: str) -> pl.DataFrame:
    """The table of a parquet file with this hash."""
    try:
        if sha256_of(path) != sha256:
            raise DataError(f"{path}: its sha256 is not the manifest's; "
                            "the store is damaged or mixed, make it again")
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}; make the store again") from error


def split_interactions(
    store: SequenceStore, *, protocol: str = "temporal", ties: str = "strict", seed: int = 0
) -> Split:
    """Assign every interaction to train, valid or test by the named protocol.

    Args:
        store: sequences.
        protocol: `temporal` cuts all ratings at the 0.8 and 0.9 quantiles of time;
            `leave-last-one` tests on each user's last rating and validates on the one before;
            `random` tests on 10 % of the ratings and validates on 5 %, and only train ratings
            make history; `keras-windows` draws 15 % of windows of 4 with step 2 (leaky);
            `cold-items` is temporal with a tenth of the movies for test and a tenth for valid:
            no rating of them is in train or in a history.
        ties: `strict`: history has timestamps before the target's; `stable`: file order decides.
        seed: of the protocols that draw at random.

    Example:
        >>> store = SequenceStore(item_idx=np.arange(2, 12, dtype=np.int32), users=None, movies=(),
        ...     rating=np.ones(10, np.float32), timestamp=np.arange(10), offsets=np.array([0, 10]))
        >>> split_interactions(store).test
        array([9])
    """
    position = np.arange(len(store))
    first = np.zeros(len(store), dtype=bool)
    first[store.offsets[:-1][np.diff(store.offsets) > 0]] = True
    is_history = np.ones(len(store), dtype=bool)
    rng = np.random.default_rng([seed, 90])
    if protocol == "temporal":
        low, high = np.quantile(store.timestamp, [0.8, 0.9])
        parts = _parts(1 * (store.timestamp > low) + (store.timestamp > high))
    elif protocol == "leave-last-one":
        size = np.diff(store.offsets)[store.user_row]
        from_end = store.offsets[1:][store.user_row] - 1 - position
        parts = _parts(np.where(size < 3, 0, 2 * (from_end == 0) + (from_end == 1)))
    elif protocol == "random":
        draw = rng.permutation(len(store)) / len(store)
        parts = _parts(2 * (draw >= 0.9) + ((draw >= 0.85) & (draw < 0.9)))
        is_history[parts[1]] = is_history[parts[2]] = False
    elif protocol == "cold-items":
        parts, is_cold = _cold_items(store, rng)
        is_history &= ~is_cold
    else:
        targets = _keras_window_ends(store, length=4, step=2)
        draw = rng.random(len(targets))
        parts = targets[draw < 0.8], targets[(draw >= 0.8) & (draw < 0.85)], targets[draw >= 0.85]
    if ties == "strict":
        first[1:] |= store.timestamp[1:] != store.timestamp[:-1]
        history_stop = np.maximum.accumulate(np.where(first, position, 0))
    else:
        history_stop = position
    return Split(protocol, ties, *parts, history_stop=history_stop, is_history=is_history)


def _parts(code: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.flatnonzero(code == part) for part in (0, 1, 2))


def _cold_items(
    store: SequenceStore, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Positions of train, valid and test, and which interactions are of a held-out movie, (n,)."""
    draw = np.empty(store.num_items + FIRST_IDX)
    draw[FIRST_IDX:] = rng.permutation(store.num_items) / store.num_items
    of_test = draw[store.item_idx] >= 0.9
    of_valid = ~of_test & (draw[store.item_idx] >= 0.8)
    low, high = np.quantile(store.timestamp, [0.8, 0.9])
    early, late = store.timestamp <= low, store.timestamp > high
    parts = (early & ~of_test & ~of_valid, of_valid & ~early & ~late, of_test & late)
    return tuple(np.flatnonzero(part) for part in parts), of_test | of_valid


def _keras_window_ends(store: SequenceStore, *, length: int, step: int) -> np.ndarray:
    """Target positions of the Keras example's `create_sequences`, its repeated tails included."""
    position = np.arange(len(store))
    rank = position - store.offsets[:-1][store.user_row]
    regular = position[(rank >= length - 1) & ((rank - length + 1) % step == 0)]
    tails = store.offsets[1:][np.diff(store.offsets) >= length] - 1
    return np.sort(np.concatenate([regular, tails]))


def audit_split(store: SequenceStore, split: Split) -> list[str]:
    """Check the split for leaks; one line for each thing that was checked.

    Raises:
        DataError: names the first leak.
    """
    for name in ("train", "valid", "test"):
        if not len(split.part(name)):
            raise DataError(f"protocol {split.protocol} leaves no {name} ratings of {len(store):,} "
                            f"at {len(np.unique(store.timestamp)):,} different times; expected "
                            "more ratings or times, or choose another --protocol")
    lines, start = [], store.offsets[:-1][store.user_row]
    stop, when = split.history_stop, store.timestamp
    last = np.maximum(stop - 1, start)
    late = when[last] > when if split.ties == "stable" else when[last] >= when
    _refuse(np.flatnonzero((stop > start) & late), "a history reaches past its target's time")
    _refuse(np.flatnonzero((stop < start) | (stop > np.arange(len(store)))),
            "a history holds its own target or another user's rating")
    relation = "before" if split.ties == "strict" else "not after"
    lines.append(f"every history ends {relation} its target's timestamp, without the target")
    ordered = (np.diff(when) >= 0) | (np.diff(store.user_row) > 0)
    _refuse(np.flatnonzero(~ordered), "a user's ratings are out of time order")
    lines.append("every user's ratings are in time order")
    if split.protocol == "keras-windows":
        lines.append("LEAKY by design: test targets stand in train histories, and in train itself")
        return lines
    seen = np.bincount(np.concatenate([split.train, split.valid, split.test]), minlength=len(store))
    sizes = (f"{len(split.train):,} train, {len(split.valid):,} valid, {len(split.test):,} test")
    if split.protocol == "cold-items":
        _refuse(np.flatnonzero(seen > 1), "an interaction is target of two parts")
        lines.append(f"no interaction is target of two parts: {sizes}")
        held_out = np.concatenate([split.valid, split.test])
        cold = np.isin(store.item_idx, store.item_idx[held_out])
        _refuse(np.flatnonzero(cold & split.is_history), "a held-out movie stands in a history")
        _refuse(np.flatnonzero(cold[split.train]), "a held-out movie is a train target")
        lines.append("no held-out movie is a train target or stands in a history")
    else:
        _refuse(np.flatnonzero(seen != 1), "an interaction is target of no part or of two")
        lines.append(f"every interaction is target of one part: {sizes}")
    if split.protocol in ("temporal", "cold-items"):
        ends = [(when[p].min(), when[p].max()) for p in (split.train, split.valid, split.test)]
        if not ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]:
            raise DataError("leak: the parts overlap in time, expected train < valid < test")
        lines.append("all train targets are older than all valid ones, these than all test ones")
    if split.protocol == "random":
        _refuse(np.concatenate([split.valid, split.test])[
            split.is_history[np.concatenate([split.valid, split.test])]],
            "a held-out rating stands in a history")
        lines.append("no valid or test rating stands in a history (but train holds later ones)")
    return lines


def _refuse(positions: np.ndarray, what: str) -> None:
    if len(positions):
        raise DataError(f"leak: {what}, at {len(positions)} positions, the first is {positions[0]}")


def make_windows(store: SequenceStore, *, length: int, step: int = 1) -> pl.DataFrame:
    """Fixed windows as a table: `length - 1` history slots, left-padded, then the target.

    Args:
        store: sequences.
        length: tokens of a window, target included, at least 2.
        step: a user's targets are the 1st, (1 + step)th, ... interaction; none is made up.

    Returns:
        Columns user_id, history (list of item_idx, PAD on the left), history_rating (0 where PAD),
        target, label (stars), timestamp (seconds).
    """
    if length < 2 or step < 1:
        raise ValueError(f"expected length >= 2 and step >= 1, got {length} and {step}")
    flat = pl.DataFrame({
        "user_row": store.user_row,
        "user_id": store.users["user_id"].gather(store.user_row),
        "target": np.asarray(store.item_idx),
        "label": np.asarray(store.rating), "timestamp": np.asarray(store.timestamp),
    })
    lags = range(length - 1, 0, -1)

    def shifted(column: str) -> pl.Expr:
        lagged = [pl.col(column).shift(k, fill_value=PAD).over("user_row") for k in lags]
        return pl.concat_list(lagged)

    return (
        flat.with_columns(
            shifted("target").alias("history"), shifted("label").alias("history_rating"),
            pl.int_range(pl.len()).over("user_row").alias("rank"),
        )
        .filter(pl.col("rank") % step == 0)
        .select("user_id", "history", "history_rating", "target", "label", "timestamp")
    )
