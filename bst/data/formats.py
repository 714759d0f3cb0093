"""Data sets of the family -> the same typed tables; which format a folder, zip or file has.

ml-1m    users.dat, movies.dat, ratings.dat: `bst/data/movielens.py`
ml-100k  u.user, u.item, u.data: latin-1, `|` and tabs. An age in years becomes the code of its
         group in MovieLens-1M; an occupation keeps its name
ml-csv   ratings.csv in UTF-8 with a header, and movies.csv and links.csv if they are there
         (MovieLens 20M, 25M, 32M, latest), or one .csv file of ratings alone. Any scale; users have
         an id and nothing else. Without movies.csv the movies are those of the ratings
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl

from bst.config import Format, OnBad, check_option
from bst.data.movielens import AGES, ML_1M
from bst.data.raw import (
    EARLIEST,
    LATEST,
    BadRows,
    Layout,
    RatingLines,
    fast_ratings,
    movie_table,
    parsed,
    read_layout,
    split_fields,
    table,
    whole,
    year_of,
)
from bst.data.schema import MOVIES, USERS, Tables
from bst.data.sources import RawFiles
from bst.utils.errors import DataError

MARKS = {"ml-1m": "ratings.dat", "ml-100k": "u.data", "ml-csv": "ratings.csv"}
EXPECTED = ("ml-1m (ratings.dat, movies.dat, users.dat), ml-100k (u.data, u.item, u.user) or "
            "ml-csv (ratings.csv, or one .csv file)")
GENRES = ("", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
          "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
          "Thriller", "War", "Western")  # the flags of u.item; the first one is "unknown"
LARGEST = 100  # magnitude of a rating in a CSV file
HEADINGS = {  # accepted names of a column, lower case, without "_" and spaces
    "user": ("user", "userid"), "item": ("item", "itemid", "movie", "movieid"),
    "rating": ("rating", "stars"), "timestamp": ("timestamp", "time"), "title": ("title",),
    "genres": ("genres",), "TMDB id": ("tmdbid",),
}
CHUNK = 2**24  # bytes of ratings.csv from which users are collected at a time


def read_tables(
    source: Path, *, format: Format = "auto", metadata: Path | None = None, on_bad: OnBad = "stop",
    report_dir: Path | None = None,
) -> Tables:
    """Read and validate a data set of any of the formats; see `raw.read_layout`.

    Args:
        source: a folder or zip, or a CSV file of ratings.
        format: how it is written; `auto` goes by the names of its files.
        metadata: as there.
        on_bad: as there.
        report_dir: as there.
    """
    files = RawFiles(source)
    return read_layout(files, layout_of(files, format), metadata=metadata, on_bad=on_bad,
                       report_dir=report_dir)


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
    return {"ml-1m": lambda _: ML_1M, "ml-100k": lambda _: ML_100K, "ml-csv": _csv}[format](files)


def _parse_user(line: str) -> tuple:
    user, years, sex, occupation, zip_code = split_fields(line, "|", 5)
    if sex not in ("F", "M"):
        raise ValueError(f"sex {sex!r} is not F or M")
    if not occupation.strip():
        raise ValueError(f"occupation {occupation!r} is empty")
    return (whole(user, "user", 1, 2**31 - 1), sex, age_code(whole(years, "age", 1, 120)),
            occupation, zip_code[:1] or None)


def age_code(years: int) -> str:
    """MovieLens-1M's code of the age group: the youngest age in it, 1 for under 18.

    Example:
        >>> age_code(17), age_code(18), age_code(73)
        ('1', '18', '56')
    """
    return str(max(int(code) for code in AGES if int(code) <= years))


def _parse_item(line: str) -> tuple:
    item, title, date, _, _, *flags = split_fields(line, "|", 5 + len(GENRES))
    if date and not re.fullmatch(r"[0-9]{2}-[A-Z][a-z]{2}-[0-9]{4}", date):
        raise ValueError(f"release date {date!r} is not like 01-Jan-1995")
    if set(flags) - {"0", "1"}:
        raise ValueError(f"genre flags {'|'.join(flags)!r} are not all 0 or 1")
    genres = "|".join(name for name, flag in zip(GENRES, flags, strict=True) if flag == "1")
    year = year_of(title) or year_of(f"({date[-4:]})")
    return whole(item, "movie", 1, 2**31 - 1), title, year, genres, None, "none"


def _parse_data(line: str) -> tuple:
    user, item, rating, timestamp = split_fields(line, "\t", 4)
    return (whole(user, "user", 1, 2**31 - 1), whole(item, "movie", 1, 2**31 - 1),
            float(whole(rating, "rating", 1, 5)), whole(timestamp, "timestamp", EARLIEST, LATEST))


def _fast_data(content: bytes) -> pl.DataFrame | None:
    columns = {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}
    return _fast(content, "\t", columns, 4, pl.Int32, b"0123456789\t\n")


def _fast(content: bytes, separator: str, columns: dict[str, int], count: int,
          rating: pl.DataType, allowed: bytes) -> pl.DataFrame | None:
    """The ratings by one typed read, or None unless each line has `count` fields that fit.

    A line with more fields is refused by polars, so the total shows that none has fewer.
    """
    rows = content.count(b"\n") + (not content.endswith(b"\n"))
    if content.translate(None, allowed):
        return None
    if content.count(separator.encode()) != (count - 1) * rows:
        return None
    schema = {f"other_{k}": pl.String for k in range(count)}
    names, types = list(schema), list(schema.values())
    dtypes = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": rating, "timestamp": pl.Int64}
    for name, place in columns.items():
        names[place], types[place] = name, dtypes[name]
    try:
        found = pl.read_csv(content, separator=separator, has_header=False, quote_char=None,
                            schema=dict(zip(names, types, strict=True)))
    except pl.exceptions.PolarsError:
        return None
    found = found.select(list(dtypes))
    return found if len(found) == rows and not sum(found.null_count().row(0)) else None


def _read_100k_people(files: RawFiles, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    return (table(files.read("u.user"), "u.user", _parse_user, USERS, bad),
            movie_table(files.read("u.item"), "u.item", _parse_item, bad))


ML_100K = Layout(
    files=("u.user", "u.item", "u.data"),
    ratings=RatingLines("u.data", "user, movie, rating and timestamp between tabs", _parse_data,
                        _fast_data, known_from=("u.user", "u.item")),
    read_people=_read_100k_people,
)


def _csv(files: RawFiles) -> Layout:
    """The layout of CSV files, whose headers say where the columns stand."""
    name = files.source.name if files.is_alone else "ratings.csv"
    wanted = ("user", "item", "rating", "timestamp")
    place, count = _columns(files, name, wanted)

    def parse(line: str) -> tuple:
        fields = _cells(line, count)
        user, item, rating, timestamp = (fields[place[c]] for c in wanted)
        return (whole(user, "user", 0, 2**31 - 1), whole(item, "movie", 0, 2**31 - 1),
                _number(rating), whole(timestamp, "timestamp", EARLIEST, LATEST))

    columns = dict(zip(("user_id", "item_id", "rating", "timestamp"), place.values(), strict=True))
    lines = RatingLines(
        name, "rows of user, movie, rating and timestamp", parse,
        lambda content: _fast(content, ",", columns, count, pl.Float64, b"0123456789.,-\n"),
        scale=(-LARGEST, LARGEST), encoding="utf-8", header=True, known_from=(name, "movies.csv"))
    return Layout(files=("movies.csv", "links.csv", name), ratings=lines,
                  read_people=lambda files, bad: _read_csv_people(files, bad, lines),
                  read_links=_read_links)


def _columns(files: RawFiles, name: str, wanted: tuple[str, ...], optional: tuple[str, ...] = ()
             ) -> tuple[dict[str, int], int]:
    """Place of each wanted column, and how many columns there are."""
    header = next(files.chunks(name, 2**16)).partition(b"\n")[0].decode("utf-8", "replace")
    try:
        titles = [cell.strip() for cell in next(csv.reader([header]), [])]
    except csv.Error as error:
        raise DataError(f"{files.source}: {name}:1: {error}; expected a header") from error
    plain = [re.sub("[_ ]", "", title.lower()) for title in titles]
    place = {}
    for column in wanted + optional:
        found = [k for k, title in enumerate(plain) if title in HEADINGS[column]]
        if len(found) > 1 or (not found and column in wanted):
            listed = ", ".join(titles)[:100]
            raise DataError(f"{files.source}: {name}:1: {len(found) or 'no'} columns for the "
                            f"{column} in the header {listed!r}, expected one, named "
                            f"{' or '.join(HEADINGS[column])}")
        if found:
            place[column] = found[0]
    return place, len(titles)


def _cells(line: str, count: int) -> list[str]:
    """The cells of a line; a quoted cell ends on its line."""
    if "\ufffd" in line:
        raise ValueError("bytes that are not UTF-8")
    if "\0" in line:
        raise ValueError("a NUL byte, expected text")
    try:
        cells = next(csv.reader([line], strict=True), []) if '"' in line else line.split(",")
    except csv.Error as error:
        raise ValueError(f"broken quotes ({error})") from error
    if len(cells) != count:
        raise ValueError(f"{len(cells)} fields, expected {count} separated by ','")
    return [cell.strip() for cell in cells]


def _number(value: str) -> float:
    if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", value):
        raise ValueError(f"rating {value[:40]!r} is not a number")
    if abs(float(value)) > LARGEST:
        raise ValueError(f"rating {value[:40]!r} is not in {-LARGEST}..{LARGEST}")
    return float(value)


def _read_csv_people(
    files: RawFiles, bad: BadRows, lines: RatingLines
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The users of the ratings, by id, and the movies of movies.csv, or of the ratings."""
    users, items, first = pl.Series([], dtype=pl.Int32), pl.Series([], dtype=pl.Int32), 1
    for content in files.chunks(lines.file, CHUNK):
        user, item = _ids(content, first, lines)
        users, items = users.append(user).unique(), items.append(item).unique()
        first += content.count(b"\n")
    users = pl.DataFrame({"user_id": users.sort()})
    users = users.with_columns(pl.lit(None, pl.String).alias(n) for n in USERS if n != "user_id")
    if not files.is_alone and "movies.csv" in files.names():
        return users, _read_csv_movies(files, bad)
    rows = [(item, f"item {item}", None, [], None, "none") for item in items.sort()]
    return users, pl.DataFrame(rows, schema=MOVIES, orient="row")


