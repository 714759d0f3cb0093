"""A taste read off a history: a Kalman filter over the events.

The items are those of `bst/model/factors.py`. A taste drifts: each event moves it, by how much it
surprised and how certain it was until then. So people whom training never saw are read as well.

Source: Bishop, "Pattern Recognition and Machine Learning", section 13.3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.data.text import TextVectors
from bst.model.factors import FOLDS, NUM_FACTORS, Factors, fit_factors
from bst.model.features import History

DRIFT = 0.9985  # correlation of a taste with itself one rating later; chosen on the valid part


@dataclass(frozen=True)
class Reading:
    """What the histories say about the targets; n positions of a store."""

    score: np.ndarray  # (n,) float32, stars
    doubt: np.ndarray  # (n,) float32, standard deviation of the rating around the score, stars


def read_histories(
    factors: Factors, store: SequenceStore, history: History, targets: np.ndarray, *,
    as_targets: Factors | None = None,
) -> Reading:
    """Filter the histories of all users of `targets` side by side, an event of each at a time.

    Args:
        factors: fitted items.
        store: sequences.
        history: what each target may see.
        targets: positions, any order.
        as_targets: the items as targets, if they are not as in the histories.

    Returns:
        Rows in the order of `targets`.
    """
    seen = (history.stop - history.start)[targets]  # events before each target
    users, user = np.unique(store.user_row[targets], return_inverse=True)
    needed = np.zeros(len(users), dtype=np.int64)
    np.maximum.at(needed, user, seen)
    longest = np.argsort(-needed, kind="stable")  # who has a next event is then a prefix of all
    slot = np.argsort(longest)[user]
    steps = np.arange(needed.max(initial=0))
    num_active = np.searchsorted(-needed[longest], -steps, "left")  # users with more events
    begin = history.start[store.offsets[users[longest]]]  # a user's positions share their history
    by_seen = np.argsort(seen, kind="stable")
    asked = np.split(by_seen, np.searchsorted(seen[by_seen], steps + 1))  # targets after each step

    item, rating = torch.tensor(store.item_idx, dtype=torch.long), torch.tensor(store.rating)
    state = _Filter(factors, as_targets or factors, factors.prior[torch.from_numpy(users[longest])])
    found = torch.empty(len(targets), 2)
    for step, here in enumerate(asked):
        found[here] = state.predict(torch.from_numpy(slot[here]), item[targets[here]])
        if step < len(steps):
            event = history.position[begin[: num_active[step]] + step]
            state.update(item[event], rating[event])
    score, variance = found.unbind(dim=1)
    return Reading(score.numpy(), variance.sqrt().numpy())


class _Filter:
    """Posterior of each user's taste: mean (u, k) and covariance (u, k, k) after the last event."""

    def __init__(self, factors: Factors, as_targets: Factors, prior: Tensor) -> None:
        self.factors, self.as_targets = factors, as_targets
        self.prior, self.mean = prior, prior.clone()
        self.covariance = repeat(torch.eye(NUM_FACTORS), "k l -> u k l", u=len(prior)).contiguous()

    def predict(self, slot: Tensor, item: Tensor) -> Tensor:
        """Score and variance of the rating that the users at `slot` give next: (t, 2)."""
        mean, covariance = self._drift(slot)
        score, _, variance = _rating(self.as_targets, mean, covariance, item)
        return torch.stack([score, variance], dim=1)

    def update(self, item: Tensor, rating: Tensor) -> None:
        """Take in the next event of the first len(item) users."""
        here = slice(len(item))
        mean, covariance = self._drift(here)
        score, cross, variance = _rating(self.factors, mean, covariance, item)
        gain = cross / variance[:, None]
        self.mean[here] = mean + gain * (rating - score)[:, None]
        self.covariance[here] = covariance - einsum(gain, cross, "u k, u l -> u k l")

    def _drift(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The tastes one rating later: a stationary walk around the prior."""
        prior, fresh = self.prior[which], (1 - DRIFT**2) * torch.eye(NUM_FACTORS)
        mean = prior + DRIFT * (self.mean[which] - prior)
        return mean, DRIFT**2 * self.covariance[which] + fresh


def _rating(
    factors: Factors, mean: Tensor, covariance: Tensor, item: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the rating of `item`, its covariance with the taste (n, k), and its variance."""
    weight, spread = factors.weight[item], factors.spread[item]
    loading, taste = weight[:, 1:], F.pad(mean, (1, 0), value=1.0)
    cross = einsum(covariance, loading, "n k l, n l -> n k")
    of_item = einsum(taste, spread, taste, "n k, n k l, n l -> n")
    of_both = (covariance * spread[:, 1:, 1:]).sum(dim=(1, 2))
    variance = (loading * cross).sum(dim=1) + of_item + of_both + factors.noise[item]
    return factors.mean + (weight * taste).sum(dim=1), cross, variance


def read_one(
    factors: Factors, prior: np.ndarray, item: np.ndarray, rating: np.ndarray, seen: np.ndarray,
    targets: np.ndarray,
) -> tuple[np.ndarray, Reading]:
    """What `read_histories` says of one person, and of many targets after the whole history.

    A step is a dozen products of 16 numbers or 16 x 16: numpy gets through them in a fifth of the
    time that torch takes to start them, so one request is read here and a whole data set there.

    Args:
        factors: fitted items.
        prior: (k,) expected taste before the first event.
        item: (j,) item indices of the history, oldest first.
        rating: (j,) stars.
        seen: (j,) events that each event sees, for its own score.
        targets: (i,) item indices.

    Returns:
        Score of each event before its rating, (j,) float32 stars; the reading of the targets.
    """
    tables = factors.weight.numpy(), factors.spread.numpy(), factors.noise.numpy()
    weight, spread, noise = (table[item] for table in tables)
    spread, loading = rearrange(spread, "j k l -> j (k l)"), weight[:, 1:]
    surprise, keep = rating - np.float32(factors.mean), np.float32(DRIFT)
    fresh, kept = np.float32(1 - DRIFT**2), np.float32(DRIFT**2)
    covariance, offset = np.eye(NUM_FACTORS, dtype=np.float32), np.zeros_like(prior)
    diagonal = covariance.reshape(-1)[:: NUM_FACTORS + 1]  # a view
    taste = np.ones((len(item) + 1, 1 + NUM_FACTORS), dtype=np.float32)  # before each event
    moment = np.empty((1 + NUM_FACTORS, 1 + NUM_FACTORS), dtype=np.float32)
    own, flat = moment[1:, 1:], moment.reshape(-1)  # views
    for k in range(len(taste)):
        offset *= keep
        covariance *= kept
        diagonal += fresh
        here = taste[k]
        np.add(prior, offset, out=here[1:])
        np.multiply.outer(here, here, out=moment)
        np.add(own, covariance, out=own)
        if k < len(item):
            cross = covariance @ loading[k]
            variance = loading[k] @ cross + spread[k] @ flat + noise[k]
            gain = cross / variance
            offset += gain * (surprise[k] - weight[k] @ here)
            covariance -= np.multiply.outer(gain, cross)
    score = np.float32(factors.mean) + (weight * taste[seen]).sum(axis=1)
    weight, spread, noise = (table[targets] for table in tables)
    loading = weight[:, 1:]
    variance = ((loading @ covariance) * loading).sum(axis=1) + noise
    variance += rearrange(spread, "i k l -> i (k l)") @ flat
    return score, Reading(np.float32(factors.mean) + weight @ taste[-1], np.sqrt(variance))


def streaming_reading(
    store: SequenceStore, split: Split, text: TextVectors | None = None
) -> tuple[Reading, Factors, tuple[Factors, ...]]:
    """What the history says at every position of the store.

    A train target is read with items that were fitted without its user's ratings (`FOLDS` groups of
    users), or a model trained on it would trust the score too much.

    Returns:
        The reading; the items fitted on all of train; those fitted without each fold.
    """
    history = History.of(store, split)
    full = fit_factors(store, split.train, text)
    reading = read_histories(full, store, history, np.arange(len(store)))
    fold, folds = store.user_row[split.train] % FOLDS, []
    for k in range(FOLDS):
        mine = split.train[fold == k]
        folds.append(fit_factors(store, split.train[fold != k], text))
        part = read_histories(folds[k], store, history, mine)
        reading.score[mine], reading.doubt[mine] = part.score, part.doubt
    return reading, full, tuple(folds)
