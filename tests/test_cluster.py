"""Ray does the same work. Run: pytest tests/test_cluster.py (-m slow, with Ray, for Ray itself)."""

import importlib.util
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from bst.data.sequences import COLUMNS
from scripts.support.cluster import build_part, join_parts
from tests.command import TINY, call

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None,
                               reason='needs pip install -e ".[ray]"')


@pytest.mark.parametrize("count", [1, 3, 50])
def test_sequences_of_partitions_join_to_the_bytes_of_one_build(tables, store, count):
    parts = [build_part(tables.users, tables.movies,
                        tables.ratings.filter(pl.col("user_id") % count == k))
             for k in reversed(range(count))]
    joined = join_parts(replace(tables, source={"a": "b"}), iter(parts))
    for name, dtype in COLUMNS.items():
        assert getattr(joined, name).dtype == dtype
        np.testing.assert_array_equal(getattr(joined, name), getattr(store, name))
    assert joined.digest == store.digest and joined.manifest == {"source": {"a": "b"}}


@needs_ray
@pytest.mark.slow
def test_ray_builds_the_files_of_the_local_store(raw, tmp_path):
    flags = ["--data", raw, "--metadata", raw / "movies_metadata.csv"]
    for engine in ("local", "ray"):
        call("make_sequences.py", *flags, "--out", tmp_path / engine, "--engine", engine)
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ray").iterdir())
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@needs_ray
@pytest.mark.slow
def test_one_worker_of_ray_trains_the_bits_of_a_plain_run_and_two_nearly(raw, tmp_path):
    flags = ["--data", raw, *TINY, "--epochs", "2"]
    call("train.py", *flags, "--out", tmp_path / "plain")
    call("train.py", *flags, "--out", tmp_path / "one", "--engine", "ray", "--workers", "1")
    said = call("train.py", *flags, "--out", tmp_path / "two", "--engine", "ray")
    assert "protocol temporal" in said.stdout
    one, plain = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "plain"))
    assert one == plain
    logs = [pl.read_ndjson(tmp_path / n / "metrics.jsonl") for n in ("plain", "two")]
    assert logs[1]["processes"].to_list() == [2, 2, 2]  # the first one is before training
    np.testing.assert_allclose(logs[1]["valid_mae"], logs[0]["valid_mae"], rtol=0.03)
