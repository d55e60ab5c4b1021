"""Classes: log odds by kernel logistic regression, sets that hold rare classes, scores that do not flatter."""

from __future__ import annotations

import json

import numpy as np
import torch
from numpy.random import default_rng as rng
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict

from mercer.app import bands, scores
from mercer.app.facts import coverage
from mercer.app.targets import Target
from mercer.kernels import Gaussian
from mercer.learn import KernelClassifier, logistic
from mercer.learn.tune import Clock


def blobs(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds of one width: their log odds are exactly linear, so logistic regression is the best there is."""
    centres, random = rng(0).normal(size=(classes, 4)) * 1.3, rng(seed)
    codes = random.integers(0, classes, rows)
    return centres[codes] + random.normal(size=(rows, 4)), codes


def test_log_loss_of_many_classes_is_that_of_the_true_model() -> None:
    x, y = blobs(500, 20, 1)
    z, truth = blobs(3000, 20, 2)
    model = KernelClassifier(random_state=0).fit(x, y)
    line = log_loss(truth, LogisticRegression(max_iter=500).fit(x, y).predict_proba(z))
    assert log_loss(truth, model.predict_proba(z)) < 1.03 * line
    squares = KernelClassifier(model.kernel_, 0.3, random_state=0).fit(x, y)  # a given alpha stays least squares
    assert squares.alpha_ == 0.3 and "logistic" not in squares.plan_.sentence
    assert log_loss(truth, squares.predict_proba(z)) > 1.03 * log_loss(truth, model.predict_proba(z))
    values, arrays = model.get_state()
    again = KernelClassifier.from_state(json.loads(json.dumps(values)), arrays)
    np.testing.assert_allclose(again.predict_proba(z), model.predict_proba(z), rtol=1e-12)


def test_two_classes_have_one_log_odds() -> None:
    random = rng(3)
    x = random.normal(size=(1400, 3))
    y = (random.random(1400) < 1 / (1 + np.exp(4 - 2.5 * x[:, 0]))).astype(int)
    model = KernelClassifier(Gaussian(3.0), random_state=0, standardize=False).fit(x[:400], y[:400])
    model._by_log_loss(torch.from_numpy(x[:400]), y[:400], np.inf, Clock.of(None))
    assert "logistic" in model.plan_.sentence and model._weights.shape[1] == 1
    line = LogisticRegression().fit(x[:400], y[:400]).predict_proba(x[400:])
    assert log_loss(y[400:], model.predict_proba(x[400:])) < 1.1 * log_loss(y[400:], line)


def test_solve_is_penalised_multinomial_regression() -> None:
    x, y = blobs(300, 3, 4)
    found = logistic.solve(x.astype(np.float32), y, 3, 2.0, np.zeros((5, 3)), 500)
    other = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(found[:4].T, other.coef_, atol=5e-3)
    bias = found[4] - found[4].mean()
    np.testing.assert_allclose(bias, other.intercept_ - other.intercept_.mean(), atol=2e-2)


def test_log_odds_are_kept_only_where_they_win() -> None:
    x, y = blobs(200, 3, 5)
    generator = torch.Generator().manual_seed(0)
    points, kernel = torch.from_numpy(x), Gaussian(2.0)
    found = logistic.fit(kernel, points, y, 2.0, Clock.of(None), generator)
    assert found is not None and found.loss < 1.0
    assert logistic.fit(kernel, points, y, found.loss, Clock.of(None), generator) is None
    assert logistic.fit(kernel, points, y, 0.01, Clock.of(None), generator) is None
    assert found.weights.shape == (200, 3) and found.noise > 0


def imbalanced(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(true chances, codes): three rows in a hundred are of class 1."""
    random = rng(seed)
    rare = 1 / (1 + np.exp(5 - 2 * random.normal(size=rows)))
    return np.stack([1 - rare, rare], 1), (random.random(rows) < rare).astype(int)


def test_sets_cover_each_class_and_say_which_they_cover_least() -> None:
    chances, codes = imbalanced(4000, 0)
    new, truth = imbalanced(20_000, 1)
    held = bands.ClassSets.fit(chances, codes).members(new)[np.arange(20_000), truth]
    rows, seen = (codes == 1).sum(), (truth == 1).sum()
    assert abs(held[truth == 1].mean() - 0.9) < 4 * np.sqrt(0.09 * (1 / rows + 1 / seen)) and held.mean() > 0.9
    own = np.sort(chances[np.arange(4000), codes])
    pooled = new >= own[4000 - bands.conformal_rank(4000, 0.9)]
    assert pooled[np.arange(20_000), truth][truth == 1].mean() < 0.5  # one threshold for all forgets the rare
    _, (done,) = bands.measure_classes(codes, chances, np.arange(4000) % 5, 0)
    code, share, n = done.least
    assert (code, n) == (1, rows) and share == done.inside[codes == 1].mean()


def test_a_class_of_few_rows_is_covered_too_and_named() -> None:
    """With the threshold of all rows, fresh rows of a class with 17 judged ones were held 13 times in a hundred."""
    held = []
    for seed in range(200):
        chances, codes = imbalanced(2000, seed)
        rows = np.r_[np.flatnonzero(codes == 1)[:17], np.flatnonzero(codes == 0)]
        new, truth = imbalanced(2000, 1000 + seed)
        sets = bands.ClassSets.fit(chances[rows], codes[rows]).members(new)
        held.append(sets[truth == 1, 1].mean())
    assert 0.9 < np.mean(held) < 0.98  # 17 of 18 by exchangeability
    for n, always in ((8, True), (9, False)):
        few = bands.ClassSets.of(np.full(100 + n, 0.5), np.r_[np.ones(n), np.zeros(100)])
        assert few.members(np.array([[0.9, 0.1]]))[0].tolist() == [True, always]
    _, (done,) = bands.measure_classes(
        codes[rows], np.pad(chances[rows], ((0, 0), (0, 1))), np.arange(len(rows)) % 5, 0
    )
    assert done.few == [(1, 17), (2, 0)] and done.least[0] == 0
    target = Target("y", "classification", codes[rows], ["no", "yes", "never"], "text")
    assert "too few rows of yes (17), never (0) to promise" in coverage(target, done)["size"]


def test_uneven_classes_are_ranked_by_skill_and_the_majority_has_none() -> None:
    chances, codes = imbalanced(4000, 0)
    target = Target("y", "classification", codes, ["no", "yes"], "text")
    shares = np.tile(np.bincount(codes) / 4000, (4000, 1))
    always = scores.score(target, shares)
    assert next(iter(always)) == scores.main(target) == "skill"
    assert always["accuracy"] > 0.95 and always["balanced"] == 0.5 and abs(always["skill"]) < 1e-9
    assert scores.score(target, chances)["skill"] > 0.1
    even = Target("y", "classification", np.arange(4000) % 2, ["no", "yes"], "text")
    assert scores.main(even) == "accuracy" and "skill" not in scores.score(even, shares)
    part = target.take(np.flatnonzero(codes == 0))  # a fold may hold one class only: still scored as the whole is
    assert set(scores.score(part, shares[codes == 0], "skill")) >= {"skill", "balanced"}


def test_a_threshold_is_no_higher_than_the_last_model_bears_out() -> None:
    """Chances that differ from model to model by more than from row to row: the lower sample of each class serves."""
    random = rng(0)
    codes = np.repeat([0, 1], 200)
    judged = 0.5 + 1e-4 * random.random((400, 2))
    last = np.stack([0.49 + 1e-4 * random.random(400), 0.51 + 1e-4 * random.random(400)], 1)
    sets = bands.ClassSets.fit(judged, codes)
    assert sets.members(last)[:200, 0].mean() == 0  # all of a class lost
    modest = bands.as_modest_as(sets, last, codes)
    held = modest.members(last)[np.arange(400), codes]
    assert held[:200].mean() > 0.88 and held[200:].all()
    some = np.where(np.arange(400)[:, None] % 2, last, np.nan)  # rows that were not left out say nothing
    assert bands.as_modest_as(sets, some, codes).chances.shape == (300,)
    assert bands.as_modest_as(sets, None, codes) is sets


def test_left_out_chances_of_the_last_model_are_those_of_rows_it_did_not_see() -> None:
    x, y = blobs(160, 3, 7)
    model = KernelClassifier(random_state=0).fit(np.vstack([x, x[:5]]), np.concatenate([y, y[:5]]))
    told = np.isfinite(model.left_out_[:160, 0])  # one row of each place may stand for its twin
    assert model.left_out_.shape == (165, 3) and told.sum() >= 155
    np.testing.assert_allclose(model.left_out_[:160][told].sum(1), 1)
    own = -np.log(model.left_out_[np.arange(160), y][told]).mean()
    other = log_loss(y, cross_val_predict(LogisticRegression(), x, y, cv=10, method="predict_proba"))
    assert abs(own - other) < 0.05  # the log odds are linear, so logistic regression is as good
    assert own > log_loss(y, model.predict_proba(x)) + 0.02  # which is that of rows it has seen
