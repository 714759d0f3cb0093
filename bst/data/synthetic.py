"""MovieLens-shaped files of any size from a seed: the built-in default and the scale test.

A user's rating = level + user bias + item bias + taste . theme + drift + noise, in whole stars.
The theme of a film shows in its genres and its overview, so text says something about a film that
nobody has rated; a user's taste drifts, so recent ratings say more than old ones.
"""

import csv
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bst.utils.files import open_atomic, sha256_of, write_atomic

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
)
AGE_CODES = np.array([1, 18, 25, 35, 45, 50, 56])
THEMES = {  # words of an overview, by theme
    "sea": "captain sailor harbour storm island lighthouse voyage crew",
    "space": "planet starship colony orbit alien signal android galaxy",
    "crime": "detective heist gangster alibi witness informer vault betrayal",
    "love": "wedding letter kiss summer romance heartbreak promise reunion",
    "war": "soldier trench general regiment siege resistance medal ambush",
    "family": "daughter grandmother kitchen brother village inheritance farm holiday",
    "magic": "wizard dragon spell kingdom prophecy curse enchanted forest",
    "fear": "haunted scream cellar stranger nightmare ghost asylum ritual",
    "stage": "singer orchestra dancer theatre audition band spotlight musical",
    "sport": "boxer coach championship stadium rival training underdog marathon",
    "law": "lawyer verdict courtroom senator scandal election journalist evidence",
    "west": "sheriff saloon outlaw cattle prairie duel stagecoach ranch",
}
GOOD = "celebrated moving masterful unforgettable luminous subtle".split()
BAD = "clumsy tired hollow predictable noisy forgettable".split()
NOUNS = "Night River Garden Letter Winter Shadow Bridge Mirror Road Song Tower Harvest".split()
ADJECTIVES = "Silent Golden Broken Distant Hidden Crimson Last Étranger Lonely Bright".split()
START, SPAN = 956_700_000, 90_000_000  # seconds since 1970 UTC; about three years
FILES = ("users.dat", "movies.dat", "ratings.dat", "movies_metadata.csv")
BLOCK = 500  # users that are drawn and written together: memory stays flat


@dataclass(frozen=True)
class Shape:
    """Size and seed of a data set."""

    num_users: int = 1500
    num_movies: int = 500
    num_ratings: int = 120_000  # about
    seed: int = 0


def write_synthetic(
    folder: Path, *, num_users: int = 1500, num_movies: int = 500, num_ratings: int = 120_000,
    seed: int = 0,
) -> Path:
    """Write users.dat, movies.dat, ratings.dat and movies_metadata.csv; equal seeds, equal bytes.

    A folder that already holds the same data is left as it is.

    Args:
        folder: made if it is not there.
        num_users: at least 1.
        num_movies: at least 40.
        num_ratings: about as many; each user has at least 20.
        seed: of everything.

    Returns:
        The folder.
    """
    if num_users < 1 or num_movies < 40 or num_ratings < 20 * num_users:
        raise ValueError(f"expected at least 1 user, 40 movies and 20 ratings a user, got "
                         f"{num_users}, {num_movies} and {num_ratings}")
    shape = Shape(num_users, num_movies, num_ratings, seed)
    done = folder / "synthetic.json"
    with suppress(OSError, ValueError):  # not there, cut or damaged: all is written again
        if json.loads(done.read_bytes()) == _described(folder, shape):
            return folder
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    movies = _Movies(shape)
    movies.write(folder)
    with open_atomic(folder / "users.dat", "w", encoding="latin-1") as users, \
            open_atomic(folder / "ratings.dat", "w", encoding="latin-1") as ratings:
        for block in range(0, num_users, BLOCK):
            _write_block(movies, shape, block, users, ratings)
    write_atomic(done, json.dumps(_described(folder, shape)).encode())
    return folder


def _described(folder: Path, shape: Shape) -> dict:
    """The shape, and the sha256 of each file."""
    return {**asdict(shape), "sha256": {name: sha256_of(folder / name) for name in FILES}}


