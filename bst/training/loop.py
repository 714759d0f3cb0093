"""`train_step` and `fit`: a plain loop that can stop anywhere and go on bit by bit."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from bst.config import ModelConfig, RunConfig, TrainConfig
from bst.data.schema import FIRST_IDX
from bst.data.text import TextVectors
from bst.evaluation.metrics import mae, rmse
from bst.model.batches import Batch, Batches
from bst.model.features import DENSE, genre_matrix
from bst.model.network import BST, HALF_STARS, YEAR_BUCKETS, Sizes
from bst.training.checkpoint import load_resume, save_model, save_resume
from bst.training.distributed import (
    add_up,
    add_up_gradients,
    all_equal,
    chance_seed,
    most,
    rank,
    shard,
    size,
    wait_for_all,
)
from bst.utils.errors import DataError
from bst.utils.files import read_sealed, write_sealed

EVAL_TARGETS = 8192  # targets of an evaluation batch; results do not depend on it


def build_model(
    config: ModelConfig, batches: Batches, text: TextVectors | None, *, seed: int
) -> BST:
    """A fresh model whose buffers hold the catalogue and what was fitted on train targets."""
    if text is None:
        config = replace(config, text=False)
    store, split = batches.store, batches.split
    genres, hot = genre_matrix(store.movies)
    if not genres:
        config = replace(config, genres=False)
    train_items = np.unique(store.item_idx[split.train])
    levels = np.unique(store.rating[split.train])
    rating_zero, rating_step = rating_rows(levels)
    sizes = Sizes(
        items=store.num_items, known_items=len(train_items), genres=len(genres),
        text=0 if text is None else text.vectors.shape[1], users=tuple(batches.vocabulary.sizes),
        dense=len(DENSE), levels=len(levels), rating_zero=rating_zero, rating_step=rating_step,
    )
    torch.manual_seed(seed)
    model = BST(config, sizes)
    model.item_vocab[:FIRST_IDX] = torch.arange(FIRST_IDX)
    model.item_vocab[train_items] = torch.arange(len(train_items)) + FIRST_IDX
    model.item_genres[FIRST_IDX:] = genre_shares(hot)
    model.item_year[FIRST_IDX:] = year_bucket(store.movies["year"].to_numpy())
    if text is not None:
        _set_text(model, text, train_items)
    model.levels.copy_(torch.from_numpy(levels))
    if model.interest is not None:
        count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
        model.interest.log_share.copy_(log_share(count, count.sum()))
    dense = batches.dense[split.train]
    model.dense_mean.copy_(torch.from_numpy(dense.mean(axis=0, dtype=np.float64)))
    model.dense_scale.copy_(torch.from_numpy(dense.std(axis=0, dtype=np.float64) + 1e-6))
    quantiles = np.linspace(0, 1, config.buckets + 1)[1:-1]
    model.dense_edges.copy_(torch.from_numpy(np.quantile(dense, quantiles, axis=0).T))
    return model


def log_share(count: np.ndarray, total: int) -> Tensor:
    """Log share in `total` train ratings of items with `count` (n,) of them, and half a one."""
    return torch.from_numpy(np.log((count + 0.5) / total)).float()


def year_bucket(year: np.ndarray) -> Tensor:
    """Row of the year table, (n,) int64, of release years that are NaN where unknown."""
    bucket = np.clip((np.nan_to_num(year, nan=0) - 1900) // 2 + 1, 1, YEAR_BUCKETS - 1)
    return torch.from_numpy(np.where(np.isnan(year), 0, bucket)).long()


def rating_rows(levels: np.ndarray) -> tuple[float, float]:
    """Rating of row 0 of the rating table, and the step between rows, for the ratings of a scale.

    Example:
        >>> rating_rows(np.array([0.5, 3.0, 5.0])), rating_rows(np.array([0.0, 44.0]))
        ((0.0, 0.5), (-2.0, 2.0))
    """
    low, high = float(levels.min()), float(levels.max())
    if low >= 0.5 and high <= (HALF_STARS - 1) / 2 and (2 * levels % 1 == 0).all():
        return 0.0, 0.5
    step = (high - low) / (HALF_STARS - 2) or 1.0
    return low - step, step


def genre_shares(hot: np.ndarray) -> Tensor:
    """Multi-hot rows (n, g) that sum to 1, or to 0 without a genre."""
    return torch.from_numpy(hot / np.maximum(1, hot.sum(1, keepdims=True)))


def text_scaling(text: TextVectors, train_items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale (t,) of the overview vectors of the train items that have a text."""
    fitted = text.vectors[train_items - FIRST_IDX][text.has_text[train_items - FIRST_IDX]]
    if not len(fitted):
        width = text.vectors.shape[1]
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    return fitted.mean(0), fitted.std(0) + 1e-6


