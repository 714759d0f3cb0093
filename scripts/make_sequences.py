"""Turn raw MovieLens files into a sequence store, and fixed windows if wanted.

With no flags it uses the built-in synthetic data.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.config import DataConfig
from bst.schema import DataError


@dataclass(frozen=True)
class Args:
    """Build a sequence store."""

    data: DataConfig = DataConfig()
    out: Path = Path("data/store")
    """folder of the store, a --data for train.py"""
    windows: Path | None = None
    """also write fixed windows to this parquet file"""
    window_length: int = 8
    """tokens of a window, the target included"""
    window_step: int = 1
    """interactions between two targets of a user"""


def main(args: Args) -> None:
    """Read, check, sort, audit, write."""
    from bst.pipeline import open_store
    from bst.sequences import audit_split, make_windows, save_store, split_interactions

    started = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    store = open_store(args.data, report_dir=args.out)
    split = split_interactions(store, protocol=args.data.protocol, ties=args.data.ties,
                               seed=args.data.split_seed)
    for line in audit_split(store, split):
        print(f"audit: {line}")
    save_store(store, args.out)
    print(f"{len(store):,} ratings of {store.num_users:,} users and {store.num_items:,} movies "
          f"-> {args.out} in {time.perf_counter() - started:.1f} s")
    if args.windows is not None:
        table = make_windows(store, length=args.window_length, step=args.window_step)
        args.windows.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(args.windows)
        print(f"{len(table):,} windows of {args.window_length} -> {args.windows}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
