"""Data sets of the family -> the same typed tables; which format a folder, zip or file has.

ml-1m, ml-100k  `bst/data/movielens.py`
ml-csv          ratings.csv in UTF-8 with a header, and movies.csv and links.csv if they are there
                (MovieLens 20M, 25M, 32M, latest), or one .csv file of ratings alone. Any scale;
                users have an id and nothing else. Without movies.csv the movies are those of the
                ratings
"""

import csv
import re
from pathlib import Path

import polars as pl

from bst.config import Format, OnBad, check_option
from bst.data.movielens import ML_1M, ML_100K
from bst.data.raw import (
    BadRows,
    Layout,
    Lines,
    RatingLines,
    Reading,
    movie_table,
    repeated,
    table,
    whole,
    year_of,
)
from bst.data.schema import MOVIES, RATINGS, USERS, Tables
from bst.data.sources import RawFiles
from bst.utils.errors import DataError

MARKS = {"ml-1m": "ratings.dat", "ml-100k": "u.data", "ml-csv": "ratings.csv"}
EXPECTED = ("ml-1m (ratings.dat, movies.dat, users.dat), ml-100k (u.data, u.item, u.user) or "
            "ml-csv (ratings.csv, or one .csv file)")
LARGEST = 100  # magnitude of a rating in a CSV file
HEADINGS = {  # accepted names of a column, lower case, without "_" and spaces
    "user": ("user", "userid"), "item": ("item", "itemid", "movie", "movieid"),
    "rating": ("rating", "stars"), "timestamp": ("timestamp", "time"), "title": ("title",),
    "genres": ("genres",), "TMDB id": ("tmdbid",),
}


def read_tables(
    source: Path, *, format: Format = "auto", metadata: Path | None = None, on_bad: OnBad = "stop",
    report_dir: Path | None = None,
) -> Tables:
    """Read and validate a data set of any of the formats.

    Args:
        source: a folder or zip, or a CSV file of ratings.
        format: how it is written; `auto` goes by the names of its files.
        metadata: as for `Reading`.
        on_bad: as there.
        report_dir: as there.

    Raises:
        DataError: as there.
    """
    files = RawFiles(source)
    reading = Reading(files, layout_of(files, format), metadata=metadata, on_bad=on_bad,
                      report_dir=report_dir)
    ratings = pl.concat(reading.ratings(), rechunk=True)  # or numpy copies at each look
    user, item = reading.rows(ratings)
    again = repeated(user, item)
    if again.any():
        reading.note_repeats(user[again], item[again])
        ratings = ratings.filter(~again)
    movies = reading.finish(len(ratings))
    return Tables(reading.users, movies, ratings, files.sha256)


def layout_of(files: RawFiles, format: Format = "auto") -> Layout:
    """The layout of a data set.

    Raises:
        DataError: the format is `auto` and no one format fits; names what was found.
    """
    check_option("format", format, Format)
    if format == "auto":
        names = files.names()
        fits = ["ml-csv"] if files.is_alone else [f for f, mark in MARKS.items() if mark in names]
        if len(fits) > 1:
            raise DataError(f"{files.source}: holds {' and '.join(MARKS[f] for f in fits)}, "
                            f"expected one data set; say which with --format {fits[0]} or another")
        if not fits:
            shown = (name if name.isprintable() else ascii(name) for name in sorted(names)[:6])
            found = ", ".join(name[:80] for name in shown) or "no file"
            raise DataError(f"{files.source}: found {found}{', ...' if len(names) > 6 else ''}; "
                            f"expected the files of {EXPECTED}, see data/README.md")
        format = fits[0]
    return _csv(files) if format == "ml-csv" else {"ml-1m": ML_1M, "ml-100k": ML_100K}[format]


def _csv(files: RawFiles) -> Layout:
    """The layout of CSV files, whose headers say where the columns stand."""
    name = files.source.name if files.is_alone else "ratings.csv"
    lines = RatingLines(
        **_columns(files, name, ("user", "item", "rating", "timestamp")),
        known_from=(name, "movies.csv"), first_id=0, scale=(-LARGEST, LARGEST), is_whole=False)
    return Layout(lines, lambda files, bad: _people(files, bad, lines), _links)


def _columns(files: RawFiles, name: str, wanted: tuple[str, ...], optional: tuple[str, ...] = ()
             ) -> dict:
    """Fields of `Lines`: the wanted columns by the header, then the optional ones that it has."""
    header = next(files.chunks(name, 2**16)).partition(b"\n")[0].decode("utf-8", "replace")
    try:
        titles = [cell.strip() for cell in next(csv.reader([header]), [])]
    except csv.Error as error:
        raise DataError(f"{files.source}: {name}:1: {error}; expected a header") from error
    plain = [re.sub("[_ ]", "", title.lower()) for title in titles]
    place = []
    for column in wanted + optional:
        found = [k for k, title in enumerate(plain) if title in HEADINGS[column]]
        if len(found) > 1 or (not found and column in wanted):
            listed = ", ".join(titles)[:100]
            raise DataError(f"{files.source}: {name}:1: {len(found) or 'no'} columns for the "
                            f"{column} in the header {listed!r}, expected one, named "
                            f"{' or '.join(HEADINGS[column])}")
        place += found
    return {"file": name, "separator": ",", "count": len(titles), "place": tuple(place),
            "encoding": "utf-8", "header": True}


def _people(files: RawFiles, bad: BadRows, lines: RatingLines
            ) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The users of the ratings, by id, and the movies of movies.csv, or of the ratings."""
    users, items = pl.Series([], dtype=pl.Int64), pl.Series([], dtype=pl.Int64)
    for content, first in lines.blocks(files):
        ratings = lines.fast(content)
        if ratings is None:
            rows = [row for *_, row in lines.parsed(content, first, lines.parse)]
            ratings = pl.DataFrame(rows, schema=RATINGS, orient="row")
        users = users.append(ratings["user_id"].unique()).unique()
        items = items.append(ratings["item_id"].unique()).unique()
    users = pl.DataFrame({"user_id": users.sort()})
    users = users.with_columns(pl.lit(None, pl.String).alias(n) for n in USERS if n != "user_id")
    if not files.is_alone and "movies.csv" in files.names():
        movies = Lines(**_columns(files, "movies.csv", ("item", "title"), ("genres",)))
        return users, movie_table(files, movies, _movie, bad)
    rows = [(item, f"item {item}", None, [], None, "none") for item in items.sort()]
    return users, pl.DataFrame(rows, schema=MOVIES, orient="row")


def _movie(item: str, title: str, genres: str = "") -> tuple:
    if genres == "(no genres listed)":
        genres = ""
    return whole(item, "movie"), title, year_of(title), genres


def _links(files: RawFiles, bad: BadRows) -> dict[int, str]:
    """TMDB id of each movie that links.csv gives one, if there is a links.csv."""
    if files.is_alone or "links.csv" not in files.names():
        return {}
    links = table(files, Lines(**_columns(files, "links.csv", ("item", "TMDB id"))), _link,
                  {"item_id": pl.Int64, "tmdb": pl.String}, bad)
    return dict(links.drop_nulls().iter_rows())


def _link(item: str, tmdb: str) -> tuple:
    return whole(item, "movie"), str(whole(tmdb, "TMDB id")) if tmdb else None
