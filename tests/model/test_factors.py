"""Factors and their filter against exact Gaussian regression.

Run: pytest tests/model/test_factors.py.
"""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from bst.data.schema import FIRST_IDX
from bst.data.splits import split_interactions
from bst.model import factors
from bst.model.factors import (
    FOLDS,
    Factors,
    fit_factors,
    item_features,
    user_features,
    user_values,
)
from bst.model.features import History, streaming_bias
from bst.model.kalman import DRIFT, read_histories, streaming_reading
from tests.conftest import from_then_on, turned
from tests.model.test_features import visible


def exact(factors, store, seen, p):
    """Mean and deviation of the rating at p given those at `seen`: no filter, one big Gaussian."""
    rows = [*seen, p]
    weight = factors.weight[store.item_idx[rows]].double().numpy()
    prior = factors.prior[store.user_row[p]].double().numpy()
    expected = factors.mean + weight[:, 0] + weight[:, 1:] @ prior
    age = np.arange(len(rows))
    together = weight[:, 1:] @ weight[:, 1:].T * DRIFT ** np.abs(age[:, None] - age)
    noisy = together + np.diag(factors.noise[store.item_idx[rows]].double().numpy())
    gain = np.linalg.solve(noisy[:-1, :-1], noisy[:-1, -1])
    score = expected[-1] + gain @ (store.rating[seen] - expected[:-1])
    return score, np.sqrt(noisy[-1, -1] - gain @ noisy[:-1, -1])


@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_the_filter_gives_the_posterior_of_one_big_gaussian(store, protocol):
    split = split_interactions(store, protocol=protocol)
    fitted = fit_factors(store, split.train)
    certain = replace(fitted, spread=torch.zeros_like(fitted.spread))
    targets = np.random.default_rng(0).permutation(len(store))[:60]
    found = read_histories(certain, store, History.of(store, split), targets)
    for k, p in enumerate(targets):
        score, doubt = exact(certain, store, visible(store, split, p), p)
        assert found.score[k] == pytest.approx(score, abs=1e-4)
        assert found.doubt[k] == pytest.approx(doubt, abs=1e-4)


def test_an_uncertain_item_moves_the_taste_less_and_is_itself_in_more_doubt(store, split):
    fitted = fit_factors(store, split.train)
    wide = replace(fitted, spread=10 * fitted.spread)
    history = History.of(store, split)
    targets = np.array([p for p in split.test if history.stop[p] - history.start[p] > 10])
    prior = fitted.prior[store.user_row[targets]]
    weight = fitted.weight[store.item_idx[targets]]
    start = (fitted.mean + weight[:, 0] + (weight[:, 1:] * prior).sum(1)).numpy()
    sharp, blurred = (read_histories(f, store, history, targets) for f in (fitted, wide))
    assert np.abs(blurred.score - start).mean() < 0.8 * np.abs(sharp.score - start).mean()
    assert (blurred.doubt > sharp.doubt).all()


def test_train_targets_are_read_with_items_fitted_without_their_users(store, split):
    found, history = streaming_reading(store, split)[0], History.of(store, split)
    for fold in (0, 3):
        is_mine = store.user_row[split.train] % FOLDS == fold
        fitted = fit_factors(store, split.train[~is_mine])
        mine = split.train[is_mine]
        expected = read_histories(fitted, store, history, mine)
        np.testing.assert_array_equal(found.score[mine], expected.score)
    full = fit_factors(store, split.train)
    expected = read_histories(full, store, history, split.test)
    np.testing.assert_allclose(found.score[split.test], expected.score, atol=1e-5)


