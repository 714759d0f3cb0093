"""What the readers of all formats share: bad rows, and ratings that are checked by block.

A `Layout` says how one kind of data set is written; `bst/data/movielens.py` and
`bst/data/formats.py` hold them. A row that breaks the format is named by file and line, whatever
the layout.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bst.config import OnBad, check_option
from bst.data.overviews import YEAR, merge_overviews
from bst.data.schema import MOVIES, RATINGS, RowIndex, Tables
from bst.data.sources import RawFiles
from bst.utils.errors import DataError
from bst.utils.files import sha256_of

EARLIEST, LATEST = 631_152_000, 2_524_608_000  # 1990 and 2050, seconds since 1970 UTC
SHOWN = 10  # bad rows that an error lists


@dataclass(frozen=True)
class BadRow:
    """One row that breaks the format."""

    file: str
    line: int
    reason: str
    raw: str


class BadRows:
    """Rows that break the format: all are counted, with `stop` only the first ones kept.

    Args:
        on_bad: `stop` or `quarantine`.
        files: names of the files, in the order in which their rows are listed.
    """

    def __init__(self, on_bad: OnBad, files: tuple[str, ...] = ()) -> None:
        check_option("on_bad", on_bad, OnBad)
        self.on_bad, self.files, self.count, self.rows = on_bad, files, 0, []

    def add(self, *row) -> None:
        """Note the row of these fields of `BadRow`."""
        self.count += 1
        if self.on_bad == "quarantine" or len(self.rows) < SHOWN:
            self.rows.append(BadRow(*row))

    def report(self, folder: Path) -> None:
        """Raise if there are any and `on_bad` is `stop`; else list them in bad_rows.csv."""
        if not self.count:
            return
        rows = sorted(self.rows, key=lambda row: (self.files.index(row.file), row.line))
        listed = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in rows[:SHOWN])
        if self.on_bad == "stop":
            raise DataError(f"{self.count} bad rows, expected none: {listed}"
                            f"{'; ...' if self.count > SHOWN else ''}; correct them, or leave them "
                            "out with --on-bad quarantine")
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([vars(b) for b in rows]).write_csv(folder / "bad_rows.csv")
        print(f"left out {self.count} bad rows, listed in {folder / 'bad_rows.csv'}: {listed}")


@dataclass(frozen=True)
class RatingLines:
    """How a ratings file is written, a rating a line."""

    file: str
    expected: str  # a good line, for messages
    parse: Callable[[str], tuple]  # line -> columns of `schema.RATINGS`, or a ValueError
    fast: Callable[[bytes], pl.DataFrame | None]  # the same of lines that are all good, else None
    scale: tuple[float, float] = (1, 5)  # lowest and highest rating that is taken
    encoding: str = "latin-1"
    header: bool = False  # line 1 names the columns
    known_from: tuple[str, str] = ("users.dat", "movies.dat")  # files of the users and the movies

    def body(self, content: bytes, first: int) -> tuple[bytes, int]:
        """The lines without the header, and the number of the first one."""
        return (content.partition(b"\n")[2], 2) if self.header and first == 1 else (content, first)


@dataclass(frozen=True)
class Layout:
    """How one kind of data set is written."""

    files: tuple[str, ...]  # in the order in which their bad rows are listed
    ratings: RatingLines
    read_people: Callable[[RawFiles, BadRows], tuple[pl.DataFrame, pl.DataFrame]]  # users, movies
    read_links: Callable[[RawFiles, BadRows], dict[int, str]] = lambda files, bad: {}  # TMDB ids


def read_layout(
    files: RawFiles, layout: Layout, *, metadata: Path | None = None, on_bad: OnBad = "stop",
    report_dir: Path | None = None,
) -> Tables:
    """Read and validate the files of a data set.

    Args:
        files: the data set.
        layout: how it is written.
        metadata: Kaggle's movies_metadata.csv; without it no movie has an overview.
        on_bad: `stop` raises at bad rows; `quarantine` leaves them out and lists them in
            bad_rows.csv.
        report_dir: folder of bad_rows.csv and unmatched_movies.csv; None: bad_rows.csv goes to
            the current folder, unmatched_movies.csv is not written.

    Raises:
        DataError: a file is missing or empty, has bad rows and `on_bad` is `stop`, or no good one.
    """
    bad, lines = BadRows(on_bad, layout.files), layout.ratings
    users, movies = layout.read_people(files, bad)
    links = {} if metadata is None else layout.read_links(files, bad)
    known = Known.of(users, movies)
    content = files.read(lines.file)
    ratings = check_ratings(content, 1, known, bad, lines)
    repeats = repeated(*known.rows(ratings))
    if repeats.any():
        pairs = ratings.filter(repeats).select("user_id", "item_id")
        list_repeats([content], bad, set(pairs.iter_rows()), lines)
        ratings = ratings.filter(~repeats)
    bad.report(Path(report_dir or "."))
    refuse_nothing_left(len(ratings), lines, bad)
    movies = with_overviews(movies, metadata, files, report_dir=report_dir, links=links)
    return Tables(users, movies, ratings, files.sha256)


def with_overviews(
    movies: pl.DataFrame, metadata: Path | None, files: RawFiles, *, report_dir: Path | None,
    links: dict[int, str],
) -> pl.DataFrame:
    """`merge_overviews` if there is metadata, whose sha256 joins those of the files."""
    if metadata is None:
        return movies
    movies = merge_overviews(movies, metadata, report_dir=report_dir, links=links)
    files.sha256["movies_metadata.csv"] = sha256_of(metadata)
    return movies


def parsed(
    content: bytes, first: int, parse: Callable[[str], tuple], encoding: str = "latin-1"
) -> Iterator[tuple[int, str, tuple | ValueError]]:
    """Number, text, and what `parse` returned or raised, of each line that is not empty."""
    for number, raw in enumerate(content.split(b"\n"), start=first):
        if raw:
            line = raw.decode(encoding, errors="replace")
            try:
                yield number, line, parse(line)
            except ValueError as error:
                yield number, line, error


def split_fields(line: str, separator: str, count: int) -> list[str]:
    """The fields of a line without quotes.

    Raises:
        ValueError: they are not `count`, or a byte is NUL.
    """
    fields = line.split(separator)
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields, expected {count} separated by {separator!r}")
    if "\0" in line:
        raise ValueError("a NUL byte, expected text")
    return fields


def whole(value: str, name: str, low: int, high: int) -> int:
    """The whole number that `value` writes.

    Raises:
        ValueError: it is none, or not in `low` .. `high`.
    """
    if not (value.isascii() and value.isdigit()) or len(value.lstrip("0")) > 12:
        raise ValueError(f"{name} {value[:40]!r} is not a whole number")
    if not low <= int(value.lstrip("0") or 0) <= high:
        raise ValueError(f"{name} {value[:40]!r} is not in {low}..{high}")
    return int(value.lstrip("0") or 0)


def table(
    content: bytes, name: str, parse: Callable[[str], tuple], schema: dict, bad: BadRows, *,
    first: int = 1, encoding: str = "latin-1",
) -> pl.DataFrame:
    """Good rows of a file with one row per id, which comes first; bad ones go to `bad`."""
    rows: dict[int, tuple] = {}
    for number, line, row in parsed(content, first, parse, encoding):
        if isinstance(row, ValueError):
            bad.add(name, number, str(row), line)
        elif row[0] in rows:
            bad.add(name, number, f"id {row[0]} stands on an earlier line too", line)
        else:
            rows[row[0]] = row
    columns = zip(*rows.values(), strict=True) if rows else [()] * len(schema)
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def movie_table(
    content: bytes, name: str, parse: Callable[[str], tuple], bad: BadRows, *,
    first: int = 1, encoding: str = "latin-1",
) -> pl.DataFrame:
    """Columns of `schema.MOVIES`; `parse` gives genres as names with `|` between them."""
    movies = table(content, name, parse, {**MOVIES, "genres": pl.String}, bad, first=first,
                   encoding=encoding)
    names = pl.col("genres").str.split("|")  # in one expression: 4 k Python lists are slow
    return movies.with_columns(names.list.eval(pl.element().filter(pl.element() != "")))


def year_of(title: str) -> int | None:
    """The release year at the end of a title, None if it has no plausible one.

    Example:
        >>> year_of("Matrix, The (1999)"), year_of("Matrix (0000)")
        (1999, None)
    """
    found = YEAR.search(title)
    return int(found[1]) if found and 1870 <= int(found[1]) <= 2100 else None


@dataclass(frozen=True)
class Known:
    """The users and movies that a rating may name."""

    users: RowIndex
    movies: RowIndex

    @classmethod
    def of(cls, users: pl.DataFrame, movies: pl.DataFrame) -> "Known":
        """Those of the two tables."""
        return cls(RowIndex(users["user_id"].to_numpy()), RowIndex(movies["item_id"].to_numpy()))

    def rows(self, ratings: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Row of the user and of the movie of each rating, (n,) int32; -1 where unknown."""
        return (self.users.rows(ratings["user_id"].to_numpy()),
                self.movies.rows(ratings["item_id"].to_numpy()))


