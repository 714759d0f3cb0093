"""Recommendations against the evaluation path. Run: pytest tests/test_recommend.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bst.batches import Batches, UserVocabulary
from bst.checkpoint import FITTED_VERSION, Fitted, load_fitted, save_fitted, save_model
from bst.base import fit_base
from bst.config import ModelConfig
from bst.features import fit_statistics
from bst.recommend import Interaction, NewMovie, Recommender
from bst.schema import FIRST_IDX, DataError
from bst.sequences import split_interactions
from bst.training import build_model, predict_part, text_scaling


@pytest.fixture(scope="module")
def fits(store, text):
    """(protocol, ties, kind) -> split, base fit, base: fitting takes a second."""
    known = {}

    def fit(protocol, ties, kind):
        key = protocol, ties, kind
        if key not in known:
            split = split_interactions(store, protocol=protocol, ties=ties)
            known[key] = split, *fit_base(store, split, kind, text)
        return known[key]

    return fit


@pytest.fixture(scope="module")
def build(store, text, fits):
    """(config changes) -> (recommender with random weights, batches)."""

    def build(*, protocol="temporal", ties="strict", **changes):
        config = ModelConfig(**{"width": 12, "heads": 3, "history_len": 13, "text_dim": 5,
                                "feature_dim": 3, "hidden": (17, 7, 5), "buckets": 4, **changes})
        split, base_fit, base = fits(protocol, ties, config.base)
        vocabulary = UserVocabulary.fit(store, split)
        batches = Batches(store, split, vocabulary, base=base, history_len=config.history_len,
                          shared=config.shares_history)
        model = build_model(config, batches, text, seed=3)
        torch.manual_seed(5)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        mean, scale = text_scaling(text, np.unique(store.item_idx[split.train]))
        movies = store.movies.select("item_id", "title", "year", "genres").to_dict(as_series=False)
        fitted = Fitted(
            FITTED_VERSION, {"hash": "h", "data": store.digest},
            {"protocol": protocol, "ties": ties, "seed": 0},
            {"bert": None, "pooling": "mean-last-two", "text_source": "overview"}, movies,
            base_fit, fit_statistics(store, split, base.score), mean, scale)
        return Recommender(model, vocabulary, fitted), batches

    return build


def movie(store, p):
    return store.movies["item_id"][int(store.item_idx[p]) - FIRST_IDX]


@pytest.mark.parametrize("changes", [
    dict(), dict(ties="stable"), dict(protocol="leave-last-one"), dict(protocol="random"),
    dict(base="factors"), dict(base="bias"), dict(base="mean"), dict(readout="flatten"),
    dict(layers=2), dict(layers=0), dict(layers=0, readout="mean"), dict(rating_input="both"),
    dict(history_len=0), dict(user_id=True), dict(loss="ordinal"),
])
def test_a_prediction_is_that_of_the_evaluation_path(build, store, changes):
    """float32 sums in another order: up to 1e-5 stars."""
    recommender, batches = build(**changes)
    expected = predict_part(recommender.model, batches, "test")[0]
    for p in batches.split.test[::7]:
        user = store.user_row[p]
        person = recommender.history_of(store, store.users["user_id"][int(user)])
        when = int(store.timestamp[p])
        first = store.offsets[user]
        seen = batches.split.is_history[first:batches.split.history_stop[p]].sum()
        person = person._keep(np.arange(seen))
        found = recommender.predict(person, [movie(store, p)], at=when)
        assert found[0] == pytest.approx(expected[p], abs=1e-5), p
