"""CG and BlockCG: conjugate gradients for many right-hand sides, column by column or sharing one Krylov space."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.linalg.krylov import TINY, Krylov, KrylovState, dot
from mercer.solver import SYMMETRIC_PSD

RANK = 1e-10  # a direction of a block this much smaller than the largest one is dependent


class CG(Krylov):
    """Solve A x = b by conjugate gradients: one product with A each step for all columns together.

    preconditioner: a Preconditioner, an Operator close to A^-1, or None. tolerance: of |A x - b| / |b|, each column
    stops on its own. max_iterations: >= 1. callback(iteration, residual) -> True stops early.
    Needs: one symmetric psd matrix (no batch), b of its dtype. Cost: a product with A and with the preconditioner
    each step; memory 5 n c float64 numbers. The answer is a constant to autograd: `solve` attaches gradients.
    Error: residual <= tolerance, measured at the end as |A x - b| and not by the recursion.
    Raises ConvergenceWarning, with converged=False in the answer, when the tolerance was missed; ShapeError, TypeError.
    Source [golub2013, alg. 11.5.1].
    """

    needs = SYMMETRIC_PSD

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        z = state.precondition(r)
        p, rho, stopped = z.clone(), dot(r, z), False
        while steps < self.max_iterations and not stopped:
            p = state.near(p)
            q = state.product(p)
            curvature = dot(p, q)
            live = (r.norm(dim=0) > limit) & (curvature > 0) & (rho > 0)
            if not bool(live.any()):
                break
            step = torch.where(live, dot(p, r) / torch.where(live, curvature, 1.0), 0.0)
            x += step * p
            r -= step * q
            steps += 1
            residual = r.norm(dim=0)
            stopped = self.told(steps, residual, limit)
            if not bool((residual > limit).any()):
                break
            z = state.precondition(r)
            new = dot(r, z)
            p = z + torch.where(live, new / torch.where(live, rho, 1.0), 0.0) * p
            rho = new
        return steps, stopped


class BlockCG(Krylov):
    """Conjugate gradients in which every column searches the Krylov spaces of all: fewer steps than `CG`.

    Parameters, needs, error and warnings are those of `CG`. Directions are orthonormalised each step and dependent
    ones dropped, so that equal, zero or converged columns do not break the recursion.
    Cost: a product with A with at most c columns each step, 6 n c^2 flops; memory 7 n c float64 numbers.
    Worth it where a product with c columns costs little more than one, and A has large eigenvalues apart from the rest.
    Source [oleary1980], [ji2017, alg. 2].
    """

    needs = SYMMETRIC_PSD

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        p, stopped = _directions(state.precondition(r)), False
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
            stopped = self.told(steps, residual, limit)
            if not bool((residual > limit).any()):
                break
            z = state.precondition(r)
            # columns far below the limit shrink to nothing here, the others count alike
            p = _directions(
                (z - p @ torch.cholesky_solve(q.mT @ z, lower)) / torch.maximum(residual, limit / 10).clamp_min(TINY)
            )
        return steps, stopped


def _directions(block: Tensor) -> Tensor:
    """An orthonormal basis of the columns, without those that depend on others: n c -> n (at most c)."""
    q, r = torch.linalg.qr(block)
    left, size, _ = torch.linalg.svd(r, full_matrices=False)
    return q @ left[:, size > RANK * size.max()] if size.numel() else q
