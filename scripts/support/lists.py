"""What scripts/recommend.py prints and writes."""

from pathlib import Path

import numpy as np
import polars as pl

from bst.data.schema import FIRST_IDX
from bst.recommend.users import Users, table_of
from bst.utils.errors import DataError
from bst.utils.files import open_atomic


def table_lines(items: list) -> list[str]:
    """One line per item: rank, chance if known, predicted stars, title, what raised the stars."""
    with_chance = any(item.chance is not None for item in items)
    head = f"{'chance':>7} " if with_chance else ""
    lines = [f"{'':>3} {head}{'stars':>5}  {'item':<48} because of your rating of"]
    for rank, item in enumerate(items, start=1):
        why = ", ".join(f"{r.title} ({r.rating:g}, {r.difference:+.2f})" for r in item.reasons)
        chance = f"{item.chance:>7.2%} " if with_chance else ""
        lines.append(f"{rank:>3} {chance}{item.stars:>5.2f}  {item.title[:48]:<48} {why}".rstrip())
    return lines


def explanation_lines(found, num_ratings: int) -> list[str]:
    """One line per event, the largest effect first."""
    rated = "" if found.rated is None else f" (you rated it {found.rated:g})"
    tried = len(found.reasons)
    which = "each rating" if tried == num_ratings else f"each of the newest {tried} ratings"
    lines = [f"{found.title}: {found.stars:.2f} stars{rated}. What {which} did to it:",
             f"{'effect':>7} {'stars':>5}  item"]
    lines += [f"{reason.difference:>+7.3f} {reason.rating:>5g}  {reason.title}"
              for reason in found.reasons]
    return [*lines, "effect: prediction with all ratings minus without this one, exactly"]


def write_all(users: Users, out: Path | None, k: int, *, genres: tuple[str, ...],
              years: tuple[int, int] | None, **options) -> None:
    """The lists of all users in a .parquet or .csv file; options as of `Users.recommend`."""
    if out is None or out.suffix not in (".parquet", ".csv"):
        raise DataError(f"--out {out}: expected a file that ends in .parquet or .csv")
    catalogue = users.recommender.catalogue
    among = np.flatnonzero(catalogue.allowed(genres, years)) + FIRST_IDX
    found = users.recommend(np.arange(len(users.ids)), k, among=among, **options)
    table = table_of(users.ids, pl.Series(catalogue.ids), *found)
    with open_atomic(out) as file:
        (table.write_csv if out.suffix == ".csv" else table.write_parquet)(file)
    print(f"{len(table):,} items for {len(users.ids):,} users in {out}")
