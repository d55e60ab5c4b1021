"""Eigenpairs of symmetric operators: Lanczos for a few to full accuracy, random subspaces for many at once."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning
from mercer.linalg.lanczos import GONE, WIDE, symmetric
from mercer.operator import Operator


@dataclass(frozen=True)
class Eigenpairs:
    """A u_i = values_i u_i nearly: values `k` (float64), vectors u `n k`, residuals |A u_i - values_i u_i| `k`.

    Within residuals_i of values_i lies an eigenvalue of A. products: columns that A was applied to. Constants to
    autograd. converged: every residual is below the tolerance, where one was asked, times the largest |value|.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def _report(name: str, found: Eigenpairs, tolerance: float) -> Eigenpairs:
    if not found.converged:
        worst = float(found.residuals.max())
        message = f"{name} stopped after {found.products} products at a residual of {worst:.1e}, tolerance "
        message += f"{tolerance:.1e} of the largest eigenvalue; allow more products or a larger tolerance"
        warnings.warn(ConvergenceWarning(message, worst, found.products), stacklevel=4)
    return found


def _measured(a: Operator, values: Tensor, vectors: Tensor, products: int, tolerance: float, top: float) -> Eigenpairs:
    """The pairs with residuals of the vectors as they are returned, in A's dtype; top: the largest |value| of A."""
    kept = vectors.to(a.dtype)
    gap = (a.matmul(kept).to(WIDE) - kept.to(WIDE) * values).norm(dim=0)
    converged = bool((gap <= tolerance * top * 1.0001).all())
    return Eigenpairs(values, kept, gap, products + vectors.shape[1], converged)


@torch.no_grad()
def eigenpairs(
    a: Operator,
    count: int,
    largest: bool = True,
    tolerance: float | None = None,
    max_products: int = 2000,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The `count` largest (or smallest) eigenvalues of a symmetric operator and their vectors, by restarted Lanczos.

    count: 1 to n, far below n. tolerance: of the residuals, relative to the largest |value| of A; None: 1e-8, or 1e-5
    where A is not float64. Values come largest (or smallest) first. A copy of a multiple eigenvalue is found only
    through rounding: where eigenvalues repeat, `randomised_eigenpairs`, whose block sees them all, is the safer one.
    Cost: one product with A at a time, memory n (2 count + 20) float64 numbers.
    Raises ConvergenceWarning, with converged=False, when max_products did not do; StructureError, ShapeError,
    ValueError. Source [wu2000].
    """
    symmetric("eigenpairs", a)
    n = a.shape[-1]
    if not 1 <= count <= n:
        raise ValueError(f"eigenpairs: count is {count}; expected 1 to {n}")
    tolerance = (1e-8 if a.dtype == WIDE else 1e-5) if tolerance is None else tolerance
    width = min(n, 2 * count + 20)
    basis = torch.zeros(n, width + 1, dtype=WIDE, device=a.device)
    first = torch.randn(n, generator=generator, dtype=WIDE).to(a.device)
    basis[:, 0] = first / first.norm()
    h, kept, products = basis.new_zeros(width, width), 0, 0
    while True:
        beta = _extend(a, basis, h, kept, generator)
        products += width - kept
        values, y = torch.linalg.eigh(h)
        values, y = (values.flip(0), y.flip(1)) if largest else (values, y)
        good = (beta * y[-1, :count]).abs() <= 0.5 * tolerance * values.abs().max()
        if bool(good.all()) or products >= max_products:
            break
        kept = min((count + width) // 2, width - 1)  # the best half stays, and the next vector
        basis[:, : kept + 1] = torch.cat([basis[:, :width] @ y[:, :kept], basis[:, width:]], 1)
        h.zero_().diagonal()[:kept] = values[:kept]
    top = float(values.abs().max())  # of all that was seen, which is about |A|, also where the smallest are asked for
    found = _measured(a, values[:count], basis[:, :width] @ y[:, :count], products, tolerance, top)
    return _report("eigenpairs", found, tolerance)


def _extend(a: Operator, basis: Tensor, h: Tensor, kept: int, generator: torch.Generator | None) -> float:
    """Fill basis and h = basis^T A basis from column `kept` on; the length of what A adds beyond the basis."""
    n, width, beta = len(basis), len(h), 0.0
    for j in range(kept, width):
        w = a.matmul(basis[:, j : j + 1].to(a.dtype)).to(WIDE)[:, 0]
        whole, seen = float(w.norm()), basis[:, : j + 1]
        h[: j + 1, j] = seen.mT @ w
        w = w - seen @ h[: j + 1, j]
        w = w - seen @ (seen.mT @ w)  # once more: the first time leaves what rounding made of a small difference
        h[j, : j + 1] = h[: j + 1, j].clone()
        beta = float(w.norm())
        if beta <= GONE * whole * n**0.5 and j + 1 < n:  # an invariant subspace: go on in a random direction
            w, beta = torch.randn(n, generator=generator, dtype=WIDE).to(w.device), 0.0
            for _ in range(2):
                w = w - seen @ (seen.mT @ w)
        basis[:, j + 1] = w / w.norm().clamp_min(1e-300)
    return beta


@torch.no_grad()
def randomised_eigenpairs(
    a: Operator,
    count: int,
    oversample: int = 10,
    passes: int = 4,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The `count` eigenvalues of largest magnitude, by subspace iteration from random vectors, many columns at once.

    oversample: columns beyond count, which speed up convergence. passes: products of A with count + oversample
    columns, at most. tolerance: stop when residuals relative to the largest |value| are below it, and warn when they
    are not; None: run all passes and promise nothing, the residuals say what was reached.
    Values are sorted by falling magnitude. Error: a residual falls with each pass by the ratio of its eigenvalue to
    the first one beyond the block. Cost: the passes, and 6 n (count + oversample)^2 flops each; memory
    4 n (count + oversample) float64 numbers. Raises ConvergenceWarning, StructureError, ShapeError, ValueError.
    Source [halko2011, alg. 4.4, 5.3].
    """
    symmetric("randomised_eigenpairs", a)
    n = a.shape[-1]
    if not 1 <= count <= n or passes < 1 or oversample < 0:
        given = f"count {count}, passes {passes}, oversample {oversample}"
        raise ValueError(f"randomised_eigenpairs: {given}; expected count 1 to {n}, passes >= 1, oversample >= 0")
    width = min(n, count + oversample)
    block, products, wanted = torch.randn(n, width, generator=generator, dtype=WIDE).to(a.device), 0, tolerance or 0.0
    for _ in range(passes):
        q = torch.linalg.qr(block)[0]
        block = a.matmul(q.to(a.dtype)).to(WIDE)
        products += width
        inner = q.mT @ block
        values, y = torch.linalg.eigh((inner + inner.mT) / 2)
        order = values.abs().argsort(descending=True)[:count]
        values, y = values[order], y[:, order]
        gap = (block @ y - (q @ y) * values).norm(dim=0)
        if bool((gap <= 0.5 * wanted * values.abs().max()).all()):
            break
    if tolerance is None and a.dtype == WIDE:
        return Eigenpairs(values, q @ y, gap, products, True)
    wanted = math.inf if tolerance is None else tolerance
    found = _measured(a, values, q @ y, products, wanted, float(values.abs().max()))
    return _report("randomised_eigenpairs", found, wanted)
