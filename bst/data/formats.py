"""Data sets of the family -> the same typed tables; which format a folder, zip or file has.

ml-1m, ml-10m, ml-100k  `bst/data/movielens.py`
table                   one file of ratings, or a folder or zip with it and, if they are there, a
                        table of items, one of users, and links.csv; as CSV (comma, semicolon, tab,
                        bar, `::`), JSON lines or parquet, each as it is or packed with gzip
"""

import csv
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl

from bst.config import DataConfig
from bst.data.movielens import ML_1M, ML_10M, ML_100K
from bst.data.raw import CELLS, FEATURE, File, Layout, Reading, scan_parquet
from bst.data.schema import Tables
from bst.data.sources import RawFiles
from bst.utils.errors import DataError

MOVIELENS = {"ml-1m": ML_1M, "ml-10m": ML_10M, "ml-100k": ML_100K}
EXPECTED = ("ml-1m (ratings.dat, movies.dat, users.dat), ml-10m (the same without users.dat), "
            "ml-100k (u.data, u.item, u.user) or a table (ratings.csv, or one file: .csv, .tsv, "
            ".jsonl, .parquet, .inter, each also .gz)")
RATINGS = "ratings|reviews|interactions"  # names of tables, without their ending
BESIDE = {  # tables beside them: their names, required columns, optional columns
    "movies": ("movies|items|books|products", ("item",), ("title", "genres", "date", "text")),
    "users": ("users", ("user",), ("sex", "age", "occupation", "zip")),
    "links": ("links", ("item", "TMDB id"), ()),
}
NAMES = {  # accepted names of a column, lower case, without "_", "-" and spaces
    "user": "user userid uid username reviewer reviewerid customer customerid member memberid",
    "item": "item itemid iid movie movieid film filmid asin parentasin product productid isbn "
            "book bookid business businessid track trackid song songid game gameid tconst",
    "rating": "rating ratings stars star score overall weight bookrating",
    "timestamp": "timestamp time ts datetime date unixreviewtime unixtimestamp unixtime ratedat",
    "title": "title movietitle name", "genres": "genres genre categories", "TMDB id": "tmdbid",
    "date": "year date releaseyear releasedate publicationyear publicationdate yearofpublication",
    "text": "text overview description summary plot synopsis",
    "sex": "sex gender", "age": "age", "occupation": "occupation", "zip": "zip zipcode",
}
COLUMN_KEYS = (*CELLS, "title", "genres", "text", "date")  # of --columns
ALIASES = {"time": "timestamp", "year": "date"}
NONE = "none"  # for --columns: there are no ratings
HINTS = {
    r"\[": "a JSON array, expected one object per line; convert it with jq -c '.[]'",
    "[0-9]+:$": "the Netflix Prize, expected one rating per line: user,item,rating,date, "
                "read with --columns 1,2,3,4"}
SEPARATORS = ("::", "\t", ";", ",", "|")  # or blanks, where there is none of them


def read_tables(source: Path | DataConfig, *, report_dir: Path | None = None, **options) -> Tables:
    """Read and validate a data set of any of the formats.

    Args:
        source: a folder or zip, or a file of ratings; or a config that says all.
        report_dir: as for `Reading`.
        options: fields of `DataConfig`, instead of a config.

    Raises:
        DataError: as `Reading`; or no one format fits.
    """
    reading = open_reading(source, report_dir, options)
    ratings = reading.kept(pl.concat(reading.ratings(), rechunk=True))  # else to_numpy() copies
    reading.finish(len(ratings))
    return Tables(reading.users, reading.movies, ratings.select(
        user_id=reading.users["user_id"].gather(ratings["user_row"]),
        item_id=reading.movies["item_id"].gather(ratings["item_row"]),
        rating="rating", timestamp="timestamp"), reading.files.sha256)


