"""Recommendations against the evaluation path. Run: pytest tests/recommend/test_recommender.py."""

import gc
import re
import weakref
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from bst.config import TrainConfig
from bst.data.schema import FIRST_IDX
from bst.data.text import TextVectors
from bst.model.batches import CHUNK
from bst.recommend.catalogue import NewMovie
from bst.recommend.person import checked, person_batch
from bst.recommend.recommender import Recommender
from bst.recommend.users import Users
from bst.training.checkpoint import load_fitted, save_fitted
from bst.training.loop import optimizer_of, predict_part, train_step
from bst.utils.files import write_sealed
from tests.conftest import FORMS, STILL, asked, described, keep, movie, ratings, refused

T = 978_000_000


@pytest.fixture(scope="module")
def history(store):
    return ratings(store, 3, 17)


@pytest.fixture(scope="module")
def interested(build):
    return build(interest=1)[0]


@pytest.mark.parametrize("changes", [
    *FORMS, *(dict(protocol=name) for name in ("leave-last-one", "random", "cold-items"))])
def test_a_prediction_is_that_of_the_evaluation_path(build, store, changes):
    """There many people share a batch, here one is asked for some items at once: 1e-5 stars."""
    recommender, batches = build(**changes)
    others = recommender.catalogue.ids
    expected = predict_part(recommender.model, batches, "test")
    targets = batches.split.test[::3]
    for k, p in enumerate(targets):
        person, ids = asked(recommender, batches, store, p), [*others[:k % 5], movie(store, p)]
        found = recommender.predict(person, ids, at=int(store.timestamp[p]))
        assert found[-1] == pytest.approx(expected[p], abs=1e-5), p
    assert ((expected[targets] > 1) & (expected[targets] < 5)).mean() > 0.7


@pytest.mark.parametrize("form", [*FORMS[:2], dict(protocol="random"), dict(attention="softmax")])
def test_the_interest_in_an_item_is_that_of_the_evaluation_path(build, store, form):
    recommender, batches = build(interest=1, **form)
    items, model = np.arange(store.num_items) + FIRST_IDX, recommender.model
    batch = batches.gather(batches.epoch("test", batch_size=10**6)[0])
    with torch.inference_mode():
        together = model.next_item_scores(batch, model.next_item_vectors(torch.from_numpy(items)))
    for p, expected in zip(batch.position[batch.is_target].tolist()[::7], together[::7],
                           strict=True):
        person = asked(recommender, batches, store, p)
        (found,) = recommender.interest(person_batch(person, int(store.timestamp[p])))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ids_are_compared_as_they_are_written_and_come_back_as_they_came(default, history, store):
    ids, expected = default.catalogue.ids, default.predict(history, default.catalogue.ids)
    assert type(default.recommend(history, k=1)[0].movie_id) is int
    np.testing.assert_array_equal(default.predict(history, [f" {item} " for item in ids]), expected)
    other = replace(store, **{name: table.with_columns(pl.format("tt0{}", key).alias(key)) for
                              name, key, table in (("movies", "item_id", store.movies),
                                                   ("users", "user_id", store.users))})
    fitted = replace(default.fitted, identity={"data": other.digest}, movies={
        **default.fitted.movies, "item_id": [f"tt0{item}" for item in ids]})
    named = Recommender(default.model, default.vocabulary, fitted)
    person = Users(named, other).person("tt01 ")
    np.testing.assert_array_equal(person.item, Users(default, store).person("1").item)
    written = [(f"tt0{item}", stars, time) for item, stars, time in history]
    np.testing.assert_array_equal(named.predict(written, named.catalogue.ids), expected)
    assert named.recommend(written, k=1)[0].movie_id.startswith("tt0")
    assert named.explain(written, "tt05").reasons[0].movie_id.startswith("tt0")
    for stranger in (5, "5", "tt5", "tt005"):
        with refused(f"no item {stranger!r} in the catalogue"):
            named.predict(written, [stranger])
    for odd in (121.7, True, None, 5.0):
        with refused(f"id {odd} is neither a whole number nor text"):
            default.predict([], [odd])


def test_a_state_that_does_not_fit_or_of_another_run_is_refused(default, tmp_path):
    path = tmp_path / "fitted.json"
    for old, new, message in ((b"[5, ", b"[", "not equally long"),
                              (b'"hash": "', b'"hash": "x', "version .* of run .* again")):
        save_fitted(tmp_path, default.fitted)
        assert load_fitted(tmp_path, default.fitted.identity) == default.fitted
        write_sealed(path, path.read_bytes().replace(old, new, 1))
        with refused(message):
            load_fitted(tmp_path, default.fitted.identity)