def test_a_train_target_does_not_depend_on_its_own_rating_or_later_ones(store, split):
    p = split.train[len(split.train) // 2]
    changed = turned(store, from_then_on(store, p))
    before, after = (streaming_reading(s, split)[0].score for s in (store, changed))
    assert after[p] == pytest.approx(before[p], abs=1e-6)
    assert not np.allclose(after[split.train], before[split.train])


def test_held_out_ratings_do_not_change_the_items(store, split):
    before = fit_factors(store, split.train)
    after = fit_factors(turned(store, np.concatenate([split.valid, split.test])), split.train)
    assert torch.equal(before.weight, after.weight)
    assert torch.equal(before.prior, after.prior)


def test_factors_find_tastes_that_a_bias_cannot(store, split):
    """Users who like even items and dislike odd ones, and the reverse: the bias knows nothing."""
    rng = np.random.default_rng(0)
    side = np.where(store.user_row % 2, 1, -1) * np.where(store.item_idx % 2, 1, -1)
    rating = (3 + side + rng.integers(0, 2, len(store))).astype(np.float32)
    taste = replace(store, rating=rating)

    def error(score):
        return np.abs(score - rating)[split.test].mean()

    found, *_ = streaming_reading(taste, split)
    assert error(found.score) < 0.8 * error(streaming_bias(taste, split))


def test_fewer_ratings_leave_a_taste_nearer_to_its_prior():
    """Closed form for one factor: (prior + loading * y / noise) / (1 + loading^2 / noise)."""
    loading, noise, y = 0.8, 0.5, 1.5
    weight = torch.tensor([[0.0, loading]])
    for ratings in (0, 1, 3):
        user = torch.zeros(ratings, dtype=torch.long)
        groups = factors._Groups(user, user, torch.full((ratings,), y), size=1)
        mean, covariance = factors._user_posterior(
            groups, weight, factors._outer(weight), torch.tensor([[2.0]]), torch.tensor([noise]))
        precision = 1 + ratings * loading**2 / noise
        expected = (2.0 + ratings * loading * y / noise) / precision
        assert mean.item() == pytest.approx(expected, abs=1e-5)
        assert covariance.item() == pytest.approx(1 / precision, abs=1e-6)


def test_a_film_that_nobody_rated_is_placed_by_its_text(store, split, text):
    """Liked films have one overview, disliked ones another; so it is with the unrated ones."""
    sign = np.where(np.arange(store.num_items) % 2, 1.0, -1.0)
    vectors = np.outer(sign, np.ones(11)).astype(np.float32)
    told = replace(text, vectors=vectors, has_text=np.ones(store.num_items, dtype=bool))
    rating = (3 + sign[store.item_idx - FIRST_IDX]).astype(np.float32)
    world = replace(store, rating=rating)
    bias = fit_factors(world, split.train, told).weight[FIRST_IDX:, 0].numpy()
    unrated = np.setdiff1d(np.arange(store.num_items), store.item_idx[split.train] - FIRST_IDX)
    assert len(unrated) >= 3
    assert (np.sign(bias[unrated]) == sign[unrated]).all()


def test_the_text_parts_are_fitted_on_the_items_of_the_rows_alone(store, split, text):
    rated = np.isin(np.arange(store.num_items), store.item_idx[split.train] - FIRST_IDX)
    assert not rated.all()
    told = replace(text, has_text=np.ones(store.num_items, dtype=bool))
    wild = replace(told, vectors=np.where(rated[:, None], text.vectors, 100 * text.vectors + 50))
    before, after = (item_features(store, split.train, t)[1][FIRST_IDX:] for t in (told, wild))
    assert torch.equal(before[torch.from_numpy(rated)], after[torch.from_numpy(rated)])


def test_a_film_on_which_people_disagree_has_more_noise(store, split):
    """Half of the films get stars by the toss of a coin, the others always 3."""
    coin = np.random.default_rng(6).choice([1, 5], len(store))
    is_noisy = store.item_idx % 2 == 0
    rating = np.where(is_noisy, coin, 3).astype(np.float32)
    noise = fit_factors(replace(store, rating=rating), split.train).noise.numpy()
    rated = np.unique(store.item_idx[split.train])
    assert noise[rated[rated % 2 == 0]].min() > noise[rated[rated % 2 == 1]].max()


def test_a_user_without_history_is_placed_by_sex(store, split):
    is_woman = (store.users["sex"] == "F").to_numpy()
    rating = (3 + np.where(is_woman, 1, -1)[store.user_row]).astype(np.float32)
    fitted = fit_factors(replace(store, rating=rating), split.train)
    liking = (fitted.prior @ fitted.weight[FIRST_IDX:, 1:].mean(0)).numpy()
    assert liking[is_woman].mean() > liking[~is_woman].mean() + 0.5


def test_features_have_a_column_a_value_and_a_missing_value_has_none(store, split, text):
    users = store.users.with_columns(pl.lit(None, dtype=pl.String).alias("zip_region"))
    found = user_features(users, user_values(users))
    assert found.sum(dim=1).tolist() == [3.0] * store.num_users  # sex, age, occupation
    _, films = item_features(store, split.train, text)
    assert films.shape[0] == store.num_items + FIRST_IDX
    assert not films[:FIRST_IDX].any()
    text_part = films[FIRST_IDX:, -11:]
    assert not text_part[torch.from_numpy(~text.has_text)].any()
    assert text_part[torch.from_numpy(text.has_text)].any(dim=1).all()


def test_a_world_of_one_rating_can_be_fitted(store):
    found = fit_factors(store, np.array([0]))
    assert isinstance(found, Factors)
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.prior).all()
