"""Studies over seeds. Run: pytest tests/test_studies.py."""

import json
from dataclasses import fields, replace
from functools import partial
from typing import get_args

import numpy as np
import pytest

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.recommend.recommender import Recommender
from bst.run import store_of
from bst.utils.errors import OptionError
from scripts.ablate import STUDIES, variants
from scripts.studies.runs import AblationArgs, compare_variant, format_study, run_ablation
from scripts.support.synthetic import write_synthetic
from tests.command import call


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    raw = write_synthetic(folder / "raw", num_users=60, num_movies=50, num_ratings=1_500)
    return AblationArgs(
        data=DataConfig(data=raw, cache=folder / "cache"),
        model=ModelConfig(width=8, heads=2, history_len=10, text=False, dropout=0.2),
        train=TrainConfig(epochs=1, steps=1, batch_size=1024, threads=1), seeds=2,
        runs=folder / "runs", json=folder / "study.json", figure=folder / "study.png")


arms = partial(variants, "dense")


def test_a_study_trains_each_arm_with_each_seed_once(args, capsys):
    chosen = replace(args, only=("no dense features",))
    run_ablation(chosen, arms)
    said = capsys.readouterr().out
    rows = json.loads(args.json.read_text())
    assert [row["variant"] for row in rows] == ["concat (a)", "no dense features"]
    assert len(list(args.runs.glob("raw-temporal-*/predictions.npz"))) == 4
    assert rows[0]["difference"] == 0.0 and rows[1]["difference"] != 0.0
    assert rows[1]["config"]["model"]["dense"] == "none" and rows[1]["seeds"] == 2
    assert f"| no dense features | {rows[1]['valid_mae']:.4f}" in said
    assert args.figure.read_bytes().startswith(b"\x89PNG")
    run = next(args.runs.glob("raw-temporal-*"))  # can be used like one of train.py
    assert Recommender.from_pretrained(run).recommend([], k=3)
    assert store_of(run).digest == json.loads((run / "model.json").read_text())["identity"]["data"]
    before = {p: p.stat().st_mtime_ns for p in args.runs.glob("*/*.safetensors")}
    run_ablation(chosen, arms)  # all is there already
    assert before == {p: p.stat().st_mtime_ns for p in args.runs.glob("*/*.safetensors")}
    assert json.loads(args.json.read_text()) == rows
    with pytest.raises(OptionError, match=r"--only names \['nine'\], expected some of"):
        run_ablation(replace(args, only=("nine",)), arms)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_compares_with_the_defaults_and_has_every_option_of_its_field(study):
    found = list(variants(study, RunConfig()).values())
    data = DataConfig(protocol="cold-items" if study == "text" else "temporal")
    assert found[0] == RunConfig(data=data) and len({c.hash for c in found}) == len(found) > 2
    for field in fields(ModelConfig):
        if field.name in (study, {"layer": "attention"}.get(study)) and get_args(field.type):
            assert {getattr(c.model, field.name) for c in found} == {*get_args(field.type)}


def test_the_script_runs_the_study_that_is_asked(args, tmp_path):
    flags = ["--data", args.data.data, "--no-text", "--quick", "--threads", "1", "--only", "none",
             "--batch-size", "1024", "--runs", tmp_path, "--json", tmp_path / "study.json"]
    said = call("ablate.py", "layer", *flags).stdout
    rows = json.loads((tmp_path / "study.json").read_text())
    for log in tmp_path.glob("*/metrics.jsonl"):
        assert log.read_text().count("\n") == 2  # quick: one epoch, and before it
    assert [row["variant"] for row in rows] == ["both", "none"] and "| none |" in said
    assert "1 seed\n" in said and "+-" not in said and rows[0]["mae_spread"] is None
    assert [row["config"]["model"]["attention"] for row in rows] == ["both", "none"]


def test_a_row_is_means_over_seeds_and_the_paired_difference():
    label, user = np.array([3.0, 4.0, 5.0, 1.0]), np.array([0, 0, 1, 2])

    def run(shift, valid):
        return {"label": label, "user": user, "score": label + shift, "star": label,
                "valid_mae": np.array(valid)}

    ours, reference = [run(0.5, 0.6), run(-0.7, 0.8)], [run(0.2, 0.5), run(0.2, 0.5)]
    row = compare_variant("arm", RunConfig(), ours, reference)
    assert row["mae"] == pytest.approx((0.5 + 0.7) / 2)
    assert row["mae_spread"] == pytest.approx(0.1 * 2**0.5) and row["mae_star"] == 0.0
    assert row["valid_mae"] == pytest.approx(0.7)
    assert row["difference"] == pytest.approx(0.6 - 0.2)
    assert row["low"] == pytest.approx(0.3) and row["high"] == pytest.approx(0.5)  # of one run
    assert "+0.4000 [+0.3000, +0.5000]" in format_study([row | {"variant": "x"}, row], "x")
