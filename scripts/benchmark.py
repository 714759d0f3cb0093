"""Time the work of bst against a reference in the same run.

`prep`: raw files -> sequences, against the Keras example's pandas way and a bare polars read.
Needs pandas, which bst itself does not: pip install pandas==3.1.1
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

PREP = (  # work, our measurement, reference, goal: times as fast as the reference
    ("read and validate", "our read", "bare polars read", 1 / 2),
    ("raw files -> store", "our way", "bare polars read", 1 / 3),
    ("raw files -> store", "our way", "Keras example, pandas", 30.0),
)


@dataclass(frozen=True)
class Args:
    """What to time, on which files."""

    work: tyro.conf.Positional[Literal["prep"]]
    data: Path | None = None
    """folder of MovieLens-1M; none: 1 M synthetic ratings"""
    runs: int = 5
    """timed runs of each, alternating; the median counts"""
    json: Path | None = None
    """also write the rows to this file"""


def pandas_way(folder: Path, out: Path) -> None:
    """What the Keras example does: group, lists, Python windows, joined strings, CSV."""
    import pandas as pd

    names = ["user_id", "movie_id", "rating", "unix_timestamp"]
    ratings = pd.read_csv(folder / "ratings.dat", sep="::", names=names, engine="python",
                          encoding="latin-1")
    groups = ratings.sort_values("unix_timestamp").groupby("user_id")
    users = pd.DataFrame({"user_id": list(groups.groups), **{
        name: list(groups[name].apply(list)) for name in names[1:]}})
    for name in names[1:]:
        users[name] = users[name].apply(windows_of_a_user)
    rows = users[["user_id", "movie_id"]].explode("movie_id", ignore_index=True)
    stars = users[["rating"]].explode("rating", ignore_index=True)
    rows["rating"] = stars["rating"].apply(lambda w: ",".join(str(v) for v in w))
    rows["movie_id"] = rows["movie_id"].apply(lambda w: ",".join(str(v) for v in w))
    rows.to_csv(out / "windows.csv", index=False, sep="|")


def windows_of_a_user(values: list, length: int = 4, step: int = 2) -> list:
    """Windows of `length`, and the last `length` values once more, as the example has it."""
    windows = [values[k:k + length] for k in range(0, len(values) - length + 1, step)]
    return [*windows, values[-length:]]


def bare_read(folder: Path) -> None:
    """A typed polars read of the three files, without any check; `::` is an empty field."""
    import polars as pl

    whole, text = pl.Int32, pl.String
    layouts = {"ratings.dat": [whole] * 4, "movies.dat": [whole, text, text],
               "users.dat": [whole, text, whole, whole, text]}
    for name, dtypes in layouts.items():
        between = [text] * len(dtypes)
        columns = [dtype for pair in zip(dtypes, between, strict=True) for dtype in pair][:-1]
        content = (folder / name).read_bytes().decode("latin-1").encode()
        pl.read_csv(content, separator=":", has_header=False, quote_char=None,
                    truncate_ragged_lines=True,
                    schema={f"column_{k}": dtype for k, dtype in enumerate(columns)})


def our_read(folder: Path) -> None:
    """Read and validate."""
    from bst.movielens import read_movielens

    read_movielens(folder)


def our_way(folder: Path, out: Path) -> None:
    """Read, validate, sort, write the store."""
    from bst.movielens import read_movielens
    from bst.sequences import build_sequences, save_store

    save_store(build_sequences(read_movielens(folder)), out)


def median_seconds(works: dict[str, Callable[[], None]], runs: int) -> dict[str, float]:
    """Median time of each work over `runs` alternating runs after one warm-up of the quick ones."""
    seconds = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(args: Args) -> None:
    """Run the work and print its table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data
        if folder is None:
            from bst.synthetic import write_synthetic

            folder = write_synthetic(Path(scratch) / "raw", num_users=6040, num_movies=3883,
                                     num_ratings=1_000_000)
        seconds = median_seconds({
            "our read": lambda: our_read(folder),
            "our way": lambda: our_way(folder, Path(scratch)),
            "bare polars read": lambda: bare_read(folder),
            "Keras example, pandas": lambda: pandas_way(folder, Path(scratch)),
        }, args.runs)
    rows = [compare(seconds, *job) for job in PREP]
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(seconds: dict[str, float], work: str, ours: str, reference: str, goal: float) -> dict:
    """Print and return one row: how many times as fast as the reference."""
    value, other = seconds[ours], seconds[reference]
    met = other / value >= goal
    print(f"{work}: bst {value:.2f} s, {reference} {other:.2f} s: {other / value:.2f} times as "
          f"fast (goal {goal:.2f}: {'met' if met else 'missed'})")
    return {"work": work, "value": value, "unit": "s", "reference": reference,
            "reference_value": other, "ratio": other / value, "goal": goal, "met": met}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
