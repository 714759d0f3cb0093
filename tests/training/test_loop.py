"""Batches, order, resume, stopping, loss. Run: pytest tests/training/test_loop.py."""

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import bst.model.batches
from bst.config import ModelConfig, RunConfig, TrainConfig
from bst.data.schema import OOV, PAD, USER_FEATURES, Tables
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from bst.model.batches import Batches, UserVocabulary
from bst.model.features import Base, cold_dense, fit_statistics
from bst.model.network import BST
from bst.training.checkpoint import load_model, load_resume, save_model, save_resume
from bst.training.loop import build_model, fit, learning_rate, predict_part, train_step
from bst.utils.errors import DataError
from bst.utils.files import write_sealed

RUN = RunConfig(
    model=ModelConfig(width=12, heads=3, history_len=13, text_dim=5, hidden=(17, 7, 5)),
    train=TrainConfig(epochs=3, batch_targets=64, patience=5, save_every=4, lr=3e-3),
)


@pytest.fixture
def job(store, split, text, base_of):
    """(out, stop after n steps) -> finished?; a fresh process would do the same."""
    vocabulary = UserVocabulary.fit(store, split)

    def start(out, stop_after=None, run=RUN):
        out.mkdir(exist_ok=True)
        batches = Batches(store, split, vocabulary, base=base_of(split, "bias"),
                          history_len=13, shared=True)
        model = build_model(run.model, batches, text, seed=run.train.seed)
        asked = iter(range(10**6))
        stop = (lambda: next(asked) + 1 == stop_after) if stop_after else (lambda: False)
        return fit(model, batches, run, out, info={}, stop_requested=stop)

    return start


def plain_base(store, seed=0):
    """A base that needs no fit and differs at each position."""
    return Base(*np.random.default_rng(seed).normal(3, 1, (4, len(store))).astype(np.float32))


def plain_batches(store, split, *, history_len=13, shared=True, cold=None):
    return Batches(store, split, UserVocabulary.fit(store, split), base=plain_base(store),
                   history_len=history_len, shared=shared, cold=cold)


