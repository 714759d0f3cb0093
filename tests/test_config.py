"""Ranges, hashes and presets. Run: pytest tests/test_config.py."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest

from bst.config import Baseline, DataConfig, ModelConfig, RunConfig, TrainConfig, from_dict
from bst.data.formats import MOVIELENS, read_tables
from bst.data.splits import Split, split_interactions
from bst.data.text import embed_texts, pool
from bst.evaluation.baselines import BASELINES, SLOW
from bst.evaluation.report import evaluate
from bst.utils.errors import OptionError
from tests.command import ROOT
from tests.raw_formats import WRITERS

FIELDS = [(cls, f) for cls in (DataConfig, ModelConfig, TrainConfig) for f in fields(cls)]
NAMED = [(cls, f) for cls, f in FIELDS if get_origin(f.type) is Literal or f.type is bool]
BOUNDED = [(cls, f) for cls, f in FIELDS if f.metadata["within"]]


@pytest.mark.parametrize(("cls", "field"), BOUNDED)
def test_a_number_out_of_range_is_refused_and_its_flag_named(cls, field):
    """Beside each end, a float that is whole, text, no number, and a tuple of another length."""
    within, size = field.metadata["within"], len(get_args(field.type)) and len(field.default)
    low, high = map(float, within[1:-1].split(","))
    kind = int if int in (field.type, *get_args(field.type)) else float
    wrong = [kind(low) if within[0] == "(" else kind(low - 1), kind(-1e6),
             kind(high) if within[-1] == ")" else kind(high + 1), "3", None, math.nan, 1.5 * high]
    for value in wrong:
        for given in [(value,) * size, (*field.default[1:], value)] if size else [value]:
            with pytest.raises(OptionError) as told:
                cls(**{field.name: given})
            assert str(told.value).startswith(f"{field.name.replace('_', '-')} must be ")
            assert f" in {within}" in str(told.value) and str(told.value).endswith(f"{given!r}")
    if kind is int and not size:
        with pytest.raises(OptionError, match="whole, got 8.0"):
            cls(**{field.name: 8.0})


@pytest.mark.parametrize(("values", "message"), [
    ({"width": 10, "heads": 4}, "got width 10 and heads 4"), ({"hidden": (8, 8)}, "be 3 numbers"),
    ({"hidden": [8, 8, 8]}, "hidden must be 3 numbers"), ({"widths": 16}, "widths must be numbers"),
    ({"widths": (4, 4)}, "got widths 2, drift 3, forgets 3, key_var 3"),
    ({"widths": (), "drift": (), "forgets": (), "key_var": ()}, "got widths 0, ")])
def test_values_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(OptionError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(("cls", "field"), NAMED)
def test_a_name_that_is_no_option_is_refused_in_python_too(cls, field):
    known = (True, False) if field.type is bool else get_args(field.type)
    for wrong in ("Nine", None, ""):
        with pytest.raises(OptionError) as told:
            cls(**{field.name: wrong})
        assert str(told.value) == (f"{field.name.replace('_', '-')} must be one of "
                                   f"{', '.join(map(repr, known))}, got {wrong!r}")
    for name in known:
        assert getattr(cls(**{field.name: name}), field.name) == name


SPLIT = Split("temporal", "strict", *[np.arange(3)] * 5)


@pytest.mark.parametrize(("call", "name"), [
    (lambda: split_interactions(None, protocol="leave_last_one"), "protocol"),
    (lambda: split_interactions(None, ties="Strict"), "ties"),
    (lambda: SPLIT.part("tset"), "part"),
    (lambda: evaluate(None, None, SPLIT, "Test", scorer="", seed=0, config_hash=""), "part"),
    (lambda: embed_texts(["a"], pooling="max", cache_dir=None), "pooling"),
    (lambda: pool((), None, "lst"), "pooling"),
    (lambda: read_tables(None, on_bad="quarantaine"), "on-bad"),
    (lambda: read_tables(None, format="ml-2m"), "format"),
    (lambda: RunConfig(baselines=("item mean", "knn")), "baselines")])
def test_a_function_that_takes_a_name_refuses_one_it_does_not_know(call, name):
    with pytest.raises(OptionError, match=f"^{name} must be one of '"):
        call()


def test_a_name_of_a_config_has_its_code_its_test_and_its_line_in_the_pages():
    assert get_args(Baseline) == ("none", *BASELINES) and set(SLOW) < set(BASELINES)
    names = {f.name: get_args(f.type) for _, f in NAMED}
    assert names["format"] == ("auto", *MOVIELENS, "table") == ("auto", *WRITERS)
    for page, said in (("README.md", names["protocol"]), ("data/README.md", names["format"][1:])):
        assert {*said} <= {*re.findall(r"(?m)^\| `([\w-]+)`", (ROOT / page).read_text())}, page


def test_the_hash_changes_with_what_changes_results_and_with_nothing_else():
    base = RunConfig()
    other = [{"model": ModelConfig(width=64)}, {"train": TrainConfig(seed=1)},
             {"data": DataConfig(protocol="random")}]
    assert len({base.hash, *(replace(base, **changes).hash for changes in other)}) == 4
    assert replace(base, train=TrainConfig(threads=2), baselines=("none",)).hash == base.hash


def test_a_config_comes_back_from_its_json_and_another_is_told_by_its_flags():
    config = RunConfig(
        data=DataConfig(data=Path("a/b"), tie_order="shuffled"), train=TrainConfig(seed=3),
        model=ModelConfig(width=64, hidden=(9, 8, 7), widths=(5,), drift=(0.1,), forgets=(0.2,),
                          key_var=(0.3,)), baselines=("item mean", "item kNN"))
    written = json.loads(json.dumps(config.to_dict()))
    assert from_dict(RunConfig, written) == config and config.differences(written) == []
    other = replace(config, data=DataConfig(bert="x"), train=TrainConfig(threads=3))
    assert other.differences(written) == [
        "--tie-order was shuffled, is file", "--bert was None, is x", "--seed was 3, is 0"]
    with pytest.raises(OptionError, match=r"ModelConfig has no field \['widht'\]"):
        from_dict(RunConfig, {"model": {"widht": 3}})