@pytest.mark.parametrize(("form", "user_id"), [
    (dict(), None), (dict(), 7), (dict(), "longest"), (dict(ties="stable"), 10),
    (dict(attention="softmax"), 7), (dict(readout="flatten"), 7),
])
def test_a_difference_is_that_of_a_history_without_the_event(
        build, store, history, form, user_id, monkeypatch):
    """Brute force one at a time; the longest history has a chunk more than without an event."""
    recommender = build(**form)[0]
    person = recommender.person(history)
    if user_id == "longest":
        user_id = store.users["user_id"][int(np.diff(store.offsets).argmax())]
        person = Users(recommender, store).person(user_id).take(np.arange(CHUNK + 1))
    elif user_id:
        person = Users(recommender, store).person(user_id)
    monkeypatch.setattr("bst.recommend.recommender.EVENTS", 5 * CHUNK)  # several batches
    items, at = recommender.catalogue.items([store.movies["item_id"][1]]), int(person.time[-1]) + 9
    reasons = recommender.explain(person, store.movies["item_id"][1], at=at).reasons
    effects = {reason.movie_id: reason.difference for reason in reasons}
    assert len(effects) == len(person) > 13  # more than the softmax heads see
    whole = recommender.score(person, items, at)[0]
    for k, item in enumerate(person.item):
        rest = recommender.score(person.take(np.delete(np.arange(len(person)), k)), items, at)[0]
        assert effects[recommender.catalogue.name(item)[0]] == pytest.approx(whole - rest, abs=2e-5)
    sizes = [abs(reason.difference) for reason in reasons]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 50 * 2e-5


def test_a_user_of_the_store_needs_no_store(default, store):
    ids = default.catalogue.ids
    for user in range(0, store.num_users, 5):
        row = store.users.row(user, named=True)
        person = Users(default, store).person(row.pop("user_id"))
        plain, expected = ratings(store, user, len(person)), default.predict(person, ids)
        for about in (row, {**row, "zip": row["zip_region"] + "5117", "zip_region": None}):
            np.testing.assert_array_equal(default.predict(plain, ids, user=about), expected)
        assert not np.allclose(default.predict(plain, ids), expected)  # the features count


@pytest.mark.parametrize("by", ["stars", "interest", "both"])
def test_the_list_is_what_passes_all_filters_by_score_without_what_was_seen(
        interested, store, history, by):
    catalogue, seen = interested.catalogue, {event[0] for event in history}
    ids = catalogue.ids
    person, at = interested.person(history), history[-1][2] + 1
    stars = interested.score(person, catalogue.items(ids), at)
    interest = interested.interest(person_batch(person, at))[0].numpy()
    score = {"stars": stars, "interest": interest, "both": stars + interest}[by]
    order = [ids[k] for k in np.lexsort((-catalogue.train_counts, -score))]
    of_item = dict(zip(ids, zip(stars.clip(1, 5), np.exp(interest), strict=True), strict=True))
    rows = store.movies.filter(
        store.movies["genres"].list.eval(pl.element().is_in(["War", "Comedy"])).list.any()
        & store.movies["year"].is_between(1960, 1980))
    filters = {"genres": ["war", "Comedy"], "years": (1960, 1980)}
    for left, options in ((set(ids) - seen, {}), (set(ids), {"exclude_seen": False}),
                          (set(rows["item_id"]) - seen, filters), (set(), {"years": (1800, 1801)})):
        found = interested.recommend(history, len(ids), by=by, **options)
        assert [item.movie_id for item in found] == [item for item in order if item in left]
        total = sum(of_item[item][1] for item in left)
        for item in found:
            expected, share = of_item[item.movie_id]
            assert item.stars == pytest.approx(expected, abs=1e-5)
            assert item.chance == (None if by == "stars" else pytest.approx(share / total, 1e-4))


def test_equal_scores_are_ordered_by_train_ratings_then_by_the_catalogue(build, history):
    recommender, _ = build(attention="none")
    items, catalogue = recommender.model.items, recommender.catalogue
    for zero in (recommender.model.head[-1], items.linear, items.id, items.of_audience):
        torch.nn.init.zeros_(zero.weight)
    recommender = Recommender(recommender.model, recommender.vocabulary, recommender.fitted)
    found = recommender.recommend(history, 99)
    assert len({item.stars for item in found}) == 1
    rows = catalogue.items([item.movie_id for item in found]) - FIRST_IDX
    keys = list(zip(-catalogue.train_counts[rows], rows, strict=True))
    assert keys == sorted(keys)


