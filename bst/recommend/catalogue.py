"""The items that a run knows: ids, titles, filters; and how new items join them."""

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real

import numpy as np
import torch

from bst.data.overviews import plain_title, title_keys, without_accents
from bst.data.schema import FIRST_IDX, OOV, id_text
from bst.data.text import TextVectors
from bst.model.build import ContentScale, log_share
from bst.model.network import Network
from bst.training.checkpoint import Fitted
from bst.utils.errors import DataError


@dataclass(frozen=True)
class NewMovie:
    """An item that the catalogue lacks; see `Recommender.with_movies`."""

    movie_id: int | str
    title: str
    genres: tuple[str, ...] = ()
    year: int | None = None
    overview: str | None = None
    features: dict = field(default_factory=dict, hash=False)  # of --item-features: number or words


class Catalogue:
    """The items of a run, from the fields of `Fitted`; row r has index r + FIRST_IDX."""

    def __init__(self, movies: dict[str, list], genres: Sequence[str]) -> None:
        self.ids, self.titles, self.years = movies["item_id"], movies["title"], movies["year"]
        self.genres, self.genres_of = list(genres), [g or [] for g in movies["genres"]]
        self.overviews = movies.get("overview") or [None] * len(self.ids)
        self.train_counts = np.array(movies["ratings"], dtype=np.int64)  # in train
        self.popularity_rank = np.argsort(np.argsort(-self.train_counts, kind="stable"))  # from 0
        self._index = {id_text(movie): k for k, movie in enumerate(self.ids, start=FIRST_IDX)}

    def items(self, movies: Sequence[int | str]) -> np.ndarray:
        """Indices of the items with these ids, (n,) int64; "10" and 10 are one id."""
        movies = [movies] if isinstance(movies, str) else list(movies)
        found = [self._index.get(id_text(movie)) for movie in movies]
        if None in found:
            raise DataError(f"no item {movies[found.index(None)]!r:.60} in the catalogue of "
                            f"{len(self.ids)}, whose ids are like {self.ids[0]!r}")
        return np.array(found, dtype=np.int64)

    def name(self, item: int) -> tuple[int | str, str]:
        """Id and title of the item with this index."""
        return self.ids[item - FIRST_IDX], self.titles[item - FIRST_IDX]

    def allowed(self, genres: Sequence[str], years: tuple[int, int] | None) -> np.ndarray:
        """Which rows of the catalogue pass the filters, bool; genres in any case."""
        allowed = np.ones(len(self.ids), dtype=bool)
        if wanted := set(self.spelt(genres)):
            allowed &= [not wanted.isdisjoint(of) for of in self.genres_of]
        if years is not None:
            allowed &= [y is not None and years[0] <= y <= years[1] for y in self.years]
        return allowed

    def search(self, query: str, k: int) -> list[int]:
        """At most k items; each word of `query` begins a word of their titles.

        Titles that begin with the query come first, then those with more train ratings. If no
        title fits: titles with a similar spelling, the nearest first.
        """
        words = _fold(query).split()
        rows = [row for row, title in enumerate(self._folded)
                if all(f" {word}" in title for word in words)]
        start = " " + " ".join(words)
        rows.sort(key=lambda row: (not self._folded[row].startswith(start),
                                   self.popularity_rank[row]))
        if not rows:
            near = difflib.get_close_matches("".join(title_keys(query)[:1]), self.names, n=k)
            rows = list(dict.fromkeys(row for key in near for row in self.names[key]))
        return [row + FIRST_IDX for row in rows[:k]]

    def about(self, item: int) -> dict:
        """The item with this index: id, title, year, genres, overview, train count."""
        (movie, title), row = self.name(item), item - FIRST_IDX
        return {"movie_id": movie, "title": title, "year": self.years[row],
                "genres": list(self.genres_of[row]), "overview": self.overviews[row],
                "ratings": int(self.train_counts[row])}

    def checked(self, new: Sequence[NewMovie]) -> list[NewMovie]:
        """New items with genres as the catalogue writes them; refused if an id is taken."""
        taken, found = set(self._index), []
        for item in new:
            if id_text(item.movie_id) in taken:
                raise DataError(f"item {item.movie_id} ('{item.title}') is in the catalogue "
                                "already; choose another id")
            taken.add(id_text(item.movie_id))
            genres = tuple(self.spelt(item.genres, f"'{item.title}': "))
            found.append(replace(item, genres=genres))
        return found

    def spelt(self, genres: Sequence[str], where: str = "") -> list[str]:
        """These genres as the catalogue writes them; `where` begins a message."""
        if isinstance(genres, str):
            raise DataError(f"{where}genres is '{genres}', expected a list of names")
        spelling = {genre.casefold(): genre for genre in self.genres}
        for genre in genres:
            if genre.casefold() not in spelling:
                raise DataError(f"{where}no genre '{genre}', expected any of "
                                f"{', '.join(self.genres)}")
        return [spelling[genre.casefold()] for genre in genres]

    @cached_property
    def _folded(self) -> list[str]:
        return [f" {_fold(title)}" for title in self.titles]

    @cached_property
    def names(self) -> dict[str, list[int]]:
        """Rows by each name of an item, see `title_keys`, and by each part between colons."""
        found = defaultdict(list)
        for row, title in enumerate(self.titles):
            parts = (title_keys(part)[:1] for part in re.split(": | - ", plain_title(title)))
            for key in dict.fromkeys(sum(parts, title_keys(title) or [title])):
                found[key].append(row)
        return found


