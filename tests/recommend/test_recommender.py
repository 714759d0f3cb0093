"""Recommendations against the evaluation path. Run: pytest tests/recommend/test_recommender.py."""

import gc
import re
import weakref
from contextlib import nullcontext
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
from bst.recommend.person import checked
from bst.recommend.recommender import Recommender
from bst.training.checkpoint import load_fitted, save_fitted
from bst.training.loop import optimizer_of, predict_part, train_step
from bst.utils.errors import DataError
from bst.utils.files import write_sealed
from tests.conftest import STILL, asked, keep, movie, ratings

T = 978_000_000


@pytest.fixture(scope="module")
def history(store):
    return ratings(store, 3, 17)


@pytest.mark.parametrize("changes", [
    dict(), dict(ties="stable"), dict(protocol="leave-last-one"), dict(protocol="random"),
    dict(protocol="cold-items"), dict(attention="regression"), dict(attention="softmax"),
    dict(attention="none"), dict(readout="flatten"), dict(user_id=True), dict(loss="ordinal"),
    dict(dense="bucket"), dict(text=False, genres=False, year=False), dict(interest=0.1),
    dict(user_features=False, dense="none"),
])
def test_a_prediction_is_that_of_the_evaluation_path(build, store, changes):
    """There many people share a batch, here somebody is asked alone: 1e-5 stars."""
    recommender, batches = build(**changes)
    expected = predict_part(recommender.model, batches, "test")[0]
    targets = batches.split.test[::3]
    for p in targets:
        person = asked(recommender, batches, store, p)
        found = recommender.predict(person, [movie(store, p)], at=int(store.timestamp[p]))
        assert found[0] == pytest.approx(expected[p], abs=1e-5), p
    assert ((expected[targets] > 1) & (expected[targets] < 5)).mean() > 0.7


def test_ids_are_compared_as_they_are_written_and_come_back_as_they_came(default, history, store):
    films = default.catalogue.ids
    written = [(str(film), stars, time) for film, stars, time in history]
    expected = default.predict(history, films)
    np.testing.assert_array_equal(default.predict(written, [str(film) for film in films]), expected)
    assert type(default.recommend(written, k=1)[0].movie_id) is int
    names = {"movies": store.movies, "users": store.users}
    names = {name: table.with_columns(pl.concat_str(pl.lit("tt0"), table.columns[0]).alias(
        table.columns[0])) for name, table in names.items()}
    other = replace(store, **names)
    fitted = replace(default.fitted, identity={"data": other.digest}, movies={
        **default.fitted.movies, "item_id": names["movies"]["item_id"].to_list()})
    named = Recommender(default.model, default.vocabulary, fitted)
    person = named.history_of(other, "tt01")
    np.testing.assert_array_equal(person.item, default.history_of(store, "1").item)
    written = [(f"tt0{film}", stars, time) for film, stars, time in history]
    np.testing.assert_array_equal(named.predict(written, named.catalogue.ids), expected)
    assert named.recommend(written, k=1)[0].movie_id.startswith("tt0")
    assert named.explain(written, "tt05").reasons[0].movie_id.startswith("tt0")
    for stranger in (5, "5", "tt5", "tt005"):
        with pytest.raises(DataError, match=f"no movie {stranger!r} in the catalogue"):
            named.predict(written, [stranger])
    for odd in (121.7, True, None, 5.0):
        with pytest.raises(DataError, match=f"id {odd} is neither a whole number nor text"):
            default.predict([], [odd])


def test_a_film_has_the_stars_alone_that_it_has_among_others(default, history):
    films = default.catalogue.ids
    together = default.predict(history, films[::-1])[::-1]
    alone = [default.predict(history, [film])[0] for film in films]
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert together.std() > 0.1


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: path.unlink(), "No such file.*run the run's scripts/train.py"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]),
     "damaged or from another version, run .* again and it is written"),
    (lambda path: write_sealed(path, path.read_bytes().replace(b"[5, ", b"[", 1)),
     "not equally long"),
])
def test_a_missing_or_damaged_state_is_refused(default, tmp_path, spoil, message):
    save_fitted(tmp_path, default.fitted)
    assert load_fitted(tmp_path, default.fitted.identity) == default.fitted
    spoil(tmp_path / "fitted.json")
    with pytest.raises(DataError, match=message) as caught:
        load_fitted(tmp_path, default.fitted.identity)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [dict(version=0), dict(identity={"hash": "x", "data": "y"})])
