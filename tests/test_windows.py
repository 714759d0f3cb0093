"""Fixed windows. Run: pytest tests/test_windows.py."""

import numpy as np
import polars as pl
import pytest

from bst.utils.errors import OptionError
from scripts.support.windows import make_windows


def test_windows_are_left_padded_and_none_is_lost_or_made_up(store):
    windows = make_windows(store, length=4, step=2)
    assert len(windows) == sum((n + 1) // 2 for n in np.diff(store.offsets))
    mine = slice(*store.offsets[3:5])
    items, stars = ([0, 0, 0, *column[mine].tolist()] for column in (store.item_idx, store.rating))
    assert windows.filter(pl.col("user_id") == store.users["user_id"][3]).rows() == [
        (store.users["user_id"][3], items[k:k + 3], stars[k:k + 3], items[k + 3], stars[k + 3],
         store.timestamp[mine][k]) for k in range(0, len(items) - 3, 2)]
    assert windows.columns == ["user_id", "history", "history_rating", "target", "label",
                               "timestamp"]
    shortest = make_windows(store, length=2)
    assert len(shortest) == len(store) and shortest["history"].list.len().unique().item() == 1


@pytest.mark.parametrize(("length", "step"), [(1, 1), (2, 0)])
def test_windows_refuse_a_length_without_history_and_a_step_of_nothing(store, length, step):
    with pytest.raises(OptionError, match=f"expected --window-length >= 2 .* got {length} and "):
        make_windows(store, length=length, step=step)
