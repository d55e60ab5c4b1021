"""Lanczos: a symmetric operator seen from a few vectors, as a tridiagonal matrix for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import ShapeError, StructureError
from mercer.linalg.cholesky import right_hand_side, single_matrix
from mercer.operator import Operator

WIDE = torch.float64
GONE = 1e-14  # of the largest coefficient: what remains is rounding, the Krylov space is complete


def symmetric(name: str, a: Operator, definite: bool = False) -> None:
    """Raise StructureError or ShapeError unless `a` is one matrix that claims to be symmetric (and psd)."""
    single_matrix(name, a)
    if a.shape[-1] != a.shape[-2]:
        raise ShapeError(f"{name} needs a square operator, got {tuple(a.shape)}")
    if Claim.SYMMETRIC not in a.claims:
        raise StructureError(f"{name} needs an operator that is symmetric; {a!r} does not claim it")
    if definite and Claim.PSD not in a.claims:
        raise StructureError(f"{name} needs an operator that is psd; {a!r} does not claim it")


@dataclass(frozen=True)
class Tridiagonal:
    """Q^T A Q = T for each starting column c: diagonal `c m`, off_diagonal `c m - 1`, basis Q `c n m` or None.

    lengths: of the starting columns, `c`. All float64.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    basis: Tensor | None
    lengths: Tensor

    def dense(self) -> Tensor:
        """T as matrices, `c m m`."""
        off = torch.diag_embed(self.off_diagonal, 1)
        return torch.diag_embed(self.diagonal) + off + off.mT

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights, `c m`: v^T f(A) v is close to the sum of weights f(nodes). Source [golub2010, ch. 6]."""
        nodes, vectors = torch.linalg.eigh(self.dense())
        return nodes, vectors[:, 0, :].square() * self.lengths[:, None].square()


class Recurrence:
    """The three-term recurrence for many columns at once; `step` takes A times `v` and moves on.

    A column whose Krylov space is complete stands still: its next coefficients repeat the first one, uncoupled.
    """

    def __init__(self, start: Tensor, most: int, reorthogonalise: bool):
        self.lengths = start.norm(dim=0)
        self.v = start / torch.where(self.lengths > 0, self.lengths, 1.0)
        self.old, self.size = torch.zeros_like(start), torch.zeros_like(self.lengths)
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        n, c = start.shape
        self.basis = start.new_zeros(c, most, n) if reorthogonalise else None

    def step(self, product: Tensor) -> None:
        done = len(self.alphas)
        alpha = (self.v * product).sum(0)
        w = product - alpha * self.v - (self.betas[-1] if self.betas else 0.0) * self.old
        if self.basis is not None:
            self.basis[:, done] = self.v.mT
            seen, wide = self.basis[:, : done + 1], w.mT.unsqueeze(-1)
            for _ in range(2):  # twice is enough
                wide = wide - seen.mT @ (seen @ wide)
            w = wide.squeeze(-1).mT
        beta = w.norm(dim=0)
        self.size = torch.maximum(self.size, torch.maximum(alpha.abs(), beta))
        live = beta > GONE * self.size
        beta = torch.where(live, beta, 0.0)
        standing = self.v.abs().amax(0) == 0 if len(self.v) else torch.ones_like(live)
        self.alphas.append(torch.where(standing, self.alphas[0], alpha) if self.alphas else alpha)
        self.betas.append(beta)
        self.old, self.v = self.v, torch.where(live, w / torch.where(live, beta, 1.0), 0.0)

    def tridiagonal(self) -> Tridiagonal:
        diagonal = torch.stack(self.alphas, -1)
        off = torch.stack(self.betas[:-1], -1) if len(self.betas) > 1 else diagonal[:, :0]
        basis = None if self.basis is None else self.basis[:, : len(self.alphas)].mT
        return Tridiagonal(diagonal, off, basis, self.lengths)


@torch.no_grad()
def lanczos(a: Operator, start: Tensor, steps: int, reorthogonalise: bool = True) -> Tridiagonal:
    """Tridiagonal matrices of a symmetric operator, one for each starting column, all in one run.

    start: n c or n, of A's dtype. steps: 1 to n products with A. reorthogonalise: keep the basis orthonormal to
    rounding by taking all earlier vectors out of each new one (twice), and return it; without it nothing is stored,
    and converged eigenvalues may show up more than once. Where a Krylov space is complete earlier, the rest of T
    repeats its first entry, uncoupled, and the rest of the basis is zero.
    Cost: steps products with c columns; with reorthogonalise 4 n steps^2 c flops and n steps c float64 numbers.
    Raises StructureError, ShapeError, DataError, ValueError. Source [golub2013, sec. 10.1], [paige1972].
    """
    symmetric("lanczos", a)
    if not 1 <= steps <= max(a.shape[-1], 1):
        raise ValueError(f"lanczos: steps is {steps}; expected 1 to {a.shape[-1]}")
    run = Recurrence(right_hand_side(start, a.shape[-1]).to(WIDE), steps, reorthogonalise)
    for _ in range(steps):
        run.step(a.matmul(run.v.to(a.dtype)).to(WIDE))
    return run.tridiagonal()
