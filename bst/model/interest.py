"""The next-item head (`--interest`): which item a person rates next, whatever the stars."""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX
from bst.model.batches import Batch, at_slots
from bst.model.layers import SoftmaxHeads

SAMPLE = 20_000  # items in the softmax of a loss, about; all of a catalogue half as large
WIDTH, HEADS, REACH = 128, 2, 64  # of a token; softmax heads of a layer; events that a target sees
GAPS = 32  # buckets of seconds between two ratings: powers of two; the last: a query without any
BLOCK = 128  # targets whose scores of the whole catalogue are held at a time


class TimedHeads(SoftmaxHeads):
    """Softmax heads with a bias for the last event, and for those of one second or one sitting."""

    def _make_slopes(self) -> None:
        slopes = torch.zeros(5, self.heads)
        slopes[0] = -torch.linspace(0, 1, self.heads)  # head 0 sees all, the last one recent events
        self.slopes = nn.Parameter(slopes)

    def bias(self, gap: Tensor, rank: Tensor) -> Tensor:
        """Logits (..., h, i, j) of gaps in seconds and ranks, each (..., i, j) and >= 0."""
        terms = [rank.float().log1p(), gap.float().clamp(min=0).log1p() / 4, rank == 1, gap <= 0,
                 gap <= 20]
        terms = torch.stack([x.to(self.slopes.dtype) for x in terms], dim=-1)
        return rearrange(terms @ self.slopes, "... i j h -> ... h i j")


