"""Raw files or a store -> SequenceStore; a store of any size in bounded memory.

A store is made in two passes: checked rows go to temporary files by ranges of users; then one range
after the other is sorted and appended to the store. The folder is byte for byte the one that
`build_sequences` and `save_store` make.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from bst.config import OF_RAW, DataConfig
from bst.data.formats import open_reading, read_tables
from bst.data.schema import FIRST_IDX, Tables
from bst.data.sequences import SequenceStore, StoreWriter, build_sequences, load_store, save_store
from bst.utils.errors import DataError
from bst.utils.guard import folder_lock, unchanged

PART = 2**24  # bytes of the ratings file, on average, that are sorted at a time
ROW = np.dtype([("user_row", np.int32), ("item_row", np.int32), ("rating", np.float32),
                ("timestamp", np.int64), ("line", np.uint32)])


def open_store(
    config: DataConfig, *, report_dir: Path | None = None,
    build: Callable[[Tables], SequenceStore] = build_sequences,
) -> SequenceStore:
    """The sequences of raw files (made by `build`), or of a store folder."""
    _check(config)
    if config.is_store:
        return load_store(config.data)
    with unchanged(config.data, config.metadata):
        tables = read_tables(config, report_dir=report_dir)
    return build(tables)


def make_store(config: DataConfig, folder: Path) -> SequenceStore:
    """The same sequences, written to `folder`; memory does not grow with the ratings."""
    _check(config)
    with folder_lock(folder):
        if config.is_store:
            save_store(load_store(config.data), folder)
        else:
            with unchanged(config.data, config.metadata):
                stream_store(config, folder)
        return load_store(folder)


def _check(config: DataConfig) -> None:
    """Refuse a config without data, or one that asks of a store what only raw files have."""
    if config.data is None:
        raise DataError("no data; give a data set, a file of ratings or a store with --data")
    given = [f"--{name.replace('_', '-')}" for name in OF_RAW
             if getattr(config, name) != getattr(DataConfig, name)]
    if given and config.is_store:
        raise DataError(f"{', '.join(given)} beside the store {config.data}, which stays as it was "
                        "made; leave it out, or make the store again with it")


def stream_store(source: Path | DataConfig, folder: Path, **options) -> None:
    """Raw files -> store on disk; memory does not grow with the ratings.

    It grows with users, items, the ratings of the busiest range of users, and with bad rows if
    `on_bad` is `quarantine`. Needs about twice the store's disk space while running.

    Source, options and errors are those of `read_tables`; `folder` also gets its reports. After an
    error a store in `folder` is as it was.
    """
    reading = open_reading(source, folder, options)
    num_users = len(reading.users)
    count = 1 + reading.files.size(reading.layout.ratings.name) // PART
    user_range = pl.col("user_row").cast(pl.Int64) * count // num_users
    with StoreWriter(folder) as writer:
        for ratings in reading.ratings():
            by_range = ratings.select(*ROW.names, user_range=user_range).partition_by(
                "user_range", include_key=False, as_dict=True)
            for (number,), rows in by_range.items():
                with writer.writing(str(number), "ab") as file:
                    file.write(rows.to_numpy(structured=True))
        sizes = np.zeros(num_users, dtype=np.int64)
        for path in filter(Path.exists, (writer.scratch / str(k) for k in range(count))):
            rows = reading.kept(pl.DataFrame(np.fromfile(path, dtype=ROW)))
            path.unlink()
            rows = rows.sort("user_row", "timestamp", maintain_order=True)
            sizes += np.bincount(rows["user_row"], minlength=num_users)
            writer.append(item_idx=rows["item_row"].to_numpy() + np.int32(FIRST_IDX),
                          rating=rows["rating"], timestamp=rows["timestamp"])
        reading.finish(int(sizes.sum()))
        writer.append(offsets=np.concatenate([[0], np.cumsum(sizes)]))
        writer.finish(reading.users, reading.movies, reading.files.sha256)
