"""A run as one program that needs torch alone: anybody's ratings in, stars of films out.

    program = torch.export.load("run.pt2").module()
    stars = program(movie, rating, time, user, at, target)

The same function as `Recommender.score` of a person whom training need not know, base score
included (a test compares them), written in torch so that `torch.export` takes it in whole.

j ratings, n = j + 1 events: the ratings, oldest first, and a blank one, so that nobody's history is
empty; i films asked about; m = n + i positions: the events, then the films, which see all ratings.
"""

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX, OOV, USER_FEATURES
from bst.model.base import BaseFit
from bst.model.batches import Batch, UserVocabulary
from bst.model.factors import NUM_FACTORS
from bst.model.features import STARS, USER_SHRINK
from bst.model.kalman import DRIFT
from bst.recommend.recommender import Recommender
from bst.utils.files import write_atomic

ABOUT = "about.json"  # name, inside the file, of what `describe` says
INPUTS = {  # of a program, in order
    "movie": "(j,) int64, ids of the rated films, each once, in any order; j may be 0",
    "rating": "(j,) float32, stars, each of `levels`",
    "time": "(j,) int64, seconds since 1970 UTC; equal times count in the order given",
    "user": "(4,) int64, a code of each feature of `users`: place of the value in its list plus 2; "
            "1 where it is not known",
    "at": "() int64, seconds since 1970 UTC of the question, after all times",
    "target": "(i,) int64, ids of the films asked about; i is 1 or more",
}
OUTPUT = (
    "(i,) float32, expected stars, by which films are ranked; clamp them to `levels` to show them. "
    "NaN: the film is unknown, or (all of them) a rated film is, a rating is none of `levels`, or "
    "a time is not before `at`"
)


@dataclass(frozen=True)
class _Events:
    """What somebody rated, and the blank event; n events."""

    item: Tensor  # (n,) int64 item index
    rating: Tensor  # (n,) float32, stars
    time: Tensor  # (n,) int64, seconds
    count: Tensor  # (1,) int64, ratings


