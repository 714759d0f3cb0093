"""Streaming factors: the items of a Gaussian factor model whose users are read off their histories.

    rating = mean + bias + loading . taste + noise

The bias and the loading of an item are drawn around a linear function of its genres, year and
overview, so a film that nobody has rated has them too; the taste of a user around one of sex, age,
occupation and zip region. Items are fitted on train ratings by variational Bayes: what is uncertain
about an item is kept and not trusted. `bst/model/kalman.py` then reads the taste of anybody off the
history that a target may see.

Source: Bishop, "Pattern Recognition and Machine Learning", sections 10.1 and 12.2.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX, USER_FEATURES
from bst.data.sequences import SequenceStore
from bst.data.text import TextVectors
from bst.model.features import genre_matrix

# Chosen on the valid part of MovieLens-1M.
NUM_FACTORS, SWEEPS, FOLDS = 16, 40, 5
TEXT_PARTS = 32  # principal components of the overviews
ITEM_RIDGE, USER_RIDGE = 2.0, 10.0  # pseudo-items and pseudo-users of the priors
NOISE_SHRINK = 50.0  # pseudo-ratings of an item's own noise


@dataclass(frozen=True)
class Factors:
    """Fitted items; k factors. Column 0 of a weight is the bias, the others are the loading."""

    mean: float  # stars
    weight: Tensor  # (num_items + 2, 1 + k) posterior mean
    spread: Tensor  # (num_items + 2, 1 + k, 1 + k) posterior covariance
    prior: Tensor  # (num_users, k) expected taste of each user before the first rating
    noise: Tensor  # (num_items + 2,) variance of a rating given everything, stars squared
    recipe: "ItemRecipe"  # of the item features
    item_slope: Tensor  # (features, 1 + k) weight of an item without ratings, on its features
    variance: Tensor  # (1 + k,) of a weight around it
    usual_noise: float  # of an item without ratings
    user_slope: Tensor  # (values, k) prior of a user on `user_features`

    def unrated(self, store: SequenceStore, text: TextVectors | None) -> "Factors":
        """These factors if nobody had rated any film of the store."""
        none = replace(self, weight=self.weight[:0], spread=self.spread[:0], noise=self.noise[:0])
        return none.with_items(self.recipe.of_store(store, text))

    def with_items(self, features: Tensor) -> "Factors":
        """These factors with further items that nobody rated, given their features (n, f)."""
        n = len(features)
        return replace(
            self, weight=torch.cat([self.weight, features @ self.item_slope]),
            spread=torch.cat([self.spread, repeat(self.variance.diag(), "k l -> n k l", n=n)]),
            noise=torch.cat([self.noise, torch.full((n,), self.usual_noise)]),
        )


@dataclass(frozen=True)
class ItemRecipe:
    """How genres, year and overview become the features of an item; t width of a text vector."""

    usual_year: float
    text_mean: np.ndarray  # (t,) float32; t is 0 without text
    text_axes: np.ndarray  # (TEXT_PARTS or fewer, t) float64, principal axes of the overviews
    text_scale: float  # standard deviation of the components

    def features(self, hot: np.ndarray, year: np.ndarray, text: TextVectors | None) -> Tensor:
        """What is known of items without ratings: (n, 1 + genres + 2 + text parts) float32.

        Args:
            hot: (n, genres) 1 where an item has a genre.
            year: (n,) float64, NaN where it is unknown.
            text: overviews, a row an item; used if the recipe was fitted with them.
        """
        decades = (np.where(np.isnan(year), self.usual_year, year) - 1985) / 15
        share = 3 * hot / np.maximum(1, hot.sum(axis=1, keepdims=True))
        columns = [np.ones((len(hot), 1)), share, np.stack([decades, decades**2], axis=1)]
        if len(self.text_axes):
            columns.append(self._components(text) / self.text_scale)
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))

    def of_store(self, store: SequenceStore, text: TextVectors | None) -> Tensor:
        """The features of all items of a store, zeros at PAD and OOV: (num_items + 2, features)."""
        _, hot = genre_matrix(store.movies)
        year = store.movies["year"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return F.pad(self.features(hot, year, text), (0, 0, FIRST_IDX, 0))

    def _components(self, text: TextVectors) -> np.ndarray:
        return (text.vectors - self.text_mean) * text.has_text[:, None] @ self.text_axes.T


def item_features(
    store: SequenceStore, rows: np.ndarray, text: TextVectors | None
) -> tuple[ItemRecipe, Tensor]:
    """The recipe and the features of all items: (num_items + 2, features).

    The principal components of the overviews are those of the items rated at positions `rows`.
    """
    year = store.movies["year"].cast(pl.Float64).median() or 0.0
    recipe = ItemRecipe(year, np.zeros(0, np.float32), np.zeros((0, 0)), 1.0)
    fitted = np.zeros(store.num_items, dtype=bool)
    fitted[store.item_idx[rows] - FIRST_IDX] = True
    if text is not None and (fitted := fitted & text.has_text).any():
        mean = text.vectors[fitted].mean(axis=0)
        centred = (text.vectors - mean) * text.has_text[:, None]
        _, _, axes = np.linalg.svd(centred[fitted].astype(np.float64), full_matrices=False)
        recipe = replace(recipe, text_mean=mean, text_axes=axes[:TEXT_PARTS])
        scale = max(recipe._components(text)[fitted].std(), 1e-6)
        recipe = replace(recipe, text_scale=float(scale))
    return recipe, recipe.of_store(store, text)


def user_values(users: pl.DataFrame) -> list[tuple[str, str]]:
    """(feature, value) of each column of `user_features`, but the first."""
    return [(name, value) for name in USER_FEATURES
            for value in users[name].drop_nulls().unique().sort()]


def user_features(users: pl.DataFrame, values: list[tuple[str, str]]) -> Tensor:
    """A column for each value of each user feature, 1 where a user has it: (n, 1 + values)."""
    columns = [
        users.select((pl.col(name) == value).fill_null(False).cast(pl.Float32)).to_numpy()
        for name, value in values
    ]
    return torch.from_numpy(np.concatenate([np.zeros((len(users), 1)), *columns], 1)).float()


def fit_factors(
    store: SequenceStore, rows: np.ndarray, text: TextVectors | None = None
) -> Factors:
    """Fit the items on the ratings at positions `rows`."""
    recipe, of_item = item_features(store, rows, text)
    of_user = user_features(store.users, user_values(store.users))
    k, num_items = NUM_FACTORS, store.num_items + FIRST_IDX
    mean = float(store.rating[rows].mean(dtype=np.float64)) if len(rows) else 0.0
    y = torch.from_numpy(store.rating[rows] - np.float32(mean))
    user = torch.from_numpy(store.user_row[rows]).long()
    item = torch.from_numpy(store.item_idx[rows]).long()
    of_users, of_items = _Groups(user, item, y, store.num_users), _Groups(item, user, y, num_items)
    num_ratings = torch.bincount(item, minlength=num_items)
    is_rated = num_ratings > 0
    squares = torch.zeros(num_items).index_add_(0, item, y.square())
    has_rated = torch.bincount(user, minlength=store.num_users) > 0
    weight = torch.randn(num_items, 1 + k, generator=torch.Generator().manual_seed(0)) / 10
    weight[:, 0], weight[:, 1] = 0.0, 0.4  # the first factor starts as the user's own bias
    spread = torch.zeros(num_items, 1 + k, 1 + k)
    of_weight, variance = torch.zeros_like(weight), torch.tensor([0.2] + [0.03] * k)
    of_taste, noise = torch.zeros(store.num_users, k), torch.full((num_items,), 0.7)
    item_slope = torch.zeros(of_item.shape[1], 1 + k)
    for _ in range(SWEEPS):
        around = item_slope, variance  # what `weight` and `spread` are about to be drawn to
        second = _outer(weight) + spread
        taste, covariance = _user_posterior(of_users, weight, second, of_taste, noise)
        user_slope = _ridge(of_user[has_rated], taste[has_rated], USER_RIDGE)
        of_taste = of_user @ user_slope
        taste = F.pad(taste, (1, 0), value=1.0)
        gram = of_items.sum(_outer(taste) + F.pad(covariance, (1, 0, 1, 0)))
        moment = of_items.sum(taste, weighted=True)
        spread = torch.linalg.inv(gram / noise[:, None, None] + torch.diag(1 / variance))
        pull = moment / noise[:, None] + of_weight / variance
        weight = einsum(spread, pull, "i k l, i l -> i k")
        item_slope, variance = _item_prior(of_item, weight, spread, variance, is_rated)
        of_weight = of_item @ item_slope
        explained = 2 * (weight * moment).sum(1) - ((_outer(weight) + spread) * gram).sum((1, 2))
        rest = squares - explained
        usual = rest.sum() / max(1, len(rows))
        noise = ((rest + NOISE_SHRINK * usual) / (num_ratings + NOISE_SHRINK)).clamp(min=1e-3)
    return Factors(mean, weight, spread, of_taste, noise, recipe, *around,
                   max(float(usual), 1e-3), user_slope)


def _user_posterior(
    of_users: "_Groups", weight: Tensor, second: Tensor, prior: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (u, k) and covariance (u, k, k) of the tastes, given moments of the items' weights."""
    loading, second = weight[:, 1:] / noise[:, None], second / noise[:, None, None]
    of_loading, with_bias = second[:, 1:, 1:].contiguous(), second[:, 0, 1:].contiguous()
    precision = torch.eye(prior.shape[1]) + of_users.sum(of_loading)
    moment = of_users.sum(loading, weighted=True) - of_users.sum(with_bias)
    covariance = torch.linalg.inv(precision)
    return einsum(covariance, moment + prior, "u k l, u l -> u k"), covariance


