"""`train_step` and `fit`: a plain loop that can stop anywhere and resume with the same bits."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from bst.config import RunConfig, TrainConfig
from bst.evaluation.metrics import mae, rmse
from bst.model.batches import Batch, Batches
from bst.model.network import Network
from bst.training.checkpoint import load_model, load_resume, save_model, save_resume
from bst.training.distributed import (
    add_up,
    add_up_gradients,
    all_equal,
    chance_seed,
    maximum,
    rank,
    shard,
    size,
    wait_for_all,
)
from bst.utils.errors import DataError
from bst.utils.files import write_sealed

EVAL_SIZE = 8192  # events and targets of an evaluation batch; results do not depend on it


@dataclass
class Progress:
    """How far a run is; with the weights and the optimizer, all that it needs to resume."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of this epoch
    loss_sum: float = 0.0  # of this epoch
    best: float = math.inf  # best validation metric of the task so far
    bad_epochs: int = 0  # since the best one
    task: str = "stars"  # `name` of the task


@dataclass(frozen=True)
class Task:
    """Something to learn, as `fit` does it."""

    name: str  # in `Progress`
    part: Callable[[Network], nn.Module]  # what is in training mode
    epochs: Callable[[RunConfig], int]  # more if they make fewer than `TrainConfig.steps` updates
    groups: Callable[[Network, TrainConfig], list[tuple]]  # parameters, peak rate, weight decay
    loss: Callable[[Network, Batch], Tensor]  # mean over the real targets
    validate: Callable[[Network, Batches, TrainConfig], dict[str, float]]  # the first one decides


def _groups(model: Network, config: TrainConfig) -> list[tuple]:
    """Groups of all parameters: what the regression heads read has rates of its own, no decay."""
    ids = [model.items.id.weight]
    of_heads = [p for part in (model.items, model.users, model.prior, model.regression)
                  if part is not None for p in part.parameters() if p is not ids[0]]
    grouped = {id(p) for p in ids + of_heads}
    rest = [p for p in model.parameters() if id(p) not in grouped]
    return [(ids, config.lr_items, 0.0), (of_heads, config.lr, 0.0),
            (rest, config.lr_dense, config.weight_decay)]


def _valid_errors(model: Network, batches: Batches, config: TrainConfig) -> dict[str, float]:
    valid = batches.split.valid
    score = predict_part(model, batches, "valid", device=config.device)[valid]
    label = batches.store.rating[valid]
    return {"valid_mae": mae(score, label), "valid_rmse": rmse(score, label)}


@torch.inference_mode()
def _valid_nats(model: Network, batches: Batches, config: TrainConfig) -> dict[str, float]:
    """Mean of `Network.next_item_loss` over the targets of valid, the same in each process."""
    torch.manual_seed(config.seed)
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for rows in shard(batches.epoch("valid", batch_size=EVAL_SIZE)):
        batch = batches.gather(rows).to(config.device)
        count = float(batch.is_target.sum())
        total += torch.tensor([model.next_item_loss(batch).item() * count, count])
    return {"valid_nats": float(add_up(total)[0] / total[1])}


STARS = Task(
    "stars", part=lambda model: model, epochs=lambda run: run.train.epochs, groups=_groups,
    loss=lambda model, batch: model.loss(batch), validate=_valid_errors)
NEXT_ITEM = Task(  # all but the next-item head stays as it is
    "interest", part=lambda model: model.interest, epochs=lambda run: run.model.interest,
    groups=lambda model, config: [  # at twice the rate it needs fewer epochs
        ([*model.interest.parameters()], 2 * config.lr_dense, config.weight_decay)],
    loss=lambda model, batch: model.next_item_loss(batch), validate=_valid_nats)


def optimizer_of(model: Network, config: TrainConfig, task: Task = STARS) -> AdamW:
    """AdamW with a group of parameters per learning rate; `step` sets the rates."""
    return AdamW([{"params": parameters, "peak": peak, "weight_decay": decay}
                  for parameters, peak, decay in task.groups(model, config)], betas=(0.9, 0.99))


def averaged(model: Network, reach: float) -> AveragedModel:
    """A copy of `model` whose weights are an exponential mean over the last `reach` steps.

    It is the plain mean of the first `reach` steps; a `reach` of at most 1 is no averaging.
    """
    def mean(old: Tensor, new: Tensor, count: Tensor) -> Tensor:
        return old.lerp(new, max(1.0 / max(reach, 1.0), 1.0 / (int(count) + 1)))

    return AveragedModel(model, avg_fn=mean)