class Program(nn.Module):
    """Scores anybody on any film of the catalogue.

    Args:
        recommender: of a run; it is left as it is.
    """

    def __init__(self, recommender: Recommender) -> None:
        super().__init__()
        fitted, ids = recommender.fitted, torch.tensor(recommender.catalogue.ids)
        base, known = fitted.base, fitted.statistics
        self.model = copy.deepcopy(recommender.model)
        self.model.interest = None
        self.kind, self.mean, self.statistics = base.kind, base.mean, known
        self.is_strict = fitted.protocol["ties"] == "strict"
        order = ids.argsort()
        tables = {"ids": ids[order], "index": order + FIRST_IDX, "bias": known.bias,
                  "count": known.count, "of_item": known.of_item,
                  "hot": F.pad(torch.from_numpy(known.hot), (0, 0, FIRST_IDX, 0)).double(),
                  "year": F.pad(torch.from_numpy(known.year), (FIRST_IDX, 0))}
        if base.factors is not None:
            tables |= {"weight": base.factors.weight, "spread": base.factors.spread,
                       "noise": base.factors.noise,
                       "prior": _priors(base, recommender.vocabulary)}
            self.mean = base.factors.mean
        self.slope = None
        if base.neighbours is not None:
            self.slope = base.neighbours.slope
            tables |= {"slot": base.neighbours.slot, "similarity": base.neighbours.similarity}
        for name, table in tables.items():
            self.register_buffer(name, torch.as_tensor(table).contiguous())
        self.eval().requires_grad_(False)

    def forward(self, movie: Tensor, rating: Tensor, time: Tensor, user: Tensor, at: Tensor,
                target: Tensor) -> Tensor:
        """See `INPUTS` and `OUTPUT`."""
        time, order = time.sort(stable=True)
        rated, rating, asked = self._items(movie[order]), rating[order], self._items(target)
        events = _Events(F.pad(rated, (0, 1)), F.pad(rating, (0, 1)), torch.cat([time, at[None]]),
                         torch.ones_like(time).sum(dim=0, keepdim=True))
        item = torch.cat([events.item, asked])
        before = torch.arange(events.item.shape[0])
        if self.is_strict:
            before = torch.searchsorted(events.time, events.time)
        seen = torch.cat([before, events.count.expand_as(asked)])
        base = self._base(events, item, seen, user)  # (4, m)
        of_event, of_target = base.split([events.item.shape[0], asked.shape[0]], dim=1)
        dense = self._dense(events, asked, of_event[0], of_target, at)
        batch = self._batch(events, asked, of_event[0], of_target[0], dense, user, at)
        stars = rearrange(self.model(batch), "b i -> (b i)")
        is_early = (time < at) if self.is_strict else (time <= at)
        fits = is_early & (at - time < 2**31) & (rated != OOV)
        fits = fits & (rating[:, None] == self.model.levels).any(dim=1)
        return torch.where(fits.all() & (asked != OOV), stars, torch.nan)

    def _items(self, movie: Tensor) -> Tensor:
        """Item index of each film, OOV of an unknown one."""
        row = torch.searchsorted(self.ids, movie).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[row] == movie, self.index[row], OOV)

    def _base(self, events: _Events, item: Tensor, seen: Tensor, user: Tensor) -> Tensor:
        """Score, factor score, neighbour sum and doubt at every position, (4, m), as `Base`.

        The doubt is that after all ratings: right for the films, and of no use at the events.
        """
        none = torch.zeros_like(seen).double()
        if self.kind == "mean":
            return torch.stack([none + self.mean, none, none, none]).float()
        if self.kind == "bias":
            score = self._user_bias(events, item, seen)
            return torch.stack([score, none, none, none]).float()
        taste, covariance = self._tastes(events, user)
        weight, last = self.weight[item].double(), taste[-1]
        score = self.mean + (weight * taste[seen]).sum(dim=1)
        moment = einsum(last, last, "k, l -> k l") + F.pad(covariance, (1, 0, 1, 0))
        loading = weight[:, 1:]
        variance = ((loading @ covariance) * loading).sum(dim=1) + self.noise[item]
        of_item = einsum(self.spread[item].double(), moment, "m k l, k l -> m")
        doubt = (variance + of_item).sqrt()
        if self.slope is None:
            return torch.stack([score, score, none, doubt]).float()
        size = events.item.shape[0]  # not len: a free size stays free
        residual = events.rating - score[:size]
        similar = self.similarity[self.slot[events.item]][:, self.slot[item]]  # (n, m)
        is_visible = torch.arange(size)[:, None] < seen
        sums = residual @ (similar * is_visible).double()
        return torch.stack([score + self.slope * sums, score, sums, doubt]).float()

    def _tastes(self, events: _Events, user: Tensor) -> tuple[Tensor, Tensor]:
        """Expected taste before each event, a 1 in front, and what is uncertain before the last.

        (n, 1 + k) and (k, k), as `kalman.read_one` has them, in float64: a thousand steps in
        float32 would add up to more than 1e-5 stars. The blank teaches nothing: PAD has no loading.
        """
        weight = self.weight[events.item].double()
        spread, noise = self.spread[events.item].double(), self.noise[events.item].double()
        surprise, size = events.rating.double() - self.mean, events.count + 1
        prior = self.prior[torch.arange(len(USER_FEATURES)), user].double().sum(dim=0)
        identity = torch.eye(NUM_FACTORS, dtype=torch.float64)

        def goes_on(k: Tensor, *_: Tensor) -> Tensor:
            return (k < size).all()

        def step(k: Tensor, offset: Tensor, covariance: Tensor, taste: Tensor) -> tuple:
            offset = DRIFT * offset
            covariance = DRIFT**2 * covariance + (1 - DRIFT**2) * identity
            here = F.pad(prior + offset, (1, 0), value=1.0)
            own = weight[k][0]
            cross = covariance @ own[1:]
            moment = einsum(here, here, "k, l -> k l") + F.pad(covariance, (1, 0, 1, 0))
            variance = own[1:] @ cross + (spread[k][0] * moment).sum() + noise[k]
            gain = cross / variance
            offset = offset + gain * (surprise[k] - own @ here)
            covariance = covariance - einsum(gain, cross, "k, l -> k l")
            return k + 1, offset, covariance, taste.index_copy(0, k, here[None])

        start = (torch.zeros(1, dtype=torch.long), torch.zeros_like(prior), identity.clone(),
                 torch.zeros_like(weight))
        _, _, covariance, taste = torch.while_loop(goes_on, step, start)
        return taste, covariance

    def _user_bias(self, events: _Events, item: Tensor, seen: Tensor) -> Tensor:
        """The streaming bias at positions with `item` and `seen`, float64."""
        mean = self.statistics.mean
        residual = events.rating - mean - self.bias[events.item]
        return mean + self.bias[item] + _running_mean(residual, seen, last=20)

    def _dense(self, events: _Events, asked: Tensor, of_event: Tensor, of_target: Tensor,
               at: Tensor) -> Tensor:
        """The features named in `features.DENSE` of the films, (i, f); see `features.dense_at`."""
        known, count = self.statistics, events.count
        low, high = known.scale
        residual = events.rating - of_event.double()
        fifth = ((events.rating - low) / max(high - low, 1e-6) * 4).round() + 1
        first, last = events.time[:1], events.time[(count - 1).clamp(min=0)]
        hot, here = self.hot[events.item], self.hot[asked]
        same_genre = here @ (residual @ hot) / (here @ hot.sum(dim=0) + USER_SHRINK)

        def mean(values: Tensor, last: int | None = None) -> Tensor:
            return _running_mean(values, count, last=last)

        columns = [
            self.year[asked],
            *(((at - when).double() / 3600).clamp(min=0).log1p() for when in (first, last)),
            count.double().log1p(), self.bias[asked], self.count[asked].double().log1p(),
            *(mean((fifth == star).double() - usual)
              for star, usual in zip(STARS, known.usual, strict=True)),
            *self.of_item[:, asked],
            *(mean(residual, last) for last in (3, 20, None)),
            same_genre, mean(residual**2 - known.squared),
            self._user_bias(events, asked, count.expand_as(asked)),
            of_target[1], of_target[2], of_target[0], of_target[3],
        ]
        return torch.stack([column.float().expand_as(of_target[0]) for column in columns], dim=1)

    def _batch(self, events: _Events, asked: Tensor, event_base: Tensor, base: Tensor,
               dense: Tensor, user: Tensor, at: Tensor) -> Batch:
        """The last ratings and the films, as `people.batch_of` lays them out; empty slots blank."""
        shared, length = self.model.config.shares_history, self.model.config.history_len
        first = (events.count - length).clamp(min=0)
        slot = torch.minimum(first + torch.arange(max(1, length)), events.count)
        since = (events.time - events.time[:1]).int()
        i = asked.shape[0]

        def of_events(values: Tensor) -> Tensor:
            here = values[slot][None]
            return here if shared else repeat(here, "1 j -> i j", i=i)

        def of_targets(values: Tensor) -> Tensor:
            return values.expand_as(asked)[None] if shared else values.expand_as(asked)[:, None]

        codes = F.pad(user, (1, 0), value=OOV)[None]
        return Batch(
            event_item=of_events(events.item), event_rating=of_events(events.rating),
            event_base=of_events(event_base), event_time=of_events(since),
            target_item=of_targets(asked), target_time=of_targets((at - events.time[:1]).int()),
            first=of_targets(torch.zeros(1, dtype=torch.int32)),
            stop=of_targets((events.count - first).int()),
            user=codes if shared else repeat(codes, "1 c -> i c", i=i),
            dense=dense[None] if shared else dense[:, None], base=of_targets(base),
            label=of_targets(torch.zeros(1)), position=of_targets(torch.zeros(1).long()),
            is_cold=of_targets(torch.zeros(1).bool()),
        )