@pytest.mark.parametrize("by", ["stars", "interest"])
def test_the_reasons_of_a_list_are_what_raised_its_stars_most(interested, history, by):
    for item in interested.recommend(history, 3, reasons=2, by=by):
        events = interested.explain(history, item.movie_id).reasons
        raised = sorted((e.difference for e in events if e.difference > 0), reverse=True)[:2]
        assert [r.difference for r in item.reasons] == pytest.approx(raised, abs=2e-5)
    (item,) = interested.recommend(history, 1, reasons=99, by=by)
    assert 0 < len(item.reasons) < len(history) and min(r.difference for r in item.reasons) > 0
    assert all(item.reasons == () for item in interested.recommend([], 3, reasons=2, by=by))


@pytest.mark.parametrize("form", [dict(), dict(genres=False), dict(year=False)])
def test_a_new_item_is_scored_like_an_unrated_one_of_the_same_content(
        build, store, split, text, history, monkeypatch, form):
    """A twin of an item of the catalogue that nobody has rated, by what describes it alone."""
    store = described(store)
    recommender = build(store=store, **form)[0]
    unrated = np.setdiff1d(np.arange(store.num_items), store.item_idx[split.train] - FIRST_IDX)
    row = int(next(k for k in unrated if text.has_text[k] and k % 6 and k % 7))
    item = store.movies.row(row, named=True)
    monkeypatch.setattr("bst.recommend.recommender.embed_texts", lambda texts, **_: TextVectors(
        text.vectors[[row]], np.array([True])) if texts == [item["overview"]] else None)
    twin = NewMovie(9999, "Twin", tuple(item["genres"]), item["year"], item["overview"],
                    item["features"])
    longer = recommender.with_movies([twin])
    assert longer.with_movies([]) is longer
    for person in (history, Users(recommender, store).person(7)):
        ours, theirs = longer.predict(person, [9999, item["item_id"]])
        assert ours == pytest.approx(theirs, abs=1e-5) and 1 < ours < 5
    ours = longer.predict(history, [9999])[0]
    features = [{"author": ["Bob"]}, {"author": ["Once", "Bob"]}, {"pages": 9}, {"pages": 10**6}]
    others = [replace(twin, features=some) for some in features]
    scores = [recommender.with_movies([other]).predict(history, [9999])[0] for other in (
        *others, replace(twin, genres=("War",), year=1990))]
    assert scores[0] == scores[1] and len({ours, *scores}) == 5
    of_genre = {item.movie_id for item in longer.recommend(history, 99, genres=twin.genres)}
    assert {9999, item["item_id"]} < of_genre


