"""The architecture and the dependencies as tests. Run: pytest tests/test_structure.py."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["config", "files", "packing", "schema", "guard", "overviews", "sources", "raw",
         "movielens", "formats", "synthetic", "text", "sequences", "splits", "preparation",
         "features", "factors", "kalman", "neighbours", "base", "batches", "people", "model",
         "scoring", "metrics", "baselines", "evaluation", "distributed", "checkpoint", "training",
         "catalogue", "recommend", "export", "ranking", "pipeline", "hub", "ablation", "cluster",
         "messages", "worker", "gate", "serve"]
SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_modules_import_only_from_earlier_ones():
    paths = [p for p in (ROOT / "bst").glob("*.py") if p.stem != "__init__"]
    assert {p.stem for p in paths} == set(ORDER)
    for path in paths:
        for name in imported(path):
            if name.startswith("bst."):
                used = name.removeprefix("bst.")
                assert ORDER.index(used) < ORDER.index(path.stem), f"{path.stem} imports {used}"


def test_every_import_is_declared_and_pinned_exactly():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins), pins
    declared = {line.split("==")[0] for line in pins} | sys.stdlib_module_names
    declared |= {"bst", "scripts", "tests"}
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extra in about["optional-dependencies"].items():
        assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", pin) for pin in extra), name
    of_tests = {"pytest", "hypothesis", "ruff"}
    assert {pin for pin in pins if pin.split("==")[0] not in of_tests} == {  # what is tested
        *about["dependencies"], *about["optional-dependencies"]["serve"]}
    extras = {"prep.py": "pandas", "compare_lightgbm.py": "lightgbm", "cluster.py": "ray",
              "fuzz.py": "atheris", "mutate.py": "mutmut"}  # say how to get them
    for path in [*ROOT.glob("bst/*.py"), *ROOT.glob("scripts/**/*.py"),
                 *ROOT.glob("tests/**/*.py")]:
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= declared | {extras.get(path.name)}, path


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_within_a_second_and_says_what_the_script_does(script):
    before = os.times()
    done = subprocess.run([sys.executable, f"scripts/{script}", "--help"], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    after = os.times()  # seconds of CPU: they do not grow with what else the machine does
    assert sum(after[2:4]) - sum(before[2:4]) < 1.0
    docstring = ast.get_docstring(ast.parse((ROOT / "scripts" / script).read_text()))
    assert docstring.splitlines()[0] in " ".join(done.stdout.split())


def test_each_reason_of_a_surviving_mutant_is_of_a_function_that_is_there():
    about = tomllib.loads((ROOT / "tests" / "mutation_survivors.toml").read_text())
    for entry in about["survivors"]:
        module, *names = entry["function"].split(".")
        tree = ast.walk(ast.parse((ROOT / "bst" / f"{module}.py").read_text()))
        assert set(names) <= {getattr(node, "name", None) for node in tree}, entry["function"]
        assert entry["lines"] and entry["reason"].endswith("."), entry["function"]


def test_no_text_in_the_repository_names_a_machine_path():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in files.split():
        if name.endswith((".py", ".md", ".toml", ".txt", "Dockerfile")):
            assert not re.search(r"/(work|root|tmp)/", (ROOT / name).read_text()), name
