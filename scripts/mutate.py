"""Mutation run: change the code in small ways and list the changes that no test notices.

mutmut makes the changes, an operator, number, string or argument at a time, in a temporary copy of
the repository, and runs the tests of `TESTS` that reach the changed function. What survives should
have a reason in tests/mutation_survivors.toml. Needs mutmut, which is no part of requirements.txt:
the extra `mutate` of pyproject.toml names the version.
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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

ROOT = Path(__file__).resolve().parent.parent
REASONS = ROOT / "tests" / "mutation_survivors.toml"
GOAL = 0.9  # share of the mutants of each module that the tests must notice
Module = Literal["sequences", "metrics", "batches", "checkpoint", "movielens"]
TESTS = {  # arguments of pytest: the fast tests of each module, without child processes
    "sequences": ["tests/test_sequences.py", "tests/test_preparation.py",
                  "-k", "test_sequences or columns_are or json_in_slices"],
    "metrics": ["tests/test_metrics.py"],
    "batches": ["tests/test_training.py", "-k", "batch"],
    "checkpoint": ["tests/test_training.py", "tests/test_fuzz.py", "tests/test_recommend.py",
                   "-k", "saved_model or model_folder or resume_state or damaged_file or state_of"],
    "movielens": ["tests/test_movielens.py", "tests/test_preparation.py", "-k",
                  "test_movielens and not escapes or fast_read"],
}


@dataclass(frozen=True)
class Args:
    """Find changes of the code that no test notices."""

    modules: tuple[Module, ...] = get_args(Module)
    """modules of bst/ to change"""
    jobs: int = os.cpu_count() or 1
    """mutants that are tested at a time, a process each"""
    json: Path | None = None
    """also write the table to this file"""


def prepare(folder: Path, module: str) -> None:
    """A copy of the repository, set up for one module."""
    for name in ("bst", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "bst" / f"{module}.py"
    path.write_text(re.sub(  # mutmut leaves decorated methods out
        r"( +)@(property|cached_property)\n((?: +def (\w+).*\n)(?:\1 .*\n|\n(?=\1 ))+)",
        r"\3\1\4 = \2(\4)\n", path.read_text()))
    settings = {"source_paths": ["bst"], "only_mutate": [f"bst/{module}.py"],
                "also_copy": ["scripts"], "process_isolation": "forkserver",
                "pytest_add_cli_args_test_selection": TESTS[module],
                "timeout_multiplier": 5.0, "timeout_constant": 3.0}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "pyproject.toml").write_text(
        f"{(ROOT / 'pyproject.toml').read_text()}\n[tool.mutmut]\n{lines}")


def mutate(folder: Path, module: str, jobs: int) -> dict[str, str]:
    """Run mutmut; the status of each mutant by its name."""
    prepare(folder, module)
    one_thread = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(  # CI: hypothesis draws the same examples in every run
        [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run",
         "--max-children", str(jobs)], cwd=folder, env={**os.environ, **one_thread, "CI": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"error: mutmut failed on bst/{module}.py\n{done.stdout[-3000:]}")
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    with contextlib.chdir(folder):
        data = SourceFileMutationData(path=f"bst/{module}.py")
        data.load()
    return {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}


def describe(folder: Path, module: str, name: str) -> tuple[str, str, str]:
    """Function, changed line and diff of a mutant."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    function, owner = orig_function_and_class_names_from_key(name)
    with contextlib.chdir(folder):
        diff = get_diff_for_mutant(name, path=f"bst/{module}.py").splitlines()[2:]
    changed = [line[1:].strip() for sign in "+-" for line in diff if line.startswith(sign)]
    return f"{module}.{owner + '.' if owner else ''}{function}", changed[0], "\n".join(diff)


def main(args: Args) -> int:
    """Print the table and the survivors; the number of modules below the goal."""
    pin = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    version = pin["mutate"][0].removeprefix("mutmut==")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version("mutmut") == version:
            return report(args, version)
    sys.exit(f"error: mutmut {version} is not installed; pip install mutmut=={version}")


def report(args: Args, version: str) -> int:
    """The run of each module, printed as it ends."""
    reasons = {(entry["function"], line): entry["reason"]
               for entry in tomllib.loads(REASONS.read_text())["survivors"]
               for line in entry["lines"]}
    rows, told, open_ = [], [], []
    print(f"{'module':<12}{'mutants':>9}{'killed':>9}{'timeout':>9}{'survived':>10}{'score':>9}")
    for module in args.modules:
        with tempfile.TemporaryDirectory() as folder:
            status = mutate(Path(folder), module, args.jobs)
            alive = [name for name, found in status.items() if found not in ("killed", "timeout")]
            for name in alive:
                function, line, diff = describe(Path(folder), module, name)
                reason = reasons.get((function, line))
                (told if reason else open_).append((function, status[name], line, reason, diff))
        count = Counter(status.values())
        rows.append({"module": module, "mutants": len(status), "killed": count["killed"],
                     "timeout": count["timeout"], "survived": len(alive),
                     "score": round(1 - len(alive) / len(status), 4), "tool": f"mutmut {version}"})
        print("{module:<12}{mutants:>9}{killed:>9}{timeout:>9}{survived:>10}{score:>9.1%}".format(
            **rows[-1]), flush=True)
    print(f"{len(told) + len(open_)} survivors, {len(told)} of them with a reason")
    for function, _, line, reason, _ in told:
        print(f"{function}: {line}\n    {reason}")
    for function, status, _, _, diff in open_:
        print(f"\n{function}: {status}, no reason in {REASONS.relative_to(ROOT)}\n{diff}")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return sum(row["score"] < GOAL for row in rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
