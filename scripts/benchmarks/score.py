"""The latency of a top 10 of the whole catalogue: through `Recommender`, and by the program.

Also how often its shortlist gives the ten of the whole network over all films, in the same order,
and how many users a second get a list.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, print_profile
from scripts.support.flags import RunFolder

HISTORY, GOAL_MS = 200, 5.0
GOAL_SAME, GOAL_USERS = 0.999, 2000  # share of people; users a second


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """The top 10 of the catalogue for somebody with 200 ratings, one request after another."""

    model: RunFolder
    """folder of a run, as scripts/train.py leaves it"""
    requests: int = 100
    """timed requests of a round, each of another person"""
    people: int = 5000
    """users of the data, each at the time of a rating, whose lists are compared with the exact ones
    """
    profile: bool = False
    """also print where the time of a request goes"""


def run(args: Args) -> list[Row]:
    """Time the ways in turn, all people each; the first round warms up."""
    import numpy as np
    import torch

    from bst.recommend.recommender import Recommender

    torch.set_num_threads(args.threads)
    recommender, rng = Recommender.from_pretrained(args.model), np.random.default_rng(0)
    people = [a_history(recommender, rng) for _ in range(args.requests)]
    ways = {"Recommender": lambda person: recommender.recommend(person, k=10),
            "exactly": lambda person: recommender.recommend(person, k=10, exact=True),
            "exported program": by_program(recommender)}
    taken = {name: [] for name in ways}
    clock = time.process_time if args.threads == 1 else time.perf_counter
    for _ in range(args.runs + 1):
        for name, way in ways.items():
            for person in people:
                started = clock()
                way(person)
                taken[name].append(1000 * (clock() - started))
    if args.profile:
        print_profile(lambda: recommender.recommend(people[0], k=10))
    rows, unit = [], f"{'CPU ' * (args.threads == 1)}ms"
    for quantile in (50, 99):
        ours, exact, program = (float(np.percentile(taken[name][len(people):], quantile))
                                for name in ways)
        work = f"top 10 of {len(recommender.catalogue.ids):,} films, p{quantile}"
        limit = GOAL_MS if quantile == 50 else 2 * GOAL_MS
        rows += [Row(work, ours, unit, "goal", limit, limit / ours, goal=1.0, met=ours <= limit),
                 Row(work, ours, unit, "exactly", exact, exact / ours),
                 Row(f"{work}, exported program", program, unit, "exactly", exact, exact / program,
                     goal=1 / 1.5, met=program <= 1.5 * exact)]
    return rows + of_many(args, recommender)


def of_many(args: Args, recommender) -> list[Row]:
    """Lists of many users, beside the exact ones."""
    import numpy as np

    from bst.recommend.users import Users
    from bst.run import store_of

    store = store_of(args.model)
    users, rng = Users(recommender, store), np.random.default_rng(0)
    drawn = rng.choice(len(store), args.people, replace=len(store) < args.people)
    rows, at = store.user_row[drawn].astype(np.int64), store.timestamp[drawn]
    clock, found, taken = time.process_time if args.threads == 1 else time.perf_counter, {}, {}
    for exact in (False, True):
        started = clock()
        found[exact], _ = users.recommend(rows, 10, at=at, exact=exact)
        taken[exact] = len(rows) / (clock() - started)
    same, unit = float((found[False] == found[True]).all(axis=1).mean()), "users/s"
    of = f"of {len(rows):,} people"
    return [Row(f"same top 10 as exactly, {of}", same, "share", "goal", GOAL_SAME,
                same / GOAL_SAME, goal=1.0, met=same >= GOAL_SAME),
            Row(f"top 10 {of}", taken[False], unit, "goal", GOAL_USERS,
                taken[False] / GOAL_USERS, goal=1.0, met=taken[False] >= GOAL_USERS),
            Row(f"top 10 {of}", taken[False], unit, "exactly", taken[True],
                taken[False] / taken[True])]


def a_history(recommender, rng) -> list[tuple[int, float, int]]:
    """Ratings of 200 films that have train ratings, an hour apart."""
    import numpy as np

    catalogue, levels = recommender.catalogue, recommender.model.levels.tolist()
    rated = np.array(catalogue.ids)[catalogue.train_counts > 0]
    chosen = rng.choice(rated, min(HISTORY, len(rated) // 2), replace=False)
    return [(int(movie), float(rng.choice(levels)), 978_000_000 + 3600 * k)
            for k, movie in enumerate(chosen)]


def by_program(recommender) -> Callable[[list], list]:
    """The same top 10, as somebody makes it who has the program alone."""
    import torch

    from scripts.support.program import export_program

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt2"
        export_program(recommender, path)
        program = torch.export.load(path).module()
    ids, nobody = torch.tensor(recommender.catalogue.ids), torch.ones(4, dtype=torch.int64)

    @torch.inference_mode()
    def top(person: list[tuple[int, float, int]]) -> list[int]:
        movie, rating, time = map(torch.tensor, zip(*person, strict=True))
        stars = program(movie, rating, time, nobody, time[-1] + 1, ids)
        stars = stars.masked_fill(torch.isin(ids, movie), -torch.inf)
        return ids[stars.topk(10).indices].tolist()

    return top
