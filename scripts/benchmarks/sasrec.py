"""SASRec of RecTools on what scripts/rank.py wrote: train to the best valid epoch, write vectors.

It runs in an environment of its own (scripts/benchmarks/README.md), so it imports nothing of bst.
Network and training are RecTools' defaults (2 blocks, 4 heads, dropout 0.2, Adam at 0.001, batches
of 128 users, softmax over all items), with width 64 and length 200.
"""

import argparse
import json
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LENGTH, WIDTH = 200, 64


def encode(network, index: np.ndarray, ask: dict) -> np.ndarray:
    """States (r, d) of requests: each has seen item[begin:stop]; `index` (items,) is RecTools'."""
    back, states = np.arange(LENGTH, 0, -1), []
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        vectors = network.item_model.get_all_embeddings()
        for rows in np.array_split(np.arange(len(ask["stop"])), -(-len(ask["stop"]) // 256)):
            place = ask["stop"][rows, None] - back
            is_real = place >= ask["begin"][rows, None]
            x = torch.from_numpy(np.where(is_real, index[ask["item"]][place * is_real], 0))
            state = network.encode_sessions({"x": x.to(device)}, vectors)[:, -1]
            states.append(state.cpu().numpy())
    return np.concatenate(states)


def vectors_of(network, index: np.ndarray) -> np.ndarray:
    """Vectors (items, d), NaN for an item that training did not have."""
    with torch.no_grad():
        found = network.item_model.get_all_embeddings().cpu().numpy()[index]
    return np.where(index[:, None] > 0, found, np.nan)


class BestEpoch(Callback):
    """NDCG@10 of the valid requests after each epoch: keeps the best weights, stops by patience."""

    def __init__(self, folder: Path, patience: int) -> None:
        self.ask, self.folder = dict(np.load(folder / "valid.npz")), folder
        self.patience, self.gains = patience, []

    def on_train_epoch_end(self, trainer: Trainer, module) -> None:
        """Rank each target among the items that its request has not seen."""
        index = index_of(module.data_preparator.item_id_map, self.ask)
        states, vectors = encode(module.torch_model, index, self.ask), vectors_of(
            module.torch_model, index)
        gain = []
        for row, state in enumerate(states):
            score = vectors @ state
            score[self.ask["item"][self.ask["begin"][row]:self.ask["stop"][row]]] = np.nan
            rank = 1 + np.count_nonzero(score > score[self.ask["target"][row]])
            is_hit = rank <= 10 and np.isfinite(score[self.ask["target"][row]])
            gain.append(is_hit / np.log2(rank + 1))
        self.gains.append(float(np.mean(gain)))
        print(f"epoch {len(self.gains)}: valid NDCG@10 {self.gains[-1]:.4f}, {seconds():.0f} CPU s",
              flush=True)
        if self.gains[-1] == max(self.gains):
            torch.save(module.torch_model.state_dict(), self.folder / "best.pt")
        since = len(self.gains) - 1 - int(np.argmax(self.gains))
        trainer.should_stop = since >= self.patience
        module.torch_model.train()

    def on_train_end(self, trainer: Trainer, module) -> None:
        """Write what the best epoch says of each test request, and how it went."""
        network, index = module.torch_model, index_of(module.data_preparator.item_id_map, self.ask)
        network.load_state_dict(torch.load(self.folder / "best.pt"))
        for path in self.folder.glob("test*.npz"):
            np.savez(self.folder / f"states-{path.name}", vectors=vectors_of(network, index),
                     state=encode(network, index, dict(np.load(path))))
        (self.folder / "log.json").write_text(json.dumps(
            {"ndcg": self.gains, "best_epoch": int(np.argmax(self.gains)) + 1,
             "cpu_seconds": round(seconds(), 1), "device": str(trainer.strategy.root_device)}))


def index_of(ids, ask: dict) -> np.ndarray:
    """RecTools' index of each of our items, (items,), 0 where training did not have it."""
    return ids.to_internal.reindex(np.arange(int(ask["items"]))).fillna(0).to_numpy().astype(int)


def seconds() -> float:
    """CPU seconds of this process."""
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def main() -> None:
    """Train; what the best epoch says stands beside the input: states-test*.npz, log.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with train.npz, valid.npz and test-*.npz")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or gpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(args.seed)
    train = dict(np.load(args.folder / "train.npz"))
    table = pd.DataFrame({
        Columns.User: train["user"], Columns.Item: train["item"], Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.arange(len(train["item"])), unit="s")})
    best = BestEpoch(args.folder, args.patience)  # RecTools trains with a copy of it
    model = SASRecModel(
        n_factors=WIDTH, session_max_len=LENGTH, loss="softmax",
        get_trainer_func=lambda: Trainer(
            max_epochs=args.epochs, accelerator=args.device,
            devices=1, logger=False, callbacks=[best], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False))
    model.fit(Dataset.construct(table))


if __name__ == "__main__":
    main()
