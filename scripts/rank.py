"""Ranking quality over the whole catalogue, beside popularity, as a markdown table."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import Options, option
from bst.utils.errors import DataError
from bst.utils.guard import command
from scripts.support.flags import RunFolders


@dataclass(frozen=True)
class Args(Options):
    """Ask everybody's top k at their first rating of the part; count what they then rate."""

    runs: RunFolders
    """run folders of scripts/train.py, of one config and several seeds: the table has their mean"""
    part: Literal["valid", "test"] = "test"
    """which ratings count"""
    k: int = option(10, "films of a list", "[1, 1000000]")
    json: Path | None = None
    """also write the rows to this file"""


def main(args: Args) -> None:
    """Load, rank, print."""
    import numpy as np

    from bst.data.splits import split_interactions
    from bst.recommend.recommender import Recommender
    from bst.run import store_of
    from bst.utils.files import write_atomic
    from scripts.support.ranking import format_ranking, ranking_rows, top_lists

    runs = [Recommender.from_pretrained(folder) for folder in args.runs]
    store, protocol = store_of(args.runs[0]), runs[0].fitted.protocol
    for folder, run in zip(args.runs, runs, strict=True):
        if (run.fitted.identity["data"], run.fitted.protocol) != (store.digest, protocol):
            raise DataError(f"{folder}: its data or protocol is not that of {args.runs[0]}; give "
                            "runs that differ in their seeds alone")
    split = split_interactions(store, **protocol)
    found = [top_lists(run, store, split, args.part, args.k) for run in runs]
    lists = {name: np.stack([of_run[name] for of_run, _ in found]) for name in found[0][0]}
    rows = ranking_rows(lists, found[0][1], k=args.k)
    about = {"protocol": protocol["protocol"], "ties": protocol["ties"], "part": args.part,
             "config_hashes": [run.fitted.identity["hash"] for run in runs]}
    print(f"protocol {about['protocol']}, ties {about['ties']}, part {args.part}, {len(runs)} "
          f"runs; candidates: the whole catalogue of {store.num_items:,} films without those of "
          "the history; equal scores: more train ratings first")
    print(format_ranking(rows))
    if args.json is not None:
        content = json.dumps([{**about, **row} for row in rows], indent=1)
        write_atomic(args.json, (content + "\n").encode())


if __name__ == "__main__":
    command(main, Args, __doc__)
