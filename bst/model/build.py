"""Build a fresh network; its buffers hold the catalogue and what is fitted on train targets."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from bst.config import ModelConfig
from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.data.text import TextVectors
from bst.model.batches import Batches
from bst.model.dense import DENSE_FEATURES
from bst.model.network import Network, Sizes

MIN_ITEMS, MAX_VALUES = 3, 300  # min rated items of a category value; max values of a category
CATEGORY_SCALE = 2.0  # of shares in [0, 1], to be as large as the standardised numbers beside them
TEXT_DIM = 32  # principal components of the overview vectors
EACH = 25  # min users and min items for each component of an audience
CO_RATINGS = 500  # min other ratings by an item's raters; with fewer its audience is unknown
FEW = 5.0  # with this many ratings an item's audience has half its size
OVERSAMPLE, POWER_STEPS = 10, 6  # of the randomised SVD: extra components, and iterations
SAMPLE = 2**17  # train targets that scale the dense features, about


@dataclass(frozen=True)
class ContentScale:
    """How the content of an item becomes features; fitted on the items with train ratings.

    Content is what the item table says: genres, year, `--item-features`, overview.
    """

    values: dict[str, Sequence[str]]  # kept values of each category, genres first
    scales: dict[str, Sequence]  # of each number, year first: see `_scale`
    has_year: bool  # in the content
    text_mean: np.ndarray  # (w,) float32, w the width of an overview vector
    text_axes: np.ndarray  # (w, t) float32: principal components, scaled; t is 0 without texts

    @classmethod
    def fit(cls, config: ModelConfig, batches: Batches, text: TextVectors | None = None
            ) -> "ContentScale":
        """Scale of the catalogue of `batches` and its overview vectors."""
        movies, text = batches.store.movies, text if config.text else None
        rated = np.unique(batches.store.item_idx[batches.split.train]) - FIRST_IDX
        vectors = np.zeros((0, 0)) if text is None else text.vectors[rated][text.has_text[rated]]
        cells = cells_of(movies)
        values = {"genres": genre_names(movies) if config.genres else ()}
        values |= {name: _common(of, rated) for name, of in cells.items()
                   if isinstance(of, list) and name not in values}
        scales = {name: _scale(of[rated].astype(float)) for name, of in cells.items()
                  if name not in values}
        return cls(values, scales, config.year, *_principal(vectors))

    def features(self, cells: dict[str, Sequence], text: TextVectors | None) -> np.ndarray:
        """Features of items, (n, f) float32: 1, shares of categories, numbers, squares, overview.

        What is missing (None or NaN in the `cells`, see `cells_of`, or no text) is 0.
        """
        n = len(cells["genres"])
        columns = [np.ones((n, 1))]
        for name, values in self.values.items():
            at, hot = dict(zip(values, itertools.count())), np.zeros((n, len(values)), np.float32)
            for row, of in enumerate(cells[name]):
                hot[row, [at[value] for value in of or () if value in at]] = 1
            share = hot / np.maximum(1, hot.sum(axis=1, keepdims=True))  # of the item's values
            columns.append(CATEGORY_SCALE * share)
        for name in self.scales:
            z = self.scaled(name, cells[name])[:, None] * (self.has_year or name != "year")
            columns += [z, z**2]
        if self.text_axes.shape[1]:
            read = np.zeros((n, self.text_axes.shape[1]))
            if text is not None:
                read = (text.vectors - self.text_mean) @ self.text_axes * text.has_text[:, None]
            columns.append(read)
        return np.concatenate(columns, axis=1).astype(np.float32)

    def scaled(self, name: str, number: Sequence) -> np.ndarray:
        """Standardised numbers, 0 where unknown, (n,)."""
        mean, spread, is_log = self.scales[name]
        number = np.asarray(number, dtype=float)
        number = np.log1p(number.clip(min=0)) if is_log else number
        return np.nan_to_num((number - mean) / spread).clip(-5, 5)


def cells_of(movies: pl.DataFrame) -> dict[str, Sequence]:
    """Each feature of a table of items by its name: lists of words, or numbers (n,)."""
    further = movies["features"].struct.unnest() if "features" in movies.columns else ()
    return {column.name: column.to_list() if column.dtype == pl.List else column.to_numpy()
            for column in (movies["genres"], movies["year"], *further)}


def _common(of_items: Sequence, rated: np.ndarray) -> list[str]:
    """The most frequent values of a category among rated items, in alphabetical order."""
    count = Counter(value for row in rated for value in set(of_items[row] or ()))
    kept = [(-n, value) for value, n in count.items() if n >= MIN_ITEMS]
    return sorted(value for _, value in sorted(kept)[:MAX_VALUES])


def _scale(number: np.ndarray) -> tuple[float, float, bool]:
    """Mean, std, and whether they are of log(1 + x): if no number is negative and std > mean."""
    known = number[np.isfinite(number)]
    is_log = bool(len(known) and known.min() >= 0 and known.std() > known.mean())
    known = np.log1p(known) if is_log else known
    spread = known.std() if len(known) > 1 else 0.0
    return float(known.sum() / max(1, len(known))), float(spread or 1.0), is_log


def genre_names(movies: pl.DataFrame) -> tuple[str, ...]:
    """All genres of a table of items, in alphabetical order."""
    return tuple(sorted({name for of in movies["genres"].to_list() for name in of}))


def _principal(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (w,) and principal axes (w, t), scaled so that the components have mean square 1."""
    if len(vectors) < 2:
        return np.zeros(vectors.shape[1], np.float32), np.zeros((vectors.shape[1], 0), np.float32)
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    values, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    kept = np.argsort(-values)[:min(TEXT_DIM, len(vectors) - 1)]
    axes = axes[:, kept] / np.sqrt(max(values[kept].mean(), 1e-12))
    return mean.astype(np.float32), axes.astype(np.float32)


