"""`bst.BST` on data frames. Run: pytest tests/test_estimator.py."""

import shutil
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import bst
from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.data.preparation import make_store
from bst.data.schema import FIRST_IDX
from bst.estimator import as_polars, column
from bst.recommend.users import Users
from bst.run import prepare, train_run
from tests.conftest import SMALL, contents, random_tables, refused
from tests.raw_formats import telling

OPTIONS = SMALL | {"text": False, "steps": 60, "lr": 0.02, "batch_size": 256, "threads": 1}
TABLES = telling(random_tables(num_ratings=600), range(1, 6))
RATINGS = TABLES.ratings.with_columns(
    pl.format("u{}", "user_id").alias("user_id"), pl.col("item_id").cast(pl.Int32),
    datetime=pl.from_epoch("timestamp")).drop("timestamp")
ITEMS = TABLES.movies.select("item_id", "title", genres=pl.col("genres").list.join("|"))
USERS = TABLES.users.select(pl.format("u{}", "user_id").alias("user_id"), "sex", "age")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bst.BST(**OPTIONS).fit(RATINGS, ITEMS, USERS, folder=tmp_path_factory.mktemp("run"))


def test_frames_and_files_of_the_same_ratings_give_one_store_and_one_model(model, tmp_path):
    frames = {"ratings": RATINGS, "items": ITEMS, "users": USERS}
    for name, frame in frames.items():
        frame.write_csv(tmp_path / f"{name}.csv")
    make_store(DataConfig(data=tmp_path), tmp_path / "store")
    panda = bst.BST(**OPTIONS).fit(*(pd.DataFrame(frame.to_dict(as_series=False))
                                     for frame in frames.values()), folder=tmp_path / "panda")
    expected = contents(tmp_path / "store")
    for folder in (model.folder, panda.folder):
        found = contents(folder / "store")
        assert all(found[name] == expected[name] for name in expected if "json" not in name)
    weights = [(of.folder / "model.safetensors").read_bytes() for of in (model, panda)]
    assert weights[0] == weights[1]
    lists = panda.recommend(pd.Series(["u4", "u1"]), k=3)
    assert isinstance(lists, pd.DataFrame)
    assert_frame_equal(as_polars(lists), model.recommend(["u4", "u1"], k=3), check_dtypes=False)
    pairs = pd.DataFrame({"user_id": ["u4"], "item_id": [5]}, index=[7])
    assert panda.predict(pairs).index.tolist() == [7]


def test_columns_of_any_kind_are_those_of_a_file(model):
    """Dates with a zone, categories, ids of mixed types: in pandas each is a type of its own."""
    zone = pd.to_datetime(pd.Series(["2001-01-01T01:00:00+01:00", None]), utc=True)
    assert column(zone.dt.tz_convert("Europe/Rome")).dt.epoch("s").to_list() == [978307200, None]
    for kind in (list, pd.Series, pd.Categorical):
        values = kind(["10", 10 if kind is not pd.Categorical else "10", None])
        assert column(values).to_list() == ["10", "10", None]
    assert column(pd.Series([1.5, np.nan])).to_list() == [1.5, None]
    assert str(column(pd.Series([7.0, np.nan])).to_list()) == "[7, None]"
    at = datetime(2001, 1, 3, tzinfo=UTC)
    same = [model.recommend(["u4"], at=when) for when in (at, at.timestamp(), pd.Timestamp(at))]
    assert_frame_equal(same[0], same[1])
    assert_frame_equal(same[0], same[2])


@pytest.mark.parametrize("options", [
    dict(), dict(exclude_seen=False), dict(items=[5, 9, 13, 85]), dict(at=978_200_000)])
