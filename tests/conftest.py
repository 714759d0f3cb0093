"""A tiny data set in memory and on disk in the raw MovieLens format, and a ban on the network."""

import io
import json
import socket
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, settings

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.data.schema import FIRST_IDX, MOVIES, RATINGS, USERS, Tables
from bst.data.sequences import SequenceStore, build_sequences
from bst.data.splits import split_interactions
from bst.data.text import TextVectors
from bst.model.batches import Batches, Targets, UserVocabulary, lay_out
from bst.model.build import build_model
from bst.recommend.recommender import Recommender
from bst.recommend.users import Users
from bst.run import Prepared, keep_fitted
from bst.training.checkpoint import load_fitted, save_fitted, save_model
from bst.utils.errors import DataError
from scripts.support.synthetic import write_synthetic
from tests.command import call

torch.set_num_threads(1)
quietly = settings(max_examples=60, deadline=None,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])
NUM_USERS, NUM_MOVIES = 23, 41
SMALL = {"widths": (5, 3), "drift": (0.01, 0.3), "forgets": (0.02, 0.1), "key_var": (0.1, 0.1),
         "width": 12, "heads": 3, "history_len": 13, "feature_dim": 3, "hidden": (17, 7, 5),
         "buckets": 4}  # sizes of a ModelConfig, of other primes where they can be
FORMS = [dict(), dict(ties="stable"), dict(attention="regression"), dict(attention="softmax"),
         dict(attention="none"), dict(readout="flatten"), dict(user_id=True),
         dict(dense="bucket"), dict(text=False, genres=False, year=False), dict(interest=1),
         dict(user_features=False, dense="none")]  # of a ModelConfig, and of a split
STILL = {"dropout": 0.0, "item_dropout": 0.0, "doubt": 0.0}  # training without chance
RUN = RunConfig(model=ModelConfig(**SMALL), train=TrainConfig(
    epochs=3, steps=1, batch_size=128, patience=1.0, save_every=4, lr=3e-3))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The default command and the tests open no socket beyond loopback."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@contextmanager
