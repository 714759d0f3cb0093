"""MovieLens-1M and MovieLens-100K: latin-1, a file of users, of movies and of ratings.

ml-1m    users.dat, movies.dat, ratings.dat; fields separated by `::`
ml-100k  u.user, u.item, u.data; `|` and tabs. An age in years becomes the code of its group in
         MovieLens-1M; an occupation keeps its name
"""

import re
from collections.abc import Callable

import polars as pl

from bst.data.raw import BadRows, Layout, Lines, RatingLines, movie_table, table, whole, year_of
from bst.data.schema import USERS
from bst.data.sources import RawFiles

AGES = ("1", "18", "25", "35", "45", "50", "56")  # codes of MovieLens-1M: youngest of the group
GENRES = ("", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
          "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
          "Thriller", "War", "Western")  # the flags of u.item; the first one is "unknown"


def _user_1m(user: str, sex: str, age: str, occupation: str, zip_code: str) -> tuple:
    if age not in AGES:
        raise ValueError(f"age {age!r} is not one of the codes {list(AGES)}")
    return _user(user, sex, age, str(whole(occupation, "occupation", 0, 20)), zip_code)


def _user_100k(user: str, years: str, sex: str, occupation: str, zip_code: str) -> tuple:
    if not occupation.strip():
        raise ValueError(f"occupation {occupation!r} is empty")
    age = max(int(code) for code in AGES if int(code) <= whole(years, "age", 1, 120))
    return _user(user, sex, str(age), occupation, zip_code)


def _user(user: str, sex: str, age: str, occupation: str, zip_code: str) -> tuple:
    if sex not in ("F", "M"):
        raise ValueError(f"sex {sex!r} is not F or M")
    return whole(user, "user", 1), sex, age, occupation, zip_code[:1] or None


def _movie_1m(item: str, title: str, genres: str) -> tuple:
    return whole(item, "movie", 1), title, year_of(title), genres


def _movie_100k(item: str, title: str, date: str, _video: str, _url: str, *flags: str) -> tuple:
    if date and not re.fullmatch(r"[0-9]{2}-[A-Z][a-z]{2}-[0-9]{4}", date):
        raise ValueError(f"release date {date!r} is not like 01-Jan-1995")
    if set(flags) - {"0", "1"}:
        raise ValueError(f"genre flags {'|'.join(flags)!r} are not all 0 or 1")
    genres = "|".join(name for name, flag in zip(GENRES, flags, strict=True) if flag == "1")
    return whole(item, "movie", 1), title, year_of(title) or year_of(f"({date[-4:]})"), genres


def _people(users: Lines, user: Callable[..., tuple], movies: Lines, movie: Callable[..., tuple]
            ) -> Callable[[RawFiles, BadRows], tuple[pl.DataFrame, pl.DataFrame]]:
    """What reads the users and the movies of a layout, from their lines and parsers."""
    return lambda files, bad: (table(files, users, user, USERS, bad),
                               movie_table(files, movies, movie, bad))


ML_1M = Layout(
    RatingLines(file="ratings.dat", separator="::", count=4,
                known_from=("users.dat", "movies.dat")),
    _people(Lines(file="users.dat", separator="::", count=5), _user_1m,
            Lines(file="movies.dat", separator="::", count=3), _movie_1m),
)
ML_100K = Layout(
    RatingLines(file="u.data", separator="\t", count=4, known_from=("u.user", "u.item")),
    _people(Lines(file="u.user", separator="|", count=5), _user_100k,
            Lines(file="u.item", separator="|", count=5 + len(GENRES)), _movie_100k),
)
