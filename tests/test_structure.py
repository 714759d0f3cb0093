"""The architecture and the dependencies as tests. Run: pytest tests/test_structure.py."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.command import ROOT

ROOMS = [  # bottom to top; "": a module that stands in bst/ itself
    ("utils", ["errors", "files", "guard"]),
    ("", ["config"]),
    ("data", ["schema", "overviews", "sources", "raw", "movielens", "formats", "text",
              "sequences", "splits", "preparation"]),
    ("model", ["batches", "dense", "layers", "interest", "network", "build"]),
    ("evaluation", ["metrics", "baselines", "report"]),
    ("training", ["distributed", "checkpoint", "loop"]),
    ("recommend", ["person", "catalogue", "best", "recommender", "users"]),
    ("", ["run", "estimator"]),
    ("serving", ["messages", "metrics", "worker", "gate", "app"]),
]
ORDER = [".".join(filter(None, ("bst", room, name))) for room, names in ROOMS for name in names]
SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that the file imports; `from a import b` is a.b where that is a module of bst."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner if inner <= {*ORDER} else {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_rooms_and_modules_import_only_from_earlier_ones():
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p
             for p in (ROOT / "bst").rglob("*.py") if p.stem != "__init__"}
    assert set(paths) == set(ORDER)
    for module, path in paths.items():
        for name in imported(path):
            if name.split(".")[0] == "bst":
                assert ORDER.index(name) < ORDER.index(module), f"{module} imports {name}"


def test_every_import_is_declared_and_pinned_exactly():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins), pins
    declared = {line.split("==")[0] for line in pins} | sys.stdlib_module_names
    declared |= {"bst", "scripts", "tests"}
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extra in about["optional-dependencies"].items():
        assert name in ("scripts", "serve") or all(
            re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", pin) for pin in extra), name
    of_tests = ["pytest", "pandas", "hypothesis", "ruff"]  # left out of the image
    assert f"^({'|'.join(of_tests)})==" in (ROOT / "Dockerfile").read_text()
    serve, of_scripts = (about["optional-dependencies"][name] for name in ("serve", "scripts"))
    ranges = *about["dependencies"], *serve, *of_scripts
    assert {pin for pin in pins if pin.split("==")[0] not in of_tests} == {  # what is tested
        re.sub(r">=((\d+)[\d.]*),<(\d+)$", lambda m: f"=={m[1]}" * (int(m[3]) == int(m[2]) + 1),
               pin) for pin in ranges}  # to the next major version
    extras = {"compare_lightgbm.py": {"lightgbm"}, "cluster.py": {"ray"}, "fuzz.py": {"atheris"},
              "mutate.py": {"mutmut"}, "sasrec.py": {"rectools", "pytorch_lightning"},
              "board.py": {"tensorboard"}}  # say how to get them
    for path in [*ROOT.glob("bst/**/*.py"), *ROOT.glob("scripts/**/*.py"),
                 *ROOT.glob("tests/**/*.py")]:
        roots = {name.split(".")[0] for name in imported(path)}
        is_apart = path.name == "sasrec.py"  # it has an environment of its own
        assert is_apart or roots <= declared | extras.get(path.name, set()), path
        if (ROOT / "bst") in path.parents:
            assert not roots & {pin.split(">=")[0] for pin in of_scripts}, path


def test_the_wheel_has_all_that_the_package_reads():
    rooms = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for room, names in rooms["package-data"].items() for name in names
               for path in (ROOT / room.replace(".", "/")).glob(name)}
    assert shipped == {path for path in (ROOT / "bst").rglob("*.*") if path.is_file()
                       and path.suffix not in (".py", ".pyc") and path.name != "README.md"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_within_a_second_and_says_what_the_script_does(script):
    before = os.times()
    done = subprocess.run([sys.executable, f"scripts/{script}", "--help"], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    after = os.times()  # seconds of CPU: they do not grow with what else the machine does
    assert sum(after[2:4]) - sum(before[2:4]) < 1.0
    source = (ROOT / "scripts" / script).read_text()
    assert source.splitlines()[-1].startswith(("    guarded(", "    command("))  # see test_guard.py
    assert ast.get_docstring(ast.parse(source)).splitlines()[0] in " ".join(done.stdout.split())


def test_each_reason_of_a_surviving_mutant_is_of_a_function_that_is_there():
    about = tomllib.loads((ROOT / "tests" / "mutation_survivors.toml").read_text())
    for entry in about["survivors"]:
        room, module, *names = entry["function"].split(".")
        tree = ast.walk(ast.parse((ROOT / "bst" / room / f"{module}.py").read_text()))
        assert set(names) <= {getattr(node, "name", None) for node in tree}, entry["function"]
        assert entry["lines"] and entry["reason"].endswith("."), entry["function"]


def test_no_text_in_the_repository_names_a_machine_path():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in files.split():
        if name.endswith((".py", ".md", ".toml", ".txt", ".json", "Dockerfile")):
            assert not re.search(r"/(work|root|tmp|home)/", (ROOT / name).read_text()), name
