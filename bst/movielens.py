"""Raw MovieLens-1M files -> typed tables; overviews merged by title and release year.

The only module that knows MovieLens. Files are latin-1, fields are separated by `::`.
"""

import csv
import hashlib
import io
import re
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from bst.schema import MOVIES, RATINGS, USERS, DataError, RowIndex, Tables

FILES = ("users.dat", "movies.dat", "ratings.dat")
EARLIEST, LATEST = 631_152_000, 2_524_608_000  # 1990 and 2050, seconds since 1970 UTC
SHOWN = 10  # bad rows that an error lists
AGES = {"1", "18", "25", "35", "45", "50", "56"}
YEAR = re.compile(r"\((\d{4})\)\s*$")
ARTICLE = re.compile(
    r"^(.*), (The|A|An|Le|La|Les|L'|Il|Lo|I|El|Los|Las|Der|Die|Das|Det|Den|En|Et)$", re.IGNORECASE
)
csv.field_size_limit(2**24)


@dataclass(frozen=True)
class BadRow:
    """One row that breaks the format."""

    file: str
    line: int
    reason: str
    raw: str


class BadRows:
    """Rows that break the format: all are counted, with `stop` only the first ones kept."""

    def __init__(self, on_bad: str) -> None:
        self.on_bad, self.count, self.rows = on_bad, 0, []

    def add(self, *row) -> None:
        """Note the row of these fields of `BadRow`."""
        self.count += 1
        if self.on_bad == "quarantine" or len(self.rows) < SHOWN:
            self.rows.append(BadRow(*row))

    def report(self, folder: Path) -> None:
        """Raise if there are any and `on_bad` is `stop`; else list them in bad_rows.csv."""
        if not self.count:
            return
        rows = sorted(self.rows, key=lambda row: (FILES.index(row.file), row.line))
        listed = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in rows[:SHOWN])
        if self.on_bad == "stop":
            raise DataError(f"{self.count} bad rows, expected none: {listed}"
                            f"{'; ...' if self.count > SHOWN else ''}; correct them, or leave them "
                            "out with --on-bad quarantine")
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([vars(b) for b in rows]).write_csv(folder / "bad_rows.csv")
        print(f"left out {self.count} bad rows, listed in {folder / 'bad_rows.csv'}: {listed}")


class RawFiles:
    """The files of a folder or zip, without BOM and carriage returns, hashed while they are read.

    `sha256` holds the hash of each file that was read to its end.
    """

    def __init__(self, source: Path) -> None:
        self.source, self.sha256 = source, {}

    def size(self, name: str) -> int:
        """Bytes of the file, unpacked."""
        with self._opened(name) as (_, size):
            return size

    def read(self, name: str) -> bytes:
        """The whole file."""
        return b"".join(self.chunks(name, self.size(name) + 1))

    def chunks(self, name: str, chunk_bytes: int) -> Iterator[bytes]:
        """The file in blocks of whole lines, each of about `chunk_bytes`.

        Raises:
            DataError: the file is missing, damaged or empty, or a line is longer than a block.
        """
        digest, is_blank = hashlib.sha256(), True
        with self._opened(name) as (file, _):
            for number, lines in enumerate(_whole_lines(file, name, chunk_bytes)):
                if number == 0:
                    lines = lines.removeprefix(b"\xef\xbb\xbf")
                if b"\r" in lines:
                    lines = lines.replace(b"\r\n", b"\n")
                digest.update(lines)
                is_blank = is_blank and (not lines or lines.isspace())
                yield lines
        if is_blank:
            raise DataError(f"{self.source}: {name} is empty, expected rows separated by '::'")
        self.sha256[name] = digest.hexdigest()

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """The open file and its size."""
        try:
            if self.source.is_dir():
                with open(self.source / name, "rb", buffering=0) as file:
                    yield file, (self.source / name).stat().st_size
                return
            with zipfile.ZipFile(self.source) as archive:
                member = next((m for m in archive.infolist() if m.filename.split("/")[-1] == name),
                              None)
                if member is None:
                    raise DataError(f"{self.source}: no {name} in the zip, expected MovieLens-1M")
                with archive.open(member) as file:
                    yield file, member.file_size
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.source}: cannot read {name} ({error}); expected a folder or zip with "
                "users.dat, movies.dat and ratings.dat, see data/README.md") from error


