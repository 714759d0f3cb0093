"""A run folder + a person's history -> predicted stars, the top items, and the reasons.

    recommender = Recommender.from_pretrained("runs/ml-1m")
    recommender.recommend([(1, 5.0, 978300000), (260, 4.0, 978300060)], k=10)

The numbers are those of training and evaluation: the same functions make them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import repeat

from bst.config import RankBy, check_option
from bst.data.raw import EARLIEST
from bst.data.schema import FIRST_IDX, USER_FEATURES
from bst.data.text import TextVectors, cached_folder, embed_texts
from bst.model.batches import CHUNK, Batch, UserVocabulary, num_chunks
from bst.model.network import Network
from bst.recommend.best import best_items, check_k, in_order
from bst.recommend.catalogue import Catalogue, NewMovie, fitted_with, model_with
from bst.recommend.person import Person, checked, person_batch, seconds
from bst.training.checkpoint import Fitted, load_fitted, load_model
from bst.utils.errors import DataError

EVENTS = 2**13  # of a batch of the network, when each row is a person, or a variant of one
WORK, MIN_TRIED = 2**19, 32  # for an explanation: budget in events; events that are tried anyway


@dataclass(frozen=True)
class Reason:
    """How one event of the history moved a prediction."""

    movie_id: int | str
    title: str
    rating: float  # stars that the person gave
    time: int  # seconds since 1970 UTC
    difference: float  # stars predicted with all events less stars without this one


@dataclass(frozen=True)
class Explanation:
    """One prediction and what events of the history did to it."""

    movie_id: int | str
    title: str
    stars: float
    reasons: tuple[Reason, ...]  # the largest difference first
    rated: float | None = None  # stars that the person gave the item, if the history holds it


@dataclass(frozen=True)
class Recommendation(Explanation):
    """One item of a list."""

    chance: float | None = None  # by interest or both: probability to be rated next


HistoryLike = Person | Sequence[tuple]


class Recommender:
    """Scores any person on any item.

    A history is a list of (item id, stars, seconds since 1970 UTC) or of (item id, stars), in any
    order (equal times count in the order given), or a `Person` that `person` or `Users.person`
    made. What was changed in it is a warning, and stands in `Person.notes`.
    """

    def __init__(self, model: Network, vocabulary: UserVocabulary, fitted: Fitted) -> None:
        self.model, self.vocabulary, self.fitted = model.eval(), vocabulary, fitted
        self.catalogue = Catalogue(fitted.movies, fitted.genres)
        self._next_items = None
        with torch.inference_mode():
            self.embedded = self.model.embed_items()
            if self.model.interest is not None:
                self._next_items = model.next_item_vectors(
                    torch.arange(len(self.catalogue.ids)) + FIRST_IDX)
        self.scale = tuple(self.model.levels[[0, -1]].tolist())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Recommender":
        """The recommender of a run folder that scripts/train.py left, or of a name on the Hub.

        A hub name is looked up in the local cache alone: hf download USER/NAME puts it there. A
        DataError if a file is missing, damaged, from another version or of another run.
        """
        place = Path(folder)
        place = place if place.exists() else cached_folder(str(folder)) or place
        model, vocabulary, info = load_model(place)
        return cls(model, vocabulary, load_fitted(place, info.get("identity")))

    @property
    def ways(self) -> list[str]:
        """What `recommend` can rank by, the best for a list first."""
        return ["stars"] if self._next_items is None else ["both", "interest", "stars"]

    def person(self, history: HistoryLike = (), *, user: dict[str, str] | None = None) -> Person:
        """A person from a history; the person need not be in the training data.

        Args:
            history: ratings; of an item that is rated again the last one counts.
            user: any of sex, age, occupation and zip (or zip_region), as in users.dat.

        Raises:
            DataError: see `person.checked`; an unknown item, or an unknown value of a user feature.
        """
        if isinstance(history, Person):
            if user:
                raise DataError("user= beside a Person, who has features already; leave it out")
            return history
        movies, stars, time, notes = checked(history, self.model.levels.numpy())
        item = self.catalogue.items(movies)
        last = sorted({index: k for k, index in enumerate(item.tolist())}.values())
        if len(last) < len(item):
            notes.append(f"{len(item) - len(last)} of {len(item)} ratings do not count: the same "
                         "item is rated again")
        return Person(item[last], stars[last], time[last], self._encode(user or {}), tuple(notes))

    def predict(self, history: HistoryLike, movies: Sequence[int | str], *, at: int | None = None,
                user: dict[str, str] | None = None) -> np.ndarray:
        """Expected stars of each item, or what was given: (len(movies),) float32, on the scale.

        Args:
            history: ratings of one person.
            movies: ids of items, rated or not.
            at: seconds since 1970 UTC; None: a second after the last rating.
            user: see `person`.

        Raises:
            DataError: see `person`; or an event is not before `at`.
        """
        if not len(movies):
            return np.zeros(0, dtype=np.float32)
        person, at = self._person_and_time(history, user, at)
        return np.clip(self.score(person, self.catalogue.items(movies), at), *self.scale)

    def recommend(
        self, history: HistoryLike, k: int = 10, *, at: int | None = None,
        user: dict[str, str] | None = None, exclude_seen: bool = True,
        genres: Sequence[str] = (), years: tuple[int, int] | None = None, reasons: int = 0,
        by: RankBy = "stars", exact: bool = False,
    ) -> list[Recommendation]:
        """The k best items of the catalogue, best first.

        By stars: those that this person would rate highest. By interest: those that this person is
        most likely to rate next, whatever the stars; `chance` is the probability of each among the
        candidates. By both: by the log of the chance plus the stars, which weigh more on a longer
        scale. Equal scores: the item with more train ratings first.

        Args:
            history: ratings of one person.
            k: items, at most.
            at: seconds since 1970 UTC; None: a second after the last rating.
            user: see `person`.
            exclude_seen: leave out what the history holds.
            genres: items with any of these genres, in any case; none: all.
            years: first and last release year.
            reasons: events to name for each item: those whose removal lowers its stars most.
            by: stars, interest or both.
            exact: score every item with the whole network; else see `best_items`.

        Raises:
            DataError: see `predict`; or no such genre; or the run has no next-item head.
        """
        person, at = self._person_and_time(history, user, at)
        allowed = self.catalogue.allowed(genres, years)
        (rows,), (score,) = self.best(person_batch(person, at), k, allowed=allowed, by=by,
                                      exclude_seen=exclude_seen, exact=exact)
        items, score = rows[rows >= 0] + FIRST_IDX, score[rows >= 0]
        stars, chance = score, None
        if by != "stars":  # `score` is the log of the chance, plus the stars if by both
            stars = self.score(person, items, at)
            chance = np.exp(score - stars if by == "both" else score)
        why = self._differences(person, items, at) if reasons and len(items) else None
        return [Recommendation(
            *self.catalogue.name(item), float(np.clip(stars[rank], *self.scale)),
            () if why is None else self._reasons(person, why[rank], limit=reasons),
            person.given.get(item), None if chance is None else float(chance[rank]),
        ) for rank, item in enumerate(items)]

    def best(self, batch: Batch, k: int, *, allowed: np.ndarray, exclude_seen: bool = True,
             by: RankBy = "stars", exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each row, and the scores that they are ranked by; see `in_order`.

        An item that the history holds has the stars that were given.

        Args:
            batch: histories with one target each, see `batches.request_batch`.
            k: items, at most.
            allowed: (n,) bool, of the catalogue.
            exclude_seen: as of `recommend`, like what follows.
            by: stars, interest or both.
            exact: see `best_items`.
        """
        check_k(k)
        check_option("by", by, RankBy)
        given = np.full((len(batch.user), len(allowed) + FIRST_IDX), np.nan, dtype=np.float32)
        np.put_along_axis(given, batch.event_item.flatten(1).numpy(),
                          batch.event_rating.flatten(1).numpy(), axis=1)
        given = given[:, FIRST_IDX:]
        allowed = allowed & (np.isnan(given) | (not exclude_seen))
        rank, log_chance = self.catalogue.popularity_rank, None
        if by != "stars":
            scores = self.interest(batch).masked_fill(~torch.from_numpy(allowed), -torch.inf)
            log_chance = scores.log_softmax(dim=-1).numpy()
        if by == "interest":
            every = np.broadcast_to(np.arange(len(rank)), allowed.shape)
            return in_order(every, log_chance, rank, k)
        return best_items(self.model, self.embedded, batch, k, allowed=allowed,
                          rank=rank, bonus=log_chance, given=given, exact=exact)

    def explain(self, history: HistoryLike, movie: int | str, *, at: int | None = None,
                user: dict[str, str] | None = None) -> Explanation:
        """What each event of the history did to the prediction for an item.

        `difference` is exact: the person is scored again without the event, everything that
        depends on it recomputed, before the clamp to the scale. Differences do not add up: events
        stand in for each other. Attention weights are no explanation: they do not say which way
        an event pushed (Jain and Wallace 2019, arXiv 1902.10186). The cost grows with the square of
        the history, so of more than 724 events the newest are tried: 349 of 1,500, at least 32.
        """
        person, at = self._person_and_time(history, user, at)
        items = self.catalogue.items([movie])
        reasons = self._reasons(person, self._differences(person, items, at)[0])
        (stars,) = np.clip(self.score(person, items, at), *self.scale).tolist()
        return Explanation(*self.catalogue.name(items[0]), stars, reasons,
                           person.given.get(items[0]))

    def similar(self, movie: int | str, k: int = 10) -> list[tuple[int | str, str, float]]:
        """The k items that people like and dislike together with `movie`: (id, title, cosine).

        The cosine is between the keys of the regression heads, less their mean over the catalogue.
        An item without ratings has the key of its content.
        """
        check_k(k)
        (item,) = self.catalogue.items([movie])
        keys = self.embedded.table[FIRST_IDX:, :-2]
        keys = keys - keys.mean(dim=0)
        cosine = torch.cosine_similarity(keys, keys[item - FIRST_IDX][None]).numpy()
        order = [row for row in np.argsort(-cosine, kind="stable") if row != item - FIRST_IDX][:k]
        return [(*self.catalogue.name(row + FIRST_IDX), float(cosine[row])) for row in order]

    @torch.inference_mode()
    def score(self, person: Person, items: np.ndarray, at: int) -> np.ndarray:
        """Expected stars before the clamp to the scale, by which items are ranked: (items,).

        An item that the history holds has the stars that were given.

        Args:
            person: as `person` and `Users.person` make one; every event before `at`.
            items: (i,) item indices.
            at: seconds since 1970 UTC.
        """
        batch = person_batch(person, at).about(items[None])
        stars = self.model(batch, self.embedded)[0, 0].tolist()
        return np.array(list(map(person.given.get, items.tolist(), stars)), dtype=np.float32)

    @torch.inference_mode()
    def interest(self, batch: Batch) -> torch.Tensor:
        """Log chance (b, n) to be rated next, up to a constant; a DataError without such a head."""
        if self._next_items is None:
            raise DataError("this run cannot rank by interest, it has no such head; train with "
                            "--interest 6, or rank by stars")
        return self.model.next_item_scores(batch, self._next_items)

    def with_movies(self, new: Sequence[NewMovie], *,
                    cache_dir: Path = Path("data/cache")) -> "Recommender":
        """A recommender whose catalogue holds further items, which nobody has rated yet.

        Each has the key of its content. Overviews are embedded with the run's encoder.

        Raises:
            DataError: an id is taken, a genre or a feature unknown, or the run read no real texts.
        """
        if not new:
            return self
        new = self.catalogue.checked(new)
        text = self._embed(new, cache_dir)
        model = model_with(self.model, self.fitted, new, text)
        return Recommender(model, self.vocabulary, fitted_with(self.fitted, new))

    def _encode(self, user: dict[str, str]) -> np.ndarray:
        """Vocabulary indices (1 + features,) of a person without an id."""
        user = {k: None if v is None else str(v) for k, v in user.items()}
        if "zip" in user:
            user["zip_region"] = (user.pop("zip") or "")[:1] or None
        for name, value in user.items():
            if name not in USER_FEATURES:
                raise DataError(f"no user feature '{name}', expected sex, age, occupation or zip")
            values = self.vocabulary.features[name]
            if value is not None and value not in values:
                raise DataError(f"{name} '{value}' is not one of {', '.join(values)}")
        row = {name: [user.get(name)] for name in ("user_id", *USER_FEATURES)}
        return self.vocabulary.encode(row)[0]

    def _person_and_time(self, history: HistoryLike, user: dict | None, at: int | None
                         ) -> tuple[Person, int]:
        """The person and the time of a request, checked."""
        person = self.person(history, user=user)
        for note in () if person is history else person.notes:
            warnings.warn(note, stacklevel=3)
        last = int(person.time[-1]) if len(person) else 0
        if at is not None and len(person) and last < EARLIEST:
            raise DataError("at: the events of the history have no time; give them one, or no at")
        at = last + 1 if at is None else seconds(at, "at")
        if len(person) and at < last + (self.fitted.protocol["ties"] == "strict"):
            raise DataError(f"history event {len(person) - 1} is at {last}, not before at={at}; "
                            "leave it out (`Person.before`) or ask at a later time")
        return person, at

    @torch.inference_mode()
    def _differences(self, person: Person, items: np.ndarray, at: int) -> np.ndarray:
        """Stars with all events less stars without each of the newest: (items, events tried)."""
        n = len(person)
        tried = min(n, max(MIN_TRIED, WORK // max(n, 1)))
        kept = np.concatenate([np.ones((1, n), bool), ~np.eye(tried, n, n - tried, bool)])
        rows = max(1, EVENTS // (CHUNK * int(num_chunks(np.array([n]))[0])))
        parts = np.split(kept, range(rows, len(kept), rows))
        score = torch.cat([
            self.model(person_batch(person, at, part).about(repeat(items, "i -> p i", p=len(part))),
                       self.embedded)[:, 0] for part in parts])
        is_rated = kept @ (person.item[:, None] == items)  # the variant holds the item
        score = np.where(is_rated, [person.given.get(item, 0) for item in items], score.numpy())
        return (score[:1] - score[1:]).T

    def _reasons(self, person: Person, difference: np.ndarray, *,
                 limit: int | None = None) -> tuple[Reason, ...]:
        """The largest absolute difference first; with a `limit`, only what raised the stars."""
        person = person.take(np.arange(len(person) - len(difference), len(person)))
        order = np.argsort(-np.abs(difference) if limit is None else -difference, kind="stable")
        if limit is not None:
            order = order[difference[order] > 0][:limit]
        return tuple(Reason(*self.catalogue.name(person.item[k]), float(person.rating[k]),
                            int(person.time[k]), float(difference[k])) for k in order)

    def _embed(self, new: list[NewMovie], cache_dir: Path) -> TextVectors | None:
        """Overview vectors of new items by the run's encoder; None if the run used no text."""
        if not self.model.sizes.text:
            return None
        encoder = self.fitted.encoder
        if encoder["text_source"] not in ("overview", "title"):
            raise DataError(f"this run read '{encoder['text_source']}' texts, a control; train "
                            "with --text-source overview to place new items")
        texts = [getattr(item, encoder["text_source"]) for item in new]
        found = embed_texts(texts, bert=encoder["bert"], pooling=encoder["pooling"],
                            cache_dir=cache_dir)
        if found.has_text.any():
            return found
        return TextVectors(np.zeros((len(texts), self.model.sizes.overview), np.float32),
                           found.has_text)
