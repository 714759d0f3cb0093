"""Ranking quality of a run over the whole catalogue, beside popularity, as a markdown table."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.guard import guarded


@dataclass(frozen=True)
class Args:
    """Ask everybody's top k at their first rating of the part; count what they then rate."""

    model: Path
    """run folder of scripts/train.py"""
    part: Literal["valid", "test"] = "test"
    """which ratings count"""
    k: int = 10
    """films of a list"""
    json: Path | None = None
    """also write the rows to this file"""


def main(args: Args) -> None:
    """Load, rank, print."""
    from bst.files import write_atomic
    from bst.pipeline import store_of
    from bst.ranking import format_ranking, ranking_rows, top_lists
    from bst.recommend import Recommender
    from bst.sequences import split_interactions

    recommender = Recommender.from_pretrained(args.model)
    store, protocol = store_of(args.model), recommender.fitted.protocol
    split = split_interactions(store, **protocol)
    rows = ranking_rows(*top_lists(recommender, store, split, args.part, args.k), k=args.k)
    about = {"protocol": protocol["protocol"], "ties": protocol["ties"], "part": args.part,
             "config_hash": recommender.fitted.identity["hash"]}
    print(f"protocol {about['protocol']}, ties {about['ties']}, part {args.part}; candidates: the "
          f"whole catalogue of {store.num_items:,} films without those of the history; equal "
          "scores: more train ratings first")
    print(format_ranking(rows))
    if args.json is not None:
        content = json.dumps([{**about, **row} for row in rows], indent=1)
        write_atomic(args.json, (content + "\n").encode())


if __name__ == "__main__":
    guarded(lambda: main(tyro.cli(Args, description=__doc__)))
