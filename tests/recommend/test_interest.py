"""Lists by what a person rates next. Run: pytest tests/recommend/test_interest.py."""

import numpy as np
import pytest
import torch

from bst.data.schema import FIRST_IDX
from bst.recommend.catalogue import NewMovie
from scripts import rank as rank_script
from scripts import recommend as recommend_script
from scripts.support.history import read_history
from tests.conftest import asked, keep, ratings


@pytest.fixture(scope="module")
def recommender(build):
    return build(interest=0.3)[0]


@pytest.mark.parametrize("form", [
    dict(), dict(ties="stable"), dict(protocol="random"), dict(attention="softmax"),
])
def test_the_interest_in_a_film_is_that_of_the_evaluation_path(build, store, form):
    recommender, batches = build(interest=0.3, **form)
    items, model = np.arange(store.num_items) + FIRST_IDX, recommender.model
    batch = batches.gather(batches.epoch("test", batch_size=10**6)[0])
    with torch.inference_mode():
        together = model.interest_scores(batch, model.films(torch.from_numpy(items)))
    for p, expected in zip(batch.position[batch.is_target].tolist()[::7], together[::7],
                           strict=True):
        person = asked(recommender, batches, store, p)
        found = recommender.interest(person, items[::-1], int(store.timestamp[p]))
        np.testing.assert_allclose(found[::-1], expected, atol=1e-4)


def test_a_list_by_interest_is_the_catalogue_by_interest_without_what_was_seen(
    recommender, store
):
    history = ratings(store, 3, 17)
    films = recommender.catalogue.ids
    person, at = recommender.person(history), history[-1][2] + 1
    score = recommender.interest(person, recommender.catalogue.items(films), at)
    seen = {event[0] for event in history}
    order = [films[k] for k in np.argsort(-score) if films[k] not in seen]
    found = recommender.recommend(history, len(films), by="interest", reasons=1)
    assert [item.movie_id for item in found] == order
    share = {film: np.exp(s) for film, s in zip(films, score, strict=True) if film not in seen}
    for item in found:
        assert item.chance == pytest.approx(share[item.movie_id] / sum(share.values()), rel=1e-4)
    stars = recommender.score(person, recommender.catalogue.items(films), at)
    order = [films[k] for k in np.argsort(-score - stars) if films[k] not in seen]
    both = recommender.recommend(history, len(films), by="both")
    assert [item.movie_id for item in both] == order != [item.movie_id for item in found]
    assert {(item.movie_id, item.chance) for item in both} == {
        (item.movie_id, item.chance) for item in found}
    by_stars = {item.movie_id: item for item in recommender.recommend(
        history, len(films), reasons=1)}
    assert list(by_stars) not in (order, [item.movie_id for item in found])
    for item in found:  # stars and reasons are the same, whatever ranks
        other = by_stars[item.movie_id]
        assert item.stars == pytest.approx(other.stars, abs=1e-5) and other.chance is None
        assert [r.movie_id for r in item.reasons] == [r.movie_id for r in other.reasons]


def test_a_new_film_is_of_little_interest_until_its_content_says_more(recommender, store, split):
    longer = recommender.with_movies([NewMovie(9999, "New", ("War",), 1960)])
    history = ratings(store, 3, 17)
    found = longer.recommend(history, 99, by="interest")
    assert len(found) == store.num_items - 17 + 1 and 9999 in {item.movie_id for item in found}
    assert longer.model.interest.log_share[-1].exp() == pytest.approx(0.5 / len(split.train))
    at, items = history[-1][2] + 1, np.arange(store.num_items) + FIRST_IDX
    before, after = (r.interest(r.person(history), items, at) for r in (recommender, longer))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_scripts_recommend_and_rank_by_interest(
    recommender, store, tmp_path, monkeypatch, capsys
):
    keep(recommender, tmp_path)
    mine = tmp_path / "mine.csv"
    mine.write_text("title,stars\nfilm 12,4\nfilm 3,2\n")
    recommend_script.main(recommend_script.Args(tmp_path, history=mine, k=3, by="interest"))
    said = capsys.readouterr().out.splitlines()
    person, _ = read_history(mine, recommender)
    for line, item in zip(said[2:], recommender.recommend(person, 3, by="interest"), strict=True):
        assert f"{item.chance:.2%}" in line and item.title in line
    monkeypatch.setattr("bst.run.store_of", lambda _: store)
    rank_script.main(rank_script.Args((tmp_path,), part="valid"))
    said = capsys.readouterr().out
    assert "part valid" in said and "| rated | bst interest |" in said
