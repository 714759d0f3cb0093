"""What the benchmarks share: pinned cores, alternating timing, rows, their table."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every benchmark."""

    runs: int = 5
    """timed runs of each, alternating; the median counts"""
    threads: int = 1
    """cores and threads of the process, pinned"""
    json: Path | None = None
    """also write the rows to this file"""


@dataclass(frozen=True)
class Row:
    """One figure beside its reference, measured in the same run."""

    work: str
    value: float
    unit: str
    reference: str
    reference_value: float
    ratio: float  # above 1: better than the reference
    goal: float | None = None  # of the ratio; None: no goal
    met: bool | None = None
    note: str = ""  # what the figure needs to be read rightly
    threads: int = 1
    hardware: str = ""


@dataclass(frozen=True)
class Seconds:
    """Medians of a work over its runs."""

    cpu: float  # of this process, all threads
    wall: float

    def of(self, threads: int) -> float:
        """CPU time on one thread, where other jobs of the machine do not count; else wall time."""
        return self.cpu if threads == 1 else self.wall


def unit_of(threads: int) -> str:
    """Unit of `Seconds.of`."""
    return "CPU s" if threads == 1 else "s"


def pin(threads: int) -> None:
    """Bind the process to `threads` cores and its libraries to as many threads.

    To be called before numpy, polars and torch are imported: they read it once.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores:
        if threads > len(cores):
            raise ValueError(f"threads must be at most {len(cores)}, the cores of this process, "
                             f"got {threads}")
        os.sched_setaffinity(0, cores[-threads:])  # the first core serves interrupts
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                 "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"


def alternate(works: dict[str, Callable[[], object]], runs: int) -> dict[str, Seconds]:
    """Median seconds of each work over `runs` rounds; a round runs each work once."""
    taken = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: Seconds(*map(statistics.median, zip(*pairs, strict=True)))
            for name, pairs in taken.items()}


def faster(work: str, seconds: dict[str, Seconds], ours: str, reference: str, *, threads: int,
           goal: float | None, note: str = "") -> Row:
    """Row of times; the ratio says how many times as fast as the reference."""
    value, other = (seconds[name].of(threads) for name in (ours, reference))
    ratio = other / value
    return Row(work, value, unit_of(threads), reference, other, ratio, goal,
               None if goal is None else ratio >= goal, note)


def print_profile(work: Callable[[], object], *, rounds: int = 40) -> None:
    """The torch operations of `work` that take most of the time."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            work()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12,
                                       max_name_column_width=40))


def hardware() -> str:
    """Processor, cores of the machine, versions."""
    names = [line.split(":")[1].strip() for line in _lines_of("/proc/cpuinfo")
             if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "polars", "torch"))
    return (f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores; "
            f"Python {platform.python_version()}, {libraries}")


def _lines_of(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def report(rows: list[Row], args: Common) -> None:
    """Print the rows as a markdown table; write them as JSON if `args.json` says where."""
    rows = [replace(row, threads=args.threads, hardware=hardware()) for row in rows]
    print(f"{rows[0].hardware}; {args.threads} pinned thread{'s' * (args.threads > 1)}, median of "
          f"{args.runs} alternating runs\n")
    print(format_rows(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def format_rows(rows: list[Row]) -> str:
    """The rows as a markdown table."""
    lines = ["| work | bst | reference | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:.3g}: {'met' if row.met else 'missed'}"
        lines.append(f"| {row.work}{f' ({row.note})' if row.note else ''} | {_short(row.value)} "
                     f"{row.unit} | {row.reference}: {_short(row.reference_value)} | "
                     f"{_short(row.ratio)} | {goal} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
