"""The head that says what a person rates next. Run: pytest tests/model/test_interest.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

from bst.config import LATER, ModelConfig, RunConfig
from bst.data.schema import FIRST_IDX
from bst.model.base import base_scores
from bst.model.batches import Batches, UserVocabulary
from bst.model.features import DENSE
from bst.model.network import CLOCK, _earlier
from bst.training.loop import build_model, train_step
from tests.model.test_network import all_rows

TINY = {"width": 12, "heads": 3, "history_len": 13, "text_dim": 5, "feature_dim": 3,
        "hidden": (17, 7, 5), "buckets": 4}
GOLDEN = [2.3905921, 2.0292370, 2.0155516, 2.0329192]
EVERYTHING = 10**6  # a sample that holds every film for certain
FORMS = [dict(), dict(readout="flatten"), dict(layers=0), dict(text=False, user_features=False),
         dict(rating_input="multiply", position="rank"), dict(history_len=0)]


@pytest.fixture
def head(small):
    """(config changes) -> (model with an interest head in fp64, batches)."""
    return lambda **changes: small(**{"interest": 0.3, **changes})


def test_batch(batches, part="test"):
    return batches.gather(all_rows(batches, part)).to("cpu", torch.float64)


test_batch.__test__ = False


def every_film(model):
    return model.films(torch.arange(model.sizes.items) + FIRST_IDX)


def scores(model, batch):
    with torch.inference_mode():
        return model.interest_scores(batch, every_film(model))


def full_softmax(model, batch, store):
    """-log of each target's share among the films that its history lacks, one at a time."""
    found, score = [], scores(model, batch)
    for row, target in batch.is_target.nonzero().tolist():
        window = slice(int(batch.first[row, target]), int(batch.stop[row, target]))
        free = np.setdiff1d(np.arange(store.num_items), batch.event_item[row, window] - FIRST_IDX)
        film = int(batch.target_item[row, target]) - FIRST_IDX
        found.append(score[row, target, free].logsumexp(0) - score[row, target, film])
    return torch.stack(found)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_everything_is_the_full_softmax_over_unseen_films(head, store, form):
    model, batches = head(**form)
    batch = test_batch(batches)
    loss = model.interest_loss(batch, model._encode(batch)[0], sample=EVERYTHING)
    assert loss.item() == pytest.approx(full_softmax(model, batch, store).mean().item(), abs=1e-10)


@pytest.mark.parametrize("sample", [8, 30])
def test_what_a_sample_stands_for_is_the_whole_catalogue_on_average(head, store, sample):
    """Mean over draws of the estimated sum of exp(score); four standard errors."""
    model, batches = head()
    batch = batches.gather([all_rows(batches)[0][-1:]]).to("cpu", torch.float64)
    events = model._encode(batch)[0]
    whole = full_softmax(model, batch, store)[0].exp().item()
    torch.manual_seed(0)
    with torch.inference_mode():
        found = np.exp([model.interest_loss(batch, events, sample=sample).item()
                        for _ in range(600)])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - whole) < 4 * error and error < 0.1 * whole
    assert found.std() > 0  # it is a sample


@pytest.mark.parametrize("form", FORMS)
def test_the_target_and_all_that_hangs_on_it_change_no_score(head, form):
    """Film, stars and base of the target, and its dense features but the clock."""
    model, batches = head(**form)
    batch = test_batch(batches)
    before = scores(model, batch)
    dense = batch.dense + 1
    dense[..., CLOCK] = batch.dense[..., CLOCK]
    other = replace(batch, target_item=batch.target_item.roll(1, dims=1), label=batch.label + 1,
                    base=batch.base + 1, dense=dense)
    torch.testing.assert_close(scores(model, other), before, atol=0, rtol=0)
    assert {DENSE[k] for k in CLOCK} == {"log hours since first rating", "log history length",
                                         "log hours since last rating"}


