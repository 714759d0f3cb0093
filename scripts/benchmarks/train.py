"""Targets per second of training, against windows in plain PyTorch."""

import time
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, print_profile


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Targets per second of training, batches and all; the plain windows hold 200 events."""

    data: Path | None = None
    """folder of MovieLens-1M; none: the built-in synthetic data"""
    seconds: float = 5.0
    """of each timed run, at least"""
    profile: bool = False
    """also print where the time of a step of the whole network goes"""


def run(args: Args) -> list[Row]:
    """Train all in turn."""
    import torch

    from bst.config import DataConfig
    from bst.data.preparation import open_store
    from scripts.benchmarks.forms import OURS, PLAIN, trainees
    from scripts.support.synthetic import with_builtin

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    clock = time.process_time if args.threads == 1 else time.perf_counter
    trained = trainees(open_store(with_builtin(DataConfig(data=args.data))))
    for _ in range(args.runs):
        for trainee in trained.values():
            trainee.measure(args.seconds, clock)
    whole, *parts = OURS
    if args.profile:
        print_profile(lambda: next(trained[whole].steps))
    unit, rate = f"targets / {'CPU ' * (args.threads == 1)}s", trained[whole].rate
    ratio = rate / trained[PLAIN].rate
    rows = [Row(whole, rate, unit, PLAIN, trained[PLAIN].rate, ratio, 15.0, ratio >= 15)]
    return rows + [Row(name, trained[name].rate, unit, whole, rate, trained[name].rate / rate)
                   for name in parts]
