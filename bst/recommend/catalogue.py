"""The films that a run knows: ids, titles, filters; and how a new film joins them."""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from bst.data.overviews import title_keys
from bst.data.schema import FIRST_IDX, OOV, id_text
from bst.data.text import TextVectors
from bst.model.build import ContentScale, log_share
from bst.model.network import BST
from bst.training.checkpoint import Fitted
from bst.utils.errors import DataError


@dataclass(frozen=True)
class Interaction:
    """One rating of a history."""

    movie: int | str  # item_id
    rating: float  # stars
    time: int  # seconds since 1970 UTC


@dataclass(frozen=True)
class NewMovie:
    """A film that the catalogue lacks; see `Recommender.with_movies`."""

    movie_id: int | str
    title: str
    genres: tuple[str, ...] = ()
    year: int | None = None
    overview: str | None = None


class Catalogue:
    """The films of a run; row r has index r + FIRST_IDX.

    Args:
        movies: item_id, title, year, genres, ratings and, if known, overview: a list each.
        genres: all of them.
    """

    def __init__(self, movies: dict[str, list], genres: Sequence[str]) -> None:
        self.ids, self.titles, self.years = movies["item_id"], movies["title"], movies["year"]
        self.genres, self.genres_of = list(genres), [g or [] for g in movies["genres"]]
        self.overviews = movies.get("overview") or [None] * len(self.ids)
        self.ratings = np.array(movies["ratings"], dtype=np.int64)  # in train
        self._index = {id_text(movie): k for k, movie in enumerate(self.ids, start=FIRST_IDX)}

    def items(self, movies: Sequence[int | str]) -> np.ndarray:
        """Indices of the films with these ids, (n,) int64; "10" and 10 are one id."""
        unknown = [movie for movie in movies if id_text(movie) not in self._index]
        if unknown:
            name = repr(unknown[0])[:60] if isinstance(unknown[0], str) else unknown[0]
            raise DataError(f"no movie {name} in the catalogue of {len(self.ids)}; "
                            "add it with with_movies")
        return np.array([self._index[id_text(movie)] for movie in movies], dtype=np.int64)

    def name(self, item: int) -> tuple[int | str, str]:
        """Id and title of the film with this index."""
        return self.ids[item - FIRST_IDX], self.titles[item - FIRST_IDX]

    def allowed(self, genres: Sequence[str], years: tuple[int, int] | None) -> np.ndarray:
        """Which rows of the catalogue pass the filters, bool."""
        allowed = np.ones(len(self.ids), dtype=bool)
        self._refuse_genres(genres)
        if len(genres):
            allowed &= [not set(genres).isdisjoint(of) for of in self.genres_of]
        if years is not None:
            low, high = years
            allowed &= [y is not None and low <= y <= high for y in self.years]
        return allowed

    def find(self, title: str) -> int | str:
        """Id of the film with this title: exact, without year, article or accents, or an a.k.a.

        Raises:
            DataError: none or several fit; names the nearest ones.
        """
        if title in self.titles:
            return self.ids[self.titles.index(title)]
        key = next(iter(title_keys(title)), "")
        rows = self._by_key.get(key, [])
        if len(rows) == 1:
            return self.ids[rows[0]]
        if not rows:
            near = difflib.get_close_matches(key, self._by_key, n=3, cutoff=0.6)
            rows = [row for key in near for row in self._by_key[key]]
        listed = "; ".join(f"{self.titles[row]} [{self.ids[row]}]" for row in rows[:5])
        raise DataError(f"no single film '{title}'"
                        + (f"; did you mean: {listed}?" if listed else " or one like it"))

    def search(self, query: str, k: int) -> list[int]:
        """At most k items whose titles have, for each word of `query`, a word that begins so.

        Titles that begin like the query come first, then those with more train ratings.
        """
        words = _fold(query).split()
        rows = [row for row, title in enumerate(self._folded)
                if all(f" {word}" in title for word in words)]
        start = " " + " ".join(words)
        rows.sort(key=lambda row: (not self._folded[row].startswith(start),
                                   -self.ratings[row], row))
        return [row + FIRST_IDX for row in rows[:k]]

    def about(self, item: int) -> dict:
        """The film with this index: id, title, year, genres, overview, train ratings."""
        movie, title = self.name(item)
        row = item - FIRST_IDX
        return {"movie_id": movie, "title": title, "year": self.years[row],
                "genres": list(self.genres_of[row]), "overview": self.overviews[row],
                "ratings": int(self.ratings[row])}

    def check_new(self, new: Sequence[NewMovie]) -> None:
        """Refuse new films whose id is taken or whose genre is unknown."""
        taken = set(self._index)
        for film in new:
            if id_text(film.movie_id) in taken:
                raise DataError(f"movie {film.movie_id} ('{film.title}') is in the catalogue "
                                "already; choose another id")
            taken.add(id_text(film.movie_id))
            self._refuse_genres(film.genres, f"'{film.title}': ")

    def _refuse_genres(self, genres: Sequence[str], where: str = "") -> None:
        for genre in genres:
            if genre not in self.genres:
                raise DataError(f"{where}no genre '{genre}', expected any of "
                                f"{', '.join(self.genres)}")

    @cached_property
    def _folded(self) -> list[str]:
        return [f" {_fold(title)}" for title in self.titles]

    @cached_property
    def _by_key(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for row, title in enumerate(self.titles):
            for key in title_keys(title):
                found[key].append(row)
        return found


def _fold(text: str) -> str:
    """Words of letters and digits, lower case, no accents.

    Example:
        >>> _fold("Cité d'Or (1995)")
        'cite d or 1995'
    """
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain))


def model_with(model: BST, fitted: Fitted, new: Sequence[NewMovie],
               text: TextVectors | None) -> BST:
    """The network with further items in its catalogue, which nobody has rated."""
    state, n = model.state_dict(), len(new)
    scale = ContentScale.of(model, fitted.genres)
    year = np.array([film.year or np.nan for film in new])
    added = {"items.row": torch.full((n,), OOV),
             "items.content": torch.from_numpy(
                 scale.features([film.genres for film in new], year, text)),
             "items.audience": torch.zeros(n, model.sizes.audience),
             "items.year": torch.from_numpy(scale.years(year)), "items.log_count": torch.zeros(n)}
    if model.interest is not None:
        added["interest.log_share"] = log_share(np.zeros(n), sum(fitted.movies["ratings"]))
    longer = BST(model.config, replace(model.sizes, items=model.sizes.items + n))
    longer.load_state_dict(state | {name: torch.cat([state[name], rows.to(state[name].dtype)])
                                    for name, rows in added.items()})
    return longer


def fitted_with(fitted: Fitted, new: Sequence[NewMovie]) -> Fitted:
    """What a run needs, with further items."""
    added = {"item_id": [film.movie_id for film in new], "title": [film.title for film in new],
             "year": [film.year for film in new], "genres": [list(film.genres) for film in new],
             "overview": [film.overview for film in new], "ratings": [0] * len(new)}
    return replace(fitted, movies={name: [*fitted.movies[name], *values]
                                   for name, values in added.items() if name in fitted.movies})