def _fold(text: str) -> str:
    """Words of letters and digits, lower case, no accents.

    Example:
        >>> _fold("Cité d'Or (1995)")
        'cite d or 1995'
    """
    return " ".join(re.findall(r"\w+", without_accents(text.lower())))


def model_with(model: Network, fitted: Fitted, new: Sequence[NewMovie],
               text: TextVectors | None) -> Network:
    """The network with further items, which nobody has rated, in its buffers."""
    state, n = model.state_dict(), len(new)
    scale = ContentScale(**fitted.features, has_year=model.config.year,
                         text_mean=model.text_mean.numpy(), text_axes=model.text_axes.numpy())
    cells = cells_of_new(scale, new)
    added = {"items.row": torch.full((n,), OOV),
             "items.content": torch.from_numpy(scale.features(cells, text)),
             "items.audience": torch.zeros(n, model.sizes.audience),
             "items.year": torch.from_numpy(scale.scaled("year", cells["year"])),
             "items.log_count": torch.zeros(n)}
    if model.interest is not None:
        added["interest.log_share"] = log_share(np.zeros(n), sum(fitted.movies["ratings"]))
    longer = Network(model.config, replace(model.sizes, items=model.sizes.items + n))
    longer.load_state_dict(state | {name: torch.cat([state[name], rows.to(state[name].dtype)])
                                    for name, rows in added.items()})
    return longer


def cells_of_new(scale: ContentScale, new: Sequence[NewMovie]) -> dict[str, Sequence]:
    """What `ContentScale.features` reads of new items; a DataError on a feature that it lacks."""
    names = [name for name in (*scale.values, *scale.scales) if name not in ("genres", "year")]
    for item in new:
        for name, value in item.features.items():
            kind = Real if name in scale.scales else list | tuple
            if name not in names or not isinstance(value, kind | None):
                raise DataError(f"'{item.title}': feature {name}={value!r:.60}, expected names of "
                                f"{', '.join(names) or 'none'}, with a number or a list of words")
    return {name: [item.features.get(name) for item in new] for name in names} | {
        "genres": [item.genres for item in new], "year": [item.year or None for item in new]}


def fitted_with(fitted: Fitted, new: Sequence[NewMovie]) -> Fitted:
    """What a run needs, with further items."""
    added = {"item_id": [item.movie_id for item in new], "title": [item.title for item in new],
             "year": [item.year for item in new], "genres": [list(item.genres) for item in new],
             "overview": [item.overview for item in new], "ratings": [0] * len(new)}
    return replace(fitted, movies={name: [*fitted.movies[name], *values]
                                   for name, values in added.items() if name in fitted.movies})
