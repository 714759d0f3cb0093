"""Targets per second of training, against windows in plain PyTorch."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, print_profile


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Targets per second of training: history 50, width 64, 4 heads, one layer, MLP 256-128-64."""

    data: Path | None = None
    """folder of MovieLens-1M; none: the built-in synthetic data"""
    seconds: float = 2.0
    """of each timed run, at least"""
    alternatives: bool = False
    """also bf16 autocast and torch.compile, which needs a C++ compiler and some minutes"""
    profile: bool = False
    """also print where the time of a shared-history step goes"""


def run(args: Args) -> list[Row]:
    """Train all in turn; each row has its floating point operations and its share of the peak."""
    import torch

    from bst.config import DataConfig
    from bst.data.preparation import open_store
    from scripts.benchmarks.forms import peak_flop, trainees

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    clock = time.process_time if args.threads == 1 else time.perf_counter
    store = open_store(DataConfig(data=args.data))
    known, peaks = trainees(store, alternatives=args.alternatives), []
    for _ in range(args.runs):
        peaks.append(peak_flop(clock))
        for trainee in known.values():
            trainee.measure(args.seconds, clock)
    peak = statistics.median(peaks)
    if args.profile:
        print_profile(known["shared history, all features"].step)
    jobs = [("window form, flattened", "plain, flattened", None),
            ("window form", "plain, target token", 1.5),
            ("shared history", "plain, flattened", 15.0),
            ("shared history", "plain, target token", 15.0),
            ("shared history, all features", "plain, target token", None)]
    if args.alternatives:
        jobs += [(name, "shared history, all features", None) for name in ("bf16", "compiled")]
    return [row(known, *job, peak=peak, unit=f"targets / {'CPU ' * (args.threads == 1)}s")
            for job in jobs]


def row(known: dict, ours: str, reference: str, goal: float | None, *, peak: float,
        unit: str) -> Row:
    """One figure with what it costs in matrix products."""
    a, b = known[ours], known[reference]
    flop = a.flop
    note = (f"{flop / 1e6:.2f} MFLOP a target, {a.rate * flop / peak:.0%} of the "
            f"{peak / 1e9:.0f} GFLOP/s of a matrix product")
    return Row(ours, a.rate, unit, reference, b.rate, a.rate / b.rate, goal,
               None if goal is None else a.rate >= goal * b.rate, note)