def test_lists_of_many_are_those_of_each_one(model, options):
    ids = pl.Series("user_id", [*USERS["user_id"][::-2], "a stranger"])
    with pytest.warns(UserWarning, match="1 of 13 users are not known, such as 'a stranger'"):
        found = model.recommend(ids, k=7, **options)
    assert found.schema == {"user_id": pl.String, "item_id": pl.Int32, "rank": pl.Int64,
                            "score": pl.Float32}
    assert found["user_id"].unique(maintain_order=True).to_list() == ids.to_list()
    for user, rows in found.group_by("user_id"):
        known = user[0] != "a stranger"
        person = model.users.person(user[0]) if known else model.recommender.person()
        at = options.get("at")
        person = person if at is None else person.before(at)
        alone = model.recommender.recommend(
            person, 99, at=at, exclude_seen=options.get("exclude_seen", True), exact=True)
        alone = [item for item in alone if item.movie_id in options.get("items", range(99))][:7]
        rows = rows.sort("rank")
        assert rows["rank"].to_list() == list(range(1, len(alone) + 1))
        assert rows["item_id"].to_list() == [item.movie_id for item in alone]
        np.testing.assert_allclose(rows["score"], [item.stars for item in alone], atol=1e-5)


@pytest.mark.parametrize("is_timed", [False, True])
def test_predictions_of_pairs_are_those_of_each_one(model, is_timed):
    pairs = RATINGS.sample(60, seed=1).select("user_id", "item_id", "datetime")
    pairs = pl.concat([pairs, pairs.with_columns(item_id=pl.lit(85, pl.Int32))])  # never rated
    pairs = pairs if is_timed else pairs.drop("datetime")
    found = model.predict(pairs)
    assert_frame_equal(found.drop("prediction"), pairs)
    assert_frame_equal(model.predict(pairs.lazy()).collect(), found)
    for row in found.iter_rows(named=True):
        person = model.users.person(row["user_id"])
        at = int(row["datetime"].replace(tzinfo=UTC).timestamp()) if is_timed else None
        person = person if at is None else person.before(at)
        expected = model.recommender.predict(person, [row["item_id"]], at=at)
        assert row["prediction"] == pytest.approx(expected[0], abs=1e-5)
    if is_timed:  # seconds, milliseconds and dates are one
        for name, unit in (("timestamp", "s"), ("timestamp", "ms"), ("datetime", "ms")):
            at = pairs.with_columns(pl.col("datetime").dt.epoch(unit)).rename({"datetime": name})
            assert_frame_equal(model.predict(at)[["prediction"]], found[["prediction"]])
    with pytest.warns(UserWarning, match="2 of 3 (users|items) are not known"):
        odd = model.predict(pl.DataFrame({"user_id": ["?", " u1 ", "?"], "item_id": [5, 6, 6]}))
    assert odd["prediction"].is_between(1, 5).all() and odd["prediction"].n_unique() == 3


def test_a_short_list_is_doubled_until_it_is_the_exact_one(build, store, monkeypatch):
    recommender = build(**SMALL)[0]
    users, rows = Users(recommender, store), np.arange(store.num_users)
    exact = users.recommend(rows, 5, exact=True)
    monkeypatch.setattr("bst.recommend.best.SHORTLIST", 6)
    same = users.recommend(rows, 5)[0] == exact[0]
    assert same.all(axis=1).mean() > 0.9
    assert (exact[0] >= FIRST_IDX).all() and (np.diff(exact[1]) <= 0).all()
    for zero in recommender.model.head[-1].parameters():  # nothing is corrected, so none doubles
        torch.nn.init.zeros_(zero)
    longer, whole = (users.recommend(rows, 15, exact=exact)[0] for exact in (False, True))
    np.testing.assert_array_equal(longer, whole)


