"""One line per public thing, each with a reference that does not call the code under test.

A kernel's reference is a scalar formula typed from its source in `math`; an operator's is its dense matrix built
another way. Properties over these lists live in the test files; what a case cannot do stands in `CANNOT` with a reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mercer import features as f
from mercer import kernels as k
from mercer import operators as o

Point = Sequence[float]


@dataclass(frozen=True)
class KernelCase:
    name: str
    make: Callable[[int], k.Kernel]
    formula: Callable[[Point, Point], float]
    dims: tuple[int, ...] = (1, 3, 10)
    categories: bool = False  # the columns hold codes, not measurements

    def points(self, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        if self.categories:
            return torch.randint(0, 3, (n, d), generator=g).to(dtype)
        return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)


def _r2(x: Point, y: Point, scale: float = 1.0) -> float:
    return math.fsum(((a - b) / scale) ** 2 for a, b in zip(x, y, strict=True))


def _dot(x: Point, y: Point) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def _matern(nu: float, scale: float) -> Callable[[Point, Point], float]:
    def formula(x: Point, y: Point) -> float:
        r = math.sqrt(2 * nu) * math.sqrt(_r2(x, y)) / scale
        return {0.5: 1.0, 1.5: 1 + r, 2.5: 1 + r + r * r / 3}[nu] * math.exp(-r)

    return formula


def _ard(d: int) -> list[float]:
    return [0.5 + 0.3 * i for i in range(d)]


def _gaussian_ard(x: Point, y: Point) -> float:
    return math.exp(-0.5 * math.fsum(((a - b) / s) ** 2 for a, b, s in zip(x, y, _ard(len(x)), strict=True)))


def _periodic(x: Point, y: Point) -> float:
    return math.exp(-2 * math.fsum(math.sin(math.pi * (a - b) / 1.7) ** 2 for a, b in zip(x, y, strict=True)) / 0.9**2)


def _mixture(x: Point, y: Point) -> float:
    total = 0.0
    for q, weight in enumerate((0.7, 1.2)):
        frequency = [0.1 * (q + 1) + 0.05 * i for i in range(len(x))]
        scale = [0.08 + 0.02 * q + 0.01 * i for i in range(len(x))]
        t = [a - b for a, b in zip(x, y, strict=True)]
        envelope = math.exp(-2 * math.pi**2 * math.fsum((s * u) ** 2 for s, u in zip(scale, t, strict=True)))
        total += weight * envelope * math.cos(2 * math.pi * _dot(frequency, t))
    return total


def _make_mixture(d: int) -> k.Kernel:
    frequency = [[0.1 * (q + 1) + 0.05 * i for i in range(d)] for q in range(2)]
    scale = [[0.08 + 0.02 * q + 0.01 * i for i in range(d)] for q in range(2)]
    return k.SpectralMixture([0.7, 1.2], frequency, scale)


def _wendland(q: int, radius: float) -> Callable[[Point, Point], float]:
    def formula(x: Point, y: Point) -> float:
        r = math.sqrt(_r2(x, y)) / radius
        if r >= 1:
            return 0.0
        j = 10 // 2 + q + 1
        poly = (1.0, (j + 1) * r + 1, ((j * j + 4 * j + 3) * r * r + (3 * j + 6) * r + 3) / 3)[q]
        return (1 - r) ** (j + q) * poly

    return formula


def _arccosine(order: int) -> Callable[[Point, Point], float]:
    def formula(x: Point, y: Point) -> float:
        size = math.sqrt(_dot(x, x)), math.sqrt(_dot(y, y))
        u, v = [a / size[0] for a in x], [b / size[1] for b in y]
        # the angle from sine and cosine of half of it; acos of the dot product is inaccurate near 0
        t = 2 * math.atan2(
            math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True))),
            math.sqrt(math.fsum((a + b) ** 2 for a, b in zip(u, v, strict=True))),
        )
        if order == 0:
            return (math.pi - t) / math.pi
        return size[0] * size[1] * (math.sin(t) + (math.pi - t) * math.cos(t)) / math.pi

    return formula


def _logistic(x: Point, y: Point) -> float:
    return math.prod(1 / math.cosh((a - b) / (2 * 0.8)) ** 2 for a, b in zip(x, y, strict=True))


@functools.cache
def _walsh(d: int) -> np.ndarray:
    return functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)] * d)


@functools.cache
def _state(u: tuple[float, ...]) -> np.ndarray:
    """D H D H |0...0>, gates as matrices made by Kronecker products, D from the diagonals of its generators."""
    d = len(u)

    def gate(which: tuple[int, ...]) -> np.ndarray:
        return functools.reduce(np.kron, [np.array([1.0, -1.0]) if i in which else np.ones(2) for i in range(d)])

    angle = sum(u[i] * gate((i,)) for i in range(d))
    for i in range(d):
        for j in range(i + 1, d):
            angle = angle + (math.pi - u[i]) * (math.pi - u[j]) * gate((i, j))
    turn, start = np.exp(1j * angle), np.eye(2**d)[0]
    return turn * (_walsh(d) @ (turn * (_walsh(d) @ start)))


def _quantum(x: Point, y: Point) -> float:
    left, right = (_state(tuple(a / 4.0 for a in point)) for point in (x, y))
    return float(abs(np.vdot(left, right)) ** 2)


def _matrix(d: int) -> list[list[float]]:
    return [[0.5 * (i == j) + 0.3 / (1 + i + 2 * j) for j in range(d)] for i in range(d)]


def _mapped(x: Point) -> list[float]:
    return [math.fsum(a * row[j] for a, row in zip(x, _matrix(len(x)), strict=True)) for j in range(len(x))]


KERNELS = [
    KernelCase("Gaussian", lambda d: k.Gaussian(1.3), lambda x, y: math.exp(-_r2(x, y) / (2 * 1.3**2))),
    KernelCase("Gaussian-ard", lambda d: k.Gaussian(_ard(d)), _gaussian_ard),
    KernelCase(
        "Laplace",
        lambda d: k.Laplace(1.4),
        lambda x, y: math.exp(-sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 1.4),
    ),
    KernelCase("Matern12", lambda d: k.Matern(0.5, 1.2), _matern(0.5, 1.2)),
    KernelCase("Matern32", lambda d: k.Matern(1.5, 1.2), _matern(1.5, 1.2)),
    KernelCase("Matern52", lambda d: k.Matern(2.5, 1.2), _matern(2.5, 1.2)),
    KernelCase(
        "RationalQuadratic",
        lambda d: k.RationalQuadratic(1.1, 0.6),
        lambda x, y: (1 + _r2(x, y) / (2 * 0.6 * 1.1**2)) ** -0.6,
    ),
    KernelCase("InverseMultiquadric", lambda d: k.InverseMultiquadric(1.5), lambda x, y: (1 + _r2(x, y, 1.5)) ** -0.5),
    KernelCase("Periodic", lambda d: k.Periodic(0.9, 1.7), _periodic),
    KernelCase(
        "Cosine",
        lambda d: k.Cosine(2.5),
        lambda x, y: math.cos(2 * math.pi * math.fsum((a - b) / 2.5 for a, b in zip(x, y, strict=True))),
    ),
    KernelCase("SpectralMixture", _make_mixture, _mixture),
    KernelCase("Wendland0", lambda d: k.Wendland(6.0, 0, 10), _wendland(0, 6.0)),
    KernelCase("Wendland1", lambda d: k.Wendland(6.0, 1, 10), _wendland(1, 6.0)),
    KernelCase("Wendland2", lambda d: k.Wendland(6.0, 2, 10), _wendland(2, 6.0)),
    KernelCase("Riesz", lambda d: k.Riesz(1.0, 0.7), lambda x, y: -math.sqrt(_r2(x, y, 0.7))),
    KernelCase("Riesz-power", lambda d: k.Riesz(1.4), lambda x, y: -(math.sqrt(_r2(x, y)) ** 1.4)),
    KernelCase("Logistic", lambda d: k.Logistic(0.8), _logistic),
    KernelCase("Linear", lambda d: k.Linear(1.6), lambda x, y: _dot(x, y) / 1.6**2),
    KernelCase("Polynomial", lambda d: k.Polynomial(3, 1.6, 0.5), lambda x, y: (_dot(x, y) / 1.6**2 + 0.5) ** 3),
    KernelCase("ExpDot", lambda d: k.ExpDot(), lambda x, y: math.exp(_dot(x, y) / math.sqrt(len(x)))),
    KernelCase("ExpDot-lengthscale", lambda d: k.ExpDot(1.9), lambda x, y: math.exp(_dot(x, y) / 1.9**2)),
    KernelCase("ArcCosine0", lambda d: k.ArcCosine(0), _arccosine(0)),
    KernelCase("ArcCosine1", lambda d: k.ArcCosine(1), _arccosine(1)),
    KernelCase(
        "Hamming",
        lambda d: k.Hamming(2.1),
        lambda x, y: math.exp(-sum(a != b for a, b in zip(x, y, strict=True)) / 2.1),
        categories=True,
    ),
    KernelCase("QuantumOverlap", lambda d: k.QuantumOverlap(4.0), _quantum),
    KernelCase("Constant", lambda d: k.Constant(0.8), lambda x, y: 0.8),
    KernelCase("Scaled", lambda d: 2.5 * k.Gaussian(1.3), lambda x, y: 2.5 * math.exp(-_r2(x, y) / (2 * 1.3**2))),
    KernelCase(
        "Sum",
        lambda d: k.Gaussian(1.3) + k.Linear(1.6),
        lambda x, y: math.exp(-_r2(x, y) / (2 * 1.3**2)) + _dot(x, y) / 1.6**2,
    ),
    KernelCase(
        "Product",
        lambda d: k.Matern(1.5, 1.2) * k.Linear(1.6),
        lambda x, y: _matern(1.5, 1.2)(x, y) * _dot(x, y) / 1.6**2,
    ),
    KernelCase(
        "Warped",
        lambda d: k.Gaussian(1.3).warp(torch.nn.Tanh()),
        lambda x, y: math.exp(-_r2([math.tanh(a) for a in x], [math.tanh(b) for b in y]) / (2 * 1.3**2)),
    ),
    KernelCase(
        "Columns",
        lambda d: k.Gaussian(1.3).on([d - 1]),
        lambda x, y: math.exp(-_r2(x[-1:], y[-1:]) / (2 * 1.3**2)),
    ),
    KernelCase(
        "Metric",
        lambda d: k.Matern(2.5, 1.2).warp(k.Metric(_matrix(d))),
        lambda x, y: _matern(2.5, 1.2)(_mapped(x), _mapped(y)),
    ),
]


@dataclass(frozen=True)
class OperatorCase:
    """make(dtype, batch, n, m) -> (operator, the matrix it stands for, the tensors that gradients reach)."""

    name: str
    make: Callable[[torch.dtype, tuple[int, ...], int, int], tuple[o.Operator, Tensor, list[Tensor]]]
    square: bool = False
    rows_sum_to_one: bool = False


def _leaf(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def _gauss(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-0.5 * (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1))


def _tiled(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> tuple[o.Operator, Tensor, list[Tensor]]:
    x, y = _leaf(*batch, n, 5, dtype=dtype, seed=1), _leaf(m, 5, dtype=dtype, seed=2)
    return o.Tiled(k.Gaussian(), x, y), _gauss(x, y), [x, y]


def _fused(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same operator in the compiled core."""

    def made(*args: Any) -> Any:
        op, matrix, leaves = make(*args)
        return o.Fused(op), matrix, leaves

    return made


