"""MovieLens-1M: users.dat, movies.dat and ratings.dat, latin-1, fields separated by `::`."""

from pathlib import Path

import numpy as np
import polars as pl

from bst.config import OnBad
from bst.data.raw import (
    EARLIEST,
    LATEST,
    BadRows,
    Layout,
    RatingLines,
    movie_table,
    read_layout,
    split_fields,
    table,
    whole,
    year_of,
)
from bst.data.schema import USERS, Tables
from bst.data.sources import RawFiles

AGES = {"1", "18", "25", "35", "45", "50", "56"}


def read_movielens(
    source: Path, *, metadata: Path | None = None, on_bad: OnBad = "stop",
    report_dir: Path | None = None,
) -> Tables:
    """Read and validate users.dat, movies.dat and ratings.dat; see `raw.read_layout`.

    Args:
        source: folder with the three files, or a zip such as GroupLens's ml-1m.zip.
        metadata: as there.
        on_bad: as there.
        report_dir: as there.
    """
    return read_layout(RawFiles(source), ML_1M, metadata=metadata, on_bad=on_bad,
                       report_dir=report_dir)


def _parse_user(line: str) -> tuple:
    user, sex, age, occupation, zip_code = split_fields(line, "::", 5)
    if sex not in ("F", "M"):
        raise ValueError(f"sex {sex!r} is not F or M")
    if age not in AGES:
        raise ValueError(f"age {age!r} is not one of the codes {sorted(AGES, key=int)}")
    occupation = str(whole(occupation, "occupation", 0, 20))
    return (whole(user, "user", 1, 2**31 - 1), sex, age, occupation, zip_code[:1] or None)


def _parse_movie(line: str) -> tuple:
    item, title, genres = split_fields(line, "::", 3)
    return whole(item, "movie", 1, 2**31 - 1), title, year_of(title), genres, None, "none"


def _parse_rating(line: str) -> tuple:
    user, item, rating, timestamp = split_fields(line, "::", 4)
    return (whole(user, "user", 1, 2**31 - 1), whole(item, "movie", 1, 2**31 - 1),
            float(whole(rating, "rating", 1, 5)),
            whole(timestamp, "timestamp", EARLIEST, LATEST))


def _read_people(files: RawFiles, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    content = files.read("users.dat")
    users = _fast_users(content)
    if users is None:
        users = table(content, "users.dat", _parse_user, USERS, bad)
    return users, movie_table(files.read("movies.dat"), "movies.dat", _parse_movie, bad)


def _fast_users(content: bytes) -> pl.DataFrame | None:
    """The users by one typed read and vectorised checks, or None unless every row is good."""
    rows = content.count(b"\n") + (not content.endswith(b"\n"))
    if not content.isascii() or b"\r" in content or b"\0" in content:
        return None
    found = _read_fields(content, dict.fromkeys(USERS, pl.String))
    if found is None or len(found) != rows or content.count(b":") != 8 * rows:
        return None
    between = [name for name in found.columns if name not in USERS]
    is_whole = pl.col("user_id", "occupation").str.contains("^[0-9]{1,12}$")
    is_good = pl.all_horizontal(is_whole, pl.col("sex").is_in(["F", "M"]),
                                pl.col("age").is_in(list(AGES)), pl.col(between).is_null())
    if not found.select(is_good.fill_null(False).all()).item():
        return None
    user, work = (found[name].cast(pl.Int64) for name in ("user_id", "occupation"))
    if user.min() < 1 or user.max() >= 2**31 or work.max() > 20 or user.n_unique() < rows:
        return None
    found = found.with_columns(user, work, pl.col("zip_region").str.slice(0, 1))
    return found.select(list(USERS)).cast(USERS)


def _fast_ratings(content: bytes) -> pl.DataFrame | None:
    """The ratings by one typed read, or None unless all rows are `a::b::c::d`, whole numbers.

    The first, third, fifth and seventh field between single colons are read and none is empty, so
    a row has 6 colons or more and at most 3 pairs of neighbours; the totals show that it has 6
    and 3, and nothing else stands there but digits.
    """
    rows, others, colons, pairs = _count_bytes(np.frombuffer(content, np.uint8))
    rows += not content.endswith(b"\n")
    if others or colons != 6 * rows or pairs != 3 * rows:
        return None
    dtypes = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": pl.Int32, "timestamp": pl.Int64}
    found = _read_fields(content, dtypes, columns=[0, 2, 4, 6])
    if found is None or len(found) != rows or sum(found.null_count().row(0)):
        return None
    return found


def _count_bytes(content: np.ndarray) -> tuple[int, int, int, int]:
    """How many line ends, bytes that are no digit, colon or line end, colons, neighbour colons."""
    counts = np.zeros(4, dtype=np.int64)
    for low in range(0, len(content), 2**17):  # blocks that stay in the cache of a core
        block = content[low:low + 2**17 + 1]  # one more, for a pair across the border
        is_colon = block == ord(":")
        pairs = np.count_nonzero(is_colon[1:] & is_colon[:-1])
        block, is_colon = block[:2**17], is_colon[:2**17]
        ends = np.count_nonzero(block == ord("\n"))
        others = np.count_nonzero(block - np.uint8(ord("0")) > 10) - ends  # ":" follows "9"
        counts += ends, others, np.count_nonzero(is_colon), pairs
    return tuple(counts.tolist())


def _read_fields(content: bytes, dtypes: dict, columns: list[int] | None = None
                 ) -> pl.DataFrame | None:
    """Fields between `::`, or None where one has another type.

    The separator is a single colon: the empty fields between are the columns `between_k`.
    """
    schema = {}
    for name, dtype in dtypes.items():
        schema |= {name: dtype, f"between_{name}": pl.String}
    schema.popitem()
    try:
        found = pl.read_csv(content, separator=":", has_header=False, schema=schema,
                            columns=columns, quote_char=None)
        return found.rechunk()  # once here, or numpy copies a column each time it looks at it
    except pl.exceptions.PolarsError:
        return None


ML_1M = Layout(
    files=("users.dat", "movies.dat", "ratings.dat"),
    ratings=RatingLines("ratings.dat", "user::movie::rating::timestamp", _parse_rating,
                        _fast_ratings),
    read_people=_read_people,
)
