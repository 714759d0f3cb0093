"""Make every table of pics/README.md and its figures again, then the page; finished runs are kept.

Also the benchmarks and the mutation table. Left out: pics/page.png (scripts/draw_page.py), and what
breaks things on purpose (pytest -m faults, scripts/fuzz.py).
"""

import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.rank import TABLES
from scripts.support.command import guarded

STUDIES = ("layer", "dense", "readout", "text", "history", "heads")


def commands(files: str, jobs: int) -> list[str]:
    """The commands, the page of results last; `files` are the flags of the data."""
    data, metadata = files.split(" --metadata ")
    ranked = {(protocol, ties): [f"runs/{protocol}-{ties}-interest-{seed}" for seed in range(5)]
              for protocol, tables in TABLES.items() for ties in sorted({of for of, *_ in tables})}
    study = f"{files} --jobs {jobs} --threads 1"
    return [
        f"scripts/report.py {study} --json pics/results.json",
        *(f"scripts/ablate.py {name} {study} --json pics/ablate_{name}.json" for name in STUDIES),
        "scripts/draw_results.py",
        f"scripts/compare_lightgbm.py {study} --json pics/lightgbm.json",
        "scripts/shapes.py --json pics/shapes.json",
        *(f"scripts/report.py {study} --protocol {protocol} --json pics/{protocol}.json"
          for protocol in ("leave-last-one", "random")),
        f"scripts/train.py {files} --threads 1 --protocol keras-windows --run runs/keras-windows",
        "scripts/evaluate.py --run runs/keras-windows --json pics/keras-windows.json",
        f"scripts/train.py {files} --threads 1 --run runs/ml-1m",
        *(f"scripts/train.py {files} --threads 1 --interest 6 --protocol {protocol} --ties {ties} "
          f"--seed {seed} --run {folder}"
          for (protocol, ties), folders in ranked.items() for seed, folder in enumerate(folders)),
        *(f"scripts/rank.py --run {' '.join(folders)} --sasrec runs/sasrec-{protocol} "
          "--python sasrec/bin/python --json pics/ranking.json"
          for (protocol, _), folders in ranked.items()),
        f"scripts/benchmark.py prep {data} --json pics/benchmark_prep.json",
        f"scripts/benchmark.py train {data} --profile --json pics/benchmark_train.json",
        "scripts/benchmark.py score --run runs/ml-1m --profile --json pics/benchmark_score.json",
        f"scripts/benchmark.py text --metadata {metadata} --json pics/benchmark_text.json",
        "scripts/benchmark.py scale --json pics/benchmark_scale.json",
        "scripts/mutate.py --json pics/mutation.json",
        "scripts/draw_architecture.py",
        "scripts/write_results.py",
    ]


def main(
    data: Path = Path("data/ml-1m"), metadata: Path = Path("data/movies_metadata.csv"),
    jobs: int = 2, dry: bool = False,
) -> None:
    """Run the commands; the first that fails ends it.

    Args:
        data: folder of MovieLens-1M.
        metadata: Kaggle's movies_metadata.csv.
        jobs: runs at a time.
        dry: print the commands only.
    """
    files = f"--data {shlex.quote(str(data))} --metadata {shlex.quote(str(metadata))}"
    for command in commands(files, jobs):
        print(f"$ python {command}", flush=True)
        if not dry and subprocess.run([sys.executable, *shlex.split(command)]).returncode:
            sys.exit(f"error: this command failed: python {command}")


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
