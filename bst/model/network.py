"""The network, whole: a Behavior Sequence Transformer whose layer knows the person.

Letters in comments and einops patterns: b rows, c chunks, n events of a chunk, t last chunks that
have targets, i targets of a chunk, m real targets, d width of an item's key, f features, k copies
of the regression heads. A mask is True at what is real.

Inside, stars are standardised by the mean and the spread of the train ratings, so no number here
depends on the scale.
"""

import itertools
import warnings
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from bst.config import ModelConfig
from bst.data.schema import FIRST_IDX, OOV
from bst.model.batches import Batch
from bst.model.facts import FACTS, event_gap, facts, target_gap
from bst.model.interest import InterestHead, NextItemLoss
from bst.model.layers import RegressionHeads, SoftmaxHeads

NOISE_FLOOR = 0.04  # least variance of a rating around its expectation
BIAS_VAR, NOISE_VAR = 0.16, 0.05  # prior variances of an item's own bias and log noise
RATING_VAR = 0.6  # usual variance of a rating around its expectation


@dataclass(frozen=True)
class Sizes:
    """Sizes that the data decide."""

    items: int  # of the catalogue
    known_items: int  # items with a train rating, each with its own row
    content: int  # content features of an item, see `build.ContentScale`
    text: int  # the last of these: principal components of the overview vector
    overview: int  # width of an overview vector
    audience: int  # components of who rated an item
    users: tuple[int, ...]  # embedding rows: user id, then each user feature
    levels: int = 5  # distinct ratings of the scale


@dataclass(frozen=True)
class Known:
    """Items embedded: those of a batch, or the whole catalogue, computed once for serving."""

    table: Tensor  # (n, d + 2) see `ItemEmbedding`
    token: Tensor | None = None  # (n, width) for the softmax heads; None: none, or not yet made


@dataclass(frozen=True)
class Past:
    """The encoded histories of a batch, for any targets. None: the network lacks that part."""

    prior: Tensor | None  # (b, d + 1) mean taste and bias, predicted from the user's features
    residual: Tensor  # (b, c, n) standardised stars less their baseline, 0 where padded
    heads: tuple[Tensor, ...] | None  # see `RegressionHeads.read`
    item_tokens: Tensor | None  # (n, width) for the softmax heads, of `Known`
    event_tokens: Tensor | None  # (b, c, n, width) for the softmax heads


