"""The network, whole, in one file: Behavior Sequence Transformer with a rating head.

Letters in comments and einops patterns: b rows, i targets of a row, j history events of a row,
s = tokens, d width, h heads, e = d / h, k items, g genres, t width of the overview vector,
f dense features, c levels of the rating scale, n films of the catalogue, m of them a sample. A mask
is True at what is real.
"""

from dataclasses import asdict, dataclass, replace

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from bst.config import ModelConfig, from_dict
from bst.data.schema import FIRST_IDX, OOV, PAD
from bst.model.batches import Batch
from bst.model.features import DENSE

GAP_BUCKETS, RANK_BUCKETS = 64, 32  # two per octave: gaps to 68 years, ranks to 4096 and beyond
YEAR_BUCKETS = 64  # two years each from 1900; 0 is unknown
STARS, SURPRISE = ("both", "embedding"), ("both", "residual")  # which rating inputs use what
HALF_STARS = 24  # rows of the rating table: stars 0.5 to 11.5, or a scale spread over them
SAMPLE = 2048  # films of the catalogue in an interest loss, about, beside the target
DECAY = 0.35  # half octaves of rank to nats: an attention that falls with 1 / rank
CLOCK = [DENSE.index(name) for name in (
    "log hours since first rating", "log hours since last rating", "log history length")]


@dataclass(frozen=True)
class Sizes:
    """Sizes that the data decide."""

    items: int  # of the catalogue
    known_items: int  # items with a train rating, each with its own id embedding
    genres: int
    text: int  # width of an overview vector
    users: tuple[int, ...]  # embedding rows: user id, then each user feature
    dense: int  # dense features
    levels: int = 5  # distinct ratings of the scale
    rating_zero: float = 0.0  # rating of row 0 of the rating table, which means "not rated yet"
    rating_step: float = 0.5  # from one row to the next


