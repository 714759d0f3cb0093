"""Inputs that failed in other hands, and what is right. Run: pytest -m cases.

The small inputs are in tests/cases: random numbers, nobody's data. Further cases, a folder each
with a run.sh that prints PASS or FAIL, are looked for in BST_CASES, else in ../shared/cases.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from tests.command import ROOT, call

CASES = ROOT / "tests" / "cases"
OTHERS = Path(os.environ.get("BST_CASES", ROOT.parent / "shared" / "cases"))
RENAMED = {"bst.sequences": "bst.data.sequences"}  # since the cases of others were written
pytestmark = pytest.mark.cases


def train(data, out, *flags, **options):
    return call("train.py", "--data", data, "--out", out, "--cache", out / "cache", "--no-text",
                "--threads", "1", "--epochs", "1", *flags, **options)


def write(path: Path, rows) -> Path:
    lines = (",".join(map(str, row)) for row in rows)
    path.write_text("\n".join(["user,item,rating,timestamp", *lines]))
    return path


def say_use() -> None:
    """Have the process print its peak memory in kB when it ends."""
    Finalize(None, lambda: print(re.search(
        r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]), exitpriority=0)


@pytest.mark.parametrize(("ratings", "history"), [
    ("01-ratings-only", None), ("03-decimal-scale", "03-history"),
    ("11-ratings", "15-rows-of-one-user")])
def test_ratings_alone_train_and_score_a_history_like_them(tmp_path, ratings, history):
    done = train(CASES / f"{ratings}.csv", tmp_path / "run", "--steps", "20")
    assert "\nbst " in done.stdout
    if history:
        done = call("recommend.py", "--model", tmp_path / "run", "--history",
                    CASES / f"{history}.csv", "--k", "2", "--json", "-")
        assert len(json.loads(done.stdout)["items"]) == 2


def test_data_without_ratings_rank_by_interest(tmp_path):
    data, run = CASES / "11-ratings.csv", tmp_path / "run"
    done = train(data, run, "--columns", "rating=none", "--interest", "1", "--steps", "5")
    assert "has no ratings: each row counts as a 1" in done.stdout and "bst" in done.stdout
    done = call("recommend.py", "--run", run, "--user", "1", "--by", "interest", "--json", "-")
    assert all(0 < item["chance"] < 1 == item["stars"] for item in json.loads(done.stdout)["items"])


def test_training_on_one_person_alone_is_not_worse_than_its_start(tmp_path):
    train(CASES / "04-one-user.csv", tmp_path / "run", "--steps", "30")
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    start, *later = (row["valid_mae"] for row in rows)
    assert start < 1 and max(later) < start + 0.01


@pytest.mark.slow
def test_many_short_users_and_a_long_one_train_in_less_than_a_gigabyte(tmp_path):
    draw = random.Random(2)
    rows = [(user, item, draw.randint(1, 5), 10**9 + 40_000 * user + 3_600 * k)
            for user in range(1, 16_001) for k, item in enumerate(draw.sample(range(1, 9_001), 6))]
    rows += [(20_000, item, 1 + item % 5, 1_100_000_000 + 60 * item) for item in range(1, 2_001)]
    said = train(write(tmp_path / "ratings.csv", rows), tmp_path / "run", fault=say_use).stdout
    assert "\nbst " in said and int(said.splitlines()[-1]) < 1_000_000


@pytest.mark.slow
def test_random_stars_of_items_that_come_and_go_are_scored_as_by_their_mean(tmp_path):
    """At time k one of the 60 items that are new then is rated: most test items are new."""
    draw, rated = random.Random(5), {}
    for k in range(6_000):
        user, item = draw.randint(1, 300), k // 10 + draw.randint(0, 59)
        if (user, item) not in rated:
            rated[user, item] = draw.randint(1, 5), 10**9 + 3_600 * k
    rows = ((*pair, *about) for pair, about in rated.items())
    train(write(tmp_path / "ratings.csv", rows), tmp_path / "run")
    mae = {row["scorer"]: row["mae"]
           for row in json.loads((tmp_path / "run" / "results.json").read_text())}
    assert mae["bst"] == pytest.approx(mae["global mean"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parent.name for path in OTHERS.glob("*/run.sh")) or [
    pytest.param("none", marks=pytest.mark.skip(reason=f"no cases in {OTHERS}"))])
def test_a_case_of_the_folder_passes(tmp_path, name):
    shutil.copytree(OTHERS, tmp_path / "cases")
    script = tmp_path / "cases" / name / "run.sh"
    for old, new in RENAMED.items():
        script.write_text(script.read_text().replace(old, new))
    done = subprocess.run(["bash", script], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, env={**os.environ, "PY": sys.executable})
    assert done.stdout.splitlines()[-1].startswith("PASS"), (
        done.stdout + script.with_name("expected.txt").read_text())
