"""Turn raw rating files into a sequence store, and fixed windows if wanted.

With no flags it uses the built-in synthetic data. The ratings are sorted in parts, so that memory
does not grow with them; the split of more than 4 M ratings is audited by train.py alone.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import DataConfig
from scripts.support.command import command

AUDITED = 4_000_000  # ratings: the arrays of the audit take some 100 bytes each


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
    engine: Literal["local", "ray"] = "local"
    """ray: a task for each partition of users, same bytes; needs pip install -e ".[ray]" """


def main(args: Args) -> None:
    """Read, check, sort, write, audit."""
    from bst.data.preparation import make_store
    from bst.data.splits import audit_split, split_interactions
    from scripts.support.synthetic import with_builtin
    from scripts.support.windows import make_windows

    if args.engine == "ray":
        from scripts.support.cluster import make_store_on_ray as make_store

    started = time.perf_counter()
    store = make_store(with_builtin(args.data), args.out)
    print(f"{len(store):,} ratings of {store.num_users:,} users and {store.num_items:,} items "
          f"-> {args.out} in {time.perf_counter() - started:.1f} s")
    if len(store) <= AUDITED:
        split = split_interactions(store, protocol=args.data.protocol, ties=args.data.ties,
                                   seed=args.data.split_seed)
        for line in audit_split(store, split):
            print(f"audit: {line}")
    else:
        print(f"audit: left to train.py, which holds the split of {len(store):,} ratings in memory")
    if args.windows is not None:
        table = make_windows(store, length=args.window_length, step=args.window_step)
        args.windows.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(args.windows)
        print(f"{len(table):,} windows of {args.window_length} -> {args.windows}")


if __name__ == "__main__":
    command(main, Args, __doc__)
