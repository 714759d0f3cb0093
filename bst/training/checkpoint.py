"""A run folder: the best model, and the state from which training resumes, written atomically.

RUN/model.safetensors + model.json   the best weights; sizes, vocabulary, provenance
RUN/fitted.json                      the catalogue, protocol and encoder: enough to score anybody
RUN/resume.pt                        weights, their mean, optimizer, counters, log of the last point
RUN/config.json + results.json       the flags with the identity of the data; the table
RUN/metrics.jsonl                    a line per validation
RUN/sums.json                        sha256 of each of these files, checked whenever one is read
RUN/store/                           of a model of frames: its ratings, with hashes of their own
No file of a run folder can execute code when it is read.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save

from bst.config import ModelConfig, from_dict
from bst.data.schema import FIRST_IDX, OOV
from bst.model.batches import UserVocabulary
from bst.model.network import Network, Sizes
from bst.utils.errors import one_line
from bst.utils.files import read_sealed, write_sealed

MODEL_VERSION, FITTED_VERSION = 3, 4


@dataclass(frozen=True)
class Fitted:
    """What a run needs besides the network; row r of `movies` has item index r + FIRST_IDX."""

    version: int
    identity: dict  # hash of the config and digest of the data, as in model.json
    protocol: dict  # protocol, ties and seed of the split
    encoder: dict  # bert, pooling, text_source of `DataConfig`
    genres: list[str]  # of all items, in the order of the content features
    movies: dict  # of items: item_id, title, year, genres, ratings (train count), overview
    features: dict  # values and scales of `build.ContentScale`


def config_of(folder: Path) -> dict:
    """The `config.json` of the run in `folder`; a DataError if there is none, or a damaged one."""
    with one_line(f"{folder}/config.json", "a run folder of scripts/train.py"):
        found = json.loads(read_sealed(folder / "config.json"))
        for name in ("identity", "data", "model", "train"):
            if not isinstance(found.get(name), dict):
                raise ValueError(f"no field {name!r}")
    return found


def save_model(folder: Path, model: Network, vocabulary: UserVocabulary, info: dict) -> None:
    """Write the model; `info` is kept beside it as JSON.

    If every train user has a value of a user feature, the row of "unknown" was never trained; it is
    written as the mean of the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    names = "user_id", *vocabulary.features
    for table, column in enumerate(model.user_columns):
        if names[column] in vocabulary.always:
            rows = tensors[f"users.{table}.weight"].clone()
            rows[OOV] = rows[FIRST_IDX:].mean(dim=0)
            tensors[f"users.{table}.weight"] = rows
    about = {"version": MODEL_VERSION, "config": asdict(model.config), "sizes": asdict(model.sizes),
             "vocabulary": asdict(vocabulary), **info}
    write_sealed(folder / "model.json", json.dumps(about, indent=1).encode())
    write_sealed(folder / "model.safetensors", save(tensors))


def load_model(folder: Path) -> tuple[Network, UserVocabulary, dict]:
    """Read what `save_model` wrote; the model is in evaluation mode.

    A DataError if a file is missing, damaged, from another version, or does not fit the other.
    """
    with one_line(f"{folder}: no readable model", "model.json and model.safetensors of one run, as "
                  "this version of scripts/train.py writes them; train again"):
        info = json.loads(read_sealed(folder / "model.json"))
        if info.get("version") != MODEL_VERSION:
            raise ValueError(f"version {info.get('version')!r} is not {MODEL_VERSION}")
        model = Network(from_dict(ModelConfig, info["config"]), from_dict(Sizes, info["sizes"]))
        model.load_state_dict(load(read_sealed(folder / "model.safetensors")))
        return model.eval(), UserVocabulary(**info["vocabulary"]), info


def save_fitted(folder: Path, fitted: Fitted) -> None:
    """Write what a run needs beside the model."""
    write_sealed(folder / "fitted.json", json.dumps(asdict(fitted)).encode())


def load_fitted(folder: Path, identity: dict) -> Fitted:
    """Read what `save_fitted` wrote; `identity` is that of the model in the folder.

    A DataError if the file is missing, damaged, from another version or of another run.
    """
    path = folder / "fitted.json"
    with one_line(path, "what was fitted with the model; run the run's scripts/train.py command "
                  "again and it is written"):
        fitted = Fitted(**json.loads(read_sealed(path)))
        if len({len(values) for values in fitted.movies.values()}) != 1:
            raise ValueError("its lists are not equally long")
        if (fitted.version, fitted.identity) != (FITTED_VERSION, identity):
            raise ValueError(f"version {fitted.version!r} of run {fitted.identity!r}, the model's "
                             f"are {FITTED_VERSION} and {identity}")
    return fitted


def save_resume(folder: Path, state: dict) -> None:
    """Write the resume state: tensors, numbers, strings, dicts and lists only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_sealed(folder / "resume.pt", buffer.getvalue())


def load_resume(folder: Path) -> dict | None:
    """The last resume state, None before the first; a DataError if it is damaged or holds code."""
    path = folder / "resume.pt"
    if not path.exists():
        return None
    with one_line(path, "a resume state of scripts/train.py; train in another --run"):
        content = io.BytesIO(read_sealed(path))
        return torch.load(content, map_location="cpu", weights_only=True)
