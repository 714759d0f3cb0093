"""Two processes equal one; torchrun itself is slow. Run: pytest -k test_distributed."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

import bst.training.loop
from bst.config import ModelConfig
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from bst.evaluation.metrics import mae, rmse
from bst.model.batches import Batches
from bst.model.build import build_model
from bst.run import only_run_in
from bst.training import distributed
from bst.training.checkpoint import load_resume
from bst.training.loop import fit, gather_shard, predict_part, train_step
from bst.utils.errors import DataError
from bst.utils.guard import FolderInUseError, folder_lock
from tests.command import ROOT, TINY, until
from tests.conftest import RUN as ALONE
from tests.conftest import SMALL, STILL, logged, plain_batches, random_tables, randomize

RUN = replace(ALONE, train=replace(ALONE.train, batch_size=256), model=ModelConfig(
    **SMALL, **STILL, interest=1))
OPTIMIZERS = {"sgd": (torch.optim.SGD, torch.float64), "adamw": (torch.optim.AdamW, torch.float64),
              "adamw32": (torch.optim.AdamW, torch.float32)}
COLUMNS = "step", "train_loss", "valid_mae", "valid_rmse", "valid_nats"
SIZES = (1, 100, 307, 8192)  # events and targets of an evaluation batch


def small_job():
    """A model without zeros that could hide a path, and its batches."""
    store = build_sequences(random_tables(num_ratings=870))
    batches = plain_batches(store, split_interactions(store))
    return randomize(build_model(RUN.model, batches, None, seed=3)), batches


def steps(name: str, *, clip: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Losses and final weights of one epoch of small batches."""
    kind, dtype = OPTIMIZERS[name]
    model, batches = small_job()
    model.to(dtype)
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for rows in plan_of(batches):
        batch, share = gather_shard(batches, rows, "cpu", dtype)
        losses.append(train_step(model, batch, optimizer, clip=clip, share=share))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return np.array(losses), weights.numpy()


def plan_of(batches: Batches) -> list:
    return batches.epoch("train", batch_size=100, seed=1)


def predictions(batch_size: int, *, predict=None) -> np.ndarray:
    """Of the valid part in batches of this size: (n,)."""
    model, batches = small_job()
    model.forward = predict or model.forward
    with patch.object(bst.training.loop, "EVAL_SIZE", batch_size):
        return predict_part(model, batches, "valid")


def train(out: Path, *, stop_after: int | None = None, asker: int = 0) -> bool:
    """`fit` in `out`; process `asker` asks for a stop after so many steps of this call."""
    if distributed.rank() == 0:
        out.mkdir(exist_ok=True)
    model, batches = small_job()
    asked = iter(range(10**6))

    def stop() -> bool:
        return next(asked) + 1 == stop_after and distributed.rank() == asker

    return fit(model, batches, RUN, out, info={}, stop_requested=stop)


def fail(*_):
    torch.linalg.cholesky(-torch.eye(2))


def refuse_what_is_wrong_in_one(folder: Path) -> None:
    """A loss, a prediction, weights or a busy folder of one process stop this one too."""
    model, batches = small_job()
    before = [p.detach().clone() for p in model.parameters()]
    batch, share = gather_shard(batches, max(plan_of(batches), key=len), "cpu")
    optimizer, is_last = torch.optim.SGD(model.parameters(), lr=0.1), distributed.rank() == 1
    wrong = replace(batch, label=batch.label * torch.nan) if is_last else batch
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train_step(model, wrong, optimizer, clip=1.0, share=share)
    if is_last:
        model.loss = fail
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train_step(model, batch, optimizer, clip=1.0, share=share)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(FloatingPointError, match="of the predictions of valid are not finite"):
        predictions(1, predict=fail if is_last else None)
    with torch.no_grad():
        model.head[-1].bias += distributed.rank()
    with pytest.raises(DataError, match="starts from other weights than the others"):
        fit(model, batches, RUN, folder / "other", info={})
    assert not (folder / "other").exists()
    with contextlib.ExitStack() as somebody:
        if distributed.rank() == 0:
            somebody.enter_context(folder_lock(folder / "busy"))
        with pytest.raises(FolderInUseError, match="expected nobody"), only_run_in(folder / "busy"):
            pytest.fail("let in")
    with only_run_in(folder / "busy"):
        assert (folder / "busy" / "run.lock").exists()
        distributed.wait_for_all()


