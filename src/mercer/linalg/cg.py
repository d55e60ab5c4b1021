"""CG and BlockCG: conjugate gradients for many right-hand sides, column by column or sharing one Krylov space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.linalg.krylov import TINY, Best, Krylov, KrylovState, dot
from mercer.solver import SYMMETRIC_PSD

RANK = 1e-10  # a direction of a block this much smaller than the largest one is dependent


@dataclass
class Conjugate:
    """Where conjugate gradients stand: x, its residual r, the direction p, rho = r z; each column walks on its own.

    alive: columns that go on. x, r, p, rho and alive are all there is to keep of a walk.
    """

    x: Tensor
    r: Tensor
    p: Tensor
    rho: Tensor
    alive: Tensor

    @classmethod
    def begin(cls, x: Tensor, r: Tensor, z: Tensor) -> Conjugate:
        """From x with residual r; z: the residual preconditioned. x and r are changed in place."""
        rho = dot(r, z)
        return cls(x, r, z.clone(), rho, torch.ones_like(rho, dtype=torch.bool))

    def descend(self, q: Tensor, limit: Tensor) -> bool:
        """One step along p, q = A p, in the columns whose residual is above the limit; False where there are none."""
        curvature = dot(self.p, q)
        self._live = self.alive & (self.r.norm(dim=0) > limit) & (curvature > 0) & (self.rho > 0)
        if not bool(self._live.any()):
            return False
        step = torch.where(self._live, dot(self.p, self.r) / torch.where(self._live, curvature, 1.0), 0.0)
        self.x += step * self.p
        self.r -= step * q
        return True

    def turn(self, z: Tensor) -> None:
        """The next direction, conjugate to those before; z: the new residual preconditioned."""
        new = dot(self.r, z)
        share = torch.where(self._live, new / torch.where(self._live, self.rho, 1.0), 0.0)
        self.p, self.rho = torch.where(self.alive, z + share * self.p, 0.0), new


class CG(Krylov):
    """Solve A x = b by conjugate gradients: one product with A each step for all columns together.

    preconditioner: a Preconditioner, an Operator close to A^-1, or None. tolerance: of |A x - b| / |b|, each column
    stops on its own. max_iterations: >= 1. callback(iteration, residual) -> True stops early.
    Needs: one symmetric psd matrix (no batch), b of its dtype. Cost: a product with A and with the preconditioner
    each step; memory 9 n c float64 numbers. The answer is a constant to autograd: `solve` attaches gradients.
    Error: residual <= tolerance, measured at the end as |A x - b| and not by the recursion; never above that of x = 0:
    where rounding makes A indefinite to the recursion, the best x it saw is returned.
    Raises ConvergenceWarning, with converged=False in the answer, when the tolerance was missed; ShapeError, TypeError.
    Source [golub2013, alg. 11.5.1].
    """

    needs = SYMMETRIC_PSD

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        walk, stopped, best = Conjugate.begin(x, r, state.precondition(r)), False, Best(x, r)
        while steps < self.max_iterations and not stopped:
            walk.p = state.near(walk.p)
            if not walk.descend(state.product(walk.p), limit):
                break
            steps += 1
            residual = r.norm(dim=0)
            best.see(x, r)
            walk.alive &= _near(residual, best, limit, state)
            stopped = self.told(steps, best.norm, limit)
            if not bool((residual > limit).any()):
                break
            walk.turn(state.precondition(r))
        x.copy_(best.x)
        return steps, stopped


class BlockCG(Krylov):
    """Conjugate gradients in which every column searches the Krylov spaces of all: fewer steps than `CG`.

    Parameters, needs, error and warnings are those of `CG`. Directions are orthonormalised each step and dependent
    ones dropped, so that equal, zero or converged columns do not break the recursion.
    Cost: a product with A with at most c columns each step, 6 n c^2 flops; memory 11 n c float64 numbers.
    Worth it where a product with c columns costs little more than one, and A has large eigenvalues apart from the rest.
    Source [oleary1980], [ji2017, alg. 2].
    """

    needs = SYMMETRIC_PSD

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        p, stopped, best = _directions(state.precondition(r)), False, Best(x, r)
        while steps < self.max_iterations and not stopped and p.shape[1]:
            p = state.near(p)
            q = state.product(p)
            inner = p.mT @ q
            lower, failed = torch.linalg.cholesky_ex((inner + inner.mT) / 2)
            if failed:  # A is not definite on these directions: no step along them is known to help
                break
            step = torch.cholesky_solve(p.mT @ r, lower)
            x += p @ step
            r -= q @ step
            steps += 1
            residual = r.norm(dim=0)
            best.see(x, r)
            stopped = self.told(steps, best.norm, limit)
            if not bool((residual > limit).any() & _near(residual, best, limit, state).all()):
                break
            z = state.precondition(r)
            # columns far below the limit shrink to nothing here, the others count alike
            p = _directions(
                (z - p @ torch.cholesky_solve(q.mT @ z, lower)) / torch.maximum(residual, limit / 10).clamp_min(TINY)
            )
        x.copy_(best.x)
        return steps, stopped


def _near(residual: Tensor, best: Best, limit: Tensor, state: KrylovState) -> Tensor:
    """Columns whose residual is not so far above its smallest that half of the digits of A would be lost on return."""
    return residual <= torch.maximum(best.norm, limit) / torch.finfo(state.a.dtype).eps ** 0.5


def _directions(block: Tensor) -> Tensor:
    """An orthonormal basis of the columns, without those that depend on others: n c -> n (at most c)."""
    q, r = torch.linalg.qr(block)
    left, size, _ = torch.linalg.svd(r, full_matrices=False)
    return q @ left[:, size > RANK * size.max()] if size.numel() else q