def refused(message: str):
    """The block ends with an error of the user's, told in one line."""
    with pytest.raises(DataError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def good_or_refused(read, *about):
    """What `read` makes of a file; None where that is a DataError of one line."""
    try:
        return read(*about)
    except DataError as error:
        assert "\n" not in str(error)
    return None


def contents(folder) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logged(folder) -> list[dict]:
    """What a run has logged, without the seconds that it took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def bits(folder) -> tuple[bytes, list[dict]]:
    """The model of a run folder, and what was logged."""
    return (folder / "model.safetensors").read_bytes(), logged(folder)


def saved(what) -> bytes:
    """A file of torch."""
    content = io.BytesIO()
    torch.save(what, content)
    return content.getvalue()


def random_tables(seed: int = 0, *, num_ratings: int = 700, tie_share: float = 0.5) -> Tables:
    """Users, movies and ratings full of tied timestamps; a user never rates an item twice."""
    rng = np.random.default_rng(seed)
    users = pl.DataFrame(
        {"user_id": np.arange(NUM_USERS) * 3 + 1, "sex": rng.choice(["F", "M"], NUM_USERS),
         "age": rng.choice(["1", "25", "56"], NUM_USERS),
         "occupation": rng.choice(["0", "4", "7", "12"], NUM_USERS),
         "zip_region": rng.choice(list("0159"), NUM_USERS)}, schema=USERS)
    movies = pl.DataFrame(
        {"item_id": np.arange(NUM_MOVIES) * 2 + 5,
         "title": [f"Film {k} ({1950 + k})" for k in range(NUM_MOVIES)],
         "year": [1950 + k if k % 7 else None for k in range(NUM_MOVIES)],
         "genres": [["Drama"], ["Comedy", "War"], ["Drama", "War"], []] * 10 + [["Comedy"]],
         "overview": [f"About {k}." if k % 5 else None for k in range(NUM_MOVIES)],
         "match": ["exact" if k % 5 else "none" for k in range(NUM_MOVIES)]}, schema=MOVIES)
    pairs = rng.permutation(NUM_USERS * (NUM_MOVIES - 3))[:num_ratings]  # 3 items are never rated
    step = np.where(rng.random(num_ratings) < tie_share, 0, rng.integers(1, 4000, num_ratings))
    order = rng.permutation(num_ratings)
    ratings = pl.DataFrame(
        {"user_id": users["user_id"].to_numpy()[pairs % NUM_USERS],
         "item_id": movies["item_id"].to_numpy()[pairs // NUM_USERS],
         "rating": rng.integers(1, 6, num_ratings).astype(np.float32),
         "timestamp": (978_000_000 + np.cumsum(step))[order]}, schema=RATINGS)
    return Tables(users, movies, ratings)


def plain_batches(store: SequenceStore, split) -> Batches:
    """What the network reads, all users of train known."""
    return Batches(store, split, UserVocabulary.fit(store, split))


def all_rows(batches, part="test"):
    return [row for batch in batches.epoch(part, batch_size=10**6) for row in batch]


def window(batches, position):
    """The batch of one target alone with its own history: the window form."""
    history, store = batches.history, batches.store
    begin, stop = history.start[[position]], history.stop[[position]]
    target = Targets(np.array([0]), store.item_idx[[position]], store.timestamp[[position]],
                     stop - begin, store.rating[[position]], np.array([position]))
    user = batches.user[store.user_row[[position]]]
    return lay_out(batches.events, begin, stop - begin, target, user).to("cpu", torch.float64)


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random weights: no zeros that could hide a path."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "log_" not in name:  # clocks and noises stay in range
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def from_then_on(store: SequenceStore, position: int) -> np.ndarray:
    """Where the user of the rating at `position` rates at its time or later, (n,) bool."""
    return ((store.user_row == store.user_row[position])
            & (store.timestamp >= store.timestamp[position]))


def turned(store: SequenceStore, rows: np.ndarray) -> SequenceStore:
    """The store with the stars at `rows` turned around: 5 for 1, 4 for 2."""
    rating = store.rating.copy()
    rating[rows] = 6 - rating[rows]
    return replace(store, rating=rating)


def described(store: SequenceStore) -> SequenceStore:
    """The store whose items have features: authors, one of whom wrote one item, and pages."""
    return replace(store, movies=store.movies.with_columns(features=pl.struct(
        pl.Series("author", [["Once"]] + [["Bob", "Ann"], [], ["Bob"], ["Ann"]] * 10),
        pl.Series("pages", [k**3 if k % 6 else None for k in range(NUM_MOVIES)], pl.Float64))))


def movie(store, p):
    """The id of the item that is rated at p."""
    return store.movies["item_id"][int(store.item_idx[p]) - FIRST_IDX]


def ratings(store, user, count):
    """The first ratings of a user as a plain history."""
    rows = range(store.offsets[user], store.offsets[user] + count)
    return [(movie(store, p), float(store.rating[p]), int(store.timestamp[p])) for p in rows]


def asked(recommender, batches, store, p):
    """The user of the target at p, with what the split lets this target see."""
    person = Users(recommender, store).person(store.users["user_id"][int(store.user_row[p])])
    return person.take(np.arange(batches.history.stop[p] - batches.history.start[p]))


def keep(recommender, folder, **info):
    """The run folder of a recommender."""
    save_model(folder, recommender.model, recommender.vocabulary,
               {"identity": recommender.fitted.identity, **info})
    save_fitted(folder, recommender.fitted)
    return folder


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A folder of small raw files with their metadata."""
    return write_synthetic(tmp_path_factory.mktemp("raw"), num_users=120, num_movies=60,
                           num_ratings=4_000)


@pytest.fixture(scope="session")
def trained(raw, tmp_path_factory):
    """Run folder, flags and output of a small train.py."""
    out = tmp_path_factory.mktemp("run")
    flags = ["--data", raw, "--metadata", raw / "movies_metadata.csv", "--out", out, "--cache",
             raw / "cache", "--epochs", "2", "--steps", "1", "--history-len", "20", "--threads",
             "1", "--batch-size", "512"]
    return out, flags, call("train.py", *flags).stdout


@pytest.fixture(scope="session")
def tables():
    return random_tables()


@pytest.fixture(scope="session")
def store(tables):
    return build_sequences(tables)


@pytest.fixture(scope="session")
def split(store):
    return split_interactions(store)


@pytest.fixture(scope="session")
def text(store):
    rng = np.random.default_rng(7)
    has = np.array([o is not None for o in store.movies["overview"]])
    vectors = rng.normal(size=(NUM_MOVIES, 11)).astype(np.float32) * has[:, None]
    return TextVectors(vectors, has)


@pytest.fixture(scope="session")
def small(store, split, text):
    """(config changes) -> (model in fp64 with random weights, batches)."""

    def build(*, store=store, split=split, **changes):
        batches = plain_batches(store, split)
        with pytest.MonkeyPatch.context() as patch:  # data as small as these have an audience too
            patch.setattr("bst.model.build.EACH", 10)
            patch.setattr("bst.model.build.CO_RATINGS", 300)
            model = build_model(ModelConfig(**SMALL | changes), batches, text, seed=3)
        return randomize(model).double().eval(), batches

    return build


@pytest.fixture(scope="session")
def build(small, store, text, tmp_path_factory):
    """(config changes) -> (recommender with random weights, batches)."""

    def build(*, store=store, protocol="temporal", ties="strict", **changes):
        split = split_interactions(store, protocol=protocol, ties=ties)
        model, batches = small(store=store, split=split, **changes)
        config = RunConfig(data=DataConfig(protocol=protocol, ties=ties), model=model.config)
        folder = tmp_path_factory.mktemp("fitted")
        keep_fitted(Prepared(config, store, split, text, batches), folder)
        fitted = load_fitted(folder, {"hash": config.hash, "data": store.digest})
        with torch.no_grad():  # stars within the scale, where the clamp hides nothing
            for part in filter(None, (model.items, model.prior, model.head[-1])):
                for parameter in part.parameters():
                    parameter *= 0.3
        vocabulary = replace(batches.vocabulary, always=[])  # nothing changes where it is saved
        return Recommender(model.float(), vocabulary, fitted), batches

    return build


@pytest.fixture(scope="session")
def default(build):
    return build()[0]
