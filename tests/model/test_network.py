"""Reference, invariances, leaks and knobs of the network.

Run: pytest tests/model/test_network.py.
"""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bst.model.base import base_scores
from bst.model.features import DENSE
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from bst.config import ModelConfig
from bst.data.schema import OOV
from bst.data.splits import split_interactions
from bst.model.batches import Batches, UserVocabulary
from bst.model.network import BST, HALF_STARS, EncoderBlock, Sizes, log_bucket
from bst.training.loop import build_model, rating_rows, train_step
from tests.conftest import from_then_on, turned

FORMS = [dict(readout="target"), dict(readout="flatten"), dict(readout="target", layers=2),
         dict(layers=0), dict(rating_input="multiply"), dict(rating_input="residual"),
         dict(rating_input="embedding"),
         dict(dense="bucket", user_id=True, base="mean"), dict(loss="ordinal"),
         dict(layers=0, readout="mean"), dict(dense="piecewise")]


def predict(model, batches, rows):
    """Predictions by position."""
    batch = batches.gather(rows).to("cpu", torch.float64)
    scores, real = model(batch), batch.is_target
    return dict(zip(batch.position[real].tolist(), scores[real].tolist(), strict=True))


def all_rows(batches, part="test"):
    return [row for batch in batches.epoch(part, batch_targets=10**6) for row in batch]


