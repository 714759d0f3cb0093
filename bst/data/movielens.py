"""MovieLens in its older forms: a file of movies, of ratings and, but for 10M, of users.

ml-1m    users.dat, movies.dat, ratings.dat in latin-1; fields separated by `::`
ml-10m   movies.dat and ratings.dat in UTF-8; ratings on any scale
ml-100k  u.user, u.item, u.data in latin-1; `|` and tabs. An age in years becomes the code of its
         group in MovieLens-1M; an occupation keeps its name
"""

import re
from collections.abc import Sequence

from bst.data.raw import CELLS, ITEM_ROW, File, Layout, whole
from bst.data.schema import USERS

AGES = ("1", "18", "25", "35", "45", "50", "56")  # codes of MovieLens-1M: youngest of the group
GENRES = ("", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
          "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
          "Thriller", "War", "Western")  # the flags of u.item; the first one is "unknown"


def _user_1m(user: str, sex: str, age: str, occupation: str, zip_code: str) -> tuple:
    if age not in AGES:
        raise ValueError(f"age {age!r} is not one of the codes {list(AGES)}")
    return _ml_user(user, sex, age, str(whole(occupation, "occupation", 0, 20)), zip_code)


def _user_100k(user: str, years: str, sex: str, occupation: str, zip_code: str) -> tuple:
    if not occupation.strip():
        raise ValueError(f"occupation {occupation!r} is empty")
    age = max(int(code) for code in AGES if int(code) <= whole(years, "age", 1, 120))
    return _ml_user(user, sex, str(age), occupation, zip_code)


def _ml_user(user: str, sex: str, age: str, occupation: str, zip_code: str) -> tuple:
    if sex not in ("F", "M"):
        raise ValueError(f"sex {sex!r} is not F or M")
    return user, sex, age, occupation, zip_code[:1] or None


def _movie_1m(item: str, title: str, genres: str) -> tuple:
    return item, title, genres, "", ""


def _movie_100k(item: str, title: str, date: str, _video: str, _url: str, *flags: str) -> tuple:
    if date and not re.fullmatch(r"[0-9]{1,2}-[A-Z][a-z]{2}-[0-9]{4}", date):
        raise ValueError(f"release date {date!r} is not like 01-Jan-1995")
    if set(flags) - {"0", "1"}:
        raise ValueError(f"genre flags {'|'.join(flags)!r} are not all 0 or 1")
    genres = "|".join(name for name, flag in zip(GENRES, flags, strict=True) if flag == "1")
    return item, title, genres, date, ""


def _ml_file(name: str, separator: str, cells: Sequence[str], encoding: str = "latin-1") -> File:
    """A file with these cells, of which all are read."""
    return File(name=name, separator=separator, count=len(cells), encoding=encoding,
                place={cell: k for k, cell in enumerate(cells)})


ML_1M = Layout(
    ratings=_ml_file("ratings.dat", "::", CELLS), is_stars=True,
    users=_ml_file("users.dat", "::", USERS), user=_user_1m,
    movies=_ml_file("movies.dat", "::", list(ITEM_ROW)[:3]), movie=_movie_1m,
    hint="--format ml-10m takes any scale and no users.dat")
ML_10M = Layout(
    ratings=_ml_file("ratings.dat", "::", CELLS, "utf-8"), user=_user_1m,
    movies=_ml_file("movies.dat", "::", list(ITEM_ROW)[:3], "utf-8"), movie=_movie_1m)
ML_100K = Layout(
    ratings=_ml_file("u.data", "\t", CELLS), is_stars=True,
    users=_ml_file("u.user", "|", ("user_id", "age", "sex", "occupation", "zip")), user=_user_100k,
    movies=_ml_file("u.item", "|", ("item_id", "title", "date", "video", "url", *GENRES)),
    movie=_movie_100k)
