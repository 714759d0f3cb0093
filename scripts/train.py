"""Train BST and compare it with the baselines on the same rows.

With no flags it uses the built-in synthetic data. The same command goes on where it stopped.
Several processes: torchrun --standalone --nproc-per-node=2 scripts/train.py ...
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import (
    Baseline,
    DataConfig,
    ModelConfig,
    Options,
    RunConfig,
    TrainConfig,
    option,
)
from scripts.support.command import StopRequest, command
from scripts.support.flags import BASELINES_HELP, NewRunFolder


@dataclass(frozen=True)
class Args(Options):
    """Train BST; the flags are the fields of bst/config.py."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    out: NewRunFolder = None
    """run folder; none: runs/DATA-PROTOCOL-HASH"""
    baselines: tuple[Baseline, ...] = option((), BASELINES_HELP)
    engine: Literal["local", "ray"] = "local"
    """ray: train in --workers processes of a Ray cluster; needs pip install -e ".[ray]" """
    workers: int = option(2, "processes of --engine ray", "[1, 4096]")


def main(args: Args) -> int:
    """Prepare, train, compare; returns the exit status."""
    from bst.evaluation.report import format_table
    from bst.run import run_training
    from bst.training.distributed import first_goes_first, maximum, process_group, rank
    from scripts.support.board import write_board
    from scripts.support.synthetic import with_builtin

    config = RunConfig(data=args.data, model=args.model, train=args.train,
                       baselines=args.baselines)
    out = args.out or Path("runs") / config.name
    if args.engine == "ray":
        from scripts.support.cluster import train_on_ray

        config = replace(config, data=with_builtin(config.data))
        print(format_table(train_on_ray(config, out, workers=args.workers)))
        return 0
    stop = StopRequest()
    with process_group(config.train.device):
        with first_goes_first():
            config = replace(config, data=with_builtin(config.data))
        rows = run_training(config, out, stop_requested=stop)
        if rank() == 0:
            write_board(out)
        if rows is None:
            number = maximum(stop.signal)
            print(f"stopped by signal {number}; the same command goes on from here", flush=True)
            return 128 + number
        if rows:
            print(format_table(rows))
    return 0


if __name__ == "__main__":
    command(main, Args, __doc__)
