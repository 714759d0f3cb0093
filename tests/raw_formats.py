"""Writes tables as the raw files of each format, with the oddities of the real ones."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from bst.data.movielens import GENRES
from bst.data.schema import Tables
from tests.conftest import random_tables

YEARS = {"1": 17, "25": 34, "56": 73}  # an age in each group of `random_tables`
WORK = {"0": "other", "4": "student", "7": "executive", "12": "programmer"}


def telling(tables: Tables, levels) -> Tables:
    """The same tables; user and movie decide which of `levels` a rating is."""
    five = np.quantile(levels, [0, 0.25, 0.5, 0.75, 1], method="nearest")
    rated = tables.ratings
    stars = five[(rated["user_id"] // 3 % 3 + rated["item_id"] // 2 % 3).to_numpy()]
    return replace(tables, ratings=rated.with_columns(rating=pl.Series(stars, dtype=pl.Float32)))


def write_1m(folder: Path, tables: Tables) -> Path:
    """users.dat, movies.dat and ratings.dat."""
    write_10m(folder, tables, encoding="latin-1")
    _write(folder / "users.dat", (f"{u}::{s}::{a}::{o}::{z}0000"
                                  for u, s, a, o, z in tables.users.iter_rows()))
    return folder


def write_10m(folder: Path, tables: Tables, encoding: str = "utf-8") -> Path:
    """movies.dat and ratings.dat, with half stars where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "movies.dat", (f"{i}::{t}::{'|'.join(g) or '(no genres listed)'}"
                                   for i, t, g in _movies(tables)), encoding)
    _write(folder / "ratings.dat", (f"{u}::{i}::{r:g}::{t}"
                                    for u, i, r, t in tables.ratings.iter_rows()))
    return folder


def write_100k(folder: Path, tables: Tables) -> Path:
    """u.user, u.item and u.data."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "u.user", (f"{u}|{YEARS[a]}|{s}|{WORK[o]}|{z}5213"
                               for u, s, a, o, z in tables.users.iter_rows()))
    _write(folder / "u.item", (
        f"{i}|{t}|{'' if k % 9 == 0 else '01-Jan-1995'}||http://us.imdb.com/M/?{k}|"
        + "|".join("1" if name in g else "0" for name in GENRES)
        for k, (i, t, g) in enumerate(_movies(tables))))
    _write(folder / "u.data", (f"{u}\t{i}\t{r:.0f}\t{t}"
                               for u, i, r, t in tables.ratings.iter_rows()))
    return folder


def write_csv(folder: Path, tables: Tables, *, movies: bool = True) -> Path:
    """ratings.csv, and movies.csv, links.csv and tags.csv if wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    ratings = [(u, i, f"{r:.1f}", t) for u, i, r, t in tables.ratings.iter_rows()]
    write_rows(folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *ratings])
    if movies:
        write_rows(folder / "movies.csv", [("movieId", "title", "genres"), *(
            (i, t, "|".join(g) or "(no genres listed)") for i, t, g in _movies(tables))])
        write_rows(folder / "links.csv", [("movieId", "imdbId", "tmdbId"), *(
            (i, f"{i:07}", 10_000 + i if k % 4 else "")
            for k, i in enumerate(tables.movies["item_id"]))])
        write_rows(folder / "tags.csv", [("userId", "movieId", "tag", "timestamp")])
    return folder


def write_rows(path: Path, rows: list[tuple]) -> None:
    """A CSV file in UTF-8 with the line ends of MovieLens."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def small_tables(seed: int = 0, **options) -> Tables:
    """`random_tables` whose titles have commas, quotes and accents."""
    tables = random_tables(seed, **options)
    title = tables.movies["title"].str.replace("Film 7", 'Étranger "7", The').str.replace(
        "Film 12", "Film, 12")
    return Tables(tables.users, tables.movies.with_columns(title), tables.ratings)


def _movies(tables: Tables):
    return tables.movies.select("item_id", "title", "genres").iter_rows()


def _write(path: Path, lines, encoding: str = "latin-1") -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


WRITERS = {"ml-1m": write_1m, "ml-10m": write_10m, "ml-100k": write_100k, "table": write_csv}
