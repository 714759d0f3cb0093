"""Streaming factors: a Gaussian factor model; a user's factors are read off the history.

    rating = mean + item_bias + loading . z + noise,    z ~ N(0, 1) for each user

Items (bias and loading) are fitted on train ratings by expectation maximisation, with the spread of
the posterior of z and not its mean alone: users with few ratings do not distort the items. A
prediction takes the exact posterior mean of z given the history that the target may see, older
events counting less, so it serves people whom training never saw. It is the base that BST corrects.

Source: Bishop, "Pattern Recognition and Machine Learning", section 12.2.4, with missing values.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from bst.features import History, item_bias, streaming_bias
from bst.schema import FIRST_IDX
from bst.sequences import SequenceStore, Split

# Chosen on the valid part of MovieLens-1M.
NUM_FACTORS, ITEM_PRIOR, SWEEPS, FOLDS = 12, 20.0, 12, 5
FORGET = 0.993  # weight of an event relative to the one after it
BLOCK = 1024  # events whose running sums are held at once


@dataclass(frozen=True)
class Factors:
    """Fitted items; k factors."""

    item_score: np.ndarray  # (num_items + 2,) train mean plus item bias, stars
    loading: np.ndarray  # (num_items + 2, k)
    noise: float  # variance of a rating given everything, stars squared


def fit_factors(store: SequenceStore, rows: np.ndarray) -> Factors:
    """Fit the items on the ratings at positions `rows`.

    An item without a rating gets the mean bias and the mean loading.
    """
    k, num_users, num_items = NUM_FACTORS, store.num_users, store.num_items + FIRST_IDX
    mean = float(store.rating[rows].mean(dtype=np.float64)) if len(rows) else 0.0
    y = torch.from_numpy(store.rating[rows] - np.float32(mean))
    user = torch.from_numpy(store.user_row[rows]).long()
    item = torch.from_numpy(store.item_idx[rows]).long()
    of_users, of_items = _Groups(user, item, y, num_users), _Groups(item, user, y, num_items)
    eye, noise = torch.eye(1 + k), 0.7
    v = torch.randn(num_items, 1 + k, generator=torch.Generator().manual_seed(0)) / 10
    v[:, 0], v[:, 1] = 0.0, 0.4  # no item bias; the first factor starts as the user's own bias
    for _ in range(SWEEPS):
        bias, w = v[:, :1], v[:, 1:]
        precision = eye[1:, 1:] + of_users.sum(_outer(w)) / noise
        moment = (of_users.sum(w, weighted=True) - of_users.sum(bias * w)) / noise
        spread = torch.linalg.inv(precision)  # posterior covariance of each user's factors
        z = F.pad(einsum(spread, moment, "u k l, u l -> u k"), (1, 0), value=1.0)
        second = _outer(z) + F.pad(spread, (1, 0, 1, 0))  # E[z z'], (u, 1 + k, 1 + k)
        prior = F.pad(w.mean(dim=0), (1, 0))
        gram, moment = of_items.sum(second), of_items.sum(z, weighted=True)
        v = torch.linalg.solve(gram + ITEM_PRIOR * eye, moment + ITEM_PRIOR * prior)
        explained = 2 * (v * moment).sum() - einsum(v, gram, v, "i k, i k l, i l ->")
        noise = max(float((y.square().sum() - explained) / max(1, len(rows))), 1e-3)
    return Factors(mean + v[:, 0].double().numpy(), v[:, 1:].double().numpy(), noise)


class _Groups:
    """Sums over the ratings of each user (or of each item) of what belongs to the other side."""

    def __init__(self, group: Tensor, other: Tensor, y: Tensor, size: int) -> None:
        order = torch.argsort(group, stable=True)
        count = torch.bincount(group, minlength=size)
        self.other, self.y, self.begin = other[order], y[order], count.cumsum(0) - count

    def sum(self, values: Tensor, *, weighted: bool = False) -> Tensor:
        """Sums (groups, ...) of `values` (others, ...), times the residual stars if `weighted`."""
        flat = rearrange(values, "n ... -> n (...)")
        total = F.embedding_bag(self.other, flat, self.begin, mode="sum",
                                per_sample_weights=self.y if weighted else None)
        return total.view(-1, *values.shape[1:])


def _outer(x: Tensor) -> Tensor:
    return einsum(x, x, "n k, n l -> n k l")


def streaming_factors(store: SequenceStore, split: Split) -> np.ndarray:
    """Predicted stars at every position from the history it may see: (n,) float32.

    The score of a train target comes from items that were fitted without its user's ratings
    (`FOLDS` groups of users), or a model trained on it would trust it too much.
    """
    history = History.of(store, split)
    score = _predict(fit_factors(store, split.train), store, history, np.arange(store.num_users))
    is_train = np.zeros(len(store), dtype=bool)
    is_train[split.train] = True
    fold = np.arange(store.num_users) % FOLDS
    for k in range(FOLDS):
        others = split.train[fold[store.user_row[split.train]] != k]
        mine = is_train & (fold[store.user_row] == k)
        users = np.unique(store.user_row[mine])
        score[mine] = _predict(fit_factors(store, others), store, history, users)[mine]
    return score.astype(np.float32)


def base_score(store: SequenceStore, split: Split, kind: str) -> np.ndarray:
    """What the network corrects, by `ModelConfig.base`: (n,) float32 stars."""
    if kind == "factors":
        return streaming_factors(store, split)
    if kind == "bias":
        return streaming_bias(store, split)
    return np.full(len(store), item_bias(store, split)[0], dtype=np.float32)


def _predict(factors: Factors, store: SequenceStore, history: History,
             users: np.ndarray) -> np.ndarray:
    """Scores at the positions of `users`, the item's own score elsewhere: (n,) float64."""
    score = factors.item_score[store.item_idx]
    residual = store.rating - score
    for u in users:
        here = slice(store.offsets[u], store.offsets[u + 1])
        seen = history.position[history.start[here].min(initial=len(history.position)):
                                history.stop[here].max(initial=0)]
        stop, which = np.unique(history.stop[here] - history.start[here], return_inverse=True)
        latent = _posteriors(factors.loading[store.item_idx[seen]], residual[seen], stop,
                             factors.noise)
        score[here] += (factors.loading[store.item_idx[here]] * latent[which]).sum(axis=1)
    return score