def open_reading(source: Path | DataConfig, report_dir: Path | None, options: dict) -> Reading:
    """The reading of a data set; source and options as for `read_tables`."""
    config = source if isinstance(source, DataConfig) else DataConfig(data=source, **options)
    files = RawFiles(config.data)
    return Reading(files, layout_of(files, config), config, report_dir=report_dir)


def layout_of(files: RawFiles, config: DataConfig) -> Layout:
    """The layout of a data set; a DataError names what was found if no one format fits."""
    if config.format in MOVIELENS:
        if config.columns or config.item_features:
            raise DataError(f"--columns or --item-features beside --format {config.format}, whose "
                            "columns are known; leave one out")
        return MOVIELENS[config.format]
    names = sorted(files.names())
    marks = {"ratings.dat": "ml-1m" if "users.dat" in names else "ml-10m", "u.data": "ml-100k"}
    tables = names if files.is_alone else _tables(names, RATINGS)
    fits = tables if files.is_alone or config.format == "table" else \
        [name for name in names if name in marks] + tables
    beside = _tables(names, "|".join(stems for stems, *_ in BESIDE.values()))
    fits = fits or [name for name in _tables(names, ".*") if name not in beside]
    shown = (name[:80] if name.isprintable() else ascii(name)[:80] for name in (fits or names)[:6])
    found = (", ".join(shown) or "no file") + (", ..." if len(fits or names) > 6 else "")
    if not fits:
        raise DataError(f"{files.source}: found {found}; expected the files of {EXPECTED}, see "
                        "data/README.md")
    if len(fits) > 1:
        raise DataError(f"{files.source}: holds {found}, expected one data set; say which with "
                        f"--format {marks.get(fits[0], 'table')} or another, or give one file")
    if fits[0] in marks and not files.is_alone:
        return layout_of(files, replace(config, format=marks[fits[0]]))
    return _table(files, names, fits[0], config)


def _tables(names: list[str], stems: str) -> list[str]:
    """The tables whose names are one of these stems and an ending."""
    return [name for name in names if re.fullmatch(
        rf"({stems})\.(csv|tsv|inter|jsonl|ndjson|json|parquet)(\.gz)?", name, re.IGNORECASE)]


def _table(files: RawFiles, names: list[str], ratings: str, config: DataConfig) -> Layout:
    """The layout of a table of ratings, and of those of items and users beside it."""
    told = _parse_columns(config.columns)
    features = {name.strip() for name in (config.item_features or "").split(",")}
    features = sorted(features - {"", "genres", "year"})  # these are features anyhow
    file = _file(files, ratings, ("user", "item", "rating"), ("timestamp",), told)
    beside = {}
    for what, (stems, *cells) in BESIDE.items():
        found = [] if files.is_alone else _tables(names, stems)
        if found and (what != "links" or config.metadata):
            beside[what] = _file(files, found[0], *cells, told,
                                 features if what == "movies" else ())
    if "movies" not in beside and (features or told.keys() - CELLS):
        flag = "--item-features" if features else "--columns"
        raise DataError(f"{flag}: {files.source} holds no table of items beside {ratings}, "
                        "expected one such as items.csv, movies.jsonl or books.parquet")
    return Layout(ratings=file, user=_user, movie=lambda *cells: cells, **beside,
                  features={FEATURE + name: pl.String for name in features})


