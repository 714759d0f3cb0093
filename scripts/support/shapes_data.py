"""Sets of ratings of any shape, from a seed; shapes.py trains on them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bst.utils.files import write_atomic
from scripts.support.synthetic import NAMED, SPAN, START


@dataclass(frozen=True, kw_only=True)
class RatingsShape:
    """A set of ratings unlike MovieLens-1M: users have an id and nothing else, items no text."""

    users: int
    each: int  # ratings of a user, about
    items: int
    levels: tuple[float, float, float] = (1, 5, 1)  # lowest and highest rating, and the step
    genres: bool = False
    years: bool = False
    features: bool = False  # an author, who has to do with the theme, and pages, with the bias
    news: float = 0.0  # how much items that have just come out are sought, above all
    stay: float = 0.5  # share of the whole time for which a user stays, at most
    seed: int = 0


def write_ratings(folder: Path, shape: RatingsShape) -> Path:
    """Write ratings.csv, and movies.csv where items have more than an id; equal seeds, equal bytes.

    Users and items come over time; few items have most of the ratings; a rating is level + user
    bias + item bias + taste . theme + noise, and the theme of an item shows in its genres.
    """
    rng, n, dim = np.random.default_rng([shape.seed, 3]), shape.items, 6
    genre = rng.integers(0, len(NAMED), n)
    theme = 0.8 * rng.normal(size=(len(NAMED), dim))[genre] + 0.6 * rng.normal(size=(n, dim))
    bias, year = rng.normal(0, 0.5, n), rng.integers(1930, 2000, n)
    if shape.features:
        more = np.random.default_rng([shape.seed, 4])
        author = more.integers(0, max(1, n // 8), n)
        theme += more.normal(size=(n, dim))[author]
        pages = np.exp(5.5 + bias + 0.5 * more.normal(size=n))
    popularity = rng.permutation(1 / (np.arange(n) + 5.0)) * np.exp(0.4 * bias)
    out = np.where(rng.random(n) < 0.3, 0, rng.random(n))  # when an item comes out, in [0, 1)
    low, high, step = shape.levels
    rows = []
    for user in range(shape.users):
        begin = rng.random()
        end = min(1, begin + shape.stay * rng.random())
        weight = popularity * (1 + shape.news * np.exp(-np.abs(begin - out) / 0.03)) * (out < end)
        count = min(max(1, rng.poisson(shape.each * rng.lognormal(-0.3, 0.75))), (out < end).sum())
        item = np.argsort(rng.exponential(size=n) / np.maximum(weight, 1e-300))[:count]
        when = rng.uniform(np.maximum(begin, out[item]), end)
        liking = (rng.normal(0, 0.5) + bias[item] + theme[item] @ rng.normal(0, 0.35, dim)
                  + rng.normal(0, 0.7, count))
        share = np.clip(0.62 + 0.19 * liking, 0, 1)  # of the scale
        stars = low + step * np.round(share * (high - low) / step)
        rows += [f"{user + 1},{i + 1},{s:g},{START + int(t * SPAN)}\n"
                 for i, s, t in zip(item, stars, when, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    head = "userId,movieId,rating,timestamp\n"
    write_atomic(folder / "ratings.csv", "".join([head, *rows]).encode())
    if shape.genres or shape.years or shape.features:
        lines = [f"{i + 1},Film {i + 1}{f' ({year[i]})' if shape.years else ''},"
                 f"{NAMED[genre[i]] if shape.genres else ''}"
                 + (f",Author {author[i]},{pages[i]:.0f}" if shape.features else "")
                 + "\n" for i in range(n)]
        head = "movieId,title,genres" + ",author,pages" * shape.features + "\n"
        write_atomic(folder / "movies.csv", "".join([head, *lines]).encode())
    return folder
