"""The whole network: a Behavior Sequence Transformer that reads a person's rated history.

Letters in comments and einops patterns: b rows, c chunks, n events of a chunk, t last chunks that
have targets, i targets of a chunk, m real targets, d width of an item's key, f features, k copies
of the regression heads. A mask is True at what is real. Regression and softmax heads are parts of
the one layer; `Network.head` is the MLP (dense layers) behind it.

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
from bst.model.dense import DENSE_FEATURES, dense_features
from bst.model.interest import NextItemHead, NextItemLoss
from bst.model.layers import Posterior, ReadChunks, RegressionHeads, SoftmaxHeads

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
    audience: int  # components of an item's audience, see `build.audience_components`
    users: tuple[int, ...]  # embedding rows: user id, then each user feature
    levels: int  # distinct ratings of the scale


@dataclass(frozen=True)
class EmbeddedItems:
    """The items of a batch, or the whole catalogue, computed once for serving."""

    table: Tensor  # (n, d + 2) see `ItemEmbedding`
    share: Tensor  # (n, hidden) of the first dense layer, with its bias: what the item alone adds
    event: Tensor | None  # (n, width) token of a rated item for the softmax heads; None: no heads
    target: Tensor | None  # (n, width) token of a target


@dataclass(frozen=True)
class EncodedHistory:
    """The histories of a batch, encoded once for any targets. None: the network lacks that part."""

    user: Tensor  # (b, columns) embedded features of the user
    prior: Tensor | None  # (b, d + 1) mean taste and bias, predicted from the user's features
    residual: Tensor  # (b, c, n) standardised stars less their baseline, 0 where padded
    regression: ReadChunks | Posterior | None  # see `RegressionHeads.encode`
    event_tokens: Tensor | None  # (b, c, n, width) for the softmax heads


class ItemEmbedding(nn.Module):
    """What is learned of an item: its key, its bias and its noise.

    Each is the sum of a linear function of the content (genres, year, item features, overview), a
    linear function of the audience (who rated the item, whatever the stars), and an id part of its
    own. The id part has a Gaussian prior, whose standard deviation is the unit of the id table. An
    item that nobody has rated has its content alone.

    In training the id part gets noise of about its posterior variance: the fewer ratings, the more
    noise. So the network does not trust items with few ratings as much as those with many.

    Source: Blundell et al. 2015, "Weight Uncertainty in Neural Networks"; here the variance is not
    learned, but that of a Gaussian with a fixed noise.

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
        """Minus the log prior of each item's id row, in nats, divided by its train ratings: (m,).

        So each row's prior counts once per epoch, in the same steps as the item's ratings: Adam
        would follow a prior that came alone at full speed.
        """
        own = self.id(self.row[items]).square().sum(-1)
        return 0.5 * own / self.log_count[items].expm1().clamp(min=1.0)


class NamedLinear(nn.Linear):
    """A linear layer whose input columns have names, so that parts of them can be multiplied apart.

    What depends on the item alone is multiplied once an item, and so on.
    """

    def __init__(self, widths: dict[str, int], size: int) -> None:
        super().__init__(sum(widths.values()), size)
        self.widths = widths

    def forward(self, **columns: Tensor) -> Tensor:
        """Products (..., size) of some columns, (..., width) each, without the bias."""
        weights = self.weight.split(list(self.widths.values()), dim=1)
        weight = dict(zip(self.widths, weights, strict=True))
        return F.linear(torch.cat(list(columns.values()), dim=-1),
                        torch.cat([weight[name] for name in columns], dim=1))


