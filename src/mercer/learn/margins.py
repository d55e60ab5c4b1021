"""Classifiers by means and by margins in feature space: the nearest mean embedding, and the support vector machine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.base import ClassifierMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget
from mercer.features import Nystrom
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, positive
from mercer.learn.calibrate import Calibration
from mercer.learn.classify import encoded
from mercer.learn.gram import GramEstimator, held

EXACT = 10_000  # rows up to which LIBSVM solves on the whole Gram
FOLDS = 5  # whose left-out margins make probabilities
LIMIT = 12.0  # of the logarithm of a temperature for scores of deviation 1
ROWS = 4096  # rows whose features are formed together


class _ScoreClassifier(ClassifierMixin, GramEstimator, ABC):
    """A classifier with one score for each class; two classes have opposite ones."""

    calibration_: Calibration
    _fitted: tuple[str, ...] = ("classes_", "_weights")

    def _read_classes(self, X: Any, y: Any) -> tuple[Tensor, np.ndarray, torch.Generator]:
        x, y, generator = self._begin(X, y, classes=True)
        self.classes_, codes = encoded(y)
        return x, codes, generator

    @abstractmethod
    def _scores(self, x: Tensor) -> Tensor:
        """Scores of scaled rows, `n c`, one column for two classes."""

    def _at(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "classes_")
        with torch.no_grad():
            return self._scores(self._seen(X)).numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of rows of X: of the second class `n` where there are two, else of each class `n c`."""
        found = self._at(X)
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> np.ndarray:
        """The label of the largest score of each row, `n`."""
        best = _each(self._at(X)).argmax(1)
        return self.classes_[best]

    def _chances(self, X: Any) -> Any:
        scores = _each(self._at(X))
        return as_given(X, self.calibration_(scores))


def warmth(scores: np.ndarray, codes: np.ndarray) -> Calibration:
    """The temperature of least log loss on left-out scores `n c`, without biases: the largest score stays likeliest.

    One row's worth of a prior holds it where few rows, or scores without error, would make it endless.
    Source [guo2017, sec. 4.2].
    """
    if not len(codes):
        return Calibration(1.0, np.zeros(scores.shape[1]))
    none, unit = np.zeros(scores.shape[1]), float((scores - scores.mean(1, keepdims=True)).std()) or 1.0

    def loss(log: float) -> float:
        return Calibration(math.exp(log) / unit, none).loss(scores, codes) * len(codes) + log * log / 2

    best = minimize_scalar(loss, bounds=(-LIMIT, LIMIT), method="bounded")
    return Calibration(math.exp(float(best.x)) / unit, none)


def _each(scores: np.ndarray) -> np.ndarray:
    """A score for each class."""
    return np.concatenate([-scores, scores], 1) if scores.shape[1] == 1 else scores


class KernelMeanClassifier(_ScoreClassifier):
    """The class whose mean embedding is nearest in feature space: the least |phi(x) - m_c|^2, m_c the mean of phi.

    score_c = mean over the class of k(x, x_i) - |m_c|^2 / 2; nothing is solved. kernel: psd; None: Gaussian with the
    median distance. standardize: columns on a robust common scale; None: when kernel is None.
    predict_proba maps scores to chances by a temperature fitted to exact left-out scores.
    Fitted: classes_, kernel_, calibration_, left_out_ (scores of training rows by means without them).
    Cost: one product of K with c columns. Source [scholkopf2002, sec. 1.2].
    """

    _fitted: tuple[str, ...] = ("calibration_", "_points", "_half")

    def __init__(self, kernel: Any = None, *, standardize: bool | None = None, random_state: Any = None):
        self.kernel, self.standardize, self.random_state = kernel, standardize, random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> KernelMeanClassifier:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        x, codes, _ = self._read_classes(X, y)
        one = torch.eye(len(self.classes_), dtype=torch.float64)[torch.from_numpy(codes)]
        counts = one.sum(0)
        k = self._gram(x, len(counts), 1)
        seen, diagonal = k.matmul(one / counts), k.diagonal()[:, None]
        squares = (one / counts * seen).sum(0)
        self._points, self._weights, self._half = x, one / counts, squares / 2
        others = (counts - 1).clamp_min(1.0)
        mean = (counts * seen - diagonal) / others  # of the own class without the row itself
        square = (counts.square() * squares - 2 * counts * seen + diagonal) / others.square()
        left = torch.where(one > 0, mean - square / 2, seen - squares / 2)
        alone = counts[torch.from_numpy(codes)] == 1
        left[alone] = torch.nan  # without it there is no class
        self.left_out_ = left.numpy()
        self.calibration_ = warmth(left[~alone].numpy(), codes[~alone.numpy()])
        return self

    def _scores(self, x: Tensor) -> Tensor:
        found = self._times(x, self._points, self._weights) - self._half
        return found[:, 1:] - found[:, :1] if found.shape[1] == 2 else found

    def predict_proba(self, X: Any) -> Any:
        """Chances of classes_, `n c`; torch in, torch out."""
        return self._chances(X)


