"""A run as a program that needs torch alone. Run: pytest tests/recommend/test_export.py."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from bst.recommend.export import ABOUT, Program, export_program
from bst.training.checkpoint import save_fitted, save_model
from bst.utils.errors import DataError
from scripts import export as export_script
from tests.recommend.test_recommender import build, default, fits, ratings  # noqa: F401

FRESH = """
import json, sys
import torch
extra = {sys.argv[2]: ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
kinds = (torch.int64, torch.float32, torch.int64, torch.int64, torch.int64, torch.int64)
found = []
for asked in json.load(sys.stdin):
    with torch.no_grad():
        tensors = [torch.tensor(x, dtype=kind) for x, kind in zip(asked, kinds)]
        found.append(program(*tensors).tolist())
assert not {"bst", "einops", "polars", "safetensors"} & set(sys.modules)
print(json.dumps({"about": json.loads(extra[sys.argv[2]]), "stars": found}))
"""


@pytest.fixture
def plain_loop(monkeypatch):
    """`torch.while_loop` outside an export, without the seconds that its compiler takes."""

    def loop(goes_on, step, state):
        while goes_on(*state):
            state = step(*state)
        return state

    monkeypatch.setattr(torch, "while_loop", loop)


def inputs(history, movies, at, codes=(1, 1, 1, 1)):
    columns = zip(*history, strict=True) if history else ((), (), ())
    return *map(list, columns), list(codes), at, list(movies)


def tensors(asked):
    kinds = (torch.int64, torch.float32, torch.int64, torch.int64, torch.int64, torch.int64)
    return [torch.tensor(x, dtype=kind) for x, kind in zip(asked, kinds, strict=True)]


def code(recommender, user):
    """Codes of user features, as `about.json` says."""
    known = recommender.vocabulary.features
    return [known[name].index(user[name]) + 2 if name in user else 1 for name in known]


def questions(recommender, store):
    """(history, films, seconds, user): none, one, newest first, tied and late, both long."""
    sizes = np.diff(store.offsets)
    ids, last = recommender.catalogue.ids, ratings(store, sizes.argmax(), sizes.max())
    assert len(last) > 30
    tied = [(movie, stars, 978_000_000 + k // 3) for k, (movie, stars, _) in enumerate(last)]
    yield [], ids, 978_000_000, {}
    yield ratings(store, 3, 1), ids[5:6], 979_000_000, {"sex": "F"}
    yield last[::-1], ids, last[-1][2] + 1, {"sex": "M", "age": "25", "occupation": "7"}
    yield tied, ids[::2], last[-1][2] + 10**8, {"zip_region": "5", "occupation": "12"}


@pytest.mark.parametrize("changes", [
    dict(), dict(ties="stable"), dict(base="factors"), dict(base="bias"), dict(base="mean"),
    dict(readout="flatten"), dict(layers=2), dict(layers=0), dict(layers=0, readout="mean"),
    dict(rating_input="both"), dict(history_len=0), dict(user_id=True), dict(loss="ordinal"),
    dict(dense="bucket"), dict(dense="piecewise"), dict(text=False), dict(interest=0.1),
    dict(user_features=False, dense="none"),
])
def test_the_program_is_the_recommender(build, store, changes, plain_loop):  # noqa: F811
    recommender = build(**changes)[0]
    program = Program(recommender)
    for history, movies, at, user in questions(recommender, store):
        expected = recommender.score(recommender.person(history, user=user),
                                     recommender.catalogue.items(movies), at)
        found = program(*tensors(inputs(history, movies, at, code(recommender, user))))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=0)
        assert len(movies) == 1 or expected.std() > 0.01


@pytest.mark.parametrize(("event", "movie", "at", "spoilt"), [
    ((5, 4.0, 100), 9, 101, []), ((6, 4.0, 100), 9, 101, [0, 1]), ((5, 3.5, 100), 9, 101, [0, 1]),
    ((5, 4.0, 100), 9, 100, [0, 1]), ((5, 4.0, 100), 8, 101, [1]),
    ((5, 4.0, 100), 9, 100 + 2**31, [0, 1]), ((5, 4.0, 100), 10**9, 101, [1]),
])
def test_what_the_recommender_refuses_is_nan(default, event, movie, at, spoilt,  # noqa: F811
                                             plain_loop):
    """Film ids are odd here; at equal times nothing is before the question, with strict ties."""
    asked = inputs([(7, 2.0, 90), event], [11, movie], at)
    found = Program(default)(*tensors(asked)).isnan()
    assert found.nonzero()[:, 0].tolist() == spoilt
    if spoilt:
        with pytest.raises(DataError):
            default.predict([(7, 2.0, 90), event], [11, movie], at=at)


@pytest.fixture(scope="module")
def run(default, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("run")
    save_model(folder, default.model, default.vocabulary, {"identity": default.fitted.identity})
    save_fitted(folder, default.fitted)
    return folder


def fresh(path, asked):
    """What a process that has torch alone makes of the file."""
    done = subprocess.run([sys.executable, "-I", "-c", FRESH, path, ABOUT], cwd=path.parent,
                          input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_file_needs_torch_alone(default, store, run, tmp_path, capsys):  # noqa: F811
    """Exported once, then asked for histories of 0, 1 and 30 ratings and 1, 21 and 41 films."""
    path = tmp_path / "run.pt2"
    export_script.main(export_script.Args(model=run, program=path))
    assert "(j,) int64, ids of the rated films" in capsys.readouterr().out
    cases = list(questions(default, store))
    found = fresh(path, [inputs(*case[:3], code(default, case[3])) for case in cases])
    for stars, (history, movies, at, user) in zip(found["stars"], cases, strict=True):
        expected = default.predict(history, movies, at=at, user=user)
        np.testing.assert_allclose(np.clip(stars, 1, 5), expected, atol=1e-5, rtol=0)
    about = found["about"]
    assert about["movies"] == default.catalogue.ids and about["levels"] == [1, 2, 3, 4, 5]
    assert about["users"] == default.vocabulary.features
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    dict(ties="stable", base="factors"), dict(base="bias"), dict(base="mean", readout="flatten"),
    dict(layers=2, loss="ordinal"), dict(layers=0, readout="mean", dense="bucket"),
])
def test_other_models_export_too(build, store, tmp_path, changes):  # noqa: F811
    recommender, path = build(**changes)[0], tmp_path / "run.pt2"
    export_program(recommender, path)
    cases = list(questions(recommender, store))
    found = fresh(path, [inputs(*case[:3], code(recommender, case[3]))
                         for case in cases])
    for stars, (history, movies, at, user) in zip(found["stars"], cases, strict=True):
        expected = recommender.predict(history, movies, at=at, user=user)
        np.testing.assert_allclose(np.clip(stars, 1, 5), expected, atol=1e-5, rtol=0)


def test_errors_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("worked in vain"))
    there = tmp_path / "there.pt2"
    there.write_bytes(b"mine")
    for flags, message in [
        (dict(), "expected --program FILE or --hub FOLDER"),
        (dict(program=there), "is there already, expected a new file"),
        (dict(program=tmp_path / "nowhere" / "x.pt2"), "no folder .*nowhere, expected one to"),
    ]:
        with pytest.raises(DataError, match=message):
            export_script.main(export_script.Args(model=run, **flags))
    assert there.read_bytes() == b"mine"
    with pytest.raises(DataError, match="no readable model"):
        export_script.main(export_script.Args(model=tmp_path, program=tmp_path / "x.pt2"))
    assert list(tmp_path.iterdir()) == [there]
