"""The best items for some people, without scoring all items with the whole network."""

import numpy as np
import torch

from bst.data.schema import FIRST_IDX
from bst.model.batches import Batch
from bst.model.network import EmbeddedItems, Network
from bst.utils.errors import DataError

SHORTLIST = 384  # items that the whole network scores first


@torch.inference_mode()
def best_items(
    model: Network, embedded: EmbeddedItems, batch: Batch, k: int, *, allowed: np.ndarray,
    rank: np.ndarray, given: np.ndarray, bonus: np.ndarray | None = None, exact: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row by expected stars plus a bonus; see `in_order`.

    The regression heads score every item (`Network.glance`), the whole network a shortlist of the
    best. The shortlist is doubled until no item outside could enter, even if the network raised its
    score by the largest correction seen. That is a heuristic, not a proof.

    Args:
        model: in evaluation mode.
        embedded: the whole catalogue, see `Network.embed_items`.
        batch: b rows with one target each, see `batches.request_batch`.
        k: items, at most.
        allowed: (b, n) bool, of the n items of the catalogue.
        rank: (n,) see `Catalogue.popularity_rank`.
        given: (b, n) stars that count instead of the expected ones, NaN: none.
        bonus: (b, n) stars.
        exact: score every item with the whole network.
    """
    history, first = model.glance(batch, embedded)
    first = first[:, FIRST_IDX:] * model.spread + model.center
    stars_given = torch.from_numpy(given)
    extra = torch.zeros_like(first) if bonus is None else torch.from_numpy(bonus)
    first = torch.where(stars_given.isnan(), first, stars_given) + extra
    first = first.masked_fill(~torch.from_numpy(allowed), -torch.inf)
    n = len(rank)
    size = n if exact or model.regression is None else max(SHORTLIST, k)
    while True:
        glanced, rows = first.topk(min(size + 1, n))
        outside, glanced, rows = glanced[:, size:], glanced[:, :size], rows[:, :size]
        stars = model(batch.about(rows + FIRST_IDX), embedded, history)[:, 0]
        own = stars_given.gather(1, rows)
        score = torch.where(own.isnan(), stars, own) + extra.gather(1, rows)
        is_out = glanced.isinf()
        correction = (score - glanced).masked_fill(is_out, -torch.inf).amax(dim=1, keepdim=True)
        score = score.masked_fill(is_out, -torch.inf)
        worst = score.topk(min(k, score.shape[1])).values[:, -1:]
        if not (outside + correction > worst).any():
            return in_order(rows.numpy(), score.numpy(), rank, k)
        size *= 2


def check_k(k: int) -> None:
    """Refuse a list of no items."""
    if k < 1:
        raise DataError(f"k is {k}, expected at least 1")


def in_order(rows: np.ndarray, score: np.ndarray, rank: np.ndarray, k: int
             ) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row of (b, n), best first: rows of the catalogue, and their scores.

    Equal scores: the item with the lower rank (n,) first. A score that is not finite: the item
    is not allowed, its row is -1.
    """
    order = np.lexsort((rank[rows], -score), axis=-1)[:, :k]
    rows, score = (np.take_along_axis(x, order, axis=1) for x in (rows, score))
    return np.where(np.isfinite(score), rows, -1), score
