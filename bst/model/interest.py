"""A second head: which item a person rates next, whatever the stars."""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX
from bst.model.batches import Batch, at_slots
from bst.model.layers import SoftmaxHeads

SAMPLE = 20_000  # items in the softmax of a loss, about; of up to half as many, all
WIDTH, HEADS, REACH = 128, 2, 64  # of an item's vector and of each layer
GAPS = 32  # powers of two of the seconds between two ratings; the last one: there is none before
BLOCK = 128  # targets whose scores of the whole catalogue are held at a time


class TimedHeads(SoftmaxHeads):
    """Softmax heads that tell events of the same second, of the same sitting, and the last one."""

    def __init__(self, dropout: float) -> None:
        super().__init__(WIDTH, HEADS, REACH, dropout, "target")

    def _make_slopes(self) -> None:
        slopes = torch.zeros(5, HEADS)
        slopes[0] = -torch.linspace(0, 1, HEADS)  # from all to the last few
        self.slopes = nn.Parameter(slopes)

    def bias(self, gap: Tensor, rank: Tensor) -> Tensor:
        """Logits (..., h, i, j) of gaps in seconds and ranks, each (..., i, j) and >= 0."""
        far = [rank.float().log1p(), gap.float().clamp(min=0).log1p() / 4, rank == 1, gap <= 0,
               gap <= 20]
        far = torch.stack([x.to(self.slopes.dtype) for x in far], dim=-1)
        return rearrange(far @ self.slopes, "... i j h -> ... h i j")


