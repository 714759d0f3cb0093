"""Train targets shown as if nobody had rated their film. Run: pytest tests/model/test_cold.py."""

from copy import deepcopy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from bst.model.base import cold_base, fit_base
from bst.model.factors import FOLDS
from bst.model.features import History, dense_at, fit_statistics
from bst.model.kalman import read_histories

from bst.data.schema import OOV
from bst.model.batches import Batches, UserVocabulary
from tests.model.test_network import all_rows


@pytest.fixture(scope="module")
def fitted(store, split, text):
    """Fit, base and cold base."""
    fit, base = fit_base(store, split, "neighbours", text)
    return fit, base, cold_base(store, split, fit, base, text)


@pytest.fixture(scope="module")
def batches(store, split, fitted):
    return Batches(store, split, UserVocabulary.fit(store, split), base=fitted[1], cold=fitted[2],
                   history_len=13, shared=True)


def test_the_other_bases_forget_what_they_know_of_the_film(store, split):
    fit, base = fit_base(store, split, "bias")
    mean, bias = fit.mean, fit_statistics(store, split, base.score).bias
    found = cold_base(store, split, fit, base, None).score
    for p in split.train[::29]:
        history = range(store.offsets[store.user_row[p]], split.history_stop[p])
        rest = [store.rating[q] - mean - bias[store.item_idx[q]] for q in history][-20:]
        assert found[p] == pytest.approx(mean + sum(rest) / (len(rest) + 3), abs=1e-5)
    fit, base = fit_base(store, split, "mean")
    assert (cold_base(store, split, fit, base, None).score[split.train] == np.float32(mean)).all()


def test_the_dense_features_are_those_of_a_film_without_statistics(
    store, split, fitted, batches
):
    _, base, cold = fitted
    statistics, history = fit_statistics(store, split, base.score), History.of(store, split)
    for p in split.train[::29]:
        blank, there = deepcopy(statistics), deepcopy(base)
        blank.bias[store.item_idx[p]] = blank.count[store.item_idx[p]] = 0
        blank.of_item[:, store.item_idx[p]] = 0
        for f in fields(base):
            getattr(there, f.name)[p] = getattr(cold, f.name)[p]
        expected = dense_at(blank, store, history, there, np.array([p]))[0]
        np.testing.assert_allclose(batches.cold[1][p], expected, atol=1e-5)
        assert np.abs(batches.dense[p] - expected).max() > 0.1


def test_the_drawn_targets_are_swapped_and_no_others(split, fitted, batches):
    rows = batches.epoch("train", batch_targets=200, seed=0)[0]
    drawn = batches.draw_cold(0.3, seed=1, epoch=2)
    real, found = batches.gather(rows), batches.gather(rows, drawn)
    position, swapped = found.position.numpy(), found.is_cold.numpy()
    assert (swapped == (drawn[position] & (position >= 0))).all() and 20 < swapped.sum() < 100
    assert (found.base.numpy()[swapped] == fitted[2].score[position[swapped]]).all()
    assert (found.dense.numpy()[swapped] == batches.cold[1][position[swapped]]).all()
    for f in fields(found):
        if f.name in ("base", "dense"):
            ours, theirs = getattr(found, f.name)[~swapped], getattr(real, f.name)[~swapped]
            assert torch.equal(ours, theirs)
        elif f.name != "is_cold":
            assert torch.equal(getattr(found, f.name), getattr(real, f.name))
    assert not real.is_cold.any()


def test_the_draw_is_a_function_of_seed_and_epoch(batches):
    draw = batches.draw_cold(0.3, seed=1, epoch=2)
    assert (draw == batches.draw_cold(0.3, seed=1, epoch=2)).all() and 0.2 < draw.mean() < 0.4
    for seed, epoch in ((1, 3), (2, 2)):
        assert (draw != batches.draw_cold(0.3, seed=seed, epoch=epoch)).any()


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_cold_target_has_no_id_and_with_cold_training_no_overview(small, share):
    model, batches = small(cold=share)
    row = next(r for r in all_rows(batches)
               if model.item_has_text[batches.store.item_idx[r[-1]]])[-1:]
    batch = batches.gather([row]).to("cpu", torch.float64)
    cold = replace(batch, is_cold=torch.ones_like(batch.is_cold))
    unknown = deepcopy(model)
    unknown.item_vocab[batch.target_item] = OOV  # the film is not in its own history
    assert model(cold).item() == pytest.approx(unknown(batch).item(), abs=1e-10)
    assert abs(model(cold).item() - model(batch).item()) > 1e-6
    reads = deepcopy(model)
    reads.item_text[batch.target_item] += 1
    assert (abs(reads(cold).item() - model(cold).item()) > 1e-6) == (share == 0)
    assert abs(reads(batch).item() - model(batch).item()) > 1e-6


def test_an_event_keeps_its_id_where_its_film_is_a_cold_target(small):
    """One batch in which a film is a cold target of one row and an event of another."""
    model, batches = small(cold=0.2)
    item, rows = batches.store.item_idx, [r[-1:] for r in all_rows(batches)]
    seen = {int(k): r for r in rows for k in item[batches.first[r[0]]:batches.stop[r[0]]]}
    row = next(r for r in rows if item[r[0]] in seen)
    both = batches.gather([row, seen[item[row[0]]]]).to("cpu", torch.float64)
    cold = replace(both, is_cold=torch.tensor([[True], [False]]))
    assert model(cold)[0] != model(both)[0]
    assert model(cold)[1].item() == pytest.approx(model(both)[1].item(), abs=1e-12)
