"""A run as a program that needs torch alone. Run: pytest tests/test_program.py."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from bst.recommend.catalogue import NewMovie
from scripts import export as export_script
from scripts.support.program import ABOUT, Program, export_program
from tests.conftest import FORMS, keep, refused

T = 978_000_000
SIZES = 0, 1, 31, 32, 33, 100  # of a history: none, and all about the ends of its chunks of 32
FRESH = """
import io, json, sys
import torch
extra = {sys.argv[2]: ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
with torch.no_grad():
    found = [program(*asked).tolist() for asked in torch.load(io.BytesIO(sys.stdin.buffer.read()))]
assert not {"bst", "einops", "polars", "safetensors"} & set(sys.modules)
print(json.dumps({"about": json.loads(extra[sys.argv[2]]), "stars": found}))
"""


def inputs(recommender, history, movies, at, user=None):
    """Arguments of the program, as `about.json` says."""
    known, columns = recommender.vocabulary.features, zip(*history, strict=True)
    codes = [values.index(user[name]) + 2 if name in (user or {}) else 1
             for name, values in known.items()]
    values = *(columns if history else ((), (), ())), codes, at, movies
    return [torch.tensor(value, dtype=torch.float32 if k == 1 else torch.int64)
            for k, value in enumerate(values)]


def questions(recommender):
    """(history, films, seconds, user): histories of `SIZES`, tied, one newest first."""
    ids, rng = recommender.catalogue.ids, np.random.default_rng(2)
    users = {}, {"sex": "F"}, {"sex": "M", "age": "25", "occupation": "7"}, {"zip_region": "5"}
    for k, size in enumerate(SIZES):
        step = np.where(rng.random(size) < 0.3, 0, rng.integers(1, 10**6, size))
        time = 978_000_000 + step.cumsum()
        history = [(int(movie), float(rng.integers(1, 6)), int(when))
                   for movie, when in zip(rng.permutation(ids)[:size], time, strict=True)]
        at = int(time[-1]) + (1, 10**8)[k % 2] if size else 978_000_000
        films = [ids[5:6], ids, ids[::2]][k % 3]
        yield history[::-1] if k == 3 else history, films, at, users[k % 4]


def close(stars, recommender, cases):
    """Program and recommender agree before the clamp, to 1e-5 stars, on rated films too."""
    spread = []
    for found, (history, movies, at, user) in zip(stars, cases, strict=True):
        expected = recommender.score(recommender.person(history, user=user),
                                     recommender.catalogue.items(movies), at)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        spread.append(expected.std())
    assert max(spread) > 0.3


def longer(recommender):
    """With films enough for a history of 100; they are new ones."""
    return recommender.with_movies([NewMovie(1000 + k, "New", ("War",) * (k % 2), 1950 + k)
                                    for k in range(70)])


@pytest.mark.parametrize("changes", FORMS)
def test_the_program_is_the_recommender(build, changes):
    recommender = longer(build(**changes)[0])
    program, cases = Program(recommender), list(questions(recommender))
    close([program(*inputs(recommender, *case)) for case in cases], recommender, cases)


def test_what_the_recommender_refuses_is_nan(default):
    """Film ids are odd here; at equal times nothing is before the question, with strict ties."""
    program = Program(default)
    for event, movie, at, spoilt in [
        ((5, 4.0, T), 9, T + 1, []), ((6, 4.0, T), 9, T + 1, [0, 1]),
        ((5, 6.0, T), 9, T + 1, [0, 1]), ((5, 4.0, T), 9, T, [0, 1]),
        ((5, 4.0, T), 8, T + 1, [1]), ((5, 4.0, T), 10**9, T + 1, [1]),
    ]:
        history = [(7, 2.0, T - 9), event]
        found = program(*inputs(default, history, [11, movie], at)).isnan()
        assert found.nonzero()[:, 0].tolist() == spoilt, (event, movie, at)
        if spoilt:
            with refused("no item|stars|not before"):
                default.predict(history, [11, movie], at=at)


@pytest.fixture(scope="module")
def run(default, tmp_path_factory):
    return keep(longer(default), tmp_path_factory.mktemp("run"))


def fresh(path, recommender):
    """What the file holds about itself; a process that has torch alone gives the right stars."""
    cases = list(questions(recommender))
    torch.save([inputs(recommender, *case) for case in cases], asked := io.BytesIO())
    done = subprocess.run([sys.executable, "-I", "-c", FRESH, path, ABOUT], cwd=path.parent,
                          input=asked.getvalue(), capture_output=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    close(found["stars"], recommender, cases)
    return found["about"]


def test_the_file_needs_torch_alone(default, run, tmp_path, capsys):
    path, recommender = tmp_path / "run.pt2", longer(default)
    export_script.main(export_script.Args(run=run, program=path))
    assert "(j,) int64, ids of the rated items" in capsys.readouterr().out
    about = fresh(path, recommender)
    assert about["movies"] == recommender.catalogue.ids and about["levels"] == [1, 2, 3, 4, 5]
    assert about["users"] == recommender.vocabulary.features
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS[1:])
def test_other_models_export_too(build, tmp_path, changes):
    recommender, path = longer(build(**changes)[0]), tmp_path / "run.pt2"
    export_program(recommender, path)
    fresh(path, recommender)


def test_errors_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("worked in vain"))
    there = tmp_path / "there.pt2"
    there.write_bytes(b"mine")
    for flags, message in [
        (dict(), "expected --program FILE or --hub FOLDER"),
        (dict(program=there), "is there already, expected a new file"),
        (dict(program=tmp_path / "nowhere" / "x.pt2"), "no folder .*nowhere, expected one to"),
    ]:
        with refused(message):
            export_script.main(export_script.Args(**{"run": run} | flags))
    assert list(tmp_path.iterdir()) == [there] and there.read_bytes() == b"mine"