def _item_prior(
    features: Tensor, weight: Tensor, spread: Tensor, variance: Tensor, is_rated: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes (f, 1 + k) of the weights' prior mean on the features, and the variance around it."""
    own = torch.diagonal(spread[is_rated], dim1=1, dim2=2)
    trust = variance / (variance + own)  # (rated, 1 + k): items with many ratings say more
    slope = _ridge(features[is_rated], weight[is_rated], ITEM_RIDGE, trust)
    rest = (weight - features @ slope)[is_rated].square() + own
    return slope, rest.sum(dim=0).div(max(1, len(rest))).clamp(min=1e-5)


def _ridge(x: Tensor, y: Tensor, penalty: float, trust: Tensor | None = None) -> Tensor:
    """Slopes (f, k) of the columns of y (n, k) on x (n, f), rows weighted by `trust` (n, k)."""
    trust = torch.ones_like(y) if trust is None else trust
    gram = einsum(x, trust, x, "n f, n k, n g -> k f g") + penalty * torch.eye(x.shape[1])
    moment = einsum(x, trust, y, "n f, n k, n k -> k f")
    return rearrange(torch.linalg.solve(gram, moment), "k f -> f k")


class _Groups:
    """Sums over the ratings of each user (or of each item) of what belongs to the other side."""

    def __init__(self, group: Tensor, other: Tensor, y: Tensor, size: int) -> None:
        order = torch.argsort(group, stable=True)
        count = torch.bincount(group, minlength=size)
        self.other, self.y, self.begin = other[order], y[order], count.cumsum(0) - count

    def sum(self, values: Tensor, *, weighted: bool = False) -> Tensor:
        """Sums (groups, ...) of `values` (others, ...), times the centred stars if `weighted`."""
        flat = rearrange(values, "n ... -> n (...)")
        total = F.embedding_bag(self.other, flat, self.begin, mode="sum",
                                per_sample_weights=self.y if weighted else None)
        return total.view(-1, *values.shape[1:])


def _outer(x: Tensor) -> Tensor:
    return einsum(x, x, "n k, n l -> n k l")
