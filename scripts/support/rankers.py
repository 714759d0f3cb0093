"""What bst's ranking is compared with: popularity, item kNN, EASE, and vectors made elsewhere.

Each is fitted on train ratings alone and scores requests of `scripts.support.ranking`; what a
scorer has to choose is chosen on the valid requests, by NDCG@10.
"""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bst.data.schema import FIRST_IDX
from bst.model.batches import Batches
from bst.recommend.recommender import Recommender
from bst.recommend.users import Users
from bst.training.loop import EVAL_SIZE
from scripts.support.ranking import Requests, Score, measure, pairs, ranking_row

DAY = 24 * 3600
WINDOWS = (1, 3, 7, 14, 21, 30, 60, 90, 180, 365)  # days of the recent popularity
RIDGES = (100.0, 300.0, 1000.0)  # of EASE, in co-ratings
LASTS = (1, 3, 10, 30, 100, 10**6)  # ratings that item kNN reads, the newest


def choose(make: Callable[[Requests, float], Score], requests: Requests,
           options: tuple) -> tuple[float, float]:
    """The option with the best NDCG@10 on these requests, and that NDCG@10."""
    found = [measure(requests, make(requests, option))["ndcg10"].mean() for option in options]
    return options[int(np.argmax(found))], float(max(found))


def popularity(requests: Requests) -> Score:
    """Train ratings of each item."""
    count = requests.count
    return lambda rows: np.broadcast_to(count, (len(rows), len(count)))


def recent_popularity(requests: Requests, days: float, *, to_all: bool = False) -> Score:
    """Ratings by anybody in the last days before a request, of those that may be history.

    `to_all` requests the same: those before the first request.
    """
    store, items = requests.store, requests.store.num_items
    at = np.full(len(requests), requests.at.min()) if to_all else requests.at
    rows = np.flatnonzero(requests.split.is_history)
    rows = rows[np.argsort(store.timestamp[rows], kind="stable")]
    time, item = store.timestamp[rows], requests.item[rows]
    low, high = np.searchsorted(time, at - days * DAY), np.searchsorted(time, at)

    def score(rows: np.ndarray) -> np.ndarray:
        found, order = np.empty((len(rows), items)), np.argsort(at[rows], kind="stable")
        start = stop = low[rows[order[0]]]
        count = np.zeros(items)
        for k in order:  # in time order only the ends of the window change
            count += np.bincount(item[stop:high[rows[k]]], minlength=items)
            stop = max(stop, high[rows[k]])
            count -= np.bincount(item[start:low[rows[k]]], minlength=items)
            start = low[rows[k]]
            found[k] = count
        return found

    return score


def seen(requests: Requests, rows: np.ndarray, last: int = 10**6) -> np.ndarray:
    """1 where an item is among the last ratings that a request sees: (b, items) float32."""
    found = np.zeros((len(rows), requests.store.num_items), dtype=np.float32)
    stop = requests.stop[rows]
    row, position = pairs(np.maximum(requests.begin[rows], stop - last), stop)
    found[row, requests.item[position]] = 1
    return found


def co_ratings(requests: Requests) -> np.ndarray:
    """Train users who rated both of two items, (items, items) float32."""
    store, train = requests.store, requests.split.train
    table = np.zeros((store.num_users, store.num_items), dtype=np.float32)
    table[store.user_row[train], requests.item[train]] = 1
    return table.T @ table


def item_knn(common: np.ndarray) -> Callable[[Requests, float], Score]:
    """Sum of the cosines between an item and the last ratings.

    Source: Deshpande and Karypis 2004, "Item-Based Top-N Recommendation Algorithms".
    """
    norm = np.sqrt(np.maximum(common.diagonal(), 1))
    cosine = common / norm / norm[:, None]
    np.fill_diagonal(cosine, 0)
    return lambda requests, last: lambda rows: seen(requests, rows, int(last)) @ cosine


def ease(common: np.ndarray) -> Callable[[Requests, float], Score]:
    """Ridge regression of each item on all others, in closed form.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data".
    """
    def make(requests: Requests, ridge: float) -> Score:
        inverse = np.linalg.inv(common.astype(np.float64) + ridge * np.eye(len(common)))
        weights = -inverse / inverse.diagonal()
        np.fill_diagonal(weights, 0)
        weights = weights.astype(np.float32)
        return lambda rows: seen(requests, rows) @ weights

    return make


def by_vectors(state: np.ndarray, vectors: np.ndarray, shift: float | np.ndarray = 0.0) -> Score:
    """Products of states (r, d) with vectors (items, d), plus a shift; NaN vectors come last."""
    known = ~np.isnan(vectors).any(axis=1)
    vectors = np.where(known[:, None], vectors, 0)
    return lambda rows: np.where(known, state[rows] @ vectors.T + shift, -np.inf)


def write_requests(requests: Requests, path: Path) -> None:
    """What scripts/benchmarks/sasrec.py reads of requests."""
    np.savez(path, item=requests.item, items=requests.store.num_items, begin=requests.begin,
             stop=requests.stop, target=requests.item[requests.target])


