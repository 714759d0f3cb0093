"""The steps in one call each: open the data, prepare, train, compare with the baselines."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from bst.config import PLACES, DataConfig, Part, RunConfig, TrainConfig, from_dict, keras_example
from bst.data.preparation import open_store
from bst.data.schema import FIRST_IDX
from bst.data.sequences import SequenceStore
from bst.data.splits import Split, audit_split, shuffle_ties, split_interactions
from bst.data.text import TextVectors, embed_texts, noise_like
from bst.evaluation import report
from bst.evaluation.baselines import BASELINES, MANY, SLOW
from bst.model.batches import Batches, UserVocabulary
from bst.model.build import MIN_ITEMS, ContentScale, build_model, genre_names
from bst.training.checkpoint import FITTED_VERSION, Fitted, config_of, load_model, save_fitted
from bst.training.distributed import first_goes_first, maximum, rank
from bst.training.loop import fit, predict_part
from bst.utils.errors import DataError, one_line
from bst.utils.files import write_sealed
from bst.utils.guard import FolderInUseError, folder_lock

OVERVIEW_CHARS = 300  # of an overview that a run folder keeps, to be shown


@dataclass(frozen=True)
class Prepared:
    """All that a run reads."""

    config: RunConfig
    store: SequenceStore
    split: Split
    text: TextVectors | None
    batches: Batches

    @cached_property
    def scale(self) -> ContentScale:
        """Scale of the items' features, for the network and for new items."""
        return ContentScale.fit(self.config.model, self.batches, self.text)


def config_in(folder: Path) -> RunConfig:
    """The config of the run in `folder`, its data in the run's own store if it has one.

    A DataError if the folder holds no run.
    """
    values, own = config_of(folder), folder / "store"
    config = from_dict(RunConfig, {name: values[name] for name in values if name != "identity"})
    if own.exists() or config.data.is_store:  # older versions let flags of raw files pass
        return replace(config, data=config.data.of_store(own if own.exists() else config.data.data))
    return config


def store_of(folder: Path) -> SequenceStore:
    """The sequences that the run in `folder` was trained on; a DataError if they are gone."""
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        return _open(config_in(folder).data)


def _open(config: DataConfig, report_dir: Path | None = None) -> SequenceStore:
    store = open_store(config, report_dir=report_dir)
    return shuffle_ties(store, config.split_seed) if config.tie_order == "shuffled" else store


def prepare(config: RunConfig, *, report_dir: Path | None = None) -> Prepared:
    """Open, split, audit, embed; prints what was found and what the leak audit checked."""
    if config.data.protocol == "keras-windows":
        config = keras_example(config)
        print("protocol keras-windows: the Keras example's window and features (LEAKY)")
    store = _open(config.data, report_dir)
    print(f"{len(store):,} ratings, {store.num_users:,} users, {store.num_items:,} items")
    split = split_interactions(store, protocol=config.data.protocol, ties=config.data.ties,
                               seed=config.data.split_seed)
    for line in audit_split(store, split):
        print(f"audit: {line}")
    text = None
    if config.model.text:
        text = embed_texts(texts_of(store, config.data), bert=config.data.bert,
                           pooling=config.data.pooling, cache_dir=config.data.cache)
        if config.data.text_source == "random":
            text = noise_like(text, seed=config.data.split_seed)
    batches = Batches(store, split, UserVocabulary.fit(store, split))
    prepared = Prepared(config, store, split, text, batches)
    for name, of in [*prepared.scale.values.items()][1:]:  # after the genres
        values = store.movies["features"].struct.field(name).explode().n_unique()
        print(f"item feature {name}: {len(of):,} of {values:,} values have {MIN_ITEMS} rated items")
    for name, (*_, is_log) in [*prepared.scale.scales.items()][1:]:  # after the year
        print(f"item feature {name}: a number{', by its logarithm' if is_log else ''}")
    return prepared


def texts_of(store: SequenceStore, config: DataConfig) -> list[str | None]:
    """What BERT reads for each item, by `DataConfig.text_source`."""
    if config.text_source == "title":
        return store.movies["title"].to_list()
    overviews = store.movies["overview"].to_numpy()
    if config.text_source == "shuffled":
        rows = np.flatnonzero(overviews)
        order = np.random.default_rng([config.split_seed, 91]).permutation(rows)
        overviews = overviews.copy()
        overviews[rows] = overviews[order]
    return overviews.tolist()


