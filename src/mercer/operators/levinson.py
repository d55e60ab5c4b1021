"""Answers about Toeplitz matrices, given by their lags `... 2n-1` (lag -(n-1) first): solves and log-determinants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import DataError, NotPositiveDefiniteError
from mercer.operators.solvable import System, implicit_solve, magnitude
from mercer.operators.transform import convolve, embedded, fft_length

DIRECT = 2048  # rows up to which Levinson's recursion is quicker than iterating
STRAYED = 1e-6  # residual of the recursion above which LU is tried
TOLERANCE, MOST = 1e-10, 2000  # residual and iterations at which conjugate gradients stop


def _product(lags: Tensor, v: Tensor) -> Tensor:
    n = v.shape[-2]
    return convolve(embedded(lags, n, n), v, n)


def _direct(lags: Tensor, b: Tensor) -> Tensor:
    """Matrix by matrix."""
    n, c = b.shape[-2:]
    batch = torch.broadcast_shapes(lags.shape[:-1], b.shape[:-2])
    many, right = lags.expand(*batch, 2 * n - 1).reshape(-1, 2 * n - 1), b.expand(*batch, n, c).reshape(-1, n, c)

    x = torch.stack([_one(t, r) for t, r in zip(many, right, strict=True)])
    return x.reshape(*batch, n, c)


def _one(t: Tensor, b: Tensor) -> Tensor:
    """One matrix: by its recursion, or by LU where a leading block is singular or nearly so and the recursion fails."""
    if not bool(torch.isfinite(t).all() & torch.isfinite(b).all()):
        raise DataError("Toeplitz.solve: A or b has entries that are not finite")
    n, size, numbers = len(b), magnitude(b), t.numpy()
    lags, rhs = (numbers[n - 1 :], numbers[n - 1 :: -1]), b / size
    try:
        x = torch.from_numpy(scipy.linalg.solve_toeplitz(lags, rhs.numpy()))
        x = x + torch.from_numpy(scipy.linalg.solve_toeplitz(lags, (rhs - _product(t, x)).numpy()))
        left = (rhs - _product(t, x)).norm(dim=0)
    except (np.linalg.LinAlgError, ValueError):  # a pivot is zero, or so small that the refinement met infinity
        x, left = torch.zeros_like(rhs), rhs.new_full((rhs.shape[1],), math.inf)
    fits = 3 * n * n * t.element_size() <= memory_budget()
    if fits and not bool((left <= STRAYED * rhs.norm(dim=0)).all()):
        other, info = torch.linalg.solve_ex(t.unfold(0, n, 1).flip(-1), rhs)
        rest = (rhs - _product(t, other)).norm(dim=0)
        better = (rest < left) & (info == 0)
        x, left = torch.where(better, other, x), torch.where(better, rest, left)
    if not bool(torch.isfinite(left).all()):
        why = "A is singular" if fits else "a leading block of A is singular and LU does not fit the memory budget"
        raise NotPositiveDefiniteError(f"{why}: its smallest pivot is 0; add noise", 0.0)
    return x * size


def nearest_circulant(lags: Tensor, n: int, axis: int = -1) -> Tensor:
    """The first column, along an axis, of the circulant matrix nearest to A in the Frobenius norm [chan1988]."""
    t = lags.movedim(axis, -1)
    k = torch.arange(n, dtype=lags.dtype)
    back = torch.cat([torch.zeros_like(t[..., :1]), t[..., : n - 1]], -1)  # lag k - n, nothing for k = 0
    return (((n - k) * t[..., n - 1 :] + k * back) / n).movedim(-1, axis)


def bounded(spectrum: Tensor) -> Tensor:
    """Eigenvalues of a preconditioner, kept away from zero."""
    return spectrum.clamp_min(torch.finfo(spectrum.dtype).eps * float(spectrum.abs().max()))


def _iterated(lags: Tensor, b: Tensor) -> tuple[Tensor, int]:
    n = b.shape[-2]
    near, spectrum = bounded(torch.fft.rfft(nearest_circulant(lags, n)).real.unsqueeze(-2)), embedded(lags, n, n)

    def precondition(r: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(r.mT) / near, n).mT

    return iterate(lambda p: convolve(spectrum, p, n), precondition, b)


def iterate(
    product: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], b: Tensor
) -> tuple[Tensor, int]:
    """Preconditioned conjugate gradients in batches: (the best x it saw, the number of steps)."""
    unit = magnitude(b)
    b = b / unit
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    p, rz = z, (r * z).sum(-2, keepdim=True)
    goal, best, steps = TOLERANCE * b.norm(dim=-2), (math.inf, x), 0
    while steps < MOST:
        steps += 1
        ap = product(p)
        curve = (p * ap).sum(-2, keepdim=True)
        alpha = torch.where(curve > 0, rz / curve, 0.0)
        x, r = x + alpha * p, r - alpha * ap
        size = r.norm(dim=-2)
        worst = float((size / goal.clamp_min(1e-300)).max())
        if worst < best[0]:
            best = worst, x
        if bool((size <= goal).all()) or not bool((alpha > 0).any()):
            break
        z = precondition(r)
        before, rz = rz, (r * z).sum(-2, keepdim=True)
        p = z + torch.where(before > 0, rz / before, 0.0) * p
    return best[1] * unit, steps


def solve(lags: Tensor, b: Tensor, symmetric: bool) -> tuple[Tensor, int]:
    """(A^-1 b, iterations), worked in float64, differentiable to any order."""
    steps = [1]

    def run(transposed: bool, rhs: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        t, wide = tensors[0].detach().double().cpu(), rhs.detach().double().cpu()
        t = t.flip(-1) if transposed else t
        if symmetric and rhs.shape[-2] > DIRECT:
            batch = torch.broadcast_shapes(t.shape[:-1], wide.shape[:-2])
            x, steps[0] = _iterated(t, wide.expand(*batch, *wide.shape[-2:]))
        else:
            x = _direct(t, wide)
        return x.to(rhs)

    def product(transposed: bool, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        return _product(tensors[0].flip(-1) if transposed else tensors[0], x)

    return implicit_solve(System(run, product), b, lags), steps[0]


class _LogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lags: Tensor) -> Tensor:
        ctx.save_for_backward(lags)
        n = (lags.shape[-1] + 1) // 2
        half = lags.detach().double().cpu()[..., n - 1 :].reshape(-1, n).numpy()
        return torch.tensor([_durbin(t) for t in half], dtype=torch.float64).reshape(lags.shape[:-1]).to(lags)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (lags,) = ctx.saved_tensors
        return g.unsqueeze(-1) * _inverse_sums(lags)


def logdet(lags: Tensor) -> Tensor:
    """log det of symmetric positive definite Toeplitz matrices, `...`; differentiable to any order."""
    return _LogDet.apply(lags) if lags.shape[-1] else lags.sum(-1)


def _durbin(t: np.ndarray) -> float:
    """The sum of the logarithms of the prediction errors of Durbin's recursion."""
    total, error = 0.0, float(t[0])
    a = np.empty(0)
    for k in range(len(t)):
        if k:
            reflection = -(float(t[k]) + float(a @ t[k - 1 : 0 : -1])) / error
            a = np.append(a + reflection * a[::-1], reflection)
            error *= 1 - reflection * reflection
        if not error > 0:
            raise NotPositiveDefiniteError(
                f"A is not positive definite: pivot {k} is {error:.3g}, the diagonal {float(t[0]):.3g}; add a shift",
                error,
            )
        total += math.log(error)
    return total


def _inverse_sums(lags: Tensor) -> Tensor:
    """The sums of A^-1 along its diagonals, from its first column by the formula of Gohberg and Semencul."""
    n = (lags.shape[-1] + 1) // 2
    unit = torch.zeros(n, 1, dtype=lags.dtype, device=lags.device)
    unit[0] = 1
    x = solve(lags, unit, True)[0][..., 0]
    z = torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:].flip(-1)], -1)
    weight = torch.arange(n, 0, -1, dtype=lags.dtype, device=lags.device)
    size = fft_length(2 * n - 1)

    def correlate(u: Tensor) -> Tensor:
        both = torch.fft.rfft(weight * u, size) * torch.fft.rfft(u, size).conj()
        return torch.fft.irfft(both, size)[..., :n]

    half = (correlate(x) - correlate(z)) / x[..., :1]
    return torch.cat([half[..., 1:].flip(-1), half], -1)
