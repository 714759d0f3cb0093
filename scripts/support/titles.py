"""Which item of a catalogue somebody means by a title."""

import re

from bst.data.overviews import YEAR_AT_END, plain_title, title_keys
from bst.data.schema import FIRST_IDX
from bst.recommend.catalogue import Catalogue
from bst.utils.errors import DataError


class UnknownItemError(DataError):
    """No item of the catalogue is meant, or it is not clear which."""


def find_item(
    catalogue: Catalogue, title: str, year: int | None = None, *, near: int = 3
) -> int | str:
    """Id of the item with a title: as written; without article and accents; an a.k.a.; a part.

    Of a series, whose titles share what stands before the colon, that part is the name of the
    first item. A year must fit, also one that stands after the title; an item without a year is
    taken if no other one fits.

    Args:
        catalogue: of a run.
        title: as somebody writes it.
        year: of release, if known.
        near: items that are spelt almost so to name in the error: looking for them takes time.

    Raises:
        UnknownItemError: none or several fit; names those that may be meant.
    """
    key, year = _key(title), _year(title, year)
    rows = catalogue.names.get(key, [])
    steps = (  # surest first
        [row for row in rows if catalogue.titles[row] == title],
        [row for row in rows if _key(catalogue.titles[row]) == key],
        [row for row in rows if key in title_keys(catalogue.titles[row])],
        sorted((row for row in rows if _parts(catalogue.titles[row])[0] == key),
               key=lambda row: catalogue.years[row] or 9999),
        rows,
    )
    for step, likely in enumerate(steps):
        fits = _of_year(catalogue, likely, year)
        if len(fits) == 1 or (fits and step == 3):
            return catalogue.ids[fits[0]]
        if fits:
            break
    likely = fits or rows
    if not likely and near and re.search(r"\w", title):
        likely = [item - FIRST_IDX for item in catalogue.search(title, near)]
    listed = "; ".join(f"{catalogue.titles[row]} [{catalogue.ids[row]}]" for row in likely[:5])
    raise UnknownItemError(
        f"{len(fits) or 'no'} items are '{title}'{f' of {year}' if year else ''}"
        + (f"; did you mean: {listed}?" if listed else ""))


def item_of(catalogue: Catalogue, text: str) -> int | str:
    """Id of the item that a title or else an id means; errors as of `find_item`."""
    try:
        return find_item(catalogue, text)
    except UnknownItemError:
        if text not in map(str, catalogue.ids):
            raise
        return text


def is_called(catalogue: Catalogue, movie: int | str, title: str, year: int | None = None) -> bool:
    """Whether the item with this id can be meant by a title and, if known, a year."""
    row = catalogue.items([movie])[0] - FIRST_IDX
    return bool(_of_year(catalogue, [row], _year(title, year))) and (
        title == catalogue.titles[row] or row in catalogue.names.get(_key(title), []))


def _of_year(catalogue: Catalogue, rows: list[int], year: int | None) -> list[int]:
    """Those of the year, or else those whose year is not known."""
    fits = [row for row in rows if year in (None, catalogue.years[row])]
    return fits or [row for row in rows if catalogue.years[row] is None]


def _year(title: str, year: int | None) -> int | None:
    found = YEAR_AT_END.search(title)
    return int(found[1]) if found else year


def _key(title: str) -> str:
    return "".join(title_keys(title)[:1]) or title  # of other scripts: as it is written


def _parts(title: str) -> list[str]:
    return [_key(part) for part in re.split(": | - ", plain_title(title))]