@pytest.mark.parametrize("ties", ["rating", "item_idx"])
def test_what_is_rated_at_the_time_of_the_target_or_later_changes_no_score(head, store, ties):
    model, batches = head()
    row = max(all_rows(batches), key=lambda row: batches.stop[row[-1]] - batches.stop[row[0]])
    user, target = store.user_row[row[0]], row[0]
    assert batches.stop[row[-1]] > batches.stop[target] + 1  # the row holds what it may not see
    late = (store.user_row == user) & (store.timestamp >= store.timestamp[target])
    changed = getattr(store, ties).copy()
    changed[late] = 6 - changed[late] if ties == "rating" else np.roll(changed[late], 1)
    other = replace(store, **{ties: changed})
    perturbed = Batches(other, batches.split, UserVocabulary.fit(store, batches.split),
                        base=base_scores(other, batches.split, "neighbours"),
                        history_len=13, shared=True)
    ours, theirs = (b.gather([row]).to("cpu", torch.float64) for b in (batches, perturbed))
    before, after = (scores(model, b)[0] for b in (ours, theirs))
    torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
    assert not torch.allclose(after[-1], before[-1])  # what a later target of the row may see


def test_rows_alone_and_padding_change_no_score(head):
    model, batches = head()
    batch = test_batch(batches)
    together = scores(model, batch)
    wider = {f: torch.nn.functional.pad(getattr(batch, f), (0, 3))
             for f in ("event_item", "event_rating", "event_base", "event_time")}
    torch.testing.assert_close(scores(model, replace(batch, **wider)), together, atol=1e-10, rtol=0)
    for k, row in enumerate(all_rows(batches)[:5]):
        alone = scores(model, batches.gather([row]).to("cpu", torch.float64))[0]
        torch.testing.assert_close(alone, together[k, :len(row)], atol=1e-10, rtol=0)


def test_the_loss_is_a_mean_over_real_targets(head):
    """So that the losses of parts of a batch, weighted by their targets, are that of the whole."""
    model, batches = head()
    rows = all_rows(batches)
    total = 0.0
    for part in (rows[:3], rows[3:]):
        batch = batches.gather(part).to("cpu", torch.float64)
        loss = model.interest_loss(batch, model._encode(batch)[0], sample=EVERYTHING)
        total += loss.item() * batch.is_target.sum().item()
    batch = test_batch(batches)
    whole = model.interest_loss(batch, model._encode(batch)[0], sample=EVERYTHING)
    assert whole.item() == pytest.approx(total / batch.is_target.sum().item(), abs=1e-10)


def test_the_gradient_reaches_the_head_and_what_it_shares_with_the_stars(head):
    model, batches = head()
    batch = test_batch(batches, "train")
    model.interest_loss(batch, model._encode(batch)[0]).backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters()
               if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {"interest", "item_id", "genre", "year", "no_text", "text", "rating",
                       "norm_token", "user"}
    assert all(p.grad.abs().max() > 0 for p in model.interest.parameters())
    model.zero_grad()
    every_film(model)[0].square().sum().backward()  # the vectors of the films share it too
    assert all(p.grad.abs().max() > 0 for p in (model.item_id.weight, model.genre.weight))


def test_the_weight_of_the_second_loss_is_that_of_the_config(head):
    model, batches = head(dropout=0.0, item_dropout=0.0)
    batch = batches.gather([row[-1:] for row in all_rows(batches)]).to("cpu", torch.float64)
    events = model._encode(batch)[0]
    torch.manual_seed(1)
    both = model.loss(batch).item()
    torch.manual_seed(1)
    interest = model.interest_loss(_earlier(batch), events).item()
    stars = (model(batch) - batch.label)[batch.is_target].square().mean().item()
    assert both == pytest.approx(stars + 0.3 * interest, abs=1e-10)


