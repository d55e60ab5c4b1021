"""KernelRidge: kernel ridge regression that learns its kernel and picks its algorithm."""

from __future__ import annotations

from typing import Any

from mercer.learn.regress import KernelRegressor


class KernelRidge(KernelRegressor):
    """Kernel ridge regression: f(x) = k(x, points) w with (K + alpha I) w = y.

    kernel: a psd Kernel, or None: the best of Laplace, Matern 5/2 and Gaussian with a lengthscale for each column.
    alpha: > 0, added to the diagonal; None: learned. learn: improve the kernel's parameters by marginal likelihood.
    standardize: columns to a robust common scale; None: when kernel is None. y is standardised when learning.
    time_budget: seconds, soft. progress: called as progress(what, value). random_state: of draws of rows.
    Fitted: kernel_, alpha_ (for standardised data), plan_, conformal_, left_out_ (training rows as predicted by
    fits without them and their equals), places_ (what rows that are equal to a new one say of it; None: nothing).
    Cost: n^3 / 3 flops up to 5,000 rows, then CG on the whole kernel while it fits the memory, then landmarks,
    4 n m kernel values each iteration.
    Source [rasmussen2006, sec. 2.2], [rudi2017, alg. 1].
    """

    _at_places = True

    def __init__(
        self,
        kernel: Any = None,
        alpha: float | None = None,
        *,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.alpha, self.learn, self.standardize = kernel, alpha, learn, standardize
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state