def train_step(
    model: Network, batch: Batch | None, optimizer: Optimizer, *, clip: float, share: float = 1.0,
    task: Task = STARS,
) -> float:
    """One update from the shards of all processes; returns the loss before it.

    Args:
        model: its gradients are left in place.
        batch: this process's shard, None where it is empty.
        optimizer: see `optimizer_of`.
        clip: largest norm of the gradient of the global batch.
        share: the shard's part of the real targets of the global batch, in [0, 1].
        task: what is learned.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the weights stay as they were.
    """
    task.part(model.eval()).train()
    model.zero_grad(set_to_none=True)  # also of the parameters of the task before
    loss = next(model.parameters()).new_zeros(())
    if batch is not None:
        try:
            loss = task.loss(model, batch) * share
            loss.backward()
        except torch.linalg.LinAlgError:
            loss = loss * torch.nan  # so that every process sees the failure in the sum
    loss = add_up_gradients(model, loss.detach())
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    for what, value in (("loss", loss), ("norm of the gradient", norm)):
        if not torch.isfinite(value):
            raise FloatingPointError(f"the {what} is {value.item()}")
    optimizer.step()
    return loss.item()


def gather_shard(
    batches: Batches, rows: list[np.ndarray], device: str, dtype: torch.dtype = torch.float32
) -> tuple[Batch | None, float]:
    """This process's shard of the batch of `rows`, None if empty, and its share of the targets."""
    own = shard(rows)
    share = sum(map(len, own)) / sum(map(len, rows))
    return batches.gather(own).to(device, dtype) if own else None, share


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak; progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * rest)))


@torch.no_grad()
def predict_part(model: Network, batches: Batches, part: str, *, device: str = "cpu") -> np.ndarray:
    """Expected stars of the targets of `part`, NaN elsewhere: (n,) float32.

    A FloatingPointError in each process if some of them are not finite.
    """
    predictions = np.full(len(batches.store), np.nan, dtype=np.float32)
    target = torch.from_numpy(np.sort(batches.split.part(part)))
    # Whole batches go to the processes, so that each prediction has the bits that one process
    # gives it. Each target has its own place, filled by one process: the sum gathers them.
    found = torch.zeros(len(target))
    for rows in tqdm(shard(batches.epoch(part, batch_size=EVAL_SIZE)), desc=f"predict {part}",
                     unit="batch", leave=False, disable=None if rank() == 0 else True):
        batch = batches.gather(rows)
        real = batch.is_target
        here = torch.searchsorted(target, batch.position[real])
        try:
            found[here] = model.eval()(batch.to(device)).clamp(*model.levels[[0, -1]]).cpu()[real]
        except torch.linalg.LinAlgError:
            found[here] = torch.nan  # so that every process sees the failure in the sum
    predictions[target.numpy()] = add_up(found).numpy()
    lost = int((~torch.isfinite(found)).sum())
    if lost:
        raise FloatingPointError(f"{lost} of the predictions of {part} are not finite")
    return predictions


