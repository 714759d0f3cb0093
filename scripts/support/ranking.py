"""Public ranking protocols: who is asked when, every item a candidate, and what is counted.

A request sees some of a person's ratings and waits for the items that come next. Candidates: the
whole catalogue but what the request sees; none is sampled. Equal scores: the item with more train
ratings first, then catalogue order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.evaluation.metrics import spread, user_bootstrap

METRICS = ("hr10", "hr50", "ndcg10", "mrr")
LISTED = 10  # items of a list that coverage counts
BLOCK = 512  # requests at a time
SEEN = np.iinfo(np.int64).min + 1  # no rival of anything


@dataclass(frozen=True)
class Requests:
    """r requests, user by user, in time order."""

    store: SequenceStore
    split: Split  # its train is what anything may be fitted on
    begin: np.ndarray  # (r,) first position of the user
    stop: np.ndarray  # (r,) the request sees begin .. stop
    target: np.ndarray  # (r,) position of the first item that it waits for
    end: np.ndarray  # (r,) one past the last one

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def user(self) -> np.ndarray:
        """Row of each request's user, (r,)."""
        return self.store.user_row[self.target]

    @property
    def at(self) -> np.ndarray:
        """Seconds since 1970 UTC of each request, (r,): the time of the first item."""
        return self.store.timestamp[self.target]

    @property
    def item(self) -> np.ndarray:
        """Row of the catalogue of each rating of the store, (n,)."""
        return self.store.item_idx.astype(np.int64) - FIRST_IDX

    @property
    def count(self) -> np.ndarray:
        """Train ratings of each item of the catalogue, (items,)."""
        return self.split.item_counts(self.store)[FIRST_IDX:]


# the scores (b, items) of requests, whose numbers are given, (b,)
Score = Callable[[np.ndarray], np.ndarray]


def requests_of(store: SequenceStore, split: Split, part: str, *, ask: str = "each",
                most: int = 10**9) -> Requests:
    """Requests of everybody with ratings in a part of the split.

    Args:
        store: sequences.
        split: of them, which says what a rating may see.
        part: valid or test.
        ask: `each`: before every rating of the part, for it alone; `once`: before the first one,
            for all of a user.
        most: requests, at most; a draw of them where there are more.

    Returns:
        Those that see at least one rating, when each is asked for; else all.
    """
    target = np.sort(split.part(part))
    end = target + 1
    if ask == "once":
        first = np.flatnonzero(np.diff(store.user_row[target], prepend=-1))
        end = target[np.append(first[1:], len(target)) - 1] + 1
        target = target[first]
    begin, stop = store.offsets[:-1][store.user_row[target]], split.history_stop[target]
    kept = np.flatnonzero((stop > begin) | (ask == "once"))
    if len(kept) > most:
        kept = np.sort(np.random.default_rng(0).choice(kept, most, replace=False))
    return Requests(store, split, begin[kept], stop[kept], target[kept], end[kept])


def blocks(requests: Requests) -> Iterator[np.ndarray]:
    """The numbers of the requests, in blocks."""
    return (np.arange(k, min(k + BLOCK, len(requests))) for k in range(0, len(requests), BLOCK))