def _running_mean(values: Tensor, seen: Tensor, *, last: int | None) -> Tensor:
    """Shrunken mean of `values` (n,) over the last `last` of the first `seen` events, float64."""
    total = F.pad(values.double().cumsum(dim=0), (1, 0))
    start = torch.zeros_like(seen) if last is None else (seen - last).clamp(min=0)
    return (total[seen] - total[start]) / (seen - start + USER_SHRINK)


def _priors(base: BaseFit, vocabulary: UserVocabulary) -> Tensor:
    """What each code of each user feature adds to the prior taste, (features, codes, k)."""
    slope = base.factors.user_slope
    found = torch.zeros(len(USER_FEATURES), max(vocabulary.sizes[1:]), slope.shape[1])
    for row, (name, value) in enumerate(base.user_values, start=1):
        if value in vocabulary.features[name]:
            code = vocabulary.features[name].index(value) + FIRST_IDX
            found[USER_FEATURES.index(name), code] = slope[row]
    return found


def describe(recommender: Recommender) -> dict:
    """What a person who has nothing but the program must know, JSON-ready."""
    fitted = recommender.fitted
    return {"inputs": INPUTS, "output": OUTPUT, "levels": recommender.model.levels.tolist(),
            "users": recommender.vocabulary.features, "movies": recommender.catalogue.ids,
            "protocol": fitted.protocol, "run": fitted.identity, "torch": torch.__version__}


def export_program(recommender: Recommender, path: Path) -> None:
    """Write the run as a program of `torch.export`, with `describe` as `ABOUT` inside.

    Args:
        recommender: of a run.
        path: file to write, `.pt2`; its folder is there.

    Raises:
        OSError: it cannot be written.
    """
    ids = torch.tensor(recommender.catalogue.ids)
    history, films = torch.arange(5), torch.arange(3)  # any sizes: both are free in the program
    example = (ids[history % len(ids)], history.float(), history, torch.full((4,), OOV),
               torch.tensor(len(history)), ids[films % len(ids)])
    of_history = {0: Dim("ratings", min=0)}
    shapes = (of_history, of_history, of_history, None, None, {0: Dim("films", min=1)})
    exported = torch.export.export(Program(recommender), example, dynamic_shapes=shapes)
    content = io.BytesIO()
    torch.export.save(exported, content, extra_files={ABOUT: json.dumps(describe(recommender))})
    write_atomic(path, content.getvalue())
