"""Deep kernel machines on tables: numbers and labels."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Scaled
from mercer.learn.deep import DeepProcess
from mercer.learn.inducing import RIDGE
from mercer.learn.tower import Tower, widths
from mercer.learn.variational import SparseClassifier, SparseRegressor


class _Dense(Tower):
    """Each layer's prior is a kernel of the Gram matrix below: kernels[l] makes that of layer l + 1."""

    def __init__(self, kernels: Sequence[Kernel], m: int, nu: Sequence[float]):
        super().__init__(m, nu, RIDGE)
        self.kernels = nn.ModuleList(kernels)

    def _kernel(self, level: int) -> Kernel:
        return cast(Kernel, self.kernels[level])

    def begin(self, x: Tensor) -> Tensor:
        return x

    def among(self, level: int, points: Tensor) -> Tensor:
        return self._kernel(level).block(points, points)

    def across(self, level: int, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        kernel = self._kernel(level)
        return kernel.block(points, rows), kernel.diagonal(rows)


def _kernels(given: Kernel | None, layers: int, columns: int) -> list[Kernel]:
    """One for each layer and one for the output."""
    if given is not None:
        return [copy.deepcopy(given) for _ in range(layers + 1)]
    first = Gaussian(torch.full((columns,), max(math.sqrt(columns), 1.0), dtype=torch.float64))
    return [first, *(Gaussian() for _ in range(layers - 1)), Scaled(Gaussian(), 1.0)]


class _Table(DeepProcess):
    """Base of deep kernel machines on tables."""

    def _tower(self, kernels: list[Kernel], m: int, columns: int) -> Tower:
        return _Dense(kernels, m, widths(self.nu, int(self.layers)))

    def _build(self, x: Tensor, generator: torch.Generator) -> tuple[list[Kernel], Tower, Tensor, bool]:
        kernels = _kernels(self.kernel, int(self.layers), x.shape[1])
        counted = isinstance(self.landmarks, numbers.Integral) and not isinstance(self.landmarks, bool)
        every = counted and int(self.landmarks) >= len(x)
        z = x if every else self._places(kernels[0], x, generator)
        return kernels, self._tower(kernels, len(z), x.shape[1]), z, every


class DeepKernelMachine(_Table, SparseRegressor):
    """Regression by a tower of kernels whose Gram matrices are learned: the limit of wide deep Gaussian processes.

    Maximises log p(y | G_L) - sum_l nu_l KL(N(0, G_l) | N(0, K(G_{l-1}))), G_0 = X X^T, at landmarks.
    layers: L >= 1. nu: > 0, or one for each layer: width for each output; inf: G_l = K(G_{l-1}), the network Gaussian
    process. kernel: psd, of inner products alone, a copy for each layer and the output; None: Gaussian, at first with a
    lengthscale for each column. noise: > 0 or None: learned. landmarks: how many (all rows: no approximation), or
    points. max_iter: of L-BFGS; batch_size, epochs: of Adam above 4,000 rows. learn: kernels, noise and landmarks
    (Gram matrices always are). tolerance: nats for each row. Fitted: grams_ (L of m m), bound_, landmarks_, plan_.
    Cost: about 24 (L + 1) n m^2 flops a step, m^2 (L + 1) numbers beside the rows at hand. Error: the optimum is local.
    Raises StructureError for kernels of columns; ConvergenceWarning. Source [yang2023, eq. 13, sec. 4.3].
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        layers: int = 2,
        nu: Any = 100.0,
        noise: float | None = None,
        landmarks: Any = 200,
        max_iter: int = 300,
        batch_size: int = 1000,
        epochs: int = 20,
        learn: bool = True,
        standardize: bool | None = None,
        tolerance: float = 1e-3,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.layers, self.nu, self.noise, self.landmarks = kernel, layers, nu, noise, landmarks
        self.max_iter, self.batch_size, self.epochs, self.learn = max_iter, batch_size, epochs, learn
        self.standardize, self.tolerance, self.time_budget = standardize, tolerance, time_budget
        self.progress, self.random_state = progress, random_state


class DeepKernelMachineClassifier(_Table, SparseClassifier):
    """Classification by a tower of kernels whose Gram matrices are learned: p(y = 1 | f) = Phi(f).

    Two classes have one f; of more, each has its own against all others, and their chances are divided by their sum.
    Parameters and Cost as in DeepKernelMachine. Fitted: classes_, grams_, bound_, landmarks_, plan_.
    Raises StructureError for kernels of columns; ConvergenceWarning. Source [yang2023, eq. 13], [hensman2015, sec. 4].
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        layers: int = 2,
        nu: Any = 100.0,
        landmarks: Any = 200,
        max_iter: int = 300,
        batch_size: int = 1000,
        epochs: int = 20,
        learn: bool = True,
        standardize: bool | None = None,
        tolerance: float = 1e-3,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.layers, self.nu, self.landmarks = kernel, layers, nu, landmarks
        self.max_iter, self.batch_size, self.epochs, self.learn = max_iter, batch_size, epochs, learn
        self.standardize, self.tolerance, self.time_budget = standardize, tolerance, time_budget
        self.progress, self.random_state = progress, random_state