def check_ratings(
    content: bytes, first: int, known: Known, bad: BadRows, lines: RatingLines
) -> pl.DataFrame:
    """Good rows of whole lines of a ratings file; bad ones go to `bad`. Repeats are not looked for.

    One typed read and vectorised checks; line by line only if something is odd.

    Args:
        content: the lines.
        first: number of the first line.
        known: users and movies that a rating may name.
        bad: collects the bad rows.
        lines: how they are written.

    Returns:
        Columns of `schema.RATINGS`, in file order.
    """
    ratings = fast_ratings(content, first, lines)
    if ratings is not None and all(rows.min() >= 0 for rows in known.rows(ratings)):
        return ratings
    rows, origin, found = [], [], []
    for number, line, row in parsed(*lines.body(content, first), lines.parse, lines.encoding):
        if isinstance(row, ValueError):
            found.append((number, str(row), line))
        else:
            rows.append(row)
            origin.append((number, line))
    ratings = pl.DataFrame(rows, schema=RATINGS, orient="row")
    user, item = known.rows(ratings)
    for k in np.flatnonzero((user < 0) | (item < 0)):
        number, line = origin[k]
        what = f"user {rows[k][0]} is not in {lines.known_from[0]}" if user[k] < 0 else \
            f"movie {rows[k][1]} is not in {lines.known_from[1]}"
        found.append((number, what, line))
    for number, reason, line in sorted(found):
        bad.add(lines.file, number, reason, line)
    return ratings.filter((user >= 0) & (item >= 0))


