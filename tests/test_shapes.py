"""The generated sets of other shapes, and their table. Run: pytest tests/test_shapes.py."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bst.config import DataConfig, TrainConfig
from bst.data.preparation import open_store
from bst.data.splits import split_interactions
from scripts import shapes
from scripts.support.shapes_data import RatingsShape, write_ratings

SHAPE = RatingsShape(users=150, each=8, items=90, levels=(0.5, 5, 0.5), genres=True, stay=0.1)


def test_ratings_of_a_shape_are_those_that_it_names(tmp_path):
    store = open_store(DataConfig(data=write_ratings(tmp_path, SHAPE)))
    assert set(store.rating * 2) <= set(range(1, 11)) and len(np.unique(store.rating)) > 6
    assert store.num_users == 150 and 4 < len(store) / 150 < 12
    assert store.movies["genres"].list.len().min() == 1 and store.movies["year"].is_null().all()
    count = np.sort(np.bincount(store.item_idx))[::-1]
    assert count[:9].sum() > 0.3 * len(store)  # a tenth of the items: a long tail
    split = split_interactions(store)
    users, items = (~np.isin(key[split.test], key[split.train])
                    for key in (store.user_row, store.item_idx))
    assert users.mean() > 0.9 and 0 < items.mean() < 0.3
    again = write_ratings(tmp_path / "again", replace(SHAPE, genres=False)) / "ratings.csv"
    assert again.read_bytes() == (tmp_path / "ratings.csv").read_bytes()
    assert not (tmp_path / "again/movies.csv").exists()


def test_the_table_pairs_bst_with_the_best_baseline(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shapes, "SHAPES", {"small": SHAPE})
    monkeypatch.setattr("bst.config.TrainConfig", partial(TrainConfig, steps=20))
    shapes.main(seeds=1, json=tmp_path / "shapes.json")
    (row,) = json.loads((tmp_path / "shapes.json").read_text())
    others = {name: mae for name, mae in row["mae"].items() if name != "bst"}
    assert len(others) == 7 and row["best"] == min(others, key=others.get)
    assert row["difference"] == pytest.approx(row["mae"]["bst"] - others[row["best"]])
    assert row["low"] < row["difference"] < row["high"]
    assert f"| {row['best']} {others[row['best']]:.4f} |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_defaults_are_level_with_every_baseline_or_better_on_each_shape(name):
    """One default for all data: level with every baseline, or ahead."""
    row = shapes.row_of(name, shapes.SHAPES[name], 5)
    assert row["low"] <= 0, row