def test_a_target_is_asked_at_the_time_of_one_that_is_not_later(head):
    _, batches = head()
    batch = test_batch(batches, "train")
    torch.manual_seed(0)
    asked = _earlier(batch)
    index = torch.zeros_like(batch.target_item)
    for b, i in batch.is_target.nonzero().tolist():
        same = ((batch.target_time[b] == asked.target_time[b, i])
                & (batch.stop[b] == asked.stop[b, i]) & (batch.first[b] == asked.first[b, i])
                & (batch.dense[b] == asked.dense[b, i]).all(-1)).nonzero()[:, 0]
        assert len(same) and same[0] <= i
        index[b, i] = same[0]
    assert ((asked.stop <= batch.stop) | ~batch.is_target).all()
    assert (index[:, 1:] > 0).any() and (index[batch.is_target] == 0).any()


def test_it_learns_which_film_follows_which(store, split, text):
    """Everybody goes through the catalogue in one order, from another film on."""
    rank = np.arange(len(store)) - store.offsets[:-1][store.user_row]
    items = (rank + 5 * store.user_row) % store.num_items + FIRST_IDX
    world = replace(store, item_idx=items.astype(np.int32))
    batches = Batches(world, split, UserVocabulary.fit(world, split), history_len=13, shared=True,
                      base=base_scores(world, split, "bias"))
    config = ModelConfig(**TINY, interest=1.0, dropout=0.0, item_dropout=0.0)
    model = build_model(config, batches, text, seed=0)
    first, share = scores(model, batches.gather(all_rows(batches))), model.interest.log_share
    torch.testing.assert_close(first, share[FIRST_IDX:].expand_as(first))  # popularity
    count = np.bincount(world.item_idx[split.train], minlength=len(share))
    np.testing.assert_allclose(share.exp(), (count + 0.5) / count.sum(), rtol=1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        torch.manual_seed(step)
        for rows in batches.epoch("train", batch_targets=200, seed=0, epoch=step)[:1]:
            model.train()
            batch = batches.gather(rows)
            loss = model.interest_loss(batch, model._encode(batch)[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    batch = batches.gather(all_rows(batches))
    real = batch.is_target
    score = scores(model.eval(), batch)[real]
    own = score.gather(1, rearrange(batch.target_item[real] - FIRST_IDX, "k -> k 1"))
    assert (score > own).sum(dim=1).float().mean() < 5  # of 41 films


def test_without_the_head_a_network_has_the_weights_and_the_losses_that_it_always_had(
    store, split, text, base_of
):
    """Losses of four steps with dropout, as they were before this head came; 1e-5: other CPUs."""
    batches = Batches(store, split, UserVocabulary.fit(store, split), history_len=13, shared=True,
                      base=base_of(split, "neighbours"))
    plain = build_model(ModelConfig(**TINY), batches, text, seed=3)
    both = build_model(ModelConfig(**TINY, interest=0.1), batches, text, seed=3).state_dict()
    assert {name for name in both if name not in plain.state_dict()} == {
        name for name in both if name.startswith("interest.")}
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, both[name]), name
    optimizer, losses = torch.optim.AdamW(plain.parameters(), lr=1e-2), []
    for step, rows in enumerate(batches.epoch("train", batch_targets=100, seed=0)[:4]):
        torch.manual_seed(step)
        losses.append(train_step(plain, batches.gather(rows), optimizer, clip=1.0))
    assert losses == pytest.approx(GOLDEN, rel=1e-5)


def test_a_field_that_came_later_is_left_out_of_the_hash_at_its_neutral_value():
    assert RunConfig().hash == "eef4bef6"  # names the published results
    assert RunConfig(model=ModelConfig(interest=0.1)).hash != "eef4bef6"
    default = RunConfig().to_dict()
    assert all(default[part][name] == neutral for (part, name), neutral in LATER.items())
    with pytest.raises(ValueError, match=r"interest must be in \[0, 100\], got -1"):
        ModelConfig(interest=-1)
