"""A second head: which item a person rates next, whatever the stars."""

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from bst.data.schema import FIRST_IDX, OOV, PAD

SAMPLE = 2048  # items of the catalogue in a loss, about, beside the targets


class InterestHead(nn.Module):
    """score = log share of the item in the train ratings + bias + state of the person . item.

    The state is read off the visible history and the clock, never off a target.

    Args:
        items: of the catalogue.
        known_items: rows of the id table.
        key: width of an item's key.
        state: width of what the state is made of.
        width: of the state.
    """

    def __init__(self, items: int, known_items: int, key: int, state: int, width: int) -> None:
        super().__init__()
        self.register_buffer("log_share", torch.zeros(items + FIRST_IDX))
        self.blank = nn.Parameter(torch.zeros(width))  # stands for the target in the softmax heads
        self.state = nn.Sequential(nn.Linear(state, 4 * width), nn.ReLU(),
                                   nn.Linear(4 * width, width))
        self.id = nn.Embedding(known_items + FIRST_IDX, width)
        self.linear = nn.Linear(key, width, bias=False)
        self.bias = nn.Embedding(known_items + FIRST_IDX, 1)
        nn.init.normal_(self.id.weight, std=0.05)
        for zero in (self.bias.weight, self.state[-1].weight, self.state[-1].bias):
            nn.init.zeros_(zero)  # starts as popularity

    def films(self, items: Tensor, row: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and what the score adds to the product, (n,), of items."""
        own = (row >= FIRST_IDX)[:, None]
        vectors = self.id(row) * own + self.linear(keys)
        return vectors, self.log_share[items] + (self.bias(row) * own)[:, 0]

    def draw(self) -> tuple[Tensor, Tensor]:
        """A sample of the catalogue, (m,) indices, and each one's chance to be in it, (m,).

        Half of it even, half by train ratings; all of a small catalogue.
        """
        share = self.log_share[FIRST_IDX:].softmax(dim=0)
        chance = (SAMPLE * (share + 1 / len(share)) / 2).clamp(max=1.0)
        drawn = (torch.rand_like(chance) < chance).nonzero()[:, 0]
        return drawn + FIRST_IDX, chance[drawn]

    def is_out(self, items: Tensor, events: Tensor, targets: Tensor, slot: Tensor) -> Tensor:
        """Which of `items` (n,) are no rivals of a target: itself, and what it sees.

        Args:
            items: indices, each once.
            events: (b, s) item of each slot.
            targets: (b, t, i) items.
            slot: (b, t, i) the target sees the slots before this.

        Returns:
            (b, t, i, n) bool.
        """
        n = len(items)
        column = torch.full((len(self.log_share),), n, device=items.device)
        column[items] = torch.arange(n, device=items.device)
        column[PAD] = column[OOV] = n
        out = torch.zeros(*targets.shape, n + 1, dtype=torch.bool, device=items.device)
        is_seen = torch.arange(events.shape[1], device=items.device) < slot[..., None]
        index = rearrange(column[events], "b s -> b 1 1 s").masked_fill(~is_seen, n)
        out.scatter_(3, index, True)
        out.scatter_(3, column[targets][..., None], True)
        return out[..., :n]

    def loss(self, state: Tensor, own: tuple[Tensor, Tensor], rivals: tuple[Tensor, Tensor],
             chance: Tensor, is_out: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets' items among those not seen yet, nats.

        The sum over the catalogue is estimated from a sample in which an item is with its chance
        and stands for 1 / chance items: unbiased, and exact once every chance is 1.

        Args:
            state: (m, d) of the persons.
            own: what `films` made of the m targets.
            rivals: and of a sample of n items.
            chance: (n,) of each of the sample.
            is_out: (m, n) bool.

        Source: Bengio and Senecal 2003, "Quick training of probabilistic neural nets by importance
        sampling".
        """
        vectors, shift = rivals
        rival = einsum(state, vectors, "m d, n d -> m n") + shift - chance.log()
        rival = rival.masked_fill(is_out, -torch.inf)
        score = einsum(state, own[0], "m d, m d -> m") + own[1]
        return (torch.cat([score[:, None], rival], dim=-1).logsumexp(dim=-1) - score).mean()
