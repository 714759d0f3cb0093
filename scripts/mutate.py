"""Mutation run: change the code in small ways and list the changes that no test notices.

mutmut makes the changes, an operator, number, string or argument at a time, in a temporary copy of
the repository, and runs the tests of `TESTS` that reach the changed function. What survives should
have a reason in tests/mutation_survivors.toml. Needs mutmut, an extra of pyproject.toml.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts.support.command import guarded

GOAL = 0.9  # share of the mutants of each module that the tests must notice
ROW = "| {module} | {mutants} | {killed} | {timeout} | {survived} | {score:.1%} |"
TESTS = {  # module -> arguments of pytest: its fast tests, without child processes
    "data.sequences": ["tests/data/test_sequences.py", "tests/data/test_preparation.py",
                       "-k", "test_sequences or columns_are or json_in_slices"],
    "data.splits": ["tests/data/test_splits.py", "tests/test_config.py", "-k",
                    "test_splits or takes_a_name"],
    "evaluation.metrics": ["tests/evaluation/test_metrics.py"],
    "model.batches": ["tests/model/test_batches.py"],
    "training.checkpoint": ["tests/training/test_loop.py", "tests/test_fuzz.py",
                            "tests/recommend/test_recommender.py", "-k",
                            "only_harms or json_that or "
                            "resume_state or damaged_run or damaged_state or state_of or "
                            "run_folder_gives"],
    "data.movielens": ["tests/data/test_movielens.py", "tests/data/test_formats.py",
                       "tests/data/test_preparation.py", "-k",
                       "test_movielens and not escapes or a_bad_row or fast_read"],
}
METHOD = re.compile(r"( +)@((?:cached_)?property)\n( +def (\w+).*\n(?:\1 .*\n|\n(?=\1 ))+)")


@dataclass(frozen=True)
class Args:
    """Find changes of the code that no test notices."""

    modules: tuple[Literal[*TESTS], ...] = tuple(TESTS)
    """modules of bst/ to change"""
    jobs: int = os.cpu_count() or 1
    """mutants that are tested at a time, a process each"""
    json: Path | None = None
    """also write the table to this file"""


def path_of(module: str) -> Path:
    """File of a module of `TESTS`, from the root of the repository."""
    return Path("bst", *module.split(".")).with_suffix(".py")


def run(module: str, jobs: int) -> dict[str, str]:
    """Copy the repository to the current folder and mutate a module there: name -> status."""
    from mutmut.stats import status_by_exit_code

    for name in ("bst", "scripts", "tests"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    path = path_of(module)  # mutmut leaves decorated methods out: decorate later
    path.write_text(METHOD.sub(r"\3\1\4 = \2(\4)\n", path.read_text()))
    settings = {"source_paths": ["bst"], "only_mutate": [str(path)], "also_copy": ["scripts"],
                "process_isolation": "forkserver", "timeout_multiplier": 5.0,
                "timeout_constant": 6.0, "pytest_add_cli_args_test_selection": TESTS[module]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text()
    Path("pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]))
    fixed = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "CI": "1"}  # CI: hypothesis too
    done = subprocess.run(
        [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", "--max-children",
         str(jobs)], env={**os.environ, **fixed}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"error: mutmut failed on {path}\n{done.stdout[-3000:]}")
    codes = json.loads(Path(f"mutants/{path}.meta").read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def describe(module: str, name: str) -> tuple[str, str, str]:
    """Function, changed line and diff of a mutant of `run`."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    function, owner = orig_function_and_class_names_from_key(name)
    diff = get_diff_for_mutant(name, path=str(path_of(module))).splitlines()[3:]
    changed = [line[1:].strip() for sign in "+-" for line in diff if line.startswith(sign)]
    return ".".join(filter(None, (module, owner, function))), changed[0], "\n".join(diff)


def main(args: Args) -> int:
    """Print a row for each module and the survivors; the number of modules below the goal."""
    pin = re.search(r"mutmut==[\d.]+", (ROOT / "pyproject.toml").read_text())[0]
    if pin not in {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}:
        sys.exit(f"error: no module {pin}; run: pip install {pin}")
    known = tomllib.loads((ROOT / "tests/mutation_survivors.toml").read_text())["survivors"]
    reasons = {(e["function"], line): e["reason"] for e in known for line in e["lines"]}
    rows, alive = [], []
    print("| module | mutants | killed | timeout | survived | noticed |\n|---|---|---|---|---|---|")
    for module in args.modules:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            status = run(module, args.jobs)
            mine = [(found, *describe(module, name)) for name, found in status.items()
                    if found not in ("killed", "timeout")]
        alive, found = alive + mine, list(status.values())
        rows.append({"module": module, "mutants": len(status), "killed": found.count("killed"),
                     "timeout": found.count("timeout"), "survived": len(mine),
                     "score": round(1 - len(mine) / len(status), 4), "tool": pin})
        print(ROW.format(**rows[-1]), flush=True)
    told = sum(mutant[1:3] in reasons for mutant in alive)
    print(f"{len(alive)} survivors, {told} of them with a reason")
    for found, function, line, diff in alive:
        reason = reasons.get((function, line))
        print(f"{function}: {line}\n    {reason}" if reason else
              f"\n{function}: {found}, without a reason\n{diff}")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return sum(row["score"] < GOAL for row in rows)


if __name__ == "__main__":
    guarded(lambda: main(tyro.cli(Args, description=__doc__)))