def work(number: int, folder: Path) -> None:
    """What each of two processes does; its findings go to `folder`."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    sys.stdout = printed = io.StringIO()
    found = {}

    def join(name: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder / name}", rank=number,
                                world_size=2)

    join("first")
    with distributed.process_group("cpu"):
        print("from a process")
        for name in OPTIMIZERS:
            found[f"{name} losses"], found[f"{name} weights"] = steps(name)
        for number_of in SIZES:
            found[f"predictions {number_of}"] = predictions(number_of)
        found["seed"] = np.array(distributed.chance_seed(7, 11))
        assert distributed.maximum(number * 5) == 5
        assert distributed.all_equal(3.0, -1.0) and not distributed.all_equal(3.0, -number)
        assert list(distributed.shard([10, 11, 12])) == [[10, 12], [11]][number]
        with distributed.first_goes_first():
            found["there already"] = np.array((folder / "mark").exists())
            (folder / "mark").touch()
        refuse_what_is_wrong_in_one(folder)
        found["whole"] = np.array(train(folder / "whole"))
        found["stopped"] = np.array(train(folder / "changing", stop_after=3, asker=1))
    dist.destroy_process_group()
    if number == 0:
        assert distributed.size() == 1
        train(folder / "changing", stop_after=4)
        (folder / "alone").touch()
    until((folder / "alone").exists)
    join("second")
    train(folder / "changing")
    dist.destroy_process_group()
    np.savez(folder / f"{number}.npz", printed=np.array(printed.getvalue()), **found)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Folder of the runs, and the findings of each of two processes."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    assert not list((folder / "busy").iterdir())  # no lock is left
    return folder, [dict(np.load(folder / f"{number}.npz")) for number in range(2)]


def assert_same_log(folder: Path, other: Path) -> None:
    ours, theirs = ([[row.get(column, 0.0) for column in COLUMNS] for row in logged(of)]
                    for of in (folder, other))  # the first row has no train loss
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(("name", "of_losses", "of_weights"), [
    ("sgd", 1e-12, 1e-12), ("adamw", 1e-12, 1e-12), ("adamw32", 1e-5, 0.1)])
def test_two_processes_take_the_steps_of_one(group, name, of_losses, of_weights):
    losses, weights = steps(name)
    for found in group[1]:
        np.testing.assert_allclose(found[f"{name} losses"], losses, rtol=of_losses)
        np.testing.assert_allclose(found[f"{name} weights"], weights, rtol=0, atol=of_weights)
    first, second = group[1]
    assert np.array_equal(first[f"{name} weights"], second[f"{name} weights"])
    unclipped = steps(name, clip=1e9)[1]
    assert np.abs(unclipped - weights).max() > 1e-6  # the clipping had an effect
    rows = [len(batch) for batch in plan_of(small_job()[1])]
    assert 1 in rows and max(rows) >= 3  # a batch for one process alone, and for both


@pytest.mark.parametrize("batch_size", SIZES)
def test_predictions_and_metrics_do_not_depend_on_batch_or_group(group, batch_size):
    valid, label = small_job()[1].split.valid, small_job()[1].store.rating
    alone, reference = predictions(batch_size), predictions(8192)
    assert np.isnan(np.delete(alone, valid)).all()
    for found in group[1]:
        np.testing.assert_array_equal(found[f"predictions {batch_size}"], alone)
    for measure in (mae, rmse):
        assert measure(alone[valid], label[valid]) == pytest.approx(
            measure(reference[valid], label[valid]), rel=1e-6)


def test_a_run_of_two_processes_logs_what_one_logs(group, tmp_path):
    train(tmp_path / "one")
    assert_same_log(group[0] / "whole", tmp_path / "one")
    assert [row["processes"] for row in logged(group[0] / "whole")] == [2] * 6


def test_a_stop_in_one_process_stops_both_and_one_then_two_go_on(group):
    folder, found = group
    assert [bool(f["stopped"]) for f in found] == [False, False]
    assert all(f["whole"] for f in found)
    assert_same_log(folder / "changing", folder / "whole")
    states = [load_resume(folder / name)["model"] for name in ("changing", "whole")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=3e-4)


def test_the_first_goes_first_and_prints_and_each_has_its_own_chance(group):
    first, second = group[1]
    assert [str(f["printed"]).count("from a process") for f in group[1]] == [1, 0]
    assert [bool(f["there already"]) for f in group[1]] == [False, True]
    assert int(first["seed"]) == distributed.chance_seed(7, 11)  # as of a process alone
    assert first["seed"] % 2**32 != second["seed"] % 2**32  # the CPU's generator reads 32 bits


def torchrun(raw: Path, out: Path, *flags) -> subprocess.Popen:
    """`scripts/train.py` under torchrun on loopback, on small data."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *flags,
               "--nproc-per-node=2", "scripts/train.py", "--data", raw, "--out", out, *TINY,
               "--epochs", "12", "--patience", "1"]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"})


def wait_for_epoch(out: Path, number: int) -> None:
    until(lambda: (out / "metrics.jsonl").exists() and len(logged(out)) > number, seconds=300)


def children(process: subprocess.Popen) -> list[int]:
    return [int(n) for n in
            Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def uninterrupted(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    said, problems = torchrun(raw, out).communicate(timeout=400)
    assert said.count("protocol temporal") == 1 and "Traceback" not in problems
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "restarts"), [(0, 1), (1, 1), (1, 0)])
def test_a_killed_process_is_made_up_for(raw, uninterrupted, tmp_path, victim, restarts):
    out = tmp_path / "run"
    process = torchrun(raw, out, "--max-restarts", restarts)
    wait_for_epoch(out, 3)
    os.kill(children(process)[victim], signal.SIGKILL)
    said, problems = process.communicate(timeout=400)
    if not restarts:
        assert process.returncode != 0 and not (out / "results.json").exists()
        assert "process 0 of 2 lost another one" in problems
        said = torchrun(raw, out).communicate(timeout=400)[0]
    assert said.count("resuming from step") == 1 and not list(out.glob("*.tmp"))
    assert_same_log(out, uninterrupted)
    ours, theirs = (json.loads((f / "results.json").read_text())[0] for f in (out, uninterrupted))
    for name in ("mae", "rmse", "mae_star"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["torchrun", "worker"])
def test_sigterm_saves_and_the_same_command_goes_on(raw, uninterrupted, tmp_path, receiver):
    out = tmp_path / "run"
    process = torchrun(raw, out)
    wait_for_epoch(out, 3)
    os.kill(process.pid if receiver == "torchrun" else children(process)[-1], signal.SIGTERM)
    said = process.communicate(timeout=400)[0]
    assert process.returncode != 0 and f"stopped by signal {signal.SIGTERM}" in said
    step = load_resume(out)["progress"]["step"]
    assert f"resuming from step {step}" in torchrun(raw, out).communicate(timeout=400)[0]
    assert_same_log(out, uninterrupted)
