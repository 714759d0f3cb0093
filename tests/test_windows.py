"""Fixed windows. Run: pytest tests/test_windows.py."""

import numpy as np
import polars as pl
import pytest

from bst.data.sequences import build_sequences
from bst.utils.errors import OptionError
from scripts.support.windows import make_windows


def test_windows_are_left_padded_and_none_is_lost_or_made_up(tables):
    store = build_sequences(tables)
    windows = make_windows(store, length=4, step=2)
    sizes = np.diff(store.offsets)
    assert len(windows) == sum((n + 1) // 2 for n in sizes)
    user_id = store.users["user_id"][3]
    items = store.item_idx[store.offsets[3]:store.offsets[4]].tolist()
    mine = windows.filter(pl.col("user_id") == user_id)
    padded = [0, 0, 0, *items]
    stars = [0.0, 0.0, 0.0, *store.rating[store.offsets[3]:store.offsets[4]].tolist()]
    when = store.timestamp[store.offsets[3]:store.offsets[4]].tolist()
    assert mine.columns == ["user_id", "history", "history_rating", "target", "label", "timestamp"]
    assert mine.drop("user_id").rows() == [
        (padded[k:k + 3], stars[k:k + 3], items[k], stars[k + 3], when[k])
        for k in range(0, len(items), 2)]
    shortest = make_windows(store, length=2)
    assert len(shortest) == len(store) and shortest["history"].list.len().unique().item() == 1


@pytest.mark.parametrize(("length", "step"), [(1, 1), (2, 0)])
def test_windows_refuse_a_length_without_history_and_a_step_of_nothing(store, length, step):
    with pytest.raises(OptionError, match=f"expected --window-length >= 2 .* got {length} and "):
        make_windows(store, length=length, step=step)
