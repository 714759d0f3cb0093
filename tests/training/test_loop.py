"""Batches, order, resume, stopping, loss. Run: pytest tests/training/test_loop.py."""

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import bst.model.batches
import bst.training.checkpoint
import bst.training.loop
from bst.config import ModelConfig, RunConfig, TrainConfig
from bst.data.schema import OOV, PAD, USER_FEATURES, Tables
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from bst.model.batches import Batches, UserVocabulary
from bst.model.build import build_model
from bst.model.network import BST
from bst.training.checkpoint import load_model, load_resume, save_model, save_resume
from bst.training.loop import averaged, fit, learning_rate, optimizer_of, predict_part, train_step
from bst.utils.errors import DataError
from bst.utils.files import write_sealed

RUN = RunConfig(
    model=ModelConfig(widths=(5, 3), drift=(0.01, 0.3), forgets=(0.02, 0.1), key_var=(0.1, 0.1),
                      width=12, heads=3, history_len=13, hidden=(17, 7, 5)),
    train=TrainConfig(epochs=3, batch_size=128, patience=5, save_every=4, lr=3e-3),
)


def plain_batches(store, split):
    return Batches(store, split, UserVocabulary.fit(store, split))


@pytest.fixture
def job(store, split, text):
    """(out, stop after n steps) -> finished?; a fresh process would do the same."""

    def start(out, stop_after=None, run=RUN, spoil=lambda model: None):
        out.mkdir(exist_ok=True)
        batches = plain_batches(store, split)
        model = build_model(run.model, batches, text, seed=run.train.seed)
        spoil(model)
        asked = iter(range(10**6))
        stop = (lambda: next(asked) + 1 == stop_after) if stop_after else (lambda: False)
        return fit(model, batches, run, out, info={}, stop_requested=stop)

    return start


def visible(batches, p):
    """Positions that the target at p may see, oldest first, by plain loops."""
    store, split = batches.store, batches.split
    earlier = range(store.offsets[store.user_row[p]], split.history_stop[p])
    return [q for q in earlier if split.is_history[q]]


@pytest.mark.parametrize("chunk", [5, 32])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
@pytest.mark.parametrize("batch_size", [40, 400])
def test_a_batch_holds_each_target_and_what_it_may_see(
    tables, monkeypatch, protocol, batch_size, chunk
):
    monkeypatch.setattr(bst.model.batches, "CHUNK", chunk)
    once, idle = (tables.users.tail(1).with_columns(pl.col("user_id") + k) for k in (1, 2))
    last = tables.ratings.sort("timestamp").tail(1).with_columns(
        once["user_id"], pl.col("timestamp") + 9)  # the only rating of its user
    store = build_sequences(Tables(pl.concat([tables.users, once, idle]), tables.movies,
                                   pl.concat([tables.ratings, last])))
    split = split_interactions(store, protocol=protocol)
    batches = plain_batches(store, split)
    users = batches.vocabulary.encode(store.users)
    met = []
    for batch in map(batches.gather, batches.epoch("test", batch_size=batch_size)):
        pad = ~batch.is_target
        assert torch.equal(batch.position == -1, pad)
        for name in ("target_item", "target_time", "stop", "label"):
            assert not getattr(batch, name)[pad].any()
        for name in ("event_item", "event_rating", "event_time"):
            assert not getattr(batch, name)[~batch.is_event].any()
        assert pad.any(dim=2).sum() < pad.any(dim=2).numel()  # no slot that no target needs
        assert (~pad).any(dim=2).any(dim=0)[0]  # and no chunk before the first target's
        met += batch.position[~pad].tolist()
        items, rating, time, real = (x.flatten(1) for x in (
            batch.event_item, batch.event_rating, batch.event_time, batch.is_event))
        for row, k, i in batch.is_target.nonzero().tolist():
            p, slot = int(batch.position[row, k, i]), int(batch.slot[row, k, i])
            sees, seen = visible(batches, p), real[row, :slot]
            assert batch.seen[row, k, i] == len(sees)
            assert items[row, :slot][seen].tolist() == store.item_idx[sees].tolist()
            assert rating[row, :slot][seen].tolist() == store.rating[sees].tolist()
            since = batch.target_time[row, k, i] - time[row, :slot][seen]
            assert since.tolist() == (store.timestamp[p] - store.timestamp[sees]).tolist()
            assert batch.user[row].tolist() == users[store.user_row[p]].tolist()
            assert batch.target_item[row, k, i] == store.item_idx[p]
            assert batch.label[row, k, i] == store.rating[p]
        for row, has in enumerate(real):  # padded in front, and time 0 is the first event
            assert has.sum() == 0 or has[-int(has.sum()):].all()
            first = batch.target_time[row][~pad[row]] if not has.any() else time[row][has]
            assert first[0] == 0
    assert sorted(met) == split.test.tolist()