def _posteriors(x: np.ndarray, y: np.ndarray, stop: np.ndarray, noise: float) -> np.ndarray:
    """Posterior mean of z after the first `stop` events, for each stop: (len(stop), k).

    Args:
        x: loadings of a user's events, (m, k).
        y: their residuals, (m,).
        stop: numbers of events, ascending, in 0..m.
        noise: variance of a residual.
    """
    k = x.shape[1]
    gram, moment = np.zeros((k, k)), np.zeros(k)  # of all events before the block, at its start
    latent = np.zeros((len(stop), k))
    for begin in range(0, max(1, len(x)), BLOCK):
        here = slice(begin, begin + BLOCK)
        size = len(x[here])
        grow = FORGET ** -np.arange(1, size + 1, dtype=np.float64)  # undone by `fade`
        grams = np.cumsum(np.einsum("mk,ml,m->mkl", x[here], x[here], grow), axis=0)
        moments = np.cumsum(x[here] * (y[here] * grow)[:, None], axis=0)
        grams = np.concatenate([gram[None], gram + grams])
        moments = np.concatenate([moment[None], moment + moments])
        asked = (stop >= begin + (begin > 0)) & (stop <= begin + size)
        after = stop[asked] - begin
        fade = FORGET**after / noise
        latent[asked] = np.linalg.solve(grams[after] * fade[:, None, None] + np.eye(k),
                                        moments[after][..., None] * fade[:, None, None])[..., 0]
        gram, moment = grams[-1] * FORGET**size, moments[-1] * FORGET**size
    return latent
