"""Overviews of items, merged by release year and title, or by TMDB id where a file links it."""

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl

from bst.utils.errors import DataError

YEAR_AT_END = re.compile(r"\((\d{4})\)\s*$")
ARTICLE = re.compile(  # at the end of a title
    r"(?i)^(.*), (The|A|An|Le|La|Les|L'|Il|Lo|I|El|Los|Las|Der|Die|Das|Det|Den|En|Et)$")
LINKED = -1  # rank of a match by TMDB id: better than any gap of years
csv.field_size_limit(2**24)


def merge_overviews(
    movies: pl.DataFrame, metadata: Path, *, links: dict[str, str] | None = None
) -> pl.DataFrame:
    """Fill `overview` and `match` of each item; each row of the metadata goes to one item at most.

    An item with an overview keeps it. An item whose TMDB id is linked takes the row of that id. Of
    the rest, titles must be equal, exactly or normalised (`title_keys`); the release year equal,
    then off by 1, then by 2. Prints how many matched and how.

    Args:
        movies: columns of `schema.MOVIES`.
        metadata: Kaggle's movies_metadata.csv.
        links: TMDB id of each item_id that has one, both as text.
    """
    entries, defects = read_metadata(metadata)
    by_key = defaultdict(list)
    for row, entry in enumerate(entries):
        for key in set(title_keys(entry["title"]) + title_keys(entry["original_title"])):
            by_key[key].append(row)
    by_id = {entry["id"]: row for row, entry in enumerate(entries) if entry["id"]}
    candidates = []  # (gap of years, other title, rank of the key, item, row); best first
    for index, (item, title, year) in enumerate(
            movies.select(pl.col("item_id").cast(pl.String), "title", "year").iter_rows()):
        if (linked := by_id.get((links or {}).get(item))) is not None:
            candidates.append((LINKED, False, 0, index, linked))
        for rank, key in enumerate(title_keys(title) if year else ()):
            for row in by_key[key]:
                gap = abs(entries[row]["year"] - year)
                if gap <= 2:
                    differs = plain_title(title) not in (
                        entries[row]["title"], entries[row]["original_title"])
                    candidates.append((gap, differs, rank, index, row))
    overview, match, used = movies["overview"].to_list(), movies["match"].to_list(), set()
    for gap, differs, _, index, row in sorted(candidates):
        if match[index] == "none" and row not in used:
            used.add(row)
            overview[index] = entries[row]["overview"]
            match[index] = "linked" if gap == LINKED else "year off" if gap else \
                "normalised" if differs else "exact"
    merged = movies.with_columns(pl.Series("overview", overview, dtype=pl.String),
                                 pl.Series("match", match))
    _print_match(merged, defects)
    return merged


def _print_match(movies: pl.DataFrame, defects: Counter) -> None:
    how = Counter(movies["match"])
    found = len(movies) - how["none"]
    ways = ", ".join(f"{how[way]:,} {way}" for way in (
        *sorted({"table", "linked"} & how.keys()), "exact", "normalised", "year off", "none"))
    print(f"overviews: {found:,} of {len(movies):,} items ({found / len(movies):.1%}): {ways}")
    if defects:
        print("metadata rows not used:",
              ", ".join(f"{count:,} {what}" for what, count in sorted(defects.items())))


def read_metadata(path: Path) -> tuple[list[dict], Counter]:
    """Movies with an overview, and how many rows had which defect.

    TMDB's votes, popularity and revenue are from years after the ratings, so they are not read. A
    DataError if the file is missing, or lacks a column.
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
    found, defects, seen = [], Counter(), set()
    try:
        for row in reader:
            values = {c: (row[c] or "").strip() for c in wanted}
            if defect := _defect(row, values, seen):
                defects[defect] += 1
                continue
            seen.add(values["id"])
            found.append({**values, "year": int(values["release_date"][:4])})
    except csv.Error as error:  # an open quote makes an endless cell
        raise DataError(f"{path}:{reader.line_num + 1}: {error}; expected Kaggle's "
                        "movies_metadata.csv") from error
    return found, defects


def _defect(row: dict, values: dict, seen: set[str]) -> str | None:
    """Why a row is not used; None if it is."""
    tmdb, text = values["id"], values["overview"].lower()
    defects = {  # a broken quote shifts the cells: a date stands in the id column
        "malformed": None in row or None in row.values() or tmdb and not tmdb.isdigit(),
        "with an id seen before": tmdb and tmdb in seen,
        "without title": not values["title"],
        "without release date": not re.match(r"\d{4}-\d\d-\d\d$", values["release_date"]),
        "without overview": not text or text.startswith("no overview")}
    return next((what for what, is_so in defects.items() if is_so), None)


def plain_title(title: str) -> str:
    """The title without year and parentheses, its trailing article in front.

    Example:
        >>> plain_title("City of Lost Children, The (Cite des enfants perdus, La) (1995)")
        'The City of Lost Children'
    """
    return _article_first(re.sub(r"\s*\([^()]*\)", "", title).strip())


def title_keys(title: str) -> list[str]:
    """Normalised names of an item, best first: its title, then each a.k.a. in parentheses.

    Lower case, no accents, no leading article, `&` as "and", letters and digits only; last, the
    whole title with what stands in parentheses.

    Example:
        >>> title_keys("Cité des enfants perdus, La (a.k.a. Lost & Found) (1995)")
        ['citedesenfantsperdus', 'lostandfound', 'citedesenfantsperduslaakalostandfound']
    """
    aliases = re.findall(r"\(([^()]*)\)", YEAR_AT_END.sub("", title))
    names = [plain_title(title),
             *(_article_first(re.sub(r"(?i)^a\.?k\.?a\.?:? ", "", a).strip()) for a in aliases),
             YEAR_AT_END.sub("", title)]  # parentheses can be part of the name: "To Have (Or Not)"
    keys = (_normalise(name) for name in names)
    return list(dict.fromkeys(key for key in keys if key))


def without_accents(text: str) -> str:
    """The text with `e` for `é`."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _article_first(name: str) -> str:
    return ARTICLE.sub(lambda m: m[2] + " " * (not m[2].endswith("'")) + m[1], name)


def _normalise(name: str) -> str:
    text = without_accents(name.lower().replace("&", " and "))
    text = re.sub(r"^(the|a|an|le|la|les|il|el|los|las|der|die|das)\s+|^l'\s*", "", text.strip())
    return re.sub(r"[^a-z0-9]", "", text)
