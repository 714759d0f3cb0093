"""Train BST and compare it with the baselines on the same rows.

With no flags it uses the built-in synthetic data. The same command goes on where it stopped.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.schema import DataError


@dataclass(frozen=True)
class Args:
    """Train BST; the flags are the fields of bst/config.py."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    out: Path | None = None
    """run folder; none: runs/PROTOCOL-HASH"""


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a clean stop; the second one exits at once."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def __call__(self) -> bool:
        """True once a signal came."""
        return self.signal != 0


def main(args: Args) -> int:
    """Prepare, train, compare; returns the exit status."""
    from bst.evaluation import format_table, read_results
    from bst.pipeline import compare, keep_fitted, prepare, train_run, use_device

    stop = StopRequest()
    config = RunConfig(data=args.data, model=args.model, train=args.train)
    out = args.out or Path("runs") / config.name
    use_device(config)
    prepared = prepare(config, report_dir=out)
    print(f"run folder: {out}")
    if not train_run(prepared, out, stop_requested=stop):
        print(f"stopped by signal {stop.signal}; the same command goes on from here")
        return 128 + stop.signal
    keep_fitted(prepared, out)
    if (out / "results.json").exists():
        print("this run is finished; its results:")
        rows = read_results(out / "results.json")
    else:
        rows = compare(prepared, out)
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))))
    except (DataError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
