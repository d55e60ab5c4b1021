"""A kernel whose spectrum on all rows, labelled or not, is transformed: s(K / n) in place of K / n."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.claims import PSD
from mercer.errors import ConvergenceWarning
from mercer.kernel import Kernel
from mercer.kernels import Gaussian
from mercer.learn.solve import FOLDS, run_cg
from mercer.learn.state import record
from mercer.linalg import CG, randomised_eigenpairs
from mercer.operator import Cost, Operator
from mercer.operators.shifted import Shifted

NEIGHBOUR, SAMPLE = 7, 1000  # the neighbour whose median distance is the lengthscale, on so many rows
STRENGTHS: dict[str, Sequence[float]] = {"inverse_laplacian": (0.0, 0.9, 0.99, 0.999), "power": (1, 2, 4, 8, 16, 32)}
ALPHAS = tuple(10.0**p for p in range(-4, 2))
TOLERANCE, STEPS = 1e-8, 500  # of CG on the labelled rows
COUNT = 0.01  # of the largest s: eigenpairs whose residual counts
PASSES = 8  # of random subspaces, which find the leading eigenpairs


@dataclass(frozen=True)
class Transform:
    """s(lambda), of eigenvalues of K / n. coefficients: of lambda, lambda^2, ..., where s is a polynomial."""

    s: Callable[[Tensor], Tensor]
    strength: float
    coefficients: tuple[float, ...] | None = None

    @classmethod
    def of(cls, given: Any, strength: float) -> Transform:
        """From a name, coefficients, or a function of float64 eigenvalues."""
        if given == "inverse_laplacian":
            return cls(lambda v: v / (1 - strength * v / v.max()), strength)
        if given == "power":
            whole = strength == int(strength)
            unit = (*[0.0] * (int(strength) - 1), 1.0)
            return cls(lambda v: v**strength, strength, unit if whole else None)
        if callable(given):
            return cls(given, strength)
        terms = tuple(float(c) for c in given)
        return cls(lambda v: sum((c * v ** (p + 1) for p, c in enumerate(terms)), torch.zeros_like(v)), strength, terms)


@record
class Spread(Operator):
    """K / n on all rows; with `level`, each row divided by the root of the mean of its kernel values: a random walk.

    k(x, y) / sqrt(m(x) m(y)), m(x) the mean of k(x, .) over the rows: dense regions do not count for more.
    """

    def __init__(self, kernel: Kernel, x: Tensor, level: bool):
        n = len(x)
        self.kernel, self.x, self.level, self.k = kernel, x, level, assemble(kernel, x, products=40)
        ones = torch.ones(n, 1, dtype=x.dtype)
        self.root = (self.k.matmul(ones) / n).rsqrt() if level else ones
        self.shape, self.dtype, self.device, self.claims = torch.Size([n, n]), x.dtype, x.device, PSD

    def plain(self) -> dict[str, Any]:
        """What it is made of, the means of the rows too."""
        return {"kernel": self.kernel, "x": self.x, "level": self.level, "root": self.root}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Spread:
        """What `plain` described."""
        found = cls(plain["kernel"], plain["x"], False)  # with no means: they are known
        found.level, found.root = plain["level"], plain["root"]
        return found

    def matmul(self, v: Tensor) -> Tensor:
        return self.root * self.k.matmul(self.root * v) / len(self.x)

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return self.k.cost(rhs)

    def dense(self) -> Tensor:
        return self.root * self.kernel.block(self.x, self.x) * self.root.mT / len(self.x)

    def predict(self, new: Tensor, weights: Tensor) -> Tensor:
        """k(new, x) weights of the same kernel at new rows, `q c`."""
        right = torch.cat([self.root * weights, torch.full((len(self.x), 1), 1 / len(self.x), dtype=weights.dtype)], 1)
        found = assemble(self.kernel, new, self.x).matmul(right)
        mass = found[:, -1:].clamp_min(torch.finfo(found.dtype).tiny)
        return found[:, :-1] * mass.rsqrt() if self.level else found[:, :-1]

    def polynomial(self, terms: Sequence[float], v: Tensor) -> Tensor:
        """(terms_1 + terms_2 A + terms_3 A^2 + ...) v by Horner's rule: one product for each term but one."""
        found = terms[-1] * v
        for term in reversed(terms[:-1]):
            found = self.matmul(found) + term * v
        return found