def _ids(content: bytes, first: int, lines: RatingLines) -> tuple[pl.Series, pl.Series]:
    """Users and items of the lines that are good by themselves."""
    ratings = fast_ratings(content, first, lines)
    if ratings is not None:
        return ratings["user_id"].unique(), ratings["item_id"].unique()
    rows = [row[:2] for _, _, row in parsed(*lines.body(content, first), lines.parse, "utf-8")
            if not isinstance(row, ValueError)]
    user, item = zip(*rows, strict=True) if rows else ((), ())
    return pl.Series(user, dtype=pl.Int32), pl.Series(item, dtype=pl.Int32)


def _read_csv_movies(files: RawFiles, bad: BadRows) -> pl.DataFrame:
    place, count = _columns(files, "movies.csv", ("item", "title"), ("genres",))

    def parse(line: str) -> tuple:
        cells = _cells(line, count)
        item, title = cells[place["item"]], cells[place["title"]]
        genres = cells[place["genres"]] if "genres" in place else ""
        if genres == "(no genres listed)":
            genres = ""
        return whole(item, "movie", 0, 2**31 - 1), title, year_of(title), genres, None, "none"

    return _csv_rows(files, "movies.csv", lambda content, **how: movie_table(
        content, "movies.csv", parse, bad, **how))


def _read_links(files: RawFiles, bad: BadRows) -> dict[int, str]:
    """TMDB id of each movie that links.csv gives one, if there is a links.csv."""
    if files.is_alone or "links.csv" not in files.names():
        return {}
    place, count = _columns(files, "links.csv", ("item", "TMDB id"))

    def parse(line: str) -> tuple:
        cells = _cells(line, count)
        item, tmdb = cells[place["item"]], cells[place["TMDB id"]]
        return (whole(item, "movie", 0, 2**31 - 1),
                str(whole(tmdb, "TMDB id", 0, 2**31 - 1)) if tmdb else None)

    schema = {"item_id": pl.Int32, "tmdb": pl.String}
    links = _csv_rows(files, "links.csv", lambda content, **how: table(
        content, "links.csv", parse, schema, bad, **how))
    return dict(links.drop_nulls().iter_rows())


def _csv_rows(files: RawFiles, name: str, read: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """What `read` makes of the lines below the header."""
    return read(files.read(name).partition(b"\n")[2], first=2, encoding="utf-8")
