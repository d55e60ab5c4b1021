"""Ridge with a spectrally transformed kernel: a few labelled rows, and the shape that unlabelled rows give."""

from __future__ import annotations

import copy
import logging
import math
import numbers
import time
from abc import ABC
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.errors import DataError, ShapeError, StructureError
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, positive, usual
from mercer.learn.plan import Plan
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, Target, plain, read, refuse_words
from mercer.learn.transforms import ALPHAS, STRENGTHS, Pairs, Ridge, Spread, Transform, nearby, products

log = logging.getLogger("mercer")

SOLVERS = ("eigh", "pca", "products")
EIGH_ROWS, RANK, COLUMNS = 2000, 300, 1000
USUAL = {"inverse_laplacian": 0.999, "power": 4}  # strengths where labels are too few to choose
ALPHA = 1e-2
FEW, EACH = 10, 3  # labelled rows, and of each class, below which nothing is chosen by them


class _Transformed(Saved, BaseEstimator, ABC):
    """What regression and classification share: not public."""

    kernel: Any
    transformation: Any
    strength: float | None
    alpha: float | None
    level: bool | None
    solver: str | None
    rank: int | None
    standardize: bool | None
    random_state: Any
    _fitted: tuple[str, ...] = (
        "kernel_", "alpha_", "strength_", "plan_", "scaler_", "transduction_", "_spread", "_weights",
    )  # fmt: skip

    def _check(self) -> None:
        positive("alpha", self.alpha)
        usual(self)
        if self.level and self.kernel is not None and Claim.POSITIVE not in self.kernel.claims:
            raise StructureError(f"level=True divides by means of kernel values; {self.kernel!r} may be negative")
        if self.solver not in (None, *SOLVERS):
            raise ValueError(f"solver is {self.solver!r}; expected one of {', '.join(SOLVERS)}, or None")
        count("rank", self.rank, 1, optional=True)
        self._check_transform()

    def _check_transform(self) -> None:
        given, strength = self.transformation, self.strength
        if isinstance(given, str):
            if given not in STRENGTHS:
                names = ", ".join(STRENGTHS)
                raise ValueError(f"transformation is {given!r}; expected {names}, coefficients or a function")
            low, high = (0.0, 1.0) if given == "inverse_laplacian" else (1.0, math.inf)
            if strength is not None and not (isinstance(strength, numbers.Real) and low <= strength < high):
                raise ValueError(f"strength is {strength!r}; {given} expects {low:g} <= strength < {high:g}, or None")
        elif not callable(given):
            terms = np.asarray(given, dtype=np.float64)
            if terms.ndim != 1 or not (terms >= 0).all() or not terms.any():
                raise ValueError(f"transformation is {given!r}; expected coefficients >= 0 of lambda, lambda^2, ...")

    def _candidates(self, judged: bool) -> list[Transform]:
        if not isinstance(self.transformation, str):
            return [Transform.of(self.transformation, math.nan)]
        if self.strength is not None:
            return [Transform.of(self.transformation, float(self.strength))]
        tried: Sequence[float] = STRENGTHS[self.transformation] if judged else [USUAL[self.transformation]]
        return [Transform.of(self.transformation, strength) for strength in tried]

    @torch.no_grad()
    def _solve(self, table: np.ndarray, at: np.ndarray, y: np.ndarray, judged: bool) -> Tensor:
        """Learn y: l c of the rows `at`; sets the fitted attributes and returns predictions of all rows, `n c`."""
        start = time.perf_counter()
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        generator = torch.Generator().manual_seed(int(seed))
        ours = self.kernel is None if self.standardize is None else bool(self.standardize)
        self.scaler_ = Scaler.fit(table) if ours else Scaler.identity(table.shape[1])
        x = self.scaler_(table)
        self.kernel_ = (nearby(x) if self.kernel is None else copy.deepcopy(self.kernel)).requires_grad_(False)
        level = Claim.POSITIVE in self.kernel_.claims if self.level is None else bool(self.level)
        spread = Spread(self.kernel_, x, level)
        rows, right = torch.from_numpy(at), torch.from_numpy(y)
        alphas = [ALPHA, *[a for a in ALPHAS if judged and a != ALPHA]] if self.alpha is None else [float(self.alpha)]
        tried = self._candidates(judged)
        solver = self._way(len(x), tried)
        if solver == "products":
            columns = max(8, min(COLUMNS, memory_budget() // (64 * len(x))))
            found = [products(spread, t, rows, right, alphas, judged, int(columns)) for t in tried]
        else:
            pairs = Pairs(spread, None if solver == "eigh" else (self.rank or RANK), generator)
            found = [pairs.solve(t, rows, right, alphas, judged) for t in tried]
        best = min(found, key=lambda ridge: ridge.error) if judged else found[0]
        self._spread, self._weights = spread, best.weights
        self.alpha_, self.strength_ = best.alpha, best.transform.strength
        self.plan_ = self._plan(solver, len(x), len(at), best, judged, time.perf_counter() - start)
        log.info("%s: %s", type(self).__name__, self.plan_.sentence)
        return spread.predict(x, best.weights)

    def _way(self, n: int, tried: list[Transform]) -> str:
        if self.solver is not None:
            return self.solver
        if self.rank is not None:
            return "pca"
        if n <= EIGH_ROWS and 32 * n * n <= memory_budget():
            return "eigh"
        return "products" if all(t.coefficients is not None for t in tried) else "pca"

    def _plan(self, solver: str, n: int, labelled: int, best: Ridge, judged: bool, seconds: float) -> Plan:
        r = min(self.rank or RANK, n) if solver == "pca" else 0
        how = {
            "eigh": f"all eigenpairs of {n:,} rows",
            "pca": f"{r:,} leading eigenpairs of {n:,} rows to a residual of {best.residual:.1e}, "
            f"the last transformed to {best.tail:.1e} of the first",
            "products": f"products with the kernel of {n:,} rows, {best.steps} CG iterations",
        }[solver]
        chosen = "chosen by left-out labelled rows" if judged else "the usual or the given: too few labels to choose"
        sentence = f"{how}; {labelled:,} labelled; alpha {best.alpha:g}, strength {best.transform.strength:g}: {chosen}"
        memory = {"eigh": 32 * n * n, "pca": 32 * n * (r + 10), "products": 64 * n * min(labelled, COLUMNS)}[solver]
        return Plan(
            solver, n, r, residual=best.residual, iterations=best.steps, seconds=seconds, memory=memory,
            sentence=f"{sentence}, {seconds:.1f} s",
        )  # fmt: skip

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "kernel_")
        table, _ = read(self, X, reset=False)
        x = self.scaler_(table)
        if not len(x):
            return np.zeros((0, self._weights.shape[1]))
        with torch.no_grad():
            return self._spread.predict(x, self._weights).numpy()


class TransformedKernelRidge(RegressorMixin, _Transformed):
    """Kernel ridge on labelled rows with a kernel whose spectrum on all rows is transformed: s(K / n) for K / n.

    f(x) = sum_j k(x, x_j) w_j over all rows, w = q(K / n) E a, q(t) = s(t) / t, (n s(K / n)_ll + alpha I) a = y.
    y: NaN in rows without a label. kernel: psd, or None: a Gaussian as wide as the 7th neighbour is far (median).
    transformation: "inverse_laplacian" t / (1 - strength t / largest), "power" t^strength, coefficients >= 0 of t,
    t^2, ..., or a function of t. strength: in [0, 1), or >= 1. alpha: > 0, in units of the labelled block (its mean
    diagonal without its mean).
    None: best by left-out labelled rows, or with fewer than 10 of them 0.999 (power: 4) and 0.01.
    level: divide k(x, y) by the roots of its row means; None: where k is positive. solver: "eigh", "pca" (`rank`
    leading eigenpairs), "products" (polynomials, no eigenpairs), or None. standardize: as in KernelRidge.
    Fitted: kernel_, alpha_, strength_, transduction_ (predictions of the rows of fit), plan_.
    Cost: 10 n^3 flops up to 2,000 rows; pca 8 products of rank columns; products one for each term and CG step.
    Error: of pca, eigenpairs beyond rank count as zero; plan_ says what s makes of the last. Source [zhai2024].
    """

    _fitted: tuple[str, ...] = ("target_", "_vector")

    def __init__(
        self,
        kernel: Any = None,
        transformation: Any = "inverse_laplacian",
        strength: float | None = None,
        alpha: float | None = None,
        *,
        level: bool | None = None,
        solver: str | None = None,
        rank: int | None = None,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.transformation, self.strength, self.alpha = kernel, transformation, strength, alpha
        self.level, self.solver, self.rank = level, solver, rank
        self.standardize, self.random_state = standardize, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> TransformedKernelRidge:
        """X: n d, labelled and unlabelled rows; y: n or n c, NaN in rows without a label."""
        self._check()
        y = plain(y)
        refuse_words(y, "y")
        known = None if y is None else check_array(y, ensure_2d=False, ensure_all_finite=False, dtype=np.float64)
        filled = None if known is None else np.where(np.isnan(known), 0.0, known)
        table, _ = read(self, X, filled, reset=True)
        if known is None or known.ndim > 2:
            raise ShapeError("y: expected n or n c")
        self._vector = known.ndim == 1
        at = np.flatnonzero(~np.isnan(known.reshape(len(table), -1)).any(1))
        if len(table) < 2 or not len(at):
            raise DataError(
                f"{len(table)} sample rows, {len(at)} of them labelled; expected at least 2 rows and 1 label"
            )
        self.target_, scaled = Target.fit(known.reshape(len(table), -1)[at])
        found = self._solve(table, at, scaled.numpy(), len(at) >= FEW)
        self.transduction_ = self._units(found.numpy())
        return self

    def _units(self, scores: np.ndarray) -> np.ndarray:
        found = self.target_.back(scores)
        return found[:, 0] if self._vector else found

    def predict(self, X: Any) -> Any:
        """Predictions for X: n d, of the shape of y; torch in, torch out."""
        scores = self._scores(X)
        return as_given(X, self._units(scores))


class TransformedKernelClassifier(ClassifierMixin, _Transformed):
    """TransformedKernelRidge on class membership: the class of the largest score.

    y: labels, with -1, None or NaN where a row is unlabelled, as in sklearn.semi_supervised. strength and alpha are
    chosen by left-out labelled rows where every class has 3 of them; with fewer there is nothing to choose by, and
    they are the given ones or the usual. Other parameters, cost and error as in TransformedKernelRidge.
    Fitted: classes_, kernel_, alpha_, strength_, transduction_ (labels of the rows of fit), plan_.
    Raises DataError when fewer than two classes are labelled. Source [zhai2024].
    """

    _fitted: tuple[str, ...] = ("classes_", "_share")

    def __init__(
        self,
        kernel: Any = None,
        transformation: Any = "inverse_laplacian",
        strength: float | None = None,
        alpha: float | None = None,
        *,
        level: bool | None = None,
        solver: str | None = None,
        rank: int | None = None,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.transformation, self.strength, self.alpha = kernel, transformation, strength, alpha
        self.level, self.solver, self.rank = level, solver, rank
        self.standardize, self.random_state = standardize, random_state

    def fit(self, X: Any, y: Any) -> TransformedKernelClassifier:
        """X: n d, labelled and unlabelled rows; y: n labels, -1, None or NaN in rows without one."""
        self._check()
        y = None if y is None else column_or_1d(plain(y), warn=True)
        unknown = np.zeros(0, dtype=bool) if y is None else _unlabelled(y)
        table, labels = read(
            self, X, y if y is None or y.dtype.kind != "f" else np.where(np.isnan(y), -1.0, y), reset=True, classes=True
        )
        at = np.flatnonzero(~unknown)
        labels = labels[at]
        if labels.dtype == object and len(labels):
            labels = np.array(labels.tolist())
        if len(labels):
            check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"y has labels of {len(self.classes_)} class(es) ({self.classes_.tolist()}; -1, None and NaN are "
                "unlabelled); a classifier needs at least two"
            )
        one = np.eye(len(self.classes_))[codes]
        self._share = one.mean(0)
        found = self._solve(table, at, one - self._share, int(one.sum(0).min()) >= EACH)
        self.transduction_ = self.classes_[(self._share + found.numpy()).argmax(1)]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores near class membership: of the second class less the first `n`, or of each class `n c`."""
        scores = self._memberships(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest score of each row, `n`."""
        best = self._memberships(X).argmax(1)
        return self.classes_[best]

    def _memberships(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "kernel_")
        return self._share + self._scores(X)


def _unlabelled(y: np.ndarray) -> np.ndarray:
    """Which labels are -1, None or NaN."""
    if y.dtype.kind in "iuf":
        return (y == -1) | np.isnan(y)
    if y.dtype == object:
        return np.array([v is None or v != v or (isinstance(v, numbers.Real) and v == -1) for v in y], dtype=bool)
    return np.zeros(len(y), dtype=bool)