def fit(
    model: Network, batches: Batches, run: RunConfig, out: Path, *,
    info: dict, stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until the epochs or the patience end; the best model stands in `out`.

    First the stars; then, if the model has one, the next-item head, while the bits of all other
    weights stay. The model that is validated and kept is a running mean of the weights. The
    untrained model is a candidate too.

    Randomness depends only on (seed, epoch) or (seed, step, rank), so a run that was cut off
    anywhere ends with the same bits as one that was not. In a group of processes all call this with
    equal arguments, and each takes its rows of a batch.

    Args:
        model: fresh from `build_model`; a resume point replaces its weights.
        batches: of the store and split.
        run: the run's configuration.
        out: run folder.
        info: provenance that goes into model.json.
        stop_requested: asked after every step; True in any process saves a resume point and ends
            early in all.

    Returns:
        True when training is complete, False when it was asked to stop.

    Raises:
        FloatingPointError: the loss or a prediction is not finite; names the step.
        DataError: the processes do not start from the same weights, or a file is damaged.
        OSError: a file cannot be written; a note names the last resume point.
    """
    config = run.train
    model.to(config.device)
    tasks = [STARS] if model.interest is None else [STARS, NEXT_ITEM]
    if (saved := load_resume(out)) is not None:  # an earlier task is done
        names = [task.name for task in tasks]
        tasks = tasks[names.index(saved["progress"]["task"]):]
    for task in tasks:
        fitting = Fitting(model, batches, run, out, info, task, load_resume(out))
        progress = fitting.progress
        while progress.epoch < fitting.epochs and (
                progress.bad_epochs < config.patience * fitting.epochs):
            if not fitting.run_epoch(stop_requested):
                return False
        wait_for_all()  # before anyone reads the best model
    return True


class Fitting:
    """A task under way: the weights, their running mean, the optimizer, and how far they are."""

    def __init__(self, model: Network, batches: Batches, run: RunConfig, out: Path, info: dict,
                 task: Task, saved: dict | None) -> None:
        self.model, self.batches, self.config, self.out, self.info, self.task = (
            model, batches, run.train, out, info, task)
        self.progress, self.log = Progress(task=task.name), []  # a dict per line of metrics.jsonl
        self.cpu = time.process_time()
        if saved is not None and saved["progress"]["task"] != task.name:
            model.load_state_dict(load_model(out)[0].state_dict())  # best of the task before
            self.log, saved = saved["log"], None
        self.optimizer = optimizer_of(model, run.train, task)
        steps = len(batches.epoch("train", batch_size=run.train.batch_size, seed=run.train.seed))
        self.epochs = max(task.epochs(run), -(-run.train.steps // steps))
        self.mean = averaged(model, run.train.average * self.epochs * steps)
        if saved is not None:
            model.load_state_dict(saved["model"])
            self.mean.load_state_dict(saved["mean"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.progress, self.log = Progress(**saved["progress"]), saved["log"]
            print(f"resuming from step {self.progress.step}", flush=True)
        weights = float(sum(p.detach().double().sum() for p in model.parameters()))
        if not all_equal(self.progress.step, weights):
            raise DataError(f"process {rank()} starts from other weights than the others (step "
                            f"{self.progress.step}); expected that every machine sees the same "
                            f"folder {out}")
        self.last_good = self.progress.step
        if saved is None:
            self._validate("before training", {"epoch": 0}, time.perf_counter())

    def run_epoch(self, stop_requested: Callable[[], bool]) -> bool:
        """Train the rest of an epoch and save a resume point; False when asked to stop in it."""
        started, progress, config = time.perf_counter(), self.progress, self.config
        plan = self.batches.epoch("train", batch_size=config.batch_size, seed=config.seed,
                                  epoch=progress.epoch)
        bar = tqdm(plan[progress.batch:], initial=progress.batch, total=len(plan),
                   desc=f"epoch {progress.epoch + 1}", unit="step", leave=False,
                   disable=None if rank() == 0 else True)
        for rows in bar:
            self.step(rows, (progress.epoch + (progress.batch + 1) / len(plan)) / self.epochs)
            if maximum(stop_requested()):
                self.save()
                wait_for_all()  # torchrun ends the others once one has left
                return False
            if progress.step % config.save_every == 0:
                self.save()
        row = {"epoch": progress.epoch + 1, "train_loss": progress.loss_sum / progress.batch}
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        self._validate(f"epoch {row['epoch']}: train loss {row['train_loss']:.4f}", row, started)
        self.save()
        return True

    def step(self, rows: list[np.ndarray], done: float) -> None:
        """One update from the targets at `rows`; `done` is the share of training after it."""
        progress, config = self.progress, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(done, group["peak"], config.warmup)
        torch.manual_seed(chance_seed(config.seed, progress.step))
        batch, share = gather_shard(self.batches, rows, config.device)
        with self._naming():
            loss = train_step(self.model, batch, self.optimizer, clip=config.clip, share=share,
                              task=self.task)
        self.mean.update_parameters(self.model)
        progress.step += 1
        progress.batch += 1
        progress.loss_sum += loss

    def save(self) -> None:
        """Write a resume point."""
        if rank() > 0:
            return
        with self._naming():
            save_resume(self.out, {
                "model": self.model.state_dict(), "mean": self.mean.state_dict(),
                "optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress),
                "log": self.log})
        self.last_good = self.progress.step

    def _validate(self, what: str, row: dict, started: float) -> None:
        """Score the running mean on valid, keep it if it is the best so far, log and print."""
        progress = self.progress
        with self._naming():
            found = self.task.validate(self.mean.module, self.batches, self.config)
        row |= {"step": progress.step, **found, "processes": size(),
                "seconds": round(time.perf_counter() - started, 1),
                "cpu_seconds": round(time.process_time() - self.cpu, 1)}
        self.cpu = time.process_time()
        value = next(iter(found.values()))
        better = value < progress.best
        progress.best = min(progress.best, value)
        progress.bad_epochs = 0 if better else progress.bad_epochs + 1
        self.log.append(row)
        if rank() > 0:
            return
        with self._naming():
            if better:
                save_model(self.out, self.mean.module, self.batches.vocabulary,
                           {**self.info, "step": progress.step})
            lines = "".join(json.dumps(row) + "\n" for row in self.log)
            write_sealed(self.out / "metrics.jsonl", lines.encode())
        metrics = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in found.items())
        print(f"{what}, {metrics}, {row['seconds']:.0f} s{' (best)' if better else ''}", flush=True)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say in an error at which step it was, or what is still good."""
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.progress.step}: {error}; the last resume point and the best model "
                "are kept, lower --lr and start a new run") from error
        except OSError as error:
            error.add_note(f"last good checkpoint is step {self.last_good}" if self.last_good
                           else "no checkpoint yet")
            raise
