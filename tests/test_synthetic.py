"""The built-in data: bytes, shape and signal. Run: pytest tests/test_synthetic.py."""

import numpy as np
import pytest

from bst.data.formats import read_tables
from bst.data.sequences import build_sequences
from bst.data.splits import split_interactions
from scripts.support.synthetic import FILES, write_synthetic
from tests.conftest import contents

SIZE = dict(num_users=400, num_movies=200, num_ratings=24_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_synthetic(tmp_path_factory.mktemp("made"), **SIZE)
    tables = read_tables(folder, metadata=folder / "movies_metadata.csv")
    return folder, build_sequences(tables)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    again = write_synthetic(tmp_path / "again", **SIZE)
    other = write_synthetic(tmp_path / "other", seed=1, **SIZE)
    first, drawn = contents(made[0]), contents(other)
    assert first == contents(again)
    before = (again / "ratings.dat").stat().st_mtime_ns
    write_synthetic(again, **SIZE)  # done: left alone
    assert (again / "ratings.dat").stat().st_mtime_ns == before
    assert not any(first[name] == drawn[name] for name in FILES)


def test_it_has_the_shape_of_movielens(made):
    _, store = made
    count = np.diff(store.offsets)
    assert count.min() >= 20 and count.max() > 3 * np.median(count)
    same_user = np.diff(store.user_row) == 0
    tied = (np.diff(store.timestamp) == 0)[same_user].mean()
    assert 0.4 < tied < 0.65
    assert 3.3 < store.rating.mean() < 3.9 and set(np.unique(store.rating)) == {1, 2, 3, 4, 5}
    assert len(np.unique(store.item_idx)) < store.num_items
    assert 0.9 < store.movies["overview"].is_not_null().mean() < 1.0
    assert store.movies["title"].str.contains("É").any()
    split = split_interactions(store)
    known = np.isin(store.user_row[split.test], store.user_row[split.train])
    assert 0.05 < known.mean() < 0.95