def _file(files: RawFiles, name: str, wanted: tuple[str, ...], optional: tuple[str, ...],
          told: dict[str, str], features: Sequence[str] = ()) -> File:
    """How a table is written, and where it has the wanted columns, optional ones and features."""
    is_ratings = "rating" in wanted
    places = {told[column] for column in CELLS if column in told} - {NONE}
    by_place = is_ratings and bool(places) and all(map(str.isdecimal, places))
    if re.search(r"\.parquet(\.gz)?$", name, re.IGNORECASE):
        with scan_parquet(files, name) as scan:
            types = scan.collect_schema()
        titles, options = types.names(), {"kind": "parquet", "texts": {
            title for title, dtype in types.items() if dtype == pl.String}}
    else:
        start = next(files.chunks(name, 2**16))
        titles, options = _first_lines(f"{files.source}: {name}", start)
        if "separator" in options:
            options |= {"count": len(titles), "header": not by_place}
    labels = [str(k + 1) for k in range(len(titles))] if by_place else titles
    plain, place = [_plain(title) for title in titles], {}
    for column in (*wanted, *optional, *(FEATURE + feature for feature in features)):
        is_told = by_place or column in told and (
            is_ratings or column in optional or told[column] in titles)
        names = [told.get(column)] if is_told else NAMES.get(column, _plain(column)).split()
        found = [k for k, title in enumerate(labels if is_told else plain) if title in names]
        has_no_ratings = column == "rating" and names == [NONE]
        may_lack_it = column in optional and column not in told
        if has_no_ratings or may_lack_it and not found:
            place[column] = None
            continue
        if len(found) != 1:
            which = ": " + ", ".join(titles[k] for k in found) if found else ""
            is_own = column in wanted + optional  # and no feature
            hint = f"; say which with --columns {column}=NAME" if is_own else ""
            if is_ratings:
                hint += (", or, if line 1 is a row, with --columns 1,2,3,4; a rating may be any "
                         "number, such as a count, and rating=none: there are no ratings")
            raise DataError(
                f"{files.source}: {name}:1: {len(found) or 'no'} columns for the {column}{which} "
                f"in the header {', '.join(titles)[:500]!r}, expected one{hint}")
        place[column] = found[0] if "count" in options else titles[found[0]]
    return File(name=name, place=place, **options)


def _plain(title: str) -> str:
    return re.sub("[-_ ]|:(token|float)(_seq)?$", "", title.removeprefix(FEATURE).lower())


def _parse_columns(columns: str | None) -> dict[str, str]:
    """The name (or the place, from 1) that --columns gives to each column."""
    parts = [part.strip() for part in columns.split(",")] if columns else []
    if all(part.isdecimal() or part == NONE for part in parts) and len(parts) <= 4:
        parts = map("=".join, zip(COLUMN_KEYS, parts, strict=False))
    told = [part.partition("=") for part in parts]
    found = {ALIASES.get(name, name): column for name, _, column in told}
    if len(found) != len(told) or not found.keys() <= {*COLUMN_KEYS} or "" in found.values():
        raise DataError(f"--columns {columns!r}: expected user=...,item=...,rating=...,time=... "
                        "with names or places, or places alone, such as 1,2,3,4; of an item table "
                        "title=...,genres=...,text=...,year=...")
    return found


def _first_lines(where: str, start: bytes) -> tuple[list[str], dict]:
    """The names of columns that the start of a file tells, and fields of `File`."""
    text, *more = start.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    try:
        if text.startswith("{"):
            found = [json.loads(text)]
            for line in more:  # an object may lack what the next one has
                with suppress(ValueError, RecursionError):  # a bad row, named when it is read
                    found.append(json.loads(line))
            pairs = [pair for one in found if isinstance(one, dict) for pair in one.items()]
            texts = {title for title, value in pairs if isinstance(value, str)}
            return list(dict(pairs)), {"kind": "json", "texts": texts}
        plain = re.sub('"[^"]*"', "", text)
        separator = max(filter(plain.count, SEPARATORS), key=plain.count, default=" ")
        quoted = len(separator) == 1
        titles = next(csv.reader([text], delimiter=separator)) if quoted else text.split(separator)
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{where}:1: {error}; expected a header, or a JSON object") from error
    for mark, hint in HINTS.items():
        if re.match(mark, text):
            raise DataError(f"{where} looks like {hint}")
    return [title.strip() for title in titles], {"separator": separator, "quoted": quoted}


def _user(user: str, sex: str, age: str, occupation: str, zip_code: str) -> tuple:
    return user, sex or None, age or None, occupation or None, zip_code[:1] or None
