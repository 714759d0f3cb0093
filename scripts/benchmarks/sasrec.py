"""SASRec of RecTools on what scripts/rank.py wrote: train to the best valid epoch, write vectors.

It runs in an environment of its own (scripts/benchmarks/README.md), so it imports nothing of bst.
Network and training are RecTools' defaults (2 blocks, 4 heads, dropout 0.2, Adam at 0.001, softmax
over all items), with width 64, length 200, and batches of 32 users instead of 128: four times as
many steps an epoch, so that it needs fewer epochs. Two functions are replaced by ones that give the
same numbers in less time on a CPU: the loss and the attention.
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
from rectools.models.nn.transformers.lightning import TransformerLightningModule

LENGTH, WIDTH, BATCH, BLOCK = 200, 64, 32, 256
RNG = np.random.default_rng(0)  # of the dropout of attention: torch's takes longer than the product


class SoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy of targets (m,) under states (m, d) times vectors (n, d), in blocks."""

    @staticmethod
    def forward(ctx, state, vectors, target):
        """The loss; its gradients are made on the way, while a block is in the cache."""
        total, by_state, by_vectors = 0.0, torch.empty_like(state), torch.zeros_like(vectors)
        for start in range(0, len(state), BLOCK):
            part = slice(start, start + BLOCK)
            log_share = (state[part] @ vectors.T).log_softmax(dim=1)
            own = log_share.gather(1, target[part, None])
            total = total - own.sum()
            share = log_share.exp_().scatter_add_(1, target[part, None], -torch.ones_like(own))
            by_state[part] = share @ vectors
            by_vectors.addmm_(share.T, state[part])
        ctx.save_for_backward(by_state / len(state), by_vectors / len(state))
        return total / len(state)

    @staticmethod
    def backward(ctx, grad):
        """Gradients of states and vectors."""
        by_state, by_vectors = ctx.saved_tensors
        return grad * by_state, grad * by_vectors, None


class Attention(torch.autograd.Function):
    """Attention with dropped weights; q, k, v (b, h, s, e), mask (s, s) is added to the logits."""

    @staticmethod
    def forward(ctx, q, k, v, mask, dropout):
        """What each position reads, (b, h, s, e)."""
        weight = ((q * q.shape[-1] ** -0.5) @ k.mT + mask).softmax(dim=-1)
        drawn = RNG.integers(0, 2**16, weight.numel(), dtype=np.uint16).view(np.int16)
        kept = torch.from_numpy(drawn).view(weight.shape) >= int(dropout * 2**16) - 2**15
        ctx.save_for_backward(q, k, v, weight, kept)
        ctx.share = 1 - dropout
        return (weight * kept) @ v / ctx.share

    @staticmethod
    def backward(ctx, grad):
        """Gradients of q, k and v."""
        q, k, v, weight, kept = ctx.saved_tensors
        grad = grad / ctx.share
        by_weight = (grad @ v.mT) * kept * weight
        by_logit = by_weight - weight * by_weight.sum(dim=-1, keepdim=True)
        by_logit *= q.shape[-1] ** -0.5
        return by_logit @ k, by_logit.mT @ q, (weight * kept).mT @ grad, None, None


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
    """In the place of torch's function of the same arguments."""
    return Attention.apply(q, k, v, attn_mask, dropout_p)


class Module(TransformerLightningModule):
    """RecTools' module with the loss above."""

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        """Loss of a batch: all weights are 1 here."""
        vectors = self.torch_model.item_model.get_all_embeddings()
        is_real = batch["y"] != 0
        state = self.torch_model.encode_sessions(batch, vectors)[is_real]
        return SoftmaxLoss.apply(state, vectors, batch["y"][is_real])


def encode(network, index: np.ndarray, ask: dict) -> np.ndarray:
    """States (r, d) of requests: each has seen item[begin:stop]; `index` (items,) is RecTools'."""
    back, states = np.arange(LENGTH, 0, -1), []
    network.eval()
    with torch.no_grad():
        vectors = network.item_model.get_all_embeddings()
        for rows in np.array_split(np.arange(len(ask["stop"])), -(-len(ask["stop"]) // 256)):
            place = ask["stop"][rows, None] - back
            is_real = place >= ask["begin"][rows, None]
            x = torch.from_numpy(np.where(is_real, index[ask["item"]][place * is_real], 0))
            states.append(network.encode_sessions({"x": x}, vectors)[:, -1].numpy())
    return np.concatenate(states)


def vectors_of(network, index: np.ndarray) -> np.ndarray:
    """Vectors (items, d), NaN for an item that training did not have."""
    with torch.no_grad():
        found = network.item_model.get_all_embeddings().numpy()[index]
    return np.where(index[:, None] > 0, found, np.nan)


class BestEpoch(Callback):
    """NDCG@10 of the valid requests after each epoch: keeps the best weights, stops by patience.

    It also ends after an epoch in which somebody has made a file named stop in the folder.
    """

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
        is_over = len(self.gains) - 1 - int(np.argmax(self.gains)) >= self.patience
        trainer.should_stop = is_over or (self.folder / "stop").exists()
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
             "cpu_seconds": round(seconds(), 1)}))


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
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.functional.scaled_dot_product_attention = attention
    seed_everything(args.seed)
    train = dict(np.load(args.folder / "train.npz"))
    table = pd.DataFrame({
        Columns.User: train["user"], Columns.Item: train["item"], Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.arange(len(train["item"])), unit="s")})
    best = BestEpoch(args.folder, args.patience)  # RecTools trains with a copy of it
    model = SASRecModel(
        n_factors=WIDTH, session_max_len=LENGTH, loss="softmax", batch_size=BATCH,
        lightning_module_type=Module,
        get_trainer_func=lambda: Trainer(
            max_epochs=args.epochs, accelerator="cpu", devices=1, logger=False, callbacks=[best],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False))
    model.fit(Dataset.construct(table))


if __name__ == "__main__":
    main()
