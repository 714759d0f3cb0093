"""Ranges, hashes and presets. Run: pytest tests/test_config.py."""

from dataclasses import replace

import pytest

from bst.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    keras_example,
)


@pytest.mark.parametrize(("cls", "values", "message"), [
    (ModelConfig, {"width": 10, "heads": 4}, "got width 10 and heads 4"),
    (ModelConfig, {"layers": 5}, r"layers must be in 0\.\.4, got 5"),
    (ModelConfig, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    (ModelConfig, {"item_dropout": -0.1}, r"item_dropout must be in \[0, 1\), got -0.1"),
    (ModelConfig, {"cold": 1.0}, r"cold must be in \[0, 1\), got 1.0"),
    (ModelConfig, {"layers": 0, "readout": "flatten"}, "needs a transformer layer"),
    (ModelConfig, {"readout": "mean"}, "got layers 1, expected layers 0"),
    (ModelConfig, {"buckets": 1}, r"buckets must be in 2\.\.256, got 1"),
    (TrainConfig, {"lr": 0.0}, r"lr must be in \(0, 1\), got 0.0"),
    (TrainConfig, {"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
    (TrainConfig, {"epochs": 0}, r"epochs must be in 1\.\.1000, got 0"),
])
def test_a_value_out_of_range_is_refused_and_named(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_the_hash_changes_with_what_changes_results_and_with_nothing_else():
    base = RunConfig()
    other = [replace(base, model=ModelConfig(width=32)), replace(base, train=TrainConfig(seed=1)),
             replace(base, data=DataConfig(protocol="random"))]
    assert len({base.hash, *(c.hash for c in other)}) == 4
    assert replace(base, train=TrainConfig(threads=2)).hash == base.hash


def test_a_config_comes_back_from_its_json():
    config = ModelConfig(width=32, hidden=(9, 8, 7))
    values = RunConfig(model=config).to_dict()["model"]
    assert from_dict(ModelConfig, values) == config


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match=r"ModelConfig has no field \['widht'\]"):
        from_dict(ModelConfig, {"widht": 3})


def test_the_keras_preset_has_the_window_and_the_features_of_the_example():
    config = keras_example(RunConfig(data=DataConfig(protocol="keras-windows")))
    assert (config.model.history_len, config.model.readout) == (3, "flatten")
    assert (config.model.text, config.model.dense, config.model.user_id) == (False, "none", True)
    assert config.data.ties == "stable"
