"""How stores become tensors. Run: pytest tests/model/test_batches.py."""

import numpy as np
import pytest

from bst.data.splits import split_interactions
from bst.model.batches import CHUNK, CROWDED, Batches, Events, Targets, UserVocabulary, lay_out


def batches_of(store, split):
    return Batches(store, split, UserVocabulary.fit(store, split))


@pytest.mark.parametrize("protocol", ["temporal", "random", "leave-last-one"])
@pytest.mark.parametrize("ties", ["strict", "stable"])
def test_each_target_sees_just_its_history_in_order(store, protocol, ties):
    split = split_interactions(store, protocol=protocol, ties=ties)
    batches, found = batches_of(store, split), []
    for part in ("train", "valid", "test"):
        for rows in batches.epoch(part, batch_size=2000, seed=1):
            batch = batches.gather(rows)
            item, rating = (x.flatten(1) for x in (batch.event_item, batch.event_rating))
            for b, t, i in batch.is_target.nonzero().tolist():
                p, until = int(batch.position[b, t, i]), int(batch.slot[b, t, i])
                begin = store.offsets[store.user_row[p]]
                history = np.arange(begin, split.history_stop[p])
                history = history[split.is_history[history]]
                assert int(batch.seen[b, t, i]) == len(history)
                own = slice(until - len(history), until)
                assert item[b, own].tolist() == store.item_idx[history].tolist()
                assert rating[b, own].tolist() == store.rating[history].tolist()
                assert not item[b, :own.start].any()  # padded in front
                assert batch.target_item[b, t, i] == store.item_idx[p]
                assert batch.label[b, t, i] == store.rating[p]
                time = batch.event_time.flatten(1)[b, own]
                since = store.timestamp[p] - store.timestamp[history]
                assert (batch.target_time[b, t, i] - time).tolist() == since.tolist()
                found.append(p)
    assert sorted(found) == sorted(np.concatenate([split.train, split.valid, split.test]))


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch(store, split):
    batches = batches_of(store, split)

    def order(**how):
        return [p for rows in batches.epoch("train", batch_size=512, **how)
                for row in rows for p in row]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    orders = [order(seed=1, epoch=2), order(seed=1, epoch=3), order(seed=2, epoch=2), order()]
    assert len({tuple(o) for o in orders}) == 4 and len({tuple(sorted(o)) for o in orders}) == 1


def test_a_batch_is_no_larger_than_asked_unless_one_row_is(store, split):
    batches = batches_of(store, split)
    plan = batches.epoch("train", batch_size=6 * CHUNK, seed=0)
    assert max(map(len, plan)) > 1
    for rows in plan:
        batch = batches.gather(rows)
        padded = max(batch.event_item.numel(), batch.stop.numel() / CROWDED)
        assert len(rows) == 1 or padded <= 6 * CHUNK


def test_people_who_rated_much_at_one_time_and_people_without_a_history_are_laid_out():
    """Targets of one time share a chunk, however many; a row may have no event."""
    k = 3 * CHUNK
    events = Events(np.arange(2, 42), np.ones(40), np.arange(40) * 10)
    targets = Targets(row=np.repeat([0, 1], [k, 2]), item=np.arange(k + 2) + 2,
                      time=np.full(k + 2, 1000), seen=np.array([33] * k + [0, 0]),
                      label=np.arange(k + 2), position=np.arange(k + 2))
    batch = lay_out(events, np.array([0, 40]), np.array([40, 0]), targets, np.ones((2, 5), int))
    assert batch.is_target.sum(dim=(1, 2)).tolist() == [k, 2]
    assert batch.seen[batch.is_target].tolist() == [33] * k + [0, 0]
    assert batch.target_time[1][batch.is_target[1]].tolist() == [0, 0]
    assert batch.event_item[0].flatten()[-40:].tolist() == list(range(2, 42))
    assert not batch.event_item[1].any()


def test_a_batch_whose_parts_do_not_fit_says_so(store, split):
    batches = batches_of(store, split)
    batch = batches.gather(batches.epoch("train", batch_size=300)[0])
    with pytest.raises(ValueError, match=r"expected \(b, c, n\) and \(b, t, i\)"):
        type(batch)(**{**vars(batch), "label": batch.label[:, :, :1]})
