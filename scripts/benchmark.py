"""Time the work of bst against a reference in the same run; one sub-command per work.

Times on one thread are CPU time of the process, so that other jobs of the machine count little;
with more threads they are wall time. Each ratio is that of two medians measured in alternation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.benchmarks import common, prep, scale, score, text, train
from scripts.support.command import guarded

# modules with `Args` and `run(args) -> rows`
WORKS = {"prep": prep, "train": train, "score": score, "text": text, "scale": scale}


def main() -> None:
    """Pin the process, run the work, print its table."""
    args = tyro.extras.subcommand_cli_from_dict(
        {name: work.Args for name, work in WORKS.items()}, description=__doc__)
    common.pin(args.threads)
    work = next(work for work in WORKS.values() if isinstance(args, work.Args))
    common.report(work.run(args), args)


if __name__ == "__main__":
    guarded(main)
