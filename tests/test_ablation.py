"""Studies over seeds. Run: pytest tests/test_ablation.py."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bst.ablation import AblationArgs, compare_variant, format_study, run_ablation, run_one
from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    raw = write_synthetic(folder / "raw", num_users=60, num_movies=50, num_ratings=1_500)
    return AblationArgs(
        data=DataConfig(data=raw, cache=folder / "cache"),
        model=ModelConfig(width=8, heads=2, history_len=10, text=False, base="bias"),
        train=TrainConfig(epochs=1, batch_targets=128, threads=1), seeds=2,
        runs=folder / "runs", json=folder / "study.json", figure=folder / "study.png")


def arms(base: RunConfig) -> dict[str, RunConfig]:
    return {"concat": base, "none": replace(base, model=replace(base.model, dense="none")),
            "bucket": replace(base, model=replace(base.model, dense="bucket"))}


def test_a_study_trains_each_arm_with_each_seed_once(args, capsys):
    chosen = replace(args, only=("none",))
    run_ablation(chosen, arms)
    said = capsys.readouterr().out
    rows = json.loads(args.json.read_text())
    assert [row["variant"] for row in rows] == ["concat", "none"]
    assert len(list(args.runs.glob("temporal-*/predictions.npz"))) == 4
    assert rows[0]["difference"] == 0.0 and rows[1]["difference"] != 0.0
    assert rows[1]["config"]["model"]["dense"] == "none" and rows[1]["seeds"] == 2
    assert f"| none | {rows[1]['valid_mae']:.4f}" in said
    assert args.figure.read_bytes().startswith(b"\x89PNG")
    before = {p: p.stat().st_mtime_ns for p in args.runs.glob("*/*.safetensors")}
    run_ablation(chosen, arms)  # all is there already
    assert before == {p: p.stat().st_mtime_ns for p in args.runs.glob("*/*.safetensors")}
    assert json.loads(args.json.read_text()) == rows


def test_a_run_of_a_study_is_the_run_of_the_train_script(args):
    """The same config gives the same predictions wherever it is trained."""
    config = RunConfig(data=args.data, model=args.model, train=args.train)
    first = run_one(config, args.runs)
    other = run_one(config, args.runs.parent / "elsewhere")
    np.testing.assert_array_equal(first["score"], other["score"])
    assert np.isfinite(first["score"]).all() and len(first["score"]) == len(first["label"])


def test_an_arm_that_is_not_there_is_named(args):
    with pytest.raises(ValueError, match=r"--only names \['nine'\], expected some of"):
        run_ablation(replace(args, only=("nine",)), arms)


def test_a_row_is_means_over_seeds_and_the_paired_difference():
    label, user = np.array([3.0, 4.0, 5.0, 1.0]), np.array([0, 0, 1, 2])

    def run(shift, valid):
        return {"label": label, "user": user, "score": label + shift, "star": label,
                "valid_mae": np.array(valid)}

    ours, reference = [run(0.5, 0.6), run(-0.7, 0.8)], [run(0.2, 0.5), run(0.2, 0.5)]
    row = compare_variant("arm", RunConfig(), ours, reference)
    assert row["mae"] == pytest.approx((0.5 + 0.7) / 2)
    assert row["mae_spread"] == pytest.approx(0.1) and row["mae_star"] == 0.0
    assert row["valid_mae"] == pytest.approx(0.7)
    assert row["difference"] == pytest.approx(0.6 - 0.2)
    assert row["low"] == pytest.approx(0.4) and row["high"] == pytest.approx(0.4)
    assert "+0.4000 [+0.4000, +0.4000]" in format_study([row | {"variant": "x"}, row], "x")
