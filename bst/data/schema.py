"""Column names and dtypes, the two reserved indices, and what an id is.

What the data call a user or an item is an `*_id`; a contiguous index with `PAD` = 0 and `OOV` = 1
is an `*_idx`. Row r of a table of users or movies has index r + `FIRST_IDX`.

Ids are compared as text, without blanks around: `7`, `007`, `7.0` and `-0` are four, `"10"` and 10
are one. A column of ids is Int64 if each is a whole number as Python writes it, else String.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from bst.utils.errors import DataError

PAD, OOV, FIRST_IDX = 0, 1, 2

RATINGS = {
    "user_id": pl.Int64,  # or String
    "item_id": pl.Int64,  # or String
    "rating": pl.Float32,  # stars
    "timestamp": pl.Int64,  # seconds since 1970 UTC
}
USERS = {
    "user_id": pl.Int64,  # or String
    "sex": pl.String,
    "age": pl.String,  # MovieLens-1M's code of the age group, not years
    "occupation": pl.String,
    "zip_region": pl.String,  # first character of the zip code
}
MOVIES = {
    "item_id": pl.Int64,  # or String
    "title": pl.String,  # as in movies.dat, year included
    "year": pl.Int32,  # null where the title has none
    "genres": pl.List(pl.String),
    "overview": pl.String,  # null where no overview was found
    "match": pl.String,  # how it was found: table, linked, exact, normalised, year off, none
}  # and, if any are asked for, "features": a struct, categories List(String), numbers Float64
USER_FEATURES = ("sex", "age", "occupation", "zip_region")


@dataclass(frozen=True)
class Tables:
    """The typed tables of one data set, rows in file order."""

    users: pl.DataFrame
    movies: pl.DataFrame
    ratings: pl.DataFrame
    source: dict[str, str] = field(default_factory=dict)  # sha256 of each raw file, by name


def rows_of(ids: pl.Series, table: pl.Series) -> pl.Series:
    """Row of each id in a table of different ids, Int32; -1 for an id that it lacks.

    Example:
        >>> rows_of(pl.Series([3, 7]), pl.Series(["b", "7"])).to_list()
        [-1, 1]
    """
    row = pl.int_range(len(table), dtype=pl.Int32, eager=True)
    return ids.cast(pl.String).replace_strict(table.cast(pl.String), row, default=-1,
                                              return_dtype=pl.Int32)


def ids_of(column: pl.Series, is_text: bool = False) -> pl.Series:
    """Ids as Int64 if all are written as whole numbers and are not marked as text, else as String.

    Example:
        >>> [ids_of(pl.Series([a, "12"])).dtype == pl.Int64 for a in ("-7", "07", "-0", "", "7.0")]
        [True, False, False, False, False]
    """
    whole = column.cast(pl.Int64, strict=False)
    is_whole = not is_text and whole.cast(pl.String).eq_missing(column).all()
    return whole if is_whole else column


def id_text(value: int | str) -> str:
    """An id as text, by which ids are compared; a DataError if neither text nor a whole number.

    Example:
        >>> id_text(10) == id_text(" 10 ") != id_text("010")
        True
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"id {value!r} is neither a whole number nor text")
