"""Sequences -> fixed windows as a table; make_sequences.py writes them."""

import numpy as np
import polars as pl

from bst.data.schema import PAD
from bst.data.sequences import SequenceStore
from bst.utils.errors import OptionError


def make_windows(store: SequenceStore, *, length: int, step: int = 1) -> pl.DataFrame:
    """Fixed windows as a table: `length - 1` history slots, left-padded, then the target.

    Args:
        store: sequences.
        length: tokens of a window, target included, at least 2.
        step: a user's targets are the 1st, (1 + step)th, ... interaction; none is made up.

    Returns:
        Columns user_id, history (list of item_idx, PAD on the left), history_rating (0 where PAD),
        target, label (stars), timestamp (seconds).
    """
    if length < 2 or step < 1:
        raise OptionError(f"expected --window-length >= 2 and --window-step >= 1, got {length} and "
                          f"{step}")
    flat = pl.DataFrame({
        "user_row": store.user_row,
        "user_id": store.users["user_id"].gather(store.user_row),
        "target": np.asarray(store.item_idx),
        "label": np.asarray(store.rating), "timestamp": np.asarray(store.timestamp),
    })
    lags = range(length - 1, 0, -1)

    def shifted(column: str) -> pl.Expr:
        lagged = [pl.col(column).shift(k, fill_value=PAD).over("user_row") for k in lags]
        return pl.concat_list(lagged)

    return (
        flat.with_columns(
            shifted("target").alias("history"), shifted("label").alias("history_rating"),
            pl.int_range(pl.len()).over("user_row").alias("rank"),
        )
        .filter(pl.col("rank") % step == 0)
        .select("user_id", "history", "history_rating", "target", "label", "timestamp")
    )
