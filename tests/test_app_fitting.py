"""Folds, and what is said when a model is worth little."""

from __future__ import annotations

import numpy as np

from mercer.app.bands import measure_numbers
from mercer.app.columns import Column
from mercer.app.facts import _doubt, _warning
from mercer.app.fitting import repeated, split
from mercer.app.frame import Frame
from mercer.app.targets import Target


def table() -> tuple[Frame, np.ndarray]:
    a = np.array([1.0, 2.0, np.nan, 1.0, np.nan, 5.0, 1.0, 8.0])
    b = np.array(["x", "y", None, "x", None, "x", "z", "q"], dtype=object)
    return Frame([Column("a", "number", a), Column("b", "text", b)], 8), np.arange(8.0)


def test_rows_that_repeat_share_a_number_gaps_included():
    codes = repeated(table()[0])
    assert codes[0] == codes[3] and codes[2] == codes[4]
    assert len(np.unique(codes)) == 6


def test_twins_never_stand_on_both_sides_of_a_fold():
    random = np.random.default_rng(0)
    groups = random.integers(0, 40, size=200)
    number = Target("y", "regression", random.normal(size=200), [], "number")
    label = Target("c", "classification", random.integers(0, 2, size=200), ["no", "yes"], "text")
    for targets in ([number], [label]):
        parts = split(targets, 5, 0, groups)
        assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(200))
        for training, test in parts:
            assert not set(groups[training]) & set(groups[test])


def test_a_coverage_of_few_rows_says_how_sure_it_is():
    assert _doubt({"between": [0.75, 0.99], "rows": 25}) == " (25 rows: 75 % to 99 %)"
    assert _doubt({"between": [0.89, 0.91], "rows": 5000}) == ""


def test_a_model_no_better_than_the_mean_is_announced():
    board = [{"name": "mercer", "scores": {"r2": -5.3}}, {"name": "mean", "scores": {"r2": -0.01}}]
    assert "do not use" in _warning(board, "r2")
    assert _warning([{"name": "mercer", "scores": {"r2": 0.4}}, board[1]], "r2") == ""


def test_copies_calibrate_bands_once():
    """Four copies of each residual would look like a spread known exactly at every place."""
    random = np.random.default_rng(0)
    x, y, found = random.normal(size=(150, 3)), random.normal(size=(150, 1)), 0.01 * random.normal(size=(150, 1))
    folds = np.arange(150) % 5
    once, _ = measure_numbers(np.hstack([x, found]), y, found, folds, 0)
    again, (measured,) = measure_numbers(
        *(np.tile(a, (4, 1)) for a in (np.hstack([x, found]), y, found)), np.tile(folds, 4), 0
    )
    assert len(again.scores) == len(once.scores) == 150 and len(measured.inside) == 600
    new = random.normal(size=(500, 4))
    np.testing.assert_allclose(again.spread(new), once.spread(new))
