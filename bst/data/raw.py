"""What the readers of all formats share: rows as text, the rules that type them, and bad rows.

Whatever a file is written in, `File.blocks` gives its rows as text. `Reading._good_rows` turns them
into stars and times, by one set of rules (`Reading._rules`). A row that breaks a rule is named by
file and line. A `Layout` says how one kind of data set is written.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl
import polars.selectors as cs

from bst.config import DataConfig, OnBad
from bst.data.overviews import merge_overviews
from bst.data.schema import USER_FEATURES, USERS, ids_of, rows_of
from bst.data.sources import RawFiles
from bst.utils.errors import DataError
from bst.utils.files import sha256_of

EARLIEST, LATEST = 631_152_000, 2_524_608_000  # 1990 and 2050, seconds since 1970 UTC
SHOWN = 10  # bad rows that an error lists
CHUNK_BYTES, PARQUET_ROWS = 2**22, 2**18  # of a file, of parquet, that are read together
YEAR = "(18[7-9][0-9]|(?:19|20)[0-9]{2})"  # pattern of a year, 1870 to 2099
ITEM_ROW = dict.fromkeys(("item_id", "title", "genres", "date", "text"), pl.String)  # genres: "a|b"
FEATURE = "feature "  # begins the names of the columns of item features
LARGEST = 10**6  # largest magnitude of a rating
UNKNOWN = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # cells of a feature
NO_GENRE = ["", "(no genres listed)"]
CELLS = ("user", "item", "rating", "timestamp")  # columns of a ratings file


class BadRows:
    """Rows that break the format: all are counted, with `stop` only the first ones kept."""

    def __init__(self, on_bad: OnBad) -> None:
        self.on_bad, self.count, self.rows = on_bad, 0, []

    def add(self, file: str, rows: pl.DataFrame) -> None:
        """Note rows in file order: columns line, reason, raw (its text)."""
        self.count += len(rows)
        kept = rows if self.on_bad == "quarantine" else rows.head(SHOWN)
        self.rows += [{"file": file, **row} for row in
                      kept.select("line", "reason", "raw").iter_rows(named=True)]

    def report(self, folder: Path, hint: str) -> None:
        """Raise if there are any and `on_bad` is `stop`; else list them in bad_rows.csv."""
        if not self.count:
            return
        listed = "; ".join("{file}:{line}: {reason}".format_map(row) for row in self.rows[:SHOWN])
        listed = hint + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in listed)
        if self.on_bad == "stop":
            more = "; ..." if self.count > SHOWN else ""
            raise DataError(f"{self.count} bad rows, expected none: {listed}{more}; correct them, "
                            "or leave them out with --on-bad quarantine")
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(self.rows).write_csv(folder / "bad_rows.csv")
        print(f"left out {self.count} bad rows, listed in {folder}/bad_rows.csv: {listed}")


@dataclass(frozen=True, kw_only=True)
class File:
    """How the rows of a file are written."""

    name: str
    # where each cell that is read stands: a field of a line, from 0, or a key; None: nowhere
    place: dict[str, int | str | None]
    kind: Literal["lines", "json", "parquet"] = "lines"
    separator: str = ","
    count: int = 0  # fields of a line, unless it is JSON
    encoding: str = "utf-8"
    header: bool = False  # line 1 names the columns
    quoted: bool = False  # a cell may stand in quotes, which end on its line
    texts: Set[str] = frozenset()  # keys of what is text by the file's own types

    def blocks(self, files: RawFiles) -> Iterator[pl.DataFrame]:
        """The rows, blank lines left out: line, raw (its text), reason (null: none), and `place`.

        Cells are text without blanks around, "" where there is none.
        """
        if self.kind == "parquet":
            yield from self._parquet(files)
            return
        first = 1
        for content in files.chunks(self.name, CHUNK_BYTES):
            text = pl.DataFrame({"raw": [content.decode(self.encoding, "replace")]})
            lines = text.select(pl.col("raw").str.split("\n").explode().str.strip_chars_end("\r"))
            is_row = (pl.col("raw") != "") & (pl.col("line") > self.header)
            yield self._cells(lines.with_row_index("line", first).filter(is_row))
            first += content.count(b"\n")

    def _cells(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Split the rows into cells; `reason` says what is wrong with a line."""
        raw, fields, size = pl.col("raw"), pl.col("fields"), pl.col("fields").list.len()
        rows = rows.with_columns(
            reason=pl.lit(None, pl.String),
            needs_parser=raw.str.contains('"', literal=True) & self.quoted | (self.kind == "json"),
            fields=raw.str.split(self.separator))
        if rows["needs_parser"].any():
            odd = rows.filter("needs_parser")
            odd = odd.with_columns(pl.DataFrame(
                [*map(self._parsed, odd["raw"])],
                {"reason": pl.String, "fields": pl.List(pl.String)}, orient="row"))
            rows = pl.concat([rows.filter(~pl.col("needs_parser")), odd]).sort("line")
        at = self.place if self.count else dict(zip(self.place, itertools.count()))
        count = self.count or len(at)
        wrong = (
            (raw.str.contains("\0", literal=True), pl.lit("a NUL byte, expected text")),
            (raw.str.contains("\ufffd"), pl.lit("bytes that are not UTF-8")),
            (pl.col("reason").is_not_null(), pl.col("reason")),
            (size != count, pl.format(f"{{}} fields, expected {count} separated by "
                                      f"{self.separator!r}", size)))
        return rows.select(
            "line", "raw", reason=pl.coalesce(pl.when(rule).then(text) for rule, text in wrong),
            **{name: pl.lit("") if k is None else fields.list.get(k, null_on_oob=True).fill_null(
                "").str.strip_chars() for name, k in at.items()})

    def _parsed(self, line: str) -> tuple[str | None, list[str]]:
        """What is wrong with a line of JSON or with quotes, if anything; its cells or fields."""
        try:
            if self.kind == "lines":
                return None, next(csv.reader([line], delimiter=self.separator, strict=True))
            found = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
            values = [found.get(key) for key in self.place.values()]
        except csv.Error as error:
            return f"broken quotes ({error})", []
        except (ValueError, RecursionError, AttributeError):
            return "no JSON object", []
        cells = ["|".join(str(part) for part in value if part is not None)
                 if isinstance(value, list) else value or "" for value in values]
        for name, cell in zip(self.place, cells, strict=True):
            if not isinstance(cell, str) or "\0" in cell:
                return f"{name} is neither a number nor text", []
        return None, cells

    def _parquet(self, files: RawFiles) -> Iterator[pl.DataFrame]:
        """The rows of a parquet file, some at a time; numbers as they would be written."""
        with scan_parquet(files, self.name) as scan:
            scan = scan.select(**{name: pl.lit("") if key is None else pl.col(key)
                                  for name, key in self.place.items()})
            for begin in range(0, scan.select(pl.len()).collect().item(), PARQUET_ROWS):
                part = scan.slice(begin, PARQUET_ROWS).collect().with_columns(
                    (cs.date() | cs.datetime()).dt.epoch("s"),
                    cs.list().cast(pl.List(pl.String)).list.join("|"))
                part = part.select(pl.all().cast(pl.String).fill_null("").str.strip_chars())
                yield part.with_columns(
                    raw=pl.concat_str(pl.all(), separator=","), reason=pl.lit(None, pl.String),
                ).with_row_index("line", begin + 1)


