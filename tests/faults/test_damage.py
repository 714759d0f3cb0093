"""Flipped bits, cut files, files of strangers, bombs. Run: pytest -m faults."""

import io
import json
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bst.data.formats import read_tables
from bst.data.sequences import build_sequences, load_store, save_store
from bst.data.text import embed_texts
from bst.evaluation.report import read_results
from bst.run import store_of
from bst.training.checkpoint import load_fitted, load_model, load_resume
from bst.utils.errors import DataError
from bst.utils.files import write_sealed
from scripts.support.synthetic import write_synthetic
from tests.conftest import refused, saved

RUN_FILES = ["config.json", "fitted.json", "model.json", "model.safetensors", "results.json",
             "resume.pt", "sums.json"]  # and metrics.jsonl, which is written only
STORE_FILES = ["item_idx.npy", "manifest.json", "movies.parquet", "offsets.npy", "rating.npy",
               "sums.json", "timestamp.npy", "users.parquet"]
FILES = [*(("run", name) for name in RUN_FILES), *(("store", name) for name in STORE_FILES)]


def read_run(folder: Path) -> None:
    """Read each of `RUN_FILES`."""
    _, _, info = load_model(folder)
    load_fitted(folder, info["identity"])
    load_resume(folder)
    store_of(folder)
    read_results(folder / "results.json")


def damages(content: bytes, seed: int) -> list[bytes]:
    """The content with a bit flipped here and there, and cut."""
    rng, found = random.Random(seed), []
    places = {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(20))}
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        found.append(bytes(changed))
    return [*found, b"", content[:len(content) // 2], content[:-1], content + b"\n"]


def newest(sums: bytes) -> dict | None:
    """What the sums say of the files that stand there and are read."""
    try:
        return {name: digests[-1] for name, digests in json.loads(sums).items()
                if name != "metrics.jsonl"}
    except ValueError:
        return None


@pytest.fixture(scope="module")
def folders(whole, raw, tmp_path_factory):
    """A run folder and a store, and what reads each."""
    run, store = tmp_path_factory.mktemp("copy") / "run", tmp_path_factory.mktemp("store")
    shutil.copytree(whole, run)
    save_store(build_sequences(read_tables(raw)), store)
    for folder, names in ((run, sorted([*RUN_FILES, "metrics.jsonl"])), (store, STORE_FILES)):
        assert sorted(path.name for path in folder.iterdir()) == names
    return {"run": (run, read_run), "store": (store, load_store)}


@pytest.mark.parametrize(("what", "name"), FILES)
def test_a_damaged_file_is_refused_in_one_line(folders, what, name):
    folder, read = folders[what]
    path, good = folder / name, (folder / name).read_bytes()
    for number, bad in enumerate(damages(good, seed=len(good))):
        if name == "sums.json" and newest(bad) == newest(good):
            continue  # only what was there before the last write has changed
        path.write_bytes(bad)
        with refused(str(folder)):
            read(folder)
            pytest.fail(f"damage {number} of {name} passed")
    path.write_bytes(good)
    read(folder)


@pytest.mark.parametrize("what", ["run", "store"])
def test_a_folder_of_an_older_version_is_refused_and_says_what_to_do(folders, tmp_path, what):
    """One without sums.json."""
    folder, read = folders[what]
    shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns("sums.json"))
    with refused("no sums.json .* make it again"):
        read(tmp_path / "old")


def test_damaged_built_in_data_is_written_again(tmp_path):
    size = {"num_users": 10, "num_movies": 40, "num_ratings": 300}
    write_synthetic(tmp_path, **size)
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(good) == 5
    for name, content in good.items():
        for bad in damages(content, seed=3)[1:-1:6]:
            (tmp_path / name).write_bytes(bad)
            write_synthetic(tmp_path, **size)
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "boom"))


def bomb(kind: str, marker: Path) -> bytes:
    """A pickle in a wrapping that a loader may open."""
    content = io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(Bomb(marker))
    if kind == "torch":
        return saved({"model": Bomb(marker)})
    if kind == "npy":
        np.save(content, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    else:
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Bomb(marker)))
            file.writestr("archive/version", "3")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip", "npy"])
def test_a_bomb_in_the_place_of_any_file_does_not_go_off(folders, tmp_path, kind):
    """With its sha256 in place, as an attacker would have it."""
    marker = tmp_path / "marker"
    for what, name in FILES:
        folder, read = folders[what]
        copy = tmp_path / f"{what}-{name}"
        shutil.copytree(folder, copy)
        write = Path.write_bytes if name == "sums.json" else write_sealed
        write(copy / name, bomb(kind, marker))
        with pytest.raises(DataError):
            read(copy)
    assert not marker.exists()
    pickle.loads(bomb("pickle", marker))  # noqa: S301 - the bomb is a real one
    assert marker.exists()


def test_code_in_a_bert_folder_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    classes = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel")}
    about = {"model_type": "evil", "auto_map": {**classes, "AutoTokenizer": ["evil.T", None]}}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(about))
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with refused("expected a BERT of transformers"):
        embed_texts(["a film"], bert=str(tmp_path), cache_dir=tmp_path / "cache")
    assert not marker.exists()
