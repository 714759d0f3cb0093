"""Order, resume, stopping, loss. Run: pytest tests/test_training.py."""

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bst.batches import Batches, UserVocabulary
from bst.checkpoint import load_model, load_resume
from bst.config import ModelConfig, RunConfig, TrainConfig
from bst.files import write_sealed
from bst.schema import DataError
from bst.training import build_model, fit, learning_rate, predict_part, train_step

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


def test_a_saved_model_comes_back_bit_by_bit(job, tmp_path, small):
    job(tmp_path)
    model, _, _ = load_model(tmp_path)
    again, _, _ = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "model.json").unlink(), "no readable model"),
    (lambda f: write_sealed(f / "model.safetensors", b"\x80\x04."), "no readable model"),
    (lambda f: write_sealed(f / "model.json", b'{"version": 9}'), "version 9, expected 1"),
])
def test_a_damaged_model_folder_is_refused_in_one_line(job, tmp_path, damage, message):
    job(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


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
