"""Log-determinants and traces of inverses: exact by Cholesky, or from random probes with an error bar."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from mercer.errors import ConvergenceWarning, NotPositiveDefiniteError, StructureError
from mercer.linalg.cg import CG
from mercer.linalg.cholesky import Cholesky
from mercer.linalg.implicit import Implicit, solve, structured
from mercer.linalg.lanczos import WIDE, Recurrence, symmetric
from mercer.linalg.precondition import Preconditioner
from mercer.linalg.woodbury import Woodbury
from mercer.operator import Operator

CHECK = 5  # steps of Lanczos between two looks at the quadrature
SHARE = 0.05  # of the statistical error that the quadrature may add
ROUNDING = 8 * torch.finfo(WIDE).eps


@dataclass(frozen=True)
class Estimate:
    """A number that is within `error` of the exact one, with probability `confidence` over the random probes.

    value: float64 scalar, differentiable. error: half the width of the interval: Student's t over the probes, plus
    what is left of the quadrature; of an exact method, about its rounding. samples: one for each probe.
    iterations: products of A with all probes. converged: the quadrature is below its share of the error.
    """

    value: Tensor
    error: float
    confidence: float
    samples: Tensor
    iterations: int
    converged: bool


class SLQ:
    """Stochastic Lanczos quadrature: z^T log(A) z for random signs z, by a few products with A for all probes at once.

    probes: >= 2, random signs. max_steps: >= 2, products with A at most; they end where the quadrature adds less
    than a twentieth of the statistical error, or tolerance |value|. preconditioner: a Preconditioner or a Woodbury
    P^-1 close to A^-1: then log det A = log det P + log det (L^-1 A L^-T) with P = L L^T, and only the second, small
    term is estimated. confidence: of the interval, in (0, 1).
    Cost: steps products with `probes` columns. Error: falls as 1 / sqrt(probes), and is reported; rounding of A's own
    products is not in it. Source [ubaru2017], [gardner2018].
    """

    def __init__(
        self,
        preconditioner: Preconditioner | Woodbury | None = None,
        probes: int = 20,
        max_steps: int = 200,
        tolerance: float = 1e-10,
        confidence: float = 0.95,
        generator: torch.Generator | None = None,
    ):
        if probes < 2 or max_steps < 2 or not tolerance > 0 or not 0 < confidence < 1:
            given = f"probes {probes}, max_steps {max_steps}, tolerance {tolerance}, confidence {confidence}"
            raise ValueError(f"SLQ: {given}; expected >= 2, >= 2, > 0 and a number between 0 and 1")
        self.preconditioner, self.probes, self.max_steps = preconditioner, probes, max_steps
        self.tolerance, self.confidence, self.generator = tolerance, confidence, generator

    def draw(self, a: Operator) -> Tensor:
        """Random signs, n probes, in float64."""
        signs = torch.randint(0, 2, (a.shape[-1], self.probes), generator=self.generator)
        return (2 * signs - 1).to(device=a.device, dtype=WIDE)

    def close(self, a: Operator) -> Woodbury | None:
        """The preconditioner made for A."""
        found = self.preconditioner
        return found.prepare(a) if isinstance(found, Preconditioner) else found

    def interval(self, samples: Tensor, left: float, offset: float) -> tuple[float, float]:
        """(half width of the interval of the mean, its statistical part)."""
        spread = float(samples.std()) / len(samples) ** 0.5
        drawn = spread * float(stdtrit(len(samples) - 1, (1 + self.confidence) / 2))
        return drawn + left + ROUNDING * (float(samples.abs().mean()) + abs(offset)), drawn

    @torch.no_grad()
    def samples(self, a: Operator, z: Tensor, p: Woodbury | None) -> tuple[Tensor, float, int]:
        """(z^T log(L^-1 A L^-T) z of each probe, what its quadrature may still be off on average, steps)."""
        n, found, before, last = len(z), z.new_zeros(z.shape[1]), 0.0, 0.0
        most = min(self.max_steps, n)
        if not n:
            return found, 0.0, 0
        run = Recurrence(z, most, most * n * z.shape[1] <= 2**25)
        for step in range(1, most + 1):
            v = run.v if p is None else p.whiten_mT(run.v)
            q = a.matmul(v.to(a.dtype)).to(WIDE)
            run.step(q if p is None else p.whiten(q))
            if step % CHECK and step < most:
                continue
            nodes, weights = run.tridiagonal().quadrature()
            if not bool((nodes > 0).all()):
                smallest = float(nodes.min())
                raise NotPositiveDefiniteError(
                    f"SLQ: A in {a.dtype} has an eigenvalue of {smallest:.3g} or less, so it has no logarithm; "
                    "add noise, or use float64",
                    smallest,
                )
            new = (weights * nodes.log()).sum(-1)
            change, found = float((new - found).abs().mean()), new
            # changes that shrink by a constant factor leave change * factor / (1 - factor)
            factor = min(change / before, 0.99) if before > 0 else 0.99
            last = 0.0 if step == n else change * factor / (1 - factor)
            goal = max(SHARE * self.interval(found, 0.0, 0.0)[1], self.tolerance * float(found.mean().abs()))
            if step > CHECK and last <= goal:
                break
            before = change
        return found, last, step


def logdet(a: Operator, method: Cholesky | SLQ | None = None) -> Estimate:
    """log det A of a symmetric positive definite operator, with gradients to points, parameters and shift inside A.

    method: `Cholesky()`, exact, with its jitter policy; or `SLQ(...)`, from products alone; default: the structure of
    A where it knows (`Solvable`), else `Cholesky()`. The gradient is tr(A^-1 dA): from the inverse, or from the same
    probes z as the mean of (A^-1 z)^T dA z with A^-1 z by CG to 1e-8, run only when a gradient is asked for. It is of
    first order: a second differentiation raises RuntimeError.
    Cost: n^3 flops and 3 n^2 numbers; or that of SLQ, and for the gradient one CG run with as many columns.
    Raises StructureError, NotPositiveDefiniteError; ConvergenceWarning where the quadrature was cut short.
    Source [ubaru2017], [gardner2018].
    """
    if isinstance(method, SLQ):
        symmetric("logdet", a, definite=True)
        return _estimated(a, method)
    known = structured(a) if method is None else None
    if known is not None:
        value = known[0].logdet(known[1]).to(WIDE)
        error = ROUNDING * (a.shape[-1] + float(value.detach().abs()))
        return Estimate(value, error, 1.0, value.detach()[None], 1, True)
    with torch.no_grad():
        factor = (Cholesky() if method is None else method).prepare(a)
    value = factor.logdet()
    pivots = factor.lower.diagonal().square()
    error = ROUNDING * float((factor.lower.square().sum(1) / pivots).sum())  # each pivot is a difference that rounds
    matrix = a.dense() if torch.is_grad_enabled() else factor.lower
    if matrix.requires_grad:
        value = Implicit.apply(matrix, value, lambda g: g * factor.inverse())
    return Estimate(value, error, 1.0, value.detach()[None], 1, True)


def _estimated(a: Operator, method: SLQ) -> Estimate:
    with torch.no_grad():
        p, z = method.close(a), method.draw(a)
        if p is not None and not isinstance(p, Woodbury):
            raise StructureError(f"SLQ needs a preconditioner with a root and a log-determinant, got {p!r}: a Woodbury")
        samples, left, steps = method.samples(a, z, p)
        offset = 0.0 if p is None else float(p.logdet())
        value = samples.mean() + offset
    error, drawn = method.interval(samples, left, offset)
    converged = left <= max(drawn, method.tolerance * abs(float(value)))
    if not converged:
        message = f"logdet: {steps} steps of Lanczos leave the quadrature off by about {left:.1e}, more than the "
        message += f"probes ({drawn:.1e}); allow more max_steps, or give a preconditioner"
        warnings.warn(ConvergenceWarning(message, left, steps), stacklevel=3)
    if torch.is_grad_enabled():
        with torch.no_grad():
            right, rhs = (z, z) if p is None else (p.whiten_mT(z), p.root(z))
        through = a @ right.to(a.dtype)

        def slope(g: Tensor) -> Tensor:
            solver = CG(p, tolerance=1e-8 if a.dtype == WIDE else 1e-5)
            return g * solver.solve(solver.prepare(a), rhs.to(a.dtype)).value / z.shape[1]

        if through.requires_grad:
            value = Implicit.apply(through, value, slope)
    return Estimate(value, error, method.confidence, samples + offset, steps, converged)


def trace_inverse(a: Operator, method: Cholesky | SLQ | None = None, tolerance: float = 1e-6) -> Estimate:
    """tr(A^-1) of a symmetric positive definite operator, with gradients to points, parameters and shift inside A.

    method: `Cholesky()` (default), exact; or `SLQ(...)`, of which the probes z, the preconditioner P^-1 and the
    confidence are used: the mean of z^T A^-1 z by CG to `tolerance`, and with P^-1 the mean of z^T (A^-1 - P^-1) z
    added to tr(P^-1), which varies less. The gradient is -tr(A^-1 dA A^-1), from the same probes.
    Cost: n^3 flops and n^2 numbers; or one CG run. Raises as `logdet`. Source [hutchinson1990].
    """
    if isinstance(method, SLQ):
        symmetric("trace_inverse", a, definite=True)
        with torch.no_grad():
            p, z = method.close(a), method.draw(a)
            known = z.new_zeros(z.shape[1]) if p is None else (z * p.matmul(z)).sum(0)
            offset = 0.0 if p is None else float(p.diagonal().to(WIDE).sum())
        found = solve(a, z.to(a.dtype), CG(p, tolerance))
        samples = (z * found.value.to(WIDE)).sum(0) - known
        # z^T e = (A^-1 z)^T r for a residual r = A e
        left = found.residual * float(z.norm(dim=0).max() * found.value.detach().to(WIDE).norm(dim=0).max())
        error, _ = method.interval(samples.detach(), left, offset)
        value = samples.mean() + offset
        return Estimate(value, error, method.confidence, samples.detach() + offset, found.iterations, found.converged)
    n = a.shape[-1]
    with torch.no_grad():
        state = (Cholesky() if method is None else method).prepare(a)
    inverse = state.inverse()
    value = inverse.diagonal().sum()
    condition = float(state.lower.square().sum() * torch.linalg.matrix_norm(inverse, 1)) if n else 1.0
    error = ROUNDING * condition * float(value)
    matrix = a.dense() if torch.is_grad_enabled() else inverse
    if matrix.requires_grad:
        value = Implicit.apply(matrix, value, lambda g: -g * (inverse @ inverse))
    return Estimate(value, error, 1.0, value.detach()[None], 1, True)