def _whole_lines(file: IO[bytes], name: str, chunk_bytes: int) -> Iterator[bytes]:
    rest = b""
    while block := file.read(chunk_bytes):
        end = block.rfind(b"\n") + 1
        if not end and len(rest) > chunk_bytes:
            raise DataError(f"{name}: a line of more than {chunk_bytes:,} bytes, expected rows "
                            "separated by '::'")
        if end:
            yield rest + block[:end]
            rest = b""
        rest += block[end:]
    if rest:
        yield rest


def read_movielens(
    source: Path, *, metadata: Path | None = None, on_bad: str = "stop",
    report_dir: Path | None = None,
) -> Tables:
    """Read and validate users.dat, movies.dat and ratings.dat.

    Args:
        source: folder with the three files, or a zip such as GroupLens's ml-1m.zip.
        metadata: Kaggle's movies_metadata.csv; without it no movie has an overview.
        on_bad: `stop` raises at bad rows; `quarantine` leaves them out and lists them in
            bad_rows.csv.
        report_dir: folder of bad_rows.csv and unmatched_movies.csv; None: bad_rows.csv goes to
            the current folder, unmatched_movies.csv is not written.

    Raises:
        DataError: a file is missing or empty, has bad rows and `on_bad` is `stop`, or no good one.
    """
    files, bad = RawFiles(source), BadRows(on_bad)
    users, movies = read_users(files, bad), read_movies(files, bad)
    known = Known.of(users, movies)
    content = files.read("ratings.dat")
    ratings = check_ratings(content, 1, known, bad)
    repeats = repeated(*known.rows(ratings))
    if repeats.any():
        pairs = ratings.filter(repeats).select("user_id", "item_id")
        list_repeats([content], bad, set(pairs.iter_rows()))
        ratings = ratings.filter(~repeats)
    bad.report(Path(report_dir or "."))
    refuse_nothing_left(len(ratings))
    if metadata is not None:
        movies = merge_overviews(movies, metadata, report_dir=report_dir)
        files.sha256["movies_metadata.csv"] = hashlib.sha256(metadata.read_bytes()).hexdigest()
    return Tables(users, movies, ratings, files.sha256)


def _lines(content: bytes, first: int = 1) -> Iterator[tuple[int, str]]:
    """Line number and text of each line that is not empty."""
    for number, line in enumerate(content.decode("latin-1").split("\n"), start=first):
        if line:
            yield number, line


def _fields(line: str, count: int) -> list[str]:
    fields = line.split("::")
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields, expected {count} separated by '::'")
    if "\0" in line:
        raise ValueError("a NUL byte, expected text")
    return fields


def _whole(value: str, name: str, low: int, high: int) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 12:
        raise ValueError(f"{name} {value!r} is not a whole number")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} {value!r} is not in {low}..{high}")
    return int(value)


def _parse_user(line: str) -> tuple:
    user, sex, age, occupation, zip_code = _fields(line, 5)
    if sex not in ("F", "M"):
        raise ValueError(f"sex {sex!r} is not F or M")
    if age not in AGES:
        raise ValueError(f"age {age!r} is not one of the codes {sorted(AGES, key=int)}")
    occupation = str(_whole(occupation, "occupation", 0, 20))
    return (_whole(user, "user", 1, 2**31 - 1), sex, age, occupation, zip_code[:1] or None)


def _parse_movie(line: str) -> tuple:
    item, title, genres = _fields(line, 3)
    year = YEAR.search(title)
    return (_whole(item, "movie", 1, 2**31 - 1), title, int(year[1]) if year else None,
            genres, None, "none")


def _parse_rating(line: str) -> tuple:
    user, item, rating, timestamp = _fields(line, 4)
    return (_whole(user, "user", 1, 2**31 - 1), _whole(item, "movie", 1, 2**31 - 1),
            float(_whole(rating, "rating", 1, 5)),
            _whole(timestamp, "timestamp", EARLIEST, LATEST))


