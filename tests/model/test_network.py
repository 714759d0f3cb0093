"""Invariances, leaks, losses and knobs of the network. Run: pytest tests/model/test_network.py."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from bst.config import ModelConfig, TrainConfig
from bst.data.schema import FIRST_IDX, OOV
from bst.data.splits import split_interactions
from bst.model.batches import Batches, Events, request_batch
from bst.model.build import build_model
from bst.model.dense import DENSE_FEATURES, LAST, SHRINK
from bst.training.loop import optimizer_of, train_step
from tests.conftest import STILL, all_rows, from_then_on, plain_batches, turned, window

FORMS = [dict(), dict(attention="regression"), dict(attention="softmax"), dict(attention="none"),
         dict(readout="flatten"), dict(dense="bucket", user_id=True)]


def predict(model, batches, rows):
    """Predictions by position."""
    batch = batches.gather(rows).to("cpu", torch.float64)
    scores, real = model(batch), batch.is_target
    return dict(zip(batch.position[real].tolist(), scores[real].tolist(), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_a_target_alone_with_its_history_is_scored_as_among_all_of_its_user(
        small, store, form, protocol):
    """Window form = shared form; other rows, other targets and padding change nothing."""
    model, batches = small(split=split_interactions(store, protocol=protocol), **form)
    for part in ("train", "test"):
        together = predict(model, batches, all_rows(batches, part))
        assert together.keys() == set(batches.split.part(part))
        for position in list(together)[::7]:
            alone = model(window(batches, position)).item()
            assert alone == pytest.approx(together[position], abs=1e-9)


@pytest.mark.parametrize("form", [*FORMS, dict(interest=1)])
def test_a_request_is_scored_as_any_other_batch(small, form):
    """It takes a short cut: each target sees all events, at one time."""
    model, _ = small(**form)
    size, rng = np.array([0, 1, 33, 90, 200]), np.random.default_rng(3)
    n, begin = size.sum(), np.cumsum(size) - size
    events = Events(rng.integers(FIRST_IDX, model.sizes.items, n), rng.integers(1, 6, n),
                    np.concatenate([np.sort(rng.integers(0, 10**6, k)) for k in size]))
    request = request_batch(events, begin, size, np.ones((5, len(model.sizes.users)), np.int64),
                            np.full(5, 1_050_000)).to("cpu", torch.float64)
    asked = request.about(rng.integers(FIRST_IDX, model.sizes.items, (5, 3)))
    plain, embedded = replace(asked, is_request=False), model.embed_items()
    expected = model(plain)
    for found in (model(asked), model(asked, embedded, model.glance(request, embedded)[0])):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    if model.interest is not None:
        items = model.next_item_vectors(torch.arange(FIRST_IDX, model.sizes.items))
        first = replace(plain, target_item=plain.target_item[..., :1])
        torch.testing.assert_close(model.next_item_scores(request, items),
                                   model.next_item_scores(first, items), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_targets_rating_and_later_ones_change_no_prediction(small, store, form):
    model, batches = small(**form)
    before = predict(model, batches, all_rows(batches))
    user = store.user_row[batches.split.test[0]]
    target = batches.split.test[store.user_row[batches.split.test] == user][0]
    other = turned(store, from_then_on(store, target))
    perturbed = Batches(other, batches.split, batches.vocabulary)
    after = predict(model, perturbed, all_rows(perturbed))
    assert after[target] == pytest.approx(before[target], abs=1e-12)
    moved = [p for p in before if store.user_row[p] == user and after[p] != before[p]]
    last = store.offsets[user + 1] - 1
    assert store.timestamp[last] == store.timestamp[target] or last in moved


def test_no_feature_and_no_prediction_of_a_train_row_moves_with_its_own_stars(store, split, text):
    """Each train label in turn, before the first step of a model built anew."""

    def built(store):
        batches = plain_batches(store, split)
        model = build_model(ModelConfig(**STILL), batches, text, seed=0)
        torch.manual_seed(1)
        for table in (model.prior, model.head[-1]):  # not zero, so that all features count
            torch.nn.init.normal_(table.weight, std=0.1)
        return model, batches

    def own(model, batches, position):
        row = split.train[store.user_row[split.train] == store.user_row[position]]
        batch = batches.gather([row])
        dense = (model.dense_features(batch) - model.fact_mean) / model.fact_scale
        mine = batch.position == position
        return torch.cat([dense[mine].flatten(), model(batch)[mine]])

    before = built(store)
    for position in split.train[store.rating[split.train] != 3][::7]:
        after = built(turned(store, np.array([position])))
        torch.testing.assert_close(own(*after, position), own(*before, position),
                                   atol=1e-6, rtol=0)


def test_an_item_without_ratings_is_its_content_alone(small):
    model, _ = small()
    items = model.items
    unrated = torch.nonzero(items.row[FIRST_IDX:] == OOV)[:, 0] + FIRST_IDX
    rated = torch.nonzero(items.row >= FIRST_IDX)[:, 0]
    assert len(unrated) >= 3 and len(rated) > 30
    torch.testing.assert_close(items(unrated), items(unrated, cold=True), atol=0, rtol=0)
    assert not torch.isclose(items(rated), items(rated, cold=True)).all(dim=1).any()
    before = items(unrated)
    with torch.no_grad():
        items.id.weight.normal_()
    torch.testing.assert_close(items(unrated), before, atol=0, rtol=0)


def test_training_doubts_an_item_as_far_as_its_ratings_leave_it_open(small):
    """The noise has the standard deviation of a Gaussian after so many ratings of variance .6."""
    model, batches = small()
    items = model.items
    rated = torch.nonzero(items.row >= FIRST_IDX)[:9, 0]
    drawn = torch.stack([model.train().items(rated)[:, :-1] for _ in range(4000)])
    still = model.eval().items(rated)[:, :-1]
    precision = 1 / items.var[:-1] + items.log_count[rated].expm1().round()[:, None] / 0.6
    torch.testing.assert_close(drawn.std(0), precision.rsqrt(), atol=0, rtol=0.06)
    assert ((drawn.mean(0) - still).abs() < 5 * drawn.std(0) / 4000**0.5).all()
    certain, _ = small(doubt=0.0)
    torch.testing.assert_close(certain.train().items(rated), certain.eval().items(rated))


@pytest.mark.parametrize("attention", ["regression", "softmax"])
def test_the_order_of_a_history_matters(small, attention):
    """Items turn around where stars and times are equal: no mean of the last stars moves."""
    model, batches = small(attention=attention)
    batch = window(batches, max(all_rows(batches), key=len)[-1])
    batch = replace(batch, event_rating=batch.is_event * 3.0, event_time=batch.event_time * 0)
    assert batch.seen.max() > 9 and not set(LAST) & {6, 7, 8}
    items = batch.event_item.flatten().clone()
    items[-9:-5] = items[-9:-5].flip(0)
    flipped = replace(batch, event_item=items.view_as(batch.event_item))
    assert (model(flipped) - model(batch)).abs().max() > 1e-9


OTHER = dict(
    attention="regression", widths=(4, 4), ensemble=1, drift=(0.02, 0.3), forgets=(0.5, 0.1),
    width=6, heads=1, history_len=2, readout="flatten", genres=False, year=False, text=False,
    audience=0, user_id=True, user_features=False, feature_dim=2, dense="bucket",
    hidden=(17, 7, 4))


@pytest.mark.parametrize("name", OTHER)
def test_each_model_field_has_an_effect(small, name):
    (model, batches), (other, _) = small(), small(**{name: OTHER[name]})
    rows = all_rows(batches)
    before, after = predict(model, batches, rows), predict(other, batches, rows)
    assert any(abs(before[p] - after[p]) > 1e-6 for p in before)


def test_the_other_fields_have_an_effect_too(small):
    assert small(dense="bucket", buckets=3)[0].bucket.num_embeddings == 3 * len(DENSE_FEATURES)
    loose, tight = (small(key_var=(v, v))[0].items for v in (1.0, 0.01))
    rated = torch.nonzero(loose.row >= FIRST_IDX)[:, 0]
    own = [(items(rated) - items(rated, cold=True) - items.of_audience(items.audience[rated]))
           for items in (loose, tight)]
    torch.testing.assert_close(own[0][:, :-2], 10 * own[1][:, :-2])
    for name, value in (("dropout", 0.9), ("item_dropout", 0.9), ("doubt", 1.0)):
        model, batches = small(**{**STILL, name: value})
        model.train()
        rows = all_rows(batches)
        assert predict(model, batches, rows) != predict(model, batches, rows)
    tested = {*OTHER, *STILL, "buckets", "key_var", "interest"}  # the last: test_interest.py
    assert tested == {f.name for f in fields(ModelConfig)}


def test_dense_features_are_those_of_plain_loops_over_the_history(small, store):
    model, batches = small()
    batch = batches.gather(all_rows(batches)).to("cpu", torch.float64)
    values, real = model.dense_features(batch), batch.is_target
    count = np.bincount(store.item_idx[batches.split.train], minlength=store.num_items + 2)
    center, spread = model.center.item(), model.spread.item()
    for position, found in zip(batch.position[real].tolist(), values[real].tolist(), strict=True):
        begin = store.offsets[store.user_row[position]]
        history = slice(begin, batches.split.history_stop[position])
        size, stars = history.stop - begin, store.rating[history]
        z, when = (stars - center) / spread, store.timestamp[position]
        since = [(when - store.timestamp[k]) / 3600 if size else 0
                 for k in (begin, history.stop - 1)]
        expected = [
            *np.log1p(since), np.log1p(size), np.log1p(count[store.item_idx[position]]),
            model.items.year[store.item_idx[position]].item(),
            *(((stars == s).sum() - size / 5) / (size + SHRINK) for s in range(1, 6)),
            *(z[-last:].sum() / (min(size, last) + SHRINK) for last in LAST),
            z.sum() / (size + SHRINK), (z**2 - 1).sum() / (size + SHRINK)]
        assert found == pytest.approx(expected, abs=1e-5)
        assert len(found) == len(DENSE_FEATURES)


@pytest.mark.parametrize("attention", ["both", "regression", "softmax"])
def test_one_batch_is_learned_by_heart(store, split, text, attention):
    config = ModelConfig(attention=attention, **STILL, user_id=True, key_var=(9.0, 9.0, 9.0))
    batches = plain_batches(store, split)
    model = build_model(config, batches, text, seed=0)
    batch = batches.gather(batches.epoch("train", batch_size=96, seed=0)[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = model.loss(batch).item()
    assert train_step(model, batch, optimizer, clip=1.0) == pytest.approx(before)
    for _ in range(119):
        train_step(model, batch, optimizer, clip=1.0)
    model.eval()
    error = (model(batch) - batch.label)[batch.is_target]
    assert error.square().mean() < 0.02


def test_the_loss_is_that_of_plain_formulas(small):
    model, batches = small(**STILL)
    batch = batches.gather(all_rows(batches, "train")[:9]).to("cpu", torch.float64)
    real = batch.is_target
    assert not real.all()
    z = (batch.label[real] - model.center) / model.spread
    _, means, variances = model.read(batch)
    heads = ((z[:, None] - means).square() / variances + variances.log()).mean(dim=1)
    items = model.items
    count = np.bincount(batches.store.item_idx[batches.split.train], minlength=60)
    target = batch.target_item[real]
    squares = items.id(items.row[target]).square().sum(-1)
    prior = squares / torch.from_numpy(count)[target] / 2  # two copies of the heads
    error = (model(batch)[real] - model.center) / model.spread - z
    expected = (error.square() + heads + prior).mean()
    assert model.loss(batch).item() == pytest.approx(expected.item(), abs=1e-6)


def test_stars_in_other_units_give_the_same_network(store, split, text):
    """Ten times the stars: ten times the prediction, after training too, but for rounding."""
    found = []
    for unit in (1, 10):
        batches = plain_batches(replace(store, rating=store.rating * unit), split)
        model = build_model(ModelConfig(), batches, text, seed=0)
        optimizer = optimizer_of(model, TrainConfig(lr=1e-3))
        for step, rows in enumerate(batches.epoch("train", batch_size=512, seed=0)):
            torch.manual_seed(step)
            train_step(model, batches.gather(rows), optimizer, clip=1.0)
        model.eval()
        found.append(model(batches.gather(all_rows(batches))) / unit)
    assert found[0].std() > 0.01
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)
