"""Dense features of a target: of the history before it, its item's year and train count.

None of them reads the target's own stars or what other people gave its item, so they are the same
for train, valid, test and requests.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bst.model.batches import Batch, at_slots, log_hours

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
    seen, slot = batch.seen, batch.slot
    since_first = torch.where(seen > 0, log_hours(batch.target_time), 0.0)  # time 0 is it
    point = (height * (POINTS - 1)).round().clamp(0, POINTS - 1)
    shares = (point[..., None] == torch.arange(POINTS, device=point.device)).float() - 1 / POINTS
    columns = torch.cat([shares, residual[..., None], (residual.square() - 1)[..., None]], dim=-1)
    columns = rearrange(columns * batch.is_event[..., None], "b c n f -> b (c n) f")
    total = F.pad(columns.cumsum(dim=1), (0, 0, 1, 0))[:, None]  # (b, 1, slots + 1, f)
    until = at_slots(total, slot)
    mean = until / (seen[..., None] + SHRINK)
    size = torch.minimum(seen[..., None], seen.new_tensor(LAST))  # (b, t, 1 or i, means)
    recent = until[..., POINTS, None] - at_slots(total[..., POINTS], slot[..., None] - size)
    times = torch.stack([since_first, batch.target_gap.clamp(min=0), torch.log1p(seen)], dim=-1)
    rest = torch.cat([mean[..., :POINTS], recent / (size + SHRINK), mean[..., POINTS:]], dim=-1)
    times, rest = (x.expand(*count.shape, x.shape[-1]) for x in (times, rest))
    return torch.cat([times, torch.stack([count, year], dim=-1), rest], dim=-1)