def test_a_new_item_is_of_little_interest_until_its_content_says_more(
        interested, store, split, history):
    longer = interested.with_movies([NewMovie(9999, "New", ("War",), 1960)])
    found = longer.recommend(history, 99, by="interest")
    assert len(found) == store.num_items - 17 + 1 and 9999 in {item.movie_id for item in found}
    assert longer.model.interest.log_share[-1].exp() == pytest.approx(0.5 / len(split.train))
    at, items = history[-1][2] + 1, np.arange(store.num_items) + FIRST_IDX
    def told(run):
        person = run.person(history)
        return run.score(person, items, at), run.interest(person_batch(person, at))[0, :len(items)]

    for before, after in zip(told(interested), told(longer), strict=True):  # of the others
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_similar_items_are_those_that_the_same_people_like(default, store, small):
    """Films of two kinds, liked by two kinds of people: the nearest are of the own kind."""
    side = np.where(store.user_row % 2, 1, -1) * np.where(store.item_idx % 2, 1, -1)
    world = replace(store, rating=(3 + 2 * side).astype(np.float32))
    model, batches = small(store=world, **STILL)
    model.float()
    optimizer = optimizer_of(model, TrainConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    for epoch in range(15):
        for rows in batches.epoch("train", batch_size=500, seed=0, epoch=epoch):
            train_step(model, batches.gather(rows), optimizer, clip=1.0)
    recommender = Recommender(model, default.vocabulary, default.fitted)
    rated = np.unique(store.item_idx[batches.split.train])
    for item in rated[::6]:
        found = recommender.similar(recommender.catalogue.name(item)[0], 8)
        near = recommender.catalogue.items([movie for movie, _, _ in found])
        assert (near % 2 == item % 2).mean() > 0.8 and item not in near and len(set(near)) == 8
        cosines = [cosine for _, _, cosine in found]
        assert cosines == sorted(cosines, reverse=True) and -1 <= cosines[-1] < cosines[0] <= 1


@pytest.mark.parametrize(("call", "message"), [
    *((lambda r, h, _, event=event: r.predict([event], [7]),
       f"event 0: {re.escape(repr(event))}, expected .item id, stars, seconds since 1970 UTC. or")
      for event in ((7,), (7, "4", T), (7, 10**400, T), (None, 4, T), (7.0, 4, T), "7")),
    *((lambda r, h, _, time=time: r.predict([(9, 4, T), (7, 4, time)], [7]),
       f"event 1: time {re.escape(repr(time)[:40])}, expected seconds since 1970 UTC, .* 2050")
      for time in (np.inf, -np.inf, np.nan, 1e300, 10**400, str(T), [T])),
    (lambda r, h, _: r.predict(h, [7], at=h[-1][2]), "is at .*, not before at="),
    (lambda r, h, _: r.predict([(9, 5.0)], [7], at=h[-1][2]), "at: the events .* have no time"),
    (lambda r, h, _: r.recommend(h, 0), "k is 0, expected at least 1"),
    (lambda r, h, _: r.recommend(h, by="luck"), "by must be one of 'stars', .*, got 'luck'"),
    (lambda r, h, _: r.recommend(h, by="both"), "cannot rank by interest.*train with --interest"),
    (lambda r, h, _: r.recommend(h, genres="War"), "genres is 'War', expected a list of names"),
    (lambda r, h, _: r.person(user={"sex": "X"}), "sex 'X' is not one of F, M"),
    (lambda r, h, _: r.person(user={"shoe": "X"}), "no user feature 'shoe'"),
    (lambda r, h, _: r.predict(r.person(h), [7], user={"sex": "F"}), "beside a Person"),
    (lambda r, h, _: r.with_movies([NewMovie(7, "X")]), "item 7 .'X'. is in the catalogue alrea"),
    (lambda r, h, _: r.with_movies([NewMovie(6, "X", ("Noir",))]), "'X': no genre 'Noir'"),
    (lambda r, h, _: r.with_movies([NewMovie(6, "X", features={"author": "A"})]),
     "'X': feature author='A', expected names of none"),
    (lambda r, h, store: Users(r, replace(store, rating=store.rating[::-1])).person(7),
     "expected the one of this run"),
    (lambda r, h, store: Users(r, store).person(5), "no user 5 among the 23 users"),
])
def test_a_wrong_request_is_answered_in_one_line(default, store, history, call, message):
    with refused(message):
        call(default, history, store)


def test_numbers_of_numpy_and_levels_of_the_scale_in_float64_are_taken_as_they_are():
    levels = np.array([0.7, 1.4, 2.1], dtype=np.float32)
    given = [(1, 2.1, np.int64(T + 9)), (2, 0.7, T + 0.5), (3, np.float32(1.4), T + 5)]
    _, stars, time, notes = checked(given, levels)
    assert (stars.tolist(), time.tolist(), notes) == (levels.tolist(), [T, T + 5, T + 9], [])


def test_an_item_of_the_history_has_the_stars_that_were_given(default):
    history = [(5 + 2 * k, float(1 + k % 5), T + k) for k in range(20)]
    given = {item: stars for item, stars, _ in history}
    assert default.predict(history, list(given)).tolist() == list(given.values())
    found = default.recommend(history, 99, exclude_seen=False)
    assert all(item.rated == given.get(item.movie_id) for item in found) and len(found) == 41
    said = default.explain(history, 5)
    assert said.rated == said.stars == 1 and default.explain(history, 45).rated is None
    assert [reason.movie_id for reason in said.reasons if reason.difference] == [5]
    score = default.score(default.person(history[1:]), default.catalogue.items([5]), T + 20)
    assert said.reasons[0].difference == pytest.approx(1 - score[0], abs=1e-5) != 0


def test_reasons_of_a_long_history_are_looked_for_among_its_newest_events(
        default, history, monkeypatch):
    whole = {reason.movie_id: reason for reason in default.explain(history, 45).reasons}
    monkeypatch.setattr("bst.recommend.recommender.MIN_TRIED", 2)
    monkeypatch.setattr("bst.recommend.recommender.WORK", 5 * len(history) + 3)
    found = default.explain(history, 45).reasons
    assert {reason.movie_id for reason in found} == {item for item, *_ in history[-5:]}
    for reason in found:
        assert reason.difference == pytest.approx(whole[reason.movie_id].difference, abs=2e-5)


def test_a_model_that_is_no_longer_used_is_freed_at_once(default, history, tmp_path):
    """Without the garbage collector, which a cycle would wait for."""
    def used():
        recommender = Recommender.from_pretrained(keep(default, tmp_path))
        recommender.recommend(history, 1, user={"sex": "F"}, reasons=1)
        return weakref.ref(recommender.model)

    gc.disable()
    try:
        assert used()() is None
    finally:
        gc.enable()
