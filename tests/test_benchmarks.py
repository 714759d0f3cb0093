"""The arithmetic and the bookkeeping of the benchmarks. Run: pytest tests/test_benchmarks.py."""

import numpy as np
import pytest
import torch

from bst.data.schema import PAD
from scripts.benchmarks import forms
from scripts.benchmarks.common import Seconds, alternate, faster


def test_works_alternate_and_the_median_counts(monkeypatch):
    spent = []  # of a, b, a, b, a, b
    monkeypatch.setattr("time.perf_counter", lambda: sum(spent))
    monkeypatch.setattr("time.process_time", lambda: sum(spent) / 2)
    times = iter([1, 4, 9, 4, 2, 5])
    found = alternate({name: lambda: spent.append(next(times)) for name in "ab"}, runs=3)
    assert found == {"a": Seconds(cpu=1.0, wall=2), "b": Seconds(cpu=2.0, wall=4)}


@pytest.mark.parametrize(("goal", "met"), [(4.0, True), (4.1, False), (None, None)])
def test_a_ratio_above_one_is_faster_and_the_goal_is_of_the_ratio(goal, met):
    seconds = {"ours": Seconds(cpu=0.5, wall=3.0), "theirs": Seconds(cpu=2.0, wall=6.0)}
    one, two = (faster("w", seconds, "ours", "theirs", threads=n, goal=goal) for n in (1, 2))
    assert (one.unit, one.value, one.reference_value, one.ratio) == ("CPU s", 0.5, 2.0, 4.0)
    assert one.met == met and (two.unit, two.value, two.ratio) == ("s", 3.0, 2.0)


def test_plain_windows_see_what_ours_see_and_padding_changes_nothing(store, split, monkeypatch):
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