@contextmanager
def scan_parquet(files: RawFiles, name: str) -> Iterator[pl.LazyFrame]:
    """A parquet file; a DataError says that it is none, or damaged."""
    source = files.whole(name)
    try:
        yield pl.scan_parquet(source if isinstance(source, Path) else io.BytesIO(source))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{name}: {str(error).splitlines()[0]}; expected a parquet file") from error


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one kind of data set is written."""

    ratings: File  # with cells `CELLS`; without times, the order of the lines counts
    is_stars: bool = False  # ratings are whole numbers from 1 to 5, else up to `LARGEST`
    users: File | None = None  # none: users are those of the ratings
    movies: File | None = None
    links: File | None = None  # TMDB id of items
    user: Callable[..., tuple]  # cells of a row -> columns of `USERS`
    movie: Callable[..., tuple]  # cells of a row -> columns of `ITEM_ROW`, then features
    features: dict = field(default_factory=dict)  # names and dtypes of features
    hint: str = "give the file alone and say what stands where with --columns 1,2,3,4"  # most bad


class Reading:
    """A data set while it is read. Call in this order: `ratings` to its end, `kept`, `finish`.

    Users or items without a table are those of the ratings, which are then read twice.

    Args:
        files: the data set, written as `layout` says.
        config: on_bad, repeats (the last or first by time, then by line) and metadata.
        report_dir: folder of bad_rows.csv; None: the current one.

    Raises:
        DataError: a file cannot be read; from `finish`: what config does not let pass.
    """

    def __init__(self, files: RawFiles, layout: Layout, config: DataConfig, *,
                 report_dir: Path | None = None) -> None:
        self.files, self.layout, self.config, self.report_dir = files, layout, config, report_dir
        self.bad = BadRows(config.on_bad)
        self.num_again, self.again = 0, []  # what `kept` left out: the count, the first ones
        self.users = layout.users and table(files, layout.users, layout.user, USERS, self.bad)
        self.movies = layout.movies and table(
            files, layout.movies, layout.movie, ITEM_ROW | layout.features, self.bad)
        links = layout.links and dict(table(files, layout.links, _link, {
            "item_id": pl.String, "tmdb": pl.String}, self.bad).cast(pl.String).drop_nulls().rows())
        if self.users is None or self.movies is None:
            self._complete()
        self.movies = movies_of(self.movies)
        if config.metadata is not None:
            self.movies = merge_overviews(self.movies, config.metadata, links=links)
            files.sha256["movies_metadata.csv"] = sha256_of(config.metadata)

    def _complete(self) -> None:
        """Take the users and items that no table gives from the ratings, in order of their ids."""
        file, no_ids = self.layout.ratings, pl.Series([], dtype=pl.String)
        seen = {"user": no_ids, "item": no_ids}
        ignored = BadRows("stop")  # `ratings`, the second reading, reports them
        for rows in self._good_rows(ignored):
            seen = {name: pl.concat([ids, rows[name]]).unique() for name, ids in seen.items()}
        users, items = (
            pl.DataFrame({f"{name}_id": ids_of(ids, file.place[name] in file.texts).sort()})
            for name, ids in seen.items())
        if self.users is None:
            self.users = users.with_columns(
                pl.lit(None, pl.String).alias(name) for name in USER_FEATURES)
        if self.movies is None:
            self.movies = items.with_columns(pl.lit("").alias(name) for name in list(ITEM_ROW)[1:])

    def ratings(self) -> Iterator[pl.DataFrame]:
        """Good rows by block: user_row and item_row (Int32), rating, timestamp, line."""
        for rows in self._good_rows(self.bad):
            yield rows.select("user_row", "item_row", "line", rating="stars", timestamp="seconds")

    def _good_rows(self, bad: BadRows) -> Iterator[pl.DataFrame]:
        """Good rows by block, with stars, seconds and rows of tables; the others go to `bad`."""
        self.total, self.num_milli, file = 0, 0, self.layout.ratings
        for rows in file.blocks(self.files):
            self.total += len(rows)
            if file.place["timestamp"] is None:
                since = pl.col("line").cast(pl.Int64) - 1 - file.header
                rows = rows.with_columns(timestamp=(EARLIEST + since).cast(pl.String))
            if file.place["rating"] is None:
                rows = rows.with_columns(rating=pl.lit("1"))
            rows = rows.with_columns(
                self._seconds(rows["timestamp"]).alias("seconds"),
                *(rows_of(rows[name], known[f"{name}_id"]).alias(f"{name}_row") for name, known in
                  (("user", self.users), ("item", self.movies)) if known is not None),
                stars=pl.col("rating").cast(pl.Float64, strict=False))
            rules = self._rules()
            is_bad = rows.select(pl.any_horizontal(rule.fill_null(True) for rule, _ in rules))[:, 0]
            if is_bad.any():
                reason = pl.coalesce(pl.when(rule).then(reason) for rule, reason in rules)
                bad.add(file.name, rows.filter(is_bad).with_columns(reason=reason))
                rows = rows.filter(~is_bad)
            yield rows.with_columns(pl.col("stars").cast(pl.Float32))

    def _rules(self) -> list[tuple[pl.Expr, pl.Expr]]:
        """What makes a row bad, and the reason to give; the first rule that holds counts."""
        stars, seconds = pl.col("stars"), pl.col("seconds")
        low, high = (1, 5) if self.layout.is_stars else (-LARGEST, LARGEST)
        rules = [
            (pl.col("reason").is_not_null(), pl.col("reason")),
            *((pl.col(name) == "", pl.lit(f"no {name}")) for name in ("user", "item")),
            (stars.is_null() | ~stars.is_finite(), _of("rating", "is not a number")),
            (self.layout.is_stars & (stars != stars.floor()),
             _of("rating", "is not a whole number")),
            (~stars.is_between(low, high), _of("rating", f"is not in {low}..{high}")),
            (seconds.is_null(), _of("timestamp", "is neither seconds since 1970 UTC nor an ISO "
                                    "date")),
            (~seconds.is_between(EARLIEST, LATEST), _of("timestamp", "is not in 1990..2050"))]
        return rules + [
            (pl.col(f"{name}_row") < 0, _of(name, f"is not in {file.name}")) for name, file in
            (("user", self.layout.users), ("item", self.layout.movies)) if file is not None]

    def _seconds(self, column: pl.Series) -> pl.Series:
        """Whole seconds since 1970 UTC; null where the text writes no time."""
        found = column.cast(pl.Int64, strict=False)
        if found.null_count():
            odd = column.filter(found.is_null()).unique()
            found = found.fill_null(column.replace_strict(
                odd, [_time(text) for text in odd], default=None, return_dtype=pl.Int64))
        is_milli = found.is_between(1000 * EARLIEST, 1000 * LATEST).fill_null(False)
        self.num_milli += is_milli.sum()
        return (found // 1000).zip_with(is_milli, found)

    def kept(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """Drop repeated (user, item) ratings of some users; rows stay in file order."""
        pair = pl.col("user_row").cast(pl.Int64) * 2**32 + pl.col("item_row")  # two int32 in one
        if ratings.select(pair.n_unique()).item() == len(ratings):  # 10 times faster than sorting
            return ratings
        is_last = self.config.repeats == "last"
        ratings = ratings.sort("timestamp", maintain_order=True).with_columns(
            is_kept=pair.is_last_distinct() if is_last else pair.is_first_distinct()).sort("line")
        again = ratings.filter(~pl.col("is_kept")).select("line", "user_row", "item_row")
        self.num_again += len(again)
        self.again.append(again.head(SHOWN))
        return ratings.filter("is_kept").drop("is_kept")

    def finish(self, num_ratings: int) -> None:
        """Tell what was odd, once all ratings are read."""
        name, place = self.layout.ratings.name, self.layout.ratings.place
        hint = f"most rows of {name} are bad: {self.layout.hint}; "
        self.bad.report(Path(self.report_dir or "."),
                        hint if 2 * self.bad.count > self.total else "")
        if not num_ratings:
            what, where = ("every row is bad", "; see bad_rows.csv") if self.bad.count else (
                "no row", "")
            raise DataError(f"{name}: {what}, expected rows of {', '.join(CELLS)}{where}")
        if self.num_again:
            self._tell_repeats(name)
        if self.num_milli:
            print(f"{name}: {self.num_milli:,} of {self.total:,} times are in milliseconds")
        if place["timestamp"] is None:
            print(f"{name} has no times: the order of its lines counts")
        if place["rating"] is None:
            print(f"{name} has no ratings: each row counts as a 1, so stars say nothing; train "
                  "with --interest 6 and rank --by interest")

    def _tell_repeats(self, name: str) -> None:
        many = f"{self.num_again:,} ratings of an item that the user has rated already"
        if self.config.repeats != "stop":
            print(f"{name}: {many}; the {self.config.repeats} one counts (--repeats)")
            return
        users, items = self.users["user_id"], self.movies["item_id"]
        more = "; ..." if self.num_again > SHOWN else ""
        listed = "; ".join(
            f"{name}:{line}: user {users[user]}, item {items[item]}"
            for line, user, item in pl.concat(self.again).sort("line").head(SHOWN).iter_rows())
        raise DataError(f"{many}, expected none: {listed}{more}; "
                        "correct them, or take the latest with --repeats last")


def _of(column: str, what: str) -> pl.Expr:
    """The reason that a cell is bad; quotes its beginning."""
    return pl.format(f"{column} '{{}}' {what}", pl.col(column).str.slice(0, 40))


def _time(text: str) -> int | None:
    """Seconds since 1970 UTC of a decimal number or an ISO date, which is UTC if it says nothing.

    Example:
        >>> _time("978307200.5"), _time("2001-01-01T01:00:00+01:00"), _time("01/02/2001")
        (978307200, 978307200, None)
    """
    with suppress(ValueError):
        number = float(text.replace("_", "x"))
        return math.floor(number) if abs(number) < 2**62 else None
    with suppress(ValueError, OverflowError):
        when = datetime.fromisoformat(text)
        return math.floor((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    return None


def whole(value: str, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """The whole number that `value` writes; a ValueError if it is not in `low` .. `high`."""
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise ValueError(f"{name} {value[:40]!r} is not a whole number")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} {value[:40]!r} is not in {low}..{high}")
    return int(value)


def _link(item: str, tmdb: str) -> tuple:
    return item, str(whole(tmdb, "TMDB id")) if tmdb else None


def table(
    files: RawFiles, file: File, parse: Callable[..., tuple], schema: dict, bad: BadRows
) -> pl.DataFrame:
    """Good rows of a file with one row per id, which comes first; bad ones go to `bad`."""
    id_column, id_key = next(iter(schema)), next(iter(file.place.values()))
    rows = {}
    for block in file.blocks(files):
        for line, raw, reason, *cells in block.select(
                "line", "raw", "reason", *file.place).iter_rows():
            try:
                if reason is not None:
                    raise ValueError(reason)
                row = parse(*cells)
                if row[0] in rows or not row[0]:
                    raise ValueError(f"id {row[0]} stands on an earlier line too" if row[0]
                                     else "no id")
                rows[row[0]] = row
            except ValueError as error:
                bad.add(file.name, pl.DataFrame({"line": line, "reason": str(error), "raw": raw}))
    found = pl.DataFrame([*rows.values()], {**schema, id_column: pl.String}, orient="row")
    return found.with_columns(ids_of(found[id_column], id_key in file.texts))


def movies_of(found: pl.DataFrame) -> pl.DataFrame:
    """Columns of `schema.MOVIES` from `ITEM_ROW`; an item without a title is named by its id.

    The year is that at the end of the title, or else that of the date.
    """
    genres, title, text = pl.col("genres").str.split("|"), pl.col("title"), pl.col("text")
    year = pl.coalesce(title.str.extract(rf"\({YEAR}\)\s*$"),
                       *(pl.col("date").str.extract(at) for at in (f"{YEAR}$", rf"^{YEAR}\b")))
    features = [_feature(found[name]) for name in found.columns if name.startswith(FEATURE)]
    return found.select(
        "item_id", pl.when(title != "").then(title).otherwise(pl.format("item {}", "item_id")),
        year=year.cast(pl.Int32),
        genres=genres.list.eval(pl.element().filter(~pl.element().is_in(NO_GENRE))),
        overview=pl.when(text != "").then(text),
        match=pl.when(text != "").then(pl.lit("table")).otherwise(pl.lit("none")),
        **{"features": pl.struct(features)} if features else {})


def _feature(cells: pl.Series) -> pl.Series:
    """Numbers (Float64) if every filled cell is one, else categories (List(String), or [])."""
    name, text = cells.name.removeprefix(FEATURE), cells.replace(UNKNOWN, "").rename("")
    number = text.cast(pl.Float64, strict=False)
    if (number.is_not_null() | (text == "")).all():
        return number.set(~(number.abs() < 1e99), None).rename(name)  # its square has to be finite
    part = pl.element().str.strip_chars()
    return text.str.split("|").list.eval(part.filter(~part.is_in(UNKNOWN))).rename(name)