class KernelSVC(_ScoreClassifier):
    """Support vector machine: sign of sum_i a_i k(x, x_i) + b of least |f|^2 / 2 + C sum hinge loss.

    C: > 0. kernel: psd; None: Gaussian with the median distance. More than two classes: one machine against the rest
    for each, all on one Gram. Up to 10,000 rows, while the Gram fits the memory budget, LIBSVM solves; beyond,
    LIBLINEAR with the squared hinge loss on Nystrom features of up to `rank` landmarks.
    probability: True for predict_proba, by a temperature fitted to margins of rows left out of five further fits.
    standardize: columns on a robust common scale; None: when kernel is None.
    Fitted: classes_, kernel_, support_ (row numbers of support vectors; None with landmarks), calibration_.
    Cost: n^2 to n^3 flops and 24 n^2 bytes, or n rank^2 flops. Source [chang2011], [guo2017].
    """

    _fitted: tuple[str, ...] = ("support_", "_bias")
    _sometimes: tuple[str, ...] = ("calibration_", "_points")

    def __init__(
        self,
        C: float = 1.0,
        kernel: Any = None,
        *,
        probability: bool = False,
        rank: int = 500,
        tolerance: float = 1e-3,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.C, self.kernel, self.probability, self.rank = C, kernel, probability, rank
        self.tolerance, self.standardize, self.random_state = tolerance, standardize, random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> KernelSVC:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        positive("C", self.C, optional=False)
        count("rank", self.rank, 1)
        x, codes, generator = self._read_classes(X, y)
        n, seed = len(x), int(torch.randint(2**31 - 1, (1,), generator=generator))
        whole = n <= EXACT and held(n)
        if whole:
            table = self._gram(x, 1, 2).dense().numpy()
        else:
            rank = max(1, min(int(self.rank), n, memory_budget() // (24 * n)))
            self._map = Nystrom.fit(self.kernel_, x, rank, generator=generator)
            table = self._features(x).numpy()
        weights, bias = self._machines(table, codes, whole, seed)
        if self.probability:
            self.calibration_ = self._calibrated(table, codes, whole, seed)
        self._weights, self._bias = torch.from_numpy(weights), torch.from_numpy(bias)
        self.support_ = None
        if whole:
            kept = np.flatnonzero(weights.any(1))
            self.support_, self._points, self._weights = kept, x[kept], self._weights[kept]
        return self

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([self._map.features(part) for part in x.split(ROWS)])

    def _machines(self, table: np.ndarray, codes: np.ndarray, whole: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(weights of rows or features `m c`, biases `c`) of a machine for each class; one for two classes."""
        many = int(codes.max()) + 1
        weights, bias = np.zeros((table.shape[1], 1 if many == 2 else many)), []
        for j, label in enumerate([1] if many == 2 else range(many)):
            wanted = codes == label
            if whole:
                svm = SVC(C=self.C, kernel="precomputed", tol=self.tolerance).fit(table, wanted)
                weights[svm.support_, j] = svm.dual_coef_[0]
            else:
                svm = LinearSVC(C=self.C, dual="auto", tol=self.tolerance, random_state=seed).fit(table, wanted)
                weights[:, j] = svm.coef_[0]
            bias.append(float(svm.intercept_[0]))
        return weights, np.array(bias)

    def _calibrated(self, table: np.ndarray, codes: np.ndarray, whole: bool, seed: int) -> Calibration:
        fewest = int(np.bincount(codes).min())
        if fewest < 2:
            label = self.classes_.tolist()[int(np.bincount(codes).argmin())]
            raise ValueError(f"probability=True needs two rows of each class; class {label!r} has {fewest}")
        left = np.zeros((len(codes), 1 if len(self.classes_) == 2 else len(self.classes_)))
        folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
        for rows, out in folds.split(table, codes):
            part = table[np.ix_(rows, rows)] if whole else table[rows]
            weights, bias = self._machines(part, codes[rows], whole, seed)
            left[out] = (table[np.ix_(out, rows)] if whole else table[out]) @ weights + bias
        return warmth(_each(left), codes)

    def _scores(self, x: Tensor) -> Tensor:
        if self.support_ is not None:
            return self._times(x, self._points, self._weights) + self._bias
        return torch.cat([self._map.features(part) @ self._weights for part in x.split(ROWS)]) + self._bias

    @available_if(lambda self: self.probability)
    def predict_proba(self, X: Any) -> Any:
        """Chances of classes_, `n c`, where probability=True; torch in, torch out."""
        return self._chances(X)

    def _pieces(self) -> dict[str, Any]:
        return {"landmarks": self._map.landmarks if self.support_ is None else None}

    def _restored(self, parts: dict[str, Any]) -> None:
        if parts["landmarks"] is not None:
            self._map = Nystrom(self.kernel_, parts["landmarks"])
