"""What a fresh network holds of the catalogue. Run: pytest tests/model/test_build.py."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from bst.config import ModelConfig
from bst.data.schema import FIRST_IDX
from bst.data.text import TextVectors
from bst.model.build import FEW, ContentScale, audience_components, cells_of, rating_scale
from tests.conftest import described, plain_batches, turned


@pytest.fixture
def crowd(monkeypatch):
    """Data sets as small as those of these tests have an audience."""
    monkeypatch.setattr("bst.model.build.EACH", 10)
    monkeypatch.setattr("bst.model.build.CO_RATINGS", 300)


def test_an_audience_is_the_principal_components_of_who_rated_what(store, split, crowd):
    """By a whole SVD of the table of users and items; the sign of a component is free."""
    user, item = store.user_row[split.train], store.item_idx[split.train]
    count = np.bincount(item, minlength=store.num_items + 2)
    torch.manual_seed(0)
    found = audience_components(store, split, count, 32).numpy()
    of_user, table = np.bincount(user), np.zeros((store.num_users, len(count)))
    table[user, item] = (of_user[user] * count[item]) ** -0.5
    _, weight, axes = np.linalg.svd(table, full_matrices=False)
    beside = np.array([(of_user[user[item == k]] - 1).sum() for k in range(len(count))])
    known, k = beside >= 300, found.shape[1]
    assert k == int((known * count / (count + FEW)).sum()) // 10 > 0
    expected = (axes.T * weight)[:, 1:k + 1] / np.sqrt(np.maximum(count, 1))[:, None]
    expected *= (known * count / (count + FEW))[:, None]
    expected /= np.sqrt(np.square(expected[known]).mean())
    expected *= np.sign((expected * found).sum(axis=0))
    np.testing.assert_allclose(found, np.clip(expected, -5, 5), atol=0.02)
    assert not found[~known].any() and (count[~known] > 0).any() and found[known].any()


def test_an_audience_knows_no_stars_and_nothing_after_train(store, split, crowd):
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + 2)

    def components(store):
        torch.manual_seed(0)
        return audience_components(store, split, count, 32)

    late = np.concatenate([split.valid, split.test])
    items = store.item_idx.copy()
    items[late] = np.roll(items[late], 1)
    for other in (turned(store, np.arange(len(store))), replace(store, item_idx=items)):
        torch.testing.assert_close(components(other), components(store), atol=0, rtol=0)


def test_too_few_users_have_no_audience(store, split):
    few = replace(split, train=split.train[store.user_row[split.train] < 9])
    count = np.bincount(store.item_idx[few.train], minlength=store.num_items + 2)
    assert audience_components(store, few, count, 32).shape == (len(count), 0)


@pytest.mark.parametrize("unit", [1.0, 10.0, 0.01])
def test_the_scale_of_ratings_follows_their_unit_and_no_rating_of_many(unit):
    rng = np.random.default_rng(0)
    rating = rng.integers(1, 6, 700) * unit
    center, spread = rating_scale(rating)
    assert center == pytest.approx(rating.mean(), abs=0.05 * unit)
    assert spread == pytest.approx(rating.std(), abs=0.05 * unit)
    assert (center / unit, spread / unit) == pytest.approx(rating_scale(rating / unit))
    for k in range(0, 700, 50):
        other = rating.copy()
        other[k] = 6 * unit - other[k]
        assert rating_scale(other) == pytest.approx((center, spread), rel=1e-12)
    assert rating_scale(np.full(3, 4.0)) == (4.0, 1.0)


def test_content_is_shares_numbers_and_components_of_texts_and_0_where_unknown(
        store, split, text, monkeypatch):
    """Numbers with a long tail by their logarithm; authors of three rated items or more."""
    movies, rated = described(store).movies, np.unique(store.item_idx[split.train]) - FIRST_IDX

    def scale_of(movies):
        batches = plain_batches(replace(store, movies=movies), split)
        return ContentScale.fit(ModelConfig(), batches, text)

    def scaled(number):
        known = number[rated][~np.isnan(number[rated])]
        z = np.nan_to_num((number - known.mean()) / known.std()).clip(-5, 5)
        return [z, z**2]

    found = scale_of(movies).features(cells_of(movies), text)
    authors, pages = movies["features"].struct.unnest()
    words = [(movies["genres"], word) for word in ("Comedy", "Drama", "War")]
    words += [(authors, "Ann"), (authors, "Bob")]
    shares = [[2 * (word in of) / max(1, len(of)) for of in column] for column, word in words]
    np.testing.assert_allclose(found[:, :10], np.column_stack([
        np.ones(len(movies)), *shares, *scaled(movies["year"].to_numpy()),
        *scaled(np.log1p(pages.to_numpy()))]), atol=1e-6)
    vectors = text.vectors[rated][text.has_text[rated]]
    parts = (text.vectors - vectors.mean(axis=0)) @ np.linalg.svd(vectors - vectors.mean(axis=0),
                                                                  full_matrices=False)[2].T
    parts /= np.sqrt(np.square(parts[rated][text.has_text[rated]]).mean())
    np.testing.assert_allclose(np.abs(found[:, 10:]), np.abs(parts) * text.has_text[:, None],
                               atol=1e-3)
    cells = dict.fromkeys(("genres", "year", "author", "pages"), [None])
    none = TextVectors(text.vectors[:1] * 0, np.zeros(1, bool))
    bare = scale_of(movies).features(cells, none)
    assert (bare == [1] + [0] * (bare.shape[1] - 1)).all()
    flat = movies.with_columns(features=pl.struct(pages=pl.lit(7.0), none=pl.lit(None, pl.Float64)))
    assert not scale_of(flat).features(cells_of(flat), text)[:, 6:10].any()
    monkeypatch.setattr("bst.model.build.MAX_VALUES", 1)
    assert scale_of(movies).values["author"] == ["Ann"]
