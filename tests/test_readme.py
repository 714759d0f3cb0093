"""The pages say what the committed results say. Run: pytest tests/test_readme.py."""

import functools
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from scripts import reproduce, write_results
from scripts.benchmarks.common import Row, format_rows
from scripts.mutate import GOAL, ROW
from scripts.reproduce_clean import differences
from tests.command import ROOT

PAGES = {path: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("*/README.md"),
                                             *ROOT.glob("*/*/README.md")]}
README = PAGES[ROOT / "README.md"]
SHOWN = re.findall(r"(?:python|torchrun [^\n`]*) (scripts/\w+\.py[^\n`|]*)",
                   "\n".join(PAGES.values()).replace("\\\n", " "))
COMMANDS = reproduce.commands("--data data/ml-1m --metadata data/movies_metadata.csv", jobs=2)
RESULTS = sorted(path.stem for path in (ROOT / "pics").glob("*.json"))


@pytest.mark.parametrize("command", sorted({*COMMANDS, *SHOWN}))
def test_a_command_of_the_pages_or_of_reproduce_is_one_that_its_script_reads(command, monkeypatch):
    """By its own parser, after which LookupError keeps it from doing anything."""
    read = tyro.cli

    def cli(flags, **options):
        idle = functools.wraps(flags)(lambda **_: None) if inspect.isfunction(flags) else flags
        raise LookupError(read(idle, **options))

    for name in ("tyro.cli", "tyro.extras._subcommand_cli_from_dict.cli"):
        monkeypatch.setattr(name, cli)
    monkeypatch.setattr(sys, "path", [*sys.path])  # each script puts the root in front
    for more, end in (([], LookupError), (["--no-such-flag"], SystemExit)):
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), *more])
        with pytest.raises(end):
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def test_reproduce_makes_every_file_of_the_page_of_results_and_then_the_page():
    made = {path for command in COMMANDS[:-1] for path in re.findall(r"--json pics/(\S+)\.json",
                                                                    command)}
    assert made >= {*RESULTS, *(name for _, _, name in write_results.SECTIONS)}
    assert COMMANDS[-1] == "scripts/write_results.py"


def rows(name: str) -> list[dict]:
    return json.loads((ROOT / "pics" / f"{name}.json").read_text())


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_page_of_results_is_what_the_script_makes_of_the_files():
    assert PAGES[ROOT / "pics" / "README.md"] == write_results.page(ROOT / "pics")
    shown = {name for _, _, name in write_results.SECTIONS}
    assert {name for name in RESULTS if not name.startswith(("benchmark", "mutation"))
            } <= shown


def test_results_are_of_five_seeds_or_say_so():
    assert len({row["seed"] for row in rows("results") if row["scorer"] == "bst"}) >= 5
    for name in RESULTS:
        if name.startswith("ablate_"):
            assert all(row["seeds"] >= 2 and row["config_hash"] for row in rows(name)), name


def test_the_table_of_the_readme_is_that_of_the_results():
    found = rows("results")
    ours = [row for row in found if row["scorer"] == "bst"]
    keys = "mae", "rmse", "mae_star"
    named = {"**bst**": [np.mean([row[key] for row in ours]) for key in keys]}
    named |= {row["scorer"]: [row[key] for key in keys] for row in found}
    lines = [line for line in table_lines(README) if line.count("|") == 5 and "0." in line]
    assert len(lines) >= 5
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in named:
            assert [float(cell.strip("*")) for cell in cells] == pytest.approx(
                named[name], abs=5.1e-5), name
    assert sum(name in line for line in lines for name in ("**bst**", "item kNN")) == 2


def test_the_ranking_of_the_readme_is_that_of_the_results():
    (line,) = [line for line in README.splitlines() if "NDCG@10" in line]
    found = [next(row["ndcg10"] for row in table["rows"] if row["scorer"] == scorer)
             for table in rows("ranking")[:2] for scorer in ("bst", "SASRec")]  # strict, stable
    assert [float(x) for x in re.findall(r"0\.\d{3}", line)] == [round(x, 3) for x in found]


@pytest.mark.parametrize("work", ["prep", "train", "score", "text", "scale"])
def test_each_benchmark_with_a_goal_is_the_one_of_its_file(work):
    with_goal = [Row(**row) for row in rows(f"benchmark_{work}") if row["goal"] is not None]
    assert with_goal
    page = PAGES[ROOT / "scripts" / "benchmarks" / "README.md"]
    for line in table_lines(format_rows(with_goal)):
        assert line in page


def test_every_figure_and_script_that_is_named_is_there():
    for path, page in PAGES.items():
        named = re.findall(r"(?:pics|scripts|data|tests|bst)/[a-z_0-9/]+\.(?:py|png|json|md)", page)
        named += [str((path.parent / link).relative_to(ROOT))
                  for link in re.findall(r"\]\(([\w./-]+)\)", page)]
        missing = {name for name in named if not (ROOT / name).exists()}
        assert not missing, path


def test_each_room_has_a_readme_that_names_its_modules():
    for folder in (path.parent for path in ROOT.glob("bst/*/__init__.py")):
        page = PAGES[folder / "README.md"]
        assert {path.name for path in folder.glob("[!_]*.py")} <= set(
            re.findall(r"`(\w+\.py)`", page)), folder


def test_the_example_prints_what_the_readme_says(tmp_path):
    """Its blocks word for word, in a folder of their own; other threads and CPUs move 0.03 stars.

    The third decimal of these numbers is what the last bits of a training decide.
    """
    (section,) = re.findall(r"^## Use a run\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    python = [kind for kind, _ in blocks].index("python")
    (shell, train), (_, code), (text, expected) = blocks[python - 1:python + 2]
    assert (shell, text) == ("bash", "text")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = ""
    for command in (["bash", "-ec", train], [sys.executable, "-c", code]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", env={
            **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"})
        assert done.returncode == 0, done.stderr
        said = done.stdout
    assert differences(expected, said, 0.03) == []
    assert len(said.splitlines()) == len(expected.splitlines())


def test_the_mutation_table_is_the_one_of_its_file():
    page = PAGES[ROOT / "tests" / "README.md"]
    for row in rows("mutation"):
        assert ROW.format(**row) in page
        assert row["score"] >= GOAL


def test_the_package_its_tests_and_its_front_page_keep_to_their_budgets():
    for folder, most in (("bst", 7000), ("tests", 7200)):
        files = [path.read_text() for path in ROOT.glob(f"{folder}/**/*.py")]
        assert sum(len(text.splitlines()) for text in files) <= most, folder
    assert len(README.split()) <= 1500