def _fused_mixture(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 5, dtype=dtype, seed=1), _leaf(m, 5, dtype=dtype, seed=2)
    kernel = 0.5 * k.Gaussian().on([0, 1, 2, 3, 4]) + k.Linear(2.0).on(0) * k.Laplace(3.0) + k.Constant(0.25)
    gaps = (x[..., :, None, :] - y[..., None, :, :]).abs()
    other = x[..., :, None, 0] * y[..., None, :, 0] / 4 * torch.exp(-gaps.sum(-1) / 3)
    return o.Fused(o.Tiled(kernel, x, y)), 0.5 * _gauss(x, y) + other + 0.25, [x, y]


def _tiled_causal(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    op, matrix, leaves = _tiled(dtype, batch, n, m)
    return op.tril(), matrix.tril(), leaves


def _tiled_softmax(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 4, dtype=dtype, seed=1), _leaf(m, 4, dtype=dtype, seed=2)
    return o.Tiled(k.ExpDot(), x, y).normalised(), torch.softmax(x @ y.mT / 2, -1), [x, y]


def _fused_softmax(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 4, dtype=dtype, seed=1), _leaf(m, 4, dtype=dtype, seed=2)
    return o.Fused(o.Tiled(k.ExpDot(), x, y)).normalised(), torch.softmax(x @ y.mT / 2, -1), [x, y]


def _causal_softmax(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 4, dtype=dtype, seed=1), _leaf(m, 4, dtype=dtype, seed=2)
    scores = (x @ y.mT / 2).masked_fill(torch.ones(n, m).triu(1).bool(), -math.inf)
    return o.Tiled(k.ExpDot(), x, y).tril().normalised(), torch.softmax(scores, -1), [x, y]


def _fused_causal_softmax(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 4, dtype=dtype, seed=1), _leaf(m, 4, dtype=dtype, seed=2)
    scores = (x @ y.mT / 2).masked_fill(torch.ones(n, m).triu(1).bool(), -math.inf)
    return o.Fused(o.Tiled(k.ExpDot(), x, y)).tril().normalised(), torch.softmax(scores, -1), [x, y]


def _dense(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, m, dtype=dtype, seed=3)
    return o.Dense(a), a, [a]


def _deferred(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    x, y = _leaf(*batch, n, 5, dtype=dtype, seed=1), _leaf(m, 5, dtype=dtype, seed=2)
    return o.Dense.deferred(o.Tiled(k.Gaussian(), x, y), 1.0), _gauss(x, y), [x, y]


def _lowrank(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a, b = _leaf(*batch, n, 3, dtype=dtype, seed=4), _leaf(m, 3, dtype=dtype, seed=5)
    return o.LowRank(a, b), torch.einsum("...nr,mr->...nm", a, b), [a, b]


def _lowrank_causal(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    op, matrix, leaves = _lowrank(dtype, batch, n, m)
    return op.tril(), matrix.tril(), leaves


def _shifted(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a, s = _leaf(*batch, n, n, dtype=dtype, seed=6), _leaf(n, dtype=dtype, seed=7)
    return o.Shifted(o.Dense(a), s), a + torch.diag(s), [a, s]


def _sum(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a, b = _leaf(*batch, n, m, dtype=dtype, seed=8), _leaf(n, m, dtype=dtype, seed=9)
    return o.Dense(a) + o.Dense(b), a + b, [a, b]


def _composed(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a, b = _leaf(*batch, n, 4, dtype=dtype, seed=8), _leaf(4, m, dtype=dtype, seed=9)
    return o.Dense(a) @ o.Dense(b), torch.einsum("...nr,rm->...nm", a, b), [a, b]


def _scaled(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, m, dtype=dtype, seed=8)
    return -1.5 * o.Dense(a), a * -1.5, [a]


def _selected(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n + 2, m + 1, dtype=dtype, seed=8)
    rows, cols = torch.arange(n).flip(0) + 1, torch.arange(m) + 1
    return o.Selected(o.Dense(a), rows, cols), a[..., rows, :][..., cols], [a]


def _normalised(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, m, dtype=dtype, seed=8)
    positive = a.square() + 0.1
    return o.Dense(positive).normalised(), positive / positive.sum(-1, keepdim=True), [a]


def _diagonal(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, dtype=dtype, seed=8)
    return o.Diagonal(a), torch.diag_embed(a), [a]


def _weighted(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    op, matrix, leaves = _tiled(dtype, batch, n, m)
    w = _leaf(m, dtype=dtype, seed=11)
    return op @ o.Diagonal(w), matrix * w, [*leaves, w]


def _converted(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, m, dtype=torch.float64, seed=3)
    return o.Converted(o.Dense(a), dtype), a.to(dtype), [a]


def _toeplitz(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a, b = _leaf(*batch, n, dtype=dtype, seed=12), _leaf(m, dtype=dtype, seed=13)
    entry = {(i, j): a[..., i - j] if i >= j else b[j - i].expand(batch) for i in range(n) for j in range(m)}
    matrix = torch.stack([*entry.values()], -1).reshape(*batch, n, m) if entry else a.new_zeros(*batch, n, m)
    return o.Toeplitz(a, b), matrix + 0 * b.sum(), [a, b]  # scipy.linalg.toeplitz, entry by entry


def _circulant(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, n, dtype=dtype, seed=12)
    columns = [a.roll(j, -1) for j in range(n)]
    return o.Circulant(a), torch.stack(columns, -1) if n else torch.zeros(*batch, 0, 0, dtype=dtype), [a]


def _split(n: int) -> tuple[int, int]:
    return next(((p, n // p) for p in range(2, n) if n % p == 0), (1, n))


def _kronecker(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    a = _leaf(*batch, _split(n)[0], _split(m)[0], dtype=dtype, seed=12)
    b = _leaf(_split(n)[1], _split(m)[1], dtype=dtype, seed=13)
    return o.Kronecker(o.Dense(a), o.Dense(b)), torch.kron(a, b), [a, b]


def _block_toeplitz(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    (a, b), (c, d) = _split(n), _split(m)
    lags = _leaf(*batch, a + c - 1, b + d - 1, dtype=dtype, seed=12)
    rows, cols = ([(i, j) for i in range(p) for j in range(q)] for p, q in ((a, b), (c, d)))
    entries = [lags[..., i - k + c - 1, j - w + d - 1] for i, j in rows for k, w in cols]
    return o.BlockToeplitz(lags, (a, b), (c, d)), torch.stack(entries, -1).reshape(*batch, n, m), [lags]


def _sparse(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    places = [(i, j) for i in range(n) for j in range(m) if (3 * i + 5 * j) % 4 < 2]
    places = [*places[::2], *places[1::2], *places[:1]]  # not sorted, and the first place twice
    values = _leaf(*batch, len(places), dtype=dtype, seed=12)
    at = torch.zeros(len(places), n, m, dtype=dtype)
    for e, (i, j) in enumerate(places):
        at[e, i, j] = 1
    rows, cols = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
    return o.Sparse(values, rows, cols, (n, m)), torch.einsum("...e,enm->...nm", values, at), [values]


def _block(dtype: torch.dtype, batch: tuple[int, ...], n: int, m: int) -> Any:
    whole, h, w = _leaf(*batch, n, m, dtype=dtype, seed=12), n // 3, m // 2
    a, c, d = (o.Dense(part) for part in (whole[..., :h, :w], whole[..., h:, :w], whole[..., h:, w:]))
    zero = torch.ones(n, m, dtype=dtype)
    zero[:h, w:] = 0
    return o.Block([[a, None], [c, d]]), whole * zero, [whole]


OPERATORS = [
    OperatorCase("Tiled", _tiled),
    OperatorCase("Tiled-causal", _tiled_causal),
    OperatorCase("Tiled-softmax", _tiled_softmax, rows_sum_to_one=True),
    OperatorCase("Tiled-causal-softmax", _causal_softmax, rows_sum_to_one=True),
    OperatorCase("Fused", _fused(_tiled)),
    OperatorCase("Fused-mixture", _fused_mixture),
    OperatorCase("Fused-causal", _fused(_tiled_causal)),
    OperatorCase("Fused-softmax", _fused_softmax, rows_sum_to_one=True),
    OperatorCase("Fused-causal-softmax", _fused_causal_softmax, rows_sum_to_one=True),
    OperatorCase("Dense", _dense),
    OperatorCase("Dense-deferred", _deferred),
    OperatorCase("Weighted", _weighted),
    OperatorCase("Converted", _converted),
    OperatorCase("LowRank", _lowrank),
    OperatorCase("LowRank-causal", _lowrank_causal),
    OperatorCase("Shifted", _shifted, square=True),
    OperatorCase("Sum", _sum),
    OperatorCase("Composed", _composed),
    OperatorCase("Scaled", _scaled),
    OperatorCase("Selected", _selected),
    OperatorCase("Normalised", _normalised, rows_sum_to_one=True),
    OperatorCase("Diagonal", _diagonal, square=True),
    OperatorCase("Toeplitz", _toeplitz),
    OperatorCase("Circulant", _circulant, square=True),
    OperatorCase("Kronecker", _kronecker),
    OperatorCase("BlockToeplitz", _block_toeplitz),
    OperatorCase("Sparse", _sparse),
    OperatorCase("Block", _block),
]

# (case, property) -> why it cannot hold. Counted and printed at the end of a test run.
CANNOT: dict[tuple[str, str], str] = {
    ("Composed", "tril"): "the causal part of a composition is not a composition of causal parts",
    ("Selected", "tril"): "known by products only; Dense(A.dense()).tril() where the matrix fits",
    ("Normalised", "tril"): "the rows of a causal part have other sums: take tril() first, then normalised()",
    ("Fused-softmax", "tril"): "the rows of a causal part have other sums: take tril() first, then normalised()",
    ("Fused-causal-softmax", "tril"): "the rows of a causal part have other sums: take tril() first, then normalised()",
    ("Fused-softmax", "empty"): "a softmax over no columns is not defined",
    ("Fused-causal-softmax", "empty"): "a softmax over no columns is not defined",
    ("Tiled-softmax", "tril"): "the rows of a causal part have other sums: take tril() first, then normalised()",
    ("Tiled-causal-softmax", "tril"): "the rows of a causal part have other sums: take tril() first, then normalised()",
    ("Tiled-softmax", "empty"): "a softmax over no columns is not defined",
    ("Tiled-causal-softmax", "empty"): "a softmax over no columns is not defined",
    ("Normalised", "empty"): "a normalised row needs at least one column",
    ("BlockToeplitz", "tril"): "the causal part along one order of a grid is not Toeplitz along its axes",
    ("BlockToeplitz", "empty"): "a grid has at least one point along every axis",
    ("Kronecker", "tril"): "the causal part of a Kronecker product is not the product of causal parts",
}


@dataclass(frozen=True)
class FeatureCase:
    """A feature map on d columns and the kernel it stands for."""

    name: str
    make: Callable[[int], Any]
    kernel: Callable[[], k.Kernel]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _landmarks(d: int) -> Tensor:
    return torch.randn(12, d, generator=_generator(5), dtype=torch.float64)


FEATURES = [
    FeatureCase("Fourier", lambda d: f.Fourier(k.Matern(1.5), d, 128, _generator()), lambda: k.Matern(1.5)),
    FeatureCase("Orthogonal", lambda d: f.Orthogonal(k.Gaussian(1.5), d, 128, _generator()), lambda: k.Gaussian(1.5)),
    FeatureCase("Favor", lambda d: f.Favor(k.ExpDot(2.0), d, 128, generator=_generator()), lambda: k.ExpDot(2.0)),
    FeatureCase("Nystrom", lambda d: f.Nystrom(k.Gaussian(1.5), _landmarks(d)), lambda: k.Gaussian(1.5)),
]


def _network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


# kernels whose reference is not a scalar formula: their own test files hold it
ROLE_KERNELS: dict[str, Callable[[], k.Kernel]] = {
    **{case.name: (lambda case=case: case.make(3)) for case in KERNELS},
    **{f"features.{case.name}": (lambda case=case: case.make(3)) for case in FEATURES},
    "EmpiricalNTK": lambda: k.EmpiricalNTK(_network()),
}

_F, _OP, _FE, _NN, _CMP = (
    f"tests/test_{room}.py::test_" for room in ("kernels", "operators", "features", "nn", "compare")
)
_LIN, _LEARN = "tests/test_linalg.py::test_", "tests/test_learn.py::test_"
_PROCESS, _VARIATIONAL = "tests/test_process.py::test_", "tests/test_variational.py::test_"
_MAR, _CAS = "tests/test_margins.py::test_", "tests/test_cascade.py::test_"
_DEEP = "tests/test_deep.py::test_"
_KRY, _SPE, _GRA = (f"tests/test_linalg_{part}.py::test_" for part in ("krylov", "spectral", "gradients"))

# every public name -> the test that holds it against something that is not mercer
COVERED: dict[str, str] = {
    **{f"kernels.{type(case.make(3)).__name__}": _F + "formula" for case in KERNELS},
    "kernels.Columns": _F + "formula",
    "kernels.Metric": _F + "formula",
    "kernels.Kernel": _F + "all_triples_obey_the_algebra",
    "numerics.squared_distance": "tests/test_numerics.py::test_squared_distance_against_exact_fractions",
    "numerics.absolute_distance": "tests/test_numerics.py::test_absolute_distance_against_numpy_with_gradients",
    "numerics.centre": "tests/test_numerics.py::test_centre_is_moved_neither_by_outliers_nor_by_nan",
    **{
        f"numerics.{name}": "tests/test_numerics.py::test_exponentials_and_logarithms_against_numpy"
        for name in ("exp", "log", "log_add")
    },
    "operators.conv": "tests/test_convolve.py::test_every_method_equals_torch_with_gradients",
    "operators.conv_plan": "tests/test_convolve.py::test_the_plan_names_every_method_best_first",
    "operators.Pivots": "tests/test_operators.py::test_approximations_compete_only_under_a_tolerance_and_keep_it",
    "machine.core": "tests/test_machine.py::test_products_stay_within_the_stated_error",
    "kernels.ProfileKernel": _F + "mixed_derivative_at_coincident_points",
    "kernels.EmpiricalNTK": "tests/test_ntk.py::test_kernel_equals_the_double_loop",
    **{
        f"operators.{name}": _OP + "product_and_transpose"
        for name in (
            "Tiled",
            "Fused",
            "Converted",
            "Dense",
            "LowRank",
            "Shifted",
            "Sum",
            "Composed",
            "Scaled",
            "Selected",
            "Normalised",
            "Toeplitz",
            "Circulant",
            "BlockToeplitz",
            "Kronecker",
            "Sparse",
            "Block",
        )
    },
    "operators.Solvable": "tests/test_structure.py::test_solve_and_logdet_agree_with_the_dense_matrix",
    "operators.Vecchia": "tests/test_structure.py::test_vecchia_is_the_sequential_conditional_density",
    "operators.Diagonal": _OP + "product_and_transpose",
    "operators.Operator": _OP + "product_and_transpose",
    "operators.PositiveLowRank": _FE + "positive_lowrank_equals_its_matrix",
    "features.Fourier": _FE + "features_equal_their_formulas",
    "features.Orthogonal": _FE + "orthogonal_directions_reduce_the_error",
    "features.Favor": _FE + "features_equal_their_formulas",
    "features.Nystrom": _LIN + "nystrom_equals_the_formula_and_is_exact_at_landmarks",
    "linalg.Cholesky": _LIN + "cholesky_agrees_with_scipy",
    "linalg.Factor": _LIN + "cholesky_agrees_with_scipy",
    "linalg.CG": _LIN + "cg_agrees_with_scipy_and_direct",
    "linalg.BlockCG": _KRY + "block_cg_shares_its_space_and_survives_dependent_columns",
    "linalg.MINRES": _KRY + "minres_agrees_with_scipy_on_indefinite_systems",
    "linalg.Refined": _KRY + "refinement_reaches_float64_residuals_with_float32_products",
    "linalg.solve": _GRA + "solutions_have_the_gradients_of_dense_algebra",
    "linalg.logdet": _GRA + "log_determinants_have_the_gradients_of_dense_algebra",
    "linalg.SLQ": _SPE + "error_bars_of_log_determinants_hold_the_exact_value",
    "linalg.Estimate": _SPE + "error_bars_of_log_determinants_hold_the_exact_value",
    "linalg.trace_inverse": _SPE + "error_bars_of_traces_of_inverses_hold_the_exact_value",
    "linalg.lanczos": _SPE + "lanczos_is_a_tridiagonalisation",
    "linalg.Tridiagonal": _SPE + "lanczos_is_a_tridiagonalisation",
    "linalg.eigenpairs": _SPE + "eigenpairs_agree_with_scipy",
    "linalg.Eigenpairs": _SPE + "eigenpairs_agree_with_scipy",
    "linalg.randomised_eigenpairs": _SPE + "randomised_eigenpairs_see_copies_and_say_what_is_missing",
    "linalg.Preconditioner": _LIN + "preconditioners_save_iterations",
    "linalg.PivotedCholesky": _LIN + "preconditioners_save_iterations",
    "linalg.NystromPreconditioner": _LIN + "preconditioners_save_iterations",
    "linalg.Woodbury": _LIN + "woodbury_is_the_inverse",
    "learn.FalkonRegressor": "tests/test_falkon.py::test_the_direct_solution_is_reached",
    "learn.FalkonClassifier": "tests/test_falkon.py::test_log_odds_equal_scikit_learn_on_nystrom_features",
    "learn.KernelRidge": _LEARN + "ridge_agrees_with_scikit_learn",
    "learn.GaussianProcessRegressor": _LEARN + "process_agrees_with_scikit_learn",
    "learn.MultitaskGaussianProcess": _PROCESS + "predictions_for_tasks_are_those_of_one_large_gaussian",
    "learn.KernelClassifier": _LEARN + "probabilities_are_calibrated_and_better_than_a_line",
    "learn.NeighbourRidge": "tests/test_neighbours.py::test_all_rows_as_neighbours_is_ordinary_kriging",
    "learn.PolyharmonicCascadeRegressor": _CAS + "a_package_is_the_thin_plate_spline_of_scipy",
    "learn.PolyharmonicCascadeClassifier": _CAS + "one_solve_is_damped_least_squares_in_all_values_at_once",
    "learn.RecursiveFeatureClassifier": "tests/test_rfm.py::test_a_classifier_learns_directions_too",
    "learn.RecursiveFeatureMachine": "tests/test_rfm.py::test_directions_are_found_and_held_out_rows_choose_the_round",
    "learn.SpectralRegressor": "tests/test_spectral.py::test_every_filter_is_the_algorithm_it_names",
    "learn.TransformedKernelRidge": "tests/test_spectral.py::test_inductive_is_the_transductive_closed_form",
    "learn.TransformedKernelClassifier": "tests/test_spectral.py::test_unlabelled_rows_beat_any_ridge",
    "learn.KernelSmootherRegressor": "tests/test_smoother.py::test_means_equal_the_double_loop",
    "learn.KernelSmootherClassifier": "tests/test_smoother.py::test_chances_are_shares_of_the_weights",
    "learn.InterpolatedClassifier": "tests/test_smoother.py::test_interpolation_is_soft_voting_with_these_weights",
    "learn.DeepKernelMachine": _DEEP + "gram_matrices_are_the_second_moments_of_a_wide_deep_process",
    "learn.DeepKernelMachineClassifier": _DEEP + "classes",
    "learn.ConvolutionalDeepKernelMachine": _DEEP + "convolutional_tower_is_the_dense_network_gaussian_process",
    "learn.KernelPCA": "tests/test_pca.py::test_eigenvectors_agree_with_scikit_learn",
    "learn.KernelKMeans": "tests/test_cluster.py::test_with_a_linear_kernel_it_is_k_means",
    "learn.KernelSpectralClustering": "tests/test_cluster.py::test_modes_are_those_of_the_random_walk",
    "learn.KernelMeanClassifier": _MAR + "with_a_linear_kernel_the_mean_classifier_is_the_nearest_centroid",
    "learn.KernelSVC": _MAR + "the_support_vector_machine_is_libsvm",
    "learn.KernelNovelty": _MAR + "novelty_is_the_variance_of_a_gaussian_process",
    "kernels.Precomputed": _MAR + "a_given_matrix_is_checked",
    "learn.EigenProRegressor": "tests/test_eigenpro.py::test_landmarks_apart_reach_their_least_squares",
    "learn.EigenProClassifier": "tests/test_eigenpro.py::test_logistic_descent_finds_the_likeliest_weights",
    "learn.explain": "tests/test_options.py::test_what_landmarks_leave_is_the_schur_complement",
    "learn.LocalConformal": _LEARN + "intervals_cover_and_follow_the_noise",
    "learn.VecchiaGaussianProcess": "tests/test_vecchia_gp.py::test_predictions_with_all_neighbours_are_exact",
    "learn.LatentVecchiaProcess": "tests/test_vecchia_gp.py::test_gaussian_posterior_of_all_neighbours_is_exact",
    "learn.VariationalGaussianProcess": _VARIATIONAL + "with_every_row_a_landmark_it_is_the_exact_process",
    "learn.VariationalGaussianProcessClassifier": _VARIATIONAL + "labels_of_two_and_three_classes",
    "compare.mmd": _CMP + "statistic_equals_the_double_loop",
    "compare.squared_mmd": _CMP + "statistic_equals_the_double_loop",
    "compare.MMDResult": _CMP + "null_draws_are_the_statistic_of_permuted_samples",
    "compare.smoothness": "tests/test_smoothness.py::test_known_smoothness_is_recovered",
    "compare.Smoothness": "tests/test_smoothness.py::test_lanczos_gives_what_all_eigenpairs_give",
    "compare.median_kernel": _CMP + "units_do_not_matter_and_the_seed_does",
    "compress.thin": "tests/test_compress.py::test_walk_is_the_published_halving",
    "nn.KernelAttention": _NN + "attention_equals_the_loop",
    "nn.MultiheadKernelAttention": _NN + "multihead_loads_torch_weights",
    "nn.KernelConv": _NN + "conv_direct_and_fft_equal_the_loop",
    "nn.SpectralConv": _NN + "spectral_conv_equals_its_definition",
}