class Labelled(Operator):
    """The block of n s(K / n) of the labelled rows, for a polynomial s: products with K, no eigenvectors."""

    def __init__(self, spread: Spread, at: Tensor, terms: Sequence[float]):
        self.spread, self.at, self.terms = spread, at, terms
        n = len(at)
        self.shape, self.dtype, self.device, self.claims = torch.Size([n, n]), spread.dtype, spread.device, PSD

    def lift(self, v: Tensor) -> Tensor:
        """q(K / n) E v of all rows, q(lambda) = s(lambda) / lambda: the weights that v gives the kernel itself."""
        wide = v.new_zeros(len(self.spread.x), v.shape[1])
        wide[self.at] = v
        return self.spread.polynomial(self.terms, wide)

    def matmul(self, v: Tensor) -> Tensor:
        return self.spread.matmul(self.lift(v))[self.at] * len(self.spread.x)

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        one = self.spread.cost(rhs)
        return Cost(one.make, one.apply * len(self.terms), one.memory)


@dataclass(frozen=True)
class Ridge:
    """Weights of all rows, and what chose them: the left-out mean square of labelled rows, NaN if nothing did."""

    weights: Tensor
    transform: Transform
    alpha: float
    error: float
    unit: float  # of alpha
    tail: float = 0.0
    residual: float = 0.0
    steps: int = 0


def nearby(x: Tensor) -> Kernel:
    """A Gaussian as wide as the median distance to the seventh neighbour, which unlabelled rows tell as well."""
    some = x[torch.linspace(0, len(x) - 1, min(SAMPLE, len(x))).long()]
    wanted = min(NEIGHBOUR, len(x) - 1)
    far = torch.cat([torch.cdist(part, x).kthvalue(wanted + 1, dim=1).values for part in some.split(100)])
    width = float(far.median())
    return Gaussian(width if width > 0 else max(float(far.mean()), 1.0 if float(far.max()) == 0 else 1e-3))


def _left_out(p: Tensor, size: Tensor, y: Tensor, alpha: float) -> Tensor:
    """y minus its predictions from the other labelled rows; the block of these rows is P diag(size) P^T."""
    share = size / (size + alpha)
    fit = p @ (share[:, None] * (p.mT @ y))
    return (y - fit) / (1 - p.square() @ share)[:, None]


def _inverse(p: Tensor, size: Tensor, y: Tensor, alpha: float) -> Tensor:
    return (y - p @ ((size / (size + alpha))[:, None] * (p.mT @ y))) / alpha


class Pairs:
    """By eigenpairs of K / n: all of them, or the `rank` leading ones, as kernel principal components."""

    def __init__(self, spread: Spread, rank: int | None, generator: torch.Generator):
        self.n = len(spread.x)
        if rank is None or rank >= self.n:
            values, self.vectors = torch.linalg.eigh(spread.dense())
            residuals = torch.zeros_like(values)
        else:
            found = randomised_eigenpairs(spread, rank, passes=PASSES, generator=generator)
            values, self.vectors, residuals = found.values, found.vectors, found.residuals
        least = self.n * torch.finfo(values.dtype).eps * float(values.max())
        kept = values > least
        self.values, self.vectors, self.residuals = values[kept], self.vectors[:, kept], residuals[kept]
        self.cut = rank is not None and rank < self.n

    def solve(self, transform: Transform, at: Tensor, y: Tensor, alphas: Sequence[float], judged: bool) -> Ridge:
        """The best alpha by left-out labelled rows, or the first where nothing is judged."""
        s = torch.as_tensor(transform.s(self.values)).to(self.values.dtype)
        if s.shape != self.values.shape or bool((s < 0).any()) or not bool(torch.isfinite(s).all() & (s.max() > 0)):
            raise ValueError(
                f"transform gave {s.tolist()[:4]} ...; expected finite values >= 0, one for each eigenvalue"
            )
        own = self.vectors[at]
        block = own * (self.n * s).sqrt()
        scale = _unit(block.square().sum(1).mean(), block.mean(0).square().sum())
        p, root, _ = torch.linalg.svd(block / math.sqrt(scale), full_matrices=False)
        alpha, error = _best(p, root.square(), y, alphas, judged)
        a = _inverse(p, root.square(), y, alpha)
        weights = self.vectors @ ((s / self.values)[:, None] * (own.mT @ a)) / scale
        tail = float(s[self.values.argmin()] / s.max()) if self.cut else 0.0
        residual = float(self.residuals[s >= COUNT * s.max()].max() / self.values.max())
        return Ridge(weights, transform, alpha, error, scale, tail, residual)


