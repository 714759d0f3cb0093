"""Ranking of the catalogue against plain loops. Run: pytest tests/test_ranking.py."""

import numpy as np
import pytest

from bst.data.schema import FIRST_IDX
from bst.evaluation.baselines import ITEM_SHRINK
from scripts.support.ranking import format_ranking, ranking_rows, recent_popularity, top_lists
from tests.conftest import asked


@pytest.fixture(scope="module")
def ranked(build, store):
    recommender, batches = build()
    return recommender, batches.split, *top_lists(recommender, store, batches.split, "test", 4)


def test_the_lists_by_popularity_and_item_mean_know_train_alone_and_leave_out_what_was_seen(
    ranked, store
):
    _, split, lists, rated = ranked
    users = sorted({int(store.user_row[p]) for p in split.test})
    assert len(lists["popularity"]) == len(rated) == len(users)
    train = list(store.item_idx[split.train])
    count = {item: train.count(item) for item in range(2, store.num_items + 2)}
    stars = store.rating[split.train].astype(float)
    bias = {i: (stars - stars.mean())[np.array(train) == i].sum() / (n + ITEM_SHRINK)
            for i, n in count.items()}
    for user, found, by_mean, films in zip(
            users, lists["popularity"], lists["item mean"], rated, strict=True):
        mine = [p for p in split.test if store.user_row[p] == user]
        assert films == {int(store.item_idx[p]): float(store.rating[p]) for p in mine}
        rows = range(store.offsets[user], store.offsets[user + 1])
        seen = {store.item_idx[q] for q in rows if store.timestamp[q] < store.timestamp[mine[0]]}
        order = sorted(set(count) - seen, key=lambda item: (-count[item], item))
        assert found.tolist() == order[:4]
        best = sorted((bias[item] for item in order), reverse=True)[:4]
        assert [bias[i] for i in by_mean] == pytest.approx(best) and seen.isdisjoint(by_mean)


@pytest.mark.parametrize(("ties", "protocol"), [
    ("strict", "temporal"), ("strict", "leave-last-one"), ("stable", "leave-last-one")])
def test_the_list_by_stars_is_what_recommend_says_at_the_history_of_the_split(
    build, store, ties, protocol
):
    recommender, batches = build(ties=ties, protocol=protocol)
    split = batches.split
    lists, _ = top_lists(recommender, store, split, "test", 4)
    firsts = [next(p for p in split.test if store.user_row[p] == user)
              for user in sorted(set(store.user_row[split.test]))]
    for first, found in zip(firsts, lists["bst stars"], strict=True):
        person, at = asked(recommender, batches, store, first), int(store.timestamp[first])
        top = recommender.recommend(person, 4, at=at)
        assert recommender.catalogue.items([f.movie_id for f in top]).tolist() == found.tolist()
    tied = store.timestamp[split.history_stop[firsts] - 1] == store.timestamp[firsts]
    assert tied.any() == (ties == "stable")


def test_recent_popularity_counts_the_ratings_of_the_last_seconds(store, split):
    score = recent_popularity(store, split, seconds=5000)
    at = int(np.quantile(store.timestamp, 0.7))
    items = np.arange(store.num_items) + FIRST_IDX
    expected = [sum(1 for t, i in zip(store.timestamp, store.item_idx, strict=True)
                    if i == item and at - 5000 <= t < at) for item in items]
    assert score(items, at).tolist() == expected and max(expected) > 0


def test_a_list_ends_where_the_films_that_are_not_seen_end(ranked, store):
    recommender, split, short, rated = ranked
    lists, _ = top_lists(recommender, store, split, "test", store.num_items)
    assert not all((found > 0).all() for found in lists["bst stars"])
    for name, found in lists.items():
        assert (found[:, :4] == short[name]).all()
        films = [row[row > 0].tolist() for row in found]
        assert all(set(mine) < set(row) for row, mine in zip(films, rated, strict=True))
    row = ranking_rows({"all": lists["bst stars"][None]}, rated, k=store.num_items)[0]
    assert row["hr"] == 1.0  # what pads a list is no hit and no miss


def test_the_rows_are_means_over_users_of_the_formulas():
    """Three users: a hit at rank 2 of 2 relevant; none of 1; nobody liked by the third."""
    lists = {"bst": np.array([[[7, 8], [7, 8], [9, 8]]])}
    rated = [{8: 5.0, 3: 4.0}, {3: 4.0}, {9: 1.0}]
    rows = {row["relevant"]: row for row in ranking_rows(lists, rated, k=2)}
    discount = [1, 1 / np.log2(3)]
    assert rows["rated"]["users"] == 3 and rows["liked"]["users"] == 2
    assert rows["rated"]["hr"] == pytest.approx(2 / 3) and rows["liked"]["hr"] == 1 / 2
    assert rows["rated"]["ndcg"] == pytest.approx((discount[1] / sum(discount) + 0 + 1) / 3)
    assert rows["liked"]["ndcg"] == pytest.approx(discount[1] / sum(discount) / 2)
    assert rows["rated"]["hr_low"] <= 2 / 3 <= rows["rated"]["hr_high"]
    assert "| liked | bst | 2 | 0.5000 [" in format_ranking(list(rows.values()))


def test_two_runs_count_half_each():
    """The first run hits at rank 1 for the first of two users, the second for nobody."""
    lists = {"bst": np.array([[[1], [2]], [[2], [2]]])}
    row = ranking_rows(lists, [{1: 5.0}, {3: 5.0}], k=1)[0]
    assert (row["runs"], row["hr"], row["ndcg"]) == (2, 0.25, 0.25)
    assert (row["hr_low"], row["hr_high"]) == (0.0, 1.0)  # of one run
    assert row["hr_spread"] == row["ndcg_spread"] == pytest.approx(0.25 * 2**0.5)
