"""What `train` times in turn: our network, and a tutorial's windows in plain PyTorch."""

import itertools
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bst.config import ModelConfig, TrainConfig
from bst.data.schema import PAD
from bst.data.sequences import SequenceStore
from bst.data.splits import History, Split, split_interactions
from bst.data.text import TextVectors
from bst.model.batches import Batches, UserVocabulary
from bst.model.build import build_model
from bst.training.loop import averaged, gather_shard, optimizer_of, train_step

HISTORY, BATCH = 200, 256
OURS = {"bst, whole": "both", "bst, regression heads alone": "regression",
        "bst, softmax heads alone": "softmax"}
PLAIN = "plain PyTorch windows"


class Windows(Dataset):
    """The train targets, each with the last `HISTORY` events before it, padded in front."""

    def __init__(self, store: SequenceStore, split: Split) -> None:
        self.store, self.target = store, split.train
        self.history = History.of(store, split)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
        """Items (s,) with the target last, stars (s,) with 0 for the target's, and its stars."""
        store, p = self.store, self.target[k]
        rows = self.history.position[self.history.start[p]:self.history.stop[p]][-HISTORY:]
        item, stars = np.full(HISTORY + 1, PAD), np.zeros(HISTORY + 1, np.float32)
        item[HISTORY - len(rows):] = [*store.item_idx[rows], store.item_idx[p]]
        stars[HISTORY - len(rows):HISTORY] = store.rating[rows]
        return item, stars, store.rating[p]


class PlainWindows(nn.Module):
    """The Keras example's kind of network, the cheaper one that reads the target's output alone."""

    def __init__(self, num_items: int, *, width: int = 64) -> None:
        super().__init__()
        self.item, self.stars = nn.Embedding(num_items, width), nn.Linear(1, width)
        self.position = nn.Embedding(HISTORY + 1, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        hidden = [[nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.1)]
                  for a, b in itertools.pairwise([width, 256, 128, 64])]
        self.head = nn.Sequential(*itertools.chain(*hidden), nn.Linear(64, 1))

    def forward(self, item: Tensor, stars: Tensor) -> Tensor:
        """Stars (b,) of the last of items (b, s), with stars (b, s) of those before."""
        x = self.item(item) + self.stars(stars[..., None]) + self.position.weight
        return self.head(self.layer(x, src_key_padding_mask=item == PAD)[:, -1])[:, 0]


Steps = Iterator[int]  # each update gives its number of targets


def plain_steps(store: SequenceStore, split: Split) -> Steps:
    """Updates as a tutorial makes them, epoch after epoch."""
    torch.manual_seed(0)
    model = PlainWindows(store.num_items + 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        for item, stars, label in DataLoader(Windows(store, split), BATCH, shuffle=True):
            loss = F.mse_loss(model(item, stars), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(label)


def our_steps(store: SequenceStore, split: Split, config: ModelConfig) -> Steps:
    """Updates as `bst.training.loop.Fitting` makes them, epoch after epoch."""
    train, rng = TrainConfig(), np.random.default_rng(0)
    noise = rng.normal(size=(store.num_items, 384)).astype(np.float32)  # overviews cost the same
    text = TextVectors(noise, np.ones(store.num_items, dtype=bool))
    batches = Batches(store, split, UserVocabulary.fit(store, split))
    model = build_model(config, batches, text, seed=0)
    optimizer, mean = optimizer_of(model, train), averaged(model, 100)  # of any number as dear
    for epoch in itertools.count():
        plan = batches.epoch("train", batch_size=train.batch_size, seed=0, epoch=epoch)
        for rows in plan:
            batch, _ = gather_shard(batches, rows, "cpu")
            train_step(model, batch, optimizer, clip=train.clip)
            mean.update_parameters(model)
            yield sum(map(len, rows))


class Trainee:
    """A training that goes on in turn with the others."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.rates = steps, []
        next(steps)  # makes the model

    def measure(self, seconds: float, clock: Callable[[], float]) -> None:
        """Keep the targets per second over at least `seconds`."""
        done, started = 0, clock()
        while (spent := clock() - started) < seconds:
            done += next(self.steps)
        self.rates.append(done / spent)

    @property
    def rate(self) -> float:
        """Median of what was measured."""
        return statistics.median(self.rates)


def trainees(store: SequenceStore) -> dict[str, Trainee]:
    """Our network, with one kind of heads or both, and the plain windows, on one train part."""
    split = split_interactions(store)
    known = {name: our_steps(store, split, ModelConfig(attention=attention))
             for name, attention in OURS.items()}
    return {name: Trainee(steps)
            for name, steps in (known | {PLAIN: plain_steps(store, split)}).items()}