def pairs(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and position of everything in begin .. end of each row: (p,) each."""
    row = np.repeat(np.arange(len(begin)), end - begin)
    start = np.cumsum(end - begin) - (end - begin)
    return row, np.arange(len(row)) - start[row] + begin[row]


def sortable(score: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Whole numbers (b, n), all different in a row, in the order of scores and then of places."""
    bits = (np.asarray(score, dtype=np.float32) + np.float32(0)).view(np.int32)  # no minus zero
    ordered = np.where(bits < 0, bits ^ np.int32(2**31 - 1), bits).astype(np.int64)
    return (ordered << 32) - place


def measure(requests: Requests, score: Score) -> dict[str, np.ndarray]:
    """Each of `METRICS` by request, (r,), and which items are on any list, (items,) bool.

    HR@k: is any relevant item among the first k? NDCG@10: discounted gain over that of the best
    possible list. MRR: one over the rank of the first relevant item.

    Source: Jarvelin and Kekalainen 2002, gain 1, discount log2(rank + 1).
    """
    found = {name: np.zeros(len(requests)) for name in METRICS}
    listed, item = np.zeros(requests.store.num_items, dtype=bool), requests.item
    place = np.argsort(np.lexsort((np.arange(len(listed)), -requests.count)))  # of equal scores
    best = np.cumsum(1 / np.log2(np.arange(2, 12)))
    for rows in blocks(requests):
        key = sortable(score(rows), place)
        row, position = pairs(requests.begin[rows], requests.stop[rows])
        key[row, item[position]] = SEEN
        top = np.argpartition(-key, min(LISTED, len(place) - 1), axis=1)[:, :LISTED]
        listed[top[np.take_along_axis(key, top, axis=1) > SEEN]] = True
        row, position = pairs(requests.target[rows], requests.end[rows])
        own = key[row, item[position]]
        rank = np.concatenate([1 + (key[row[part]] > own[part, None]).sum(axis=1) for part in
                               np.array_split(np.arange(len(row)), -(-len(row) // BLOCK))])
        first = np.full(len(rows), len(listed))
        np.minimum.at(first, row, rank)
        gain = np.bincount(row, np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0), len(rows))
        found["hr10"][rows], found["hr50"][rows] = first <= 10, first <= 50
        found["mrr"][rows] = 1 / first
        found["ndcg10"][rows] = gain / best[np.minimum(np.bincount(row), 10) - 1]
    return found | {"listed": listed}


def ranking_row(scorer: str, runs: Sequence[dict], requests: Requests, *,
                rival: dict | None = None, seed: int = 0) -> dict:
    """Means over requests and runs of what `measure` found, with 95 % intervals over users.

    Args:
        scorer: its name.
        runs: of each run of the scorer.
        requests: of them.
        rival: of the scorer that the difference of NDCG@10 is to; None: no such column.
        seed: of the bootstrap.
    """
    people = [requests.user] * len(runs)
    row = {"scorer": scorer, "runs": len(runs), "requests": len(requests),
           "users": len(np.unique(requests.user)),
           "coverage10": float(np.mean([run["listed"].mean() for run in runs]))}
    for metric in METRICS:
        values = [run[metric] for run in runs]
        low, high = user_bootstrap(values, people, seed=seed)
        row |= {metric: float(np.mean(values)), f"{metric}_interval": [low, high],
                f"{metric}_spread": spread(np.mean(values, axis=1))}
    if rival is not None:
        differences = [run["ndcg10"] - rival["ndcg10"] for run in runs]
        row["minus_rival"] = [float(np.mean(differences)),
                              *user_bootstrap(differences, people, seed=seed)]
    return row


def format_ranking(tables: list[dict]) -> str:
    """A markdown table for each protocol: its rows, then the published ones."""
    parts = []
    for table in tables:
        lines = [f"**{table['protocol']}**: {table['about']}.", "",
                 "| scorer | runs | HR@10 | HR@50 | NDCG@10 | MRR | coverage@10 | "
                 "NDCG@10 minus SASRec [95 %] | CPU s |", "|---|" + "---|" * 8]
        for row in table["rows"]:
            low, high = row["ndcg10_interval"]
            diff = ("{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["minus_rival"])
                    if "minus_rival" in row else "")
            lines.append(
                f"| {row['scorer']} | {row['runs']} | {row['hr10']:.4f} | {row['hr50']:.4f} | "
                f"{row['ndcg10']:.4f} [{low:.4f}, {high:.4f}] | {row['mrr']:.4f} | "
                f"{row['coverage10']:.3f} | {diff} | {row['cost']} |")
        lines += [f"| *published: {name}* | | {hr:.4f} | | {ndcg:.4f} | | | | |"
                  for name, hr, ndcg in table["published"]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