def build_model(config: ModelConfig, batches: Batches, text: TextVectors | None, *,
                seed: int, scale: ContentScale | None = None) -> Network:
    """A fresh network for the data of `batches`; without a `scale` one is fitted."""
    store, split = batches.store, batches.split
    count = split.item_counts(store)
    rated, cells = np.flatnonzero(count), cells_of(store.movies)
    scale = scale or ContentScale.fit(config, batches, text)
    content = scale.features(cells, text)
    levels = np.unique(store.rating[split.train])
    overview, num_text = scale.text_axes.shape
    torch.manual_seed(seed)  # the SVD of the audience is randomised
    audience = audience_components(store, split, count, config.audience)
    sizes = Sizes(items=store.num_items, known_items=len(rated), content=content.shape[1],
                  text=num_text, overview=overview,
                  audience=audience.shape[1], users=tuple(batches.vocabulary.sizes),
                  levels=len(levels))
    torch.manual_seed(seed)  # again: the first weights do not depend on the audience
    model = Network(config, sizes)
    items = model.items
    items.row[rated] = torch.arange(len(rated)) + FIRST_IDX
    items.content[FIRST_IDX:] = torch.from_numpy(content)
    items.audience.copy_(audience)
    items.log_count.copy_(torch.from_numpy(np.log1p(count)))
    items.year[FIRST_IDX:] = torch.from_numpy(scale.scaled("year", cells["year"]))
    model.text_mean.copy_(torch.from_numpy(scale.text_mean))
    model.text_axes.copy_(torch.from_numpy(scale.text_axes))
    if model.interest is not None:
        model.interest.log_share.copy_(log_share(count, len(split.train)))
    model.levels.copy_(torch.from_numpy(levels))
    center, spread = rating_scale(store.rating[split.train])
    model.center.fill_(center)
    model.spread.fill_(spread)
    _scale_dense_features(model, batches)
    return model.eval()