def bst_rankers(run: Recommender, requests: Requests) -> dict[str, Score]:
    """Of a run: the interest of each item, and where much is waited for its stars, and both.

    Args:
        run: with an interest head.
        requests: a user's are answered by one pass over the history.
    """
    split = replace(requests.split, test=requests.target)
    batches, states = Batches(requests.store, split, run.vocabulary), []
    with torch.inference_mode():
        for rows in batches.epoch("test", batch_size=EVAL_SIZE):
            batch = batches.gather(rows)
            place = np.searchsorted(requests.target, batch.position[batch.is_target].numpy())
            states.append((place, run.model.next_item_state(batch).numpy()))
        films = run.model.next_item_vectors(torch.arange(requests.store.num_items) + FIRST_IDX)
    state = np.empty((len(requests), states[0][1].shape[1]), dtype=np.float32)
    for place, found in states:
        state[place] = found
    interest = by_vectors(state, *(x.numpy() for x in films))
    if (requests.end - requests.target == 1).all():
        return {"bst": interest}
    every = np.arange(requests.store.num_items) + FIRST_IDX
    users = Users(run, requests.store)

    def stars(rows: np.ndarray) -> np.ndarray:
        found = []
        for k in rows:
            person = users.person(users.ids[int(requests.user[k])])
            shown = slice(requests.stop[k] - requests.begin[k])
            person = replace(person, item=person.item[shown], rating=person.rating[shown],
                             time=person.time[shown])
            found.append(run.score(person, every, int(requests.at[k])))
        return np.stack(found)

    return {"bst": interest, "bst, by stars": stars,
            "bst, by both": lambda rows: interest(rows) + stars(rows)}


def sasrec(python: str, folder: Path, valid: Requests, tests: dict[str, Requests], device: str
           ) -> dict[str, tuple[Score, str]]:
    """The scores of SASRec, trained in another environment, and what training cost, by test.

    Args:
        python: interpreter of an environment that has RecTools.
        folder: for its input and output; what was finished there is used again.
        valid: that its epoch is chosen on; their split has the train ratings.
        tests: requests by name.
        device: cpu or gpu.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "log.json").exists():
        rows = np.sort(valid.split.train)
        np.savez(folder / "train.npz", user=valid.store.user_row[rows], item=valid.item[rows],
                 items=valid.store.num_items)
        write_requests(valid, folder / "valid.npz")
        for name, requests in tests.items():
            write_requests(requests, folder / f"test-{name}.npz")
        script = Path(__file__).resolve().parent.parent / "benchmarks" / "sasrec.py"
        subprocess.run([python, script, folder, "--device", device], check=True)
    log = json.loads((folder / "log.json").read_text())
    cost = f"{log['cpu_seconds']:.0f}{' + GPU' * (log['device'] != 'cpu')}"
    found = {name: np.load(folder / f"states-test-{name}.npz") for name in tests}
    return {name: (by_vectors(of["state"], of["vectors"]), cost) for name, of in found.items()}


def seconds_of(folder: Path) -> float:
    """CPU seconds that the run in `folder` trained."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["cpu_seconds"] for line in lines)


def table(runs: list[Recommender], seconds: list[float], valid: Requests, test: Requests,
          rival: tuple[Score, str] | None) -> dict:
    """The rows of a table, ours first, and what was chosen on valid.

    Args:
        runs: of several seeds.
        seconds: CPU seconds that each trained.
        valid: requests that the rivals choose on.
        test: requests that count.
        rival: the scores of SASRec, and what training cost.
    """
    common = co_ratings(test)
    makers = {"popularity": (lambda requests, _: popularity(requests), (0,)),
              "popularity of the last days": (recent_popularity, WINDOWS),
              "item kNN": (item_knn(common), LASTS), "EASE": (ease(common), RIDGES)}
    if test.split.protocol == "temporal":
        makers["popularity of the last days before the cut"] = (
            lambda requests, days: recent_popularity(requests, days, to_all=True), WINDOWS)
    found, chosen = {}, {}
    if rival is not None:
        found["SASRec"] = [measure(test, rival[0])], rival[1]
    for name, (make, options) in makers.items():
        started = time.process_time()
        chosen[name], _ = choose(make, valid, options)
        score = make(test, chosen[name])
        spent = time.process_time() - started
        found[name] = [measure(test, score)], f"{spent:.0f}"
    ours = [bst_rankers(run, test) for run in runs]
    for name in ours[0] if ours else ():
        found[name] = [measure(test, of[name]) for of in ours], f"{np.mean(seconds):.0f}"
    against = found["SASRec"][0][0] if rival is not None else None
    rows = [ranking_row(name, of, test, rival=None if name == "SASRec" else against)
            | {"cost": cost} for name, (of, cost) in found.items()]
    users = len(np.unique(test.user))
    days = [f"{value:g}" for name, value in chosen.items() if "days" in name]
    return {"about": f"{len(test):,} requests of {users:,} users; chosen on valid: "
            f"{' and '.join(days)} days, item kNN of the last {min(chosen['item kNN'], 10**5):g} "
            f"ratings, EASE with ridge {chosen['EASE']:g}", "rows": rows}
