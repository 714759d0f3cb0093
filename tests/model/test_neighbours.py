"""Item neighbours against plain loops. Run: pytest tests/model/test_neighbours.py."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bst.data.splits import split_interactions
from bst.model import base, neighbours
from bst.model.base import base_scores
from bst.model.neighbours import SHRINK, add_neighbours, fit_neighbours, fit_slope
from tests.conftest import from_then_on, turned
from tests.model.test_features import visible

FOLDS = 3


def plain_sum(store, split, residual, p):
    """The formula of the module for one target, rating by rating."""
    is_train = np.isin(np.arange(len(store)), split.train)
    by_user = {}
    for q in split.train:
        if not is_train[p] or store.user_row[q] % FOLDS != store.user_row[p] % FOLDS:
            by_user.setdefault(store.user_row[q], {})[store.item_idx[q]] = residual[q]
    total, item = 0.0, store.item_idx[p]
    for q in visible(store, split, p):
        other = store.item_idx[q]
        pairs = [(e[item], e[other]) for e in by_user.values() if item in e and other in e]
        together = sum(a * b for a, b in pairs)
        own = [sum(pair[k] ** 2 for pair in pairs) + SHRINK for k in (0, 1)]
        s = together / np.sqrt(own[0] * own[1])
        total += s * abs(s) * residual[q]
    return total


@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_the_sum_is_that_of_a_plain_loop(store, monkeypatch, protocol):
    monkeypatch.setattr(neighbours, "SHRINK", 0.5)
    monkeypatch.setitem(globals(), "SHRINK", 0.5)
    split = split_interactions(store, protocol=protocol)
    score = np.linspace(2, 4, len(store)).astype(np.float32)
    found = fit_neighbours(store, split, score, folds=FOLDS)[1]
    for p in [*split.train[::23], *split.valid[::7], *split.test[::7]]:
        expected = plain_sum(store, split, store.rating - score, p)
        assert found[p] == pytest.approx(expected, abs=1e-4)
    assert np.abs(found[split.test]).max() > 0.1


def test_a_train_target_does_not_depend_on_its_own_rating_or_later_ones(store, split):
    p = split.train[len(split.train) // 2]
    changed = turned(store, from_then_on(store, p))
    score = np.full(len(store), 3.0, dtype=np.float32)
    before, after = (fit_neighbours(s, split, score, folds=FOLDS)[1] for s in (store, changed))
    assert after[p] == pytest.approx(before[p], abs=1e-7)
    assert not np.allclose(after[split.train], before[split.train])


def test_items_beyond_the_most_rated_have_no_neighbours(store, split, monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_ITEMS", 4)
    score = np.full(len(store), 3.0, dtype=np.float32)
    found = fit_neighbours(store, split, score, folds=FOLDS)[1]
    count = np.bincount(store.item_idx[split.train], minlength=50)
    most_rated = np.argsort(-count, kind="stable")[:4]
    assert not found[~np.isin(store.item_idx, most_rated)].any()
    assert found.any()


def test_the_slope_is_the_least_squares_one_on_train(store, split):
    rng = np.random.default_rng(2)
    sums = rng.normal(size=len(store)).astype(np.float32)
    score = (store.rating - 0.7 * sums).astype(np.float32)
    score[split.test] = 0.0  # must not count
    found = add_neighbours(fit_slope(store, split, score, sums), score, sums)
    np.testing.assert_allclose(found[split.train], store.rating[split.train], atol=1e-5)


def test_neighbours_help_where_films_come_in_pairs_of_one_taste(store, split):
    """Who liked film 2k liked film 2k + 1; sixteen factors cannot hold so many tastes."""
    rng = np.random.default_rng(3)
    pair = (store.item_idx // 2).astype(int)
    likes = rng.integers(0, 2, (store.num_users, pair.max() + 1))
    rating = (2 + 2 * likes[store.user_row, pair]).astype(np.float32)
    world = replace(store, rating=rating)
    score = np.full(len(store), rating.mean(), dtype=np.float32)
    sums = fit_neighbours(world, split, score, folds=FOLDS)[1]
    better = add_neighbours(fit_slope(world, split, score, sums), score, sums)
    assert (np.abs(better - rating)[split.test].mean()
            < 0.95 * np.abs(score - rating)[split.test].mean())


def test_the_base_is_read_from_the_cache_and_made_again_when_damaged(
    store, split, text, tmp_path, monkeypatch, capsys
):
    first = base_scores(store, split, "neighbours", text, cache_dir=tmp_path)
    plain = base_scores(store, split, "neighbours", text)
    np.testing.assert_array_equal(first.score, plain.score)
    (path,) = tmp_path.glob("base-*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("bst.model.base.streaming_reading", None)  # would fail if it were called
        again = base_scores(store, split, "factors", text, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.score, first.factors)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    mended = base_scores(store, split, "neighbours", text, cache_dir=tmp_path)
    np.testing.assert_array_equal(mended.score, first.score)
    assert "damaged" in capsys.readouterr().err
    other = split_interactions(store, protocol="temporal", ties="stable")
    base_scores(store, other, "neighbours", text, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("base-*.safetensors"))) == 2


def test_numpy_has_the_same_number_of_threads_on_any_machine(store, split, monkeypatch):
    seen = []

    def record(*args, **kwargs):
        seen.extend(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
        raise InterruptedError

    monkeypatch.setattr(base, "fit_neighbours", record)
    for cores in (1, 3):
        with threadpool_limits(cores, user_api="blas"), pytest.raises(InterruptedError):
            base_scores(store, split, "neighbours")
    assert seen and set(seen) == {base.BLAS_THREADS}