def _columns(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (..., d), biases (...) and noise variances (...) of rows of `ItemEmbedding`."""
    return found[..., :-2], found[..., -2], found[..., -1]


def _baseline(key: Tensor, bias: Tensor, prior: Tensor | None, copies: int) -> Tensor:
    """Expected stars before the history is read, standardised: (b, c, n, 1 or copies)."""
    mean = bias[..., None]
    if prior is None:
        return mean
    taste, shift = prior[:, None, None].split([key.shape[-1], 1], dim=-1)
    return mean + shift + reduce(key * taste, "... (k d) -> ... k", "sum", k=copies)


class Network(nn.Module):
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
        # "fact" was the word for a dense feature; saved runs have these names.
        self.register_buffer("fact_mean", torch.zeros(len(DENSE_FEATURES)))
        self.register_buffer("fact_scale", torch.ones(len(DENSE_FEATURES)))
        self.register_buffer("fact_edges", torch.zeros(len(DENSE_FEATURES), config.buckets - 1))
        self.register_buffer("text_mean", torch.zeros(sizes.overview))
        self.register_buffer("text_axes", torch.zeros(sizes.overview, sizes.text))
        key_var = torch.tensor(config.key_var).repeat_interleave(torch.tensor(config.widths))
        key_var = key_var.repeat(config.ensemble)
        self.items = ItemEmbedding(sizes, key_var, config.doubt)
        features = range(1, len(sizes.users)) if config.user_features else ()
        self.user_columns = [*([0] if config.user_id else []), *features]
        self.users = nn.ModuleList(
            nn.Embedding(sizes.users[c], config.feature_dim) for c in self.user_columns)
        num_user = config.feature_dim * len(self.user_columns)
        self.prior = nn.Linear(num_user, d + 1) if num_user else None  # of the taste, and the bias
        self.regression = self.softmax = None
        columns = {"key": d, "user": num_user, "mean": 1}  # of the MLP
        if config.attention in ("both", "regression"):
            self.regression = RegressionHeads(config.widths, config.drift, config.forgets)
            columns |= {"taste": d, "product": d, "by_head": config.ensemble * len(config.widths),
                        "log_variance": config.ensemble}
        if config.attention in ("both", "softmax"):
            self.token = nn.Linear(d, config.width)
            self.rating = nn.Linear(2, config.width)
            self.norm_token = nn.LayerNorm(config.width)
            self.softmax = SoftmaxHeads(config.width, config.heads, config.history_len,
                                        config.dropout, config.readout)
            columns["read"] = self.softmax.width_out
        if config.dense == "bucket":
            self.bucket = nn.Embedding(len(DENSE_FEATURES) * config.buckets, config.feature_dim)
        per_feature = {"concat": 1, "bucket": config.feature_dim, "none": 0}[config.dense]
        columns |= {"text": sizes.text, "dense": per_feature * len(DENSE_FEATURES)}
        layers = [NamedLinear(columns, config.hidden[0])]
        for before, after in itertools.pairwise(config.hidden):
            layers += [nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(before, after)]
        self.head = nn.Sequential(*layers, nn.ReLU(), nn.Linear(config.hidden[-1], 1))
        for table in self.users:
            nn.init.normal_(table.weight, std=0.05)
        for zero in filter(None, (self.prior, self.head[-1])):  # starts as the heads' mean
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        # Created last, so that the first weights of the rest do not depend on this option.
        self.interest = None  # the next-item head
        if config.interest:
            self.interest = NextItemHead(sizes.items, sizes.known_items,
                                         d + sizes.content + sizes.audience, config.dropout)
        self._init_user_bias()
        nn.init.constant_(self.items.log_noise.bias, -0.6)

    @torch.no_grad()
    def _init_user_bias(self) -> None:
        """Make the first component of each head's keys a constant, so its taste is a user bias.

        The first content feature of every item is 1, so its weight is that constant.
        """
        widths = torch.tensor(self.config.widths)
        first = widths.cumsum(0) - widths  # column of each head's first component
        for keys in self.items.linear.weight[:-2].chunk(self.config.ensemble):
            keys[first, 0] = 0.05
            keys[0, 0] = 0.1  # the first head forgets least

    def forward(self, batch: Batch, embedded: EmbeddedItems | None = None,
                history: EncodedHistory | None = None) -> Tensor:
        """Expected stars of every target, (b, t, i); not clamped; 0 where padded.

        Args:
            batch: b rows.
            embedded: what `embed_items` returned, to save work in requests.
            history: what `glance` returned for the same histories, to save more.
        """
        return batch.in_place(self.read(batch, embedded, history)[0] * self.spread + self.center)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the real targets, in units of the spread of the train ratings.

        The squared error of the prediction, plus the Gaussian negative log-likelihood of the
        regression heads, plus the prior of the id part of each item.
        """
        score, means, variances = self.read(batch)
        label = (batch.real(batch.label) - self.center) / self.spread
        loss = (score - label).square()
        if variances is not None:
            misses = (label[:, None] - means).square()
            loss = loss + (misses / variances + variances.log()).mean(-1)
        prior = self.items.penalty(batch.real(batch.target_item))
        loss = loss + 2 * prior / self.config.ensemble  # twice, a copy: as the terms above
        return loss.mean()

    def embed_items(self) -> EmbeddedItems:
        """Embed the whole catalogue, row by item index, for requests."""
        items = torch.arange(self.sizes.items + FIRST_IDX)
        return self._embedded(self.items(items), items)

    def _embedded(self, table: Tensor, items: Tensor) -> EmbeddedItems:
        """Tokens and share of items (n,), given their rows of the item embedding."""
        key, first, event, target = table[:, :-2], self.head[0], None, None
        text = self.items.content[items, self.sizes.content - self.sizes.text:]
        if self.softmax is not None:
            event = self.token(key)
            target = self.norm_token(event)
        return EmbeddedItems(table, first(key=key, text=text) + first.bias, event, target)

    def glance(self, batch: Batch, embedded: EmbeddedItems) -> tuple[EncodedHistory, Tensor]:
        """The histories of a request, and cheap scores of all items: (b, items + 2), standardised.

        The scores are those of the regression heads, without the correction by the MLP.

        Args:
            batch: a request, about any items.
            embedded: what `embed_items` returned.
        """
        history = self._encode(batch, embedded, batch.event_item)
        key, bias, _ = _columns(embedded.table)
        taste, k = key.new_zeros(len(batch.user), key.shape[1]), self.config.ensemble
        if self.regression is not None:
            taste = rearrange(history.regression.mean, "(k b) 1 1 d -> b (k d)", k=k)
        if history.prior is not None:
            taste, bias = taste + history.prior[:, :-1], bias + history.prior[:, -1:]
        return history, bias + taste @ key.T / k

    def _encode(self, batch: Batch, embedded: EmbeddedItems, at_event: Tensor) -> EncodedHistory:
        """Encode the histories; `at_event` (b, c, n): rows of the embedded items."""
        user = self._user(batch)
        prior = None if self.prior is None else self.prior(user)
        is_event, k = batch.is_event, self.config.ensemble
        key, bias, noise = _columns(F.embedding(at_event, embedded.table))
        rating = self._rating(batch)
        residuals = (rating[..., None] - _baseline(key, bias, prior, k)) * is_event[..., None]
        residual, regression, event_tokens = residuals.mean(-1), None, None
        if self.regression is not None:
            regression = self.regression.encode(
                key * is_event[..., None], residuals.expand(*residuals.shape[:-1], k),
                torch.where(is_event, noise, 1.0), batch.event_gap,
                batch.target_gap if batch.is_request else None)
        if self.softmax is not None:
            stars = torch.stack([rating, residual], dim=-1)
            event_tokens = self.norm_token(
                F.embedding(at_event, embedded.event) + self.rating(stars))
        return EncodedHistory(user, prior, residual, regression, event_tokens)

    def read(self, batch: Batch, embedded: EmbeddedItems | None = None,
             history: EncodedHistory | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predict the m real targets, in standardised stars; arguments as of `forward`.

        Returns:
            The prediction (m,), of a request (b, t, i): the mean over the copies of the regression
            heads, corrected by the MLP. The mean and the variance of each copy, with one more axis
            k; without regression heads the baseline, and None.
        """
        embedded, at_event, at_target, is_cold = self._items(batch, embedded)
        history = self._encode(batch, embedded, at_event) if history is None else history
        key, bias, noise = _columns(F.embedding(at_target, embedded.table))
        k, first, variances = self.config.ensemble, self.head[0], None
        means = batch.real(_baseline(key, bias, history.prior, k))
        of_row, of_target = first(user=rearrange(history.user, "b k -> b 1 1 k")), {}
        if self.regression is not None:
            taste, variances = self.regression(
                history.regression, key, batch.target_gap, batch.stop)
            product = batch.real(taste) * batch.real(key)
            by_head = rearrange(product, "... (k d) -> ... k d", k=k) @ self.regression.columns.T
            means, of_row = means + by_head.sum(-1), of_row + first(taste=taste)
            variances = batch.real(variances + noise[..., None])
            of_target = {"product": product, "by_head": rearrange(by_head, "... k h -> ... (k h)"),
                         "log_variance": variances.log()}
        if self.softmax is not None:
            target = F.embedding(at_target, embedded.target)
            of_target["read"] = batch.real(self.softmax(history.event_tokens, target, batch))
        mean = means.mean(-1)
        dense = batch.real(self.dense_features(batch, history.residual.detach(), is_cold))
        of_item = F.embedding(batch.real(at_target), embedded.share)
        hidden = of_item + batch.real(of_row) + first(
            mean=mean[..., None], dense=self._scale_dense(dense), **of_target)
        return mean + self.head[1:](hidden)[..., 0], means, variances

    def _items(self, batch: Batch, embedded: EmbeddedItems | None
               ) -> tuple[EmbeddedItems, Tensor, Tensor, Tensor | None]:
        """Embed each item of the batch once, unless the whole catalogue is `embedded` already.

        In training some targets are shown as if nobody had rated their item, so that the weights
        of the content learn to predict without the rest. Such a target reads a second embedding of
        its item.

        Returns:
            The items; the rows of events (b, c, n) and targets (b, t, i) among them; and which
            targets are shown so, None: none.
        """
        if embedded is not None:
            return embedded, batch.event_item, batch.target_item, None
        items = torch.cat([batch.event_item.flatten(), batch.target_item.flatten()])
        back = torch.arange(items.shape[0], device=items.device)
        if not torch.compiler.is_exporting():  # whose shapes may not depend on values
            items, back = items.unique(return_inverse=True)
        at_event, at_target = back.split([batch.event_item.numel(), batch.target_item.numel()])
        at_event, at_target = at_event.view_as(batch.event_item), at_target.view_as(batch.is_target)
        table = self.items(items)
        if not (self.training and self.config.item_dropout):
            return self._embedded(table, items), at_event, at_target, None
        is_cold = torch.rand(at_target.shape, device=items.device) < self.config.item_dropout
        table = torch.cat([table, self.items(items, cold=True)])  # each item again, as unrated
        at_target = torch.where(is_cold, at_target + len(items), at_target)
        return self._embedded(table, items.tile(2)), at_event, at_target, is_cold

    def next_item_vectors(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, d) and shifts (n,) by which the next-item head scores items (n,).

        The head reads an item's content, its audience and its key, in units of the key's prior. Its
        loss does not change the key.
        """
        with torch.no_grad():
            key = self.items(items)[:, :-2] / self.items.var[:-2].sqrt()
        features = torch.cat([key, self.items.content[items], self.items.audience[items]], dim=1)
        return self.interest.item_vectors(items, self.items.row[items], features)

    def next_item_state(self, batch: Batch) -> Tensor:
        """State of the next-item head after the history before each real target, (m, d)."""
        items, back = batch.event_item.unique(return_inverse=True)
        vectors = F.embedding(back, self.next_item_vectors(items)[0])
        return batch.real(self.interest(batch, vectors, self._rating(batch))).flatten(0, -2)

    def next_item_scores(self, batch: Batch, items: tuple[Tensor, Tensor]) -> Tensor:
        """Scores (m, n) of n items, given by `next_item_vectors`, before each real target.

        Their softmax over the items that the person has not rated yet is the probability of each to
        be rated next. The batch's target items are not read.
        """
        vectors, shift = items
        return einsum(self.next_item_state(batch), vectors, "m d, n d -> m n") + shift

    def next_item_loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the real targets' items, in nats; see `NextItemLoss`."""
        items, chance = self.interest.draw()
        vectors, shift = self.next_item_vectors(items)
        return NextItemLoss.apply(
            self.next_item_state(batch), *self.next_item_vectors(batch.real(batch.target_item)),
            vectors, shift - chance.log(), self.interest.excluded_negatives(items, batch))

    def dense_features(self, batch: Batch, residual: Tensor | None = None,
                       is_cold: Tensor | None = None) -> Tensor:
        """`dense.dense_features` of a batch; without a `residual`, of the standardised ratings.

        `is_cold` (b, t, i) marks targets that are shown as if nobody had rated their item.
        """
        count = self.items.log_count[batch.target_item]
        if is_cold is not None:
            count = count.masked_fill(is_cold, 0.0)
        residual = self._rating(batch) if residual is None else residual
        low, high = self.levels[0], self.levels[-1]
        height = (batch.event_rating - low) / (high - low).clamp(min=1e-6)
        return dense_features(batch, residual, height, count, self.items.year[batch.target_item])

    def _rating(self, batch: Batch) -> Tensor:
        """Standardised ratings of the events, (b, c, n), 0 where padded."""
        rating = (batch.event_rating - self.center) / self.spread
        return torch.where(batch.is_event, rating, 0.0)

    def _scale_dense(self, values: Tensor) -> Tensor:
        """Dense features (..., f), scaled, or bucketized and embedded: (..., columns).

        Source: scaled and concatenated is Wide & Deep, Fig. 4 (arXiv 1606.07792).
        """
        if self.config.dense == "concat":
            return ((values - self.fact_mean) / self.fact_scale).clamp(-5, 5)
        if self.config.dense == "bucket":
            bucket = (values[..., None] >= self.fact_edges).sum(-1)  # (..., f)
            start = torch.arange(len(DENSE_FEATURES), device=values.device) * self.config.buckets
            return rearrange(self.bucket(bucket + start), "... f d -> ... (f d)")
        return values[..., :0]

    def _user(self, batch: Batch) -> Tensor:
        """Embedded features of the user of each row, (b, columns)."""
        parts = [table(batch.user[:, column])
                 for column, table in zip(self.user_columns, self.users, strict=True)]
        return torch.cat(parts, dim=-1) if parts else self.center.new_zeros(len(batch.user), 0)
