"""Raw files -> store while the ratings grow: seconds, peak memory, disk.

Each store is made by scripts/make_sequences.py in a process of its own, from synthetic files that
another process writes.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import linear_regression, median

from scripts.benchmarks.common import Common, Row, Seconds, unit_of

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 600.0  # MB, at any size
GENERATE = """
import sys; from pathlib import Path; from scripts.support.synthetic import write_synthetic
n = int(sys.argv[2])
write_synthetic(Path(sys.argv[1]), num_users=max(1, round(n / 165.6)), num_movies=3883,
                num_ratings=n)
"""


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Raw files -> store while the ratings grow: seconds, peak memory, disk."""

    sizes: tuple[int, ...] = (1_000_000, 10_000_000, 32_000_000, 100_000_000)
    """ratings, about"""
    scratch: Path | None = None
    """folder of the raw files, which are kept; none: a temporary one (some 70 bytes a rating)"""
    runs: int = 1
    """stores made of each size; the median counts"""


@dataclass(frozen=True)
class Made:
    """One size: what a store cost."""

    ratings: int
    seconds: Seconds
    peak_mb: float
    store_bytes: int
    raw_bytes: int


def run(args: Args) -> list[Row]:
    """Make the stores, smallest first, and compare their cost."""
    with tempfile.TemporaryDirectory() as temporary:
        sizes = sorted(args.sizes)
        made = [measure(size, args.scratch or Path(temporary), args.runs,
                        keep=args.scratch is not None) for size in sizes]
    rows, first = [], made[0]
    for one in made:
        name = f"{one.ratings / 1e6:,.1f} M ratings"
        value = one.seconds.of(args.threads)
        linear = first.seconds.of(args.threads) * one.ratings / first.ratings
        rows += [
            Row(f"{name}: store", value, unit_of(args.threads), "in proportion to the first",
                linear, linear / value, note=f"{one.seconds.wall:,.1f} s of wall time"),
            Row(f"{name}: peak memory", one.peak_mb, "MB", "limit", LIMIT, LIMIT / one.peak_mb,
                1.0, one.peak_mb <= LIMIT),
            Row(f"{name}: disk", one.store_bytes / one.ratings, "bytes a rating", "raw files",
                one.raw_bytes / one.ratings, one.raw_bytes / one.store_bytes),
        ]
    grown = made[1:] if len(made) > 2 else made  # half of the first one's time is the start
    if len(grown) > 1:
        slope = linear_regression([log(one.ratings) for one in grown],
                                  [log(one.seconds.of(args.threads)) for one in grown]).slope
        rows.append(Row(f"exponent of the time from {grown[0].ratings / 1e6:,.1f} M on", slope, "",
                        "linear", 1.0, 1 / slope, 1 / 1.1, slope <= 1.1))
    return rows


def measure(size: int, scratch: Path, runs: int, *, keep: bool) -> Made:
    """Write the raw files of one size unless they are there, make the stores, tidy up."""
    raw, store = scratch / f"{size}", scratch / f"{size}-store"
    subprocess.run([sys.executable, "-c", GENERATE, str(raw), str(size)], cwd=ROOT, check=True)
    command = ["scripts/make_sequences.py", "--data", raw, "--out", store]
    cpu, wall, peak = zip(*(child(command) for _ in range(runs)), strict=True)
    ratings = (store / "rating.npy").stat().st_size // 4
    made = Made(ratings, Seconds(median(cpu), median(wall)), max(peak), size_of(store),
                size_of(raw))
    for folder in (store,) if keep else (store, raw):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    print(f"{made.ratings:,} ratings: {made.seconds.wall:.1f} s, {made.peak_mb:.0f} MB", flush=True)
    return made


def child(command: list) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in MB of a Python process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT,
                               stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{command[0]} ended with {process.returncode}, expected 0")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return (usage.ru_utime + usage.ru_stime, time.perf_counter() - started,
            usage.ru_maxrss * unit / 1e6)


def size_of(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
