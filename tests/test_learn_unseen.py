"""Rows judged by fits that learned nothing from them: intervals and probabilities of tables with many columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng as rng
from sklearn.metrics import log_loss

from mercer.errors import DataError
from mercer.kernels import Gaussian
from mercer.learn import GaussianProcessRegressor, KernelClassifier, KernelRidge
from mercer.learn.calibrate import Calibration
from mercer.learn.unseen import FOLDS, flattered, spread


def wide(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One column of many matters: n rows to learn from, 1000 to judge by."""
    random = rng(seed)
    x = random.normal(size=(n + 1000, d))
    y = x[:, 0] + 0.5 * random.normal(size=n + 1000)
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("learner", [KernelRidge, GaussianProcessRegressor])
def test_intervals_hold_where_columns_are_many(learner: Any) -> None:
    held = []
    for seed in range(3):
        x, y, new, truth = wide(70, 200, seed)
        low, high = learner(random_state=0).fit(x, y).predict_interval(new)
        held.append(((low <= truth) & (truth <= high)).mean())
    assert 0.85 < np.mean(held) < 0.97, held  # 0.4 to 0.7 by the closed form


def test_probabilities_are_modest_where_columns_are_many() -> None:
    for seed in range(2):
        x, y, new, truth = wide(70, 300, seed)
        model = KernelClassifier(random_state=0).fit(x, y > 0)
        assert log_loss(truth > 0, model.predict_proba(new)) < 0.72  # a coin has 0.69, the closed form 0.9 and more


def test_no_fit_that_judges_a_row_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, _ = wide(60, 12, 0)
    x = np.vstack([x, x[:20]])
    y = np.concatenate([y, y[:20]])  # twins
    seen: list[np.ndarray] = []
    fit = KernelRidge._fit

    def spy(self: Any, table: np.ndarray, target: np.ndarray) -> Any:
        seen.append(table)
        return fit(self, table, target)

    monkeypatch.setattr(KernelRidge, "_fit", spy)
    KernelRidge(random_state=0, time_budget=2.0).fit(x, y)
    assert [len(seen[0]), len(seen)] == [80, 1 + FOLDS]
    for part in seen[1:]:
        out = {row.tobytes() for row in x} - {row.tobytes() for row in part}
        assert len(out) + len({row.tobytes() for row in part}) == 60  # a row and its twin are on one side
        assert len(out) >= 60 // FOLDS - 1
    seen.clear()
    KernelRidge(Gaussian(3.0), learn=False).fit(x, y)
    KernelRidge(Gaussian(3.0)).fit(x, y)  # one lengthscale for eighty rows is not flattered
    assert [len(part) for part in seen] == [80, 80]


def test_folds_spread_classes_and_keep_places_together() -> None:
    codes = np.repeat([0, 0, 0, 1], 25)
    fold = spread(codes, 5, torch.Generator().manual_seed(0))
    assert all(np.bincount(codes[fold == k]).tolist() == [15, 5] for k in range(5))
    place = np.arange(100) % 30
    together = spread(codes[place], 4, torch.Generator().manual_seed(1), place)
    assert all(len(set(together[place == p])) == 1 for p in range(30)) and set(together) == {0, 1, 2, 3}
    assert np.bincount(together[:30]).tolist() == [8, 8, 7, 7]
    assert flattered(100, 10) and not flattered(200, 10) and not flattered(19, 100) and not flattered(40, 0)


def test_one_calibration_after_another() -> None:
    scores, first = rng(0).normal(size=(50, 3)), Calibration(2.0, np.array([0.1, -0.2, 0.1]))
    second = Calibration(0.3, np.array([1.0, 0.0, -1.0]))
    np.testing.assert_allclose(first.then(second)(scores), second(first.logits(scores)), rtol=1e-12)


def test_interrupted_judging_keeps_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, new, _ = wide(60, 30, 0)
    fit, calls = KernelRidge._fit, []

    def stop(self: Any, table: np.ndarray, target: np.ndarray) -> Any:
        calls.append(len(table))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return fit(self, table, target)

    monkeypatch.setattr(KernelRidge, "_fit", stop)
    model = KernelRidge(random_state=0).fit(x, y)
    assert calls == [60, 48, 48] and np.isfinite(model.predict_interval(new)[0]).all()


def test_what_is_no_coverage_and_no_label_is_named() -> None:
    x, y, _, _ = wide(30, 2, 0)
    model = KernelRidge(Gaussian(1.0), learn=False).fit(x, y)
    for coverage in ("a", None, 1.0, float("nan")):
        with pytest.raises(ValueError, match="coverage is .*between 0 and 1"):
            model.predict_interval(x, coverage=coverage)
    with pytest.raises(DataError, match="no label at row 1 .None"):
        KernelClassifier().fit(x, np.array(["a", None, "b"] * 10, dtype=object))
