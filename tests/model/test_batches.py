"""How stores become tensors. Run: pytest tests/model/test_batches.py."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import bst.model.batches
from bst.data.schema import OOV, PAD, USER_FEATURES, Tables
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from bst.model.batches import TARGETS_PER_EVENT, UserVocabulary
from tests.conftest import plain_batches


def visible(batches, p):
    """Positions that the target at p may see, oldest first, by plain loops."""
    store, split = batches.store, batches.split
    earlier = range(store.offsets[store.user_row[p]], split.history_stop[p])
    return [q for q in earlier if split.is_history[q]]


@pytest.mark.parametrize("chunk", [5, 32])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
@pytest.mark.parametrize("ties", ["strict", "stable"])
@pytest.mark.parametrize("batch_size", [40, 400])
def test_a_batch_holds_each_target_and_what_it_may_see(
    tables, monkeypatch, protocol, ties, batch_size, chunk
):
    monkeypatch.setattr(bst.model.batches, "CHUNK", chunk)
    once, idle = (tables.users.tail(1).with_columns(pl.col("user_id") + k) for k in (1, 2))
    last = tables.ratings.sort("timestamp").tail(1).with_columns(
        once["user_id"], pl.col("timestamp") + 9)  # the only rating of its user
    store = build_sequences(Tables(pl.concat([tables.users, once, idle]), tables.movies,
                                   pl.concat([tables.ratings, last])))
    split = split_interactions(store, protocol=protocol, ties=ties)
    batches = plain_batches(store, split)
    users = batches.vocabulary.encode(store.users)
    met = []
    for batch in map(batches.gather, batches.epoch("test", batch_size=batch_size)):
        pad = ~batch.is_target
        assert torch.equal(batch.position == -1, pad)
        for name in ("target_item", "target_time", "stop", "label"):
            assert not getattr(batch, name)[pad].any()
        for name in ("event_item", "event_rating", "event_time"):
            assert not getattr(batch, name)[~batch.is_event].any()
        assert pad.any(dim=2).sum() < pad.any(dim=2).numel()  # no slot that no target needs
        assert (~pad).any(dim=2).any(dim=0)[0]  # and no chunk before the first target's
        met += batch.position[~pad].tolist()
        items, rating, time, real = (x.flatten(1) for x in (
            batch.event_item, batch.event_rating, batch.event_time, batch.is_event))
        for row, k, i in batch.is_target.nonzero().tolist():
            p, slot = int(batch.position[row, k, i]), int(batch.slot[row, k, i])
            sees, seen = visible(batches, p), real[row, :slot]
            assert batch.seen[row, k, i] == len(sees)
            assert items[row, :slot][seen].tolist() == store.item_idx[sees].tolist()
            assert rating[row, :slot][seen].tolist() == store.rating[sees].tolist()
            since = batch.target_time[row, k, i] - time[row, :slot][seen]
            assert since.tolist() == (store.timestamp[p] - store.timestamp[sees]).tolist()
            assert batch.user[row].tolist() == users[store.user_row[p]].tolist()
            assert batch.target_item[row, k, i] == store.item_idx[p]
            assert batch.label[row, k, i] == store.rating[p]
        for row, has in enumerate(real):  # padded in front, and time 0 is the first event
            assert has.sum() == 0 or has[-int(has.sum()):].all()
            first = batch.target_time[row][~pad[row]] if not has.any() else time[row][has]
            assert first[0] == 0
    assert sorted(met) == split.test.tolist()


DTYPES = {"event_item": torch.int64, "target_item": torch.int64, "user": torch.int64,
          "position": torch.int64, "event_time": torch.int64, "target_time": torch.int64,
          "stop": torch.int64, "event_rating": torch.float32, "label": torch.float32}


@pytest.mark.parametrize("left", [0, 1, 700])
def test_a_batch_has_its_types_with_and_without_history_and_is_even(store, split, left):
    batches = plain_batches(store, replace(split, is_history=np.arange(700) < left))
    batch = batches.gather(batches.epoch("valid", batch_size=400)[0])
    assert batch.event_item.any() == batch.seen[batch.is_target].any() == (left > 0)
    double = batch.to("cpu", torch.float64)
    for name, dtype in DTYPES.items():
        mine = getattr(batch, name)
        assert mine.dtype == dtype and torch.equal(getattr(double, name).to(dtype), mine)
        assert getattr(double, name).dtype == {torch.float32: torch.float64}.get(dtype, dtype)


def plan(batches, part, *, batch_size, seed, epoch, chunk):
    """What `Batches.epoch` plans, by plain loops."""
    rows = {}
    for p in batches.split.part(part).tolist():
        rows.setdefault(batches.store.user_row[p], []).append(p)
    rows, chunks, most = list(rows.values()), [], []
    for row in rows:
        sees = [len(visible(batches, p)) for p in row]
        chunks.append(max(1, -(-max(sees) // chunk)))
        back = [min(chunks[-1] - 1, (max(sees) - s) // chunk) for s in sees]  # from the last chunk
        at_end = [(max(sees) - s) % chunk == 0 and s < max(sees) for s in sees]
        most.append(max(Counter(
            b - e for b, e in zip(back, at_end, strict=True)).values()))
    rng, key = np.random.default_rng([seed or 0, epoch]), np.array(chunks, float)
    if seed is not None:
        key *= np.exp(rng.normal(0, 0.1, len(rows)))
    cuts = [[]]
    for r in sorted(range(len(rows)), key=lambda r: key[r]):
        new = [*cuts[-1], r]
        size = len(new) * max(chunks[k] for k in new)
        size *= max(chunk, *(most[k] / TARGETS_PER_EVENT for k in new))
        if cuts[-1] and size > batch_size:
            cuts.append([r])
        else:
            cuts[-1] = new
    cuts = [[rows[r] for r in cut] for cut in cuts]
    return cuts if seed is None else [cuts[k] for k in rng.permutation(len(cuts))]


@pytest.mark.parametrize(("first_user", "tied"), [(0, False), (1, False), (0, True)])
@pytest.mark.parametrize("chance", [{}, {"epoch": 2}, {"seed": 0}, {"seed": 3, "epoch": 2}])
@pytest.mark.parametrize(("chunk", "batch_size"), [(5, 1), (5, 80), (5, 300), (32, 200)])
def test_a_batch_plan_is_that_of_plain_loops_and_keeps_to_its_size(
    store, split, monkeypatch, chunk, batch_size, chance, first_user, tied
):
    monkeypatch.setattr(bst.model.batches, "CHUNK", chunk)
    if tied:  # a user's ratings are all of one time: many targets of a chunk
        store = replace(store, timestamp=np.zeros_like(store.timestamp))
        split = split_interactions(store, protocol="leave-last-one")
    for part in ("train", "test"):
        targets = split.part(part)
        cut = replace(split, **{part: targets[store.user_row[targets] >= first_user]})
        batches = plain_batches(store, cut)
        planned = batches.epoch(part, batch_size=batch_size, **chance)
        assert [[row.tolist() for row in rows] for rows in planned] == plan(
            batches, part, batch_size=batch_size, chunk=chunk,
            **{"seed": None, "epoch": 0, **chance})
        for rows, batch in zip(planned, map(batches.gather, planned), strict=True):
            assert sorted(batch.position[batch.is_target].tolist()) == sorted(
                p for row in rows for p in row)
            size = max(batch.event_item.numel(), batch.target_item.numel() / TARGETS_PER_EVENT)
            assert size <= batch_size or len(rows) == 1


def test_a_part_without_targets_has_no_batch(store, split):
    batches = plain_batches(store, replace(split, valid=split.valid[:0]))
    assert batches.epoch("valid", batch_size=99) == []
    assert batches.epoch("valid", batch_size=99, seed=1) == []


def test_a_user_vocabulary_knows_train_alone_and_the_rest_of_a_batch_is_oov(store, split):
    users = store.users.with_columns(
        pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("zip_region")
        .alias("zip_region"))
    store = replace(store, users=users)
    split = replace(split, train=np.flatnonzero(np.isin(store.user_row, [2, 5, 7])))
    vocabulary = UserVocabulary.fit(store, split)
    known = users[[2, 5, 7]]
    assert vocabulary.user_id == known["user_id"].to_list()
    assert vocabulary.features == {
        name: sorted({v for v in known[name] if v is not None}) for name in USER_FEATURES}
    assert vocabulary.sizes == [5, *(2 + len(v) for v in vocabulary.features.values())]
    encoded = vocabulary.encode(users)
    assert encoded.shape == (23, 5) and encoded.dtype == np.int64 and PAD not in encoded
    assert vocabulary.encode(users.clear()).dtype == np.int64
    for row, values in zip(encoded, users.iter_rows(), strict=True):
        tables = (vocabulary.user_id, *vocabulary.features.values())
        for index, value, table in zip(row, values, tables, strict=True):
            assert index == (2 + table.index(value) if value in table else OOV)
