"""The README says what the committed results say. Run: pytest tests/test_readme.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.common import Row, format_rows
from scripts.mutate import GOAL, ROW
from scripts.report import format_report
from scripts.reproduce_clean import differences
from scripts.studies.runs import format_study
from scripts.support.ranking import format_ranking

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
STUDIES = sorted(path.name for path in (ROOT / "pics").glob("ablate_*.json"))


def rows(name: str) -> list[dict]:
    return json.loads((ROOT / "pics" / name).read_text())


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", ["results.json", "lightgbm.json"])
def test_the_table_of_bst_beside_its_rivals_is_the_one_of_its_file(name):
    for line in table_lines(format_report(rows(name))):
        assert line in README
    assert len({row["seed"] for row in rows(name) if row["scorer"] == "bst"}) >= 5


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_is_the_one_of_its_file(name):
    found = rows(name)
    for line in table_lines(format_study(found, found[0]["variant"])):
        assert line in README
    assert all(row["seeds"] >= 5 and row["config_hash"] for row in found)


@pytest.mark.parametrize("work", ["prep", "train", "score", "text", "scale"])
def test_each_benchmark_with_a_goal_is_the_one_of_its_file(work):
    with_goal = [Row(**row) for row in rows(f"benchmark_{work}.json") if row["goal"] is not None]
    assert with_goal
    for line in table_lines(format_rows(with_goal)):
        assert line in README


def test_every_figure_and_script_that_is_named_is_there():
    named = re.findall(r"(?:pics|scripts|data|tests|bst)/[a-z_0-9/]+\.(?:py|png|json|md)", README)
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


def test_no_result_names_a_place_on_a_machine():
    for path in (ROOT / "pics").glob("*.json"):
        assert not re.search(r"/(work|root|tmp|home)/", path.read_text()), path


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


def test_the_ranking_table_is_the_one_of_its_file():
    rated = [row for row in rows("ranking.json") if row["relevant"] == "rated"]
    assert len(rated) >= 5 and {row["runs"] for row in rated} == {5}
    for line in table_lines(format_ranking(rated))[2:]:
        assert line.split(" | ", 3)[3] in README  # HR and NDCG with their intervals


def test_the_mutation_table_is_the_one_of_its_file():
    for row in rows("mutation.json"):
        assert ROW.format(**row) in README
        assert row["score"] >= GOAL


def test_the_load_table_is_the_one_of_its_file():
    found = rows("load.json")

    def wait(ms: float) -> str:
        return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"

    for name in ("one", "many", "too many", "many again"):
        part = found[name]
        cells = (f"{part['per_second']:.0f}", wait(part["p50_ms"]), wait(part["p99_ms"]),
                 f"{part['rss_mb']:.0f} MB")
        assert any(line.startswith(f"| {part['clients']}") and line.endswith(
            f"| {' | '.join(cells)} |") for line in table_lines(README)), name
    assert f"takes {found['one']['cpu_ms_each']:.0f} ms\nof one core" in README


def test_the_core_is_as_short_as_it_says():
    ((most, named),) = re.findall(r"under ([\d,]+) lines, best read in this order: ([^.]*)", README)
    names = re.findall(r"`([\w/]+)`", named)
    lines = sum(len((ROOT / f"bst/{name}.py").read_text().splitlines()) for name in names)
    assert len(names) == 7 and lines < int(most.replace(",", ""))