def read_users(files: RawFiles, bad: BadRows) -> pl.DataFrame:
    """Good rows of users.dat, one an id; bad ones go to `bad`."""
    content = files.read("users.dat")
    users = _fast_users(content)
    return users if users is not None else _table(content, "users.dat", _parse_user, USERS, bad)


def read_movies(files: RawFiles, bad: BadRows) -> pl.DataFrame:
    """Good rows of movies.dat, one an id, no overviews yet; bad ones go to `bad`."""
    movies = _table(files.read("movies.dat"), "movies.dat", _parse_movie,
                    {**MOVIES, "genres": pl.String}, bad)
    names = pl.col("genres").str.split("|")  # in one expression: 4 k Python lists are slow
    return movies.with_columns(names.list.eval(pl.element().filter(pl.element() != "")))


def _table(content: bytes, name: str, parse: Callable[[str], tuple], schema: dict,
           bad: BadRows) -> pl.DataFrame:
    """Good rows of a file with one row per id; bad ones are added to `bad`."""
    rows: dict[int, tuple] = {}
    for number, line in _lines(content):
        try:
            row = parse(line)
            if row[0] in rows:
                raise ValueError(f"id {row[0]} stands on an earlier line too")
            rows[row[0]] = row
        except ValueError as error:
            bad.add(name, number, str(error), line)
    columns = zip(*rows.values(), strict=True) if rows else [()] * len(schema)
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def _fast_users(content: bytes) -> pl.DataFrame | None:
    """The users by one typed read and vectorised checks, or None unless every row is good."""
    rows = content.count(b"\n") + (not content.endswith(b"\n"))
    if not content.isascii() or b"\r" in content or b"\0" in content:
        return None
    table = _read_fields(content, dict.fromkeys(USERS, pl.String))
    if table is None or len(table) != rows or content.count(b":") != 8 * rows:
        return None
    between = [name for name in table.columns if name not in USERS]
    is_whole = pl.col("user_id", "occupation").str.contains("^[0-9]{1,12}$")
    is_good = pl.all_horizontal(is_whole, pl.col("sex").is_in(["F", "M"]),
                                pl.col("age").is_in(list(AGES)), pl.col(between).is_null())
    if not table.select(is_good.fill_null(False).all()).item():
        return None
    user, work = (table[name].cast(pl.Int64) for name in ("user_id", "occupation"))
    if user.min() < 1 or user.max() >= 2**31 or work.max() > 20 or user.n_unique() < rows:
        return None
    table = table.with_columns(user, work, pl.col("zip_region").str.slice(0, 1))
    return table.select(list(USERS)).cast(USERS).rechunk()


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


def check_ratings(content: bytes, first: int, known: Known, bad: BadRows) -> pl.DataFrame:
    """Good rows of whole lines of ratings.dat; bad ones go to `bad`. Repeats are not looked for.

    One typed read and vectorised checks; line by line only if something is odd.

    Args:
        content: the lines.
        first: number of the first line.
        known: users and movies that a rating may name.
        bad: collects the bad rows.

    Returns:
        Columns of `schema.RATINGS`, in file order.
    """
    ratings = _fast_ratings(content)
    if ratings is not None and _are_good(ratings, known):
        return ratings.with_columns(pl.col("rating").cast(pl.Float32))
    rows, origin, found = [], [], []
    for number, line in _lines(content, first):
        try:
            rows.append(_parse_rating(line))
            origin.append((number, line))
        except ValueError as error:
            found.append((number, str(error), line))
    ratings = pl.DataFrame(rows, schema=RATINGS, orient="row")
    user, item = known.rows(ratings)
    for k in np.flatnonzero((user < 0) | (item < 0)):
        number, line = origin[k]
        what = f"user {rows[k][0]} is not in users.dat" if user[k] < 0 else \
            f"movie {rows[k][1]} is not in movies.dat"
        found.append((number, what, line))
    for number, reason, line in sorted(found):
        bad.add("ratings.dat", number, reason, line)
    return ratings.filter((user >= 0) & (item >= 0))


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