def test_the_state_of_another_run_or_version_is_refused(default, tmp_path, other):
    save_fitted(tmp_path, replace(default.fitted, **other))
    with pytest.raises(DataError, match="expected version .* again and it is written"):
        load_fitted(tmp_path, default.fitted.identity)


@pytest.mark.parametrize(("form", "user_id"), [
    (dict(), None), (dict(), 7), (dict(), "longest"), (dict(ties="stable"), 10),
    (dict(attention="softmax"), 7), (dict(loss="ordinal"), 7), (dict(readout="flatten"), 7),
])
def test_a_difference_is_that_of_a_history_without_the_event(
    build, store, history, form, user_id, monkeypatch
):
    """Brute force one at a time; the longest history has a chunk more than without an event."""
    recommender = build(**form)[0]
    if user_id == "longest":
        user_id = store.users["user_id"][int(np.diff(store.offsets).argmax())]
        person = recommender.history_of(store, user_id)._keep(np.arange(CHUNK + 1))
    else:
        person = (recommender.person(history) if user_id is None
                  else recommender.history_of(store, user_id))
    monkeypatch.setattr("bst.recommend.recommender.EVENTS", 5 * CHUNK)  # several batches
    film, at = store.movies["item_id"][1], int(person.time[-1]) + 3600
    found = recommender.explain(person, film, at=at)
    items = recommender.catalogue.items([film])
    whole = recommender.score(person, items, at)[0]
    effects = {reason.movie_id: reason.difference for reason in found.reasons}
    assert len(effects) == len(person) > 13  # more than the softmax heads see
    for k, item in enumerate(person.item):
        rest = recommender.score(person._keep(np.delete(np.arange(len(person)), k)), items, at)[0]
        assert effects[recommender.catalogue.name(item)[0]] == pytest.approx(whole - rest, abs=2e-5)
    sizes = [abs(reason.difference) for reason in found.reasons]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 50 * 2e-5


def test_a_user_of_the_store_needs_no_store(default, store):
    """Ratings and features as a list give what the store gives, also for a user of train."""
    for user in range(0, store.num_users, 5):
        row = store.users.row(user, named=True)
        person = default.history_of(store, row.pop("user_id"))
        plain, films = ratings(store, user, len(person)), default.catalogue.ids
        found = default.predict(plain, films, user=row)
        np.testing.assert_array_equal(found, default.predict(person, films))
        assert not np.allclose(found, default.predict(plain, films))  # the features count


def test_an_unseen_person_without_history_is_placed_by_features_alone(default):
    films = default.catalogue.ids
    nobody, woman = default.predict([], films), default.predict([], films, user={"sex": "F"})
    assert np.isfinite(nobody).all() and not np.allclose(nobody, woman)
    by_zip = default.predict([], films, user={"zip": "55117"})
    np.testing.assert_array_equal(by_zip, default.predict([], films, user={"zip_region": "5"}))


def test_the_order_in_which_a_history_is_given_does_not_matter_but_its_times_do(default, history):
    films = default.catalogue.ids
    once = {when: (film, stars, when) for film, stars, when in history}  # no ties
    events = list(once.values())
    found = default.predict(events, films)
    np.testing.assert_array_equal(found, default.predict(events[::-1], films))
    turned = [(film, stars, events[-1 - k][2]) for k, (film, stars, _) in enumerate(events)]
    assert not np.allclose(found, default.predict(turned, films))
    assert not np.allclose(found, default.predict(events, films, at=events[-1][2] + 10**7))


def test_the_list_is_the_whole_catalogue_by_score_without_what_was_seen(default, history):
    films = default.catalogue.ids
    score = default.score(default.person(history), default.catalogue.items(films),
                          history[-1][2] + 1)
    seen = {event[0] for event in history}
    order = [films[k] for k in np.lexsort((-default.catalogue.ratings, -score))]
    found = default.recommend(history, len(films))
    assert [item.movie_id for item in found] == [film for film in order if film not in seen]
    with_seen = default.recommend(history, 3, exclude_seen=False)
    assert [item.movie_id for item in with_seen] == order[:3]
    by_film = dict(zip(films, default.predict(history, films), strict=True))
    assert all(item.stars == pytest.approx(by_film[item.movie_id], abs=1e-5) for item in found)


