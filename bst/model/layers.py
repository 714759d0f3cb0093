"""The one transformer layer: heads that solve a regression, beside heads that average (softmax).

b rows, c chunks, n events of a chunk, t last chunks that have targets, i targets of a chunk,
h heads, e = width of a softmax head, d width of the keys, which the regression heads share out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from bst.model.batches import Batch, at_slots

DRIFT = 5.0  # largest step of a clock: after it exp(-5) = 0.7 % of the correlation is left


class Chunks(NamedTuple):
    """Inputs of chunks; without the axis c of one. T is a clock, T_mid half of it at the end."""

    late: Tensor  # (b, c, n, d) keys times exp(T_mid - T): rows of the kernel, the later event
    decayed: Tensor  # (b, c, n, d) keys times exp(-T), multiplied with the state
    known: Tensor  # (b, c, n, d + 1) keys times exp(T - T_mid), the earlier event; the residual
    scale: Tensor  # (b, c, 1, d + 1) exp(-T_mid); and -1, so that what is known is subtracted
    decay: Tensor  # (b, c, d, d + 1) of the state, from the start of the chunk to its end
    noise: Tensor  # (b, c, n, n) variances on the diagonal
    is_lower: Tensor  # (b, c, n, n) the triangle with the diagonal; the other one may overflow


class ReadChunks(NamedTuple):
    """What `RegressionHeads.encode` returns for any targets; k * b rows."""

    state: Tensor  # (k b, c, d, d + 1) before each chunk: covariance less the prior one, and mean
    read: Tensor  # (k b, c, n, d + 1) W of each slot; and u
    clock: Tensor  # (k b, c, n + 1, h) before each slot and after the last, 0 at the start
    end: Tensor  # (k b, c, 1, h) the clock at the end


class Posterior(NamedTuple):
    """What `RegressionHeads.encode` returns for a request: the taste at its time; k * b rows."""

    mean: Tensor  # (k b, 1, 1, d)
    covariance: Tensor  # (k b, 1, d, d)


class RegressionHeads(nn.Module):
    """A person's taste, estimated from the rated history by Gaussian process regression.

    The residual of event j (stars less the baseline) is k_j . x_j + noise. The taste x drifts:
    cov(x_j, x_l) = exp(-|T_j - T_l|), where each head has a clock T that advances with every event
    and with time. The prediction of a target is the posterior of this Gaussian process, given all
    events that the target sees. It is exact for a history of any length.

    The history is read in chunks. What earlier chunks say of the taste is the state: its covariance
    less the prior one, and in one more column its mean. In a chunk, with L the Cholesky factor of
    the covariance of its events, W = L^-1 cov(events, taste) and u = L^-1 residual serve every
    target: a target with key q has mean q . (mean of the state + sum_s W_s u_s) over the slots s
    that it sees, and each of them lowers its variance by (q . W_s)^2. That is attention, with keys
    W and values u. The targets of a request see all events: the state after the last is enough.

    Numerics: the kernel between an event j and an earlier l is a product of k_j exp(T_mid - T_j)
    and k_l exp(T_l - T_mid), with T_mid the clock in the middle of the chunk. A clock advances by
    at most `DRIFT` = 5 per event, so by at most 32 * 5 / 2 = 80 from T_mid: exp stays in float32.
    The noise on the diagonal is at least `network.NOISE_FLOOR`, so L is well conditioned.

    Source: Rasmussen and Williams 2006, ch. 2; Hartikainen and Sarkka 2010, "Kalman filtering and
    smoothing solutions to temporal Gaussian process regression models", for the state.

    Several copies of the heads read the same history, each with keys of its own. Their predictions
    are averaged, which has less variance than wider heads.

    Args:
        widths: of each head; they add up to the d of a copy.
        drift: initial clock step of each head per event.
        forgets: initial clock step of each head per log hour between two events.
    """

    def __init__(self, widths: Sequence[int], drift: Sequence[float],
                 forgets: Sequence[float]) -> None:
        super().__init__()
        self.log_drift = nn.Parameter(torch.tensor(drift).log())
        self.log_forgets = nn.Parameter(torch.tensor(forgets).log())
        heads = torch.eye(len(widths)).repeat_interleave(torch.tensor(widths), dim=1)
        self.register_buffer("columns", heads, persistent=False)  # (h, d) 1: a column of the head

    def encode(self, events: Tensor, residual: Tensor, noise: Tensor, gap: Tensor,
               until: Tensor | None = None) -> ReadChunks | Posterior:
        """Encode the history once for all targets.

        Args:
            events: (b, c, n, k * d) keys of the k copies, 0 where padded.
            residual: (b, c, n, k) ratings less their baseline, 0 where padded.
            noise: (b, c, n) variances, 1 where padded.
            gap: (b, c, n) see `Batch.event_gap`.
            until: (b, 1, 1) `Batch.target_gap` of a request, see `Batch.is_request`; else None.
        """
        k = residual.shape[-1]
        events, residual = (rearrange(x, "b c n (k d) -> (k b) c n d", k=k)
                            for x in (events, residual))
        noise, gap = (repeat(x, "b c n -> (k b) c n", k=k) for x in (noise, gap))
        clock = self._step(gap).cumsum(dim=2)
        end = clock[:, :, -1:]
        since, middle = clock @ self.columns, (end / 2) @ self.columns
        rise, half = torch.exp(since - middle), torch.exp(-middle)
        decay, noise = half.square(), torch.diag_embed(noise)
        chunks = Chunks(
            late=events / rise, decayed=events * torch.exp(-since),
            known=torch.cat([events * rise, residual], dim=-1),
            scale=F.pad(half, (0, 1), value=-1.0), noise=noise,
            decay=decay.mT * F.pad(decay, (0, 1), value=1.0),
            is_lower=torch.ones_like(noise[0, 0], dtype=torch.bool).tril().expand_as(noise))
        found, state = self.scan(torch.zeros_like(chunks.decay[:, 0]), chunks)
        if until is not None:
            decay = torch.exp(-self._step(repeat(until, "b t i -> (k b) t i", k=k)) @ self.columns)
            moment, mean = state[:, None].split([decay.shape[-1], 1], dim=-1)
            prior = torch.eye(decay.shape[-1], device=decay.device)
            return Posterior(decay * mean.mT, prior + decay.mT * moment * decay)
        states, reads = (torch.stack(column, dim=1) for column in zip(*found, strict=True))
        return ReadChunks(states, reads, F.pad(clock, (0, 0, 1, 0)), end)

    def scan(self, state: Tensor, chunks: Chunks) -> tuple[list, Tensor]:
        """Of each chunk the state before it and `chunk`'s W and u; and the state after the last."""
        found = []
        for one in zip(*(x.unbind(1) for x in chunks), strict=True):
            read, after = self.chunk(state, Chunks(*one))
            found.append((state, read))
            state = after
        return found, state

    def forward(self, encoded: ReadChunks | Posterior, targets: Tensor, gap: Tensor, stop: Tensor
                ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the taste at the time of each target.

        Args:
            encoded: by `encode`.
            targets: (b, t, i, k * d) keys.
            gap: (b, t, 1 or i) see `Batch.target_gap`.
            stop: (b, t, 1 or i) a target sees the slots of its chunk before this one.

        Returns:
            The expected taste (b, t, 1 or i, k * d), whose product with the target's key is the
            expected residual of each copy, and the variance of that product (b, t, i, k).
        """
        k = len(encoded[0]) // len(targets)
        targets = rearrange(targets, "b t i (k d) -> (k b) t i d", k=k)
        if isinstance(encoded, Posterior):
            taste, variance = encoded.mean, ((targets @ encoded.covariance) * targets).sum(-1)
        else:
            gap, stop = (repeat(x, "b t i -> (k b) t i", k=k) for x in (gap, stop))
            taste, variance = self._among_slots(encoded, targets, gap, stop)
        return (rearrange(taste, "(k b) t i d -> b t i (k d)", k=k),
                rearrange(variance.clamp(min=0), "(k b) t i -> b t i k", k=k))

    def _step(self, gap: Tensor) -> Tensor:
        """How far each head's clock advances from one event to the next, (..., h)."""
        step = self.log_drift.exp() + self.log_forgets.exp() * gap[..., None]
        return torch.where(gap[..., None] < 0, 0.0, step.clamp(max=DRIFT))

    def _among_slots(self, encoded: ReadChunks, targets: Tensor, gap: Tensor, stop: Tensor
                     ) -> tuple[Tensor, Tensor]:
        """Taste (b, t, 1 or i, d) and variance (b, t, i) of targets that see a part of a chunk."""
        state, read, slots, end = (x[:, -stop.shape[1]:] for x in encoded)
        (moment, mean), (W, u) = (x.split([x.shape[-1] - 1, 1], dim=-1) for x in (state, read))
        clock = self._step(gap) + slots.gather(2, repeat(stop, "b t i -> b t i h", h=end.shape[-1]))
        is_seen = torch.arange(W.shape[2], device=stop.device) < stop[..., None]  # (b, t, i, n)
        decay, from_middle = (torch.exp(-x @ self.columns) for x in (clock, clock - end / 2))
        cross = torch.where(is_seen, (targets * from_middle) @ W.mT, 0.0)
        taste = decay * mean.mT + from_middle * (is_seen.to(W.dtype) @ (W * u))
        decayed = targets * decay
        return taste, (targets.square().sum(-1) + ((decayed @ moment) * decayed).sum(-1)
                       - cross.square().sum(-1))

    @staticmethod
    def chunk(state: Tensor, one: Chunks) -> tuple[Tensor, Tensor]:
        """W and u of one chunk, (b, n, d + 1), and the state after it, (b, d, d + 1)."""
        found = torch.addcmul(one.known, one.scale, one.decayed @ state)
        kernel = one.late @ found[..., :-1].mT  # of cov(event, taste); the last is unexplained
        kernel = torch.where(one.is_lower, kernel, kernel.mT) + one.noise
        read = torch.linalg.solve_triangular(torch.linalg.cholesky(kernel), found, upper=False)
        at_end = read * one.scale
        return read, torch.baddbmm(one.decay * state, at_end[..., :-1].mT, at_end, alpha=-1)


class SoftmaxHeads(nn.Module):
    """The paper's transformer layer: softmax attention and a LeakyReLU feed-forward, post-norm.

    With the readout `target`, keys and values of an event do not depend on the target, so all
    targets of a user share them. `flatten` is the paper's: each target's window is a sequence of
    its own, in which all tokens attend to each other, and their outputs are concatenated.

    Differs from the paper: time gap and rank are a bias of the attention logits instead of an
    embedding, so that the keys do not depend on the target; dropout comes after the feed-forward
    alone. By default the bias falls with log gap and log rank, by learned slopes of each head.

    Source: Chen et al. 2019, section 2.2 (arXiv 1905.06874).

    Args:
        width: of a token.
        heads: divides width.
        length: events that a target sees, the last ones.
        dropout: probability of zeroing.
        readout: target or flatten.
    """

    def __init__(self, width: int, heads: int, length: int, dropout: float, readout: str) -> None:
        super().__init__()
        self.heads, self.length, self.readout = heads, length, readout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.LeakyReLU(), nn.Linear(4 * width, width))
        self.norm_attn, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self._make_slopes()
        self.width_out = width * (length + 1 if readout == "flatten" else 1)

    def _make_slopes(self) -> None:
        """Create the parameters of `bias`; a subclass with another bias overrides both methods."""
        self.rank_slope = nn.Parameter(torch.linspace(0, 1, self.heads))  # head 0 sees all
        self.gap_slope = nn.Parameter(torch.zeros(self.heads))

    def forward(self, events: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """What each target reads, (b, t, i, width_out); meaningless where padded.

        Args:
            events: (b, c, n, d) tokens.
            targets: (b, t, i, d) tokens.
            batch: for what each target may see, and when it was.
        """
        if self.readout == "flatten":
            return self._windows(events, targets, batch)
        # The targets of a chunk share a window, its slots and `length` before: each masks what it
        # does not see, and attends to itself (`own`). That of a request: the last `length` slots.
        n, width = events.shape[2], targets.shape[-1]
        q, own_k, own_v = rearrange(self.qkv(targets), "b t i (three h e) -> three b t h i e",
                                    three=3, h=self.heads)
        q = q * (width // self.heads) ** -0.5
        kv = F.linear(events, self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = rearrange(self._near(kv, batch), "b t j (two h e) -> two b t h j e", two=2,
                         h=self.heads)
        time = self._near(batch.event_time[..., None], batch)[..., 0]
        place = torch.arange(n - time.shape[-1], n, device=q.device)  # from the chunk's first slot
        rank = batch.stop[..., None] - place  # (b, t, i, j): 1 is the event just before
        is_seen = (rank >= 1) & (rank <= batch.seen.clamp(max=self.length)[..., None])
        gap = batch.target_time[..., None] - time[:, :, None]
        bias = self.bias(gap, rank.clamp(min=0)).masked_fill(~is_seen[:, :, None], -torch.inf)
        own = einsum(q, own_k, "b t h i e, b t h i e -> b t h i")[..., None]
        weight = torch.cat([own, q @ k.mT + bias], dim=-1).softmax(dim=-1)
        attended = weight[..., :1] * own_v + weight[..., 1:] @ v
        return self._rest(targets, rearrange(attended, "b t h i e -> b t i (h e)"))

    def bias(self, gap: Tensor, rank: Tensor) -> Tensor:
        """Logits (..., h, i, j) of gaps in seconds and ranks, each (..., i, j) and >= 0."""
        far = rearrange(torch.log1p(gap.float().clamp(min=0) / 60), "... i j -> ... 1 i j")
        back = rearrange(torch.log1p(rank.float()), "... i j -> ... 1 i j")
        gap_slope, rank_slope = (x[:, None, None] for x in (self.gap_slope, self.rank_slope))
        return -(gap_slope * far + rank_slope * back)

    def _near(self, x: Tensor, batch: Batch) -> Tensor:
        """The window of each of the last t chunks, (b, t, j, d), of slots (b, c, n, d)."""
        t, n = batch.stop.shape[1], x.shape[2]
        x = F.pad(x.flatten(1, 2), (0, 0, self.length, 0))
        if batch.is_request:
            return x[:, None, -self.length:]
        x = x[:, -t * n - self.length:].unfold(1, self.length + n, n)
        return rearrange(x, "b t d j -> b t j d")

    def _windows(self, events: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """`forward` with the readout `flatten`."""
        slot, at, seen = (x.expand(targets.shape[:3])[..., None] for x in (
            batch.slot, batch.target_time, batch.seen))
        back = torch.arange(self.length, 0, -1, device=events.device)
        tokens = torch.cat([at_slots(events, slot - back), targets[..., None, :]], dim=3)
        time = torch.cat([at_slots(batch.event_time, slot - back), at], dim=3)  # (b, t, i, s)
        is_seen = F.pad(back <= seen, (0, 1), value=True)
        rank = torch.arange(self.length + 1, device=events.device)
        bias = self.bias((time[..., None] - time[..., None, :]).abs(),
                         (rank[:, None] - rank).abs())
        q, k, v = rearrange(self.qkv(tokens), "b t i s (three h e) -> three b t i h s e", three=3,
                            h=self.heads)
        logits = q @ k.mT * (tokens.shape[-1] // self.heads) ** -0.5 + bias
        weight = logits.masked_fill(~is_seen[..., None, None, :], -torch.inf).softmax(dim=-1)
        out = self._rest(tokens, rearrange(weight @ v, "b t i h s e -> b t i s (h e)"))
        return rearrange(out * is_seen[..., None], "b t i s d -> b t i (s d)")

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer after the attention: residual, norm, feed-forward, residual, norm."""
        x = self.norm_attn(x + self.out(attended))
        return self.norm_ffn(x + self.dropout(self.ffn(x)))
