"""The heads against a Gaussian and BERT's layer. Run: pytest tests/model/test_layers.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from bst.model.layers import DRIFT, RegressionHeads, SoftmaxHeads

WIDTHS = (3, 2)
ROWS, CHUNKS, SLOTS, ASKED = 2, 3, 7, 5


def heads(drift=(0.01, 0.4), forgets=(0.02, 0.3)) -> RegressionHeads:
    return RegressionHeads(WIDTHS, drift, forgets).double()


def question(*, empty: int = 4, asked_chunks: int = CHUNKS, gap: float = 3.0) -> dict:
    """Inputs of the heads: the first row lacks its first `empty` events."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(ROWS, *shape, generator=rng, dtype=torch.double)

    is_real = torch.ones(ROWS, CHUNKS * SLOTS, dtype=torch.bool)
    is_real[0, :empty] = False
    is_real = rearrange(is_real, "b (c n) -> b c n", n=SLOTS)
    event_gap = torch.where(is_real, random(CHUNKS, SLOTS) * gap, -1.0)
    event_gap[0, empty // SLOTS, empty % SLOTS] = event_gap[1, 0, 0] = -1.0  # the first of a row
    stop = (random(asked_chunks, ASKED) * (SLOTS + 1)).long()
    first = (CHUNKS - asked_chunks) * SLOTS
    slot = stop + first + torch.arange(asked_chunks)[:, None] * SLOTS
    seen = slot - (~is_real).sum(dim=(1, 2))[:, None, None]
    stop = torch.where(seen < 0, stop - seen, stop).clamp(max=SLOTS)  # not before the first event
    return {
        "events": (random(CHUNKS, SLOTS, 5) - 0.5) * 3 * is_real[..., None],
        "targets": (random(asked_chunks, ASKED, 5) - 0.5) * 3,
        "residual": ((random(CHUNKS, SLOTS) - 0.5) * 4 * is_real)[..., None],  # one copy
        "noise": torch.where(is_real, random(CHUNKS, SLOTS) + 0.1, 1.0),
        "event_gap": event_gap,
        "target_gap": torch.where(seen > 0, random(asked_chunks, ASKED), -1.0), "stop": stop,
    }


def answer(layer, events, targets, residual, noise, event_gap, target_gap, stop):
    """Taste and variance of `question`, whose names these are."""
    return layer(layer.encode(events, residual, noise, event_gap), targets, target_gap, stop)


def written_out(layer: RegressionHeads, q: dict, row: int, chunk: int, target: int):
    """Mean and variance of one target's residual: the Gaussian, its whole covariance inverted."""
    drift, forgets = (p.detach().exp().numpy() for p in (layer.log_drift, layer.log_forgets))
    asked = q["stop"].shape[1]
    stop = int(q["stop"][row, chunk, target]) + (CHUNKS - asked + chunk) * SLOTS
    flat = {name: q[name][row].reshape(CHUNKS * SLOTS, -1).numpy()
            for name in ("events", "residual", "noise", "event_gap")}
    real = np.abs(flat["events"]).sum(axis=1)[:stop] > 0
    key = np.concatenate([flat["events"][:stop][real], q["targets"][row, chunk, target][None]])
    gap = np.append(flat["event_gap"][:stop][real], q["target_gap"][row, chunk, target])[:, None]
    clock = np.where(gap < 0, 0, np.minimum(drift + forgets * gap, DRIFT)).cumsum(axis=0)
    cov, low = np.zeros((len(key), len(key))), 0
    for head, width in enumerate(WIDTHS):
        part = key[:, low:low + width]
        lag = np.abs(clock[:, None, head] - clock[None, :, head])
        cov, low = cov + part @ part.T * np.exp(-lag), low + width
    noise = np.diag(flat["noise"][:stop][real][:, 0])
    weight = np.linalg.solve(cov[:-1, :-1] + noise, cov[:-1, -1])
    return weight @ flat["residual"][:stop][real][:, 0], cov[-1, -1] - weight @ cov[:-1, -1]


@pytest.mark.parametrize(("asked_chunks", "empty"), [(CHUNKS, 4), (1, 0), (2, 9), (1, 21)])
def test_the_heads_are_the_gaussian_with_its_covariance_written_out(asked_chunks, empty):
    """Over chunk borders, with two drifts, empty histories and chunks, and stops anywhere."""
    layer, q = heads(), question(empty=min(empty, 20), asked_chunks=asked_chunks)
    if empty == 21:  # nobody has rated anything
        q |= {"events": q["events"] * 0, "residual": q["residual"] * 0,
              "noise": q["noise"] * 0 + 1, "event_gap": q["event_gap"] * 0 - 1,
              "target_gap": q["target_gap"] * 0 - 1}
    taste, variance = answer(layer, **q)
    mean = (taste * q["targets"]).sum(-1)
    for row in range(ROWS):
        for chunk in range(asked_chunks):
            for target in range(ASKED):
                expected = written_out(layer, q, row, chunk, target)
                found = mean[row, chunk, target].item(), variance[row, chunk, target, 0].item()
                assert found == pytest.approx(expected, abs=1e-10)


def test_copies_of_the_heads_read_apart():
    layer, q = heads(), question()
    other = {name: q[name].flip(1) if name in ("events", "targets") else q[name] * 2
             for name in ("events", "targets", "residual")}
    both = {**q, **{name: torch.cat([q[name], other[name]], dim=-1) for name in other}}
    found = answer(layer, **both)
    alone = [answer(layer, **q), answer(layer, **{**q, **other})]
    for k, together in enumerate(found):
        expected = torch.cat([one[k] for one in alone], dim=-1)
        torch.testing.assert_close(together, expected, atol=1e-12, rtol=0)


def test_gaps_of_years_and_fast_heads_stay_exact_in_float32():
    """The drift of a whole chunk stays within what exp can hold; numbers as in float64."""
    for gap in (0.0, 12.0):
        layer = heads(drift=(0.001, 4.9), forgets=(0.001, 2.0))
        q = question(gap=gap)
        exact = answer(layer, **q)
        single = {name: x if name == "stop" else x.float() for name, x in q.items()}
        single = answer(layer.float(), **single)
        for ours, theirs in zip(single, exact, strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=1e-4)


def test_a_long_history_stays_positive_definite_in_float32():
    torch.manual_seed(0)
    chunks, n = 64, 32
    key = torch.randn(1, 1, 1, 5) * 2 + torch.randn(1, chunks, n, 5) * 0.01
    layer = RegressionHeads(WIDTHS, (1e-4, 1e-3), (1e-4, 1e-3))
    inputs = (key, key[:, -1:], torch.ones(1, chunks, n, 1), torch.full((1, chunks, n), 0.05),
              torch.zeros(1, chunks, n), torch.zeros(1, 1, n))
    stop = torch.full((1, 1, n), n)
    single = answer(layer, *inputs, stop)
    exact = answer(layer.double(), *(x.double() for x in inputs), stop)
    for ours, theirs in zip(single, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-3, rtol=1e-2)


def test_flattened_softmax_heads_are_the_bert_layer_of_transformers():
    theirs = BertLayer(BertConfig(hidden_size=20, num_attention_heads=5, intermediate_size=80,
                                  hidden_act="leaky_relu", layer_norm_eps=1e-5,
                                  attn_implementation="eager")).eval()
    ours = SoftmaxHeads(20, 5, length=6, dropout=0.3, readout="flatten").eval()
    attention = theirs.attention
    for name in ("weight", "bias"):
        parts = [getattr(getattr(attention.self, p), name) for p in ("query", "key", "value")]
        pairs = [(ours.qkv, torch.cat(parts)), (ours.out, getattr(attention.output.dense, name)),
                 (ours.norm_attn, getattr(attention.output.LayerNorm, name)),
                 (ours.ffn[0], getattr(theirs.intermediate.dense, name)),
                 (ours.ffn[2], getattr(theirs.output.dense, name)),
                 (ours.norm_ffn, getattr(theirs.output.LayerNorm, name))]
        for module, value in pairs:
            getattr(module, name).data.copy_(value)
    ours.rank_slope.data.zero_()
    events, target = torch.randn(3, 2, 4, 20), torch.randn(3, 1, 1, 20)
    seen = torch.tensor([6, 2, 0])
    batch = SimpleNamespace(is_request=False, 
        slot=torch.full((3, 1, 1), 8), stop=torch.full((3, 1, 1), 4), seen=seen[:, None, None],
        event_time=torch.zeros(3, 2, 4, dtype=torch.long),
        target_time=torch.zeros(3, 1, 1, dtype=torch.long))
    window = torch.cat([events.flatten(1, 2)[:, 2:], target[:, 0]], dim=1)
    is_real = torch.arange(6, -1, -1) <= seen[:, None]
    bias = torch.zeros(3, 1, 1, 7).masked_fill(~is_real[:, None, None], -1e30)
    expected = theirs(window, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    found = rearrange(ours(events, target, batch), "b 1 1 (s d) -> b s d", s=7)
    torch.testing.assert_close(found, expected * is_real[..., None])
    ours.readout = "target"  # one query: the last row of the same layer
    torch.testing.assert_close(ours(events, target, batch)[:, 0, 0], expected[:, -1])
