"""Score a finished run again: every number, slice and interval, beside the baselines.

The run folder says what it was trained on and where that was; nothing is written into it.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.config import Baseline, Options, option
from scripts.support.command import command
from scripts.support.flags import BASELINES_HELP


@dataclass(frozen=True)
class Args(Options):
    """Evaluate a run."""

    run: Annotated[Path, tyro.conf.arg(name="run", aliases=["--model", "--out"])]
    """run folder"""
    part: Literal["valid", "test"] = "test"
    """which targets"""
    slices: bool = False
    """also print the slices"""
    json: Path | None = None
    """also write the rows to this file"""
    baselines: tuple[Baseline, ...] = option((), f"{BASELINES_HELP}, as in training")
    data: Path | None = None
    """where the data is now; none: where it was in training"""
    metadata: Path | None = None
    """the same of movies_metadata.csv"""
    device: str | None = None
    """cpu, cuda or mps; none: that of the training"""
    threads: int | None = None
    """torch threads; none: those of the training"""


def format_slices(rows: list[dict]) -> str:
    """MAE of the first scorer and of the best baseline if there is one, by slice."""
    from bst.evaluation.report import best_baseline, scored

    shown = [rows[0], *([best_baseline(rows)] if len(scored(rows)) > 1 else [])]
    names = "".join(f"{row['scorer']:>22}" for row in shown)
    lines = [f"{'slice':<34}{'n':>8}{names}  (MAE)"]
    lines += [f"{name:<34}{found['n']:>8,}"
              + "".join(f"{row['slices'][name]['mae']:>22.4f}" for row in shown)
              for name, found in rows[0]["slices"].items()]
    return "\n".join(lines)


def main(args: Args) -> None:
    """Prepare, score, print."""
    from bst.evaluation.report import format_table, write_results
    from bst.run import compare, config_in, prepare, use_device

    config = config_in(args.run)
    moved = {name: place for name in ("data", "metadata") if (place := getattr(args, name))}
    data = replace(config.data, **moved)
    data = data.of_store(data.data) if data.is_store and args.metadata is None else data
    config = replace(config, data=data, baselines=args.baselines or config.baselines)
    here = {name: value for name in ("device", "threads")
            if (value := getattr(args, name)) is not None}
    train = replace(config.train, **here)
    use_device(train)
    rows = compare(prepare(config), args.run, part=args.part, device=train.device)
    print(format_table(rows))
    if args.slices:
        print(format_slices(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