class EncoderBlock(nn.Module):
    """Post-norm transformer layer with a LeakyReLU feed-forward.

    Differs from BERT's layer: attention weights are not dropped out, which costs a sixth of a step.

    Source: Chen et al. 2019, section 2.2 (arXiv 1905.06874).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.LeakyReLU(), nn.Linear(4 * width, width)
        )
        self.norm_attn, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None) -> Tensor:
        """Transform the tokens `x`.

        Args:
            x: (b, i, d).
            bias: added to the attention logits, -inf where a key is not visible: (b, h or 1, i, j).
            memory: (b, j, d) keys; each token of `x` sees these and itself. None: j = i, tokens see
                each other, as in the paper.

        Returns:
            (b, i, d).
        """
        split = "b s (n h e) -> n b h s e"
        q, k, v = rearrange(self.qkv(x), split, n=3, h=self.heads)
        if memory is None:
            logits = einsum(q, k, "b h i e, b h j e -> b h i j") * self.scale + bias
            attended = logits.softmax(-1) @ v
        else:
            width = x.shape[-1]
            kv = F.linear(memory, self.qkv.weight[width:], self.qkv.bias[width:])
            memory_k, memory_v = rearrange(kv, split, n=2, h=self.heads)
            own = einsum(q, k, "b h i e, b h i e -> b h i")[..., None] * self.scale
            logits = einsum(q, memory_k, "b h i e, b h j e -> b h i j") * self.scale + bias
            weight = torch.cat([own, logits], dim=-1).softmax(-1)
            attended = weight[..., :1] * v + weight[..., 1:] @ memory_v
        x = self.norm_attn(x + self.dropout(self.out(rearrange(attended, "b h i e -> b i (h e)"))))
        return self.norm_ffn(x + self.dropout(self.ffn(x)))


class PositionBias(nn.Module):
    """Attention bias of the time gap and of the rank between two tokens.

    Differs from the paper, which adds an embedding of the gap to the token: a bias leaves keys and
    values independent of the target, so that targets can share them.
    """

    def __init__(self, heads: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gap = nn.Parameter(torch.zeros(heads, GAP_BUCKETS))
        self.rank = nn.Parameter(torch.zeros(heads, RANK_BUCKETS))

    def forward(self, gap: Tensor, rank: Tensor) -> Tensor:
        """Logits (b, h, i, j) of gaps (seconds) and ranks, each (b, i, j) and >= 0."""
        gap_bias = self.gap if self.kind in ("both", "gap") else torch.zeros_like(self.gap)
        rank_bias = self.rank if self.kind in ("both", "rank") else torch.zeros_like(self.rank)
        table = rearrange(gap_bias[:, :, None] + rank_bias[:, None, :], "h m n -> h (m n)")
        index = log_bucket(gap) * RANK_BUCKETS + log_bucket(rank)  # one gather for both
        index = index.long()  # torch adds up gradients six times slower by int32
        b, i, j = index.shape
        bias = table.index_select(1, rearrange(index, "b i j -> (b i j)"))
        return rearrange(bias, "h (b i j) -> b h i j", b=b, i=i, j=j)

    def of_history(self, batch: Batch) -> Tensor:
        """Logits (b, h, i, j) from each target to the events, -inf where it may not see them."""
        slot = torch.arange(batch.event_item.shape[1], device=batch.stop.device, dtype=torch.int32)
        gap = batch.target_time[..., None] - batch.event_time[:, None]
        rank = batch.stop[..., None] - slot
        bias = self(gap.clamp(min=0), rank.clamp(min=0))
        return bias.masked_fill(~batch.is_visible[:, None], -torch.inf)


class Interest(nn.Module):
    """Which film a person rates next, whatever the stars.

    score = log share of the film in the train ratings + bias + state of the person . vector of the
    film. The state is read off the visible history, never off a target.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes, num_user: int) -> None:
        super().__init__()
        d, h = config.width, config.heads
        self.register_buffer("log_share", torch.zeros(sizes.items + FIRST_IDX))
        self.key = nn.Linear(d, h)  # of a token, against a query that all share
        self.value = nn.Linear(d, d)
        self.null = nn.Parameter(torch.zeros(1, 1, d))  # what an empty history says
        self.position = PositionBias(h, config.position)
        self.state = nn.Sequential(
            nn.Linear(d + num_user + len(CLOCK), config.hidden[0]), nn.ReLU(),
            nn.Dropout(config.dropout), nn.Linear(config.hidden[0], d)
        )
        self.item_id = nn.Embedding(sizes.known_items + FIRST_IDX, d)
        self.item = nn.Linear(d, d, bias=False)
        self.bias = nn.Embedding(sizes.known_items + FIRST_IDX, 1)
        self.apply(_init)
        for zero in (self.bias.weight, self.state[-1].weight, self.state[-1].bias):
            nn.init.zeros_(zero)  # starts as popularity
        steps = torch.arange(RANK_BUCKETS) * DECAY
        with torch.no_grad():  # heads from the whole history to the last few events
            self.position.rank.copy_(-steps * torch.linspace(0, 2, h)[:, None])

    def states(self, events: Tensor, batch: Batch, parts: list[Tensor]) -> Tensor:
        """The person before each target, (b, i, d), from the events' tokens (b, j, d) and `parts`.

        Of the targets it reads the times and what they may see, and nothing else.
        """
        logits = rearrange(self.key(events), "b j h -> b h 1 j") + self.position.of_history(batch)
        weight = F.pad(logits, (1, 0)).softmax(dim=-1)
        null = repeat(self.null, "1 1 d -> b 1 d", b=len(events))
        value = torch.cat([null, self.value(events)], dim=1)
        value = rearrange(value, "b j (h e) -> b h j e", h=weight.shape[1])
        read = rearrange(weight @ value, "b h i e -> b i (h e)")
        return self.state(torch.cat([read, *parts], dim=-1))

    def films(self, items: Tensor, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and what the score adds to the product, (n,), of embedded films."""
        return self.item_id(ids) + self.item(x), self.log_share[items] + self.bias(ids)[:, 0]


def log_bucket(x: Tensor) -> Tensor:
    """Half octave of x + 1 for integers x >= 0, from the float's exponent bits: exact and fast.

    Example:
        >>> log_bucket(torch.tensor([0, 1, 2, 3, 5, 7])).tolist()
        [0, 2, 3, 4, 5, 6]
    """
    return ((x + 1).float().view(torch.int32) >> 22) - (127 << 1)


class BST(nn.Module):
    """Predicts the stars of each target from the rated history before it.

    Args:
        config: sizes and parts.
        sizes: what the data decide. `bst.training.loop.build_model` fills the buffers.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        d, n = config.width, sizes.items + FIRST_IDX
        self.register_buffer("item_vocab", torch.full((n,), OOV))
        self.register_buffer("item_genres", torch.zeros(n, sizes.genres))
        self.register_buffer("item_year", torch.zeros(n, dtype=torch.long))
        self.register_buffer("item_text", torch.zeros(n, sizes.text))
        self.register_buffer("item_has_text", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("levels", torch.linspace(1.0, 5.0, sizes.levels))  # of the scale
        self.register_buffer("dense_mean", torch.zeros(sizes.dense))
        self.register_buffer("dense_scale", torch.ones(sizes.dense))
        self.register_buffer("dense_edges", torch.zeros(sizes.dense, config.buckets - 1))

        self.item_id = nn.Embedding(sizes.known_items + FIRST_IDX, d, padding_idx=PAD)
        self.genre = nn.Linear(sizes.genres, d, bias=False) if config.genres else None
        self.year = nn.Embedding(YEAR_BUCKETS, d) if config.year else None
        if config.text:
            self.no_text = nn.Parameter(torch.zeros(sizes.text))
            self.text = nn.Sequential(nn.Linear(sizes.text, d), nn.LayerNorm(d))
            self.text_out = nn.Sequential(
                nn.Linear(sizes.text, config.text_dim), nn.LayerNorm(config.text_dim)
            )
        self.rating = nn.Embedding(HALF_STARS, d) if config.rating_input in STARS else None
        self.surprise = nn.Linear(1, d) if config.rating_input in SURPRISE else None
        self.norm_token = nn.LayerNorm(d)
        self.null = nn.Parameter(torch.zeros(1, 1, d))  # stands for an empty history
        self.position = PositionBias(config.heads, config.position)
        self.blocks = nn.ModuleList(
            EncoderBlock(d, config.heads, config.dropout) for _ in range(config.layers)
        )
        features = range(1, len(sizes.users)) if config.user_features else ()
        self.user_columns = [0] * config.user_id + [*features]
        self.user = nn.ModuleList(
            nn.Embedding(sizes.users[c], config.feature_dim) for c in self.user_columns
        )
        if config.dense == "bucket":
            self.dense = nn.Embedding(sizes.dense * config.buckets, config.feature_dim)
        widths = [self._readout_dim(), *config.hidden]
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 1 + (config.loss == "ordinal")))
        if config.loss == "ordinal":
            self.threshold = nn.Parameter(torch.zeros(sizes.levels - 1))  # from the midpoints
        self.apply(_init)
        if config.text:  # as small as the other parts of a movie, or it would drown the ids
            nn.init.constant_(self.text[1].weight, 0.1)
        nn.init.zeros_(self.head[-1].weight)  # starts as the base score
        # After all others: their first weights are those of a network without this head.
        num_user = config.feature_dim * len(self.user_columns)
        self.interest = Interest(config, sizes, num_user) if config.interest else None

    def forward(self, batch: Batch) -> Tensor:
        """Expected stars of every target, (b, i); not clamped; meaningless where padded."""
        return self._expected(*self._score(batch, *self._encode(batch)))

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the real targets: squared error, Huber, or negative log-likelihood.

        With `ModelConfig.interest`, this weight times `interest_loss` is added.
        """
        events, targets, text = self._encode(batch)
        score, spread = self._score(batch, events, targets, text)
        if self.config.loss == "ordinal":
            level = (batch.label[..., None] > self._midpoints()).sum(-1, keepdim=True)
            prob = self._star_probs(score, spread).gather(-1, level)
            loss = -rearrange(prob, "b i 1 -> b i").log()
        elif self.config.loss == "huber":
            loss = F.huber_loss(score, batch.label, reduction="none")
        else:
            loss = (score - batch.label).square()
        mean = (loss * batch.is_target).sum() / batch.is_target.sum()
        if self.interest is None:
            return mean
        return mean + self.config.interest * self.interest_loss(_earlier(batch), events)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Expected stars on the scale of the data, and the whole star to name: each (b, i).

        The whole star is the median of an ordinal model, else the level nearest to the expectation.
        """
        self.eval()
        score, spread = self._score(batch, *self._encode(batch))
        edges = self._midpoints() if spread is None else self._midpoints() + self.threshold
        star = self.levels[(score[..., None] > edges).sum(-1)]
        return self._expected(score, spread).clamp(self.levels[0], self.levels[-1]), star

    def _expected(self, score: Tensor, spread: Tensor | None) -> Tensor:
        if spread is None:
            return score
        return einsum(self._star_probs(score, spread), self.levels, "b i c, c -> b i")

    def _midpoints(self) -> Tensor:
        return (self.levels[1:] + self.levels[:-1]) / 2  # (c - 1,)

    def _star_probs(self, score: Tensor, spread: Tensor) -> Tensor:
        """Probability of each level (b, i, c): P(stars <= c) = sigmoid((edge_c - score) / spread).

        Source: McCullagh 1980, "Regression Models for Ordinal Data".
        """
        edges = self._midpoints() + self.threshold
        below = ((edges - score[..., None]) / spread[..., None]).sigmoid()
        below = F.pad(F.pad(below, (1, 0)), (0, 1), value=1.0)
        return below.diff(dim=-1).clamp(min=1e-6)

    def interest_loss(self, batch: Batch, events: Tensor, *, sample: int = SAMPLE) -> Tensor:
        """Negative log-likelihood of the real targets' films among those not seen yet, nats.

        The sum over the catalogue is estimated from a sample: film k is in it with probability
        p_k, half of it even and half by its train ratings, and stands for 1 / p_k films. This is
        unbiased, and exact once every p_k is 1.

        Args:
            batch: b rows, i targets.
            events: (b, j, d) tokens of its history.
            sample: films drawn, about.

        Source: Bengio and Senecal 2003, "Quick training of probabilistic neural nets by importance
        sampling".
        """
        chance = self._chance(sample)
        items = (torch.rand_like(chance) < chance).nonzero()[:, 0] + FIRST_IDX  # (m,)
        vectors, shift = self.films(torch.cat([items, batch.target_item[batch.is_target]]))
        m = len(items)
        states = self.states(batch, events)
        rival = einsum(states, vectors[:m], "b i d, m d -> b i m") + shift[:m]
        rival = (rival - chance[items - FIRST_IDX].log()).masked_fill(
            self._is_out(batch, items), -torch.inf)[batch.is_target]
        own = einsum(states[batch.is_target], vectors[m:], "k d, k d -> k") + shift[m:]
        return (torch.cat([own[:, None], rival], dim=-1).logsumexp(dim=-1) - own).mean()

    def interest_scores(self, batch: Batch, films: tuple[Tensor, Tensor]) -> Tensor:
        """Score of each of the `films` for the person before each target, (b, i, n).

        Their softmax over the films that the person has not rated yet is the share of each in what
        the person rates next.

        Args:
            batch: whose target films are not looked at.
            films: what `films` made of n items.
        """
        vectors, shift = films
        states = self.states(batch, self._encode(batch)[0])
        return einsum(states, vectors, "b i d, n d -> b i n") + shift

    def films(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and shifts (n,) of items (n,), as the interest head scores them."""
        ids = self._ids(items)
        return self.interest.films(items, ids, self._embed(items, ids)[0])

    def states(self, batch: Batch, events: Tensor) -> Tensor:
        """The person before each target, as the interest head reads it, (b, i, d)."""
        clock = ((batch.dense - self.dense_mean) / self.dense_scale).clamp(-5, 5)[..., CLOCK]
        return self.interest.states(events, batch, [*self._user_parts(batch), clock])

    def _chance(self, sample: int) -> Tensor:
        """Probability of each film to be in a sample, (n,)."""
        share = self.interest.log_share[FIRST_IDX:].softmax(dim=0)
        return (sample * (share + 1 / len(share)) / 2).clamp(max=1.0)

    def _is_out(self, batch: Batch, items: Tensor) -> Tensor:
        """Which of `items` (m,) are no rivals of a target: itself and what it sees, (b, i, m)."""
        b, i = batch.target_item.shape
        m = len(items)
        column = torch.full((self.sizes.items + FIRST_IDX,), m, device=items.device)
        column[items] = torch.arange(m, device=items.device)
        out = torch.zeros(b, i, m + 1, dtype=torch.bool, device=items.device)
        seen = column[batch.event_item].masked_fill(batch.event_item == PAD, m)
        index = repeat(seen, "b j -> b i j", i=i).masked_fill(~batch.is_visible, m)
        out.scatter_(2, index, True)
        out.scatter_(2, column[batch.target_item][..., None], True)
        return out[..., :m]

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens of events (b, j, d) and targets (b, i, d), the targets' overview vectors."""
        items = torch.cat([batch.event_item, batch.target_item], dim=1)
        j = batch.event_item.shape[1]
        tokens, text = self._embed_items(items, F.pad(batch.is_cold, (j, 0)))
        events = self._event_tokens(tokens[:, :j], batch)
        targets = self._target_tokens(tokens[:, j:])
        return events, targets, None if text is None else text[:, j:]

    def _score(self, batch: Batch, events: Tensor, targets: Tensor, text: Tensor | None) -> tuple[
            Tensor, Tensor | None]:
        """Score in stars (b, i), and an ordinal model's spread around it in stars (b, i)."""
        parts = [self._read(events, targets, batch)]
        if text is not None:
            parts.append(text)
        parts += self._user_parts(batch) + self._dense_parts(batch.dense)
        correction, *spread = self.head(torch.cat(parts, dim=-1)).unbind(dim=-1)
        spread = 0.5 * spread[0].clamp(-3, 3).exp() if spread else None  # logistic, as base errors
        return batch.base + correction, spread

    def _embed_items(self, items: Tensor, is_cold: Tensor) -> tuple[Tensor, Tensor | None]:
        """Movie embeddings (b, s, d) and overview vectors for the MLP (b, s, text_dim)."""
        n = len(self.item_vocab)
        key = torch.where(is_cold, items + n, items)
        unique, back = key.unique(return_inverse=True)  # each movie is embedded once a batch
        ids = self._ids(unique % n).masked_fill(unique >= n, OOV)
        x, vector = self._embed(unique % n, ids)
        return x[back], None if vector is None else self.text_out(vector)[back]

    def _ids(self, items: Tensor) -> Tensor:
        """Row of the id table of each item; in training some are dropped."""
        ids = self.item_vocab[items]
        if self.training and self.config.item_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.config.item_dropout
            ids = ids.masked_fill(dropped & (ids != PAD), OOV)
        return ids

    def _embed(self, items: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Movie embeddings (n, d) and standardised overview vectors (n, t)."""
        x, vector = self.item_id(ids), None
        if self.genre is not None:
            x = x + self.genre(self.item_genres[items])
        if self.year is not None:
            x = x + self.year(self.item_year[items])
        if self.config.text:
            is_read = self.item_has_text[items]
            if self.config.cold:  # or train films would be told by their overviews, and remembered
                is_read = is_read & (ids != OOV)
            vector = torch.where(is_read[:, None], self.item_text[items], self.no_text)
            x = x + self.text(vector)
        return x, vector

    def _event_tokens(self, x: Tensor, batch: Batch) -> Tensor:
        """History tokens (b, j, d): the movie with the stars it was given."""
        if self.config.rating_input == "multiply":
            return self.norm_token(x * batch.event_rating[..., None])
        if self.rating is not None:
            row = (batch.event_rating - self.sizes.rating_zero) / self.sizes.rating_step
            x = x + self.rating(row.round().long().clamp(1, HALF_STARS - 1))
        if self.surprise is not None:
            x = x + self.surprise((batch.event_rating - batch.event_base)[..., None])
        return self.norm_token(x)

    def _target_tokens(self, x: Tensor) -> Tensor:
        """Target tokens (b, i, d): the movie with row 0 of the rating table, "not rated yet"."""
        return self.norm_token(x if self.rating is None else x + self.rating.weight[0])

    def _read(self, events: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """What the MLP reads of the tokens: (b, i, d); (b, 1, s * d) flat, (b, i, 2 * d) mean."""
        if self.config.readout == "mean":
            return self._mean(events, targets, batch)
        if not self.blocks:
            return targets
        null = repeat(self.null, "1 1 d -> b 1 d", b=events.shape[0])
        if self.config.shares_history:
            bias = F.pad(self.position.of_history(batch), (1, 0))  # the null token is visible
            return self.blocks[0](targets, bias, torch.cat([null, events], dim=1))
        tokens = torch.cat([null, events, targets], dim=1)  # (b, s, d)
        bias = self._window_bias(batch)
        for block in self.blocks:
            tokens = block(tokens, bias)
        return tokens[:, -1:] if self.config.readout == "target" else self._flatten(tokens, batch)

    def _mean(self, events: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Mean of the visible events' tokens beside the target's, (b, i, 2 * d)."""
        weight = batch.is_visible.to(events.dtype)
        total = einsum(weight, events, "b i j, b j d -> b i d")
        mean = total / weight.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.cat([mean, targets], dim=-1)

    def _window_bias(self, batch: Batch) -> Tensor:
        """Bias between all tokens [null, events, target] of rows with one target, (b, h, s, s)."""
        slot = torch.arange(batch.event_item.shape[1] + 1, device=batch.stop.device)
        rank = torch.cat([slot[:-1].expand_as(batch.event_item), batch.stop], dim=1).int()
        time = torch.cat([batch.event_time, batch.target_time], dim=1)
        gap = (time[:, :, None] - time[:, None, :]).abs()
        rank = (rank[:, :, None] - rank[:, None, :]).abs()
        is_real = torch.cat([slot[:-1] < batch.stop, batch.is_target], dim=1)
        bias = F.pad(self.position(gap, rank), (1, 0, 1, 0))
        return bias.masked_fill(~F.pad(is_real, (1, 0), value=True)[:, None, None], -torch.inf)

    def _flatten(self, tokens: Tensor, batch: Batch) -> Tensor:
        """All positions side by side, the newest event last, zeros where the history is shorter."""
        length = self.config.history_len
        slot = batch.stop - length + torch.arange(length, device=batch.stop.device)  # (b, l)
        index = repeat(slot.clamp(min=0) + 1, "b l -> b l d", d=tokens.shape[-1])
        events = tokens.gather(1, index.long()) * (slot >= 0)[..., None]
        return rearrange(torch.cat([events, tokens[:, -1:]], dim=1), "b s d -> b 1 (s d)")

    def _user_parts(self, batch: Batch) -> list[Tensor]:
        i = batch.target_item.shape[1]
        return [
            repeat(table(batch.user[:, column]), "b d -> b i d", i=i)
            for column, table in zip(self.user_columns, self.user, strict=True)
        ]

    def _dense_parts(self, dense: Tensor) -> list[Tensor]:
        """Dense features (b, i, f), scaled, bucketized or encoded piecewise linearly.

        Source: concat is Wide & Deep, Fig. 4 (arXiv 1606.07792); piecewise is Gorishniy et al.
        2022, "On Embeddings for Numerical Features" (arXiv 2203.05556), beside the scaled ones.
        """
        scaled = ((dense - self.dense_mean) / self.dense_scale).clamp(-5, 5)
        if self.config.dense == "concat":
            return [scaled]
        if self.config.dense == "piecewise":
            low, high = self.dense_edges[:, :-1], self.dense_edges[:, 1:]
            share = (dense[..., None] - low) / (high - low).clamp(min=1e-6)  # (b, i, f, n)
            return [scaled, rearrange(share.clamp(0, 1), "b i f n -> b i (f n)")]
        if self.config.dense == "bucket":
            bucket = (dense[..., None] >= self.dense_edges).sum(-1)  # (b, i, f)
            start = torch.arange(self.sizes.dense, device=dense.device) * self.config.buckets
            return [rearrange(self.dense(bucket + start), "b i f d -> b i (f d)")]
        return []

    def _readout_dim(self) -> int:
        c = self.config
        width = c.width * {"target": 1, "mean": 2, "flatten": c.history_len + 1}[c.readout]
        width += c.text_dim if c.text else 0
        width += c.feature_dim * len(self.user_columns)
        per_dense = {"concat": 1, "bucket": c.feature_dim, "piecewise": c.buckets - 1, "none": 0}
        per_dense = per_dense[c.dense]
        return width + per_dense * self.sizes.dense

    def to_json(self) -> dict:
        """What rebuilds the module, without its weights."""
        return {"config": asdict(self.config), "sizes": asdict(self.sizes)}

    @classmethod
    def from_json(cls, values: dict) -> "BST":
        """The module that `to_json` described, with fresh weights."""
        return cls(from_dict(ModelConfig, values["config"]), from_dict(Sizes, values["sizes"]))


def _earlier(batch: Batch) -> Batch:
    """Half of the targets asked at the time of a random target of their row that is not later.

    So the head learns what a person rates from now on, not only what comes next. Each alone is
    worse at one of HR@10 (the former) and NDCG@10 (the latter).
    """
    b, i = batch.target_item.shape
    own = torch.arange(i, device=batch.stop.device)
    back = (torch.rand(b, i, device=own.device) * (own + 1)).long()
    when = torch.where(torch.rand(b, i, device=own.device) < 0.5, back, own)
    asked = {name: getattr(batch, name).gather(1, when)
             for name in ("first", "stop", "target_time")}
    dense = batch.dense.gather(1, repeat(when, "b i -> b i f", f=batch.dense.shape[-1]))
    return replace(batch, dense=dense, **asked)


def _init(module: nn.Module) -> None:
    """Small normal embeddings; linear layers keep torch's default."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.05)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
