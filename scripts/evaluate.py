"""Score a finished run again: every number, slice and interval, beside the baselines."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.utils.guard import command


@dataclass(frozen=True)
class Args:
    """Evaluate a run; give the flags that it was trained with."""

    out: Path
    """run folder"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    part: Literal["valid", "test"] = "test"
    """which targets"""
    slices: bool = False
    """also print the slices"""
    json: Path | None = None
    """also write the rows to this file"""


def main(args: Args) -> None:
    """Prepare, score, print."""
    from bst.evaluation.report import format_slices, format_table, write_results
    from bst.run import compare, prepare, use_device

    config = RunConfig(data=args.data, model=args.model, train=args.train)
    use_device(config)
    rows = compare(prepare(config), args.out, part=args.part)
    print(format_table(rows))
    if args.slices:
        print(format_slices(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
