"""MINRES: the smallest residual for symmetric operators that need not be definite."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.linalg.krylov import Krylov, KrylovState, dot

TINY = 1e-15  # of the first Lanczos coefficient: below it the Krylov space is complete


class MINRES(Krylov):
    """Solve A x = b for a symmetric A of any sign by minimal residuals: one product with A each step.

    What conditionally positive definite kernels (Riesz) and saddle-point systems need. preconditioner: an Operator,
    symmetric positive definite, close to |A|^-1, or a Preconditioner; tolerance, max_iterations, callback: as in `CG`.
    Needs: one symmetric matrix (no batch), b of its dtype. Cost: a product with A and with the preconditioner each
    step; memory 9 n c float64 numbers. Error: residual <= tolerance, measured at the end as |A x - b|.
    Raises ConvergenceWarning, with converged=False in the answer, where the tolerance was missed: also where A is
    singular and b is not in its range; ShapeError, TypeError. Source [paige1975], [elman2014, alg. 4.1].
    """

    needs = frozenset({Claim.SYMMETRIC})

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        norm = r.norm(dim=0)
        v_old, v = torch.zeros_like(r), r.clone()
        z = state.precondition(v)
        gamma_old, gamma = torch.ones_like(norm), dot(z, v).clamp_min(0).sqrt()
        eta, first = gamma.clone(), gamma.clone()
        # the recursion knows the residual in the norm of the preconditioner: ask for the same reduction there
        scale = norm / torch.where(gamma > 0, gamma, 1.0)
        goal = limit / torch.where(scale > 0, scale, 1.0)
        sine_old, sine, cosine_old, cosine = (torch.full_like(gamma, f) for f in (0.0, 0.0, 1.0, 1.0))
        w_old, w = torch.zeros_like(r), torch.zeros_like(r)
        live, stopped = (eta.abs() > goal) & (gamma > 0), False
        while steps < self.max_iterations and not stopped and bool(live.any()):
            unit = torch.where(live, gamma, 1.0)
            z = state.near(z / unit * live)
            q = state.product(z)
            delta = dot(q, z)
            v_new = q - delta / unit * v - torch.where(live, gamma / gamma_old, 0.0) * v_old
            z_new = state.precondition(v_new)
            gamma_new = dot(z_new, v_new).clamp_min(0).sqrt()
            a0 = cosine * delta - cosine_old * sine * gamma
            a1 = torch.hypot(a0, gamma_new)
            live &= a1 > TINY * first
            a1 = torch.where(live, a1, 1.0)
            w_old, w = w, (z - sine_old * gamma * w_old - (sine * delta + cosine_old * cosine * gamma) * w) / a1
            cosine_old, cosine, sine_old, sine = cosine, a0 / a1, sine, gamma_new / a1
            x += torch.where(live, cosine * eta, 0.0) * w
            eta = torch.where(live, -sine * eta, eta)
            v_old, v, z, gamma_old, gamma = v, v_new, z_new, unit, gamma_new
            steps += 1
            stopped = self.told(steps, eta.abs() * scale, limit)
            live &= (eta.abs() > goal) & (gamma > TINY * first)
        return steps, stopped
