"""One person, many films, in little time: the network's forward with the work of films done before.

The same function as `BST.forward` (a test compares them): the embedding, query and overview part of
every film are computed once when the model is loaded, and the history is projected once a request.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from bst.model.batches import Batch
from bst.model.network import BST

CHUNK = 512  # films that go through attention and MLP together: their logits stay in the cache


class Scorer:
    """Precomputed parts of a network with one attention layer; n items, h heads, e = width / h.

    Rows of films are taken by `index_select`, which copies them two to four times as fast as [].

    Args:
        model: with `Scorer.serves(model)`; its weights must not change afterwards.
    """

    @staticmethod
    def serves(model: BST) -> bool:
        """True for a model with one layer, the target readout and a plain rating head."""
        config = model.config
        return config.shares_history and config.layers == 1 and config.loss != "ordinal"

    @torch.inference_mode()
    def __init__(self, model: BST) -> None:
        self.model, self.block = model, model.blocks[0]
        items = torch.arange(len(model.item_vocab))[None]
        tokens, text = model._embed_items(items, torch.zeros_like(items, dtype=torch.bool))
        self.token = tokens[0]  # (n, d)
        self.target = model._target_tokens(tokens)[0]
        split = "n (three h e) -> three h n e"
        self.query, key, self.value = (
            part.contiguous() for part in
            rearrange(self.block.qkv(self.target), split, three=3, h=self.block.heads))
        self.own = einsum(self.query, key, "h n e, h n e -> h n") * self.block.scale
        first, width = model.head[0], self.token.shape[1]
        sizes = [width, model.config.text_dim if text is not None else 0,
                 sum(table.embedding_dim for table in model.user)]
        sizes.append(first.in_features - sum(sizes))
        read, of_text, self.of_user, dense = first.weight.split(sizes, dim=1)
        self.of_read = torch.cat([read, dense], dim=1).T.contiguous()  # (d + f, hidden)
        self.start = first.bias.expand(len(self.token), -1)  # (n, hidden)
        if text is not None:
            self.start = F.linear(text[0], of_text, first.bias)

    @torch.inference_mode()
    def score(self, batch: Batch) -> Tensor:
        """Expected stars of the targets of the only row, (i,); not clamped."""
        key, value, bias = self._memory(batch)
        users = self.model._user_parts(batch)
        shift = torch.cat(users, dim=-1)[0, :1] @ self.of_user.T if users else 0.0
        dense = [part[0] for part in self.model._dense_parts(batch.dense)]
        items, found = batch.target_item[0], []
        for low in range(0, len(items), CHUNK):
            here = slice(low, low + CHUNK)
            x = self._read(items[here], key, value, bias)
            x = torch.cat([x, *(part[here] for part in dense)], dim=-1)
            x = torch.addmm(self.start.index_select(0, items[here]) + shift, x, self.of_read)
            found.append(self.model.head[1:](x)[:, 0])
        return batch.base[0] + torch.cat(found)

    @torch.inference_mode()
    def attention(self, batch: Batch) -> Tensor:
        """Weights of every target of the only row, mean over heads: (i, 2 + events).

        The target itself comes first, then the token of the empty history, then the events.
        """
        key, _, bias = self._memory(batch)
        return self._weight(batch.target_item[0], key, bias).mean(dim=0)

    def _memory(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled keys (h, e, 2 + j), values (h, 2 + j, e) and bias (h, 1, 2 + j) of the history.

        Slot 0 is kept free for the target itself, slot 1 is the token of the empty history.
        """
        model, block = self.model, self.block
        events = model._event_tokens(self.token[batch.event_item], batch)
        memory = torch.cat([model.null, events], dim=1)[0]
        width = memory.shape[-1]
        kv = F.linear(memory, block.qkv.weight[width:], block.qkv.bias[width:])
        key, value = rearrange(kv, "j (two h e) -> two h j e", two=2, h=block.heads)
        slot = torch.arange(events.shape[1], dtype=torch.int32)
        gap = batch.target_time[:, :1, None] - batch.event_time[:, None]  # one time for all targets
        rank = batch.stop[:, :1, None] - slot
        bias = model.position(gap.clamp(min=0), rank.clamp(min=0))
        is_visible = (slot >= batch.first[:, :1, None]) & (slot < batch.stop[:, :1, None])
        bias = bias.masked_fill(~is_visible[:, None], -torch.inf)
        key = rearrange(F.pad(key * block.scale, (0, 0, 1, 0)), "h j e -> h e j").contiguous()
        return key, F.pad(value, (0, 0, 1, 0)), F.pad(bias[0], (2, 0))

    def _weight(self, items: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """Attention weights (h, i, 2 + j) of the items."""
        logits = torch.bmm(self.query.index_select(1, items), key).add_(bias)
        logits[..., 0] = self.own.index_select(1, items)
        return logits.softmax(dim=-1)

    def _read(self, items: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """The target's output of the layer, (i, d)."""
        weight, block = self._weight(items, key, bias), self.block
        own = self.value.index_select(1, items)
        attended = torch.bmm(weight, value).addcmul_(weight[..., :1], own)
        attended = block.out(rearrange(attended, "h i e -> i (h e)"))
        x = block.norm_attn(self.target.index_select(0, items) + attended)
        return block.norm_ffn(x + block.ffn(x))
