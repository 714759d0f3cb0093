"""Data as small or as flat as they come, in each form of the network. Run: pytest -m slow."""

import itertools
import math
import random
import warnings

import pytest

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.evaluation.report import format_table
from bst.recommend.recommender import Recommender
from bst.run import compare, prepare, train_run
from bst.utils.errors import DataError

DRAW = random.Random(0)
CROWD = [(user, item) for user in range(12) for item in DRAW.sample(range(30), 8)]
SETS = {  # pairs of user and item in order of time; the stars that all have; one time for all
    "none": ([], 0, 0), "one": ([(1, 1)], 0, 0), "two": ([(1, 1), (2, 2)], 0, 0),
    "five": ([(1, 1), (1, 2), (2, 1), (2, 3), (3, 2)], 0, 0),
    "one user": ([(1, item) for item in range(40)], 0, 0),
    "one item": ([(user, 1) for user in range(40)], 0, 0),
    "equal stars": (CROWD, 4, 0), "equal times": (CROWD, 0, 1),
    "every user once": ([(user, user % 12) for user in range(60)], 0, 0),
    "every pair once": ([(user, user) for user in range(60)], 0, 0),
    "one user, equal stars": ([(1, item) for item in range(30)], 4, 0),
}
PROTOCOLS = ("temporal", "leave-last-one", "random", "cold-items", "keras-windows")
FORMS = [dict(zip(("dense", "loss", "interest"), form, strict=True)) for form in itertools.product(
    ("concat", "bucket"), ("mse", "ordinal"), (0.0, 0.1))]
CASES = [pytest.param(name, protocol, FORMS, marks=pytest.mark.slow)
         for name in SETS for protocol in PROTOCOLS]


@pytest.mark.parametrize(("name", "protocol", "forms"), [
    ("equal stars", "temporal", FORMS[1:2]),
    ("one user, equal stars", "leave-last-one", FORMS[:1]), *CASES])
def test_small_data_train_and_recommend_or_are_refused_in_one_line(
        tmp_path, name, protocol, forms):
    pairs, stars, one_time = SETS[name]
    (tmp_path / "mine.csv").write_text("user,item,rating,time\n" + "".join(
        f"{user},{item},{stars or 1 + (7 * k + k // 3) % 5},{10**9 + (not one_time) * 60 * k}\n"
        for k, (user, item) in enumerate(pairs)))
    for k, form in enumerate(forms):
        config = RunConfig(data=DataConfig(
            data=tmp_path / "mine.csv", protocol=protocol, cache=tmp_path / "cache"),
            model=ModelConfig(**form), train=TrainConfig(steps=4, epochs=1))
        out = tmp_path / str(k)
        with warnings.catch_warnings(action="error"):
            try:
                prepared = prepare(config, report_dir=out)
            except DataError as error:
                assert "expected" in str(error) and "\n" not in str(error)
                return
            assert train_run(prepared, out)
            rows = compare(prepared, out)
        assert not any("failed" in row for row in rows) and "nan" not in format_table(rows)
        assert not stars or rows[0]["mae"] < 1e-6
        recommender = Recommender.from_pretrained(out)
        ids = recommender.catalogue.ids
        for history, by in itertools.product(
                ([], [(ids[0], float(recommender.model.levels[0]))]), recommender.ways):
            for item in recommender.recommend(history, 3, by=by, exclude_seen=False, reasons=1):
                assert math.isfinite(item.stars) and 0 <= (item.chance or 0) <= 1
            assert math.isfinite(recommender.explain(history, ids[0]).stars)
