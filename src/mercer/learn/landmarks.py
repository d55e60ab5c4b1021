"""Kernel ridge on landmarks: f(x) = k(x, z) w for a few rows z, by normal equations or by Falkon's CG."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.claims import PSD
from mercer.kernel import Kernel
from mercer.learn.plan import Plan
from mercer.learn.solve import FLOOR, FOLDS, TOLERANCE, Fitted, masks, noises, own, run_cg
from mercer.learn.tune import Clock
from mercer.learn.whitening import Whitening
from mercer.linalg import CG, Cholesky
from mercer.operator import Cost, Operator

BLOCK, LEAST = 2048, 64  # rows of kernel values formed at once, at most and at least
SHARE = 256  # a block and what is made of it: 32 bytes for each value, in an eighth of the memory budget


def block_rows(landmarks: int) -> int:
    """Rows of kernel values with so many landmarks that are formed at once."""
    return int(min(BLOCK, max(LEAST, memory_budget() // (SHARE * max(landmarks, 1)))))


def _blocks(kernel: Kernel, x: Tensor, z: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their kernel values with the landmarks in float64), a block at a time."""
    for part in rows.split(block_rows(len(z))):
        yield part, kernel.block(x[part], z).double()


@torch.no_grad()
def normal(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: Plan, factors: list[float],
    generator: torch.Generator, clock: Clock, share: Tensor | None = None,
) -> Fitted:  # fmt: skip
    """(K_mn K_nm + noise K_mm) w = K_mn y by Cholesky, and the same without each fold from the same sums.

    share: of the noise, `n`: the sums weigh each row by its inverse.
    Cost: 2 n m^2 flops in float64 and 2 n m kernel values, 8 (folds + 3) m^2 bytes.
    """
    n, outputs = y.shape
    heavy = torch.ones(n, 1, dtype=torch.float64) if share is None else 1 / share[:, None]
    points = x.float()
    z = points[torch.randperm(n, generator=generator)[: plan.landmarks]]
    fold = torch.randperm(n, generator=generator) % FOLDS
    middle = kernel.block(z.double(), z.double())
    jitter = len(z) * torch.finfo(torch.float32).eps * float(middle.diagonal().mean())
    middle.diagonal().add_(jitter)
    gram, right = middle.new_zeros(FOLDS, len(z), len(z)), middle.new_zeros(FOLDS, len(z), outputs)
    held = [(fold == f).nonzero()[:, 0] for f in range(FOLDS)]
    for f in range(FOLDS):
        for rows, block in _blocks(kernel, points, z, held[f]):
            weighed = block if share is None else heavy[rows] * block
            gram[f].addmm_(block.mT, weighed)
            right[f].addmm_(weighed.mT, y[rows])
    all_gram, all_right = gram.sum(0), right.sum(0)

    def weights(level: float, f: int | None) -> Tensor:
        a = (all_gram.clone() if f is None else all_gram - gram[f]).add_(middle, alpha=level)
        return Cholesky().factor(a).solve(all_right if f is None else all_right - right[f])

    def error(level: float) -> float:
        w = weights(level, 0)  # |y - K w|^2 of the first fold, from its sums
        return float((w * (gram[0] @ w)).sum() - 2 * (w * right[0]).sum())

    levels = [max(a, FLOOR * float(middle.diagonal().mean())) for a in noises(noise, factors)]
    chosen = min(levels, key=error) if len(levels) > 1 else levels[0]
    left_out = torch.empty_like(y)
    for f in range(FOLDS):
        w = weights(chosen, f)
        for rows, block in _blocks(kernel, points, z, held[f]):
            left_out[rows] = block @ w
    found = weights(chosen, None)
    rounding = torch.finfo(torch.float32).eps * float(found.norm())  # of predictions in float32
    dtype = torch.float32 if rounding < 0.01 * float((left_out - y).square().mean().sqrt()) else torch.float64
    return Fitted(z.to(dtype), found.to(dtype), left_out, chosen, dataclasses.replace(plan, jitter=jitter))


class _Falkon(Operator):
    """The normal equations of landmarks in coordinates that make them nearly the identity.

    v -> B^T (K_mn D K_nm + noise K_mm) B v, B of `Whitening` for a typical noise.
    Source [rudi2017, alg. 1].
    """

    def __init__(self, k: Operator, middle: Tensor, mask: Tensor, noise: Tensor, typical: float):
        self.k, self.mask, self.noise = k, mask, noise
        n, m = k.shape
        self.b = Whitening.uniform(middle, n).at([typical])
        self.shape, self.dtype, self.device, self.claims = torch.Size([m, m]), torch.float64, middle.device, PSD

    def project(self, rows: Tensor) -> Tensor:
        """K_mn rows, for rows: n c."""
        return self.k.mT.matmul(rows.to(self.k.dtype)).double()

    def matmul(self, v: Tensor) -> Tensor:
        w = self.b.down(v)
        seen = self.k.normal(w.to(self.k.dtype), self.mask.to(self.k.dtype)).double()
        return self.b.up(seen) + self.b.ridge(w, self.noise)

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return self.k.cost(rhs) + self.k.cost(rhs)


def falkon(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: Plan, factors: list[float],
    generator: torch.Generator, clock: Clock, share: Tensor | None = None,
) -> Fitted:  # fmt: skip
    """Landmarks (rows drawn uniformly), Falkon-preconditioned CG for the fit and for the folds together."""
    n, outputs = y.shape
    points, rows = x.float(), y.float()
    chosen_rows = torch.randperm(n, generator=generator)[: plan.landmarks]
    z = points[chosen_rows]
    with torch.no_grad():
        k = assemble(kernel, points, z, rhs=outputs * (FOLDS + 1), products=60)
        wide = z.double()
        middle = kernel.block(wide, wide)
        diagonal = float(middle.diagonal().mean())
        jitter = len(z) * torch.finfo(torch.float32).eps * diagonal  # products with K are float32
        middle.diagonal().add_(jitter)
        levels = [max(a, FLOOR * diagonal) for a in noises(noise, factors)]
        fold, mask = masks(n, FOLDS, outputs, generator)
        mask = mask if share is None else mask / share[:, None].float()
        held = mask[:, outputs : 2 * outputs].repeat(1, len(levels))
        each = torch.tensor(levels, dtype=torch.float64).repeat_interleave(outputs)
        a = _Falkon(k, middle, held, each, levels[0])
        steps, chosen = 0, levels[0]
        if len(levels) > 1:
            trial = CG(None, 5 * TOLERANCE, 30, lambda i, r: clock.over() and i >= 6)
            found = run_cg(trial, a, a.b.up(a.project(held * rows.repeat(1, len(levels)))))
            out = fold == 0
            guess = k.matmul(a.b.down(found.value).float())[out].reshape(-1, len(levels), outputs)
            errors = (guess - rows[out][:, None]).square().mean((0, 2))
            chosen, steps = levels[int(errors.argmin())], found.iterations
        a.mask, a.noise = mask, torch.full((mask.shape[1],), chosen, dtype=torch.float64)
        solver = CG(None, TOLERANCE / 4, 80, lambda i, r: clock.over() and i >= 8)
        answer = run_cg(solver, a, a.b.up(a.project(mask * rows.repeat(1, FOLDS + 1))))
        weights = a.b.down(answer.value)
        left_out = own(k.matmul(weights[:, outputs:].float()), fold, outputs)
    done = dataclasses.replace(plan, jitter=jitter, residual=answer.residual, iterations=steps + answer.iterations)
    return Fitted(z, weights[:, :outputs].float().contiguous(), left_out.double(), chosen, done)