def audience_components(store: SequenceStore, split: Split, count: np.ndarray, limit: int
                        ) -> torch.Tensor:
    """Each item's audience, (items + 2, k): components of who rated it in train.

    A truncated SVD of the user-item matrix of train: an entry where there is a rating, whatever the
    stars, normalised by the counts of the user and of the item. An item's row is the mean over its
    raters, shrunk to 0 if they are few. The first component only measures popularity and is
    dropped. Items whose raters rated little else get 0: their row would identify the raters.

    Args:
        store: sequences.
        split: of them.
        count: (items + 2,) train ratings.
        limit: components, at most; fewer where users or items are few.

    Source: Halko, Martinsson and Tropp 2011, "Finding structure with randomness"
    (`torch.svd_lowrank`).
    """
    user = torch.from_numpy(store.user_row[split.train].astype(np.int64))
    item = torch.from_numpy(store.item_idx[split.train].astype(np.int64))
    of_user, of_item = torch.bincount(user).float(), torch.from_numpy(count).float()
    beside = torch.bincount(item, of_user[user] - 1, minlength=len(count))
    trust = (beside >= CO_RATINGS) * of_item / (of_item + FEW)
    size = min(limit, int((of_user > 0).sum()) // EACH, int(trust.sum()) // EACH)
    if size < 1:
        return torch.zeros(len(count), 0)
    table = torch.sparse_coo_tensor(
        torch.stack([user, item]), (of_user[user] * of_item[item]).rsqrt(),
        (len(of_user), len(count)), check_invariants=True).coalesce()
    _, weight, axes = torch.svd_lowrank(
        table, q=min(1 + size + OVERSAMPLE, *table.shape), niter=POWER_STEPS)
    found = (axes * weight)[:, 1:size + 1] * (of_item.clamp(min=1).rsqrt() * trust)[:, None]
    return (found / found[trust > 0].square().mean().sqrt().clamp(min=1e-12)).clamp(-5, 5)


def log_share(count: np.ndarray, total: int) -> torch.Tensor:
    """log((count + 0.5) / total) of train counts (n,); 0.5 keeps unrated items finite."""
    return torch.from_numpy(np.log((count + 0.5) / total)).float()


def rating_scale(rating: np.ndarray) -> tuple[float, float]:
    """Mean and std of train ratings, rounded to 1/50 of their range.

    Rounded, they hardly ever move with a single label; they do not depend on the unit.

    Example:
        >>> rating_scale(np.array([1.0, 4.0, 5.0])), rating_scale(np.array([10.0, 40.0, 50.0]))
        ((3.32, 1.68), (33.2, 16.8))
    """
    rating = rating.astype(np.float64)
    low, size = rating.min(), np.ptp(rating)
    if size == 0:
        return float(low), 1.0
    center = np.round(50 * (rating.mean() - low) / size)
    spread = np.round(50 * rating.std() / size)
    return float(low + size * center / 50), float(size * max(spread, 1) / 50)


def _scale_dense_features(model: Network, batches: Batches) -> None:
    """Mean, spread and bucket edges of the dense features.

    Those that read no stars are fitted on some of the train targets. The others have fixed scales:
    fitting them would leak each row's label through the histories of other rows.
    """
    star_free = sum(scale is None for scale in DENSE_FEATURES.values())  # the first ones
    plan = batches.epoch("train", batch_size=2**13, seed=0)
    found, total = [], 0
    while plan and total < SAMPLE:
        batch = batches.gather(plan.pop())
        found.append(model.dense_features(batch)[batch.is_target][:, :star_free])
        total += len(found[-1])
    values = torch.cat(found).double()
    model.fact_mean[:star_free] = values.mean(dim=0).float()
    model.fact_scale[:star_free] = values.std(dim=0, correction=0).float() + 1e-6
    shares = torch.linspace(0, 1, model.config.buckets + 1, dtype=torch.double)[1:-1]
    model.fact_edges[:star_free] = values.quantile(shares, dim=0).T.float()
    model.fact_scale[star_free:] = torch.tensor([*DENSE_FEATURES.values()][star_free:])
    model.fact_edges[star_free:] = model.fact_scale[star_free:, None] * (4 * shares.float() - 2)