def visible(batches, p):
    """Positions that the target at p may see, oldest first, by plain loops."""
    store, split = batches.store, batches.split
    earlier = range(store.offsets[store.user_row[p]], split.history_stop[p])
    return [q for q in earlier if split.is_history[q]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("history_len", [0, 3, 13])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_a_batch_holds_each_target_and_what_it_may_see(tables, protocol, history_len, shared):
    once, idle = (tables.users.tail(1).with_columns(pl.col("user_id") + k) for k in (1, 2))
    last = tables.ratings.sort("timestamp").tail(1).with_columns(
        once["user_id"], pl.col("timestamp") + 9)  # the only rating of its user
    store = build_sequences(Tables(pl.concat([tables.users, once, idle]), tables.movies,
                                   pl.concat([tables.ratings, last])))
    split = split_interactions(store, protocol=protocol)
    batches = plain_batches(store, split, history_len=history_len, shared=shared)
    users = batches.vocabulary.encode(store.users)
    since = [int(t - store.timestamp[store.offsets[u]])
             for t, u in zip(store.timestamp, store.user_row, strict=True)]
    met = []
    for batch in map(batches.gather, batches.epoch("test", batch_targets=7)):
        pad = ~batch.is_target
        assert torch.equal(batch.position == -1, pad)
        assert not batch.label[pad].any() and not batch.base[pad].any()
        assert not batch.target_item[pad].any() and not batch.target_time[pad].any()
        length = batch.stop.amax(dim=1)
        assert batch.event_item.shape[1] == max(1, length.max())
        empty = torch.arange(batch.event_item.shape[1]) >= length[:, None]
        for name in ("event_item", "event_rating", "event_base", "event_time"):
            assert not getattr(batch, name)[empty].any()
        assert not batch.first.amin(dim=1).any()
        for row, slot in batch.is_target.nonzero().tolist():
            p = int(batch.position[row, slot])
            met.append(p)
            sees = visible(batches, p)[-history_len:] if history_len else []
            seen = batch.is_visible[row, slot]
            assert batch.event_item[row, seen].tolist() == store.item_idx[sees].tolist()
            assert batch.event_rating[row, seen].tolist() == store.rating[sees].tolist()
            assert batch.event_base[row, seen].tolist() == batches.base[sees].tolist()
            assert batch.event_time[row, seen].tolist() == [since[q] for q in sees]
            assert batch.user[row].tolist() == users[store.user_row[p]].tolist()
            assert batch.dense[row, slot].tolist() == batches.dense[p].tolist()
            found = (batch.target_item, batch.target_time, batch.base, batch.label)
            assert [t[row, slot].item() for t in found] == [
                store.item_idx[p], since[p], batches.base[p], store.rating[p]]
    assert sorted(met) == split.test.tolist()


def test_a_batch_shows_the_drawn_targets_as_cold_and_no_others(store, split):
    cold, rows = plain_base(store, seed=1), split.train
    batches = plain_batches(store, split, cold=cold)
    drawn = batches.draw_cold(0.3, seed=1, epoch=2)
    np.testing.assert_array_equal(drawn, np.random.default_rng([1, 2, 93]).random(700) < 0.3)
    dense = cold_dense(fit_statistics(store, split, plain_base(store).score), batches.dense[rows],
                       store.item_idx[rows], cold, rows)
    for plan in batches.epoch("train", batch_targets=50):
        batch, real = batches.gather(plan, drawn), batches.gather(plan)
        assert not real.is_cold.any() and not batch.is_cold[~batch.is_target].any()
        for row, slot in batch.is_target.nonzero().tolist():
            p = int(batch.position[row, slot])
            assert bool(batch.is_cold[row, slot]) == drawn[p]
            base, features = (cold.score[p], dense[np.searchsorted(rows, p)]) if drawn[p] else (
                batches.base[p], batches.dense[p])
            assert batch.base[row, slot] == base
            assert batch.dense[row, slot].tolist() == features.tolist()
    assert plain_batches(store, split).draw_cold(0.3, seed=1, epoch=2) is None


DTYPES = {"event_item": torch.int64, "target_item": torch.int64, "user": torch.int64,
          "position": torch.int64, "event_time": torch.int32, "target_time": torch.int32,
          "first": torch.int32, "stop": torch.int32, "event_rating": torch.float32,
          "event_base": torch.float32, "dense": torch.float32, "base": torch.float32,
          "label": torch.float32, "is_cold": torch.bool}


@pytest.mark.parametrize("left", [0, 1, 700])
def test_a_batch_has_its_types_with_and_without_history(store, split, left):
    split = replace(split, is_history=np.arange(700) < left)
    batches = plain_batches(store, split)
    batch = batches.gather(batches.epoch("valid", batch_targets=40)[0])
    assert {name: getattr(batch, name).dtype for name in DTYPES} == DTYPES
    assert batch.event_item.any() == batch.is_visible.any() == (left == 700)
    double = batch.to("cpu", torch.float64)
    for name, dtype in DTYPES.items():
        wanted = torch.float64 if dtype == torch.float32 else dtype
        assert getattr(double, name).dtype == wanted
        assert getattr(double.to("cpu"), name).dtype == dtype
        assert torch.equal(getattr(double, name).to(dtype), getattr(batch, name))
    with pytest.raises(RuntimeError, match="nowhere"):
        batch.to("nowhere")


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - {"position", "is_cold"}))
def test_a_batch_of_uneven_tensors_is_refused(store, split, name):
    batches = plain_batches(store, split)
    batch = batches.gather(batches.epoch("test", batch_targets=40)[0])
    cut = getattr(batch, name)[:-1] if name == "user" else getattr(batch, name)[:, :-1]
    with pytest.raises(ValueError, match=r"expected one \(b, j\) and one \(b, i\), got \["):
        replace(batch, **{name: cut})