class NextItemHead(nn.Module):
    """score = log share of the item in the train ratings + item bias + state . item vector.

    A causal transformer of two layers. In the first one each event attends to earlier events. In
    the second one a query, made of the last event that a target sees and the time since then,
    attends to the outputs of the first; its output is the state. So all targets of a user share one
    pass. A target's item and stars are not read.

    An item has one vector, as input and as output: an id part, which an item that nobody has rated
    lacks, plus a linear function of its features.
    """

    def __init__(self, items: int, known_items: int, features: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("log_share", torch.zeros(items + FIRST_IDX))
        self.id = nn.Embedding(known_items + FIRST_IDX, WIDTH)
        self.bias = nn.Embedding(known_items + FIRST_IDX, 1)
        self.linear = nn.Linear(features, WIDTH, bias=False)
        self.rating = nn.Linear(1, WIDTH)
        self.gap, self.ahead = nn.Embedding(GAPS, WIDTH), nn.Embedding(GAPS, WIDTH)
        self.blank = nn.Parameter(torch.zeros(WIDTH))  # query of a person without ratings
        self.norm_event, self.norm_ask = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.events, self.reads = (TimedHeads(WIDTH, HEADS, REACH, dropout, "target")
                                   for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        for part, std in ((self.id, 0.05), (self.gap, 0.05), (self.ahead, 0.05),
                          (self.linear, 0.02)):
            nn.init.normal_(part.weight, std=std)
        nn.init.zeros_(self.bias.weight)

    def item_vectors(self, items: Tensor, row: Tensor, features: Tensor
                     ) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) of items (n,), and shifts (n,): log share plus item bias.

        A `row` (n,) of the id table is below `FIRST_IDX` for an item without train ratings.
        """
        own = (row >= FIRST_IDX)[:, None]
        vectors = self.id(row) * own + self.linear(features)
        return vectors, self.log_share[items] + (self.bias(row) * own)[:, 0]

    def forward(self, batch: Batch, vectors: Tensor, rating: Tensor) -> Tensor:
        """The state before each target, (b, t, i, d); meaningless where padded.

        Args:
            batch: for what each target may see, and when it was.
            vectors: (b, c, n, d) of the events' items.
            rating: (b, c, n) standardised.
        """
        (b, c, n), device = batch.event_item.shape, batch.event_item.device
        since = F.pad(batch.event_time.flatten(1).diff(dim=1), (1, 0)).view(b, c, n)
        x = vectors + self.rating(rating[..., None]) + self.gap(_bucket(since))
        x = self.dropout(self.norm_event(x))
        slots = repeat(torch.arange(n, device=device), "n -> b c n", b=b, c=c)
        itself = replace(batch, target_item=batch.event_item, target_time=batch.event_time,
                         stop=slots, label=batch.event_rating, position=slots, is_request=False)
        x = self.dropout(self.events(x, x, itself))
        last, is_new = batch.slot - 1, batch.seen <= 0
        bucket = _bucket(batch.target_time - at_slots(batch.event_time, last))
        bucket = bucket.masked_fill(is_new, GAPS - 1)
        query = torch.where(is_new[..., None], self.blank, at_slots(x, last)) + self.ahead(bucket)
        return self.reads(x, self.norm_ask(query), batch)

    def draw(self) -> tuple[Tensor, Tensor]:
        """A sample of the catalogue, (m,) indices, and the probability of each to be in it, (m,).

        Half of it is drawn evenly, half by train ratings; a small catalogue is taken whole.
        """
        share = self.log_share[FIRST_IDX:].softmax(dim=0)
        chance = (SAMPLE * (share + 1 / len(share)) / 2).clamp(max=1.0)
        drawn = (torch.rand_like(chance) < chance).nonzero()[:, 0]
        return drawn + FIRST_IDX, chance[drawn]

    def excluded_negatives(self, items: Tensor, batch: Batch) -> Callable[[slice], Tensor]:
        """A function that gives a mask (targets, n) for a slice of the real targets.

        The mask is True where one of `items` (n,), which are distinct, must not be a negative: it
        is the target's own item, or the history of the target holds it.
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

        def is_excluded(here: slice) -> Tensor:
            mask = first[row[here]] < stop[here, None]
            return mask.scatter_(1, own[here, None], True)[:, :n]

        return is_excluded


def _bucket(seconds: Tensor) -> Tensor:
    """Bucket of a number of seconds, int64 in [0, GAPS - 2]: floor(log2(seconds + 1))."""
    return (seconds.clamp(min=0) + 1).double().log2().long().clamp(max=GAPS - 2)


class NextItemLoss(torch.autograd.Function):
    """Mean negative log-likelihood of the targets' items among those not rated yet, in nats.

    The sum over the catalogue is estimated from a sample: each item is drawn with probability p and
    weighted 1 / p. So the estimate is unbiased, and exact if every p is 1. Scores and gradients are
    computed for a block of targets at a time, which fits the processor's cache. Source: Bengio and
    Senecal 2003, "Quick training of probabilistic neural nets by importance sampling".
    """

    @staticmethod
    def forward(ctx, state: Tensor, own: Tensor, own_shift: Tensor, sampled: Tensor, shift: Tensor,
                is_excluded: Callable[[slice], Tensor]) -> Tensor:
        """The loss of states (m, d).

        Args:
            ctx: of torch.
            state: (m, d) see `NextItemHead.forward`.
            own: (m, d) vectors of the targets' items.
            own_shift: (m,) their shifts.
            sampled: (n, d) vectors of a sample of the catalogue.
            shift: (n,) their shifts, less the log probability of each to be drawn.
            is_excluded: see `NextItemHead.excluded_negatives`.
        """
        total, grads = state.new_zeros(()), [torch.zeros_like(x) for x in (
            state, own, own_shift, sampled, shift)]
        for start in range(0, len(state), BLOCK):
            here = slice(start, start + BLOCK)
            share = torch.addmm(shift, state[here], sampled.T)
            share.masked_fill_(is_excluded(here), -torch.inf)
            score = einsum(state[here], own[here], "m d, m d -> m") + own_shift[here]
            top = torch.maximum(share.amax(dim=1), score)
            share, mine = share.sub_(top[:, None]).exp_(), (score - top).exp()
            whole = share.sum(dim=1) + mine
            total = total + (whole.log() + top - score).sum()
            share, miss = share.div_(whole[:, None]), mine / whole - 1
            grads[0][here] = share @ sampled + miss[:, None] * own[here]
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
