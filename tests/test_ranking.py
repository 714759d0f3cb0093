"""Ranking protocols and rivals against plain loops. Run: pytest tests/test_ranking.py."""

import json

import numpy as np
import pytest

from bst.data.schema import FIRST_IDX
from bst.data.splits import split_interactions
from bst.recommend.person import person_batch
from bst.utils.errors import DataError
from scripts import rank as script
from scripts.support import rankers
from scripts.support.ranking import METRICS, format_ranking, measure, ranking_row, requests_of
from tests.conftest import asked, keep


@pytest.mark.parametrize(("protocol", "ties", "ask"), [
    ("leave-last-one", "stable", "each"), ("leave-last-one", "strict", "each"),
    ("temporal", "stable", "each"), ("temporal", "strict", "once")])
def test_a_request_sees_what_came_before_and_waits_for_what_comes_next(store, protocol, ties, ask):
    split = split_interactions(store, protocol=protocol, ties=ties)
    found = requests_of(store, split, "test", ask=ask)
    expected = []
    for user in range(store.num_users):
        mine = list(range(store.offsets[user], store.offsets[user + 1]))
        waits = mine[-1:] if len(mine) > 2 else []
        if protocol == "temporal":
            waits = [p for p in mine if store.timestamp[p] >= store.timestamp[split.test].min()]
        for target in waits[:1] if ask == "once" else waits:
            sees = [p for p in mine if p < target and (
                ties == "stable" or store.timestamp[p] < store.timestamp[target])]
            if sees or ask == "once":
                expected.append((user, len(sees), target, waits[-1] if ask == "once" else target))
    told = (found.user, found.stop - found.begin, found.target, found.end - 1)
    assert list(zip(*(x.tolist() for x in told), strict=True)) == expected and len(expected) > 10
    assert (found.begin == store.offsets[found.user]).all()
    assert len(requests_of(store, split, "test", ask=ask, most=7)) == 7


@pytest.fixture(scope="module", params=[("leave-last-one", "each"), ("temporal", "once")])
def requests(request, store):
    protocol, ask = request.param
    return requests_of(store, split_interactions(store, protocol=protocol), "test", ask=ask)


def test_the_metrics_are_those_of_a_sorted_list_without_what_was_seen(requests, monkeypatch):
    """Scores full of ties; the naive list is sorted by score, then popularity, then row."""
    monkeypatch.setattr("scripts.support.ranking.BLOCK", 5)
    monkeypatch.setattr("scripts.support.ranking.LISTED", 3)
    scores = np.random.default_rng(0).integers(0, 6, (len(requests), requests.store.num_items))
    found = measure(requests, lambda rows: scores[rows])
    train = requests.item[requests.split.train].tolist()
    listed = set()
    for k in range(len(requests)):
        seen = set(requests.item[requests.begin[k]:requests.stop[k]].tolist())
        order = sorted(set(range(requests.store.num_items)) - seen,
                       key=lambda i, k=k: (-scores[k, i], -train.count(i), i))
        listed |= set(order[:3])
        wanted = set(requests.item[requests.target[k]:requests.end[k]].tolist())
        ranks = [rank for rank, item in enumerate(order, start=1) if item in wanted]
        assert found["hr10"][k] == (ranks[0] <= 10) and found["mrr"][k] == 1 / ranks[0]
        best = sum(1 / np.log2(r + 1) for r in range(1, min(10, len(wanted)) + 1))
        gain = sum(1 / np.log2(r + 1) for r in ranks if r <= 10)
        assert found["ndcg10"][k] == pytest.approx(gain / best)
    assert listed == set(np.flatnonzero(found["listed"]).tolist())


def test_popularity_counts_train_and_the_recent_one_the_last_days(requests):
    store, every = requests.store, np.arange(len(requests))
    train = requests.item[requests.split.train].tolist()
    assert rankers.popularity(requests)(every[:1])[0].tolist() == [
        train.count(i) for i in range(store.num_items)]
    found = rankers.recent_popularity(requests, 0.5)(every)
    for counted, at in zip(found, requests.at, strict=True):
        recent = (at - 0.5 * rankers.DAY <= store.timestamp) & (store.timestamp < at)
        expected = np.bincount(requests.item[recent], minlength=store.num_items)
        assert counted.tolist() == expected.tolist()
    assert found.any()
    early = rankers.recent_popularity(requests, 0.5, to_all=True)(every)
    assert (early == found[requests.at.argmin()]).all()


