"""The one transformer layer: heads that solve a regression, beside heads that average (softmax).

b rows, c chunks, n events of a chunk, t last chunks that have targets, i targets of a chunk,
h heads, e = width of a softmax head, d width of the keys, which the regression heads share out.
"""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from bst.model.batches import Batch, at_slots

DRIFT = 5.0  # largest step of a clock: after it exp(-5) = 0.7 % of the correlation is left


class RegressionHeads(nn.Module):
    """A person's taste, estimated from the rated history by Gaussian process regression.

    The residual of event j (stars less the baseline) is k_j . x_j + noise. The taste x drifts:
    cov(x_j, x_l) = exp(-|T_j - T_l|), where each head has a clock T that advances with every event
    and with time. The prediction of a target is the posterior of this Gaussian process, given all
    events that the target sees. It is exact for a history of any length.

    The history is read in chunks. What earlier chunks say of the taste is the state: the mean of
    the taste, and its covariance less the prior one. In a chunk, with L the Cholesky factor of the
    covariance of its events, W = L^-1 cov(events, taste) and u = L^-1 residual serve every target:
    a target with key q has mean q . (state + sum_s W_s u_s) over the slots s that it sees, and each
    of them lowers its variance by (q . W_s)^2. That is attention, with keys W and values u.

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
        self.widths = list(widths)
        self.log_drift = nn.Parameter(torch.tensor(drift).log())
        self.log_forgets = nn.Parameter(torch.tensor(forgets).log())
        self.register_buffer("head_of_column", torch.repeat_interleave(
            torch.arange(len(self.widths)), torch.tensor(self.widths)), persistent=False)

    def encode(self, events: Tensor, residual: Tensor, noise: Tensor, gap: Tensor
             ) -> tuple[Tensor, ...]:
        """Encode the history once for all targets; returns the `encoded` of `forward`.

        Args:
            events: (b, c, n, k * d) keys of the k copies, 0 where padded.
            residual: (b, c, n, k) ratings less their baseline, 0 where padded.
            noise: (b, c, n) variances, 1 where padded.
            gap: (b, c, n) see `dense.event_gap`.

        Returns:
            Tensors of k * b rows: the clock of each chunk, 0 at its start, before each slot and
            after the last (.., c, n + 1, h), and at its end (.., c, 1, h); the state before each
            chunk, mean (.., c, 1, d) and moment (.., c, d, d); W (.., c, n, d); u (.., c, n, 1).
        """
        k = residual.shape[-1]
        events = rearrange(events, "b c n (k d) -> (k b) c n d", k=k)
        residual = rearrange(residual, "b c n k -> (k b) c n")
        noise, gap = (repeat(x, "b c n -> (k b) c n", k=k) for x in (noise, gap))
        clock = self._step(gap).cumsum(dim=2)
        end = clock[:, :, -1:]
        slots = F.pad(clock, (0, 0, 1, 0))
        half = self._decay(end / 2)
        rise = self._decay(end / 2 - clock)  # exp(T - T_mid)
        return slots, end, *self._chunks(events / rise, events * rise, events * self._decay(clock),
                                         half, residual, noise)

    def forward(self, encoded: tuple[Tensor, ...], targets: Tensor, gap: Tensor, stop: Tensor
                ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the taste at the time of each target.

        Args:
            encoded: what `encode` returned.
            targets: (b, t, i, k * d) keys.
            gap: (b, t, 1 or i) see `dense.target_gap`.
            stop: (b, t, 1 or i) a target sees the slots of its chunk before this one.

        Returns:
            The expected taste (b, t, 1 or i, k * d), whose product with the target's key is the
            expected residual of each copy, and the variance of that product (b, t, i, k).
        """
        k = encoded[0].shape[0] // len(targets)
        targets = rearrange(targets, "b t i (k d) -> (k b) t i d", k=k)
        gap, stop = (repeat(x, "b t i -> (k b) t i", k=k) for x in (gap, stop))
        slots, end, mean, moment, W, u = (x[:, -stop.shape[1]:] for x in encoded)
        index = repeat(stop, "b t i -> b t i h", h=end.shape[-1])
        clock = slots.gather(2, index) + self._step(gap)  # of each target
        is_seen = torch.arange(W.shape[2], device=stop.device) < stop[..., None]  # (b, t, i, n)
        from_middle, decay = self._decay(clock - end / 2), self._decay(clock)
        cross = torch.where(is_seen, (targets * from_middle) @ W.mT, 0.0)
        taste = decay * mean + from_middle * (is_seen.to(W.dtype) @ (W * u))
        decayed = targets * decay
        variance = (targets.square().sum(-1) + ((decayed @ moment) * decayed).sum(-1)
                    - cross.square().sum(-1)).clamp(min=0)
        return (rearrange(taste, "(k b) t i d -> b t i (k d)", k=k),
                rearrange(variance, "(k b) t i -> b t i k", k=k))

    def by_head(self, products: Tensor) -> Tensor:
        """Sums (..., k * h) of products (..., k * d) over the columns of each head of each copy."""
        widths = self.widths * (products.shape[-1] // sum(self.widths))
        return torch.stack([part.sum(-1) for part in products.split(widths, dim=-1)], dim=-1)

    def _step(self, gap: Tensor) -> Tensor:
        """How far each head's clock advances from one event to the next, (..., h)."""
        step = self.log_drift.exp() + self.log_forgets.exp() * gap[..., None]
        return torch.where(gap[..., None] < 0, 0.0, step.clamp(max=DRIFT))

    def _decay(self, clock: Tensor) -> Tensor:
        """exp(-clock) (..., h) for each column of the keys, (..., d)."""
        return torch.exp(-clock)[..., self.head_of_column]

    def _chunks(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The state before each chunk, (b, c, 1, d) and (b, c, d, d), and W and u of each chunk.

        The inputs are those of `_chunk`, with an axis c after the first.
        """
        b, d = len(inputs[0]), inputs[0].shape[-1]
        state = inputs[0].new_zeros(b, 1, d), inputs[0].new_zeros(b, d, d)
        if torch.compiler.is_exporting():  # whose loops may not depend on sizes
            return self._loop(state, inputs)
        found = []
        for chunk in zip(*(x.unbind(1) for x in inputs), strict=True):
            W, u, *after = self._chunk(*state, *chunk)
            found.append((*state, W, u))
            state = after
        return tuple(torch.stack(column, dim=1) for column in zip(*found, strict=True))

    def _loop(self, start: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`_chunks` for the last chunk alone, in a loop that `torch.export` can keep."""
        size = torch.ones_like(inputs[4][0, :, 0]).sum().long()  # chunks

        def goes_on(k: Tensor, *_: Tensor) -> Tensor:
            return k < size - 1

        def body(k: Tensor, mean: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            here = (x.index_select(1, k[None])[:, 0] for x in inputs)
            return k + 1, *self._chunk(mean, moment, *here)[2:]

        _, mean, moment = torch.while_loop(goes_on, body, (torch.tensor(0), *start))
        W, u, *_ = self._chunk(mean, moment, *(x[:, -1] for x in inputs))
        return mean[:, None], moment[:, None], W[:, None], u[:, None]

    @staticmethod
    def _chunk(mean: Tensor, moment: Tensor, late: Tensor, early: Tensor, decayed: Tensor,
               half: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """W (b, n, d) and u (b, n, 1) of one chunk, and the state after it.

        Args:
            mean: (b, 1, d) of the state before it.
            moment: (b, d, d) of that state: covariance less the prior one.
            late: (b, n, d) keys times exp(T_mid - T): rows of the kernel, the later event.
            early: (b, n, d) keys times exp(T - T_mid): its columns, the earlier event.
            decayed: (b, n, d) keys times exp(-T), multiplied with the state.
            half: (b, 1, d) exp(-T_mid), with T_mid half the clock at the end of the chunk.
            residual: (b, n).
            noise: (b, n).
        """
        cov = early + half * (decayed @ moment)  # cov(event, taste at T_mid)
        kernel = (late @ cov.mT).tril()  # the upper triangle may overflow
        kernel = kernel + kernel.tril(-1).mT + torch.diag_embed(noise)
        factor = torch.linalg.cholesky(kernel)
        unexplained = residual[..., None] - decayed @ mean.mT  # by the state
        W, u = torch.linalg.solve_triangular(
            factor, torch.cat([cov, unexplained], dim=-1), upper=False
        ).split([cov.shape[-1], 1], dim=-1)
        at_end, decay = W * half, half.square()  # from mid-chunk, and from its start, to its end
        mean = decay * mean + u.mT @ at_end
        moment = decay.mT * moment * decay - at_end.mT @ at_end
        return W, u, mean, moment


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
        # The targets of a chunk read one window: its slots and `reach` slots before them. Each
        # target masks what it does not see, and attends to itself too (`own`).
        (t, n), reach = (targets.shape[1], events.shape[2]), self.length
        q, own_k, own_v = rearrange(self.qkv(targets), "b t i (three h e) -> three b t h i e",
                                    three=3, h=self.heads)
        width = targets.shape[-1]
        kv = F.linear(events, self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = rearrange(self._near(kv, t), "b t j (two h e) -> two b t h j e", two=2, h=self.heads)
        time = self._near(batch.event_time[..., None], t)[..., 0]
        place = torch.arange(-reach, n, device=q.device)  # from the first slot of the chunk
        rank = batch.stop[..., None] - place  # (b, t, i, j): 1 is the event just before
        is_seen = (rank >= 1) & (rank <= batch.seen.clamp(max=reach)[..., None])
        scale = (width // self.heads) ** -0.5
        gap = batch.target_time[..., None] - time[:, :, None]
        logits = q @ k.mT * scale + self.bias(gap, rank.clamp(min=0))
        logits = logits.masked_fill(~is_seen[:, :, None], -torch.inf)
        own = einsum(q, own_k, "b t h i e, b t h i e -> b t h i")[..., None] * scale
        weight = torch.cat([own, logits], dim=-1).softmax(dim=-1)
        attended = weight[..., :1] * own_v + weight[..., 1:] @ v
        return self._rest(targets, rearrange(attended, "b t h i e -> b t i (h e)"))

    def bias(self, gap: Tensor, rank: Tensor) -> Tensor:
        """Logits (..., h, i, j) of gaps in seconds and ranks, each (..., i, j) and >= 0."""
        far = rearrange(torch.log1p(gap.float().clamp(min=0) / 60), "... i j -> ... 1 i j")
        back = rearrange(torch.log1p(rank.float()), "... i j -> ... 1 i j")
        gap_slope, rank_slope = (x[:, None, None] for x in (self.gap_slope, self.rank_slope))
        return -(gap_slope * far + rank_slope * back)

    def _near(self, x: Tensor, t: int) -> Tensor:
        """The window of each of the last t chunks, (b, t, length + n, d), of slots (b, c, n, d)."""
        n = x.shape[2]
        x = F.pad(x.flatten(1, 2), (0, 0, self.length, 0))[:, -t * n - self.length:]
        return rearrange(x.unfold(1, self.length + n, n), "b t d j -> b t j d")

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