def use_device(config: TrainConfig) -> None:
    """Set threads and determinism of torch; a DataError if it does not see the device."""
    if config.threads:
        torch.set_num_threads(config.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # determinism on a GPU needs it
    torch.use_deterministic_algorithms(config.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and nothing reads it
    with one_line(f"--device {config.device}", "a device that this torch sees, cpu always works"):
        torch.zeros(1, device=config.device)


def run_training(
    config: RunConfig, out: Path, *, stop_requested: Callable[[], bool] = lambda: False
) -> list[dict] | None:
    """Prepare, train and compare: what `scripts/train.py` does, in each process of its group.

    The first process prepares alone, so that the others find its caches and nobody writes twice.
    Returns the rows of the results, in the first process alone; None when training was stopped.
    """
    use_device(config.train)
    with only_run_in(out):
        with first_goes_first(), tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(config, report_dir=out if rank() == 0 else Path(scratch))
        print(f"run folder: {out}")
        if not train_run(prepared, out, stop_requested=stop_requested):
            return None
        if (out / "results.json").exists():
            load_model(out)  # refuse the results of a damaged model
            print("this run is finished; its results:")
            return report.read_results(out / "results.json")
        rows = compare(prepared, out)
        if rank() == 0:
            report.write_results(rows, out / "results.json", write=write_sealed)
        return rows


@contextlib.contextmanager
def only_run_in(out: Path) -> Iterator[None]:
    """Lock the folder for all processes of this run; each raises the same FolderInUseError."""
    with contextlib.ExitStack() as stack:
        holder = 0
        try:
            if rank() == 0:
                stack.enter_context(folder_lock(out))
        except FolderInUseError as error:
            _, holder = error.args
        if holder := maximum(holder):
            raise FolderInUseError(out, holder)
        yield


def train_run(
    prepared: Prepared, out: Path, *, stop_requested: Callable[[], bool] = lambda: False
) -> bool:
    """Train in the folder `out`, or resume where an earlier run of the same config stopped.

    False when it was stopped before training was complete. A DataError if `out` holds a run
    of another config or of other data.
    """
    config, identity = prepared.config, _identity(prepared)
    if (out / "config.json").exists():
        _check_identity(out, config_of(out)["identity"], prepared)
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        described = {"identity": identity, **config.to_dict()}
        places = {name: place and str(Path(place).absolute())
                  for name, place in described["data"].items() if name in PLACES}
        described["data"] |= places  # so that the run can be used from any folder
        write_sealed(out / "config.json", json.dumps(described, indent=2).encode())
    model = build_model(config.model, prepared.batches, prepared.text, seed=config.train.seed,
                        scale=prepared.scale)
    is_done = fit(model, prepared.batches, config, out, info={"identity": identity},
                  stop_requested=stop_requested)
    if is_done and rank() == 0:
        keep_fitted(prepared, out)
    return is_done


def keep_fitted(prepared: Prepared, out: Path) -> None:
    """Write `Fitted`, which `bst.recommend` needs beside the model."""
    config, store, split = prepared.config.data, prepared.store, prepared.split
    movies = store.movies.select("item_id", "title", "year", "genres", "overview")
    movies = movies.with_columns(pl.col("overview").str.slice(0, OVERVIEW_CHARS),
                                 ratings=split.item_counts(store)[FIRST_IDX:])
    save_fitted(out, Fitted(
        FITTED_VERSION, _identity(prepared),
        {"protocol": config.protocol, "ties": split.ties, "seed": config.split_seed},
        {"bert": config.bert, "pooling": config.pooling, "text_source": config.text_source},
        list(genre_names(store.movies)),
        movies.to_dict(as_series=False),
        {"values": prepared.scale.values, "scales": prepared.scale.scales}))


def predict_run(
    prepared: Prepared, out: Path, part: Part, *, device: str | None = None
) -> np.ndarray:
    """Expected stars of the best model in `out`, NaN outside `part`, (n,); errors: `train_run`."""
    model, _, info = load_model(out)
    _check_identity(out, info["identity"], prepared)
    device = device or prepared.config.train.device
    return predict_part(model.to(device), prepared.batches, part, device=device)


def compare(
    prepared: Prepared, out: Path, *, part: Part = "test", device: str | None = None
) -> list[dict]:
    """Rows of the best model in `out` and of every baseline on `part`, failed ones last.

    The other processes of a group help to predict and get no rows. Errors: see `predict_run`.
    """
    config, store, split = prepared.config, prepared.store, prepared.split
    ours = predict_run(prepared, out, part, device=device)
    if rank() > 0:
        return []
    found, failed = predict_baselines(prepared)
    predictions = {"bst": ours, **found}
    rows = [
        report.evaluate(values, store, split, part, scorer=name, seed=config.train.seed,
                        config_hash=config.hash)
        for name, values in predictions.items()
    ]
    if found:
        target, rival = split.part(part), report.best_baseline(rows)["scorer"]
        stars = (report.on_scale(predictions[name], store, split, part) for name in ("bst", rival))
        rows[0]["paired"] = {"against": rival, **report.paired_difference(
            *([values] for values in stars), [store.rating[target]], [store.user_row[target]])}
    return [*rows, *({"scorer": name, "failed": why} for name, why in failed.items())]


def predict_baselines(prepared: Prepared) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Stars of each baseline of the config, each (n,), and why the others have none."""
    store, split, chosen = prepared.store, prepared.split, prepared.config.baselines
    held_out, size = np.concatenate([split.valid, split.test]), len(split.train)
    found, failed = {}, {}
    names = [name for name in BASELINES if not chosen or name in chosen]
    for name in tqdm(names, desc="baselines", unit="", leave=False, disable=None):
        if name in SLOW and not chosen and size > MANY:
            failed[name] = f"skipped: slow on {size:,} train ratings, unless --baselines names it"
            continue
        try:
            stars = BASELINES[name](store, split)
            if not np.isfinite(stars[held_out]).all():
                raise FloatingPointError("some predictions are not finite")
            found[name] = stars
        except Exception as error:  # a baseline that fails must not end the run
            failed[name] = f"failed: {' '.join(str(error).split()) or repr(error)}"
    return found, failed


def _identity(prepared: Prepared) -> dict[str, str]:
    return {"hash": prepared.config.hash, "data": prepared.store.digest}


def _check_identity(folder: Path, found: dict[str, str], prepared: Prepared) -> None:
    wanted = _identity(prepared)
    if found["hash"] != wanted["hash"]:
        differ = prepared.config.differences(config_of(folder)) or ["made by another version"]
        raise DataError(f"{folder} holds a run of another config: {', '.join(differ)}; give the "
                        "flags of that run, or another --run")
    if found != wanted:
        raise DataError(f"{folder} holds a run on other data, {found['data'][:8]}, this is "
                        f"{wanted['data'][:8]}; give the data of that run, or another --run")