def test_item_knn_and_ease_are_their_formulas(requests):
    store, train = requests.store, requests.split.train
    table = np.zeros((store.num_users, store.num_items))
    table[store.user_row[train], requests.item[train]] = 1
    common, every = rankers.co_ratings(requests), np.arange(len(requests))
    knn, ease = rankers.item_knn(common)(requests, 3), rankers.ease(common)(requests, 20.0)
    weights = np.zeros((store.num_items, store.num_items))  # each item by ridge on the others
    for item in range(store.num_items):
        x = np.delete(table, item, axis=1)
        solved = np.linalg.solve(x.T @ x + 20.0 * np.eye(x.shape[1]), x.T @ table[:, item])
        weights[:, item] = np.insert(solved, item, 0.0)
    norm = np.maximum(np.sqrt(table.sum(axis=0)), 1)
    for k in every:
        seen = requests.item[requests.begin[k]:requests.stop[k]]
        expected = [sum(table[:, i] @ table[:, j] / norm[i] / norm[j] for j in seen[-3:] if j != i)
                    for i in range(store.num_items)]
        np.testing.assert_allclose(knn(every[k:k + 1])[0], expected, atol=1e-5)
        np.testing.assert_allclose(ease(every[k:k + 1])[0], weights[seen].sum(axis=0), atol=1e-5)


def test_ours_is_what_the_recommender_says_and_unknown_vectors_come_last(build, store):
    run, batches = build(interest=1)
    split = split_interactions(store)
    every = np.arange(store.num_items) + FIRST_IDX
    for ask in ("once", "each"):
        requests = requests_of(store, split, "test", ask=ask)
        found = rankers.bst_rankers(run, requests)
        assert ("bst, by stars" in found) == (ask == "once")
        for k in (0, len(requests) - 1):
            person, at = asked(run, batches, store, requests.target[k]), int(requests.at[k])
            told = {"bst": run.interest(person_batch(person, at))[0].numpy()}
            told["bst, by both"] = told["bst"] + run.score(person, every, at)
            for name in set(told) & set(found):
                np.testing.assert_allclose(found[name](np.array([k]))[0], told[name], atol=1e-4)
    score = rankers.by_vectors(np.ones((1, 2)), np.array([[1.0, 1], [np.nan, np.nan], [-9, 0]]))
    assert score(np.array([0])).tolist() == [[2.0, -np.inf, -9.0]]


def test_a_row_has_means_over_runs_and_the_difference_to_the_rival(requests):
    def of(value):
        return {name: np.full(len(requests), value) for name in METRICS} | {
            "listed": np.array([True, value > 0.3])}

    row = ranking_row("bst", [of(0.5), of(0.25)], requests, rival=of(0.125))
    assert row["ndcg10"] == 0.375 and row["minus_rival"] == pytest.approx([0.25, 0.125, 0.375])
    assert row["coverage10"] == 0.75 and row["hr10_spread"] == pytest.approx(0.25 / 2**0.5)
    said = format_ranking([{"protocol": "p", "about": "here", "published": [("other", 0.3, 0.2)],
                            "rows": [row | {"cost": "7 + GPU"}]}])
    assert "| bst | 2 | 0.3750 |" in said and "+0.2500 [+0.1250, +0.3750] | 7 + GPU |" in said
    assert "*published: other* | | 0.3000 |" in said


def test_the_script_asks_a_run_as_it_was_trained(build, store, tmp_path, monkeypatch):
    monkeypatch.setattr("bst.run.store_of", lambda _: store)
    out = tmp_path / "out.json"
    for protocol, ties in (("leave-last-one", "strict"), ("leave-last-one", "stable"),
                           ("leave-last-one", "stable"), ("temporal", "stable")):
        folder = tmp_path / f"{protocol}-{ties}"
        keep(build(interest=1, protocol=protocol, ties=ties)[0], folder)
        (folder / "metrics.jsonl").write_text('{"cpu_seconds": 3}\n{"cpu_seconds": 4}\n')
        script.main(script.Args((folder,), json=out))
    tables = json.loads(out.read_text())  # a second one takes the place of the first
    assert [t["protocol"] for t in tables] == [
        "leave-last-one, strict", "leave-last-one, stable", "temporal, all later",
        "temporal, successive"]
    assert tables[1]["published"] and tables[0]["rows"][-1]["cost"] == "7"
    keep(build(interest=1, protocol="temporal", ties="strict")[0], tmp_path / "other")
    with pytest.raises(DataError, match="temporal with strict ties"):
        script.main(script.Args((tmp_path / "other",)))
