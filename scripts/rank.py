"""Ranking by what comes next, under public protocols, beside strong rivals: a markdown table each.

leave-last-one: each user's last rating, in file order where times are equal ("stable"), and with
nothing of the target's own time seen ("strict"). temporal: all later items of a user, asked once
("all later"), and each next item with all history before it ("successive").
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import Options
from bst.utils.errors import DataError
from scripts.support.command import command
from scripts.support.flags import RunFolders

TABLES = {  # name, ties, ask; the last one's valid part is what SASRec chooses its epoch on
    "leave-last-one": (("strict", "strict", "each"), ("stable", "stable", "each")),
    "temporal": (("all later", "strict", "once"), ("successive", "stable", "each"))}
PUBLISHED = {  # HR@10, NDCG@10
    "stable": [("SASRec, sampled softmax", 0.2929, 0.1684), ("eSASRec", 0.3133, 0.1772),
               ("FuXi-alpha", 0.3164, 0.1813), ("HSTU-large of RecTools", 0.3642, 0.2164)],
    "successive": [("SASRec", 0.209, 0.114)]}
VALID = 6500  # valid requests, at most


@dataclass(frozen=True)
class Args(Options):
    """Runs that were trained with --interest and --ties stable."""

    runs: RunFolders
    """run folders of scripts/train.py, of one config and several seeds: the table has their mean"""
    sasrec: Path | None = None
    """folder of SASRec's input and output; none: without it"""
    python: str = "python"
    """interpreter of an environment that has RecTools, see scripts/benchmarks/README.md"""
    json: Path | None = None
    """also write the tables to this file, where those of other protocols stay"""


def main(args: Args) -> None:
    """Load, rank, print."""
    from bst.data.splits import split_interactions
    from bst.recommend.recommender import Recommender
    from bst.run import store_of
    from bst.utils.files import write_atomic
    from scripts.support import rankers
    from scripts.support.ranking import format_ranking, requests_of

    runs = [Recommender.from_pretrained(folder) for folder in args.runs]
    store, protocol = store_of(args.runs[0]), runs[0].fitted.protocol
    kind = protocol["protocol"]
    for folder, run in zip(args.runs, runs, strict=True):
        if (run.fitted.identity["data"], run.fitted.protocol) != (store.digest, protocol):
            raise DataError(f"{folder}: its data or protocol is not that of {args.runs[0]}; give "
                            "runs that differ in their seeds alone")
    if kind not in TABLES:
        raise DataError(f"{args.runs[0]}: protocol {kind}, expected {' or '.join(TABLES)}")
    tests, valids, rival = {}, {}, {}
    for name, ties, ask in TABLES[kind]:
        split = split_interactions(store, **protocol | {"ties": ties})
        tests[name] = requests_of(store, split, "test", ask=ask)
        valids[name] = requests_of(store, split, "valid", ask=ask, most=VALID)
    if args.sasrec is not None:
        rival = rankers.sasrec(args.python, args.sasrec, valids[name], tests)
    seconds = [rankers.seconds_of(folder) for folder in args.runs]
    tables = [{"protocol": f"{kind}, {name}", "published": PUBLISHED.get(name, []), **rankers.table(
        runs, seconds, valids[name], test, rival.get(name))} for name, test in tests.items()]
    print(format_ranking(tables))
    if args.json is not None:
        old = json.loads(args.json.read_text()) if args.json.exists() else []
        new = {table["protocol"]: table for table in [*old, *tables]}
        write_atomic(args.json, (json.dumps(list(new.values()), indent=1) + "\n").encode())


if __name__ == "__main__":
    command(main, Args, __doc__)
