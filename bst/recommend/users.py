"""The users of the store that a run was trained on: predictions and lists of many at a time."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch

from bst.config import RankBy
from bst.data.schema import FIRST_IDX, OOV, id_text, rows_of
from bst.data.sequences import SequenceStore
from bst.data.splits import split_interactions
from bst.model.batches import Events, Targets, lay_out, num_chunks, packed, request_batch
from bst.recommend.best import SHORTLIST, check_k
from bst.recommend.person import Person
from bst.recommend.recommender import EVENTS, Recommender
from bst.utils.errors import DataError


class Users:
    """The u users of a store, rows 0 to u - 1; row u is an unknown user without a history.

    Args:
        recommender: of the run.
        store: that the run was trained on.

    Raises:
        DataError: the store is another one.
    """

    def __init__(self, recommender: Recommender, store: SequenceStore) -> None:
        wanted, fitted = recommender.fitted.identity["data"], recommender.fitted
        if store.digest != wanted:
            raise DataError(f"the store is {store.digest[:8]}, expected the one of this run, "
                            f"{wanted[:8]}; give the data it was trained on")
        self.recommender, self.ids = recommender, store.users["user_id"]
        is_history = split_interactions(store, **fitted.protocol).is_history
        ends = np.append(store.offsets, store.offsets[-1])  # the last user has no ratings
        before = np.concatenate([[0], np.cumsum(is_history)])[ends]
        self._begin, self._size = before[:-1], np.diff(before)
        self._events = Events(store.item_idx[is_history].astype(np.int64),
                              store.rating[is_history], store.timestamp[is_history])
        codes = recommender.vocabulary.encode(store.users)
        self._codes = np.concatenate([codes, np.full((1, codes.shape[1]), OOV)])
        self._side = "left" if fitted.protocol["ties"] == "strict" else "right"
        self._now = int(self._events.time.max(initial=0)) + 1

    def rows(self, ids: pl.Series) -> np.ndarray:
        """Row of each user, (m,) int64; u for one whom the store does not know."""
        rows = rows_of(ids, self.ids).to_numpy().astype(np.int64)
        return np.where(rows < 0, len(self.ids), rows)

    def person(self, user_id: int | str) -> Person:
        """One user, with all ratings that may be history; a DataError if the store has no such."""
        (row,) = self.rows(pl.Series([id_text(user_id)]))
        if row == len(self.ids):
            raise DataError(f"no user {user_id} among the {row} users of the store, whose ids are "
                            f"like {self.ids[0]}")
        mine = slice(self._begin[row], self._begin[row] + self._size[row])
        return Person(self._events.item[mine], np.array(self._events.rating[mine]),
                      np.array(self._events.time[mine]), self._codes[row])

    @torch.inference_mode()
    def predict(self, rows: np.ndarray, items: np.ndarray, at: np.ndarray | None = None
                ) -> np.ndarray:
        """Expected stars of pairs, (m,) float32; of a pair that is rated by then, what was given.

        Args:
            rows: (m,) of users, see `rows`.
            items: (m,) item indices; `OOV` for an unknown item.
            at: (m,) seconds since 1970 UTC; None: a second after the user's last rating.
        """
        model, (rating, position) = self.recommender.model, self._given(rows, items)
        seen, at = (self._size[rows], self._after(rows)) if at is None else (
            self._seen(rows, at), at)
        stars = np.empty(len(rows), np.float32)
        order = np.argsort(rows, kind="stable")
        mine = np.split(order, np.flatnonzero(np.diff(rows[order])) + 1) if len(rows) else []
        size = np.array([seen[places].max() for places in mine], dtype=np.int64)
        for group in self._groups(size, np.array([len(places) for places in mine])):
            place = np.concatenate([mine[k] for k in group])
            row = np.repeat(np.arange(len(group)), [len(mine[k]) for k in group])
            user = rows[[mine[k][0] for k in group]]
            batch = lay_out(self._events, self._begin[user], size[group], Targets(
                row, items[place], at[place], seen[place], np.zeros(len(row)), place),
                self._codes[user])
            found = model(batch, self.recommender.embedded)
            stars[batch.position[batch.is_target].numpy()] = found[batch.is_target].numpy()
        stars = np.clip(stars, *self.recommender.scale)
        return np.where(position < seen, rating, stars).astype(np.float32)

    def recommend(
        self, rows: np.ndarray, k: int, *, at: int | np.ndarray | None = None,
        exclude_seen: bool = True, among: np.ndarray | None = None, by: RankBy = "stars",
        exact: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each user, best first; see `Recommender.recommend`.

        Args:
            rows: (m,) of users, see `rows`.
            k: items, at most.
            at: seconds since 1970 UTC, of all or (m,) of each; None: a second after the last
                rating of each.
            exclude_seen: leave out what the user has rated by then.
            among: item indices to choose from; None: all.
            by: stars, interest or both.
            exact: see `best_items`.

        Returns:
            (m, k) item indices, 0 where too few are left, and the scores that they are ranked by.
        """
        check_k(k)
        n = len(self.recommender.catalogue.ids)
        time = self._after(rows) if at is None else np.broadcast_to(at, len(rows))
        seen = self._size[rows] if at is None else self._seen(rows, time)
        items, scores = np.zeros((len(rows), k), np.int64), np.full((len(rows), k), np.nan)
        allowed = np.ones(n, bool) if among is None else np.bincount(
            among - FIRST_IDX, minlength=n) > 0
        for group in self._groups(seen, np.full(len(rows), SHORTLIST)):
            user, count = rows[group], seen[group]
            batch = request_batch(
                self._events, self._begin[user], count, self._codes[user], time[group])
            found, score = self.recommender.best(batch, k, allowed=allowed, by=by,
                                                 exclude_seen=exclude_seen, exact=exact)
            items[group, :found.shape[1]] = np.where(found < 0, 0, found + FIRST_IDX)
            scores[group, :found.shape[1]] = score
        return items, scores

    def _groups(self, size: np.ndarray, num_items: np.ndarray) -> Iterator[np.ndarray]:
        """Rows that share a batch, those of about equally long histories."""
        chunks = num_chunks(size)
        return map(np.array, packed(np.argsort(chunks, kind="stable"), chunks, num_items, EVENTS))

    def _after(self, rows: np.ndarray) -> np.ndarray:
        """A second after the last rating of each, (m,); without ratings: after those of all."""
        last = np.maximum(self._begin + self._size - 1, 0)[rows]
        return np.where(self._size[rows] > 0, self._events.time[last] + 1, self._now)

    def _seen(self, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        """How many of each one's ratings come before a time, (m,).

        One binary search in the events, sorted by user and, of a user, by time.
        """
        user = np.repeat(np.arange(len(self._size)), self._size)
        before = int(self._events.time.min(initial=self._now)) - 1  # all events
        span = self._now - before + 1

        def key(row: np.ndarray, time: np.ndarray) -> np.ndarray:
            return row * span + np.clip(time, before, self._now) - before

        found = np.searchsorted(key(user, self._events.time), key(rows, at), side=self._side)
        return found - self._begin[rows]

    def _given(self, rows: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stars that each user gave an item, and its place in the history; past its end if none."""
        user = np.repeat(np.arange(len(self._size)), self._size)
        rated = pl.DataFrame({"row": user, "item": self._events.item, "rating": self._events.rating,
                              "place": np.arange(len(user)) - self._begin[user]})
        found = pl.DataFrame({"row": rows, "item": items}).join(
            rated, on=["row", "item"], how="left", maintain_order="left")
        return (found["rating"].fill_null(0).to_numpy(),
                found["place"].fill_null(np.iinfo(np.int64).max).to_numpy())


def table_of(users: pl.Series, catalogue: pl.Series, items: np.ndarray, scores: np.ndarray
             ) -> pl.DataFrame:
    """Lists as a table, one row per item: user_id, item_id, rank from 1, score.

    Args:
        users: (m,) ids.
        catalogue: ids of all items.
        items: (m, k) indices, 0 where there is none.
        scores: (m, k).
    """
    rank, listed = np.tile(np.arange(1, items.shape[1] + 1), len(items)), (items > 0).ravel()
    return pl.DataFrame({
        "user_id": users.gather(np.repeat(np.arange(len(items)), items.shape[1])[listed]),
        "item_id": catalogue.gather(items.ravel()[listed] - FIRST_IDX),
        "rank": rank[listed], "score": scores.ravel()[listed].astype(np.float32)})