def _set_text(model: BST, text: TextVectors, train_items: np.ndarray) -> None:
    """Overview vectors, each dimension standardised on the train items that have a text."""
    mean, scale = text_scaling(text, train_items)
    model.item_text[FIRST_IDX:] = torch.from_numpy((text.vectors - mean) / scale)
    model.item_has_text[FIRST_IDX:] = torch.from_numpy(text.has_text)


def train_step(
    model: BST, batch: Batch | None, optimizer: Optimizer, *, clip: float, share: float = 1.0
) -> float:
    """One update from the shards of all processes; returns the loss before it.

    Args:
        model: its gradients are left in place.
        batch: this process's shard, None where it is empty.
        optimizer: of the model's parameters.
        clip: largest norm of the gradient of the global batch.
        share: the shard's part of the real targets of the global batch, in [0, 1].

    Raises:
        FloatingPointError: the loss is not finite; the weights are left as they were.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = next(model.parameters()).new_zeros(())
    if batch is not None:
        loss = model.loss(batch) * share
        loss.backward()
    loss = add_up_gradients(model, loss.detach())
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}")
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def gather_shard(
    batches: Batches, rows: list[np.ndarray], device: str, dtype: torch.dtype = torch.float32, *,
    cold: np.ndarray | None = None,
) -> tuple[Batch | None, float]:
    """This process's shard of the batch of `rows`, None if empty, and its share of the targets.

    Args:
        batches: of the store and split.
        rows: positions of the targets.
        device: where the batch goes.
        dtype: of its floats.
        cold: see `Batches.draw_cold`.
    """
    own = shard(rows)
    share = sum(map(len, own)) / sum(map(len, rows))
    return batches.gather(own, cold).to(device, dtype) if own else None, share


def learning_rate(progress: float, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak; progress in [0, 1]."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))


def predict_part(
    model: BST, batches: Batches, part: str, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Expected and whole stars of the targets of `part`, NaN elsewhere: each (n,) float32."""
    predictions = np.full((2, len(batches.store)), np.nan, dtype=np.float32)
    plan = batches.epoch(part, batch_targets=EVAL_TARGETS)
    ends = np.cumsum([sum(map(len, rows)) for rows in plan])
    # Whole batches go to the processes, so that each prediction has the bits that one process
    # gives it. Each target has its own place, filled by one process: the sum gathers them.
    found = torch.zeros(2, ends[-1] if len(ends) else 0)
    for rows, end in shard(list(zip(plan, ends, strict=True))):
        batch = batches.gather(rows)
        real = batch.is_target
        stars = torch.stack(model.predict(batch.to(device))).cpu()
        found[:, end - int(real.sum()):end] = stars[:, real]
    if len(ends):
        predictions[:, np.concatenate([p for rows in plan for p in rows])] = add_up(found).numpy()
    return predictions[0], predictions[1]