def fast_ratings(content: bytes, first: int, lines: RatingLines) -> pl.DataFrame | None:
    """Columns of `schema.RATINGS` by one typed read, or None unless every line is good."""
    ratings = lines.fast(lines.body(content, first)[0])
    if ratings is None:
        return None
    least, most = (dict(zip(ratings.columns, row, strict=True))
                   for row in (ratings.min().row(0), ratings.max().row(0)))
    low, high = lines.scale
    in_range = (low <= least["rating"] <= most["rating"] <= high and least["user_id"] >= 0
                and least["item_id"] >= 0
                and EARLIEST <= least["timestamp"] <= most["timestamp"] <= LATEST)
    return ratings.with_columns(pl.col("rating").cast(pl.Float32)) if in_range else None


def repeated(user_row: np.ndarray, item_row: np.ndarray) -> np.ndarray:
    """True where an earlier rating has the same user and movie, (n,) bool."""
    again = np.zeros(len(user_row), dtype=bool)
    if len(user_row) and not _all_differ(user_row, item_row):
        pair = user_row.astype(np.int64) << 32 | item_row
        again[:] = True
        again[np.unique(pair, return_index=True)[1]] = False
    return again


def _all_differ(user_row: np.ndarray, item_row: np.ndarray, cells: int = 2**21) -> bool:
    """True if no (user, movie) comes twice; n > 0."""
    width = int(item_row.max()) + 1
    users = cells // width  # of a block; a table of cells that fits the cache beats a sort
    if users < 2 or (np.diff(user_row) < 0).any():
        pair = np.sort(user_row.astype(np.int64) << 32 | item_row)
        return bool((pair[1:] != pair[:-1]).all())
    borders = np.append(np.arange(user_row[0], user_row[-1] + 1, users), user_row[-1] + 1)
    ends = np.searchsorted(user_row, borders)
    rated = np.empty(users * width, dtype=bool)
    for first, low, high in zip(borders, ends, ends[1:], strict=False):
        rated[:] = False
        rated[(user_row[low:high] - first).astype(np.int64) * width + item_row[low:high]] = True
        if np.count_nonzero(rated) != high - low:
            return False
    return True


def list_repeats(
    chunks: Iterable[bytes], bad: BadRows, pairs: set[tuple[int, int]], lines: RatingLines
) -> None:
    """Add to `bad` every line but the first of each of the (user_id, item_id) `pairs`.

    Args:
        chunks: the lines of the file, in order.
        bad: collects the rows.
        pairs: of known users and movies; a line with a defect of its own is no line of a pair.
        lines: how they are written.
    """
    repeats, first, seen = BadRows(bad.on_bad), 1, set()
    for content in chunks:
        for number, line, row in parsed(*lines.body(content, first), lines.parse, lines.encoding):
            if isinstance(row, ValueError):
                continue
            pair = row[:2]
            if pair in seen:
                repeats.add(lines.file, number, f"user {pair[0]} rated movie {pair[1]} on an "
                            "earlier line too", line)
            elif pair in pairs:
                seen.add(pair)
        first += content.count(b"\n")
    bad.count += repeats.count
    bad.rows += repeats.rows  # each the first ones of their kind; `report` sorts them by line


def refuse_nothing_left(num_ratings: int, lines: RatingLines, bad: BadRows) -> None:
    """Raise a DataError if there is no good rating."""
    if not num_ratings:
        what = "every row is bad" if bad.count else "no row"
        raise DataError(f"{lines.file}: {what}, expected {lines.expected}"
                        + ("; see bad_rows.csv" if bad.count else ""))
