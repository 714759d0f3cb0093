"""Ranking by what comes next, under public protocols, beside strong rivals: a markdown table each.

leave-last-one: each user's last rating, in file order where times are equal ("stable"), and with
nothing of the target's own time seen ("strict"). temporal: all later items of a user, asked once
("all later"), and each next item with all history before it ("successive").
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import Options
from bst.utils.errors import DataError
from scripts.support.command import command
from scripts.support.flags import RunFolders

TABLES = {  # ties that runs are trained with, name of the table, its ties, when it asks
    "leave-last-one": (("strict", "strict", "strict", "each"),
                       ("stable", "stable", "stable", "each")),
    "temporal": (("stable", "all later", "strict", "once"),
                 ("stable", "successive", "stable", "each"))}
PUBLISHED = {  # HR@10, NDCG@10
    "stable": [("SASRec, sampled softmax", 0.2929, 0.1684), ("eSASRec", 0.3133, 0.1772),
               ("FuXi-alpha", 0.3164, 0.1813), ("HSTU-large of RecTools", 0.3642, 0.2164)],
    "successive": [("SASRec", 0.209, 0.114)]}
VALID = 6500  # valid requests, at most


@dataclass(frozen=True)
class Args(Options):
    """Runs that were trained with --interest: each answers the questions of its protocol and ties.

    "all later" is asked of runs with stable ties, about what came strictly before.
    """

    runs: RunFolders
    """run folders of scripts/train.py, of one config and several seeds: the table has their mean"""
    sasrec: Path | None = None
    """folder of SASRec's input and output; none: without it"""
    python: str = "python"
    """interpreter of an environment that has RecTools, see scripts/benchmarks/README.md"""
    device: Literal["cpu", "gpu"] = "cpu"
    """where SASRec is trained, if it is not yet"""
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
    asked = [name for trained, name, *_ in TABLES.get(kind, ()) if trained == protocol["ties"]]
    if not asked:
        raise DataError(f"{args.runs[0]}: protocol {kind} with {protocol['ties']} ties, expected "
                        "leave-last-one with either or temporal with stable ones")
    tests, valids, rival = {}, {}, {}
    for _, name, ties, ask in TABLES[kind]:
        split = split_interactions(store, **protocol | {"ties": ties})
        tests[name] = requests_of(store, split, "test", ask=ask)
        valids[name] = requests_of(store, split, "valid", ask=ask, most=VALID)
    if args.sasrec is not None:  # trained once, with stable ties, which the last table has
        rival = rankers.sasrec(args.python, args.sasrec, valids[name], tests, args.device)
    seconds = [rankers.seconds_of(folder) for folder in args.runs]
    tables = [{"protocol": f"{kind}, {name}", "published": PUBLISHED.get(name, []), **rankers.table(
        runs, seconds, valids[name], tests[name], rival.get(name))} for name in asked]
    print(format_ranking(tables))
    if args.json is not None:
        old = json.loads(args.json.read_text()) if args.json.exists() else []
        new = {table["protocol"]: table for table in [*old, *tables]}
        write_atomic(args.json, (json.dumps(list(new.values()), indent=1) + "\n").encode())


if __name__ == "__main__":
    command(main, Args, __doc__)