def plan(batches, part, *, batch_targets, row_targets, pool, seed, epoch):
    """What `Batches.epoch` plans, by plain loops."""
    targets = batches.split.part(part).tolist()
    rows = [[targets[0]]]
    for before, p in zip(targets, targets[1:], strict=False):
        same = batches.store.user_row[before] == batches.store.user_row[p]
        if same and len(rows[-1]) < row_targets:
            rows[-1].append(p)
        else:
            rows.append([p])
    rng, order = np.random.default_rng([seed or 0, epoch]), np.arange(len(rows))
    order = order if seed is None else rng.permutation(order)
    per_batch, cuts = max(1, batch_targets // row_targets), []
    for some in np.array_split(order, max(1, len(rows) // (per_batch * pool))):
        events = [len({q for p in rows[r] for q in visible(batches, p)[-13:]}) for r in some]
        last, multiple = -1, -1
        for _, r in sorted(zip(events, some, strict=True), key=lambda pair: pair[0]):
            last += len(rows[r])
            if last // batch_targets > multiple:  # the row passes a multiple of `batch_targets`
                cuts.append([])
            cuts[-1].append(rows[r])
            multiple = last // batch_targets
    return cuts if seed is None else [cuts[k] for k in rng.permutation(len(cuts))]


@pytest.mark.parametrize("first_user", [0, 1])
@pytest.mark.parametrize("chance", [{}, {"epoch": 2}, {"seed": 0}, {"seed": 3, "epoch": 2}])
@pytest.mark.parametrize(("shared", "batch_targets"), [
    (True, 23), (True, 3), (True, 500), (False, 20)])
def test_a_batch_plan_is_that_of_plain_loops(
    store, split, monkeypatch, shared, batch_targets, chance, first_user
):
    split = replace(split, train=split.train[store.user_row[split.train] >= first_user])
    monkeypatch.setattr(bst.model.batches, "TARGETS_PER_ROW", 5)
    monkeypatch.setattr(bst.model.batches, "POOL", 4)
    batches = plain_batches(store, split, shared=shared)
    found = [[row.tolist() for row in rows] for rows in
             batches.epoch("train", batch_targets=batch_targets, **chance)]
    assert found == plan(batches, "train", batch_targets=batch_targets, pool=4,
                         row_targets=5 if shared else 1, **{"seed": None, "epoch": 0, **chance})
    gathered = map(batches.gather, batches.epoch("train", batch_targets=batch_targets, **chance))
    assert [b.position[b.is_target].tolist() for b in gathered] == [sum(r, []) for r in found]


def test_a_user_vocabulary_knows_train_alone_and_the_rest_of_a_batch_is_oov(store, split):
    users = store.users.with_columns(
        pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("zip_region")
        .alias("zip_region"))
    store = replace(store, users=users)
    split = replace(split, train=np.flatnonzero(np.isin(store.user_row, [2, 5, 7])))
    vocabulary = UserVocabulary.fit(store, split)
    known = users[[2, 5, 7]]
    assert vocabulary.user_id == known["user_id"].to_list()
    assert vocabulary.features == {
        name: sorted({v for v in known[name] if v is not None}) for name in USER_FEATURES}
    assert vocabulary.sizes == [5, *(2 + len(v) for v in vocabulary.features.values())]
    encoded = vocabulary.encode(users)
    assert encoded.shape == (23, 5) and encoded.dtype == np.int64 and PAD not in encoded
    assert vocabulary.encode(users.clear()).dtype == np.int64
    for row, values in zip(encoded, users.iter_rows(), strict=True):
        tables = (vocabulary.user_id, *vocabulary.features.values())
        for index, value, table in zip(row, values, tables, strict=True):
            assert index == (2 + table.index(value) if value in table else OOV)


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("stops", [(1,), (9, 3), (5, 5, 7)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(job, tmp_path, stops):
    assert job(tmp_path / "whole")
    for stop in stops:
        assert not job(tmp_path / "cut", stop_after=stop)
    assert job(tmp_path / "cut")
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_run_killed_after_a_resume_point_replays_to_the_same_bits(job, tmp_path):
    """A kill loses the steps since the last resume point; the older file is what remains."""
    assert job(tmp_path / "whole")
    assert not job(tmp_path / "cut", stop_after=8)
    old = (tmp_path / "cut" / "resume.pt").read_bytes()
    assert not job(tmp_path / "cut", stop_after=11)
    write_sealed(tmp_path / "cut" / "resume.pt", old)
    assert job(tmp_path / "cut")
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_another_seed_gives_other_bits(job, tmp_path):
    job(tmp_path / "a")
    job(tmp_path / "b", run=replace(RUN, train=replace(RUN.train, seed=1)))
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_patience_ends_the_run_and_the_best_epoch_is_kept(
    job, tmp_path, store, split, base_of
):
    config = replace(RUN, train=replace(RUN.train, epochs=40, patience=2, lr=2e-2))
    job(tmp_path, run=config)
    valid = [row["valid_mae"] for row in rows(tmp_path)]
    best = int(np.argmin(valid))
    assert len(valid) == best + 3 < 40
    model, vocabulary, info = load_model(tmp_path)
    batches = Batches(store, split, vocabulary, base=base_of(split, "bias"),
                      history_len=13, shared=True)
    score = predict_part(model, batches, "valid")[0][split.valid].astype(np.float64)
    assert np.abs(score - store.rating[split.valid]).mean() == pytest.approx(valid[best], abs=1e-9)
    assert info["step"] == rows(tmp_path)[best]["step"]


def test_every_train_target_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch(small):
    _, batches = small()

    def order(**chance):
        plan = batches.epoch("train", batch_targets=50, **chance)
        return np.concatenate([np.concatenate(rows) for rows in plan]).tolist()

    first = order(seed=1, epoch=0)
    assert sorted(first) == batches.split.train.tolist()
    assert first == order(seed=1, epoch=0)
    assert first != order(seed=1, epoch=1) and first != order(seed=2, epoch=0)


def test_a_step_returns_the_loss_before_it_and_lowers_it(small):
    model, batches = small(dropout=0.0, item_dropout=0.0)
    batch = batches.gather(batches.epoch("train", batch_targets=500)[0]).to("cpu", torch.float64)
    before = model.loss(batch).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    assert train_step(model, batch, optimizer, clip=1.0) == pytest.approx(before)
    assert model.loss(batch).item() < before


def test_a_loss_that_is_not_finite_stops_and_names_the_step(small, tmp_path):
    model, batches = small()
    model.float()
    with torch.no_grad():
        model.item_id.weight[5:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is nan"):
        fit(model, batches, RUN, tmp_path, info={})


def test_the_learning_rate_rises_and_then_falls_to_a_hundredth():
    config = TrainConfig(lr=0.5, warmup=0.1)
    assert learning_rate(0.0, config) == 0.0
    assert learning_rate(0.05, config) == pytest.approx(0.25)
    assert learning_rate(0.1, config) == pytest.approx(0.5)
    assert learning_rate(0.55, config) == pytest.approx(0.5 * (0.01 + 0.99 * 0.5))
    assert learning_rate(1.0, config) == pytest.approx(0.005)


def test_a_saved_model_comes_back_bit_by_bit_and_ready_to_score(store, split, text, tmp_path):
    batches = plain_batches(store, split)
    model = build_model(RUN.model, batches, text, seed=3).train()
    info = {"identity": {"hash": "h"}, "step": 7}
    for _ in range(2):  # into a folder that is not there, and into one that is
        save_model(tmp_path / "made" / "here", model, batches.vocabulary, info)
    again, vocabulary, told = load_model(tmp_path / "made" / "here")
    assert not again.training and vocabulary == batches.vocabulary
    assert told["version"] == 1 and {key: told[key] for key in info} == info
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_resume_state_comes_back_and_before_the_first_there_is_none(tmp_path):
    assert load_resume(tmp_path) is None
    state = {"step": 3, "best": [0.5, None], "model": {"a": torch.randn(3, 2)}}
    save_resume(tmp_path, state)
    found = load_resume(tmp_path)
    assert torch.equal(found["model"].pop("a"), state["model"].pop("a")) and found == state


@pytest.mark.parametrize(("error", "told"), [
    (RuntimeError("first\nsecond"), "(first)"), (KeyError(), "(KeyError)")])
def test_whatever_a_damaged_file_raises_is_told_in_one_line_of_the_model_and_the_state(
    store, split, text, tmp_path, monkeypatch, error, told
):
    batches = plain_batches(store, split)
    save_model(tmp_path, build_model(RUN.model, batches, text, seed=3), batches.vocabulary, {})
    save_resume(tmp_path, {})

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(BST, "from_json", fail)
    monkeypatch.setattr(torch, "load", fail)
    for load, what in ((load_model, f"{tmp_path}: model.json and model.safetensors do not fit"),
                       (load_resume, f"{tmp_path}/resume.pt: not a resume state")):
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        assert str(caught.value).startswith(what) and told in str(caught.value)
        assert "train again" in str(caught.value) or "delete it" in str(caught.value)
        assert caught.value.__cause__ is error and "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "model.json").unlink(), "no readable model .*No such file"),
    (lambda f: (f / "model.safetensors").unlink(), "no readable model .*No such file"),
    (lambda f: write_sealed(f / "model.safetensors", b"\x80\x04."), "no readable model"),
    (lambda f: write_sealed(f / "model.json", b'{"version": 9}'), "version 9, expected 1"),
    (lambda f: write_sealed(f / "model.json", b'["a long list of strings"]'),
     r"model.json holds \[.a long list of str, expected an object"),
])
def test_a_damaged_model_folder_is_refused_in_one_line(
    store, split, text, tmp_path, damage, message
):
    batches = plain_batches(store, split)
    save_model(tmp_path, build_model(RUN.model, batches, text, seed=3), batches.vocabulary, {})
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value) and "train" in str(caught.value)  # says what to do


def test_a_pickle_bomb_in_place_of_the_resume_state_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return (marker.write_text, ("boom",))

    content = io.BytesIO()
    torch.save({"model": Bomb()}, content)
    write_sealed(tmp_path / "resume.pt", content.getvalue())
    with pytest.raises(DataError, match="not a resume state"):
        load_resume(tmp_path)
    assert not marker.exists()
