"""The forms of training that `train` times in turn, and the plain PyTorch ones beside them."""

import itertools
import statistics
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bst.config import ModelConfig
from bst.data.sequences import SequenceStore
from bst.data.splits import split_interactions
from bst.model.base import base_scores
from bst.model.batches import Batch, Batches, UserVocabulary
from bst.training.loop import build_model, train_step

HISTORY, BATCH = 50, 1024
BARE = ModelConfig(  # the inputs of `PlainWindows`: item, stars, position
    history_len=HISTORY, genres=False, year=False, text=False, user_features=False, dense="none",
    base="mean", item_dropout=0.0,
)
FULL = ModelConfig(history_len=HISTORY, text=False, base="mean")


class PlainWindows(nn.Module):
    """What a tutorial writes: windows of item and stars through nn.TransformerEncoderLayer."""

    def __init__(self, num_items: int, *, flatten: bool, width: int = 64) -> None:
        super().__init__()
        self.flatten = flatten
        self.item, self.stars = nn.Embedding(num_items, width), nn.Embedding(6, width)
        self.position = nn.Embedding(HISTORY + 1, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.2, batch_first=True)
        widths = [width * (HISTORY + 1 if flatten else 1), 256, 128, 64]
        hidden = [[nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.2)]
                  for a, b in itertools.pairwise(widths)]
        self.head = nn.Sequential(*itertools.chain(*hidden), nn.Linear(64, 1))

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of full windows: (b, 50) events and one target a row."""
        item = torch.cat([batch.event_item, batch.target_item], dim=1)
        stars = F.pad(batch.event_rating.long(), (0, 1))
        x = self.layer(self.item(item) + self.stars(stars) + self.position.weight)
        x = rearrange(x, "b s d -> b (s d)") if self.flatten else x[:, -1]
        return F.mse_loss(self.head(x), batch.label)


class Trainee:
    """A model with its optimizer and batches, trained in turn with the others."""

    def __init__(self, model: nn.Module, batches: list[Batch], *, bf16: bool = False) -> None:
        self.model, self.batches, self.bf16 = model, batches, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.steps, self.rates = itertools.cycle(batches), []

    def step(self) -> int:
        """One update; returns its number of targets."""
        batch = next(self.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            train_step(self.model, batch, self.optimizer, clip=1.0)
        return int(batch.is_target.sum())

    def measure(self, seconds: float, clock) -> None:
        """Keep the targets per second over at least `seconds`."""
        done, started = 0, clock()
        while (spent := clock() - started) < seconds:
            done += self.step()
        self.rates.append(done / spent)

    @property
    def rate(self) -> float:
        """Median of what was measured."""
        return statistics.median(self.rates)

    @cached_property
    def flop(self) -> float:
        """Floating point operations of the matrix products of a step, per target."""
        with FlopCounterMode(display=False) as counter:
            targets = sum(self.step() for _ in self.batches[:8])
        return counter.get_total_flops() / targets


def trainees(store: SequenceStore, *, alternatives: bool = False) -> dict[str, Trainee]:
    """Our forms and the two plain references, on targets of the same train part.

    Alternatives are ways to go faster that other machines may reward: bf16 and torch.compile.
    """
    split, rng = split_interactions(store), np.random.default_rng(0)
    base, vocabulary = base_scores(store, split, "mean"), UserVocabulary.fit(store, split)
    shared, window = (Batches(store, split, vocabulary, base=base, history_len=HISTORY, shared=s)
                      for s in (True, False))
    plan = shared.epoch("train", batch_targets=BATCH, seed=0)
    packed = [shared.gather(rows) for rows in plan[:60]]
    full = split.train[(window.stop - window.first)[split.train] == HISTORY]
    windows = [window.gather([np.array([p]) for p in rng.choice(full, BATCH)])
               for _ in range(4)]
    items = store.num_items + 2
    flat = replace(BARE, readout="flatten")
    known = {
        "plain, flattened": Trainee(PlainWindows(items, flatten=True), windows),
        "plain, target token": Trainee(PlainWindows(items, flatten=False), windows),
        "window form, flattened": Trainee(build_model(flat, window, None, seed=0), windows),
        "window form": Trainee(build_model(BARE, window, None, seed=0), windows),
        "shared history": Trainee(build_model(BARE, shared, None, seed=0), packed),
        "shared history, all features": Trainee(build_model(FULL, shared, None, seed=0), packed),
    }
    if alternatives:
        known["bf16"] = Trainee(build_model(FULL, shared, None, seed=0), packed, bf16=True)
        compiled = build_model(FULL, shared, None, seed=0)
        compiled.loss = torch.compile(compiled.loss, dynamic=True)
        known["compiled"] = Trainee(compiled, packed)
        for _ in range(20):  # compiles for the shapes that come
            known["compiled"].step()
    return known


def peak_flop(clock) -> float:
    """Floating point operations a second of a product of 1024 x 1024 matrices."""
    a, started = torch.randn(1024, 1024), clock()
    for _ in range(20):
        a @ a
    return 20 * 2 * 1024**3 / (clock() - started)
