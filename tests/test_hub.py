"""A finished run as a folder for the Hub. Run: pytest tests/test_hub.py."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from bst.data.schema import FIRST_IDX
from bst.data.splits import split_interactions
from bst.evaluation.report import read_results
from bst.recommend.recommender import Recommender
from bst.run import store_of
from bst.training.checkpoint import config_of, load_model
from bst.utils.files import write_sealed
from scripts.support.hub import _name, model_card, publish
from tests.conftest import refused


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A finished run with a BERT folder of this machine."""
    run = shutil.copytree(trained[0], tmp_path_factory.mktemp("runs") / "films")
    (run.parent / "bert-of-mine").mkdir()
    for name, part in (("config.json", "data"), ("fitted.json", "encoder")):
        about = json.loads((run / name).read_bytes())
        about[part]["bert"] = str(run.parent / "bert-of-mine")
        write_sealed(run / name, json.dumps(about).encode())
    return run


@pytest.fixture(scope="module")
def hub(run):
    folder = run.parent / "films-for-the-hub"
    publish(run, folder)
    return folder


def test_the_folder_scores_as_the_run_bit_by_bit(run, hub):
    ours, theirs = Recommender.from_pretrained(run), Recommender.from_pretrained(hub)
    first, *others = ours.catalogue.ids
    for history in ([], [(first, 5.0)], [(movie, 1.0 + movie % 5) for movie in others[:17]]):
        expected, found = (r.predict(history, r.catalogue.ids, user={"sex": "F"}).tolist()
                           for r in (ours, theirs))
        assert found == expected
    assert ours.recommend(history, 5, reasons=2) == theirs.recommend(history, 5, reasons=2)
    assert ours.explain(history, first) == theirs.explain(history, first)
    assert ours.similar(first) == theirs.similar(first)
    assert ((run / "model.safetensors").read_bytes() == (hub / "model.safetensors").read_bytes())


def test_nothing_of_anybody_in_the_training_is_left(run, hub):
    """No id of a user, and no array or list with an entry for each user or rating."""
    store, known = store_of(run), len(load_model(run)[1].user_id)
    split = split_interactions(store)
    assert known == len(np.unique(store.user_row[split.train])) and not load_model(hub)[1].user_id
    users = {known, known + FIRST_IDX}
    for name, array in load_file(hub / "model.safetensors").items():
        assert users.isdisjoint(array.shape) and len(split.train) not in array.shape, name
    values = [json.loads(path.read_text()) for path in hub.glob("*.json")]
    for value in values:  # grows by the values in it
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            assert len(value) not in users and len(value) <= store.num_items, value
            values += value
    count = np.bincount(store.item_idx[split.train], minlength=store.num_items + FIRST_IDX)
    movies = json.loads((hub / "fitted.json").read_text())["movies"]
    assert set(movies) == {"item_id", "title", "year", "genres", "ratings"}
    assert movies["ratings"] == count[FIRST_IDX:].tolist()  # how many, not which


def test_the_files_are_those_of_the_hub_and_name_no_place(run, hub, raw):
    assert {path.name for path in hub.iterdir()} == {
        "README.md", "config.json", "fitted.json", "model.json", "model.safetensors",
        "results.json", "sums.json"}
    for path in hub.iterdir():
        assert str(raw.parent).encode() not in path.read_bytes(), path
    data = json.loads((hub / "config.json").read_text())["data"]
    assert (data["data"], data["metadata"], data["bert"]) == (
        raw.name, "movies_metadata.csv", "bert-of-mine")
    assert Recommender.from_pretrained(hub).fitted.encoder["bert"] == "bert-of-mine"
    for place in (None, "google/bert", "./bert", "~/bert", "a/b/bert"):  # names of the Hub stay
        assert _name(place) == (place if place in (None, "google/bert") else "bert")


def test_the_card_says_what_the_results_say(run, hub, raw):
    card = ModelCard.load(hub / "README.md")
    ours = json.loads((run / "results.json").read_text())[0]
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {"mae", "rmse", "mae_star", "user_macro_mae"}
    text = " ".join(card.text.split())
    for name, result in found.items():
        ends = [ours[f"{name}_low"], ours[f"{name}_high"]]
        assert result.metric_value == pytest.approx(ours[name], abs=5e-5)
        assert result.metric_args["interval_95"] == pytest.approx(ends, abs=5e-5)
        assert result.dataset_config == "temporal, ties strict" and result.dataset_split == "test"
        assert "{:.4f} [{:.4f}, {:.4f}]".format(ours[name], *ends) in text
    rival = ours["paired"]
    for said in (f"bst minus {rival['against']} on the same rows: MAE {rival['mae']:+.4f}",
                 f"Trained on `{raw.name}`", "may not be redistributed without the permission"):
        assert said in text, said
    assert (card.data.license, card.data.model_name) == ("other", hub.name)


def test_the_card_of_synthetic_data_is_mit(run, hub):
    fitted, config, rows = (
        Recommender.from_pretrained(hub).fitted, config_of(run), read_results(run / "results.json"))
    config["data"]["data"], rows[0]["protocol"] = "builtin", "keras-windows"
    card = model_card("films", config, fitted, rows, [])
    assert card.data.license == "mit" and "GroupLens" not in card.text
    assert "`keras-windows` (LEAKY)" in card.text


@pytest.mark.parametrize(("drop", "message"), [
    ("results.json", "results.json: .*expected the results of a finished run"),
    ("config.json", "config.json: .*expected a run folder"),
    ("model.json", "no readable model"), ("fitted.json", "expected what was fitted"),
    (None, "is there already, expected a new folder"),
])
def test_an_unfinished_run_or_a_folder_that_is_there_is_refused(run, tmp_path, drop, message):
    shutil.copytree(run, tmp_path / "run", ignore=lambda *_: [drop])
    with refused(message):
        publish(tmp_path / "run", tmp_path / ("out" if drop else "run"))
    left = {path.name for path in run.iterdir()} - {drop}
    assert {path.name for path in tmp_path.rglob("*")} == left | {"run"}


def test_a_failed_write_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.support.hub.write_atomic", lambda *_: 1 / 0)  # of the last file
    with pytest.raises(ZeroDivisionError):
        publish(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_name_of_the_hub_is_found_in_the_local_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--somebody--films"
    for name in ("refs", "snapshots"):
        (kept / name).mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).symlink_to(hub)
    found, ours = (Recommender.from_pretrained(name) for name in ("somebody/films", hub))
    assert found.similar(ours.catalogue.ids[0]) == ours.similar(ours.catalogue.ids[0])
    with refused("somebody/else: no readable model"):
        Recommender.from_pretrained("somebody/else")
