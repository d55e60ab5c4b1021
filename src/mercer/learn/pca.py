"""KernelPCA: principal components in feature space, by eigenvectors of the Gram matrix or by its dual."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import ConvergenceWarning, DataError, ShapeError
from mercer.learn.answers import as_given
from mercer.learn.dual_pca import NEAR, Centred, Loss, climb, principal, robust_centre, starts, usual_threshold
from mercer.learn.gram import GramEstimator, gaussian_by, median_distance, signs, top_eigenpairs
from mercer.learn.plan import Plan
from mercer.learn.solve import exact
from mercer.learn.table import Target, plain, read, refuse_gaps
from mercer.learn.tune import Clock
from mercer.operator import Operator

LOSSES = ("square", "huber", "capped", "epsilon")
BACK = 2000  # rows from which the way back is learned
LEVELS = [1e-3, 1e-2, 1e-1, 10.0, 100.0]  # times a noise of 1e-3: what left-out rows may choose for the way back
ROUGH = 1e-4  # turn of the space at which the first of two climbs ends
GONE = 1e-12  # of the largest eigenvalue: components of nothing but rounding


class KernelPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, GramEstimator):
    """Principal components of phi(x), k(x, y) = phi(x)^T phi(y): the directions in which the rows spread most.

    n_components: 1 to n. kernel: psd; None: Gaussian with the median distance. solver: "svd" (eigenvectors of the
    centred Gram) or "dual" (products only); None: svd for loss "square". loss: "square"; "huber": distances from the
    components count linearly beyond `threshold`, for tables with outliers; "capped": Huber's function of projections;
    "epsilon": rows of projection below `threshold` count nothing, few rows bear the components. threshold: > 0, None:
    from the data. centre: subtract the mean (huber: spatial median). fit_inverse_transform: learn the way back.
    Fitted: eigenvalues_, row_weights_ `n` (low: an outlier), support_ (rows that bear), threshold_, n_iter_, kernel_.
    Cost: svd n^3 / 3 flops to 500 rows, then Lanczos; dual n_iter_ products of K with n_components columns.
    Raises ConvergenceWarning. Source [scholkopf1998], [tonin2023, sec. 3-4], [bakir2004] for the way back.
    """

    _fitted: tuple[str, ...] = (
        "eigenvalues_", "row_weights_", "support_", "threshold_", "n_iter_", "_points", "_weights", "_offset",
        "_n_features_out",
    )  # fmt: skip
    _sometimes: tuple[str, ...] = ("_back", "_target")

    def __init__(
        self,
        n_components: int = 2,
        kernel: Any = None,
        *,
        loss: str = "square",
        solver: str | None = None,
        threshold: float | None = None,
        centre: bool = True,
        fit_inverse_transform: bool = False,
        tolerance: float = 1e-6,
        max_iter: int = 1000,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.n_components, self.kernel, self.loss, self.solver = n_components, kernel, loss, solver
        self.threshold, self.centre, self.fit_inverse_transform = threshold, centre, fit_inverse_transform
        self.tolerance, self.max_iter, self.standardize = tolerance, max_iter, standardize
        self.random_state = random_state

    def _check(self) -> str:
        """The solver that is meant. Raises ValueError naming the argument that is off."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
        if self.solver not in (None, "svd", "dual"):
            raise ValueError(f"solver is {self.solver!r}; expected 'svd', 'dual' or None")
        if self.solver == "svd" and self.loss != "square":
            raise ValueError(f"solver 'svd' knows the loss 'square' only, loss is {self.loss!r}: use solver 'dual'")
        if self.threshold is not None and not 0 < self.threshold < np.inf:
            raise ValueError(f"threshold is {self.threshold}; expected a number > 0, or None")
        return self.solver or ("svd" if self.loss == "square" else "dual")

    def fit(self, X: Any, y: Any = None) -> KernelPCA:
        """Learn from X: n d; y is ignored. Raises DataError naming the first NaN or infinity."""
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Projections of the rows of X that it learned from, `n n_components`: fit, then transform, in one go."""
        return as_given(X, self._fit(X).numpy())

    @torch.no_grad()
    def _fit(self, X: Any) -> Tensor:
        solver = self._check()
        self.threshold_: float | None = None
        x, _, generator = self._begin(X)
        n, s = len(x), self.n_components
        if isinstance(s, bool) or not isinstance(s, int | np.integer) or not 1 <= s <= n:
            raise ValueError(f"n_components is {s!r}; expected a whole number from 1 to the {n} rows")
        k = self._gram(x, int(s), 50)
        weights = self._eigen(k, generator) if solver == "svd" else self._dual(k, generator)
        seen = k.matmul(weights)
        self._offset = self._centre @ seen
        scores = seen - self._offset
        turn = signs(scores)
        kept = weights.ne(0).any(1)
        self.support_ = kept.nonzero()[:, 0].numpy()
        self._points, self._weights, self._offset = x[kept], (weights * turn)[kept], self._offset * turn
        self._n_features_out = int(s)
        scores = scores * turn
        if self.fit_inverse_transform:
            self._learn_back(scores, read(self, X, reset=False, target=False)[0], generator)
        return scores

    def _mean(self, n: int) -> Tensor:
        """Coefficients of the point that is subtracted."""
        return torch.full((n,), 1 / n if self.centre else 0.0, dtype=torch.float64)

    def _eigen(self, k: Operator, generator: torch.Generator) -> Tensor:
        n = k.shape[-1]
        self._centre = self._mean(n)
        a = Centred(k, self._centre)
        values, u = top_eigenpairs(a, int(self.n_components), generator)
        live = values > GONE * values[0].clamp_min(0.0)
        self.eigenvalues_ = torch.where(live, values, 0.0).numpy()
        self.row_weights_, self.n_iter_ = np.ones(n), 1
        return a.spread(u * torch.where(live, values.clamp_min(1e-300).rsqrt(), 0.0))

    def _dual(self, k: Operator, generator: torch.Generator) -> Tensor:
        n, s = k.shape[-1], int(self.n_components)
        self._centre, lengths = self._mean(n), None
        if self.loss == "huber":
            self._centre, lengths = robust_centre(k, self.centre)
        a = Centred(k, self._centre, lengths)
        squares = a.diagonal()
        if self.loss == "huber":
            begin = starts(n, s, max(1, memory_budget() // (64 * n * s)), generator)
            first = Loss("huber", NEAR * float(squares.median().sqrt()) or 1.0, squares)
            found = climb(a, first, begin, ROUGH, self.max_iter)
        else:
            random = torch.randn(1, n, s, generator=generator, dtype=k.dtype)
            found = climb(a, Loss("square", 0.0, squares), random, self.tolerance, self.max_iter)
        steps, level = 0, None
        if self.loss != "square":
            level = self.threshold or usual_threshold(self.loss, found, squares)
            steps, loss = found.iterations, Loss(self.loss, level, squares)
            found = climb(a, loss, found.basis[None], self.tolerance, self.max_iter)
        if not bool(found.factors.any()):
            raise DataError(f"threshold is {level}: no row of X has so large a projection; use a smaller one")
        self.n_iter_, self.threshold_ = steps + found.iterations, level
        if not found.converged:
            message = f"KernelPCA stopped after {found.iterations} steps while its space still turned by "
            message += f"{found.change:.1e} in a step, tolerance {self.tolerance:.1e}; allow more by max_iter"
            warnings.warn(ConvergenceWarning(message, found.change, found.iterations), stacklevel=5)
        values, basis = principal(found)
        self.eigenvalues_ = values.numpy()
        self.row_weights_ = found.factors.numpy()
        return a.spread(basis)

    def transform(self, X: Any) -> Any:
        """Projections of new rows on the components, `n n_components`; torch in, torch out."""
        check_is_fitted(self, "eigenvalues_")
        with torch.no_grad():
            found = self._times(self._seen(X), self._points, self._weights) - self._offset
        return as_given(X, found.numpy())

    def _learn_back(self, scores: Tensor, table: np.ndarray, generator: torch.Generator) -> None:
        """Kernel ridge from projections to rows, its noise chosen by left-out rows."""
        at = torch.randperm(len(scores), generator=generator)[:BACK]
        self._target, y = Target.fit(table, True)
        kernel = gaussian_by(median_distance(scores, generator)).requires_grad_(False)
        plan = Plan("cholesky", len(at))
        fitted = exact(kernel, 1e-3, scores[at], y[at], plan, LEVELS, Clock.of(None))
        self._back = kernel, fitted.points, fitted.weights

    def inverse_transform(self, Z: Any) -> Any:
        """Rows whose projections are about Z: n n_components, by kernel ridge from projections to rows, `n d`.

        Needs fit_inverse_transform=True. No row need have just these projections: this is the mean of those that do.
        """
        check_is_fitted(self, "eigenvalues_")
        if not self.fit_inverse_transform:
            raise ValueError("inverse_transform was not learned: set fit_inverse_transform=True before fit")
        places = np.asarray(plain(Z), dtype=np.float64)
        if places.ndim != 2 or places.shape[1] != self._n_features_out:
            raise ShapeError(f"Z has shape {places.shape}; expected n {self._n_features_out}")
        refuse_gaps(places, "Z")
        kernel, points, weights = self._back
        with torch.no_grad():
            found = kernel.block(torch.from_numpy(places), points) @ weights
        return as_given(Z, self._target.back(found.numpy()))