def test_a_saved_model_moves_with_its_ratings(model, tmp_path):
    model.save(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    for path in (model.folder / "store").iterdir():  # a copy does not look there
        path.rename(path.with_suffix(".gone"))
    loaded = bst.BST.load(tmp_path / "moved")
    assert_frame_equal(loaded.recommend(["u4"], k=3), model.recommend(["u4"], k=3),
                       check_dtypes=False)
    assert loaded.evaluate(["item mean"])["scorer"].to_list() == ["bst", "item mean"]
    assert loaded.similar(5, 2)["item_id"].to_list() == model.similar(5, 2)["item_id"].to_list()
    effects = loaded.explain("u4", 85)["difference"].abs().to_list()
    assert len(effects) > 5 and effects == sorted(effects, reverse=True)
    likes = [(5, 5.0, datetime(2001, 1, 1, tzinfo=UTC).timestamp())]
    assert loaded.recommend_for(likes, k=2, genres=["War"]).columns == [
        "item_id", "title", "rank", "score"]
    with refused("is there already, expected a new folder"):
        model.save(tmp_path / "moved")
    with refused("moved holds a run on other data; give another folder"):
        bst.BST(**OPTIONS).fit(RATINGS.head(99), folder=tmp_path / "moved")
    assert_frame_equal(bst.BST.load(tmp_path / "moved").recommend(["u4"], k=3),
                       loaded.recommend(["u4"], k=3))


def test_a_run_of_files_is_saved_with_its_ratings(tmp_path):
    """With tied ratings in a drawn order, and features of items that the files alone have."""
    raw, run = tmp_path / "raw", tmp_path / "run"
    raw.mkdir()
    RATINGS.write_csv(raw / "ratings.csv")
    ITEMS.with_columns(author=pl.Series(["Ann", "Bob"] * 20 + ["Bob"])).write_csv(raw / "items.csv")
    data = DataConfig(data=raw, item_features="author", tie_order="shuffled")
    config = RunConfig(data=data, model=ModelConfig(**SMALL, text=False),
                       train=TrainConfig(epochs=1, steps=2, threads=1))
    assert train_run(prepare(config), run)
    model = bst.BST.load(run)
    model.save(tmp_path / "saved")
    raw.rename(tmp_path / "gone")
    saved = bst.BST.load(tmp_path / "saved")
    assert_frame_equal(saved.recommend(["u4", "u1"], k=3), model.recommend(["u4", "u1"], k=3))
    assert saved.evaluate(["item mean"])["scorer"].to_list() == ["bst", "item mean"]
    with refused("raw: cannot read it"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_options_are_what_python_has(tmp_path):
    items = ITEMS.with_columns(author=pl.Series(["Ann", "Bob"] * 20 + ["Bob"]))
    model = bst.BST(**OPTIONS | {"steps": 2, "epochs": 1, "hidden": [8, 8, 8]},
                    item_features=["author"], columns={"user": "who"})
    model.fit(RATINGS.rename({"user_id": "who"}), items, verbose=False)
    assert model.recommender.fitted.features["values"]["author"] == ["Ann", "Bob"]
    assert len(model.evaluate(["item mean"])) == 2


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: bst.BST(epoch=3), "no option epoch; there are attention, .*epochs"),
    (lambda m: bst.BST().recommend([1]), "not fitted yet"),
    (lambda m: bst.BST().fit([1, 2]), "expected a DataFrame of polars or pandas, got list"),
    (lambda m: bst.BST().fit(RATINGS.drop("rating")), "no columns for the rating in the header"),
    (lambda m: bst.BST().fit(RATINGS.with_columns(rating=pl.lit("x"))),
     "bad rows, expected none: .*ratings.parquet:1: rating 'x' is not a number"),
    (lambda m: m.predict(ITEMS), "no column user_id in item_id, title, genres"),
    (lambda m: bst.BST().fit(pd.DataFrame([[1, 2]], columns=["a", "a"])), "2 columns of 1 names"),
    (lambda m: bst.BST().fit(pd.DataFrame({
        "user_id": [1, np.nan], "item_id": pd.array([None, 2], dtype="Int64"), "rating": [3, 4]})),
     "2 bad rows, .*ratings.parquet:1: no item; ratings.parquet:2: no user"),
    (lambda m: m.recommend("u1"), "users is one str, expected a list of ids"),
    (lambda m: m.recommend(["u1"], at="2001-01-01"), "row 1: time '2001-01-01', expected seconds"),
    (lambda m: m.recommend(["u1"], items=[6]), "no item 6 in the catalogue"),
])
def test_what_a_caller_gets_wrong_is_told_in_one_line(model, call, message):
    with refused(message):
        call(model)
