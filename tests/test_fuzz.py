"""Whatever stands in a file, only a DataError escapes. Run: pytest tests/test_fuzz.py.

`scripts/fuzz.py` looks for more such inputs; those that it found stand here.
"""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bst.data.formats import layout_of, read_tables
from bst.data.overviews import read_metadata
from bst.data.sequences import build_sequences, load_store, save_store
from bst.data.sources import RawFiles
from bst.training.checkpoint import load_fitted, load_model, load_resume
from bst.utils.errors import DataError
from bst.utils.files import write_sealed
from scripts.fuzzing.targets import IDENTITY, ROWS, small_run
from tests.conftest import random_tables

quietly = settings(max_examples=60, deadline=None,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("name", ["model.json", "fitted.json"])
@pytest.mark.parametrize("found", [b"2", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b"{}",
                                   b'{"version": 2}', b'{"version": 2, "config": []}',
                                   b'{"version": "x\\ny"}'])
def test_json_that_is_no_part_of_a_run_is_a_data_error(copy, name, found):
    folder = copy()
    write_sealed(folder / name, found)
    with pytest.raises(DataError, match=r"expected model.json|do not fit|version None|damaged or"
                       r"|x\\ny.*, expected") as caught:
        load_model(folder)
        load_fitted(folder, IDENTITY)
    assert "\n" not in str(caught.value)


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
    loads_or_is_a_data_error(folder)


@quietly
@given(name=st.sampled_from(["model.json", "model.safetensors", "fitted.json", "resume.pt"]),
       damage=DAMAGE)
def test_a_damaged_run_folder_loads_or_is_a_data_error(copy, name, damage):
    folder = copy()
    write_sealed(folder / name, damaged((folder / name).read_bytes(), damage))
    loads_or_is_a_data_error(folder)


def loads_or_is_a_data_error(folder):
    for load in (load_model, lambda folder: load_fitted(folder, IDENTITY), load_resume):
        try:
            load(folder)
        except DataError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    save_store(build_sequences(random_tables(num_ratings=60)), folder)
    return folder


@quietly
@given(which=st.integers(0, 7), damage=DAMAGE)
def test_a_damaged_store_is_whole_or_a_data_error(saved, tmp_path, which, damage):
    """Every byte that matters is under a hash: what loads is what was saved."""
    folder = shutil.copytree(saved, tmp_path / "store", dirs_exist_ok=True)
    path = sorted(folder.iterdir())[which]
    write = write_sealed if path.name == "manifest.json" else Path.write_bytes  # deeper in
    write(path, damaged(path.read_bytes(), damage))
    try:
        found = load_store(folder)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found.digest == load_store(saved).digest


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
    try:
        files = RawFiles(path)
        layout_of(files)
        found = [b"".join(files.chunks(name, 2**20)).decode() for name in good]
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found == list(good.values())


def test_a_file_name_of_two_lines_is_told_in_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("ml/a\nb.csv", "x")
    with pytest.raises(DataError, match=r"found 'a\\nb.csv'; expected the files of") as caught:
        read_tables(tmp_path / "all.zip")
    assert "\n" not in str(caught.value)


def test_a_zip_whose_names_are_no_text_is_a_data_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("é.csv", "x")
    content = (tmp_path / "all.zip").read_bytes()
    (tmp_path / "all.zip").write_bytes(content.replace("é".encode(), b"\xa6\xa6"))
    with pytest.raises(DataError, match="cannot read it .*'utf-8' codec"):
        read_tables(tmp_path / "all.zip")


def test_a_cell_of_the_metadata_without_end_is_a_data_error(tmp_path):
    head = "id,title,original_title,overview,release_date\n"
    (tmp_path / "m.csv").write_text(head + '1,a,a,"' + "x" * (2**24 + 1))
    with pytest.raises(DataError, match="m.csv:2: field larger than field limit"):
        read_metadata(tmp_path / "m.csv")
