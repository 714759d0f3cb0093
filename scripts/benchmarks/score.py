"""Candidates per second for one person over the whole catalogue, and the latency of a top 10."""

import time
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, alternate, print_profile

HISTORY, PAIRS, GOAL_MS = 200, 64, 5.0


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """The whole catalogue for one person with 200 ratings, against each pair on its own."""

    model: Path
    """folder of a run, as scripts/train.py leaves it"""
    requests: int = 200
    """timed top-10 requests, each of another person"""
    profile: bool = False
    """also print where the time of the catalogue in one pass goes"""


def run(args: Args) -> list[Row]:
    """Time the catalogue in one pass, pairs on their own, and whole requests."""
    import numpy as np
    import torch

    from bst.data.schema import FIRST_IDX
    from bst.model.people import Request, batch_of
    from bst.recommend.recommender import Recommender

    torch.set_num_threads(args.threads)
    recommender = Recommender.from_pretrained(args.model)
    model, fitted, rng = recommender.model, recommender.fitted, np.random.default_rng(0)
    people = [recommender.person(a_history(recommender, rng)) for _ in range(args.requests)]
    person, at = people[0], int(people[0].time[-1]) + 1
    items = np.arange(len(fitted.movies["item_id"])) + FIRST_IDX
    some = rng.choice(items, PAIRS, replace=False)
    request = Request.of(person, some, at, ties="strict")
    windows = batch_of(request, fitted.base, fitted.statistics, history_len=HISTORY, shared=False)

    def pairs_together() -> None:
        with torch.inference_mode():
            model(windows)

    seconds = alternate({
        "catalogue": lambda: recommender.score(person, items, at),
        "a call a pair": lambda: [recommender.score(person, some[k:k + 1], at) for k in range(8)],
        "windows": pairs_together,
    }, args.runs)
    if args.profile:
        print_profile(lambda: recommender.score(person, items, at))
    taken = {name: value.of(args.threads) for name, value in seconds.items()}
    rate = len(items) / taken["catalogue"]
    unit = f"candidates / {'CPU ' * (args.threads == 1)}s"
    work = f"{len(items):,} films in one pass, base score included"
    rows = [
        Row(work, rate, unit, "a call a pair", 8 / taken["a call a pair"],
            rate * taken["a call a pair"] / 8, 50.0, rate * taken["a call a pair"] / 8 >= 50),
        Row(work, rate, unit, f"network alone on {PAIRS} windows", PAIRS / taken["windows"],
            rate * taken["windows"] / PAIRS),
    ]
    return rows + latency(recommender, people)


def a_history(recommender, rng) -> list[tuple[int, float, int]]:
    """Ratings of 200 films that have train ratings, an hour apart."""
    import numpy as np

    ids = np.array(recommender.fitted.movies["item_id"])
    rated = ids[recommender.fitted.statistics.count[-len(ids):] > 0]
    stars = recommender.model.levels.numpy()
    chosen = rng.choice(rated, min(HISTORY, len(rated) // 2), replace=False)
    return [(int(movie), float(rng.choice(stars)), 978_000_000 + 3600 * k)
            for k, movie in enumerate(chosen)]


def latency(recommender, people: list) -> list[Row]:
    """Wall time of a top 10 of the whole catalogue, a person after the other."""
    import numpy as np

    taken = []
    for person in people:
        started = time.perf_counter()
        recommender.recommend(person, k=10)
        taken.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(taken, [50, 99])
    return [Row("top 10 of the catalogue, p50", p50, "ms", "goal", GOAL_MS, GOAL_MS / p50, 1.0,
                bool(p50 <= GOAL_MS)),
            Row("top 10 of the catalogue, p99", p99, "ms", "goal", GOAL_MS, GOAL_MS / p99)]