class InterestHead(nn.Module):
    """score = log share of the item in the train ratings + bias + state of the person . item.

    A causal transformer: a layer in which each event of the history reads those before it, and one
    in which the person, as of the last event that a target sees and the time since then, reads what
    came of them. So all targets of a user share one pass. A target's item and stars are not read.

    The vector of an item is the same where it is read and where it is scored: an id part, which an
    item that nobody has rated lacks, and a linear function of its features.
    """

    def __init__(self, items: int, known_items: int, features: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("log_share", torch.zeros(items + FIRST_IDX))
        self.id = nn.Embedding(known_items + FIRST_IDX, WIDTH)
        self.bias = nn.Embedding(known_items + FIRST_IDX, 1)
        self.linear = nn.Linear(features, WIDTH, bias=False)
        self.rating = nn.Linear(1, WIDTH)
        self.gap, self.ahead = nn.Embedding(GAPS, WIDTH), nn.Embedding(GAPS, WIDTH)
        self.blank = nn.Parameter(torch.zeros(WIDTH))  # who has rated nothing yet
        self.norm_event, self.norm_ask = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.events, self.reads = TimedHeads(dropout), TimedHeads(dropout)
        self.dropout = nn.Dropout(dropout)
        for part, std in ((self.id, 0.05), (self.gap, 0.05), (self.ahead, 0.05),
                          (self.linear, 0.02)):
            nn.init.normal_(part.weight, std=std)
        nn.init.zeros_(self.bias.weight)

    def films(self, items: Tensor, row: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and what the score adds to the product, (n,), of items (n,).

        A `row` (n,) of the id table is below `FIRST_IDX` for an item that train lacks.
        """
        own = (row >= FIRST_IDX)[:, None]
        vectors = self.id(row) * own + self.linear(features)
        return vectors, self.log_share[items] + (self.bias(row) * own)[:, 0]

    def forward(self, batch: Batch, vectors: Tensor, rating: Tensor) -> Tensor:
        """The person before each target, (b, t, i, d); meaningless where padded.

        Args:
            batch: for what each target may see, and when it was.
            vectors: (b, c, n, d) of the events' items.
            rating: (b, c, n) standardised.
        """
        (b, c, n), device = batch.event_item.shape, batch.event_item.device
        since = F.pad(batch.event_time.flatten(1).diff(dim=1), (1, 0)).view(b, c, n)
        x = vectors + self.rating(rating[..., None]) + self.gap(_power(since))
        x = self.dropout(self.norm_event(x))
        slots = repeat(torch.arange(n, device=device), "n -> b c n", b=b, c=c)
        itself = replace(batch, target_item=batch.event_item, target_time=batch.event_time,
                         stop=slots, label=batch.event_rating, position=slots)
        x = self.dropout(self.events(x, x, itself))
        last, is_new = batch.slot - 1, batch.seen <= 0
        gap = _power(batch.target_time - at_slots(batch.event_time, last))
        gap = gap.masked_fill(is_new, GAPS - 1)
        state = torch.where(is_new[..., None], self.blank, at_slots(x, last)) + self.ahead(gap)
        return self.reads(x, self.norm_ask(state), batch)

    def draw(self) -> tuple[Tensor, Tensor]:
        """A sample of the catalogue, (m,) indices, and each one's chance to be in it, (m,).

        Half of it even, half by train ratings; all of a small catalogue.
        """
        share = self.log_share[FIRST_IDX:].softmax(dim=0)
        chance = (SAMPLE * (share + 1 / len(share)) / 2).clamp(max=1.0)
        drawn = (torch.rand_like(chance) < chance).nonzero()[:, 0]
        return drawn + FIRST_IDX, chance[drawn]

    def rivals(self, items: Tensor, batch: Batch) -> Callable[[slice], Tensor]:
        """Which of `items` (n,), each once, are no negatives of real targets: the target itself and
        items already in the history. The answer is a mask (targets of the slice, n).
        """
        n, events = len(items), rearrange(batch.event_item, "b c n -> b (c n)")
        (b, s), device = events.shape, items.device
        column = torch.full((len(self.log_share),), n, device=device)
        column[items] = torch.arange(n, device=device)
        slot = repeat(torch.arange(s, device=device, dtype=torch.int32), "s -> b s", b=b)
        first = torch.full((b, n + 1), s, device=device, dtype=torch.int32)  # slot with the item
        first = first.scatter_reduce(1, column[events], slot, "amin")
        row, stop = batch.is_target.nonzero()[:, 0], batch.slot[batch.is_target].int()
        own = column[batch.target_item[batch.is_target]]

        def is_out(here: slice) -> Tensor:
            out = first[row[here]] < stop[here, None]
            return out.scatter_(1, own[here, None], True)[:, :n]

        return is_out


def _power(seconds: Tensor) -> Tensor:
    """Powers of two up to a number of seconds, int64 in [0, GAPS - 2]."""
    return (seconds.clamp(min=0) + 1).double().log2().long().clamp(max=GAPS - 2)


class NextItemLoss(torch.autograd.Function):
    """Mean negative log-likelihood of the targets' items among those not seen yet, nats.

    The sum over the catalogue is estimated from a sample: each item is included with probability p
    and weighted 1 / p, so it is unbiased, and exact once every p is 1. Scores and gradients are
    computed a block of targets at a time, in the cache. Source: Bengio and Senecal 2003, "Quick
    training of probabilistic neural nets by importance sampling".
    """

    @staticmethod
    def forward(ctx, state: Tensor, own: Tensor, own_shift: Tensor, rivals: Tensor, shift: Tensor,
                is_out) -> Tensor:
        """The loss of states (m, d) of persons.

        `own` (m, d) and `own_shift` (m,) are of the targets' items as `films` made them, `rivals`
        (n, d) and `shift` (n,), less the log of each one's chance, of a sample of the catalogue.
        """
        total, grads = state.new_zeros(()), [torch.zeros_like(x) for x in (
            state, own, own_shift, rivals, shift)]
        for start in range(0, len(state), BLOCK):
            here = slice(start, start + BLOCK)
            share = torch.addmm(shift, state[here], rivals.T).masked_fill_(is_out(here), -torch.inf)
            score = einsum(state[here], own[here], "m d, m d -> m") + own_shift[here]
            top = torch.maximum(share.amax(dim=1), score)
            share, mine = share.sub_(top[:, None]).exp_(), (score - top).exp()
            whole = share.sum(dim=1) + mine
            total = total + (whole.log() + top - score).sum()
            share, miss = share.div_(whole[:, None]), mine / whole - 1
            grads[0][here] = share @ rivals + miss[:, None] * own[here]
            grads[1][here] = miss[:, None] * state[here]
            grads[2][here] = miss
            grads[3].addmm_(share.T, state[here])
            grads[4] += share.sum(dim=0)
        ctx.save_for_backward(*(x / len(state) for x in grads))
        return total / len(state)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        """Gradients of all but the last argument."""
        return *(grad * x for x in ctx.saved_tensors), None
