"""The best items for some people, without the whole network over the whole catalogue."""

import numpy as np
import torch

from bst.data.schema import FIRST_IDX
from bst.model.batches import Batch
from bst.model.network import BST, Known
from bst.utils.errors import DataError

SHORTLIST = 384  # items that the whole network looks at first


@torch.inference_mode()
def best_items(
    model: BST, known: Known, batch: Batch, k: int, *, allowed: np.ndarray, ratings: np.ndarray,
    given: np.ndarray, bonus: np.ndarray | None = None, exact: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row by expected stars plus a bonus; see `in_order`.

    The regression heads score every item (`BST.glance`), the whole network a shortlist of the best.
    The shortlist is doubled until no item outside could enter, if the network raises it by no more
    than the largest correction seen: a heuristic, not a proof.

    Args:
        model: in evaluation mode.
        known: its items.
        batch: b rows with one target each, see `batches.asked`.
        k: items, at most.
        allowed: (b, n) bool, of the n items of the catalogue.
        ratings: (n,) train ratings.
        given: (b, n) stars that count instead of the expected ones, NaN: none.
        bonus: (b, n) stars.
        exact: let the whole network look at every item.
    """
    past, first = model.glance(batch, known)
    first = first[:, FIRST_IDX:] * model.spread + model.center
    told = torch.from_numpy(given)
    extra = torch.zeros_like(first) if bonus is None else torch.from_numpy(bonus)
    first = torch.where(told.isnan(), first, told) + extra
    first = first.masked_fill(~torch.from_numpy(allowed), -torch.inf)
    n = len(ratings)
    size = n if exact or model.regression is None else max(SHORTLIST, k)
    while True:
        looked, rows = first.topk(min(size + 1, n))
        rest, looked, rows = looked[:, size:], looked[:, :size], rows[:, :size]
        stars, own = model(batch.about(rows + FIRST_IDX), known, past)[:, 0], told.gather(1, rows)
        score = torch.where(own.isnan(), stars, own) + extra.gather(1, rows)
        is_out = looked.isinf()
        correction = (score - looked).masked_fill(is_out, -torch.inf).amax(dim=1, keepdim=True)
        score = score.masked_fill(is_out, -torch.inf)
        worst = score.topk(min(k, score.shape[1])).values[:, -1:]
        if not (rest + correction > worst).any():
            return in_order(rows.numpy(), score.numpy(), ratings, k)
        size *= 2


def check_k(k: int) -> None:
    """Refuse a list of no items."""
    if k < 1:
        raise DataError(f"k is {k}, expected at least 1")


def in_order(rows: np.ndarray, score: np.ndarray, ratings: np.ndarray, k: int
             ) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row of (b, n), best first: rows of the catalogue, and their scores.

    Equal scores: the item with more train ratings first, then the earlier one. A score that is not
    finite: the item is not allowed, its row is -1.
    """
    order = np.lexsort((rows, -ratings[rows], -score), axis=-1)[:, :k]
    rows, score = (np.take_along_axis(x, order, axis=1) for x in (rows, score))
    return np.where(np.isfinite(score), rows, -1), score
