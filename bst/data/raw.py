"""What the readers of all formats share: lines, bad rows, and ratings that are checked by block.

A `Layout` says how one kind of data set is written; `bst/data/movielens.py` and
`bst/data/formats.py` hold them. A row that breaks the format is named by file and line, whatever
the layout.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bst.config import OnBad, check_option
from bst.data.overviews import YEAR, merge_overviews
from bst.data.schema import MOVIES, RATINGS, RowIndex
from bst.data.sources import RawFiles
from bst.utils.errors import DataError
from bst.utils.files import sha256_of

EARLIEST, LATEST = 631_152_000, 2_524_608_000  # 1990 and 2050, seconds since 1970 UTC
LAST_ID = 2**63 - 1
SHOWN = 10  # bad rows that an error lists
CHUNK = 2**24  # bytes of a file that are looked at together


class BadRows:
    """Rows that break the format: all are counted, with `stop` only the first ones kept."""

    def __init__(self, on_bad: OnBad) -> None:
        check_option("on_bad", on_bad, OnBad)
        self.on_bad, self.count, self.rows = on_bad, 0, []

    def add(self, file: str, line: int, reason: str, raw: str) -> None:
        """Note one row: where it stands, what is wrong, and its text."""
        self.count += 1
        if self.on_bad == "quarantine" or len(self.rows) < SHOWN:
            self.rows.append({"file": file, "line": line, "reason": reason, "raw": raw})

    def report(self, folder: Path) -> None:
        """Raise if there are any and `on_bad` is `stop`; else list them in bad_rows.csv."""
        if not self.count:
            return
        files = list(dict.fromkeys(row["file"] for row in self.rows))  # in the order of reading
        rows = sorted(self.rows, key=lambda row: (files.index(row["file"]), row["line"]))
        listed = "; ".join("{file}:{line}: {reason}".format_map(row) for row in rows[:SHOWN])
        if self.on_bad == "stop":
            raise DataError(f"{self.count} bad rows, expected none: {listed}"
                            f"{'; ...' if self.count > SHOWN else ''}; correct them, or leave them "
                            "out with --on-bad quarantine")
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows).write_csv(folder / "bad_rows.csv")
        print(f"left out {self.count} bad rows, listed in {folder / 'bad_rows.csv'}: {listed}")


@dataclass(frozen=True, kw_only=True)
class Lines:
    """How the lines of a file are written."""

    file: str
    separator: str
    count: int  # fields of a line
    place: tuple[int, ...] | None = None  # of the fields that a parser takes, in its order; or all
    encoding: str = "latin-1"
    header: bool = False  # line 1 names the columns

    def blocks(self, files: RawFiles, chunk_bytes: int = CHUNK) -> Iterator[tuple[bytes, int]]:
        """The lines below the header in blocks, and the number of the first line of each."""
        first = 1
        for content in files.chunks(self.file, chunk_bytes):
            is_head = self.header and first == 1
            yield (content.partition(b"\n")[2], 2) if is_head else (content, first)
            first += content.count(b"\n")

    def parsed(
        self, content: bytes, first: int, parse: Callable[..., tuple], bad: BadRows | None = None
    ) -> Iterator[tuple[int, str, tuple]]:
        """Number, text and row of each good line that is not empty.

        Args:
            content: lines.
            first: number of the first one.
            parse: fields -> row, or a ValueError.
            bad: collects the lines that are not good, if given.
        """
        for number, raw in enumerate(content.split(b"\n"), start=first):
            if raw:
                line = raw.decode(self.encoding, errors="replace")
                try:
                    row = parse(*self._fields(line))
                except ValueError as error:
                    if bad is not None:
                        bad.add(self.file, number, str(error), line)
                    continue
                yield number, line, row

    def _fields(self, line: str) -> list[str]:
        """The fields that are read; those between commas may stand in quotes."""
        if "\0" in line:
            raise ValueError("a NUL byte, expected text")
        if "\ufffd" in line:
            raise ValueError("bytes that are not UTF-8")
        is_quoted = self.separator == "," and '"' in line
        try:
            fields = next(csv.reader([line], strict=True)) if is_quoted else \
                line.split(self.separator)
        except csv.Error as error:
            raise ValueError(f"broken quotes ({error})") from error
        if len(fields) != self.count:
            raise ValueError(f"{len(fields)} fields, expected {self.count} separated by "
                             f"{self.separator!r}")
        if self.separator == ",":
            fields = [field.strip() for field in fields]
        return fields if self.place is None else [fields[k] for k in self.place]


@dataclass(frozen=True, kw_only=True)
class RatingLines(Lines):
    """How a ratings file is written: a user, a movie, a rating and a timestamp on each line."""

    place: tuple[int, ...] = (0, 1, 2, 3)
    known_from: tuple[str, str]  # files of the users and the movies
    first_id: int = 1
    scale: tuple[float, float] = (1, 5)  # lowest and highest rating that is taken
    is_whole: bool = True  # ratings are whole numbers

    def parse(self, user: str, item: str, rating: str, timestamp: str) -> tuple:
        """The row, in the columns of `schema.RATINGS`."""
        number = whole if self.is_whole else decimal
        return (whole(user, "user", self.first_id), whole(item, "movie", self.first_id),
                float(number(rating, "rating", *self.scale)),
                whole(timestamp, "timestamp", EARLIEST, LATEST))

    def fast(self, content: bytes) -> pl.DataFrame | None:
        """Columns of `schema.RATINGS` by one typed read, or None unless every line is good.

        Polars splits at one byte: where the separator has two, an empty column stands between
        two fields, so all of them are neighbours. Polars refuses a line with too many columns, so
        the total shows that none has too few.
        """
        one, width = self.separator[0], len(self.separator)
        others = b"" if self.is_whole else b".-"
        if content.translate(None, f"0123456789\n{one}".encode() + others):
            return None
        values = np.frombuffer(content, np.uint8)
        is_mark = values == ord(one)
        marks, pairs, ends = map(np.count_nonzero, (
            is_mark, is_mark[1:] & is_mark[:-1], values == ord("\n")))
        rows = ends + (not content.endswith(b"\n"))
        wanted = (self.count - 1) * rows
        if marks != width * wanted or pairs != (width - 1) * wanted:
            return None
        names = dict(zip((width * k for k in self.place), RATINGS, strict=True))
        columns = (names.get(k, f"other_{k}") for k in range(width * (self.count - 1) + 1))
        schema = dict.fromkeys(columns, pl.String) | RATINGS | {"rating": pl.Float64}
        try:
            found = pl.read_csv(content, separator=one, has_header=False, quote_char=None,
                                schema=schema, columns=list(names))
        except pl.exceptions.PolarsError:
            return None
        ids = (self.first_id, LAST_ID)
        bounds = zip(RATINGS, (ids, ids, self.scale, (EARLIEST, LATEST)), strict=True)
        is_good = len(found) == rows and all(
            not found[name].null_count() and low <= found[name].min() and found[name].max() <= high
            for name, (low, high) in bounds)
        return found.select(*RATINGS).cast(RATINGS) if is_good else None


@dataclass(frozen=True)
class Layout:
    """How one kind of data set is written."""

    ratings: RatingLines
    read_people: Callable[[RawFiles, BadRows], tuple[pl.DataFrame, pl.DataFrame]]  # users, movies
    read_links: Callable[[RawFiles, BadRows], dict[int, str]] = lambda files, bad: {}  # TMDB ids


class Reading:
    """A data set while it is read: users and movies at once, then the ratings by block.

    Args:
        files: the data set.
        layout: how it is written.
        metadata: Kaggle's movies_metadata.csv; without it no movie has an overview.
        on_bad: `stop` raises at bad rows; `quarantine` leaves them out and lists them in
            bad_rows.csv.
        report_dir: folder of bad_rows.csv and unmatched_movies.csv; None: bad_rows.csv goes to
            the current folder, unmatched_movies.csv is not written.
        chunk_bytes: of the ratings file that are looked at together.

    Raises:
        DataError: a file is missing or empty; from `finish`: it has bad rows and `on_bad` is
            `stop`, or no good one.
    """

    def __init__(
        self, files: RawFiles, layout: Layout, *, metadata: Path | None = None,
        on_bad: OnBad = "stop", report_dir: Path | None = None, chunk_bytes: int = CHUNK,
    ) -> None:
        self.files, self.lines, self.bad = files, layout.ratings, BadRows(on_bad)
        self.metadata, self.report_dir, self.chunk_bytes = metadata, report_dir, chunk_bytes
        self.users, self.movies = layout.read_people(files, self.bad)
        self.links = {} if metadata is None else layout.read_links(files, self.bad)
        self.user_index = RowIndex(self.users["user_id"])
        self.movie_index = RowIndex(self.movies["item_id"])

    def ratings(self) -> Iterator[pl.DataFrame]:
        """Good rows by block, columns of `schema.RATINGS`; repeats are not looked for."""
        for content, first in self.lines.blocks(self.files, self.chunk_bytes):
            yield self.check(content, first)

    def check(self, content: bytes, first: int) -> pl.DataFrame:
        """Good rows of some lines, of which `first` is the number of the first one.

        One typed read and vectorised checks; line by line only if something is odd.
        """
        ratings = self.lines.fast(content)
        if ratings is not None and all(rows.min() >= 0 for rows in self.rows(ratings)):
            return ratings
        rows = [row for *_, row in self.lines.parsed(content, first, self._known, self.bad)]
        return pl.DataFrame(rows, schema=RATINGS, orient="row")

    def _known(self, *fields: str) -> tuple:
        """What `RatingLines.parse` gives, of a user and a movie that the data set has."""
        user, item, *_ = row = self.lines.parse(*fields)
        if self.user_index.rows(pl.Series([user]))[0] < 0:
            raise ValueError(f"user {user} is not in {self.lines.known_from[0]}")
        if self.movie_index.rows(pl.Series([item]))[0] < 0:
            raise ValueError(f"movie {item} is not in {self.lines.known_from[1]}")
        return row

    def rows(self, ratings: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Row of the user and of the movie of each rating, (n,) int32; -1 where unknown."""
        return (self.user_index.rows(ratings["user_id"]),
                self.movie_index.rows(ratings["item_id"]))

    def note_repeats(self, user_row: np.ndarray, item_row: np.ndarray) -> None:
        """Add to the bad rows every line but the first of each of these pairs, (m,) and (m,)."""
        pairs = set(zip(self.users["user_id"].gather(user_row),
                        self.movies["item_id"].gather(item_row), strict=True))
        repeats, seen = BadRows(self.bad.on_bad), set()
        for content, first in self.lines.blocks(self.files, self.chunk_bytes):
            for number, line, row in self.lines.parsed(content, first, self.lines.parse):
                pair = row[:2]
                if pair in seen:
                    repeats.add(self.lines.file, number, f"user {pair[0]} rated movie {pair[1]} "
                                "on an earlier line too", line)
                elif pair in pairs:
                    seen.add(pair)
        self.bad.count += repeats.count
        self.bad.rows += repeats.rows  # each the first ones of their kind; `report` sorts them

    def finish(self, num_ratings: int) -> pl.DataFrame:
        """The movies with their overviews, once all ratings are read and the bad rows are told."""
        self.bad.report(Path(self.report_dir or "."))
        if not num_ratings:
            what = "every row is bad" if self.bad.count else "no row"
            raise DataError(f"{self.lines.file}: {what}, expected rows of user, movie, rating and "
                            f"timestamp separated by {self.lines.separator!r}"
                            + "; see bad_rows.csv" * bool(self.bad.count))
        if self.metadata is None:
            return self.movies
        movies = merge_overviews(self.movies, self.metadata, report_dir=self.report_dir,
                                 links=self.links)
        self.files.sha256["movies_metadata.csv"] = sha256_of(self.metadata)
        return movies


