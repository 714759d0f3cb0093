"""Raw files -> sequences, against the Keras example's pandas way and a bare polars read."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, alternate, faster


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Raw files -> sequences, against the Keras example's pandas way and a bare polars read.

    Needs pandas, which bst itself does not: pip install pandas==3.1.1
    """

    data: Path | None = None
    """folder of MovieLens-1M; none: 1 M synthetic ratings"""


def run(args: Args) -> list[Row]:
    """Time the reads and the builds."""
    with tempfile.TemporaryDirectory() as scratch:
        out, folder = Path(scratch), args.data
        if folder is None:
            from scripts.support.synthetic import write_synthetic

            folder = write_synthetic(out / "raw", num_users=6040, num_movies=3883,
                                     num_ratings=1_000_000)
        numbers, words = write_ids(folder, out)
        seconds = alternate({
            "read": lambda: our_read(folder),
            "store": lambda: our_store(folder, out / "store"),
            "parts": lambda: our_parts(folder, out / "parts"),
            "bare polars read": lambda: bare_read(folder),
            "Keras example, pandas": lambda: pandas_way(folder, out),
            "whole-number ids": lambda: our_store(numbers, out / "store"),
            "text ids": lambda: our_store(words, out / "store"),
        }, args.runs)
    jobs = (("read and validate", "read", "bare polars read", 1 / 2),
            ("raw files -> store", "store", "bare polars read", 1 / 3),
            ("raw files -> store", "store", "Keras example, pandas", 30.0),
            ("raw files -> store, in parts", "parts", "Keras example, pandas", None),
            ("CSV with ids that are text -> store", "text ids", "whole-number ids", 1 / 2))
    return [faster(work, seconds, ours, reference, threads=args.threads, goal=goal)
            for work, ours, reference, goal in jobs]


def write_ids(folder: Path, out: Path) -> tuple[Path, Path]:
    """The ratings as CSV whose ids are whole numbers, and one whose ids are text like an ASIN."""
    import polars as pl

    from bst.data.formats import read_tables

    ratings = read_tables(folder).ratings
    ratings.write_csv(out / "numbers.csv")
    ratings.with_columns(pl.format("B0{}", pl.col(name).cast(pl.String).str.zfill(8)).alias(name)
                         for name in ("user_id", "item_id")).write_csv(out / "words.csv")
    return out / "numbers.csv", out / "words.csv"


def our_read(folder: Path) -> None:
    """Read, hash and validate."""
    from bst.data.formats import read_tables

    read_tables(folder)


def our_store(folder: Path, out: Path) -> None:
    """Read, hash, validate, sort, write the store."""
    from bst.data.formats import read_tables
    from bst.data.sequences import build_sequences, save_store

    save_store(build_sequences(read_tables(folder)), out)


def our_parts(folder: Path, out: Path) -> None:
    """The same through temporary files, as big files go."""
    from bst.data.preparation import stream_store

    stream_store(folder, out)


def bare_read(folder: Path) -> None:
    """The leanest typed polars read of the three files, without any check; `::` is a skipped field.

    movies.dat alone is not ASCII and has to be decoded.
    """
    import polars as pl

    whole, text = pl.Int32, pl.String
    layouts = {"ratings.dat": [whole] * 4, "movies.dat": [whole, text, text],
               "users.dat": [whole, text, whole, whole, text]}
    for name, dtypes in layouts.items():
        content = (folder / name).read_bytes()
        if name == "movies.dat":
            content = content.decode("latin-1").encode()
        fields = [dtype for dtype in dtypes for _ in range(2)][:-1]
        pl.read_csv(content, separator=":", has_header=False, quote_char=None,
                    truncate_ragged_lines=True, columns=list(range(0, len(fields), 2)),
                    schema={f"column_{k}": dtype for k, dtype in enumerate(fields)})


def pandas_way(folder: Path, out: Path) -> None:
    """What the Keras example does: group, lists, Python windows, joined strings, CSV."""
    import pandas as pd

    names = ["user_id", "movie_id", "rating", "unix_timestamp"]
    ratings = pd.read_csv(folder / "ratings.dat", sep="::", names=names, engine="python",
                          encoding="latin-1")
    groups = ratings.sort_values("unix_timestamp").groupby("user_id")
    users = pd.DataFrame({"user_id": list(groups.groups), **{
        name: list(groups[name].apply(list)) for name in names[1:]}})
    for name in names[1:]:
        users[name] = users[name].apply(windows_of_a_user)
    rows = users[["user_id", "movie_id"]].explode("movie_id", ignore_index=True)
    stars = users[["rating"]].explode("rating", ignore_index=True)
    rows["rating"] = stars["rating"].apply(lambda w: ",".join(str(v) for v in w))
    rows["movie_id"] = rows["movie_id"].apply(lambda w: ",".join(str(v) for v in w))
    rows.to_csv(out / "windows.csv", index=False, sep="|")


def windows_of_a_user(values: list, length: int = 4, step: int = 2) -> list:
    """Windows of `length`, and the last `length` values once more, as the example has it."""
    windows = [values[k:k + length] for k in range(0, len(values) - length + 1, step)]
    return [*windows, values[-length:]]