def fit(
    model: BST, batches: Batches, run: RunConfig, out: Path, *,
    info: dict, stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until the epochs or the patience end; the best model stands in `out`.

    Every source of chance is a function of (seed, epoch) or (seed, step, rank), so a run that was
    cut off anywhere ends with the same bits as one that was not. In a group of processes all call
    this with equal arguments; the batches are those of one process, and each takes its rows.

    Args:
        model: fresh from `build_model`; its weights are replaced by a resume point's.
        batches: of the store and split.
        run: the run's configuration.
        out: run folder.
        info: provenance that goes into model.json.
        stop_requested: asked after every step; True in any process saves a resume point and ends
            early in all.

    Returns:
        True when training is complete, False when it was asked to stop.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
        DataError: the processes do not start from the same weights, or a file is damaged.
        OSError: a file cannot be written; a note names the last resume point.
    """
    config = run.train
    model.to(config.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    state = {"step": 0, "epoch": 0, "batch": 0, "loss_sum": 0.0, "best": math.inf, "bad_epochs": 0}
    saved = load_resume(out)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
        print(f"resuming from step {state['step']}", flush=True)
    weights = float(sum(p.detach().double().sum() for p in model.parameters()))
    if not all_equal(state["step"], weights):
        raise DataError(f"process {rank()} starts from other weights than the others (step "
                        f"{state['step']}); expected that every machine sees the same folder {out}")
    log = MetricsLog(out / "metrics.jsonl", state["step"]) if rank() == 0 else None
    last_good = state["step"]

    def save_point() -> None:
        nonlocal last_good
        if rank() > 0:
            return
        with _noting(last_good):
            save_resume(out, {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                              "state": state})
        last_good = state["step"]

    while state["epoch"] < config.epochs and state["bad_epochs"] < config.patience:
        started = time.perf_counter()
        plan = batches.epoch("train", batch_targets=config.batch_targets, seed=config.seed,
                             epoch=state["epoch"])
        cold = batches.draw_cold(run.model.cold, seed=config.seed, epoch=state["epoch"])
        bar = tqdm(plan[state["batch"]:], initial=state["batch"], total=len(plan),
                   desc=f"epoch {state['epoch'] + 1}", unit="step", leave=False,
                   disable=None if rank() == 0 else True)
        for rows in bar:
            progress = (state["epoch"] + state["batch"] / len(plan)) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, config)
            torch.manual_seed(chance_seed(config.seed, state["step"]))
            batch, share = gather_shard(batches, rows, config.device, cold=cold)
            try:
                loss = train_step(model, batch, optimizer, clip=config.clip, share=share)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"step {state['step']}: {error}; the last resume point and the best model are "
                    "kept, lower --lr and start a new run"
                ) from error
            state.update(step=state["step"] + 1, batch=state["batch"] + 1,
                         loss_sum=state["loss_sum"] + loss)
            if most(stop_requested()):
                save_point()
                wait_for_all()  # torchrun ends the others once one has left
                return False
            if state["step"] % config.save_every == 0:
                save_point()
        with _noting(last_good):
            _end_epoch(model, batches, state, out, info, log, config,
                       seconds=time.perf_counter() - started)
        save_point()
    wait_for_all()  # before anyone reads the best model
    return True


@contextmanager
def _noting(step: int) -> Iterator[None]:
    """Add to a failed write what is still good."""
    try:
        yield
    except OSError as error:
        error.add_note(f"last good checkpoint is step {step}" if step else "no checkpoint yet")
        raise


def _end_epoch(model, batches, state, out, info, log, config, *, seconds) -> None:
    """Validate, keep the best model, log, and move the counters to the next epoch."""
    valid = batches.split.valid
    label = batches.store.rating[valid]
    score = predict_part(model, batches, "valid", device=config.device)[0][valid]
    row = {"step": state["step"], "epoch": state["epoch"] + 1,
           "train_loss": state["loss_sum"] / state["batch"],
           "valid_mae": mae(score, label), "valid_rmse": rmse(score, label),
           "processes": size(), "seconds": round(seconds, 1)}
    better = row["valid_mae"] < state["best"]
    state.update(epoch=state["epoch"] + 1, batch=0, loss_sum=0.0,
                 best=min(state["best"], row["valid_mae"]),
                 bad_epochs=0 if better else state["bad_epochs"] + 1)
    if rank() > 0:
        return
    if better:
        save_model(out, model, batches.vocabulary, {**info, "step": state["step"]})
    log.append(row)
    print(f"epoch {row['epoch']}: train loss {row['train_loss']:.4f}, valid mae "
          f"{row['valid_mae']:.4f}, rmse {row['valid_rmse']:.4f}, {seconds:.0f} s"
          f"{' (best)' if better else ''}", flush=True)


class MetricsLog:
    """`metrics.jsonl`: one dict a line; lines after the resume point are dropped.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        try:
            lines = read_sealed(path).decode().splitlines() if path.exists() else []
            rows = list(map(json.loads, lines))
        except ValueError as error:
            raise DataError(f"{path}: {error}; delete it, the run goes on without the lines that "
                            "it had") from error
        self.rows = [row for row in rows if row["step"] <= step]

    def append(self, row: dict) -> None:
        """Add one line."""
        self.rows.append(row)
        content = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_sealed(self.path, content.encode())
