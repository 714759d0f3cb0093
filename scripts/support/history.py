"""Somebody's ratings in a text file -> a history; what --history of recommend.py reads."""

import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bst.data.overviews import title_keys
from bst.recommend.catalogue import Catalogue
from bst.recommend.person import Interaction
from bst.recommend.recommender import Recommender
from bst.utils.errors import DataError
from scripts.support.titles import UnknownItemError, find_item, is_called

COLUMNS = {  # names of each, lower case, letters alone; where a file has several, the first counts
    "movie_id": ("movieid", "itemid", "filmid", "movie", "item"),
    "title": ("title", "name", "movietitle", "film"),
    "year": ("year", "releaseyear"),
    "stars": ("yourrating", "stars", "rating", "score"),
    "time": ("watcheddate", "daterated", "timestamp", "time", "date"),
}
TOPS = {"letterboxduri": 5, "const": 10}  # columns that only one site exports, and its best rating
SHOWN = 10  # items that an error lists
NEAR = 50  # items that are not found, up to which those spelt almost so are looked for


def read_history(
    path: Path, recommender: Recommender, *, skip_unknown: bool = False
) -> tuple[list[Interaction], list[str]]:
    """The ratings of a file with a header, and what was done to them, one line each.

    Columns, in any case: title or movie_id (both must fit), or title and year; stars; and, if
    wanted, time: seconds or milliseconds since 1970 UTC or an ISO date. `COLUMNS` has their other
    names; more columns are left alone. They stand between commas, semicolons or tabs, in UTF-8,
    UTF-16 or latin-1. So the exports of MovieLens, Letterboxd and IMDb can be read; stars of the
    latter two are turned to the scale of the model. Rows without stars are left out.

    Args:
        path: the file.
        recommender: knows the items and the scale.
        skip_unknown: leave out items that are not found, and list them, instead of an error.

    Raises:
        DataError: names the file, the line and what is wrong.
    """
    header, rows = _rows(path)
    place = {name: header.index(known[0]) for name, names in COLUMNS.items()
             if (known := [one for one in names if one in header])}
    if "stars" not in place or not place.keys() & {"title", "movie_id"}:
        raise DataError(f"{path}:1: columns {', '.join(filter(None, header))[:100] or 'none'}, "
                        "expected title or movie_id, stars, and time if known")
    best = recommender.model.levels[-1].item()
    top = next((top for column, top in TOPS.items() if column in header), best)
    events, notes, unknown, unrated = [], [], [], 0
    for line, row in rows:
        where = f"{path}:{line}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} fields, expected {len(header)} as in line 1; put "
                            "titles with a comma in quotes")
        cell = {name: row[k].strip() for name, k in place.items()}
        try:
            if cell["stars"]:
                stars = _number(cell, "stars") * best / top
                movie = _movie(cell, recommender.catalogue, where, notes,
                               near=3 if len(unknown) < NEAR else 0)
                events.append(Interaction(movie, stars, _time(cell.get("time")), where))
            unrated += not cell["stars"]
        except UnknownItemError as error:
            unknown.append(f"{where}: {error}")
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    count = f"{len(unknown)} of {len(events) + len(unknown)} items are not found"
    if unknown and not (skip_unknown and events):
        more = "; ..." if len(unknown) > SHOWN else ""
        hint = "; correct them, or leave them out with --skip-unknown" if events else ""
        raise DataError(f"{count}: {'; '.join(unknown[:SHOWN])}{more}{hint}")
    if top != best:
        notes.append(f"stars out of {top:g} count as stars out of {best:g}")
    if unrated:
        notes.append(f"{unrated} rows without stars are left out")
    if unknown:
        notes += [f"{count} and left out:", *unknown]
    return events, notes


def _rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, letters alone, and each row that is not empty, with its line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"--history {path}: {error.strerror}, expected a CSV file") from error
    text = content.decode(_encoding(content))
    if "\0" in text:
        raise DataError(f"--history {path} is no text, expected a CSV file; unpack it if it is a "
                        "zip")
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    header = [re.sub("[^a-z]", "", name.lower()) for name in next(reader, [])]

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if any(row):
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num + 1}: {error}, expected a CSV file") \
                from error

    return header, rows()


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _movie(cell: dict[str, str], catalogue: Catalogue, where: str, notes: list[str], *, near: int
           ) -> int | str:
    """Id of the item of one row; if it is called otherwise, that is noted."""
    title, stated = cell.get("title", ""), cell.get("year", "")
    if stated and not re.match("[0-9]{4}", stated, re.ASCII):
        raise DataError(f"year '{stated}' is no year, expected one like 1994")
    year = int(stated[:4]) if stated else None
    if cell.get("movie_id"):
        try:
            movie, name = catalogue.name(catalogue.items([cell["movie_id"]])[0])
        except DataError as error:
            raise UnknownItemError(str(error)) from error
        if title and not is_called(catalogue, movie, title, year):
            raise DataError(f"movie {movie} is '{name}', not '{title}'"
                            f"{f' of {year}' if year else ''}; correct one, or leave it out")
    else:
        movie = find_item(catalogue, title, year, near=near)
        _, name = catalogue.name(catalogue.items([movie])[0])
        if not set(title_keys(title)) & set(title_keys(name)):
            notes.append(f"{where}: '{title}' counts as '{name}'")
    return movie


def _number(cell: dict[str, str], name: str) -> float:
    try:
        return float(cell[name].replace(",", "."))
    except ValueError:
        raise DataError(f"{name} '{cell[name]}' is not a number") from None


def _time(text: str | None) -> float | None:
    """Seconds or milliseconds since 1970 UTC; a date without a time zone is UTC."""
    if not text:
        return None
    if re.fullmatch(r"[0-9]{9,18}(\.0*)?", text):
        return int(text.partition(".")[0])
    try:
        when = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        raise DataError(f"time '{text}' is neither seconds since 1970 nor an ISO date like "
                        "2024-01-31") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
