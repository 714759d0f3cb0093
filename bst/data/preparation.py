"""Raw files, a store or the built-in data -> SequenceStore; a store of any size in bounded memory.

A big file of ratings is read twice over: its rows go, checked, to temporary files by ranges of
users; then one range after the other is sorted and appended to the store. The folder is byte for
byte the one that `build_sequences` and `save_store` make.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from bst.config import DataConfig
from bst.data.formats import KEY, layout_of, open_reading, read_tables
from bst.data.raw import CHUNK
from bst.data.schema import FIRST_IDX, Tables
from bst.data.sequences import (
    AS_IT_WAS,
    SequenceStore,
    StoreWriter,
    build_sequences,
    load_store,
    save_store,
    time_order,
)
from bst.data.sources import RawFiles
from bst.data.synthetic import write_synthetic
from bst.utils.errors import DataError
from bst.utils.files import naming
from bst.utils.guard import folder_lock, unchanged

BUILTIN = Path("data/builtin")
STREAMED = 2**25  # bytes of the ratings file from which a store is built in parts
PART = 2**24  # bytes of it, on average, that are sorted at a time
ROW = np.dtype([("user_row", np.int32), ("item_row", np.int32), ("rating", np.float32),
                ("timestamp", np.int64), ("line", np.uint32)])


def open_store(
    config: DataConfig, *, report_dir: Path | None = None,
    build: Callable[[Tables], SequenceStore] = build_sequences,
) -> SequenceStore:
    """The sequences of raw files (made by `build`), of a store folder, or of the built-in data."""
    config = _with_files(config)
    if (config.data / "manifest.json").exists():
        return load_store(config.data)
    with unchanged(config.data, config.metadata):
        tables = read_tables(config, report_dir=report_dir)
    return build(tables)


def make_store(config: DataConfig, folder: Path) -> SequenceStore:
    """The same sequences, written to `folder`: in parts if the ratings file is big."""
    config = _with_files(config)
    with folder_lock(folder):
        if not (config.data / "manifest.json").exists():
            files = RawFiles(config.data)
            if files.size(layout_of(files, config).ratings.name) >= STREAMED:
                with unchanged(config.data, config.metadata):
                    stream_store(config, folder)
                return load_store(folder)
        store = open_store(config, report_dir=folder)
        save_store(store, folder)
        return store


def _with_files(config: DataConfig) -> DataConfig:
    """`config` with the folder of the built-in data where it names none."""
    if config.data is not None:
        if config.item_features and (config.data / "manifest.json").exists():
            raise DataError("--item-features beside a store, which has those that it was made "
                            "with; leave it out, or make the store again")
        return config
    if config.metadata is not None or config.format != "auto":
        flag = f"--metadata {config.metadata}" if config.metadata else f"--format {config.format}"
        raise DataError(f"{flag} without --data: give the folder of the ratings with --data")
    print(f"no --data: using the built-in synthetic data in {BUILTIN} (not MovieLens)")
    folder = write_synthetic(BUILTIN)
    return replace(config, data=folder, metadata=folder / "movies_metadata.csv")


def stream_store(
    source: Path | DataConfig, folder: Path, *, chunk_bytes: int = CHUNK, part_bytes: int = PART,
    **options,
) -> None:
    """Raw files -> store on disk; memory does not grow with the ratings.

    It grows with users, items, the ratings of the busiest range of users, and with bad rows if
    `on_bad` is `quarantine`. Until it is done, `folder` holds about as much again.

    Source and options are those of `read_tables`; `folder` also gets its reports. `chunk_bytes` of
    the ratings file are checked, and about `part_bytes` sorted, at a time.

    Raises:
        DataError: as `read_tables`, in the same words; a store in `folder` stays as it was.
    """
    reading = open_reading(source, options, report_dir=folder, chunk_bytes=chunk_bytes,
                           is_small=False)
    size, num_users = reading.files.size(reading.layout.ratings.name), len(reading.users)
    count = max(1, -(-size // part_bytes))
    with _scratch(folder / "parts.tmp") as parts, StoreWriter(folder) as writer:
        for ratings in reading.ratings():
            _share_out(ratings, parts, num_users, count)
        sizes = np.zeros(num_users, dtype=np.int64)
        for part in filter(Path.exists, (parts / str(number) for number in range(count))):
            rows = np.fromfile(part, dtype=ROW)
            part.unlink()
            rows = rows[reading.kept(*(rows[name] for name in KEY))]
            rows = rows[time_order(rows["user_row"], rows["timestamp"])]
            sizes += np.bincount(rows["user_row"], minlength=num_users)
            writer.append(item_idx=rows["item_row"] + np.int32(FIRST_IDX), rating=rows["rating"],
                          timestamp=rows["timestamp"])
        movies = reading.finish(int(sizes.sum()))
        writer.append(offsets=np.concatenate([[0], np.cumsum(sizes)]))
        writer.finish(reading.users, movies, reading.files.sha256)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder that is gone when the block is left."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _share_out(ratings: pl.DataFrame, parts: Path, num_users: int, count: int) -> None:
    """Append each rating to the file of its user's range, of `count` of them, in file order."""
    rows = np.empty(len(ratings), dtype=ROW)
    for name in ROW.names:
        rows[name] = ratings[name].to_numpy()
    part = rows["user_row"].astype(np.int64) * count // max(num_users, 1)
    order = np.argsort(part, kind="stable")
    names, begin = np.unique(part[order], return_index=True)
    for name, piece in zip(names, np.split(rows[order], begin[1:]), strict=False):
        with naming(parts / str(name), AS_IT_WAS), open(parts / str(name), "ab") as file:
            file.write(piece)
