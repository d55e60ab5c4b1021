"""MINRES: the smallest residual for symmetric operators that need not be definite."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.linalg.krylov import Krylov, KrylovState, dot

TINY = 1e-15  # of |A|: a Lanczos coefficient below it completes the Krylov space
# |A r| / (|A| |r|) below 10 sqrt(eps), and r standing still, or below 100 eps, is that of least squares
LEAST, SURELY = 10.0, 100.0
STILL, SPAN = 0.99, 8  # r stands still where SPAN steps leave so much of it
LOST = 1e-16  # |A| |x| times this above |r|: rounding of the recursion is as large as what it improves


class MINRES(Krylov):
    """Solve A x = b for a symmetric A of any sign by minimal residuals: one product with A each step.

    What conditionally positive definite kernels (Riesz) and saddle-point systems need. preconditioner: an Operator,
    symmetric positive definite, close to |A|^-1, or a Preconditioner; tolerance, max_iterations, callback: as in `CG`.
    Needs: one symmetric matrix (no batch), b of its dtype. Cost: a product with A and with the preconditioner each
    step; memory 13 n c float64 numbers. Error: residual <= tolerance, measured at the end as |A x - b|.
    Where A is singular: the smallest residual there is, found where |A r| / (|A| |r|) is rounding.
    Raises ConvergenceWarning, with converged=False in the answer, where the tolerance was missed: also where A is
    singular and b is not in its range; ShapeError, TypeError. Source [paige1975], [elman2014, alg. 4.1].
    """

    needs = frozenset({Claim.SYMMETRIC})

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        norm = r.norm(dim=0)
        v_old, v = torch.zeros_like(r), r.clone()
        z = state.precondition(v)
        gamma_old, gamma = torch.ones_like(norm), dot(z, v).clamp_min(0).sqrt()
        eta = gamma.clone()
        # the recursion knows the residual in the norm of the preconditioner: ask for the same reduction there
        scale = norm / torch.where(gamma > 0, gamma, 1.0)
        goal = limit / torch.where(scale > 0, scale, 1.0)
        sine_old, sine, cosine_old, cosine = (torch.full_like(gamma, f) for f in (0.0, 0.0, 1.0, 1.0))
        w_old, w = torch.zeros_like(r), torch.zeros_like(r)
        eps = torch.finfo(state.a.dtype).eps
        large, least, flattest, flat = torch.zeros_like(gamma), LEAST * eps**0.5, torch.full_like(gamma, torch.inf), x
        past = [torch.full_like(gamma, torch.inf)] * SPAN
        live, stopped = (eta.abs() > goal) & (gamma > 0), False
        begun = steps
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
            large = torch.maximum(large, torch.hypot(torch.hypot(delta, gamma_new), gamma * (steps > begun)))
            slope = torch.hypot(a0, cosine * gamma_new) / large.clamp_min(1e-300)  # |A r| / |A| |r|
            near = live & (slope < flattest)
            flattest, flat = torch.where(near, slope, flattest), torch.where(near, x, flat)
            ended = (slope <= least) & (eta.abs() >= STILL * past[0])
            ended |= (slope <= SURELY * eps) | (LOST * large * x.norm(dim=0) >= eta.abs())
            x.copy_(torch.where(live & ended & (flattest <= least), flat, x))
            live &= ~ended
            past = [*past[1 - SPAN :], eta.abs()]
            a1 = torch.where(live, a1, 1.0)
            w_old, w = w, (z - sine_old * gamma * w_old - (sine * delta + cosine_old * cosine * gamma) * w) / a1
            cosine_old, cosine, sine_old, sine = cosine, a0 / a1, sine, gamma_new / a1
            x += torch.where(live, cosine * eta, 0.0) * w
            eta = torch.where(live, -sine * eta, eta)
            v_old, v, z, gamma_old, gamma = v, v_new, z_new, unit, gamma_new
            steps += 1
            stopped = self.told(steps, eta.abs() * scale, limit)
            live &= (eta.abs() > goal) & (gamma > TINY * large)
        return steps, stopped
