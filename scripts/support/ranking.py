"""Top-k lists over the whole catalogue, for everybody with ratings in a part of the split.

A person is asked once, at the time of the first rating in the part, with the history that this
rating may see. Candidates: all films of the catalogue but those of the history. Relevant: the films
that the person rates in the part, or those with `LIKED` stars or more. Equal scores: the film with
more train ratings first, then catalogue order.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bst.data.schema import FIRST_IDX, PAD
from bst.data.sequences import SequenceStore
from bst.data.splits import History, Split
from bst.evaluation.baselines import item_bias
from bst.evaluation.metrics import spread, user_bootstrap
from bst.recommend.person import Person
from bst.recommend.recommender import Recommender
from bst.recommend.users import Users

LIKED = 4.0  # stars
RECENT = 7 * 24 * 3600  # seconds; chosen on the valid part of MovieLens-1M among 2 to 90 days
Score = Callable[[np.ndarray, int], np.ndarray]  # items, time -> (items,)


def scores(
    recommender: Recommender, recent: Score, bias: np.ndarray, person: Person, items: np.ndarray,
    at: int,
) -> dict[str, np.ndarray]:
    """What is compared, by name: scores (items,) of candidates for a person at a time.

    All but the recent popularity know of other people what was fitted on train alone.
    """
    popularity = recommender.catalogue.ratings[items - FIRST_IDX]
    found = {
        "bst stars": recommender.score(person, items, at),
        "item mean": bias[items],
        "popularity": popularity,
        "recent popularity": recent(items, at),
    }
    if recommender.model.interest is None:
        return found
    interest = recommender.interest(person, items, at)
    return {"bst interest": interest, "bst interest + stars": interest + found["bst stars"],
            **found}


def recent_popularity(store: SequenceStore, split: Split, *, seconds: int = RECENT) -> Score:
    """Ratings by anybody in the `seconds` before the request, of those that may be history."""
    rows = np.flatnonzero(split.is_history)
    rows = rows[np.argsort(store.timestamp[rows], kind="stable")]
    time, item = store.timestamp[rows], store.item_idx[rows]

    def score(items: np.ndarray, at: int) -> np.ndarray:
        window = slice(*np.searchsorted(time, [at - seconds, at]))
        return np.bincount(item[window], minlength=store.num_items + FIRST_IDX)[items]

    return score


def top_lists(
    recommender: Recommender, store: SequenceStore, split: Split, part: str, k: int
) -> tuple[dict[str, np.ndarray], list[dict[int, float]]]:
    """The lists of every scorer, and what was really rated.

    Args:
        recommender: of the run.
        store: that the run was trained on.
        split: of the run.
        part: valid or test.
        k: length of a list.

    Returns:
        (u, k) item indices by scorer, best first, PAD where candidates are fewer; and for each
        user the stars of the part by item.
    """
    recent, history = recent_popularity(store, split), History.of(store, split)
    _, bias = item_bias(store, split)
    count = np.concatenate([np.zeros(FIRST_IDX), recommender.catalogue.ratings])
    targets = split.part(part)
    begin = np.flatnonzero(np.diff(store.user_row[targets], prepend=-1))
    lists, rated = defaultdict(list), []
    for mine in np.split(targets, begin[1:]):
        first, user = mine[0], int(store.user_row[mine[0]])
        at = int(store.timestamp[first])
        person = Users(recommender, store).person(store.users["user_id"][user])
        seen = slice(history.stop[first] - history.start[first])  # of ties, what the split says
        person = replace(person, item=person.item[seen], rating=person.rating[seen],
                         time=person.time[seen])
        candidates = np.setdiff1d(np.arange(FIRST_IDX, store.num_items + FIRST_IDX), person.item)
        for name, score in scores(recommender, recent, bias, person, candidates, at).items():
            order = np.lexsort((candidates, -count[candidates], -score))
            best = candidates[order[:k]]
            lists[name].append(np.pad(best, (0, k - len(best)), constant_values=PAD))
        rated.append(dict(zip(store.item_idx[mine].tolist(), store.rating[mine].tolist(),
                              strict=True)))
    return {name: np.stack(rows) for name, rows in lists.items()}, rated


def hit_at_k(is_relevant: np.ndarray, k: int) -> np.ndarray:
    """1 for each list that has a relevant item among its first k: (u,) float64; HR@k is the mean.

    Args:
        is_relevant: (u, n) bool, each list best first.
        k: length that counts.
    """
    return is_relevant[:, :k].any(axis=1).astype(np.float64)


def ndcg_at_k(is_relevant: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain of each list over that of the best possible list: (u,) float64, in [0, 1].

    Args:
        is_relevant: (u, n) bool, each list best first.
        num_relevant: (u,) relevant items among all candidates, at least 1.
        k: length that counts.

    Source: Jarvelin and Kekalainen 2002, gain 1, discount log2(rank + 1).
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discount)[np.minimum(num_relevant, k) - 1]
    return is_relevant[:, :k] @ discount[:is_relevant.shape[1]] / best


def ranking_rows(
    lists: dict[str, np.ndarray], rated: list[dict[int, float]], *, k: int, seed: int = 0
) -> list[dict]:
    """HR@k and NDCG@k of each scorer, for rated and for liked films.

    Means over users and runs, `_spread` between runs, and the 95 % interval of `user_bootstrap`.

    Args:
        lists: (r, u, k) item indices by scorer: the lists of r runs for the same users.
        rated: stars by item, of each user.
        k: length of a list.
        seed: of the bootstrap.
    """
    rows = []
    for relevant, least in (("rated", -np.inf), ("liked", LIKED)):
        wanted = [{i for i, stars in films.items() if stars >= least} for films in rated]
        users = [u for u, films in enumerate(wanted) if films]
        num_relevant = np.array([len(wanted[u]) for u in users])
        for name, found in lists.items():
            hits = [np.array([[i in wanted[u] for i in run[u].tolist()] for u in users])
                    for run in found]
            row = {"scorer": name, "relevant": relevant, "users": len(users), "k": k,
                   "runs": len(found)}
            for metric, of_runs in (("hr", [hit_at_k(hit, k) for hit in hits]),
                                    ("ndcg", [ndcg_at_k(hit, num_relevant, k) for hit in hits])):
                people = [np.arange(len(users))] * len(found)
                low, high = user_bootstrap(of_runs, people, seed=seed)
                row |= {metric: float(np.mean(of_runs)), f"{metric}_low": low,
                        f"{metric}_high": high,
                        f"{metric}_spread": spread(np.mean(of_runs, axis=1))}
            rows.append(row)
    return rows


def format_ranking(rows: list[dict]) -> str:
    """The rows as a markdown table."""
    k = rows[0]["k"]
    lines = [f"| relevant | scorer | users | HR@{k} | NDCG@{k} |", "|---|---|---|---|---|"]
    for row in rows:
        hr, ndcg = (f"{row[m]:.4f} [{row[m + '_low']:.4f}, {row[m + '_high']:.4f}]"
                    for m in ("hr", "ndcg"))
        lines.append(f"| {row['relevant']} | {row['scorer']} | {row['users']:,} | {hr} | {ndcg} |")
    return "\n".join(lines)