def whole(value: str, name: str, low: int = 0, high: int = LAST_ID) -> int:
    """The whole number that `value` writes.

    Raises:
        ValueError: it is none, or not in `low` .. `high`.
    """
    if not (value.isascii() and value.isdigit()) or len(value.lstrip("0")) > 19:
        raise ValueError(f"{name} {value[:40]!r} is not a whole number")
    number = int(value[-19:])
    if not low <= number <= high:
        raise ValueError(f"{name} {value[:40]!r} is not in {low}..{high}")
    return number


def decimal(value: str, name: str, low: float, high: float) -> float:
    """The number that `value` writes without an exponent; errors as in `whole`."""
    if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", value):
        raise ValueError(f"{name} {value[:40]!r} is not a number")
    if not low <= float(value) <= high:
        raise ValueError(f"{name} {value[:40]!r} is not in {low}..{high}")
    return float(value)


def table(
    files: RawFiles, lines: Lines, parse: Callable[..., tuple], schema: dict, bad: BadRows
) -> pl.DataFrame:
    """Good rows of a file with one row per id, which comes first; bad ones go to `bad`."""
    rows: dict[int, tuple] = {}
    for content, first in lines.blocks(files):
        for number, line, row in lines.parsed(content, first, parse, bad):
            if row[0] in rows:
                bad.add(lines.file, number, f"id {row[0]} stands on an earlier line too", line)
            else:
                rows[row[0]] = row
    columns = zip(*rows.values(), strict=True) if rows else [()] * len(schema)
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def movie_table(
    files: RawFiles, lines: Lines, parse: Callable[..., tuple], bad: BadRows
) -> pl.DataFrame:
    """Columns of `schema.MOVIES`.

    `parse` gives id, title, year and genres, whose names have `|` between them.
    """
    found = {name: MOVIES[name] for name in ("item_id", "title", "year")} | {"genres": pl.String}
    movies = table(files, lines, parse, found, bad)
    names = pl.col("genres").str.split("|")  # in one expression: 4 k Python lists are slow
    return movies.with_columns(
        names.list.eval(pl.element().filter(pl.element() != "")),
        overview=pl.lit(None, pl.String), match=pl.lit("none"))


def year_of(title: str) -> int | None:
    """The release year at the end of a title, None if it has no plausible one.

    Example:
        >>> year_of("Matrix, The (1999)"), year_of("Matrix (0000)")
        (1999, None)
    """
    found = YEAR.search(title)
    return int(found[1]) if found and 1870 <= int(found[1]) <= 2100 else None


def repeated(user_row: np.ndarray, item_row: np.ndarray) -> np.ndarray:
    """True where an earlier rating has the same user and movie, (n,) bool."""
    pair = user_row.astype(np.int64) << 32 | item_row
    again = np.zeros(len(pair), dtype=bool)
    if pl.Series(pair).n_unique() < len(pair):  # a count takes half the time of a sort
        again[:] = True
        again[np.unique(pair, return_index=True)[1]] = False
    return again
