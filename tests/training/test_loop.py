"""Resume, stopping, loss, the run folder. Run: pytest tests/training/test_loop.py."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils._pytree import tree_flatten

import bst.training.loop
from bst.config import TrainConfig
from bst.data.schema import FIRST_IDX, OOV
from bst.model.batches import Batches
from bst.model.build import build_model
from bst.model.network import Network
from bst.training.checkpoint import load_model, load_resume
from bst.training.loop import averaged, fit, learning_rate, optimizer_of, predict_part
from tests.conftest import RUN, bits, logged, plain_batches


@pytest.fixture
def job(store, split, text):
    """(out, stop after n steps, TrainConfig) -> finished?; a fresh process would do the same."""

    def start(out, stop_after=None, spoil=lambda model: None, store=store, interest=0, **changes):
        out.mkdir(exist_ok=True)
        run = replace(RUN, train=replace(RUN.train, **changes),
                      model=replace(RUN.model, interest=interest))
        batches = plain_batches(store, split)
        model = build_model(run.model, batches, text, seed=run.train.seed)
        spoil(model)
        asked = iter(range(10**6))
        stop = (lambda: next(asked) + 1 == stop_after) if stop_after else (lambda: False)
        return fit(model, batches, run, out, info={}, stop_requested=stop)

    return start


def assert_same_bits(folder, other):
    """The best model, the log, and in the end weights, their mean, the optimizer, the counters."""
    assert bits(folder) == bits(other)
    ours, theirs = load_resume(folder), load_resume(other)
    assert set(ours) == {"model", "mean", "optimizer", "progress", "log"}
    assert len(ours.pop("log")) == len(theirs.pop("log")) == len(logged(folder))
    (ours, shape), (theirs, other_shape) = map(tree_flatten, (ours, theirs))
    assert shape == other_shape
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b
               for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("stops", "interest"), [
    ((1,), 0), ((9, 3), 0), ((5, 5, 7), 0), ((3, 16, 1), 2)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
        job, tmp_path, stops, interest):
    assert job(tmp_path / "whole", interest=interest) and job(tmp_path / "other", seed=1)
    for stop in stops:
        assert not job(tmp_path / "cut", stop_after=stop, interest=interest)
    assert (load_resume(tmp_path / "cut")["progress"]["task"] == "interest") == (interest > 0)
    assert job(tmp_path / "cut", interest=interest) and job(tmp_path / "plain")
    assert_same_bits(tmp_path / "cut", tmp_path / "whole")
    assert bits(tmp_path / "other")[0] != bits(tmp_path / "whole")[0]
    found, stars = logged(tmp_path / "whole"), logged(tmp_path / "plain")
    assert found[:len(stars)] == stars and len(found) - len(stars) == (3 if interest else 0)


def test_the_model_that_is_kept_is_the_running_mean_that_was_best(job, tmp_path, store, split):
    told = replace(store, rating=np.where(store.item_idx % 2, 2, 4).astype(np.float32))
    assert job(tmp_path, store=told)
    valid = [row["valid_mae"] for row in logged(tmp_path)]
    best = int(np.argmin(valid))
    model, vocabulary, info = load_model(tmp_path)
    score = predict_part(model, Batches(told, split, vocabulary), "valid")[split.valid]
    assert np.abs(score.astype(np.float64) - told.rating[split.valid]).mean() == pytest.approx(
        valid[best], abs=1e-9)
    assert best > 0 and info["step"] == logged(tmp_path)[best]["step"]


def test_patience_counts_epochs_since_the_best_one(job, tmp_path, store, monkeypatch):
    errors = [3.0, 2.0, 2.5, 1.9, 2.2, 2.1, 0.1]  # before training, then of each epoch
    scripted = iter(errors)
    monkeypatch.setattr(bst.training.loop, "predict_part",
                        lambda *_, **__: store.rating + next(scripted))
    assert job(tmp_path, epochs=10, patience=0.2)
    found = logged(tmp_path)
    assert [row["valid_mae"] for row in found] == pytest.approx(errors[:-1])
    assert load_model(tmp_path)[2]["step"] == found[3]["step"]


def test_a_small_data_set_gets_its_least_steps(job, tmp_path, monkeypatch):
    reach = []
    monkeypatch.setattr(bst.training.loop, "averaged",
                        lambda model, steps: reach.append(steps) or averaged(model, steps))
    assert job(tmp_path, epochs=1, steps=20, average=0.25)
    steps = [row["step"] for row in logged(tmp_path)]
    assert steps[-2] < 20 <= steps[-1] and len(steps) > 3
    assert reach == [0.25 * steps[-1]]


def test_training_that_only_harms_leaves_the_first_model(job, tmp_path, store, split, text):
    assert load_resume(tmp_path) is None
    job(tmp_path, lr=0.5, lr_items=0.5, lr_dense=0.5, average=0.0)
    assert load_resume(tmp_path)["progress"]["step"] == logged(tmp_path)[-1]["step"]
    valid = [row["valid_mae"] for row in logged(tmp_path)]
    assert len(valid) == 4 and valid[0] < min(valid[1:])
    model, vocabulary, info = load_model(tmp_path)
    batches = plain_batches(store, split)
    fresh = build_model(RUN.model, batches, text, seed=0)
    assert info["step"] == 0 and not model.training and vocabulary == batches.vocabulary
    for name, tensor in fresh.state_dict().items():
        found = model.state_dict()[name]
        if name.startswith("users."):  # what is unknown has the mean of the known ones
            tensor, found = tensor[FIRST_IDX:], found[FIRST_IDX:]
        assert torch.equal(tensor, found)


def test_what_has_a_prior_has_no_decay_and_a_rate_of_its_own(small):
    model, _ = small()
    optimizer = optimizer_of(model, TrainConfig(lr_items=0.4, lr=0.3, lr_dense=0.2,
                                                 weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    own, heads, rest = ([names.pop(id(p)) for p in group["params"]]
                        for group in optimizer.param_groups)
    assert not names and own == ["items.id.weight"]  # each parameter once
    assert {name.split(".")[0] for name in heads} == {"items", "users", "prior", "regression"}
    assert {name.split(".")[0] for name in rest} == {"token", "rating", "norm_token", "softmax",
                                                     "head"}
    assert [(group["peak"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.4, 0.0), (0.3, 0.0), (0.2, 0.1)]


def test_the_rates_rise_and_then_fall_to_a_twentieth(job, tmp_path, monkeypatch):
    for share, rate in ((0, 0), (0.05, 0.25), (0.1, 0.5), (0.55, 0.2625), (1, 0.025)):
        assert learning_rate(share, 0.5, 0.1) == pytest.approx(rate)
    done = []
    monkeypatch.setattr(bst.training.loop, "learning_rate",
                        lambda *args: done.append(args[0]) or learning_rate(*args))
    job(tmp_path)
    last = logged(tmp_path)[-1]["step"]
    assert done == pytest.approx(np.repeat(np.arange(1, last + 1) / last, 3))  # none is lost
    for group, peak in zip(load_resume(tmp_path)["optimizer"]["param_groups"],
                           (RUN.train.lr_items, RUN.train.lr, RUN.train.lr_dense), strict=True):
        assert group["lr"] == pytest.approx(learning_rate(1.0, peak, 0.03))


@pytest.mark.parametrize(("reach", "shares"), [
    (0.0, [0, 0, 0, 1]), (10, [0.25] * 4), (2.5, [0.6**2 / 2, 0.6**2 / 2, 0.24, 0.4])])
def test_the_running_mean_is_the_plain_one_at_first(small, reach, shares):
    model, _ = small()
    mean, met = averaged(model, reach), []
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
def test_a_step_that_fails_is_named_and_changes_nothing(job, tmp_path, fault, told):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert not job(whole, stop_after=8)
    with pytest.raises(FloatingPointError, match=f"^step 9: {told}; the last resume point"
                       ) as caught:
        job(out, spoil=fails_at(9, fault))
    assert "\n" not in str(caught.value)
    assert_same_bits(out, whole)  # what stands there is of step 8


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_prediction_that_fails_keeps_the_best_model(job, tmp_path, split, monkeypatch, epoch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert job(whole, epochs=1)
    step = logged(whole)[epoch]["step"]
    validations, predict = [], Network.forward

    def predict_or_fail(model, batch):
        validations.append(1)
        if epoch == 0 or len(validations) > 1:
            torch.linalg.cholesky(-torch.eye(2))
        return predict(model, batch)

    monkeypatch.setattr(Network, "forward", predict_or_fail)
    with pytest.raises(FloatingPointError, match=(
            f"^step {step}: {len(split.valid)} of the predictions of valid are not finite; ")):
        job(out)
    if epoch:
        assert load_model(out)[2]["step"] == 0 and logged(out) == logged(whole)[:1]
    else:
        assert not list(out.iterdir())


def test_what_train_never_saw_unknown_of_a_user_is_the_mean_when_it_is(job, tmp_path, store):
    sex = store.users["sex"].to_list()
    told = replace(store, users=store.users.with_columns(sex=pl.Series([None, *sex[1:]])))
    assert job(tmp_path, store=told)
    model, vocabulary, _ = load_model(tmp_path)
    assert vocabulary.always == ["user_id", "age", "occupation", "zip_region"]
    is_mean = [torch.allclose(table.weight[OOV], table.weight[FIRST_IDX:].mean(dim=0))
               for table in model.users]
    assert is_mean == [False, True, True, True]
