"""The same work on a Ray cluster, or on a local Ray: what `--engine ray` does.

Ray is an extra (`pip install -e ".[ray]"`) and is imported only here. Every machine sees the same
files under the same paths: the data, the cache and the run folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from bst.config import DataConfig, RunConfig
from bst.data.preparation import open_store
from bst.data.schema import Tables
from bst.data.sequences import COLUMNS, SequenceStore, build_sequences, save_store
from bst.evaluation.report import read_results
from bst.run import run_training
from bst.training.distributed import PATIENCE, process_group
from bst.utils.errors import DataError
from bst.utils.guard import folder_lock

ROOT = Path(__file__).resolve().parents[2]  # workers import bst from here
RESTARTS = 3  # of all workers after one was lost; they go on from the resume point
PARTS_PER_CPU = 4  # partitions of users: small tasks even out
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
         "RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}  # calls nobody


@contextmanager
def _ray() -> Iterator:
    """The module, connected to the cluster that RAY_ADDRESS names, or to a Ray started here.

    Raises:
        DataError: Ray is not installed.
    """
    os.environ |= QUIET
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DataError('--engine ray needs Ray: pip install -e ".[ray]"') from error
    local = {} if "RAY_ADDRESS" in os.environ else {"_node_ip_address": "127.0.0.1"}
    ray.init(logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), **QUIET}},
             **local)
    try:
        yield ray
    finally:
        ray.shutdown()


def make_store_on_ray(config: DataConfig, folder: Path) -> SequenceStore:
    """What `make_store` does, but the files are read here whole and the sequences made by Ray."""
    with folder_lock(folder):
        store = open_store(config, report_dir=folder, build=build_on_ray)
        save_store(store, folder)
        return store


def build_on_ray(tables: Tables) -> SequenceStore:
    """What `build_sequences` does, as one task of Ray for each hash partition of the users.

    The store has the same bytes, whatever the number of partitions: a user's ratings stay together
    and in file order, so each partition holds finished sequences.
    """
    with _ray() as ray:
        count = PARTS_PER_CPU * int(ray.cluster_resources()["CPU"])
        task = ray.remote(num_cpus=1)(build_part)
        users, movies = ray.put(tables.users), ray.put(tables.movies)
        part = tables.ratings["user_id"].hash() % count
        parts = [task.remote(users, movies, tables.ratings.filter(part == k))
                 for k in range(count)]
        return join_parts(tables, (ray.get(part) for part in parts))


def build_part(users: pl.DataFrame, movies: pl.DataFrame, ratings: pl.DataFrame) -> dict:
    """Columns of the store of some users' ratings; rows and indices are those of whole tables."""
    store = build_sequences(Tables(users, movies, ratings))
    return {name: getattr(store, name) for name in COLUMNS}


def join_parts(tables: Tables, parts: Iterator[dict]) -> SequenceStore:
    """The store of all users from those of disjoint sets of users, each user in its place."""
    parts = list(parts)
    counts = sum(np.diff(part["offsets"]) for part in parts)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns = {name: np.empty(offsets[-1], dtype) for name, dtype in COLUMNS.items()
               if name != "offsets"}
    for part in parts:
        begin = part["offsets"]
        moved = np.repeat(offsets[:-1] - begin[:-1], np.diff(begin))
        for name, values in columns.items():
            values[moved + np.arange(len(moved))] = part[name]
    return SequenceStore(**columns, offsets=offsets, users=tables.users, movies=tables.movies,
                         manifest={"source": tables.source})


def train_on_ray(config: RunConfig, out: Path, *, workers: int) -> list[dict]:
    """What `run_training` does, in `workers` processes of Ray that train one model.

    Args:
        config: of the run.
        out: run folder.
        workers: processes, each with one CPU, or one GPU where the device is cuda.

    Returns:
        The rows of the results.

    Raises:
        DataError: Ray is not installed, or the workers failed; names the last failure.
    """
    with _ray():
        from ray import train
        from ray.train.torch import TorchConfig, TorchTrainer

        on_gpu = config.train.device == "cuda"
        trainer = TorchTrainer(
            work, train_loop_config={"config": config, "out": out.resolve(), "folder": Path.cwd()},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                                     timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=on_gpu),
            run_config=train.RunConfig(
                name=config.name, storage_path=str((out / "ray").resolve()),
                failure_config=train.FailureConfig(max_failures=RESTARTS)),
        )
        try:
            trainer.fit()
        except train.TrainingFailedError as error:
            line = str(error).strip().splitlines()[-1]
            raise DataError(f"--engine ray: the workers failed ({line}); the same command goes on "
                            "from the last resume point") from error
    return read_results(out / "results.json")


def work(job: dict) -> None:
    """What each process of `train_on_ray` does."""
    os.chdir(job["folder"])
    with process_group(job["config"].train.device):
        run_training(job["config"], job["out"])
