"""Dense features of a target: of the history before it, its item's year and train count.

None of them reads the target's own stars or what other people gave its item, so they are the same
for train, valid, test and requests.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bst.model.batches import Batch, at_slots

POINTS = 5  # evenly spaced on the scale, from the lowest to the highest train rating
SHRINK = 3.0  # pseudo-events in a running mean
LAST = (3, 20)  # events of the short running means
DENSE_FEATURES = {  # name: fixed scale; None: reads no stars, so its scale is fitted; these first
    "log hours since first rating": None, "log hours since last rating": None,
    "log history length": None, "log train ratings of the item": None, "release year": None,
    **{f"share of ratings nearest to point {k + 1} of the scale": 0.15 for k in range(POINTS)},
    **{f"mean residual of the last {k} ratings": 0.5 for k in LAST},
    "mean residual of all ratings": 0.4, "variance of the residuals less 1": 0.4,
}


def log_hours(seconds: Tensor) -> Tensor:
    """Log of hours + 1, float; times out of order count as none."""
    return torch.log1p(seconds.clamp(min=0).float() / 3600)


def event_gap(batch: Batch) -> Tensor:
    """Log hours between an event and the one before, (b, c, n); -1: none before, or padded."""
    time = rearrange(batch.event_time, "b c n -> b (c n)")
    is_event = rearrange(batch.is_event, "b c n -> b (c n)")
    has_earlier = F.pad(is_event[:, :-1], (1, 0)) & is_event
    gap = torch.where(has_earlier, log_hours(time.diff(dim=1, prepend=time[:, :1])), -1.0)
    return gap.view_as(batch.event_time)


def target_gap(batch: Batch) -> Tensor:
    """Log hours since the last event that a target sees, (b, t, 1 or i); -1: none."""
    last = at_slots(batch.event_time, batch.slot - 1)
    return torch.where(batch.seen > 0, log_hours(batch.target_time - last), -1.0)


def dense_features(batch: Batch, residual: Tensor, height: Tensor, count: Tensor, year: Tensor
                   ) -> Tensor:
    """The features in the order of `DENSE_FEATURES`, (b, t, i, f) float32, unscaled.

    Args:
        batch: b rows, c * n slots.
        residual: (b, c, n) standardised ratings less their baseline, 0 where padded.
        height: (b, c, n) where each rating is on the scale, from 0 to 1.
        count: (b, t, i) log train ratings of the target.
        year: (b, t, i) standardised release year of the target.
    """
    is_event, seen, slot = batch.is_event, batch.seen, batch.slot
    has = seen > 0
    since_first = torch.where(has, log_hours(batch.target_time), 0.0)  # the first event is time 0
    since_last = target_gap(batch).clamp(min=0)
    point = (height * (POINTS - 1)).round().clamp(0, POINTS - 1).long()
    shares = (F.one_hot(point, POINTS) - 1 / POINTS) * is_event[..., None]
    columns = torch.cat([shares, residual[..., None], (residual.square() - 1)[..., None]], dim=-1)
    columns = rearrange(columns * is_event[..., None], "b c n f -> b (c n) f")
    total = F.pad(columns.cumsum(dim=1), (0, 0, 1, 0))[:, None]  # (b, 1, slots + 1, f)
    until = at_slots(total, slot)
    mean = until / (seen[..., None] + SHRINK)
    recent = []
    for size in LAST:
        start = torch.minimum(seen, seen.new_tensor(size))
        sums = until[..., POINTS] - at_slots(total[..., POINTS], slot - start)
        recent.append(sums / (start + SHRINK))
    columns = torch.broadcast_tensors(
        since_first, since_last, torch.log1p(seen.float()), count, year,
        *mean[..., :POINTS].unbind(-1), *recent, *mean[..., POINTS:].unbind(-1))
    return torch.stack(columns, dim=-1)
