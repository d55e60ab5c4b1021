"""The overlap of quantum states that encode points: a feature map of entangled phases, by its state vector."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError
from mercer.kernel import Kernel
from mercer.parameter import Positive, like
from mercer.shapes import shapes

COLUMNS = 16  # one qubit each: a state is 2^columns complex numbers
PAIRS = ("full", "chain", "none")


class QuantumOverlap(Kernel):
    """Overlap of quantum states: |<psi(x)|psi(y)>|^2, psi = (D H)^layers |0...0>, one qubit for each column.

    H: a Hadamard gate on every qubit. D: the phase exp(i (sum_i u_i z_i + sum_pairs (pi - u_i)(pi - u_j) z_i z_j)) of
    each sign pattern z, u = x / lengthscale. It is the chance that the circuit of y undoes the circuit of x.
    lengthscale: () or (d,), > 0, in the units of x; the published map has 1, and x in (0, 2 pi].
    layers: integer >= 1; pairs of qubits with a phase of their own: "full" (all), "chain" (neighbours), "none".
    Claims: symmetric, psd, unit diagonal, positive. States are formed in float64 whatever the points are.
    Cost: layers d 2^d flops a point, 8 2^d a pair; up to 16 columns. With many columns all overlaps fall towards 2^-d.
    Raises ShapeError for more. Source [havlicek2019].
    """

    claims = PSD | {Claim.UNIT_DIAGONAL, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0, layers: int = 2, pairs: str = "full"):
        super().__init__()
        if isinstance(layers, bool) or layers != int(layers) or layers < 1:
            raise ValueError(f"QuantumOverlap.layers is {layers!r}; expected an integer >= 1")
        if pairs not in PAIRS:
            raise ValueError(f"QuantumOverlap.pairs is {pairs!r}; expected one of {', '.join(PAIRS)}")
        self.lengthscale, self.layers, self.pairs = lengthscale, int(layers), pairs

    def workspace(self, d: int) -> int:
        """A state, its phases and the products of signs."""
        return 6 * 2 ** min(d, COLUMNS)

    def states(self, x: Tensor) -> Tensor:
        """psi(x): x: ... n d -> ... n 2^d complex128; the last column of x changes fastest."""
        d = x.shape[-1]
        if d > COLUMNS:
            raise ShapeError(f"QuantumOverlap takes up to {COLUMNS} columns, one qubit each; x.d is {d}")
        scale = like(self.lengthscale, x)
        if scale.ndim > 0 and scale.shape[-1] != d:
            raise ShapeError(f"QuantumOverlap.lengthscale.d is {scale.shape[-1]}, x.d is {d}")
        wide = x.to(torch.float64)
        u = wide / like(self.lengthscale, wide)
        signs, products = (a.to(u.device) for a in _signs(d, self.pairs))
        left, right = _couples(d, self.pairs)
        angle = u @ signs
        if left:
            angle = angle + ((math.pi - u[..., left]) * (math.pi - u[..., right])) @ products
        turn = torch.polar(torch.ones_like(angle), angle)
        state = turn * 2 ** (-d / 2)  # H of |0...0> is the same in every pattern
        for _ in range(self.layers - 1):
            state = turn * _hadamard(state, d)
        return state

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix of overlaps, x: ... n d, y: ... m d -> ... n m."""
        left = self.states(x)
        right = left if y is x else self.states(y)
        inner = left @ right.mH
        return (inner.real.square() + inner.imag.square()).to(x.dtype)

    @torch.no_grad()
    def measured(self, x: Tensor, y: Tensor | None = None, *, shots: int, generator: torch.Generator) -> Tensor:
        """Overlaps as a device counts them: of `shots` runs for each pair, the share that ends in |0...0>.

        x: n d, y: m d -> n m; without y each pair of rows of x is run once, k(x_i, x_i) = 1. Error: the deviation of an
        entry k is sqrt(k (1 - k) / shots), so the matrix need not be psd. Source [havlicek2019].
        """
        if isinstance(shots, bool) or shots != int(shots) or shots < 1:
            raise ValueError(f"shots is {shots!r}; expected an integer >= 1")
        exact = self.block(x, x if y is None else y).double().clamp(0.0, 1.0)
        counts = torch.binomial(torch.full_like(exact, float(shots)), exact, generator=generator) / shots
        if y is None:
            upper = counts.triu(1)
            counts = upper + upper.mT + torch.eye(len(counts), dtype=counts.dtype, device=counts.device)
        return counts.to(x.dtype)


def _couples(d: int, pairs: str) -> tuple[list[int], list[int]]:
    """The qubits of each pair."""
    if pairs == "none":
        return [], []
    found = [(i, j) for i, j in itertools.combinations(range(d), 2) if pairs == "full" or j == i + 1]
    return [i for i, _ in found], [j for _, j in found]


@functools.lru_cache(maxsize=64)
def _signs(d: int, pairs: str) -> tuple[Tensor, Tensor]:
    """(z_i of each pattern `d 2^d`, z_i z_j of each pair `p 2^d`), float64."""
    patterns = torch.arange(2**d)
    bits = torch.stack([(patterns >> (d - 1 - i)) & 1 for i in range(d)]) if d else patterns.new_zeros(0, 1)
    signs = 1.0 - 2.0 * bits.to(torch.float64)
    left, right = _couples(d, pairs)
    return signs, signs[left] * signs[right]


def _hadamard(state: Tensor, d: int) -> Tensor:
    """H on every qubit: a fast Walsh-Hadamard transform of the last axis, unitary."""
    shape = state.shape
    for i in range(d):
        halves = state.reshape(*shape[:-1], 2**i, 2, 2 ** (d - 1 - i))
        zero, one = halves[..., 0, :], halves[..., 1, :]
        state = torch.stack([zero + one, zero - one], -2)
    return state.reshape(shape) * 2 ** (-d / 2)
