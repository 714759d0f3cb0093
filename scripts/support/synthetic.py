"""MovieLens-shaped files of any size from a seed: the built-in default and the scale test.

A user's rating = level + user bias + item bias + taste . theme + drift + noise, in whole stars.
The theme of a movie shows in its genres and its overview, so text says something about a movie that
nobody has rated; a user's taste drifts, so recent ratings say more than old ones.
"""

import csv
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bst.config import DataConfig
from bst.data.movielens import AGES, GENRES
from bst.utils.errors import DataError
from bst.utils.files import open_atomic, sha256_of, write_atomic

BUILTIN = Path("data/builtin")
NAMED = GENRES[1:]
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


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size and seed of a data set."""

    num_users: int = 1500
    num_movies: int = 500  # at least 40
    num_ratings: int = 120_000  # about; each user has at least 20
    seed: int = 0


def write_synthetic(folder: Path, **size: int) -> Path:
    """Write `FILES` of a `Shape` to the folder, which is returned; equal seeds, equal bytes.

    A folder that already holds the same data is left as it is.
    """
    shape = Shape(**size)
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
        for block in range(0, shape.num_users, BLOCK):
            _write_block(movies, shape, block, users, ratings)
    write_atomic(done, json.dumps(_described(folder, shape)).encode())
    return folder


def _described(folder: Path, shape: Shape) -> dict:
    """The shape, and the sha256 of each file."""
    return {**asdict(shape), "sha256": {name: sha256_of(folder / name) for name in FILES}}


class _Movies:
    """Themes, quality, popularity, names and overviews of the movies."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng([shape.seed, 1])
        n = shape.num_movies
        self.item_id = np.cumsum(rng.integers(1, 3, n))
        self.theme = rng.dirichlet(np.full(len(THEMES), 0.15), n)  # one or two themes per movie
        self.bias = rng.normal(0, 0.45, n)
        self.year = rng.integers(1930, 2000, n)
        weight = 1 / (np.arange(n) + 10.0)  # a long tail; the last movies are hardly rated
        self.weight = rng.permutation(weight * np.exp(0.4 * self.bias))
        self.weight[rng.permutation(n)[: n // 25]] = 0  # nobody rated these
        of_theme = rng.normal(size=(len(THEMES), len(NAMED)))
        fit = self.theme @ of_theme + rng.normal(0, 0.3, (n, len(NAMED)))
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
                genres = "|".join(NAMED[g] for g in self.genres[k])
                movies.write(f"{item}::{name}{', The' * article} ({self.year[k]})::{genres}\n")
                full = f"{'The ' * article}{name}"
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
    """Write the users from number `block` on; each block has its own random generator."""
    rng = np.random.default_rng([shape.seed, 2, block])
    n = min(BLOCK, shape.num_users - block)
    ids = block + 1 + np.arange(n)
    zips = rng.integers(10_000, 99_999, n)
    sex, age = rng.choice(["F", "M"], n, p=[0.3, 0.7]), rng.choice(np.array(AGES, int), n)
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


def with_builtin(config: DataConfig) -> DataConfig:
    """`config` with the folder of the built-in data where it names none."""
    if config.data is not None:
        return config
    if config.metadata is not None or config.format != "auto":
        flag = f"--metadata {config.metadata}" if config.metadata else f"--format {config.format}"
        raise DataError(f"{flag} without --data: give the folder of the ratings with --data")
    print(f"no --data: using the built-in synthetic data in {BUILTIN} (not MovieLens)")
    folder = write_synthetic(BUILTIN)
    return replace(config, data=folder, metadata=folder / "movies_metadata.csv")