def test_block_matches_the_bert_layer_of_transformers():
    theirs = BertLayer(BertConfig(hidden_size=20, num_attention_heads=5, intermediate_size=80,
                                  hidden_act="leaky_relu", layer_norm_eps=1e-5,
                                  attn_implementation="eager")).eval()
    ours = EncoderBlock(20, 5, dropout=0.3).eval()
    attention = theirs.attention
    for name in ("weight", "bias"):
        parts = [getattr(getattr(attention.self, p), name) for p in ("query", "key", "value")]
        pairs = [(ours.qkv, torch.cat(parts)), (ours.out, getattr(attention.output.dense, name)),
                 (ours.norm_attn, getattr(attention.output.LayerNorm, name)),
                 (ours.ffn[0], getattr(theirs.intermediate.dense, name)),
                 (ours.ffn[2], getattr(theirs.output.dense, name)),
                 (ours.norm_ffn, getattr(theirs.output.LayerNorm, name))]
        for module, value in pairs:
            getattr(module, name).data.copy_(value)
    x, is_real = torch.randn(3, 7, 20), torch.ones(3, 7, dtype=torch.bool)
    is_real[:, :2] = False
    bias = torch.zeros(3, 1, 1, 7).masked_fill(~is_real[:, None, None], torch.finfo(x.dtype).min)
    expected = theirs(x, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours(x, bias), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_alone_equals_the_row_in_its_batch(small, form):
    model, batches = small(**form)
    rows = all_rows(batches)
    together = predict(model, batches, rows)
    for row in rows[:9]:
        for position, score in predict(model, batches, [row]).items():
            assert score == pytest.approx(together[position], abs=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_more_padding_changes_nothing(small, form):
    model, batches = small(**form)
    batch = batches.gather(all_rows(batches)[:5]).to("cpu", torch.float64)
    wider = {f: torch.nn.functional.pad(getattr(batch, f), (0, 3))
             for f in ("event_item", "event_rating", "event_base", "event_time")}
    torch.testing.assert_close(model(replace(batch, **wider)), model(batch), atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", [dict(), dict(position="gap"), dict(rating_input="residual"),
                                  dict(history_len=3), dict(history_len=0),
                                  dict(layers=0, readout="mean")])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_shared_history_is_the_window_form(small, store, form, protocol):
    split = split_interactions(store, protocol=protocol)
    model, shared = small(split=split, **form)
    _, windows = small(split=split, shared=False, **form)
    for part in ("train", "test"):
        ours = predict(model, shared, all_rows(shared, part))
        theirs = predict(model, windows, all_rows(windows, part))
        assert ours.keys() == theirs.keys() == set(split.part(part))
        for position, score in ours.items():
            assert score == pytest.approx(theirs[position], abs=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_the_targets_rating_and_later_ones_change_no_prediction(small, store, form):
    model, batches = small(**form)
    before = predict(model, batches, all_rows(batches))
    user = store.user_row[batches.split.test[0]]
    target = batches.split.test[store.user_row[batches.split.test] == user][0]
    other = turned(store, from_then_on(store, target))
    vocabulary = UserVocabulary.fit(store, batches.split)
    base = base_scores(other, batches.split, model.config.base)
    perturbed = Batches(other, batches.split, vocabulary, base=base,
                        history_len=model.config.history_len, shared=model.config.shares_history)
    after = predict(model, perturbed, all_rows(perturbed))
    assert after[target] == pytest.approx(before[target], abs=1e-12)
    moved = [p for p in before if store.user_row[p] == user and after[p] != before[p]]
    last = store.offsets[user + 1] - 1
    assert store.timestamp[last] == store.timestamp[target] or last in moved


def test_history_order_matters(small):
    model, batches = small()
    row = max(all_rows(batches), key=len)
    batch = batches.gather([row]).to("cpu", torch.float64)
    flipped = replace(batch, event_item=batch.event_item.flip(1))
    assert not torch.allclose(model(flipped), model(batch))


@pytest.mark.parametrize("form", FORMS)
def test_empty_history_new_user_and_new_movie_are_scored(small, store, form):
    model, batches = small(**form)
    batch = batches.gather(all_rows(batches)[:4]).to("cpu", torch.float64)
    unseen = int(torch.nonzero(model.item_vocab[2:] == OOV)[0]) + 2
    bare = replace(
        batch, event_item=batch.event_item * 0, stop=batch.stop * 0, first=batch.first * 0,
        user=batch.user * 0 + OOV, target_item=torch.full_like(batch.target_item, unseen))
    assert model(bare).isfinite().all()


@pytest.mark.parametrize("changes", [
    dict(width=6), dict(heads=1), dict(layers=0), dict(history_len=2), dict(readout="flatten"),
    dict(rating_input="residual"), dict(position="none"), dict(genres=False), dict(year=False),
    dict(text=False), dict(text_dim=4), dict(user_id=True), dict(user_features=False),
    dict(feature_dim=2), dict(dense="bucket"), dict(base="mean"), dict(hidden=(17, 7, 4)),
    dict(loss="ordinal"),
], ids=lambda c: next(iter(c)))
def test_each_model_field_has_an_effect(small, changes):
    (model, batches), (other, theirs) = small(), small(**changes)
    before = predict(model, batches, all_rows(batches))
    after = predict(other, theirs, all_rows(theirs))
    assert any(abs(before[p] - after[p]) > 1e-6 for p in before)


def test_buckets_and_dropouts_have_an_effect(small):
    assert small(dense="piecewise", buckets=4)[0].head[0].in_features == (
        small(dense="none")[0].head[0].in_features + 3 * len(DENSE))
    assert small(dense="bucket", buckets=3)[0].dense.num_embeddings == 3 * len(DENSE)
    for changes in (dict(dropout=0.0, item_dropout=0.9), dict(dropout=0.9, item_dropout=0.0)):
        model, batches = small(**changes)
        model.train()
        rows = all_rows(batches)
        assert predict(model, batches, rows) != predict(model, batches, rows)
    tested = {"buckets", "dropout", "item_dropout"} | {
        "width", "heads", "layers", "history_len", "readout", "rating_input", "position", "genres",
        "year", "text", "text_dim", "user_id", "user_features", "feature_dim", "dense", "base",
        "hidden", "loss"}
    tested |= {"interest", "cold"}  # tests/model/test_interest.py, tests/model/test_cold.py
    assert tested == {f.name for f in fields(ModelConfig)}


def test_a_missing_overview_is_learned_and_not_a_zero_vector(small):
    model, batches = small()
    rows = all_rows(batches)
    before = predict(model, batches, rows)
    with torch.no_grad():
        model.no_text += 1.0
    after = predict(model, batches, rows)
    textless = ~model.item_has_text.numpy()[batches.store.item_idx]
    moved = np.array([p for p in before if before[p] != after[p]])
    assert textless[[p for p in before if p in set(moved)]].any() and len(moved) < len(before)


def test_one_batch_is_learned_by_heart(store, split, text, base_of):
    config = ModelConfig(width=16, heads=2, dropout=0.0, item_dropout=0.0, history_len=20,
                         user_id=True)
    vocabulary = UserVocabulary.fit(store, split)
    batches = Batches(store, split, vocabulary, base=base_of(split, "factors"),
                      history_len=20, shared=True)
    model = build_model(config, batches, text, seed=0)
    batch = batches.gather(batches.epoch("train", batch_targets=64, seed=0)[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = [train_step(model, batch, optimizer, clip=1.0) for _ in range(300)]
    assert losses[0] > 1.0 and losses[-1] < 0.01


def test_the_losses_are_those_of_plain_formulas(small):
    models = {}
    for kind in ("mse", "huber", "ordinal"):
        model, batches = small(loss=kind, dropout=0.0, item_dropout=0.0)
        models[kind] = model
        batch = batches.gather(batches.epoch("train", batch_targets=500)[0])
        batch = batch.to("cpu", torch.float64)
    real, label = batch.is_target, batch.label[batch.is_target]
    assert not real.all()
    error = (models["mse"](batch)[real] - label).abs()
    assert models["mse"].loss(batch).item() == pytest.approx((error**2).mean().item())
    error = (models["huber"](batch)[real] - label).abs()
    expected = torch.where(error < 1, error**2 / 2, error - 0.5).mean()
    assert models["huber"].loss(batch).item() == pytest.approx(expected.item())
    model = models["ordinal"]
    score, spread = (t[real].tolist() for t in model._score(batch, *model._encode(batch)))
    shift = model.threshold.tolist()
    edges = [e + d for e, d in zip((1.5, 2.5, 3.5, 4.5), shift, strict=True)]
    expected, means, medians = 0.0, [], []
    for s, w, stars in zip(score, spread, label.tolist(), strict=True):
        below = [0.0, *(1 / (1 + np.exp((s - e) / w)) for e in edges), 1.0]
        probs = np.maximum(np.diff(below), 1e-6)
        expected -= np.log(probs[int(stars) - 1]) / len(label)
        means.append(probs @ np.arange(1, 6))
        medians.append(1 + sum(b < 0.5 for b in below[1:5]))
    assert model.loss(batch).item() == pytest.approx(expected)
    found_mean, found_star = model.predict(batch)
    np.testing.assert_allclose(found_mean[real].tolist(), np.clip(means, 1, 5), atol=1e-6)
    assert found_star[real].tolist() == medians


def test_the_whole_star_of_a_point_prediction_is_the_nearest_one(small):
    model, batches = small()
    batch = batches.gather(all_rows(batches)).to("cpu", torch.float64)
    mean, star = model.predict(batch)
    assert star.unique().tolist() == sorted(set(star.flatten().tolist())) and len(star.unique()) > 2
    assert torch.equal(star, mean.round().clamp(1, 5))


def test_log_bucket_counts_half_octaves():
    x = np.arange(0, 5000)
    octave = np.floor(np.log2(x + 1)).astype(int)
    upper_half = (x + 1) >= 1.5 * 2.0**octave
    np.testing.assert_array_equal(log_bucket(torch.from_numpy(x)).numpy(), 2 * octave + upper_half)


@pytest.mark.parametrize(("levels", "rows"), [
    ([0.5, 1.0, 4.5, 5.0], [1, 2, 9, 10]), ([1.0, 5.0], [2, 10]), ([1.0, 10.0], [2, 20]),
    ([0.0, 50.0, 100.0], [1, 12, 23]), ([-10.0, 10.0], [1, 23]), ([0.0], [1]),
    ([1.2, 3.4], [1, 23])])
def test_each_scale_has_its_rows_in_the_rating_table(levels, rows):
    """Half stars have theirs; another scale is spread over the table. Row 0 is no rating."""
    zero, step = rating_rows(np.array(levels, np.float32))
    config = ModelConfig(width=6, heads=1, rating_input="embedding", text=False)
    sizes = Sizes(items=3, known_items=3, genres=1, text=0, users=(2,) * 5, dense=28,
                  rating_zero=zero, rating_step=step)
    model, x = BST(config, sizes), torch.randn(1, len(levels) + 2, 6)
    history = torch.tensor([[*levels, levels[0] - 500, levels[-1] + 500]])  # not met in training
    tokens = model._event_tokens(x, SimpleNamespace(event_rating=history))
    expected = model.norm_token(x + model.rating.weight[[*rows, 1, HALF_STARS - 1]])
    torch.testing.assert_close(tokens, expected)