def list_repeats(chunks: Iterable[bytes], bad: BadRows, pairs: set[tuple[int, int]]) -> None:
    """Add to `bad` every line but the first of each of the (user_id, item_id) `pairs`.

    Args:
        chunks: the lines of ratings.dat, in order.
        bad: collects the rows.
        pairs: of known users and movies; a line with a defect of its own is no line of a pair.
    """
    repeats, first, seen = BadRows(bad.on_bad), 1, set()
    for content in chunks:
        for number, line in _lines(content, first):
            try:
                pair = _parse_rating(line)[:2]
            except ValueError:
                continue
            if pair in seen:
                repeats.add("ratings.dat", number, f"user {pair[0]} rated movie {pair[1]} on an "
                            "earlier line too", line)
            elif pair in pairs:
                seen.add(pair)
        first += content.count(b"\n")
    bad.count += repeats.count
    bad.rows += repeats.rows  # each the first ones of their kind; `report` sorts them by line


def refuse_nothing_left(num_ratings: int) -> None:
    """Raise a DataError if there is no good rating."""
    if not num_ratings:
        raise DataError("ratings.dat: every row is bad, expected user::movie::rating::timestamp; "
                        "see bad_rows.csv")


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
    whole = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": pl.Int32, "timestamp": pl.Int64}
    table = _read_fields(content, whole, columns=[0, 2, 4, 6])
    if table is None or len(table) != rows or sum(table.null_count().row(0)):
        return None
    return table


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
        return pl.read_csv(content, separator=":", has_header=False, schema=schema,
                           columns=columns, quote_char=None)
    except pl.exceptions.PolarsError:
        return None


def _are_good(ratings: pl.DataFrame, known: Known) -> bool:
    """True when every rating is in range, and of a known user and movie."""
    stars, when = ratings["rating"], ratings["timestamp"]
    if stars.min() < 1 or stars.max() > 5 or when.min() < EARLIEST or when.max() > LATEST:
        return False
    return all(rows.min() >= 0 for rows in known.rows(ratings))


def merge_overviews(
    movies: pl.DataFrame, metadata: Path, *, report_dir: Path | None = None
) -> pl.DataFrame:
    """Fill `overview` and `match` of each movie; one film to one row of the metadata.

    Titles must be equal, exactly or normalised (`title_keys`); the release year equal, then off
    by 1, then by 2. Prints how many matched and how; writes unmatched_movies.csv.

    Args:
        movies: columns of `schema.MOVIES`.
        metadata: Kaggle's movies_metadata.csv.
        report_dir: folder of unmatched_movies.csv; None: nothing is written.
    """
    films, defects = read_metadata(metadata)
    by_key = defaultdict(list)
    for row, film in enumerate(films):
        for key in set(title_keys(film["title"]) + title_keys(film["original_title"])):
            by_key[key].append(row)
    candidates = []
    for movie, (title, year) in enumerate(movies.select("title", "year").iter_rows()):
        keys = title_keys(title)
        for rank, key in enumerate(keys):
            for row in by_key[key]:
                gap = abs(films[row]["year"] - year) if year else 9
                if gap <= 2:
                    same = plain_title(title) in (films[row]["title"], films[row]["original_title"])
                    candidates.append((gap, not same, rank, movie, row))
    overview, match = [None] * len(movies), ["none"] * len(movies)
    used: set[int] = set()
    for gap, differs, _, movie, row in sorted(candidates):
        if match[movie] == "none" and row not in used:
            used.add(row)
            overview[movie] = films[row]["overview"]
            match[movie] = "year off" if gap else "normalised" if differs else "exact"
    merged = movies.with_columns(pl.Series("overview", overview, dtype=pl.String),
                                 pl.Series("match", match))
    _print_match(merged, defects, report_dir)
    return merged


