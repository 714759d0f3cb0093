"""Raw MovieLens-1M files -> typed tables; overviews merged by title and release year.

The only module that knows MovieLens. Files are latin-1, fields are separated by `::`.
"""

import csv
import hashlib
import io
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bst.schema import MOVIES, RATINGS, USERS, DataError, Tables

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
        DataError: a file is missing or empty, or has bad rows and `on_bad` is `stop`.
    """
    files = {name: _read_file(source, name) for name in ("users.dat", "movies.dat", "ratings.dat")}
    bad: list[BadRow] = []
    users = _table(files["users.dat"], "users.dat", _parse_user, USERS, bad)
    movies = _table(files["movies.dat"], "movies.dat", _parse_movie,
                    {**MOVIES, "genres": pl.String}, bad)
    names = pl.col("genres").str.split("|")  # in one expression: 4 k Python lists are slow
    movies = movies.with_columns(names.list.eval(pl.element().filter(pl.element() != "")))
    ratings = _read_ratings(files["ratings.dat"], users, movies, bad)
    if bad:
        _report_bad(bad, on_bad, Path(report_dir or "."))
    if metadata is not None:
        movies = merge_overviews(movies, metadata, report_dir=report_dir)
    return Tables(users, movies, ratings)


def source_hashes(source: Path, metadata: Path | None) -> dict[str, str]:
    """sha256 of every raw file, by name."""
    files = {n: _read_file(source, n) for n in ("users.dat", "movies.dat", "ratings.dat")}
    if metadata is not None:
        files["movies_metadata.csv"] = metadata.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _read_file(source: Path, name: str) -> bytes:
    """Content of one file of a folder or zip, without BOM and carriage returns."""
    try:
        if source.is_dir():
            content = (source / name).read_bytes()
        else:
            with zipfile.ZipFile(source) as archive:
                member = next((m for m in archive.namelist() if m.split("/")[-1] == name), None)
                if member is None:
                    raise DataError(f"{source}: no {name} in the zip, expected MovieLens-1M")
                content = archive.read(member)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: cannot read {name} ({error}); expected a folder or zip with "
                        "users.dat, movies.dat and ratings.dat, see data/README.md") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n")
    if not content or content.isspace():
        raise DataError(f"{source}: {name} is empty, expected rows separated by '::'")
    return content


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.decode("latin-1").split("\n"), start=1):
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


def _table(content: bytes, name: str, parse: Callable[[str], tuple], schema: dict,
           bad: list[BadRow]) -> pl.DataFrame:
    """Good rows of a file with one row per id; bad ones are appended to `bad`."""
    rows: dict[int, tuple] = {}
    for number, line in _lines(content):
        try:
            row = parse(line)
            if row[0] in rows:
                raise ValueError(f"id {row[0]} stands on an earlier line too")
            rows[row[0]] = row
        except ValueError as error:
            bad.append(BadRow(name, number, str(error), line))
    columns = zip(*rows.values(), strict=True) if rows else [()] * len(schema)
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def _read_ratings(content: bytes, users: pl.DataFrame, movies: pl.DataFrame,
                  bad: list[BadRow]) -> pl.DataFrame:
    """One typed read and vectorised checks; line by line only if something is odd."""
    ratings = _fast_ratings(content)
    if ratings is not None and _are_good(ratings, users, movies):
        return ratings.with_columns(pl.col("rating").cast(pl.Float32))
    known = set(users["user_id"]), set(movies["item_id"])
    rows: dict[tuple, tuple] = {}
    for number, line in _lines(content):
        try:
            row = _parse_rating(line)
            for value, ids, name in zip(row, known, ("user", "movie"), strict=False):
                if value not in ids:
                    raise ValueError(f"{name} {value} is not in {name}s.dat")
            if row[:2] in rows:
                raise ValueError(f"user {row[0]} rated movie {row[1]} on an earlier line too")
            rows[row[:2]] = row
        except ValueError as error:
            bad.append(BadRow("ratings.dat", number, str(error), line))
    return pl.DataFrame(list(rows.values()), schema=RATINGS, orient="row")


def _fast_ratings(content: bytes) -> pl.DataFrame | None:
    """The ratings by one typed read, or None where they are not plain `a::b::c::d` rows."""
    if b"\0" in content or b"\n\n" in content:
        return None
    ints = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": pl.Int32, "timestamp": pl.Int64}
    schema: dict = {}
    for k, (name, dtype) in enumerate(ints.items()):
        schema[name] = dtype
        if k < 3:
            schema[f"between_{k}"] = pl.String  # `::` is an empty field between single colons
    try:
        table = pl.read_csv(content, separator=":", has_header=False, schema=schema,
                            quote_char=None)
    except pl.exceptions.PolarsError:
        return None
    empty = all(table[f"between_{k}"].null_count() == len(table) for k in range(3))
    return table.select(list(ints)) if empty else None


def _are_good(ratings: pl.DataFrame, users: pl.DataFrame, movies: pl.DataFrame) -> bool:
    """True when every rating is in range, unique, and of a known user and movie."""
    if sum(ratings.null_count().row(0)):
        return False
    stars, when = ratings["rating"], ratings["timestamp"]
    if stars.min() < 1 or stars.max() > 5 or when.min() < EARLIEST or when.max() > LATEST:
        return False
    user = _rows_of(ratings["user_id"].to_numpy(), users["user_id"].to_numpy())
    item = _rows_of(ratings["item_id"].to_numpy(), movies["item_id"].to_numpy())
    if user is None or item is None:
        return False
    if len(users) * len(movies) > 10**8:
        return not ratings.select(pl.struct("user_id", "item_id").is_duplicated().any()).item()
    rated = np.zeros(len(users) * len(movies), dtype=bool)  # a cell a pair: faster than a sort
    rated[user * len(movies) + item] = True
    return int(np.count_nonzero(rated)) == len(ratings)


def _rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """Row of each id in `known`, or None if one is missing."""
    if not len(known) or ids.min() < 0 or ids.max() > known.max() or known.max() > 10**8:
        return None
    rows = np.full(int(known.max()) + 1, -1, dtype=np.int64)
    rows[known] = np.arange(len(known))
    found = rows[ids]
    return None if found.min() < 0 else found


def _report_bad(bad: list[BadRow], on_bad: str, report_dir: Path) -> None:
    listed = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in bad[:SHOWN])
    if on_bad == "stop":
        raise DataError(f"{len(bad)} bad rows, expected none: {listed}"
                        f"{'; ...' if len(bad) > SHOWN else ''}; correct them, or leave them out "
                        "with --on-bad quarantine")
    report_dir.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame([vars(b) for b in bad])
    table.write_csv(report_dir / "bad_rows.csv")
    print(f"left out {len(bad)} bad rows, listed in {report_dir / 'bad_rows.csv'}: {listed}")


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