DTYPES = {"event_item": torch.int64, "target_item": torch.int64, "user": torch.int64,
          "position": torch.int64, "event_time": torch.int64, "target_time": torch.int64,
          "stop": torch.int64, "event_rating": torch.float32, "label": torch.float32}


@pytest.mark.parametrize("left", [0, 1, 700])
def test_a_batch_has_its_types_with_and_without_history(store, split, left):
    split = replace(split, is_history=np.arange(700) < left)
    batches = plain_batches(store, split)
    batch = batches.gather(batches.epoch("valid", batch_size=400)[0])
    assert {name: getattr(batch, name).dtype for name in DTYPES} == DTYPES
    assert batch.event_item.any() == batch.seen[batch.is_target].any() == (left > 0)
    double = batch.to("cpu", torch.float64)
    for name, dtype in DTYPES.items():
        wanted = torch.float64 if dtype == torch.float32 else dtype
        assert getattr(double, name).dtype == wanted
        assert getattr(double.to("cpu"), name).dtype == dtype
        assert torch.equal(getattr(double, name).to(dtype), getattr(batch, name))
    with pytest.raises(RuntimeError, match="nowhere"):
        batch.to("nowhere")


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_a_batch_of_uneven_tensors_is_refused(store, split, name):
    batches = plain_batches(store, split)
    batch = batches.gather(batches.epoch("test", batch_size=400)[0])
    cut = getattr(batch, name)[:-1] if name == "user" else getattr(batch, name)[:, :-1]
    with pytest.raises(ValueError, match=r"expected \(b, c, n\) and \(b, t, i\), got \["):
        replace(batch, **{name: cut})