def test_filters_keep_what_passes_all_of_them(default, store, history):
    found = default.recommend(history, 99, genres=["war", "Comedy"], years=(1960, 1980))
    rows = store.movies.filter(
        store.movies["genres"].list.eval(pl.element().is_in(["War", "Comedy"])).list.any()
        & store.movies["year"].is_between(1960, 1980))
    seen = {event[0] for event in history}
    assert {item.movie_id for item in found} == set(rows["item_id"]) - seen and found
    assert default.recommend(history, 5, years=(1800, 1801)) == []


def test_equal_scores_are_ordered_by_train_ratings_then_by_the_catalogue(
    build, store, split, history
):
    recommender, _ = build(attention="none")
    items = recommender.model.items
    for zero in (recommender.model.head[-1], items.linear, items.id, items.of_audience):
        torch.nn.init.zeros_(zero.weight)
    found = recommender.recommend(history, 99)
    assert len({item.stars for item in found}) == 1
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
    keys = [(-count[i], i) for i in recommender.catalogue.items([f.movie_id for f in found])]
    assert keys == sorted(keys)


def test_the_reasons_of_a_list_are_what_raised_it_most(default, history):
    for item in default.recommend(history, 3, reasons=2):
        events = default.explain(history, item.movie_id).reasons
        raised = sorted((e.difference for e in events if e.difference > 0), reverse=True)[:2]
        assert [r.difference for r in item.reasons] == pytest.approx(raised, abs=2e-5)
    (item,) = default.recommend(history, 1, reasons=99)
    assert 0 < len(item.reasons) < len(history) and min(r.difference for r in item.reasons) > 0
    assert all(item.reasons == () for item in default.recommend([], 3, reasons=2))


@pytest.mark.parametrize("form", [dict(), dict(genres=False), dict(year=False)])
def test_a_new_film_is_scored_like_an_unrated_one_of_the_same_content(
    build, store, split, text, history, monkeypatch, form
):
    """A twin of a catalogue film that nobody has rated, by genres, year and overview alone."""
    recommender = build(**form)[0]
    unrated = np.setdiff1d(np.arange(store.num_items), store.item_idx[split.train] - FIRST_IDX)
    row = int(next(k for k in unrated if text.has_text[k] and store.movies["year"][int(k)]))
    film = store.movies.row(row, named=True)
    monkeypatch.setattr("bst.recommend.recommender.embed_texts", lambda texts, **_: TextVectors(
        text.vectors[[row]], np.array([True])) if texts == [film["overview"]] else None)
    twin = NewMovie(9999, "Twin", tuple(film["genres"]), film["year"], film["overview"])
    longer = recommender.with_movies([twin])
    assert longer.with_movies([]) is longer
    for person in (history, recommender.history_of(store, 7)):
        ours, theirs = longer.predict(person, [9999, film["item_id"]])
        assert ours == pytest.approx(theirs, abs=1e-5) and 1 < ours < 5
    other = recommender.with_movies([replace(twin, genres=("War",), year=1990)])
    assert abs(other.predict(history, [9999])[0] - ours) > 1e-3
    of_genre = {item.movie_id for item in longer.recommend(history, 99, genres=twin.genres)}
    assert {9999, film["item_id"]} < of_genre
    seen = longer.predict([*history, (9999, 5.0, history[-1][2] + 1)], longer.catalogue.ids)
    assert np.isfinite(seen).all()  # a new film may stand in a history too
    films = recommender.catalogue.ids
    before, after = (r.predict(history, films) for r in (recommender, longer))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(("form", "says"), [
    (dict(), "year genres"), (dict(year=False), "genres"), (dict(genres=False), "year"),
])
def test_the_key_of_a_film_has_what_the_run_reads_of_films(build, form, says):
    film = NewMovie(9000, "One", ("War",), 1960)
    others = {"year": replace(film, movie_id=9001, year=1985),
              "genres": replace(film, movie_id=9002, genres=("Drama",))}
    longer = build(**form)[0].with_movies([film, *others.values()])
    with torch.inference_mode():
        key, *keys = longer.model.items(torch.arange(3) + 41 + FIRST_IDX)[:, :-2]
    differs = [name for name, other in zip(others, keys, strict=True) if not key.equal(other)]
    assert differs == says.split()


