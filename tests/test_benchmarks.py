"""The arithmetic and the bookkeeping of the benchmarks. Run: pytest tests/test_benchmarks.py."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from bst.config import ModelConfig
from bst.data.schema import PAD
from scripts.benchmarks import forms
from scripts.benchmarks.common import Seconds, alternate, faster, pin
from tests.command import ROOT, call


def test_works_alternate_and_the_median_counts(monkeypatch):
    clock, calls, spent = [0.0], [], {"a": iter([1, 9, 2]), "b": iter([4, 4, 5])}
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.process_time", lambda: clock[0] / 2)

    def work(name):
        calls.append(name)
        clock[0] += next(spent[name])

    found = alternate({name: lambda name=name: work(name) for name in "ab"}, runs=3)
    assert calls == list("ababab")
    assert found == {"a": Seconds(cpu=1.0, wall=2), "b": Seconds(cpu=2.0, wall=4)}


@pytest.mark.parametrize(("goal", "met"), [(4.0, True), (4.1, False), (None, None)])
def test_a_ratio_above_one_is_faster_and_the_goal_is_of_the_ratio(goal, met):
    seconds = {"ours": Seconds(cpu=0.5, wall=3.0), "theirs": Seconds(cpu=2.0, wall=6.0)}
    row = faster("w", seconds, "ours", "theirs", threads=1, goal=goal)
    assert (row.value, row.reference_value, row.ratio, row.met) == (0.5, 2.0, 4.0, met)
    assert row.unit == "CPU s"
    row = faster("w", seconds, "ours", "theirs", threads=2, goal=goal)
    assert (row.unit, row.value, row.ratio) == ("s", 3.0, 2.0)


def test_pinning_takes_as_many_cores_as_threads_and_refuses_more():
    code = ("import os; from scripts.benchmarks.common import pin; pin(1); import polars; "
            "print(len(os.sched_getaffinity(0)), polars.thread_pool_size())")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == ["1", "1"]
    with pytest.raises(ValueError, match="threads must be at most"):
        pin(len(os.sched_getaffinity(0)) + 1)


def test_scale_writes_a_row_for_each_figure_and_tidies_up(tmp_path):
    out = tmp_path / "rows.json"
    call("benchmark.py", "scale", "--sizes", "20000", "5000", "--json", out, "--scratch",
         tmp_path / "raw")
    rows = json.loads(out.read_text())
    assert [row["work"].split(":")[-1].strip() for row in rows[:3]] == [
        "store", "peak memory", "disk"]
    assert len(rows) == 7 and rows[-1]["work"].startswith("exponent of the time")
    assert {"work", "value", "unit", "reference", "reference_value", "ratio", "goal",
            "met"} <= set(rows[0])
    assert rows[1]["met"] == (rows[1]["value"] <= 600) and rows[1]["ratio"] > 1
    assert 16 < rows[5]["value"] < 22  # bytes a rating: 4 + 4 + 8, and the tables
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["20000", "5000"]


def test_plain_windows_hold_the_last_events_before_each_target_and_padding_changes_nothing(
        store, split, monkeypatch):
    monkeypatch.setattr(forms, "HISTORY", 7)
    windows = forms.Windows(store, split)
    short = next(k for k in range(len(windows)) if 0 < (windows[k][0] == PAD).sum() < 5)
    for k in (0, short, len(windows) - 1):
        (item, stars, label), p = windows[k], split.train[k]
        is_earlier = ((store.user_row == store.user_row[p])
                      & (store.timestamp < store.timestamp[p]))
        before = np.flatnonzero(is_earlier)[-7:]
        assert item[item != PAD].tolist() == store.item_idx[[*before, p]].tolist()
        assert stars[7 - len(before):7].tolist() == store.rating[before].tolist()
        assert (stars[7], label) == (0, store.rating[p])
    model = forms.PlainWindows(store.num_items + 2).eval()
    item, stars = (torch.from_numpy(x)[None] for x in windows[short][:2])
    noise = torch.where(item == PAD, 5.0, stars)
    torch.testing.assert_close(model(item, stars), model(item, noise))
    assert not torch.allclose(model(item, stars), model(item, 5 - stars))


def test_both_trainings_go_through_all_train_targets_of_an_epoch(store, split, monkeypatch):
    monkeypatch.setattr(forms, "HISTORY", 7)
    ours = forms.our_steps(store, split, ModelConfig(width=8, heads=2, hidden=(8, 8, 8)))
    for steps in (forms.plain_steps(store, split), ours):
        done = 0
        while done < len(split.train):
            done += next(steps)
        assert done == len(split.train)