def plan(batches, part, *, batch_size, seed, epoch, chunk):
    """What `Batches.epoch` plans, by plain loops."""
    rows = {}
    for p in batches.split.part(part).tolist():
        rows.setdefault(batches.store.user_row[p], []).append(p)
    rows, chunks, most = list(rows.values()), [], []
    for row in rows:
        sees = [len(visible(batches, p)) for p in row]
        chunks.append(max(1, -(-max(sees) // chunk)))
        back = [min(chunks[-1] - 1, (max(sees) - s) // chunk) for s in sees]  # from the last chunk
        at_end = [(max(sees) - s) % chunk == 0 and s < max(sees) for s in sees]
        most.append(max(Counter(
            b - e for b, e in zip(back, at_end, strict=True)).values()))
    rng, key = np.random.default_rng([seed or 0, epoch]), np.array(chunks, float)
    if seed is not None:
        key *= np.exp(rng.normal(0, 0.1, len(rows)))
    cuts = [[]]
    for r in sorted(range(len(rows)), key=lambda r: key[r]):
        new = [*cuts[-1], r]
        size = len(new) * max(chunks[k] for k in new) * max(chunk, *(most[k] for k in new))
        if cuts[-1] and size > batch_size:
            cuts.append([r])
        else:
            cuts[-1] = new
    cuts = [[rows[r] for r in cut] for cut in cuts]
    return cuts if seed is None else [cuts[k] for k in rng.permutation(len(cuts))]


@pytest.mark.parametrize("first_user", [0, 1])
@pytest.mark.parametrize("chance", [{}, {"epoch": 2}, {"seed": 0}, {"seed": 3, "epoch": 2}])
@pytest.mark.parametrize(("chunk", "batch_size"), [(5, 1), (5, 80), (5, 300), (32, 200)])
def test_a_batch_plan_is_that_of_plain_loops_and_keeps_to_its_size(
    store, split, monkeypatch, chunk, batch_size, chance, first_user
):
    monkeypatch.setattr(bst.model.batches, "CHUNK", chunk)
    for part in ("train", "test"):
        targets = split.part(part)
        cut = replace(split, **{part: targets[store.user_row[targets] >= first_user]})
        batches = plain_batches(store, cut)
        planned = batches.epoch(part, batch_size=batch_size, **chance)
        assert [[row.tolist() for row in rows] for rows in planned] == plan(
            batches, part, batch_size=batch_size, chunk=chunk,
            **{"seed": None, "epoch": 0, **chance})
        for rows, batch in zip(planned, map(batches.gather, planned), strict=True):
            assert sorted(batch.position[batch.is_target].tolist()) == sorted(
                p for row in rows for p in row)
            size = max(batch.event_item.numel(), batch.target_item.numel())
            assert size <= batch_size or len(rows) == 1


def test_a_part_without_targets_has_no_batch(store, split):
    batches = plain_batches(store, replace(split, valid=split.valid[:0]))
    assert batches.epoch("valid", batch_size=99) == []
    assert batches.epoch("valid", batch_size=99, seed=1) == []


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


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_bits(folder, other):
    """The best model, the log, and in the end weights, their mean, the optimizer, the counters."""
    assert weights(folder) == weights(other) and rows(folder) == rows(other)

    def compare(ours, theirs):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            ours, theirs = list(ours.values()), list(theirs.values())
        if isinstance(ours, list):
            for pair in zip(ours, theirs, strict=True):
                compare(*pair)
        else:
            assert torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs

    ours, theirs = load_resume(folder), load_resume(other)
    assert set(ours) == {"model", "mean", "optimizer", "progress"}
    compare(ours, theirs)


@pytest.mark.parametrize("stops", [(1,), (9, 3), (5, 5, 7)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(job, tmp_path, stops):
    assert job(tmp_path / "whole")
    for stop in stops:
        assert not job(tmp_path / "cut", stop_after=stop)
    assert job(tmp_path / "cut")
    assert_same_bits(tmp_path / "cut", tmp_path / "whole")


class Killed(BaseException):
    """Nothing catches it."""


def test_a_run_killed_at_any_write_replays_to_the_same_bits(job, tmp_path, monkeypatch):
    """A kill loses the steps since the last resume point, and nothing is logged twice."""
    run = replace(RUN, train=replace(RUN.train, epochs=1))
    assert job(tmp_path / "whole", run=run)
    left, write = [0], bst.training.checkpoint.write_sealed

    def write_or_die(*what):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        write(*what)

    for module in (bst.training.checkpoint, bst.training.loop):
        monkeypatch.setattr(module, "write_sealed", write_or_die)
    for number in range(1, 100):
        out, left[0] = tmp_path / str(number), number
        try:
            assert job(out, run=run)
        except Killed:
            assert job(out, run=run)
            assert_same_bits(out, tmp_path / "whole")
        else:
            break
    assert number > 6


def test_the_same_seed_gives_the_same_bits_and_another_one_others(job, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job(tmp_path / name, run=replace(RUN, train=replace(RUN.train, seed=seed)))
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_patience_ends_the_run_and_the_best_epoch_is_kept(job, tmp_path, store, split):
    config = replace(RUN, train=replace(RUN.train, epochs=40, patience=2, batch_size=256))
    job(tmp_path, run=config)
    valid = [row["valid_mae"] for row in rows(tmp_path)]
    best = int(np.argmin(valid))
    assert [row["epoch"] for row in rows(tmp_path)] == list(range(best + 3)) and 0 < best < 37
    model, vocabulary, info = load_model(tmp_path)
    score = predict_part(model, Batches(store, split, vocabulary), "valid")[0][split.valid]
    mae = np.abs(score.astype(np.float64) - store.rating[split.valid]).mean()
    assert mae == pytest.approx(valid[best], abs=1e-9)
    assert info["step"] == rows(tmp_path)[best]["step"]


def test_patience_counts_epochs_since_the_best_one(job, tmp_path, store, monkeypatch):
    errors = [3.0, 2.0, 2.5, 1.9, 2.2, 2.1, 0.1]  # before training, then of each epoch
    scripted = iter(errors)
    monkeypatch.setattr(bst.training.loop, "predict_part",
                        lambda *_, **__: (store.rating + next(scripted), None))
    assert job(tmp_path, run=replace(RUN, train=replace(RUN.train, epochs=9, patience=2)))
    found = rows(tmp_path)
    assert [row["valid_mae"] for row in found] == pytest.approx(errors[:-1])
    assert load_model(tmp_path)[2]["step"] == found[3]["step"]


def test_training_that_only_harms_leaves_the_model_as_it_was_before_the_first_step(
    job, tmp_path, store, split, text
):
    job(tmp_path, run=replace(RUN, train=replace(RUN.train, lr=0.5, lr_dense=0.5, average=0.0)))
    valid = [row["valid_mae"] for row in rows(tmp_path)]
    assert len(valid) == 4 and valid[0] < min(valid[1:])
    model, _, info = load_model(tmp_path)
    fresh = build_model(RUN.model, plain_batches(store, split), text, seed=0)
    assert info["step"] == 0
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_every_train_target_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch(small):
    _, batches = small()

    def order(**chance):
        plan = batches.epoch("train", batch_size=200, **chance)
        return np.concatenate([np.concatenate(rows) for rows in plan]).tolist()

    first = order(seed=1, epoch=0)
    assert sorted(first) == batches.split.train.tolist()
    assert first == order(seed=1, epoch=0)
    assert first != order(seed=1, epoch=1) and first != order(seed=2, epoch=0)


def test_a_step_returns_the_loss_before_it_and_lowers_it(small):
    model, batches = small(dropout=0.0, item_dropout=0.0)
    batch = batches.gather(batches.epoch("train", batch_size=999)[0]).to("cpu", torch.float64)
    before = model.loss(batch, 560).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    assert train_step(model, batch, optimizer, clip=1.0) == pytest.approx(before)
    assert model.loss(batch, 560).item() < before


def test_what_has_a_prior_has_no_decay_and_a_rate_of_its_own(small):
    model, _ = small()
    optimizer = optimizer_of(model, TrainConfig(lr=0.3, lr_dense=0.2, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    heads, rest = ([names.pop(id(p)) for p in group["params"]] for group in optimizer.param_groups)
    assert not names  # each parameter once
    assert {name.split(".")[0] for name in heads} == {"items", "users", "prior", "regression"}
    assert {name.split(".")[0] for name in rest} == {"token", "rating", "norm_token", "softmax",
                                                     "head"}
    assert [(group["peak"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.3, 0.0), (0.2, 0.1)]


def test_both_rates_rise_and_then_fall_to_a_twentieth(job, tmp_path):
    assert learning_rate(0.0, 0.5, 0.1) == 0.0
    assert learning_rate(0.05, 0.5, 0.1) == pytest.approx(0.25)
    assert learning_rate(0.1, 0.5, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.55, 0.5, 0.1) == pytest.approx(0.5 * (0.05 + 0.95 * 0.5))
    assert learning_rate(1.0, 0.5, 0.1) == pytest.approx(0.025)
    job(tmp_path)
    last = rows(tmp_path)[-1]["step"]
    for group, peak in zip(load_resume(tmp_path)["optimizer"]["param_groups"],
                           (RUN.train.lr, RUN.train.lr_dense), strict=True):
        assert group["lr"] == pytest.approx(learning_rate(1 - 1 / last, peak, 0.03))


@pytest.mark.parametrize(("keep", "shares"), [
    (0.0, [0, 0, 0, 1]), (0.9, [0.25] * 4), (0.6, [0.6**2 / 2, 0.6**2 / 2, 0.24, 0.4])])
def test_the_running_mean_is_the_plain_one_at_first(small, keep, shares):
    model, _ = small()
    mean, met = averaged(model, keep), []
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        met.append([p.detach().clone() for p in model.parameters()])
        mean.update_parameters(model)
    for found, *steps in zip(mean.module.parameters(), *met, strict=True):
        expected = sum(share * step for share, step in zip(shares, steps, strict=True))
        torch.testing.assert_close(found.detach(), expected)


def fails_at(step, fault):
    """Spoils the loss of one step: `fault(loss, model)` in its place."""

    def spoil(model):
        lose, steps = model.loss, iter(range(10**6))
        model.loss = lambda *about: (fault if next(steps) == step else lambda loss, _: loss)(
            lose(*about), model)

    return spoil


@pytest.mark.parametrize(("fault", "told"), [
    (lambda loss, _: loss * torch.nan, "the loss is nan"),
    (lambda loss, _: loss / 0.0, "the loss is -?inf"),
    (lambda loss, model: loss + (model.items.id.weight.sum() * 0).sqrt(),
     "the norm of the gradient is nan"),
    (lambda loss, _: torch.linalg.cholesky(-torch.eye(2)).sum(), "the loss is nan")])
def test_a_step_that_fails_stops_the_run_names_itself_and_changes_nothing(
    job, tmp_path, fault, told
):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert not job(whole, stop_after=8)
    with pytest.raises(FloatingPointError, match=f"^step 9: {told}; the last resume point"
                       ) as caught:
        job(out, spoil=fails_at(9, fault))
    assert "\n" not in str(caught.value)
    assert_same_bits(out, whole)  # what stands there is of step 8


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_prediction_that_fails_stops_the_run_and_keeps_the_best_model(
    job, tmp_path, split, monkeypatch, epoch
):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert job(whole, run=replace(RUN, train=replace(RUN.train, epochs=1)))
    step = rows(whole)[epoch]["step"]
    validations, predict = [], BST.predict

    def predict_or_fail(model, batch):
        validations.append(1)
        if epoch == 0 or len(validations) > 1:
            torch.linalg.cholesky(-torch.eye(2))
        return predict(model, batch)

    monkeypatch.setattr(BST, "predict", predict_or_fail)
    with pytest.raises(FloatingPointError, match=(
            f"^step {step}: {len(split.valid)} of the predictions of valid are not finite; ")):
        job(out)
    if epoch:
        assert load_model(out)[2]["step"] == 0 and rows(out) == rows(whole)[:1]
    else:
        assert not list(out.iterdir())


def test_a_saved_model_comes_back_bit_by_bit_and_ready_to_score(store, split, text, tmp_path):
    batches = plain_batches(store, split)
    model = build_model(RUN.model, batches, text, seed=3).train()
    info = {"identity": {"hash": "h"}, "step": 7}
    for _ in range(2):  # into a folder that is not there, and into one that is
        save_model(tmp_path / "made" / "here", model, batches.vocabulary, info)
    again, vocabulary, told = load_model(tmp_path / "made" / "here")
    assert not again.training and vocabulary == batches.vocabulary
    assert told["version"] == 2 and {key: told[key] for key in info} == info
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
    (lambda f: write_sealed(f / "model.json", b'{"version": 9}'), "version 9, expected 2"),
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
