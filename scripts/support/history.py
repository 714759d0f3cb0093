"""Somebody's ratings in a CSV file -> a history; what --history of recommend.py reads."""

import csv
from datetime import UTC, datetime
from pathlib import Path

from bst.recommend.catalogue import Catalogue, Interaction
from bst.utils.errors import DataError


def read_history(path: Path, catalogue: Catalogue) -> list[Interaction]:
    """The ratings of a CSV file with a header.

    Columns: movie_id or title (as `Catalogue.find` takes it); stars; and, if wanted, time: seconds
    since 1970 UTC or an ISO date. Without times the rows count as rated in file order, a minute
    apart: only gaps of time matter.

    Raises:
        DataError: names the file, the line and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--history {path}: {error}; expected a CSV file in UTF-8") from error
    reader = csv.DictReader(text.splitlines())
    columns = set(reader.fieldnames or [])
    if "stars" not in columns or not columns & {"title", "movie_id"}:
        raise DataError(f"{path}:1: columns {', '.join(sorted(columns)) or 'none'}, expected title "
                        "or movie_id, stars, and time if known")
    events, timed = [], set()
    for row in reader:
        try:
            events.append(_interaction(row, len(events), catalogue))
        except ValueError as error:
            raise DataError(f"{path}:{reader.line_num}: {error}") from error
        timed.add(bool(row.get("time")))
        if len(timed) > 1:
            raise DataError(f"{path}:{reader.line_num}: only some rows have a time; give all of "
                            "them one, or none")
    return events


def _interaction(row: dict[str, str], rank: int, catalogue: Catalogue) -> Interaction:
    try:
        stars = float(row["stars"])
    except (TypeError, ValueError):
        raise DataError(f"stars '{row['stars']}' is not a number") from None
    if row.get("movie_id"):
        movie = catalogue.name(catalogue.items([row["movie_id"]])[0])[0]
    else:
        movie = catalogue.find(row.get("title") or "")
    when = row.get("time")
    if not when:
        return Interaction(movie, stars, 60 * rank)
    try:
        time = int(when) if when.isdecimal() else _seconds(datetime.fromisoformat(when))
    except ValueError:
        raise DataError(f"time '{when}' is neither seconds since 1970 nor an ISO date") from None
    return Interaction(movie, stars, time)


def _seconds(when: datetime) -> int:
    """Seconds since 1970 UTC; a date without a time zone is UTC."""
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
