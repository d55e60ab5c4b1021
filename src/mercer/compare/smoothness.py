"""How smooth a target is to a kernel, from its coefficients on the eigenvectors of the Gram."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import DataError, MercerWarning, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.linalg import eigenpairs

SMALL = 2000  # rows up to which all of K is decomposed
SHARE, MOST, LEAST = 10, 500, 20  # of the rows, whose leading eigenpairs are near those of the kernel; limits of that
FIRST = 2  # eigenvalues before the power law begins
STARTS = (0.5, 1.0, 2.0, 4.0)  # of the exponent
UNSURE = 0.5  # standard error beyond which the answer is called no answer


@dataclass(frozen=True)
class Smoothness:
    """value: s, the largest power for which f is in [H]^s; error: its standard error.

    decay: beta, where the eigenvalues of the kernel fall as i^-beta. noise: variance of y around f. eigenvalues,
    coefficients: `rank`, of K / n, and of y on its eigenvectors in units of y.
    """

    value: float
    error: float
    decay: float
    noise: float
    eigenvalues: Tensor
    coefficients: Tensor


def smoothness(
    kernel: Kernel, x: Any, y: Any, *, rank: int | None = None, generator: torch.Generator | None = None
) -> Smoothness:
    """The largest s for which sum of f_i^2 / lambda_i^s is finite: f in [H]^s, in units of the kernel's own space H.

    f is what y is a noisy sight of (for labels -1 and 1 twice the chance, minus one). The leading coefficients v_i^T y
    / sqrt(n) on eigenvectors of K / n have variance c lambda_i^(s + 1/beta) + noise / n; s is that of most likelihood.
    At s = 1 f is just in H; learners then err as n^(-s beta / (s beta + 1)) in squares. y counts as it is: take its
    mean off where the kernel has no constant. kernel: psd, eigenvalues that fall as a power (Matern, not Gaussian).
    x: n d. y: n. rank: coefficients used; None: n / 10, 20 to 500. generator: of the start of Lanczos.
    Cost: 10 n^3 flops up to 2,000 rows, else Lanczos. Error: `error`, for coefficients that are independent draws;
    MercerWarning where that exceeds 0.5. Raises StructureError, ShapeError, DataError.
    Source [lai2024], with the likelihood of [whittle1953] in place of a cut where noise takes over.
    """
    if Claim.PSD not in kernel.claims:
        raise StructureError(f"smoothness needs a psd kernel; {kernel!r} does not claim it")
    points, target = torch.as_tensor(x), torch.as_tensor(y)
    if points.ndim != 2 or target.shape != points.shape[:1]:
        raise ShapeError(f"smoothness: x is {tuple(points.shape)}, y is {tuple(target.shape)}; expected n d and n")
    points, target = points.detach().to(torch.float64), target.detach().to(torch.float64)
    n = len(points)
    used = min(max(n // SHARE, LEAST), MOST) if rank is None else rank
    if not LEAST <= used <= n:
        raise ShapeError(f"smoothness: rank is {used} for {n} rows; expected from {LEAST} to the rows there are")
    if not bool(torch.isfinite(target).all()):
        raise DataError(f"y is {float(target[~torch.isfinite(target)][0])} at a row; expected finite numbers")
    values, vectors = _leading(kernel, points, used, generator)
    coefficients = vectors.mT @ target / n**0.5
    kept = int((values > values[0] * n * torch.finfo(values.dtype).eps).sum())
    if kept < LEAST or not bool((coefficients != 0).any()):
        raise DataError(f"only {kept} eigenvalues or no coefficient differ from 0; expected {LEAST} to fit a power to")
    values, coefficients = values[:kept], coefficients[:kept]
    return _fitted(values, coefficients, n)


@torch.no_grad()
def _leading(kernel: Kernel, x: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    n = len(x)
    if n <= SMALL:
        values, vectors = torch.linalg.eigh(kernel(x).dense() / n)
        return values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    found = eigenpairs(kernel(x), rank, max_products=20 * rank, generator=generator)
    return found.values / n, found.vectors


def _fitted(values: Tensor, coefficients: Tensor, n: int) -> Smoothness:
    index = np.log(np.arange(1, len(values) + 1))
    logs = (values / values[0]).log().numpy()
    decay = -float(np.polyfit(index[FIRST:], logs[FIRST:], 1)[0])
    if decay <= 1:
        raise DataError(f"eigenvalues fall as i^-{decay:.2g}; expected a power above 1: they are not those of a kernel")
    squares = coefficients.square().numpy()
    unit = squares.mean()
    theta = _likeliest(logs, np.maximum(squares / unit, 1e-30))
    share = _share(theta, logs)
    slopes = np.stack([share, share * logs, 1 - share], 1)
    information = slopes.T @ slopes / 2 + 1e-9 * np.eye(3)
    error = float(np.sqrt(np.linalg.inv(information)[1, 1]))
    if error > UNSURE:
        message = f"smoothness: {share.sum():.1f} coefficients rise above the noise; the standard error is {error:.2g}"
        warnings.warn(MercerWarning(f"{message}, more rows or less noise would tell"), stacklevel=3)
    noise = float(np.exp(theta[2]) * unit * n)
    return Smoothness(float(theta[1]) - 1 / decay, error, decay, noise, values, coefficients)


def _share(theta: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Of the signal in the variance of each coefficient."""
    signal = theta[0] + theta[1] * logs
    return np.exp(signal - np.logaddexp(signal, theta[2]))


def _likeliest(logs: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """(log c, exponent, log of the floor) of variances c lambda^exponent + floor, for squares of normal numbers."""

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        level = np.logaddexp(theta[0] + theta[1] * logs, theta[2])
        share, wrong = _share(theta, logs), 1 - squares * np.exp(-level)
        value = float((level + squares * np.exp(-level)).sum())
        return value, np.array([(wrong * share).sum(), (wrong * share * logs).sum(), (wrong * (1 - share)).sum()])

    top, bounds = float(np.log(squares[:3].mean())), [(-60, 30), (0, 30), (-60, 30)]
    found = [
        minimize(loss, [top, exponent, floor], jac=True, method="L-BFGS-B", bounds=bounds)
        for exponent in STARTS
        for floor in (float(np.log(squares[len(squares) // 2 :].mean())), float(np.log(squares.min())))
    ]
    return min(found, key=lambda f: f.fun).x