def test_what_training_shows_as_unrated_is_what_a_new_film_has(
    default, store, split, text, monkeypatch
):
    """Key, bias and noise of each rated film without its ratings, and of a new twin of it."""
    monkeypatch.setattr("bst.recommend.recommender.embed_texts", lambda *_, **__: text)
    films = store.movies.rows(named=True)
    longer = default.with_movies([NewMovie(9000 + k, "Twin", tuple(f["genres"]), f["year"])
                                  for k, f in enumerate(films)]).model.items
    items = torch.arange(len(films)) + FIRST_IDX
    with torch.inference_mode():
        twins, warm = longer(items + len(films)), longer(items)
        torch.testing.assert_close(twins, longer(items, cold=True))
    differs = (twins - warm).abs().amin(dim=1) > 0  # in each column
    assert differs.tolist() == np.isin(items, store.item_idx[split.train]).tolist()


def test_similar_films_are_those_that_the_same_people_like(build, store, small):
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
    default = build()[0]
    recommender = Recommender(model, default.vocabulary, default.fitted)
    rated = np.unique(store.item_idx[batches.split.train])
    for item in rated[::6]:
        found = recommender.similar(recommender.catalogue.name(item)[0], 8)
        near = recommender.catalogue.items([movie for movie, _, _ in found])
        assert (near % 2 == item % 2).mean() > 0.8 and item not in near and len(set(near)) == 8
        cosines = [cosine for _, _, cosine in found]
        assert cosines == sorted(cosines, reverse=True) and -1 <= cosines[-1] < cosines[0] <= 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda r, h: r.predict([(6, 3.0, T)], [7]), "no movie 6 in the catalogue of 41, whose ids"),
    (lambda r, h: r.predict(h, [8]), "no movie 8 in the catalogue"),
    (lambda r, h: r.predict(h, "121"), "no movie '121' in the catalogue"),
    *((lambda r, h, stars=stars: r.predict([(7, stars, T)], [7]),
       f"event 0: {stars:g} stars, expected one of 1, 2, 3, 4, 5")
      for stars in (6, 5.5, 0.4, np.nan, np.inf)),
    *((lambda r, h, event=event: r.predict([event], [7]),
       f"event 0: {re.escape(repr(event))}, expected .movie id, stars, seconds since 1970 UTC. or")
      for event in ((7,), (7, "4", T), (7, 10**400, T), (None, 4, T), (7.0, 4, T), "7")),
    (lambda r, h: r.predict([(7, 4, T), (9, 4)], [7]), "event 1: only some events have a time"),
    *((lambda r, h, time=time: r.predict([(7, 4, time)], [7]),
       f"event 0: time {re.escape(repr(time)[:40])}, expected seconds since 1970 UTC, .* 2050")
      for time in (np.inf, -np.inf, np.nan, 5, -T, 1e300, 10**400, str(T), [T], T * 10**6)),
    (lambda r, h: r.predict(h, [7], at=np.inf), "at: time inf, expected seconds since 1970"),
    (lambda r, h: r.predict(h, [7], at=h[-1][2]), "is at .*, not before at="),
    (lambda r, h: r.recommend(h, 0), "k is 0, expected at least 1"),
    (lambda r, h: r.recommend(h, genres=["Noir"]), "no genre 'Noir', expected any of Comedy, Dra"),
    (lambda r, h: r.recommend(h, genres="Comedy"), "genres is 'Comedy', expected a list of names"),
    (lambda r, h: r.person(user={"sex": "X"}), "sex 'X' is not one of F, M"),
    (lambda r, h: r.person(user={"shoe": "X"}), "no user feature 'shoe'"),
    (lambda r, h: r.predict(r.person(h), [7], user={"sex": "F"}), "beside a Person"),
    (lambda r, h: r.with_movies([NewMovie(7, "X")]), "movie 7 .'X'. is in the catalogue already"),
    (lambda r, h: r.with_movies([NewMovie(6, "X", ("Noir",))]), "'X': no genre 'Noir'"),
])
def test_a_wrong_request_is_answered_in_one_line(default, history, call, message):
    with pytest.raises(DataError, match=message) as caught:
        call(default, history)
    assert "\n" not in str(caught.value)


