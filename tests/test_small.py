"""Data as small or as flat as they come, in each form of the network. Run: pytest -m slow."""

import itertools
import math
import re
import warnings
from typing import get_args

import pytest

from bst.config import DataConfig, ModelConfig, Protocol, RunConfig, TrainConfig
from bst.evaluation.report import format_table
from bst.recommend.recommender import Recommender
from bst.run import compare, prepare, train_run
from bst.utils.errors import DataError

CROWD = [(user, 5 * user * k % 31) for user in range(1, 13) for k in range(1, 9)]
SETS = {  # pairs of user and item in order of time; the stars, the time that all have
    "none": ([],), "one": ([(1, 1)],), "two": ([(1, 1), (2, 2)],),
    "five": ([(1, 1), (1, 2), (2, 1), (2, 3), (3, 2)],),
    "one user": ([(1, item) for item in range(40)],),
    "one item": ([(user, 1) for user in range(40)],),
    "equal stars": (CROWD, 4), "equal times": (CROWD, None, 10**9),
    "every user once": ([(user, user % 12) for user in range(60)],),
    "every pair once": ([(user, user) for user in range(60)],),
    "one user, equal stars": ([(1, item) for item in range(30)], 4)}
FORMS = [*itertools.product(("concat", "bucket"), (0, 1))]


@pytest.mark.parametrize(("name", "protocol", "forms"), [
    ("equal stars", "temporal", FORMS[1:2]), ("one user, equal stars", "leave-last-one", FORMS[:1]),
    *(pytest.param(*pair, FORMS, marks=pytest.mark.slow)
      for pair in itertools.product(SETS, get_args(Protocol)))])
def test_small_data_train_and_recommend_or_are_refused_in_one_line(
        tmp_path, name, protocol, forms):
    pairs, stars, when = (*SETS[name], None, None)[:3]
    (tmp_path / "mine.csv").write_text("user,item,rating,time\n" + "".join(
        f"{user},{item},{stars or 1 + (7 * k + k // 3) % 5},{when or 10**9 + 60 * k}\n"
        for k, (user, item) in enumerate(pairs)))
    for k, (dense, interest) in enumerate(forms):
        config = RunConfig(data=DataConfig(
            data=tmp_path / "mine.csv", protocol=protocol, cache=tmp_path / "cache"),
            model=ModelConfig(dense=dense, interest=interest),
            train=TrainConfig(steps=4, epochs=1))
        with warnings.catch_warnings(action="error"):
            try:
                prepared = prepare(config, report_dir=tmp_path)
            except DataError as error:
                assert re.search("expected|needs", str(error)) and "\n" not in str(error)
                continue
            assert train_run(prepared, tmp_path / str(k))
            rows = compare(prepared, tmp_path / str(k))
        assert not any("failed" in row for row in rows) and "nan" not in format_table(rows)
        assert not stars or rows[0]["mae"] < 1e-6
        recommender = Recommender.from_pretrained(tmp_path / str(k))
        ids = recommender.catalogue.ids
        for history in ([], [(ids[0], float(recommender.model.levels[0]))]):
            for by in recommender.ways:
                for item in recommender.recommend(history, 3, by=by, exclude_seen=False, reasons=1):
                    assert math.isfinite(item.stars) and 0 <= (item.chance or 0) <= 1
            assert math.isfinite(recommender.explain(history, ids[0]).stars)
