"""The commands a user types, from raw files to the table. Run: pytest tests/test_run.py."""

import json
import os
import re
import sys
import time
from dataclasses import replace
from unittest.mock import MagicMock, Mock

import numpy as np
import polars as pl
import pytest

import bst.run
from bst.config import DataConfig, RunConfig, TrainConfig
from bst.data.text import noise_like
from bst.evaluation.baselines import BASELINES, SLOW, global_mean, item_mean
from bst.evaluation.report import format_table
from bst.run import Prepared, compare, store_of, texts_of, use_device
from bst.training.checkpoint import config_of
from bst.utils.files import write_sealed
from scripts.evaluate import format_slices
from scripts.support.board import write_board
from tests.command import ROOT, call


def test_train_prints_the_table_and_writes_the_results(trained):
    out, _, said = trained
    rows = json.loads((out / "results.json").read_text())
    assert [row["scorer"] for row in rows] == ["bst", *BASELINES]
    assert len({row["n"] for row in rows}) == 1 and rows[0]["protocol"] == "temporal"
    assert all(f"{row['mae']:.4f}" in said and f"{row['rmse']:.4f}" in said for row in rows)
    assert said.count("audit:") >= 4 and "bst minus" in said


def test_the_same_command_says_that_the_run_is_finished_and_another_which_flag_differs(trained):
    out, flags, said = trained
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = call("train.py", *flags).stdout
    assert "this run is finished" in again and again.splitlines()[-1] == said.splitlines()[-1]
    done = call("train.py", *flags, "--seed", "1", "--lr", "0.01", code=1)
    assert done.stderr == (f"error: {out} holds a run of another config: --lr was 0.006, is 0.01, "
                           "--seed was 0, is 1; give the flags of that run, or another --run\n")
    other = ROOT / "tests" / "cases" / "11-ratings.csv"
    done = call("train.py", "--out", out, "--data", other, *flags[6:], code=1)
    assert done.stderr.startswith(f"error: {out} holds a run on other data, ")
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_tensorboard_gets_the_numbers_of_each_validation(trained, tmp_path, monkeypatch):
    log = (trained[0] / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(log)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board := MagicMock())
    write_board(tmp_path)
    added = board.SummaryWriter().__enter__().add_scalar.call_args_list
    assert {call.args for call in added} >= {
        ("valid_mae", row["valid_mae"], row["step"]) for row in map(json.loads, log.splitlines())}


def test_evaluate_needs_the_run_alone_and_leaves_it_as_it_is(trained, tmp_path):
    out, _, said = trained
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = call("evaluate.py", "--run", out, "--json", tmp_path / "rows.json", "--threads", "1")
    table = done.stdout.splitlines()[-12:]
    assert table == said.splitlines()[-12:] and table[0].startswith("protocol temporal")
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert (tmp_path / "rows.json").read_bytes() == (out / "results.json").read_bytes()
    for former in ("--model", "--out"):
        said = call("evaluate.py", former, out, "--baselines", "item mean", "--slices").stdout
        assert table[2] in said and said.count("item mean") == 3 and "item kNN" not in said
    assert "bst minus" not in call("evaluate.py", "--run", out, "--baselines", "none").stdout


def test_a_store_made_by_make_sequences_trains_to_the_same_bits(trained, raw, tmp_path):
    out, flags, _ = trained
    made = call("make_sequences.py", "--data", raw, "--metadata", raw / "movies_metadata.csv",
                "--out", tmp_path / "store", "--windows", tmp_path / "w.parquet",
                "--window-length", "5", "--window-step", "2")
    assert "audit: every history ends before" in made.stdout
    assert pl.read_parquet(tmp_path / "w.parquet")["history"].list.len().unique().to_list() == [4]
    done = call("train.py", "--data", tmp_path / "store", "--out", tmp_path / "run", *flags[6:])
    assert "Warning" not in done.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        out / "model.safetensors").read_bytes()
    call("evaluate.py", "--run", out, "--data", tmp_path / "store", "--baselines", "none")
    about = config_of(tmp_path / "run")
    about["data"]["repeats"] = "first"  # of a version that let it stand beside a store
    write_sealed(tmp_path / "run" / "config.json", json.dumps(about).encode())
    assert store_of(tmp_path / "run").digest == about["identity"]["data"]