def _print_match(movies: pl.DataFrame, defects: Counter, report_dir: Path | None) -> None:
    how = Counter(movies["match"])
    found = len(movies) - how["none"]
    ways = ", ".join(f"{how[way]:,} {way}" for way in ("exact", "normalised", "year off", "none"))
    print(f"overviews: {found:,} of {len(movies):,} movies ({found / len(movies):.1%}): {ways}")
    if defects:
        print("metadata rows not used: "
              + ", ".join(f"{count:,} {what}" for what, count in sorted(defects.items())))
    if report_dir is not None:
        report_dir.mkdir(parents=True, exist_ok=True)
        unmatched = movies.filter(pl.col("match") == "none").select("item_id", "title", "year")
        unmatched.write_csv(report_dir / "unmatched_movies.csv")


def read_metadata(path: Path) -> tuple[list[dict], Counter]:
    """Films with an overview, and how many rows had which defect.

    TMDB's votes, popularity and revenue are from years after the ratings, so they are not read.

    Raises:
        DataError: the file is missing, or lacks a column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\0", "")
    except OSError as error:
        raise DataError(f"--metadata {path}: {error.strerror}; see data/README.md for where to get "
                        "movies_metadata.csv") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    wanted = ("id", "title", "original_title", "overview", "release_date")
    lacking = [c for c in wanted if c not in (reader.fieldnames or [])]
    if lacking:
        raise DataError(f"{path}:1: no column {', '.join(lacking)}; expected Kaggle's "
                        "movies_metadata.csv")
    films, defects, seen = [], Counter(), set()
    for row in reader:
        values = {c: (row[c] or "").strip() for c in wanted}
        defect = _defect(row, values, seen)
        if defect:
            defects[defect] += 1
            continue
        seen.add(values["id"])
        films.append({**values, "year": int(values["release_date"][:4])})
    return films, defects


def _defect(row: dict, values: dict, seen: set[str]) -> str | None:
    if None in row or None in row.values() or (values["id"] and not values["id"].isdigit()):
        return "malformed"  # a broken quote shifts the cells: a date stands in the id column
    if values["id"] and values["id"] in seen:
        return "with an id seen before"
    if not values["title"]:
        return "without title"
    if not re.match(r"\d{4}-\d\d-\d\d$", values["release_date"]):
        return "without release date"
    if not values["overview"] or values["overview"].lower().startswith("no overview"):
        return "without overview"
    return None


def plain_title(title: str) -> str:
    """The title without year and parentheses, its trailing article in front.

    Example:
        >>> plain_title("City of Lost Children, The (Cite des enfants perdus, La) (1995)")
        'The City of Lost Children'
    """
    return _article_first(re.sub(r"\s*\([^()]*\)", "", title).strip())


def title_keys(title: str) -> list[str]:
    """Normalised names of a film, best first: its title, then each a.k.a. in parentheses.

    Lower case, no accents, no leading article, `&` as "and", letters and digits only; last, the
    whole title with what stands in parentheses.

    Example:
        >>> title_keys("Cité des enfants perdus, La (a.k.a. Lost & Found) (1995)")
        ['citedesenfantsperdus', 'lostandfound', 'citedesenfantsperduslaakalostandfound']
    """
    aliases = re.findall(r"\(([^()]*)\)", YEAR.sub("", title))
    names = [plain_title(title),
             *(_article_first(re.sub(r"(?i)^a\.?k\.?a\.?:? ", "", a).strip()) for a in aliases),
             YEAR.sub("", title)]  # parentheses can be part of the name: "To Have (Or Not)"
    keys = (_normalise(name) for name in names)
    return list(dict.fromkeys(key for key in keys if key))


def _article_first(name: str) -> str:
    found = ARTICLE.match(name)
    if not found:
        return name
    return f"{found[2]}{'' if found[2].endswith(chr(39)) else ' '}{found[1]}"


def _normalise(name: str) -> str:
    text = unicodedata.normalize("NFKD", name.lower().replace("&", " and "))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"^(the|a|an|le|la|les|il|el|los|las|der|die|das)\s+|^l'\s*", "", text.strip())
    return re.sub(r"[^a-z0-9]", "", text)
