"""Ranges, hashes and presets. Run: pytest tests/test_config.py."""

from dataclasses import fields, replace
from typing import Literal, get_args, get_origin

import pytest

from bst.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    keras_example,
)
from bst.data.formats import layout_of
from bst.data.raw import BadRows
from bst.data.splits import split_interactions
from bst.data.text import embed_texts

NAMED = [(cls, f) for cls in (DataConfig, ModelConfig, TrainConfig) for f in fields(cls)
         if get_origin(f.type) is Literal]


@pytest.mark.parametrize(("cls", "values", "message"), [
    (ModelConfig, {"width": 10, "heads": 4}, "got width 10 and heads 4"),
    (ModelConfig, {"width": 0}, "got width 0 and heads 2"),
    (ModelConfig, {"widths": (4, 4)}, "got widths 2, drift 3, forgets 3, key_var 3"),
    (ModelConfig, {"widths": (), "drift": (), "forgets": (), "key_var": ()}, "got widths 0, "),
    (ModelConfig, {"widths": (16, 0, 16)}, r"must be above 0, got \(16, 0, 16\), "),
    (ModelConfig, {"drift": (0.1, 0.0, 0.1)}, r"must be above 0, .* \(0.1, 0.0, 0.1\)"),
    (ModelConfig, {"forgets": (0.1, 0.1, -1.0)}, r"must be above 0, .* \(0.1, 0.1, -1.0\)"),
    (ModelConfig, {"key_var": (0.0, 0.1, 0.1)}, r"must be above 0, .* \(0.0, 0.1, 0.1\)"),
    (ModelConfig, {"history_len": 0}, r"history-len must be in 1\.\.4096, got 0"),
    (ModelConfig, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    (ModelConfig, {"item_dropout": -0.1}, r"item_dropout must be in \[0, 1\), got -0.1"),
    (ModelConfig, {"interest": -0.1}, r"interest must be in \[0, 100\], got -0.1"),
    (ModelConfig, {"interest": 0.1, "attention": "regression"},
     "interest needs softmax heads .* got attention regression and readout target"),
    (ModelConfig, {"interest": 0.1, "readout": "flatten"}, "attention both and readout flatten"),
    (ModelConfig, {"buckets": 1}, r"buckets must be in 2\.\.256, got 1"),
    (TrainConfig, {"lr": 0.0}, r"lr must be in \(0, 1\), got 0.0"),
    (TrainConfig, {"lr_dense": 1.0}, r"lr_dense must be in \(0, 1\), got 1.0"),
    (TrainConfig, {"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
    (TrainConfig, {"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
    (TrainConfig, {"steps": 0}, r"steps must be in 1\.\.1000000000, got 0"),
    (TrainConfig, {"patience": 0.0}, r"patience must be in \(0, 1\], got 0.0"),
    (TrainConfig, {"patience": 1.5}, r"patience must be in \(0, 1\], got 1.5"),
    (TrainConfig, {"batch_size": 0}, r"batch-size must be in 1\.\.10000000, got 0"),
    (TrainConfig, {"epochs": 0}, r"epochs must be in 1\.\.1000, got 0"),
])
def test_a_value_out_of_range_is_refused_and_named(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


@pytest.mark.parametrize(("cls", "field"), NAMED)
def test_a_name_that_is_no_option_is_refused_in_python_too(cls, field):
    options = ", ".join(map(repr, get_args(field.type)))
    for wrong in ("Nine", None, ""):
        with pytest.raises(ValueError) as told:
            cls(**{field.name: wrong})
        assert str(told.value) == f"{field.name} must be one of {options}, got {wrong!r}"
    for name in get_args(field.type):
        assert getattr(cls(**{field.name: name}), field.name) == name


@pytest.mark.parametrize(("call", "name"), [
    (lambda: split_interactions(None, protocol="tempral"), "protocol"),
    (lambda: split_interactions(None, ties="strikt"), "ties"),
    (lambda: embed_texts(["a"], pooling="max", cache_dir=None), "pooling"),
    (lambda: embed_texts(["a"], precision="fp64", cache_dir=None), "precision"),
    (lambda: BadRows("quarantaine"), "on_bad"), (lambda: layout_of(None, "ml-2m"), "format")])
def test_a_function_that_takes_a_name_refuses_one_it_does_not_know(call, name):
    with pytest.raises(ValueError, match=f"^{name} must be one of '"):
        call()


def test_the_hash_changes_with_what_changes_results_and_with_nothing_else():
    base = RunConfig()
    other = [replace(base, model=ModelConfig(width=64)), replace(base, train=TrainConfig(seed=1)),
             replace(base, data=DataConfig(protocol="random"))]
    assert len({base.hash, *(c.hash for c in other)}) == 4
    assert replace(base, train=TrainConfig(threads=2)).hash == base.hash


def test_a_config_comes_back_from_its_json():
    config = ModelConfig(width=64, hidden=(9, 8, 7), widths=(5,), drift=(0.1,), forgets=(0.2,),
                         key_var=(0.3,))
    values = RunConfig(model=config).to_dict()["model"]
    assert from_dict(ModelConfig, values) == config


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match=r"ModelConfig has no field \['widht'\]"):
        from_dict(ModelConfig, {"widht": 3})


def test_the_keras_preset_has_the_window_and_the_features_of_the_example():
    config = keras_example(RunConfig(data=DataConfig(protocol="keras-windows")))
    assert (config.model.history_len, config.model.readout) == (3, "flatten")
    assert (config.model.attention, config.model.text, config.model.dense,
            config.model.user_id) == ("softmax", False, "none", True)
    assert config.data.ties == "stable"
