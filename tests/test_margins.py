"""Classifiers on one Gram, and novelty, against scikit-learn, explicit features and fits without each row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_moons
from sklearn.ensemble import IsolationForest
from sklearn.gaussian_process import GaussianProcessRegressor as PeerProcess
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import DataError, MemoryBudgetError, MercerWarning, ShapeError
from mercer.kernels import Gaussian, Linear, Precomputed
from mercer.learn import (
    KernelClassifier,
    KernelMeanClassifier,
    KernelNovelty,
    KernelPCA,
    KernelRidge,
    KernelSVC,
    margins,
    novelty,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def moons(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_moons(n, noise=0.25, random_state=seed)


@parametrize_with_checks([KernelMeanClassifier(), KernelSVC(), KernelNovelty()])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def test_with_a_linear_kernel_the_mean_classifier_is_the_nearest_centroid() -> None:
    x, y = load_wine(return_X_y=True)
    mine, theirs = KernelMeanClassifier(Linear()).fit(x[::2], y[::2]), NearestCentroid().fit(x[::2], y[::2])
    np.testing.assert_array_equal(mine.predict(x[1::2]), theirs.predict(x[1::2]))
    away = ((x[1::2, None] - theirs.centroids_[None]) ** 2).sum(-1)
    score = mine.decision_function(x[1::2])
    np.testing.assert_allclose(score - score[:, :1], (away[:, :1] - away) / 2, rtol=1e-9, atol=1e-6)


def test_left_out_scores_are_those_of_fits_without_the_row() -> None:
    x, y = moons(30)
    model = KernelMeanClassifier(Gaussian(0.4)).fit(x, y)
    for i in range(0, 30, 7):
        rest = np.arange(30) != i
        other = KernelMeanClassifier(Gaussian(0.4)).fit(x[rest], y[rest]).decision_function(x[[i]])
        assert model.left_out_[i, 1] - model.left_out_[i, 0] == pytest.approx(other[0], abs=1e-12)


def test_a_class_of_one_row_is_no_trouble() -> None:
    x, y = moons(30)
    model = KernelMeanClassifier(Gaussian(0.4)).fit(np.append(x, [[5.0, 5.0]], 0), np.append(y, 2))
    assert np.isnan(model.left_out_[30]).all() and model.predict([[5.0, 5.1]])[0] == 2
    assert np.isfinite(model.predict_proba(x)).all()


def test_the_support_vector_machine_is_libsvm() -> None:
    x, y = moons()
    mine, theirs = KernelSVC(2.0, Gaussian(0.5)).fit(x, y), SVC(C=2.0, gamma=2.0).fit(x, y)
    new = moons(100, 1)[0]
    np.testing.assert_allclose(mine.decision_function(new), theirs.decision_function(new), atol=1e-8)
    np.testing.assert_array_equal(mine.support_, np.sort(theirs.support_))
    np.testing.assert_array_equal(mine.predict(new), theirs.predict(new))


def test_many_classes_are_one_against_the_rest() -> None:
    x, y = load_digits(return_X_y=True)
    x, names = x / 16, np.array([f"digit {d}" for d in y])
    mine = KernelSVC(5.0, Gaussian(2.0), tolerance=1e-7).fit(x[:300], names[:300])
    theirs = OneVsRestClassifier(SVC(C=5.0, gamma=1 / 8, tol=1e-7)).fit(x[:300], names[:300])
    np.testing.assert_allclose(mine.decision_function(x[300:]), theirs.decision_function(x[300:]), atol=1e-6)
    np.testing.assert_array_equal(mine.predict(x[300:]), theirs.predict(x[300:]))


def test_landmarks_come_near_the_whole_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16
    whole = KernelSVC(5.0, Gaussian(2.0)).fit(x[:500], y[:500])
    monkeypatch.setattr(margins, "EXACT", 100)
    few = KernelSVC(5.0, Gaussian(2.0), rank=200, probability=True, random_state=0).fit(x[:500], y[:500])
    assert few.support_ is None and few.score(x[500:], y[500:]) > whole.score(x[500:], y[500:]) - 0.02
    assert log_loss(y[500:], few.predict_proba(x[500:])) < 0.35


@pytest.mark.parametrize(
    "model", [KernelMeanClassifier(Gaussian(0.3)), KernelSVC(2.0, Gaussian(0.5), probability=True)]
)
def test_chances_come_true(model) -> None:
    """On 4,000 new rows: stated chances and shares in five bins differ by less than 0.05 on average."""
    model.fit(*moons(300))
    new, true = moons(4000, 1)
    p = model.predict_proba(torch.tensor(new)).numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_array_equal(model.classes_[p.argmax(1)], model.predict(new))
    assert log_loss(true, p) < 0.35
    bins = np.minimum(5 * p[:, 1], 4).astype(int)
    gaps = [abs((true - p[:, 1])[bins == b].sum()) for b in range(5)]
    assert sum(gaps) / len(true) < 0.05


def test_errors_name_the_argument() -> None:
    x, y = moons(40)
    with pytest.raises(ValueError, match="C is -1"):
        KernelSVC(-1.0).fit(x, y)
    with pytest.raises(DataError, match="one class only"):
        KernelMeanClassifier().fit(x, np.zeros(40))
    with pytest.raises(ValueError, match="class 2 has 1"):
        KernelSVC(probability=True).fit(np.append(x, [[5.0, 5.0]], 0), np.append(y, 2))
    with pytest.raises(AttributeError):
        _ = KernelSVC().fit(x, y).predict_proba
    for options, text in (
        ({"method": "x"}, "method is 'x'"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"rank": 0}, "rank is 0"),
    ):
        with pytest.raises(ValueError, match=text):
            KernelNovelty(**options).fit(x)


class Counted(Gaussian):
    """A kernel that counts its values."""

    values = 0

    def native(self):
        return None

    def block(self, x, y):
        Counted.values += x.shape[-2] * y.shape[-2]
        return super().block(x, y)


def test_many_learners_share_one_gram() -> None:
    """Each gives what it gives on the rows themselves, and the kernel was computed once."""
    x, y = moons(120)
    Counted.values = 0
    gram = Precomputed.of(Counted(0.5), torch.tensor(x))
    assert Counted.values == 120 * 120
    rows, plain = np.arange(120.0)[:, None], Gaussian(0.5)
    train, test = rows[:80], rows[80:]
    pairs = [
        (lambda k: KernelRidge(k, 0.1, learn=False), "predict"),
        (lambda k: KernelClassifier(k, 0.1, learn=False), "predict_proba"),
        (lambda k: KernelSVC(1.0, k), "decision_function"),
        (lambda k: KernelMeanClassifier(k), "predict_proba"),
        (lambda k: KernelNovelty(k), "score_samples"),
        (lambda k: KernelPCA(2, k), "transform"),
    ]
    for make, ask in pairs:
        found = getattr(make(gram).fit(train, y[:80]), ask)(test)
        wanted = getattr(make(plain).fit(x[:80], y[:80]), ask)(x[80:])
        np.testing.assert_allclose(found, wanted, atol=1e-8, err_msg=ask)
    scores = cross_val_score(KernelSVC(1.0, gram), rows, y, cv=4)  # folds are numbers of rows too
    np.testing.assert_array_equal(scores, cross_val_score(KernelSVC(1.0, plain), x, y, cv=4))
    assert Counted.values == 120 * 120


def test_a_given_matrix_is_checked() -> None:
    good = np.array([[2.0, 1.0], [1.0, 3.0]])
    kernel = Precomputed(good)
    points = torch.tensor([[1.0], [0.0], [1.0]])
    np.testing.assert_array_equal(kernel.block(points, points[:1]), good[[1, 0, 1]][:, [1]])
    np.testing.assert_array_equal(kernel.diagonal(points), [3, 2, 3])
    np.testing.assert_array_equal(kernel(points.double()).dense(), good[np.ix_([1, 0, 1], [1, 0, 1])])
    for bad, error, text in (
        (np.ones((2, 3)), ShapeError, "N N"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), DataError, "not symmetric"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), DataError, "expected finite"),
    ):
        with pytest.raises(error, match=text):
            Precomputed(bad)
    for points in ([[2.0]], [[-1.0]], [[0.5]]):
        with pytest.raises(DataError, match="is not a row number"):
            kernel.block(torch.tensor(points), torch.tensor(points))
    with pytest.raises(ShapeError, match="row numbers"):
        kernel.block(torch.zeros(2, 2), torch.zeros(2, 2))
    with memory(10**6), pytest.raises(MemoryBudgetError):
        Precomputed.of(Gaussian(), torch.zeros(1000, 2, dtype=torch.float64))


def test_novelty_is_the_variance_of_a_gaussian_process() -> None:
    x, new = rng(0).normal(size=(50, 2)), rng(1).normal(size=(20, 2))
    model = KernelNovelty(Gaussian(0.7), alpha=0.05).fit(x)
    peer = PeerProcess(RBF(0.7), alpha=0.05, optimizer=None).fit(x, np.zeros(50))
    np.testing.assert_allclose(-model.score_samples(new), peer.predict(new, return_std=True)[1] ** 2, atol=1e-8)


def test_novelty_by_landmarks_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variance under k_xz K_zz^-1 k_zy, what landmarks cannot see added, from dense matrices."""
    monkeypatch.setattr(novelty, "EXACT_ROWS", 10)
    x, new = rng(0).normal(size=(60, 2)), rng(1).normal(size=(20, 2))
    model = KernelNovelty(Gaussian(0.7), alpha=0.05, rank=15, random_state=0).fit(x)
    z = model._points.numpy()
    assert len(z) == 15 and len(model.left_out_) == 45

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 0.7**2))

    def q(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return k(a, z) @ np.linalg.solve(k(z, z), k(z, b))

    def dense(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        inner = np.linalg.solve(q(rows, rows) + 0.05 * np.eye(len(rows)), q(rows, at))
        return np.diag(k(at, at) - q(at, rows) @ inner)

    np.testing.assert_allclose(-model.score_samples(new), dense(x, new), atol=1e-8)
    rest = [i for i in range(60) if not (x[i] == z).all(1).any()]
    wanted = [dense(np.delete(x, i, 0), x[[i]])[0] for i in rest]
    np.testing.assert_allclose(model.left_out_, np.sort(wanted), atol=1e-8)


@pytest.mark.parametrize("method", ["variance", "mean"])
def test_left_out_novelty_is_that_of_fits_without_the_row(method: str) -> None:
    x = rng(0).normal(size=(25, 2))
    model = KernelNovelty(Gaussian(0.7), method=method).fit(x)
    wanted = [
        -KernelNovelty(Gaussian(0.7), method=method).fit(np.delete(x, i, 0)).score_samples(x[[i]])[0] for i in range(25)
    ]
    np.testing.assert_allclose(model.left_out_, np.sort(wanted), atol=1e-10)


def test_the_distance_to_the_mean_by_explicit_features() -> None:
    x, new = rng(0).normal(size=(30, 3)), rng(1).normal(size=(8, 3))
    model = KernelNovelty(Linear(), method="mean").fit(x)
    np.testing.assert_allclose(-model.score_samples(new), np.square(new - x.mean(0)).sum(1), atol=1e-10)


@pytest.mark.parametrize("case", ["variance", "mean", "landmarks"])
def test_false_alarms_are_as_rare_as_stated(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 tables of 59 rows: 15 % of alarms, p-values below t with chance t; the mean of 60 has an error of 0.007."""
    if case == "landmarks":
        monkeypatch.setattr(novelty, "EXACT_ROWS", 10)
    random, alarms, small = rng(5), [], []
    for seed in range(60):
        model = KernelNovelty(
            Gaussian(1.0),
            method="mean" if case == "mean" else "variance",
            false_alarms=0.15,
            rank=12,
            random_state=seed,
        ).fit(random.normal(size=(59, 2)))
        new = random.normal(size=(200, 2))
        alarms.append((model.predict(new) == -1).mean())
        small.append((model.p_values(new) <= 0.3).mean())
    assert abs(np.mean(alarms) - 0.15) < 0.025 and abs(np.mean(small) - 0.3) < 0.035


def test_too_few_rows_for_a_rate_are_said() -> None:
    with pytest.warns(MercerWarning, match="give 99 or more"):
        model = KernelNovelty(Gaussian(1.0), false_alarms=0.01).fit(rng(0).normal(size=(50, 2)))
    assert (model.predict([[100.0, 0.0]]) == 1).all()


def test_novelty_beside_its_peers() -> None:
    """Malignant among benign, other digits among ones: no worse than the better of two peers by 0.01 of the area."""
    x, y = load_breast_cancer(return_X_y=True)
    benign = x[y == 1]
    digits, d = load_digits(return_X_y=True)
    ones = digits[d == 1]
    for usual, new, odd in (
        (benign[:200], benign[200:], x[y == 0]),
        (ones[:100], ones[100:], digits[d != 1]),
    ):
        both, label = np.concatenate([new, odd]), np.repeat([0, 1], [len(new), len(odd)])
        scaler = StandardScaler().fit(usual)
        peers = (
            OneClassSVM(nu=0.1).fit(scaler.transform(usual)).score_samples(scaler.transform(both)),
            IsolationForest(random_state=0).fit(usual).score_samples(both),
        )
        mine = KernelNovelty().fit(usual)
        assert roc_auc_score(label, -mine.score_samples(both)) > max(roc_auc_score(label, -p) for p in peers) - 0.01