def _unit(diagonal: Tensor, common: Tensor) -> float:
    """What alpha is in units of: the variance of labelled rows under the kernel, for what they share tells nothing."""
    variance = float(diagonal - common)
    return variance if variance > 1e-8 * float(diagonal) else max(float(diagonal), torch.finfo(diagonal.dtype).tiny)


def _best(p: Tensor, size: Tensor, y: Tensor, alphas: Sequence[float], judged: bool) -> tuple[float, float]:
    if not judged:
        return alphas[0], math.nan
    errors = [float(_left_out(p, size, y, alpha).square().mean()) for alpha in alphas]
    return alphas[errors.index(min(errors))], min(errors)


def products(
    spread: Spread, transform: Transform, at: Tensor, y: Tensor, alphas: Sequence[float], judged: bool, columns: int
) -> Ridge:  # fmt: skip
    """A polynomial by products with K alone: the labelled block where it has at most so many columns, else by CG.

    By CG, alpha is judged on one quarter of the labelled rows.
    """
    if transform.coefficients is None:
        raise ValueError("solver='products' needs a polynomial: coefficients, or a power that is a whole number")
    block = Labelled(spread, at, transform.coefficients)
    if len(at) <= columns:
        dense = block.matmul(torch.eye(len(at), dtype=y.dtype))
        scale = _unit(dense.diagonal().mean(), dense.mean())
        size, p = torch.linalg.eigh((dense + dense.mT) / (2 * scale))
        size = size.clamp_min(0)
        alpha, error = _best(p, size, y, alphas, judged)
        return Ridge(block.lift(_inverse(p, size, y, alpha)) / scale, transform, alpha, error, scale)
    few = torch.linspace(0, len(at) - 1, columns).long()
    probe = torch.zeros(len(at), columns, dtype=y.dtype)
    probe[few, torch.arange(columns)] = 1.0
    common = block.matmul(torch.full((len(at), 1), 1 / len(at), dtype=y.dtype)).mean()
    scale = _unit(block.matmul(probe)[few, torch.arange(columns)].mean(), common)
    alpha, error, steps, solver = alphas[0], math.nan, 0, CG(None, TOLERANCE, STEPS)
    if judged:
        out = torch.arange(len(at)) % FOLDS == 0
        rest = Labelled(spread, at[~out], transform.coefficients)
        errors = []
        for level in alphas:
            found = run_cg(CG(None, 1e-4, STEPS), Shifted(rest, level * scale), y[~out])
            seen = spread.matmul(rest.lift(found.value))[at[out]] * len(spread.x)
            errors.append(float((y[out] - seen).square().mean()))
            steps += found.iterations
        alpha, error = alphas[errors.index(min(errors))], min(errors)
    found = run_cg(solver, Shifted(block, alpha * scale), y)
    if not found.converged:
        message = f"CG on the labelled rows stopped at a residual of {found.residual:.1e}, tolerance {TOLERANCE:.0e}"
        warnings.warn(
            ConvergenceWarning(message + "; use a larger alpha", found.residual, found.iterations), stacklevel=4
        )
    return Ridge(block.lift(found.value), transform, alpha, error, scale, steps=steps + found.iterations)
