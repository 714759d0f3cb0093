"""The rivals see no answer. Run: pytest tests/test_compare.py."""

import numpy as np

from scripts.compare_lightgbm import Compared, dense_features_of, item_statistics
from tests.conftest import turned


def test_no_item_statistic_of_a_train_row_moves_with_its_own_stars(store, split):
    before = item_statistics(store, split)
    for p in split.train[store.rating[split.train] != 3][::67]:
        after = item_statistics(turned(store, np.array([p])), split)
        np.testing.assert_array_equal(after[p], before[p])
        same = np.setdiff1d(np.flatnonzero(store.item_idx == store.item_idx[p]), split.train)
        assert (after[same, 0] != before[same, 0]).all()  # but all that is asked later


def test_an_item_count_is_that_of_train_out_of_fold_too(store, split):
    found = np.expm1(item_statistics(store, split)[:, 1])
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + 2)
    expected = count[store.item_idx]
    np.testing.assert_allclose(found[split.test], expected[split.test])
    assert abs(found[split.train].mean() / expected[split.train].mean() - 1) < 0.1


def test_the_trees_take_no_flag_that_they_do_not_read():
    assert not hasattr(Compared(), "baselines")


def test_each_target_has_its_own_dense_features(small, store, split):
    model, batches = small()
    found = dense_features_of(model, batches)
    targets = np.concatenate([split.train, split.valid, split.test])
    assert not np.isnan(found[targets]).any()
    seen = (batches.history.stop - batches.history.start)[targets]
    np.testing.assert_allclose(found[targets, 2], np.log1p(seen), rtol=1e-6)