class ItemEmbedding(nn.Module):
    """What is learned of an item: its key, its bias and its noise.

    Each is a linear function of content (genres, year, overview), one of the audience (who rated
    the item, whatever the stars), and an id part of its own with a Gaussian prior, whose standard
    deviation is the unit of its table. The latter two are 0 for an item that nobody has rated.

    In training the id part has noise of about its posterior variance, so items with few ratings get
    more. It keeps the network from trusting them as much as those with many.

    Source: Blundell et al. 2015, "Weight Uncertainty in Neural Networks"; here the variance is that
    of a Gaussian with known noise instead of a learned one.

    Args:
        sizes: what the data decide.
        key_var: (d,) prior variances.
        doubt: scale of that noise; 1: the posterior standard deviation.
    """

    def __init__(self, sizes: Sizes, key_var: Tensor, doubt: float) -> None:
        super().__init__()
        n = sizes.items + FIRST_IDX
        self.register_buffer("row", torch.full((n,), OOV))  # of the id table
        self.register_buffer("content", torch.zeros(n, sizes.content))
        self.register_buffer("audience", torch.zeros(n, sizes.audience))
        self.register_buffer("year", torch.zeros(n))  # standardised
        self.register_buffer("log_count", torch.zeros(n))  # of train ratings
        self.register_buffer("var", torch.cat([key_var, torch.tensor([BIAS_VAR, NOISE_VAR])]))
        self.doubt, width = doubt, len(self.var)
        self.id = nn.Embedding(sizes.known_items + FIRST_IDX, width)
        self.linear = nn.Linear(sizes.content, width, bias=False)
        with warnings.catch_warnings():  # of torch, where an audience has no component
            warnings.simplefilter("ignore", UserWarning)
            self.of_audience = nn.Linear(sizes.audience, width, bias=False)
        self.log_noise = nn.Linear(1, 1)  # by log count
        nn.init.normal_(self.id.weight, std=0.3)
        for zero in (self.id.weight[:, -2:], self.linear.weight, self.of_audience.weight,
                     self.log_noise.weight):
            nn.init.zeros_(zero)

    def forward(self, items: Tensor, *, cold: bool = False) -> Tensor:
        """Keys, and in the last two columns bias and noise variance, of items (n,): (n, d + 2).

        Args:
            items: indices.
            cold: as if nobody had rated them.
        """
        found, count = self.linear(self.content[items]), self.log_count[items]
        if cold:
            count = torch.zeros_like(count)
        else:
            row = self.row[items]
            own = self.id(row)
            if self.training and self.doubt:
                evidence = count.expm1()[:, None] * self.var / RATING_VAR
                own = own + self.doubt * torch.randn_like(own) / (1 + evidence).sqrt()
            found = found + own * self.var.sqrt() * (row >= FIRST_IDX)[:, None]
            found = found + self.of_audience(self.audience[items])
        log_noise = found[:, -1:] + self.log_noise(count[:, None] / 5 - 1)
        noise = NOISE_FLOOR + log_noise.clamp(-4, 2).exp()
        return torch.cat([found[:, :-1], noise], dim=1)

    def penalty(self, items: Tensor) -> Tensor:
        """Minus the log prior of each item's row, in nats, divided by its train ratings: (m,).

        Over an epoch each row's prior counts once. It pulls in the same steps as the ratings: Adam
        would follow a prior alone at full speed.
        """
        own = self.id(self.row[items]).square().sum(-1)
        return 0.5 * own / self.log_count[items].expm1().clamp(min=1.0)


