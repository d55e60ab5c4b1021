"""The words of a result: consistent with the numbers beside them, and the worst said first."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mercer.app.facts import never
from mercer.app.oof import Judged
from mercer.app.targets import Target
from mercer.app.verdict import against, promise, verdicts, warnings

EMPTY = np.empty(0)


def row(name, score, noise=0.0, folds=5, seed=0, ranks="r2", **more):
    each = score + noise * np.random.default_rng(seed).normal(size=folds)
    return {"name": name, "scores": {ranks: score, **more}, "error": noise, "each": list(enumerate(each.tolist()))}


def held(measured=0.9, rows=500, between=(0.88, 0.92), **more):
    return {"measured": measured, "rows": rows, "between": list(between), "size": "1 wide", **more}


SCORES = (-0.4, -0.004, 0.0, 0.0004, 0.009, 0.013, 0.022, 0.0235, 0.5, 0.97)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.02, 0.3])
@pytest.mark.parametrize("folds", [1, 2, 5])
def test_words_and_sizes_of_a_comparison_are_those_of_the_printed_scores(noise, folds):
    for (i, ours), (j, rival) in itertools.product(enumerate(SCORES), repeat=2):
        text = against(row("mercer", ours, noise, folds, i), row("linear", rival, noise, folds, 50 + j), "r2")
        gap = round(ours, 3) - round(rival, 3)
        assert ("ahead" in text) == (gap > 0.002) and ("behind" in text) == (gap < -0.002), (ours, rival, text)
        assert ("level" in text) == (abs(gap) <= 0.002)
        if "level" not in text:
            assert float(text.split()[0]) == pytest.approx(abs(gap), abs=5e-4)
            assert noise or folds == 1 or "chance" not in text
        assert folds > 1 or "chance" not in text


def test_chance_is_judged_on_pairs_of_folds():
    """Folds that are hard for both say nothing against a steady lead; a lead in one fold alone says little for it."""
    hard = np.array([0.9, 0.2, 0.5, 0.7, 0.1])
    ours, steady = row("mercer", 0.5), row("linear", 0.48)
    ours["each"], steady["each"] = list(enumerate(hard)), list(enumerate(hard - [0.02, 0.021, 0.019, 0.02, 0.02]))
    assert against(ours, steady, "r2") == "0.020 ahead of linear (0.480)"
    steady["each"] = list(enumerate(hard - [0.3, -0.1, -0.05, -0.03, -0.02]))
    assert against(ours, steady, "r2") == "0.020 ahead of linear (0.480), within chance"
    steady["each"] = [[3, 0.68], [1, 0.18]]  # folds that a yardstick had no time for are left out
    assert against(ours, steady, "r2") == "0.020 ahead of linear (0.480)"


def test_a_model_no_better_than_the_mean_is_announced():
    mean = row("mean", -0.01, 0.01, seed=1)
    for score in (-5.3, -0.01, 0.0, -0.005):
        assert warnings("regression", [row("mercer", score, 0.01), mean]) == [
            "It is no better than predicting the mean: do not use it as it is"
        ]
    assert "not clearly better" in warnings("regression", [row("mercer", 0.02, 0.2), mean])[0]
    assert warnings("regression", [row("mercer", 0.4, 0.02), mean]) == []
    assert warnings("regression", [row("mercer", 0.4, folds=1), row("mean", 0.0, folds=1)]) == []
    target = {"name": "y", "task": "regression", "ranks": "r2", "coverage": held()}
    board = [row("mercer", -0.165, 0.01), row("linear", -0.02), mean]
    (text,) = verdicts([target | {"leaderboard": board, "warnings": warnings("regression", board)}], 5)
    assert "no better than predicting the mean" in text and "behind linear" in text


def test_chances_that_are_worse_than_the_class_shares_are_announced():
    mean = row("mean", 0.5, ranks="accuracy", log_loss=0.6931)
    bad = row("mercer", 0.85, ranks="accuracy", log_loss=1.56)
    assert warnings("classification", [bad, mean]) == [
        "Its probabilities are worse than the class shares (log loss 1.56, shares 0.693): do not use them as chances"
    ]
    good = row("mercer", 0.85, ranks="accuracy", log_loss=0.4)
    assert warnings("classification", [good, mean]) == []
    assert "commonest class" in warnings("classification", [good, row("mean", 0.85, ranks="accuracy", log_loss=1.0)])[0]


def test_a_class_that_is_never_predicted_is_named():
    true, found = np.array([0, 0, 1, 2, 2, 2, 1]), np.array([0, 0, 0, 2, 2, 0, 2])
    target = Target("y", "classification", true, ["common", "rare", "other", "absent"], "text")
    gone = never(target, Judged(true, found, EMPTY, EMPTY, EMPTY, EMPTY))
    assert gone == [("rare", 2)]
    board = [row("mercer", 0.7, ranks="accuracy", log_loss=0.4), row("mean", 0.4, ranks="accuracy", log_loss=1.0)]
    assert "Never predicted: rare (2 rows)" in warnings("classification", board, gone)[0]


def test_sets_that_hold_more_say_why_and_few_rows_promise_nothing():
    assert "each class is promised 90 % by itself" in promise("classification", held(0.996))
    assert "by itself" not in promise("regression", held(0.996)) + promise("classification", held(0.905))
    assert promise("regression", held()) == "90 % bands held 90.0 % of 500 rows (chance range 88.0 to 92.0 %)"
    few = promise("regression", held(0.96, 25, (0.8, 0.99)))
    assert few == "too few rows to promise 90 %: bands held 96.0 % of 25 rows (chance range 80 to 99 %)"
    assert "too few rows" in promise("classification", held(1.0, 60, (0.94, 1.0), unsure=1.0))
    assert "too few rows" not in promise("classification", held(0.9, 600, unsure=0.02))


def test_chance_is_two_sided_and_of_as_many_degrees_as_folds_leave():
    """Five folds of mean 1.8 standard errors: beyond the 90 % point of one side (1.53), within that of both (2.13)."""
    gaps = np.array([1.0, -1.0, 0.5, -0.5, 0.0])
    gaps = gaps - gaps.mean() + 1.8 * gaps.std(ddof=1) / 5**0.5
    ours = {"scores": {"r2": 0.5}, "each": [[k, 0.1 * g] for k, g in enumerate(gaps)]}
    rival = {"scores": {"r2": 0.4}, "each": [[k, 0.0] for k in range(5)], "name": "linear"}
    assert against(ours | {"name": "mercer"}, rival, "r2").endswith(", within chance")
    wide = {**ours, "each": [[k, 0.1 * (g + 0.6)] for k, g in enumerate(gaps)]}
    assert not against(wide | {"name": "mercer"}, rival, "r2").endswith(", within chance")


def test_losses_that_are_printed_alike_are_not_called_worse():
    def board(loss):
        mean = {"name": "mean", "scores": {"log_loss": 1.609, "accuracy": 0.2}}
        return [{"name": "mercer", "scores": {"log_loss": loss, "accuracy": 0.3}}, mean]

    assert warnings("classification", board(1.6092)) == []
    assert "worse than the class shares" in warnings("classification", board(1.63))[0]
