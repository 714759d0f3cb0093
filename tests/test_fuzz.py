"""Whatever stands in a file, only a DataError escapes. Run: pytest tests/test_fuzz.py."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bst.config import DataConfig
from bst.data.formats import layout_of, read_tables
from bst.data.sources import RawFiles
from bst.training.checkpoint import config_of, load_fitted, load_model, load_resume
from bst.utils.files import write_sealed
from scripts.fuzzing.targets import IDENTITY, ROWS, small_run
from tests.conftest import good_or_refused, quietly, refused, saved

DAMAGE = st.tuples(st.sampled_from(["flip", "cut", "put"]), st.floats(0, 1),
                   st.binary(min_size=1, max_size=9))
ODD = st.sampled_from([None, True, -1, 0, 7, 2.5, 2**70, float("nan"), "", "x\ny", [], {},
                       [[]], {"a": 1}])


def damaged(content: bytes, damage: tuple[str, float, bytes]) -> bytes:
    """The content with bytes changed, cut off, or put in."""
    kind, where, noise = damage
    at = int(where * max(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    return content[:at] + noise + content[at + len(noise) * (kind == "flip"):]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copy(run, tmp_path):
    """A fresh copy of the run at each call."""
    return lambda: shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)


def read_run(folder):
    for read in (load_model, lambda folder: load_fitted(folder, IDENTITY), load_resume):
        good_or_refused(read, folder)


@pytest.mark.parametrize("found", [
    b"", b"\x80\x04.", b"[" * 100_000, b"\xff", b"2", b"null", b'["a"]', b"{}", b'{"version": 9}',
    b'{"version": "x\\ny"}', b'{"version": 3}', b'{"version": 3, "config": []}', saved(Path())])
@pytest.mark.parametrize(("name", "read", "expected"), [
    ("model.json", load_model, "model.json and model.safetensors of one run, .*; train again"),
    ("fitted.json", lambda folder: load_fitted(folder, IDENTITY), "what was fitted .* written"),
    ("resume.pt", load_resume, "a resume state of scripts/train.py; train in another --run"),
    ("config.json", config_of, "a run folder of scripts/train.py")])
def test_what_is_no_file_of_a_run_is_refused_and_says_what_to_do(copy, name, read, expected, found):
    folder = copy()
    write_sealed(folder / name, found)
    told = {b"{}": "version None is not 3", b'{"version": 9}': "version 9 is not 3"}
    with refused(f"^{folder}.*: {told.get(found, '.+') if name == 'model.json' else '.+'}; "
                 f"expected {expected}$"):
        read(folder)


@quietly
@given(name=st.sampled_from(["model.json", "fitted.json"]), place=st.integers(0, 10**6), value=ODD)
def test_any_value_of_a_run_may_be_any_other(copy, name, place, value):
    folder = copy()
    about = json.loads((folder / name).read_text())
    boxes = [about, *(box for box in about.values() if isinstance(box, dict))]
    inner = [(box, key) for box in boxes for key in box]
    box, key = inner[place % len(inner)]
    box[key] = value
    write_sealed(folder / name, json.dumps(about).encode())
    read_run(folder)


@quietly
@given(damages=st.lists(DAMAGE, min_size=1, max_size=3), method=st.sampled_from(
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
def test_a_damaged_zip_is_read_or_is_a_data_error(tmp_path, damages, method):
    path, good = tmp_path / "all.zip", ROWS["table"]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in good.items():
            archive.writestr(name, text)
    content = path.read_bytes()
    for damage in damages:
        content = damaged(content, damage)
    path.write_bytes(content)

    def read():
        files = RawFiles(path)
        layout_of(files, DataConfig())
        return [b"".join(files.chunks(name, 2**20)).decode() for name in good]

    assert good_or_refused(read) in (None, list(good.values()))


@pytest.mark.parametrize(("name", "stored", "told"), [
    ("ml/a\nb.csv", b"ml/a\nb.csv", r"found 'a\\nb.csv'; expected the files of"),
    ("\u00e9.csv", b"\xa6\xa6.csv", "cannot read it .*'utf-8' codec")])
def test_a_zip_with_odd_names_is_refused_in_one_line(tmp_path, name, stored, told):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr(name, "x")
    content = (tmp_path / "all.zip").read_bytes()
    (tmp_path / "all.zip").write_bytes(content.replace(name.encode(), stored))
    with refused(told):
        read_tables(tmp_path / "all.zip")
