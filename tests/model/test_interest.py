"""The next-item head. Run: pytest tests/model/test_interest.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bst.config import ModelConfig
from bst.data.schema import FIRST_IDX
from bst.model import interest
from bst.model.batches import Batches
from bst.model.build import build_model
from bst.training.loop import NEXT_ITEM, train_step
from tests.conftest import STILL, all_rows, plain_batches, turned, window

FORMS = [dict(), dict(attention="regression"), dict(text=False, user_features=False, audience=0)]


@pytest.fixture
def head(small):
    """(config changes) -> (model with a next-item head in fp64, batches)."""
    return lambda **changes: small(**{"interest": 1, **STILL, **changes})


def gathered(batches, part="test"):
    return batches.gather(all_rows(batches, part)).to("cpu", torch.float64)


def scores(model, batch):
    """Of the whole catalogue for each real target, (m, items)."""
    vectors = model.next_item_vectors(torch.arange(model.sizes.items) + FIRST_IDX)
    with torch.inference_mode():
        return model.next_item_scores(batch, vectors)


def full_softmax(model, batch, store):
    """-log of each target's share among the items that its history lacks, one at a time."""
    found, items = [], batch.event_item.flatten(1)
    for (row, chunk, i), score in zip(batch.is_target.nonzero().tolist(), scores(model, batch),
                                      strict=True):
        seen = items[row, :int(batch.slot[row, chunk, i])]
        free = np.setdiff1d(np.arange(store.num_items), seen - FIRST_IDX)
        item = int(batch.target_item[row, chunk, i]) - FIRST_IDX
        found.append(score[free].logsumexp(0) - score[item])
    return torch.stack(found)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_everything_is_the_full_softmax_over_unseen_items(head, store, form):
    model, batches = head(**form)
    batch = gathered(batches)
    found = model.next_item_loss(batch)
    expected = full_softmax(model, batch, store).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_its_gradients_are_those_of_the_plain_formula(monkeypatch):
    """Of a sample, in blocks, with excluded negatives."""
    monkeypatch.setattr(interest, "BLOCK", 3)
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True)
              for size in ((7, 4), (7, 4), (7,), (5, 4), (5,))]
    (state, own, own_shift, sampled, shift), out = inputs, torch.rand(7, 5) < 0.3
    negative = (state @ sampled.T + shift).masked_fill(out, -torch.inf)
    score = (state * own).sum(1) + own_shift
    plain = (torch.cat([negative, score[:, None]], dim=1).logsumexp(1) - score).mean()
    ours = interest.NextItemLoss.apply(*inputs, lambda here: out[here])
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(3 * x, inputs) for x in (ours, plain)))


def test_what_a_sample_stands_for_is_the_whole_catalogue_on_average(head, store, monkeypatch):
    """Mean over draws of the estimated sum of exp(score); four standard errors."""
    monkeypatch.setattr(interest, "SAMPLE", 30)
    model, batches = head()
    batch = window(batches, all_rows(batches)[0][-1])
    whole = full_softmax(model, batch, store)[0].exp().item()
    torch.manual_seed(0)
    with torch.inference_mode():
        found = np.exp([model.next_item_loss(batch).item() for _ in range(600)])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - whole) < 4 * error and error < 0.1 * whole
    assert found.std() > 0  # it is a sample


@pytest.mark.parametrize("form", FORMS)
def test_the_target_and_what_comes_later_change_no_score(head, store, form):
    model, batches = head(**form)
    batch = gathered(batches)
    before = scores(model, batch)
    other = replace(batch, target_item=batch.target_item.flip(-1).clamp(min=FIRST_IDX)
                    * batch.is_target, label=6 - batch.label)
    torch.testing.assert_close(scores(model, other), before, atol=1e-12, rtol=0)
    for user in (0, 9):
        rows = np.arange(*store.offsets[user:][:2])
        target = rows[len(rows) // 2]
        late = rows[rows >= batches.split.history_stop[target]]
        items = store.item_idx.copy()
        items[late] = np.roll(items[late], 1) if len(late) > 1 else FIRST_IDX
        later = replace(turned(store, late), item_idx=items)
        found = []
        for of in (batches, Batches(later, batches.split, batches.vocabulary)):
            whole = of.gather([rows]).to("cpu", torch.float64)  # one pass, as in training
            place = (whole.position[whole.is_target] == int(target)).nonzero()[0, 0]
            found += [scores(model, whole)[place], scores(model, window(of, target))[0]]
        for ours in found[1:]:  # a request's state is that of the pass
            torch.testing.assert_close(ours, found[0], atol=1e-11, rtol=0)


def test_it_reads_items_stars_and_times_and_when_it_is_asked(head):
    model, batches = head()
    batch = window(batches, batches.split.test[-1])
    for name, change in (("event_item", lambda x: (x % 7 + FIRST_IDX) * (x > 0)),
                         ("event_rating", lambda x: 6 - x), ("event_time", lambda x: x // 9),
                         ("target_time", lambda x: x + 99_999)):
        other = replace(batch, **{name: change(getattr(batch, name))})
        assert not torch.allclose(scores(model, other), scores(model, batch))


def test_its_loss_moves_nothing_but_the_head(head):
    model, batches = head()
    model.next_item_loss(gathered(batches)).backward()
    assert {name.split(".")[0] for name, p in model.named_parameters()
            if p.grad is not None} == {"interest"}


def test_it_learns_which_item_follows_which(store, split, text):
    """Everybody goes through the catalogue in one order, from another item on."""
    rank = np.arange(len(store)) - store.offsets[:-1][store.user_row]
    items = (rank + 5 * store.user_row) % store.num_items + FIRST_IDX
    world = replace(store, item_idx=items.astype(np.int32),
                    timestamp=np.arange(len(store)) * 3600)  # no ties: all see the one before
    ordered = replace(split, history_stop=np.arange(len(store)))
    batches = plain_batches(world, ordered)
    model = build_model(ModelConfig(interest=1, **STILL), batches, text, seed=0)
    optimizer = torch.optim.AdamW(model.interest.parameters(), lr=2e-3)
    for epoch in range(25):
        for step, rows in enumerate(batches.epoch("train", batch_size=512, seed=0, epoch=epoch)):
            torch.manual_seed(step)
            train_step(model, batches.gather(rows), optimizer, clip=1.0, task=NEXT_ITEM)
    model.double().eval()
    batch = gathered(batches)
    surprise = full_softmax(model, batch, world)[batch.seen[batch.is_target] > 0]  # nats
    assert surprise.median() < 0.3 < np.log(store.num_items) / 2