@pytest.mark.parametrize(("rivals", "told"), [
    ({"a": global_mean, "b": Mock(side_effect=KeyError(7)), "d": item_mean,
      "c": Mock(side_effect=MemoryError("Unable to allocate 900 GiB\nfor an array"))},
     {"b": "failed: 7", "c": "failed: Unable to allocate 900 GiB for an array"}),
    ({"a": lambda store, _: np.where(np.arange(len(store)) < len(store) - 1, 3.0, np.nan)},
     {"a": "failed: some predictions are not finite"}),
    ({"a": Mock(side_effect=KeyError(7))}, {"a": "failed: 7"})])
def test_a_baseline_that_fails_is_a_row_and_costs_no_run(
    store, split, monkeypatch, tmp_path, rivals, told
):
    last = np.array([len(store) - 1])
    prepared = Prepared(RunConfig(), store, replace(split, test=last), None, None)
    monkeypatch.setattr(bst.run, "predict_run", lambda *_, **__: store.rating + 0.25)
    monkeypatch.setattr(bst.run, "BASELINES", rivals)
    rows = compare(prepared, tmp_path)
    good = [name for name in rivals if name not in told]
    assert [row["scorer"] for row in rows] == ["bst", *good, *told]
    assert {row["scorer"]: row["failed"] for row in rows if "failed" in row} == told
    assert ("paired" in rows[0]) == bool(good)
    for name, why in told.items():
        assert f"\n{name:<24}{why}\n" in format_table(rows)
    assert "history" in format_slices(rows)


def test_baselines_are_those_that_are_asked_for_and_scale(store, split, monkeypatch):
    empty = Prepared(RunConfig(), store, replace(split, train=split.train[:0]), None, None)
    assert set(bst.run.predict_baselines(empty)[1]) == {*BASELINES}  # none of them raises
    monkeypatch.setattr(bst.run, "MANY", len(split.train) - 1)
    prepared = Prepared(RunConfig(), store, split, None, None)
    found, failed = bst.run.predict_baselines(prepared)
    assert {*found} == {*BASELINES} - {*SLOW} and {*failed} == {*SLOW}
    assert all(why.startswith("skipped: slow on ") for why in failed.values())
    asked = replace(prepared, config=RunConfig(baselines=("item kNN",)))
    assert [*bst.run.predict_baselines(asked)[0]] == ["item kNN"]


def test_a_gpu_is_deterministic_before_it_is_used(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    use_device(TrainConfig(threads=1))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_bert_reads_is_the_overview_the_title_or_another_films_overview(store):
    overviews = store.movies["overview"].to_list()
    assert texts_of(store, DataConfig()) == overviews
    assert texts_of(store, DataConfig(text_source="title")) == store.movies["title"].to_list()
    shuffled = texts_of(store, DataConfig(text_source="shuffled"))
    assert shuffled == texts_of(store, DataConfig(text_source="shuffled"))
    assert [o is None for o in shuffled] == [o is None for o in overviews]
    assert sorted(filter(None, shuffled)) == sorted(filter(None, overviews))
    moved = sum(a != b for a, b in zip(shuffled, overviews, strict=True) if a)
    assert moved > 0.8 * sum(o is not None for o in overviews)


def test_a_random_text_vector_knows_nothing_but_the_spread(text):
    noise = noise_like(text, seed=0)
    assert not noise.vectors[~text.has_text].any()
    known, real = noise.vectors[text.has_text], text.vectors[text.has_text]
    assert known.std() == pytest.approx(text.vectors.std(), rel=0.1)
    assert abs(np.corrcoef(known.ravel(), real.ravel())[0, 1]) < 0.15
    np.testing.assert_array_equal(noise.vectors, noise_like(text, seed=0).vectors)


@pytest.mark.parametrize(("flags", "message"), [
    (["--data", "nowhere"], "nowhere: cannot read it"),
    (["--metadata", "x.csv"], "without --data"),
    (["--device", "cuda:7"], "--device cuda:7"),
    (["--workers", "0"], "workers must be a number in [1, 4096], whole, got 0"),
])
def test_a_wrong_flag_is_answered_in_one_line(flags, message):
    done = call("train.py", *flags, code=2 if "must be" in message else 1)
    said = " ".join(re.sub("[│╭╰╮╯─]", " ", done.stderr).split())  # tyro draws a box
    assert message in said and "Traceback" not in said


@pytest.mark.slow
def test_the_built_in_default_beats_every_baseline_within_two_minutes(tmp_path):
    started = time.perf_counter()
    call("train.py", "--out", tmp_path)
    assert time.perf_counter() - started < 120
    ours, *rest = json.loads((tmp_path / "results.json").read_text())
    assert all(ours["mae"] < row["mae"] and ours["rmse"] < row["rmse"] for row in rest)
    assert ours["paired"]["mae_high"] < 0