class _Movies:
    """Themes, quality, popularity, names and overviews of the films."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng([shape.seed, 1])
        n = shape.num_movies
        self.item_id = np.cumsum(rng.integers(1, 3, n))
        self.theme = rng.dirichlet(np.full(len(THEMES), 0.15), n)  # one or two themes a film
        self.bias = rng.normal(0, 0.45, n)
        self.year = rng.integers(1930, 2000, n)
        weight = 1 / (np.arange(n) + 10.0)  # a long tail; the last films are hardly rated
        self.weight = rng.permutation(weight * np.exp(0.4 * self.bias))
        self.weight[rng.permutation(n)[: n // 25]] = 0  # nobody rated these
        of_theme = rng.normal(size=(len(THEMES), len(GENRES)))
        fit = self.theme @ of_theme + rng.normal(0, 0.3, (n, len(GENRES)))
        self.genres = [np.sort(np.argsort(-row)[:k]) for row, k in
                       zip(fit, rng.integers(1, 4, n), strict=True)]
        self.rng = rng

    def write(self, folder: Path) -> None:
        """movies.dat and movies_metadata.csv."""
        rng, words = self.rng, [w.split() for w in THEMES.values()]
        with open_atomic(folder / "movies.dat", "w", encoding="latin-1") as movies, \
                open_atomic(folder / "movies_metadata.csv", "w", encoding="utf-8",
                            newline="") as file:
            metadata = csv.writer(file)
            metadata.writerow(["id", "title", "original_title", "overview", "release_date"])
            for k, item in enumerate(self.item_id):
                name = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {k}"
                article = rng.random() < 0.25
                genres = "|".join(GENRES[g] for g in self.genres[k])
                movies.write(f"{item}::{name}{', The' if article else ''} ({self.year[k]})"
                             f"::{genres}\n")
                full = f"{'The ' if article else ''}{name}"
                overview = "" if rng.random() < 0.03 else self._overview(rng, k, words)
                metadata.writerow([10_000 + k, full, full, overview, f"{self.year[k]}-06-01"])

    def _overview(self, rng: np.random.Generator, k: int, words: list[list[str]]) -> str:
        themes = rng.choice(len(words), size=9, p=self.theme[k])
        w = [rng.choice(words[t]) for t in themes]
        good = rng.random(2) < 1 / (1 + np.exp(-4 * self.bias[k]))
        tone = [rng.choice(GOOD if g else BAD) for g in good]
        return (f"A {tone[0]} story of a {w[0]} and a {w[1]}: after the {w[2]}, a {w[3]} must face "
                f"the {w[4]} and the {w[5]}. With a {w[6]}, a {w[7]} and a {tone[1]} {w[8]}.")


def _write_block(movies: _Movies, shape: Shape, block: int, users, ratings) -> None:
    """Users `block`, ... of the file: each block has its own stream of chance."""
    rng = np.random.default_rng([shape.seed, 2, block])
    n = min(BLOCK, shape.num_users - block)
    ids = block + 1 + np.arange(n)
    zips = rng.integers(10_000, 99_999, n)
    sex, age = rng.choice(["F", "M"], n, p=[0.3, 0.7]), rng.choice(AGE_CODES, n)
    occupation = rng.integers(0, 21, n)
    users.writelines(f"{i}::{s}::{a}::{o}::{z}\n"
                     for i, s, a, o, z in zip(ids, sex, age, occupation, zips, strict=True))
    spare = shape.num_ratings / shape.num_users - 20
    count = 20 + (rng.lognormal(0, 1.0, n) * spare / np.exp(0.5)).astype(int)
    rated = np.flatnonzero(movies.weight)
    count = np.minimum(count, len(rated))
    keys = rng.exponential(size=(n, len(rated))) / movies.weight[rated]  # draws without repeats
    order = np.argsort(keys, axis=1)
    row = np.repeat(np.arange(n), count)  # (m,) user of each rating
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    item = rated[order[row, rank]]
    late = (shape.num_users - ids) / shape.num_users  # ids run against joining order
    start = START + (late * 0.9 * SPAN).astype(np.int64)
    session = rank // rng.integers(15, 40, n)[row]
    pause = rng.exponential(60 * 86_400, len(row)) * (np.diff(session, prepend=0) == 1)
    step = np.where(rng.random(len(row)) < 0.5, 0, rng.exponential(40, len(row))) + pause
    passed = np.cumsum(step.astype(np.int64))
    when = start[row] + passed - passed[np.cumsum(count) - count][row]
    taste = rng.normal(0, 1.5, (n, len(THEMES)))
    shift = rng.normal(0, 1.3, (n, len(THEMES)))  # taste at the end minus taste at the start
    mood = rng.normal(0, 0.3, (n, int(session.max()) + 1))
    progress = (rank / count[row])[:, None]
    liking = ((taste[row] + shift[row] * progress) * (movies.theme[item] - 1 / len(THEMES))).sum(1)
    score = (3.6 + rng.normal(0, 0.4, n)[row] + movies.bias[item] + liking + mood[row, session]
             + rng.normal(0, 0.55, len(row)))
    stars = np.clip(np.round(score), 1, 5).astype(int)
    ratings.writelines(f"{i}::{m}::{s}::{t}\n" for i, m, s, t in zip(
        ids[row].tolist(), movies.item_id[item].tolist(), stars.tolist(), when.tolist(),
        strict=True))


@dataclass(frozen=True, kw_only=True)
class RatingsShape:
    """A set of ratings unlike MovieLens-1M: users have an id and nothing else, items no text."""

    users: int
    each: int  # ratings of a user, about
    items: int
    levels: tuple[float, float, float] = (1, 5, 1)  # lowest and highest rating, and the step
    genres: bool = False
    years: bool = False
    news: float = 0.0  # how much items that have just come out are sought, above all
    stay: float = 0.5  # share of the whole time for which a user stays, at most
    seed: int = 0


def write_ratings(folder: Path, shape: RatingsShape) -> Path:
    """Write ratings.csv, and movies.csv where items have genres or years; equal seeds, equal bytes.

    Users and items come over time; few items have most of the ratings; a rating is level + user
    bias + item bias + taste . theme + noise, and the theme of an item shows in its genres.
    """
    rng, n, dim = np.random.default_rng([shape.seed, 3]), shape.items, 6
    genre = rng.integers(0, len(GENRES), n)
    theme = 0.8 * rng.normal(size=(len(GENRES), dim))[genre] + 0.6 * rng.normal(size=(n, dim))
    bias, year = rng.normal(0, 0.5, n), rng.integers(1930, 2000, n)
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
    if shape.genres or shape.years:
        lines = [f"{i + 1},Film {i + 1}{f' ({year[i]})' if shape.years else ''},"
                 f"{GENRES[genre[i]] if shape.genres else ''}\n" for i in range(n)]
        write_atomic(folder / "movies.csv", "".join(["movieId,title,genres\n", *lines]).encode())
    return folder