def _columns(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (..., d), biases (...) and noise variances (...) of what `ItemEmbedding` gives."""
    return found[..., :-2], found[..., -2], found[..., -1]


def _baseline(key: Tensor, bias: Tensor, prior: Tensor | None, copies: int) -> Tensor:
    """Expected stars before the history is read, standardised: (b, c, n, 1 or copies)."""
    mean = bias[..., None]
    if prior is None:
        return mean
    taste, shift = prior[:, None, None].split([key.shape[-1], 1], dim=-1)
    return mean + shift + _by_copy(key * taste, copies)


def _by_copy(products: Tensor, copies: int) -> Tensor:
    """Sums (..., copies) of products (..., d) over the columns of each copy of the heads."""
    return reduce(products, "... (k d) -> ... k", "sum", k=copies)


class BST(nn.Module):
    """Predicts the stars of each target from the rated history before it.

    A new one is empty; `bst.model.build.build_model` fills the buffers.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        d = config.ensemble * sum(config.widths)
        self.register_buffer("levels", torch.linspace(1.0, 5.0, sizes.levels))  # of the scale
        self.register_buffer("center", torch.tensor(3.0))  # see `build.rating_scale`
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("fact_mean", torch.zeros(len(FACTS)))
        self.register_buffer("fact_scale", torch.ones(len(FACTS)))
        self.register_buffer("fact_edges", torch.zeros(len(FACTS), config.buckets - 1))
        self.register_buffer("text_mean", torch.zeros(sizes.overview))
        self.register_buffer("text_axes", torch.zeros(sizes.overview, sizes.text))
        key_var = torch.tensor(config.key_var).repeat_interleave(torch.tensor(config.widths))
        key_var = key_var.repeat(config.ensemble)
        self.items = ItemEmbedding(sizes, key_var, config.doubt)
        features = range(1, len(sizes.users)) if config.user_features else ()
        self.user_columns = [0] * config.user_id + [*features]
        self.users = nn.ModuleList(
            nn.Embedding(sizes.users[c], config.feature_dim) for c in self.user_columns)
        num_user = config.feature_dim * len(self.user_columns)
        self.prior = nn.Linear(num_user, d + 1) if num_user else None  # of the taste, and the bias
        self.regression = self.softmax = None
        per_fact = {"concat": 1, "bucket": config.feature_dim, "none": 0}[config.dense]
        columns = d + num_user + 1 + sizes.text + per_fact * len(FACTS)  # of the dense layers
        if config.attention in ("both", "regression"):
            self.regression = RegressionHeads(config.widths, config.drift, config.forgets)
            columns += 2 * d + config.ensemble * (len(config.widths) + 1)
        if config.attention in ("both", "softmax"):
            self.token = nn.Linear(d, config.width)
            self.rating = nn.Linear(2, config.width)
            self.norm_token = nn.LayerNorm(config.width)
            self.softmax = SoftmaxHeads(config.width, config.heads, config.history_len,
                                        config.dropout, config.readout)
            columns += self.softmax.width_out
        if config.dense == "bucket":
            self.bucket = nn.Embedding(len(FACTS) * config.buckets, config.feature_dim)
        widths, layers = [columns, *config.hidden], []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
        self.head = nn.Sequential(*layers[:-1], nn.Linear(widths[-1], 1))
        for table in self.users:
            nn.init.normal_(table.weight, std=0.05)
        for zero in filter(None, (self.prior, self.head[-1])):  # starts as the heads' mean
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        # Created last, so that the first weights of the rest do not depend on this option.
        self.interest = None
        if config.interest:
            self.interest = InterestHead(sizes.items, sizes.known_items,
                                         d + sizes.content + sizes.audience, config.dropout)
        first = torch.tensor(config.widths).cumsum(0) - torch.tensor(config.widths)
        with torch.no_grad():  # the first component of each head starts as a bias of the user
            for copy in self.items.linear.weight[:-2].chunk(config.ensemble):
                copy[first, 0] = torch.tensor([0.1] + [0.05] * (len(first) - 1))
            self.items.log_noise.bias.fill_(-0.6)

    def forward(self, batch: Batch, known: Known | None = None, past: Past | None = None) -> Tensor:
        """Expected stars of every target, (b, t, i); not clamped; 0 where padded.

        Args:
            batch: b rows.
            known: what `known` gave, to save work in requests.
            past: what `glance` found in the same histories, to save more.
        """
        return batch.in_place(self.read(batch, known, past)[0] * self.spread + self.center)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the real targets, in units of the spread of the train ratings.

        The squared error of the prediction, plus the Gaussian negative log-likelihood of the
        regression heads, plus the prior of what is learned per item.
        """
        score, means, variances = self.read(batch)
        label = (batch.real(batch.label) - self.center) / self.spread
        loss = (score - label).square()
        if variances is not None:
            misses = (label[:, None] - means).square()
            loss = loss + (misses / variances + variances.log()).mean(-1)
        prior = self.items.penalty(batch.real(batch.target_item))
        loss = loss + 2 * prior / self.config.ensemble
        return loss.mean()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Expected stars, clamped to the scale, (b, t, i); meaningless where padded."""
        return self.eval()(batch).clamp(self.levels[0], self.levels[-1])

    def known(self) -> Known:
        """All items embedded, row by index, for requests."""
        table = self.items(torch.arange(self.sizes.items + FIRST_IDX))
        return Known(table, None if self.softmax is None else self.token(table[:, :-2]))

    def glance(self, batch: Batch, known: Known) -> tuple[Past, Tensor]:
        """The encoded histories, and cheap scores of all items: (b, items + 2), standardised stars.

        The scores are those of the regression heads, which the dense layers may correct.

        Args:
            batch: of any one target a row.
            known: what `known` gave.
        """
        user, k = self._user(batch), self.config.ensemble
        past = self._past(batch, known, batch.event_item, user)
        key, bias, _ = _columns(known.table)
        blank = key.new_zeros(len(user), 1, 1, key.shape[1])
        taste = blank[:, 0, 0]
        if self.regression is not None:
            found, _ = self.regression(past.heads, blank, target_gap(batch), batch.stop)
            taste = found[:, -1, 0]  # the one target of each row, in its last chunk
        if past.prior is not None:
            taste, bias = taste + past.prior[:, :-1], bias + past.prior[:, -1:]
        return past, bias + taste @ key.T / k

    def _past(self, batch: Batch, known: Known, at_event: Tensor, user: Tensor) -> Past:
        """Encode the histories; `at_event` (b, c, n): rows of the known items."""
        prior = None if self.prior is None else self.prior(user)
        is_event, k = batch.is_event, self.config.ensemble
        key, bias, noise = _columns(F.embedding(at_event, known.table))
        rating = self._rating(batch)
        residuals = (rating[..., None] - _baseline(key, bias, prior, k)) * is_event[..., None]
        residual, heads, item_tokens, event_tokens = residuals.mean(-1), None, known.token, None
        if self.regression is not None:
            heads = self.regression.read(
                key * is_event[..., None], residuals.expand(*residuals.shape[:-1], k),
                torch.where(is_event, noise, 1.0), event_gap(batch))
        if self.softmax is not None:
            if item_tokens is None:
                item_tokens = self.token(known.table[:, :-2])
            event_tokens = self.norm_token(F.embedding(at_event, item_tokens) + self.rating(
                torch.stack([rating, residual], dim=-1)))
        return Past(prior, residual, heads, item_tokens, event_tokens)

    def read(self, batch: Batch, known: Known | None = None, past: Past | None = None
             ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predict the m real targets, in standardised stars; arguments as of `forward`.

        Returns:
            The prediction (m,): the mean over the copies of the regression heads, corrected by the
            dense layers. The mean (m, k) and the variance (m, k) of each copy; without regression
            heads the baseline, and None.
        """
        known, at_event, at_target, is_cold = self._items(batch, known)
        user, k = self._user(batch), self.config.ensemble
        past = self._past(batch, known, at_event, user) if past is None else past
        key, bias, noise = _columns(F.embedding(at_target, known.table))
        means, variances = batch.real(_baseline(key, bias, past.prior, k)), None
        real_key, of_heads = batch.real(key), []  # columns that the dense layers read
        if self.regression is not None:
            taste, variances = self.regression(past.heads, key, target_gap(batch), batch.stop)
            taste = batch.real(taste)
            means = means + _by_copy(taste * real_key, k)
            variances = batch.real(variances + noise[..., None])
            # Computed twice on purpose: one node would add up the gradients in another order.
            product = taste * real_key
            of_heads = [taste, product, self.regression.by_head(product), variances.log()]
        if self.softmax is not None:
            target = self.norm_token(F.embedding(at_target, past.item_tokens))
            of_heads.append(batch.real(self.softmax(past.event_tokens, target, batch)))
        user, mean = batch.real(rearrange(user, "b k -> b 1 1 k")), means.mean(-1)
        content = self.items.content[batch.real(batch.target_item)]
        dense = batch.real(self.facts(batch, past.residual.detach(), is_cold))
        columns = [real_key, user, mean[:, None], *of_heads,
                   content[:, self.sizes.content - self.sizes.text:], self._dense(dense)]
        return mean + self.head(torch.cat(columns, dim=-1))[:, 0], means, variances

    def _items(self, batch: Batch, known: Known | None
               ) -> tuple[Known, Tensor, Tensor, Tensor | None]:
        """Each item of the batch embedded once, if the catalogue is not `known`.

        In training some targets are shown as if nobody had rated their item, so that what reads
        genres, year and overview learns to stand alone.

        Returns:
            The items; the rows of events (b, c, n) and targets (b, t, i) among them; and which
            targets are shown so, None: none.
        """
        if known is not None:
            return known, batch.event_item, batch.target_item, None
        items = torch.cat([batch.event_item.flatten(), batch.target_item.flatten()])
        back = torch.arange(items.shape[0], device=items.device)
        if not torch.compiler.is_exporting():  # whose shapes may not depend on values
            items, back = items.unique(return_inverse=True)
        at_event, at_target = back.split([batch.event_item.numel(), batch.target_item.numel()])
        at_event, at_target = at_event.view_as(batch.event_item), at_target.view_as(batch.is_target)
        table = self.items(items)
        if not (self.training and self.config.item_dropout):
            return Known(table), at_event, at_target, None
        is_cold = torch.rand(at_target.shape, device=items.device) < self.config.item_dropout
        table = torch.cat([table, self.items(items, cold=True)])  # each item again, as unrated
        return Known(table), at_event, at_target + is_cold * items.shape[0], is_cold

    def films(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and shifts (n,) of items (n,), as the interest head scores them.

        It reads what an item is, who rated it and the key that the stars have learned, in units of
        its prior; nothing of it changes the key.
        """
        with torch.no_grad():
            key = self.items(items)[:, :-2] / self.items.var[:-2].sqrt()
        features = torch.cat([key, self.items.content[items], self.items.audience[items]], dim=1)
        return self.interest.films(items, self.items.row[items], features)

    def person(self, batch: Batch) -> Tensor:
        """What the interest head makes of the history before each real target, (m, d)."""
        items, back = batch.event_item.unique(return_inverse=True)
        vectors = F.embedding(back, self.films(items)[0])
        return batch.real(self.interest(batch, vectors, self._rating(batch)))

    def interest_scores(self, batch: Batch, films: tuple[Tensor, Tensor]) -> Tensor:
        """Scores (m, n) of n films, as `films` makes them, for the person before each real target.

        Their softmax over the films that the person has not rated yet is the share of each in what
        the person rates next. The batch's target films are not read.
        """
        return einsum(self.person(batch), films[0], "m d, n d -> m n") + films[1]

    def interest_loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the real targets' films, in nats; see `NextItemLoss`."""
        items, chance = self.interest.draw()
        vectors, shift = self.films(items)
        return NextItemLoss.apply(
            self.person(batch), *self.films(batch.real(batch.target_item)), vectors,
            shift - chance.log(), self.interest.rivals(items, batch))

    def facts(self, batch: Batch, residual: Tensor | None = None, is_cold: Tensor | None = None
              ) -> Tensor:
        """`facts.facts` of a batch; without a `residual`, of the standardised ratings.

        `is_cold` (b, t, i) marks targets that are shown as if nobody had rated their item.
        """
        count = self.items.log_count[batch.target_item]
        if is_cold is not None:
            count = count.masked_fill(is_cold, 0.0)
        residual = self._rating(batch) if residual is None else residual
        low, high = self.levels[0], self.levels[-1]
        height = (batch.event_rating - low) / (high - low).clamp(min=1e-6)
        return facts(batch, residual, height, count, self.items.year[batch.target_item])

    def _rating(self, batch: Batch) -> Tensor:
        """Standardised ratings of the events, (b, c, n), 0 where padded."""
        rating = (batch.event_rating - self.center) / self.spread
        return torch.where(batch.is_event, rating, 0.0)

    def _dense(self, values: Tensor) -> Tensor:
        """Dense features (m, f), scaled, or bucketized and embedded: (m, columns).

        Source: scaled and concatenated is Wide & Deep, Fig. 4 (arXiv 1606.07792).
        """
        if self.config.dense == "concat":
            return ((values - self.fact_mean) / self.fact_scale).clamp(-5, 5)
        if self.config.dense == "bucket":
            bucket = (values[..., None] >= self.fact_edges).sum(-1)  # (m, f)
            start = torch.arange(len(FACTS), device=values.device) * self.config.buckets
            return rearrange(self.bucket(bucket + start), "m f d -> m (f d)")
        return values[:, :0]

    def _user(self, batch: Batch) -> Tensor:
        """Embedded features of the user of each row, (b, columns)."""
        parts = [table(batch.user[:, column])
                 for column, table in zip(self.user_columns, self.users, strict=True)]
        return torch.cat(parts, dim=-1) if parts else self.center.new_zeros(len(batch.user), 0)