def test_a_store_of_other_data_or_an_unknown_user_is_refused(default, store):
    with pytest.raises(DataError, match="expected the one of this run"):
        default.history_of(replace(store, rating=store.rating[::-1]), 7)
    with pytest.raises(DataError, match="no user 5 among the 23 users"):
        default.history_of(store, 5)


@pytest.mark.parametrize(("given", "plain", "note"), [
    ([(7, 3.5, T), (9, 2, T + 1)], [(7, 4, T), (9, 2, T + 1)],
     "1 of 2 ratings are none of 1, 2, 3, 4, 5: the nearest one counts, 4 for 3.5"),
    ([(7, 0.5, T)], [(7, 1, T)], "1 for 0.5"),
    ([(7, 4, T * 1000 + 5)], [(7, 4, T)], "1 of 1 times count as milliseconds, like 978000000005"),
    ([(7, 1, T), (9, 2, T + 1), ("7", 5, T + 2)], [(9, 2, T + 1), (7, 5, T + 2)],
     "1 of 3 ratings do not count: the same film is rated again"),
    ([(7, np.float32(4), np.int64(T)), (9, True, T + 0.5)], [(7, 4, T), (9, 1, T)], None),
])
def test_what_is_changed_in_a_history_is_said(default, given, plain, note):
    person, expected = default.person(given), default.person(plain)
    for name in ("item", "rating", "time"):
        np.testing.assert_array_equal(getattr(person, name), getattr(expected, name))
    assert expected.notes == () and len(person.notes) == (note is not None)
    with pytest.warns(match=note) if note else nullcontext():
        default.predict(given, [5])


def test_a_level_of_the_scale_is_one_in_float64_too_and_no_times_are_minutes():
    levels = np.array([0.7, 1.4, 2.1], dtype=np.float32)
    _, stars, time, notes = checked([(1, 2.1), (2, 0.7), (3, 1.4)], levels)
    assert (stars.tolist(), time.tolist(), notes) == (levels[[2, 0, 1]].tolist(), [0, 60, 120], [])


def test_a_film_of_the_history_has_the_stars_that_were_given(default):
    history = [(5 + 2 * k, float(1 + k % 5), T + k) for k in range(20)]
    films, stars, _ = zip(*history, strict=True)
    assert default.predict(history, films).tolist() == list(stars)
    found = {item.movie_id: item for item in default.recommend(history, 99, exclude_seen=False)}
    assert [found[film].rated for film in films] == list(stars)
    assert {item.rated for film, item in found.items() if film not in films} == {None}
    said = default.explain(history, films[0])
    assert said.rated == said.stars == stars[0] and default.explain(history, 45).rated is None
    assert [reason.movie_id for reason in said.reasons if reason.difference] == [films[0]]
    score = default.score(default.person(history[1:]), default.catalogue.items(films[:1]), T + 20)
    assert said.reasons[0].difference == pytest.approx(stars[0] - score[0], abs=1e-5) != 0


def test_reasons_of_a_long_history_are_looked_for_among_its_newest_events(
    default, history, monkeypatch
):
    whole = {reason.movie_id: reason for reason in default.explain(history, 45).reasons}
    monkeypatch.setattr("bst.recommend.recommender.FEWEST", 2)
    monkeypatch.setattr("bst.recommend.recommender.WORK", 5 * len(history) + 3)
    found = default.explain(history, 45).reasons
    assert {reason.movie_id for reason in found} == {film for film, *_ in history[-5:]}
    for reason in found:
        assert reason.difference == pytest.approx(whole[reason.movie_id].difference, abs=2e-5)


def test_a_model_that_is_no_longer_used_is_freed_at_once(default, history, tmp_path):
    """Without the garbage collector, which a cycle would wait for."""
    keep(default, tmp_path)
    gc.disable()
    try:
        models = []
        for _ in range(100):
            recommender = Recommender.from_pretrained(tmp_path)
            recommender.recommend(history, 1, user={"sex": "F"}, reasons=1)
            models.append(weakref.ref(recommender.model))
        assert [model() is None for model in models] == [True] * 99 + [False]
    finally:
        gc.enable()
