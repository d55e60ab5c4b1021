"""SpectralRegressor: one eigendecomposition of the kernel matrix, every filter and every level of it."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import ConvergenceWarning
from mercer.kernel import Kernel
from mercer.learn import filters
from mercer.learn import plan as planning
from mercer.learn.regress import KernelRegressor
from mercer.learn.solve import LOOSE, Fitted
from mercer.learn.spectra import MOST, TOLERANCE, Found, eigh, features, krylov
from mercer.learn.tune import Clock

SOLVERS = ("eigh", "lanczos", "features")
EIGH_ROWS = 2000  # eigenpairs of this many rows, and of the folds, take some seconds
EIGH = 1e-9  # seconds of all that for each cubed row
LEVELS, SPAN, COARSE = 61, 1e-12, 1e-6  # levels tried, down to this share of the largest eigenvalue; in float32
LANDMARKS = 1000  # of the features


class SpectralRegressor(KernelRegressor):
    """Spectral algorithm: f = sum of h(lambda_i) <u_i, y> u_i over the eigenpairs of K / n, extended by the kernel.

    kernel: a psd Kernel, or None: learned as in KernelRidge. filter: "ridge", "gradient_flow", "cutoff",
    "iterated_ridge", "landweber" (mercer.learn.filters), or h(values, level) or h(values) on float64 eigenvalues.
    level: > 0, in units of the eigenvalues of K / n; None: of 61 the best by left-out rows (exact leave-one-out for
    ridge, else 4 folds with eigenpairs of their own). solver: "eigh" (all eigenpairs), "lanczos" (products with the
    whole kernel), "features" (eigenpairs of up to 1,000 landmarks), or None: what rows and time allow.
    Other parameters as in KernelRidge. Fitted: those of KernelRidge with level_, and levels_, errors_: what was tried
    and its left-out mean square error, y in deviations. Cost: eigh 25 n^3 flops; lanczos a product with 5 columns
    each step; features 2 n m^2 flops. Error: of lanczos, plan_.residual, the change of the last ten steps.
    Raises ConvergenceWarning where that stayed above 5e-4. Source [velikanov2024], [engl1996, ch. 4].
    """

    _noise_name = "level"
    _fitted: tuple[str, ...] = ("levels_", "errors_")

    def __init__(
        self,
        kernel: Any = None,
        filter: Any = "ridge",
        level: float | None = None,
        *,
        solver: str | None = None,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.filter, self.level, self.solver = kernel, filter, level, solver
        self.learn, self.standardize, self.time_budget = learn, standardize, time_budget
        self.progress, self.random_state = progress, random_state

    def _given(self) -> float | None:
        return None  # a level is no noise: the kernel is learned with a noise of its own

    def _share(self, noise: float) -> Tensor | None:
        if not self.learn:
            self._within = noise  # nothing is learned about twins: every row counts for itself
        return super()._share(noise)

    def _check(self) -> None:
        super()._check()
        filters.of(self.filter)
        if self.solver not in (None, *SOLVERS):
            raise ValueError(f"solver is {self.solver!r}; expected one of {', '.join(SOLVERS)}, or None")

    def _choose(self, kernel: Kernel, x: Tensor, outputs: int, clock: Clock) -> planning.Plan:
        n, budget = len(x), memory_budget()
        whole, krylov_space = 8 * 5 * n * n, 8 * n * 7 * outputs * MOST
        slow = clock.seconds is not None and n > 500 and n**3 * EIGH > max(clock.seconds - clock.used(), 1.0)
        if self.solver == "eigh" or (self.solver is None and n <= EIGH_ROWS and whole <= budget and not slow):
            return planning.Plan("eigh", n, memory=whole)
        lazy = planning.Plan("lanczos", n, memory=krylov_space)
        if self.solver == "lanczos":
            return lazy
        plan = super()._choose(kernel, x, outputs, clock) if self.solver is None else None
        affordable = plan is not None and plan.algorithm in ("cholesky", "cg") and krylov_space <= budget
        if affordable and self.filter != "cutoff":  # Lanczos is slow to find an edge
            return lazy
        m = int(min(LANDMARKS, n, max(100, (budget / 128) ** 0.5)))
        return planning.Plan("features", n, landmarks=m, memory=8 * 12 * m * m)

    def _solved(
        self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: planning.Plan, clock: Clock,
        generator: torch.Generator,
    ) -> Fitted:  # fmt: skip
        self._noise = noise
        h, leveled = filters.of(self.filter)
        weight = torch.ones(len(x), dtype=x.dtype) if self._shares is None else 1 / self._shares
        choose = functools.partial(self._levels, leveled)
        if plan.algorithm == "lanczos":
            found = krylov(kernel, x, y, weight / weight.sum(), h, choose, clock, generator)
            if found.residual > LOOSE and self.solver is None:
                plan = planning.Plan("features", len(x), landmarks=min(LANDMARKS, len(x)), memory=8 * 12 * LANDMARKS**2)
        if plan.algorithm == "eigh":
            found = eigh(kernel, x, y, weight / weight.sum(), h, choose, generator, self.filter == "ridge")
        elif plan.algorithm == "features":
            found = features(kernel, x, y, weight / weight.sum(), h, choose, generator, plan.landmarks)
        elif found.residual > TOLERANCE:
            message = f"Lanczos: the last steps still changed the fit by {found.residual:.1e}, tolerance {TOLERANCE}"
            message += "; use a larger level, or solver='features'"
            warnings.warn(ConvergenceWarning(message, found.residual, found.steps), stacklevel=4)
        return self._taken(found, plan)

    def _taken(self, found: Found, plan: planning.Plan) -> Fitted:
        self.levels_, self.errors_ = np.array(found.levels), np.array(found.errors)
        plan = dataclasses.replace(plan, residual=found.residual, iterations=found.steps, jitter=found.jitter)
        return Fitted(found.points, found.weights, found.left_out, found.level, plan)

    def _levels(self, leveled: bool, top: float, narrow: bool) -> list[float]:
        """The levels to try, where the largest eigenvalue is `top`; narrow: products are in float32."""
        if self.level is not None or not leveled:
            return [1.0 if self.level is None else float(self.level)]
        return (max(top, 1e-300) * np.geomspace(COARSE if narrow else SPAN, 1.0, LEVELS)).tolist()

    def _keep(self, kernel: Kernel, fitted: Fitted, clock: Clock, error: float) -> None:
        super()._keep(kernel, fitted, clock, error)
        self._pair = self.kernel_, float(self._noise)
