"""Rows, slices, paired intervals, the table. Run: pytest tests/evaluation/test_report.py."""

import numpy as np
import pytest

from bst.evaluation import report
from bst.evaluation.metrics import user_bootstrap
from bst.evaluation.report import evaluate, format_table, paired_difference, slices
from bst.utils.files import write_sealed


def row(store, split, predictions, scorer="bst"):
    return evaluate(predictions, store, split, "test", scorer=scorer, seed=0, config_hash="ab")


def test_a_row_counts_only_its_part_and_comes_back_from_the_results_file(store, split, tmp_path):
    predictions = np.full(len(store), np.nan)
    predictions[split.test] = store.rating[split.test] + 0.25
    found = row(store, split, predictions)
    clipped = np.clip(predictions[split.test], 1, 5) - store.rating[split.test]
    assert found["mae"] == pytest.approx(np.abs(clipped).mean()) and found["n"] == len(split.test)
    assert found["mae_star"] == 0.0
    report.write_results([found], tmp_path / "results.json", write=write_sealed)
    assert report.read_results(tmp_path / "results.json") == [found]


def test_each_error_has_its_interval_over_users(store, split):
    score = np.clip(np.random.default_rng(1).normal(3, 1, len(store)), 1, 5)
    found = row(store, split, score)
    miss, user = (score - store.rating)[split.test], store.user_row[split.test]
    of_users = np.array([np.abs(miss[user == u]).mean() for u in np.unique(user)])
    errors = {"mae": (np.abs(miss), user), "rmse": (miss**2, user),
              "mae_star": (np.abs(np.rint(score[split.test]) - store.rating[split.test]), user),
              "user_macro_mae": (of_users, np.arange(len(of_users)))}
    for name, (values, of) in errors.items():
        expected = np.array([values.mean(), *user_bootstrap([values], [of], seed=0)])
        told = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
        assert told == pytest.approx(expected**0.5 if name == "rmse" else expected)
        assert told[1] < told[0] < told[2]


def test_slices_are_what_their_names_say(store, split):
    found = slices(store, split, split.test)
    lengths = split.history_stop[split.test] - store.offsets[store.user_row[split.test]]
    np.testing.assert_array_equal(found["history 6-20"], (lengths >= 6) & (lengths <= 20))
    sizes = [found[f"history {name}"].sum() for name in ("0", "1-5", "6-20", "21+")]
    assert sum(sizes) == len(split.test)
    np.testing.assert_array_equal(found["cold user"], ~found["warm user"])
    sex = store.users["sex"].to_numpy()[store.user_row[split.test]]
    np.testing.assert_array_equal(found["sex F"], sex == "F")


def test_the_paired_difference_is_ours_minus_theirs_over_all_runs(store, split):
    label, user = store.rating[split.test], store.user_row[split.test]
    theirs = np.full(len(label), 3.0)
    found = paired_difference([label, label + 1], [theirs] * 2, [label] * 2, [user] * 2)
    errors = np.abs(3 - label.astype(float))
    assert found["mae"] == pytest.approx(0.5 - errors.mean())
    assert found["mse"] == pytest.approx(0.5 - (errors**2).mean())
    runs = [-errors, 1 - errors], [user] * 2
    assert (found["mae_low"], found["mae_high"]) == user_bootstrap(*runs, seed=0)


def test_the_table_says_leaky_beside_every_number_of_a_leaky_protocol(store, split):
    rows = [row(store, split, np.full(len(store), 3.0)),
            row(store, split, np.full(len(store), 2.5), "global mean")]
    assert "LEAKY" not in format_table(rows)
    leaky = [{**r, "protocol": "keras-windows"} for r in rows]
    assert sum("LEAKY" in line for line in format_table(leaky).splitlines()) == 3
    assert report.best_baseline(rows)["scorer"] == "global mean"
