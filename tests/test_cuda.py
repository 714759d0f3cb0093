"""Training, resuming and scoring on a GPU. Run where there is one: pytest -m cuda."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bst.data.text import TextVectors
from bst.run import Prepared, predict_run, train_run, use_device
from tests.conftest import RUN, plain_batches

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def prepared(store, split, text: TextVectors) -> Prepared:
    """A small run on the GPU, deterministic."""
    config = replace(RUN, train=replace(RUN.train, device="cuda"))
    use_device(config.train)
    return Prepared(config, store, split, text, plain_batches(store, split))


def test_a_run_that_was_cut_ends_with_the_bits_of_one_that_was_not(prepared, tmp_path):
    assert train_run(prepared, tmp_path / "whole")
    steps = iter([False] * 5 + [True])
    assert not train_run(prepared, tmp_path / "cut", stop_requested=lambda: next(steps))
    assert train_run(prepared, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_the_gpu_scores_as_the_cpu_does(prepared, tmp_path):
    assert train_run(prepared, tmp_path)
    ours, cpu = (predict_run(prepared, tmp_path, "test", device=device)
                 for device in ("cuda", "cpu"))
    np.testing.assert_allclose(ours[prepared.split.test], cpu[prepared.split.test], atol=1e-3)
