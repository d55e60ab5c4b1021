"""Structured operators: found from the arrangement of the points, equal to the dense matrix, solved by structure."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist

import mercer.operators.levinson as levinson
from mercer.assemble import _request as request_for
from mercer.assemble import assemble, candidates, explain
from mercer.budget import memory
from mercer.claims import PSD, Claim
from mercer.domain import Grid, Line
from mercer.errors import ConvergenceWarning, DataError, NotPositiveDefiniteError, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.kernels import Constant, Cosine, Gaussian, Laplace, Linear, Matern, Periodic, Wendland
from mercer.operators import (
    Block,
    BlockToeplitz,
    Circulant,
    Dense,
    Kronecker,
    Solvable,
    Sparse,
    Tiled,
    Toeplitz,
    Vecchia,
)
from mercer.operators.ordering import earlier_neighbours, maximin
from mercer.operators.sparse import compact
from tests.peak import peak_bytes

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(got, want, tol: float = 1e-12) -> None:
    got, want = (t.detach().numpy() if isinstance(t, torch.Tensor) else np.asarray(t) for t in (got, want))
    assert got.shape == want.shape, (got.shape, want.shape)
    scale = max(float(np.abs(want).max()), 1.0) if want.size else 1.0
    assert np.abs(got - want).max(initial=0) <= tol * scale, np.abs(got - want).max()


def spd(n: int, seed: int) -> torch.Tensor:
    a = draw(n, n, seed=seed)
    return a @ a.mT / n + 0.5 * torch.eye(n, dtype=F64)


def toeplitz_case(n: int):
    column = torch.tensor([0.7**i * math.cos(0.4 * i) for i in range(n)], dtype=F64)
    return Toeplitz(column), scipy.linalg.toeplitz(column.numpy())


def skew_toeplitz_case(n: int):
    column, row = draw(n, seed=1) + 4 * torch.eye(n, dtype=F64)[0], draw(n, seed=2)
    return Toeplitz(column, row), scipy.linalg.toeplitz(column.numpy(), row.numpy())


def circulant_case(n: int):
    column = draw(n, seed=3) + 3 * math.sqrt(n) * torch.eye(n, dtype=F64)[0]
    return Circulant(column), scipy.linalg.circulant(column.numpy())


def kronecker_case(n: int):
    a, b = spd(n, 4), spd(3, 5)
    return Kronecker(Dense(a, PSD), Dense(b, PSD)), np.kron(a.numpy(), b.numpy())


def sparse_case(n: int):
    a = spd(n, 6) * (draw(n, n, seed=7) > 0.6)
    a = a + a.mT + 2 * n * torch.eye(n, dtype=F64)
    rows, cols = a.nonzero().T
    return Sparse(a[rows, cols], rows, cols, (n, n), PSD), a.numpy()


SOLVABLE = [toeplitz_case, skew_toeplitz_case, circulant_case, kronecker_case, sparse_case]


@pytest.mark.parametrize("case", SOLVABLE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("n", [1, 2, 13, 40])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_solve_and_logdet_agree_with_the_dense_matrix(case, n, shift):
    op, matrix = case(n)
    assert isinstance(op, Solvable)
    close(op.dense(), matrix)
    size = len(matrix)
    shifted = matrix + shift * np.eye(size)
    for b in (draw(size, seed=8), draw(size, 3, seed=8), draw(2, size, 3, seed=8)):
        found = op.solve(b, shift)
        want = np.linalg.solve(shifted, b.numpy() if b.ndim > 1 else b.numpy()[:, None])
        close(found.value, want if b.ndim > 1 else want[:, 0], 1e-10)
        assert found.converged and found.residual < 1e-11
    sign, value = np.linalg.slogdet(shifted)
    if case is skew_toeplitz_case:
        with pytest.raises(StructureError, match="symmetric"):
            op.logdet(shift)
    else:
        assert sign > 0
        close(op.logdet(shift), value, 1e-10)


def test_solves_in_batches_and_float32():
    column = torch.stack([toeplitz_case(9)[0].lags()[8:], 0.5 * toeplitz_case(9)[0].lags()[8:]])
    for op in (
        Toeplitz(column),
        Circulant(column + 9 * torch.eye(9, dtype=F64)[0]),
        Kronecker(Dense(torch.stack([spd(3, 1), spd(3, 2)])), Dense(spd(3, 3))),
        Sparse(
            torch.stack([draw(9, seed=1).exp(), draw(9, seed=2).exp()]), torch.arange(9), torch.arange(9), (9, 9), PSD
        ),
    ):
        for b in (draw(9, 2), draw(2, 9, 1)):
            close(op.solve(b).value, torch.linalg.solve(op.dense(), b), 1e-11)
        close(op.logdet(), torch.linalg.slogdet(op.dense())[1], 1e-11)
    op = Toeplitz(column[0].float())
    close(op.solve(draw(9, 2).float()).value.double(), torch.linalg.solve(op.dense().double(), draw(9, 2)), 1e-5)


@pytest.mark.parametrize("name", ["toeplitz", "circulant", "kronecker", "sparse", "vecchia"])
def test_answers_are_twice_differentiable(name):
    shift, b = torch.tensor(0.3, dtype=F64, requires_grad=True), draw(6, 1, seed=9).requires_grad_()
    if name == "vecchia":
        made = [uniform(6, 2, seed=4).requires_grad_(), (kernel := Matern(2.5, 0.8)).log_lengthscale]
        op = lambda x, raw: Vecchia(kernel, x, shift, 3)  # noqa: E731
    elif name == "kronecker":
        even = lambda a: Dense((a + a.mT) / 2, PSD)  # noqa: E731
        made = [spd(2, 1).requires_grad_(), spd(3, 2).requires_grad_()]
        op = lambda a, b: Kronecker(even(a), even(b))  # noqa: E731
    elif name == "sparse":
        at = torch.tensor([0, 0, 1, 2, 3, 4, 5, 1, 4, 2, 5]), torch.tensor([0, 1, 1, 2, 3, 4, 5, 0, 2, 4, 5])
        made = [torch.tensor([4, 1, 4, 4, 5, 4, 4, 1, 0.5, 0.5, 0.3], dtype=F64, requires_grad=True)]
        both = lambda v: torch.cat([v[:7], v[1:2], v[8:9], v[8:9], v[10:]])  # noqa: E731
        op = lambda v: Sparse(both(v), *at, (6, 6), PSD)  # noqa: E731
    else:
        made = [toeplitz_case(6)[0].lags()[5:].requires_grad_()]
        op = {"toeplitz": Toeplitz, "circulant": Circulant}[name]

    def answers(shift, b, *tensors):
        a = op(*tensors)
        if name == "vecchia":
            return a.solve(b).value, a.logdet(), a @ b
        return a.solve(b, shift).value, a.logdet(shift)

    assert torch.autograd.gradcheck(answers, (shift, b, *made))
    assert torch.autograd.gradgradcheck(answers, (shift, b, *made))


class Ramp(Kernel):
    """exp(-|t|) with another rate for t > 0: stationary, not symmetric."""

    claims = frozenset({Claim.STATIONARY})

    def __init__(self):
        super().__init__()

    def block(self, x, y):
        t = x[..., :, None, 0] - y[..., None, :, 0]
        return torch.where(t > 0, torch.exp(-3 * t), torch.exp(t))


class SkewRamp(Ramp):
    """Ramp of the first column times a Laplace factor of the others."""

    def block(self, x, y):
        rest = (x[..., :, None, 1:] - y[..., None, :, 1:]).abs().sum(-1)
        return super().block(x, y) * torch.exp(-rest)


def matern32(t: float) -> float:
    r = math.sqrt(3) * abs(t) / 0.4
    return 2.5 * (1 + r) * math.exp(-r)


def repeating(t: float) -> float:
    return math.exp(-2 * math.sin(math.pi * t / 1.3) ** 2 / 0.9**2) + math.exp(-abs(t) / 2)


LINES = [
    (Gaussian(0.7), lambda t: math.exp(-0.5 * (t / 0.7) ** 2)),
    (2.5 * Matern(1.5, 0.4), matern32),
    (Periodic(0.9, 1.3) + Laplace(2.0), repeating),
    (Ramp(), lambda t: math.exp(-3 * t) if t > 0 else math.exp(t)),
]


@pytest.mark.parametrize(("kernel", "formula"), LINES, ids=["Gaussian", "Matern", "sum", "Ramp"])
@pytest.mark.parametrize("size", [(1, 1), (31, 31), (17, 40), (64, 5)], ids=str)
def test_a_stationary_kernel_on_lines_is_toeplitz(kernel, formula, size):
    n, m = size
    x, y = Line(n, 0.125, 1.0, dtype=F64), Line(m, 0.125, -0.75, dtype=F64)
    pairs = [(x, y, 1.75)] + ([(x, None, 0.0)] if n == m else [])
    for left, right, offset in pairs:
        op = Toeplitz.on(kernel, left, right)
        column = [formula(offset + 0.125 * i) for i in range(n)]
        row = [formula(offset - 0.125 * j) for j in range(m)]
        matrix = scipy.linalg.toeplitz(column, row)
        v, u = draw(m, 3, seed=1), draw(n, 2, seed=2)
        close(op @ v, matrix @ v.numpy())
        close(op.mT @ u, matrix.T @ u.numpy())
        close(op.tril() @ v, np.tril(matrix) @ v.numpy())
        close(op.dense(), matrix)
        assert type(op[:3, :2]) is Toeplitz
        close(op[:3, :2] @ v[:2], matrix[:3, :2] @ v[:2].numpy())
        assert op.claims == (kernel.claims if right is None else frozenset())
        if parameters := list(kernel.parameters()):
            dense = kernel.block(left.points, (left if right is None else right).points)
            got = torch.autograd.grad((op @ v).sin().sum(), parameters, create_graph=True)
            want = torch.autograd.grad((dense @ v).sin().sum(), parameters, create_graph=True)
            for g, w in zip(got, want, strict=True):
                close(g, w, 1e-11)
            got = torch.autograd.grad(sum(g.square().sum() for g in got), parameters)
            for g, w in zip(got, torch.autograd.grad(sum(w.square().sum() for w in want), parameters), strict=True):
                close(g, w, 1e-10)


def softmax_of_tril(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf), -1)


def structured(kernel: Kernel, x, y=None) -> list:
    names = ("Toeplitz", "Kronecker", "BlockToeplitz")
    return [c.operator for c in candidates(request_for(kernel, x, y, 1, 1)) if c.name in names]


@pytest.mark.parametrize("d", [1, 2])
def test_what_tiles_can_do_structure_can_too(d):
    """Causal parts, softmax far away, chosen rows: whatever `assemble` picks, the caller must not notice."""
    axes = [Line(12, 0.5, 1.0, dtype=F64), Line(5, 0.7, dtype=F64)][:d]
    far = [Line(9, 0.5, 60.0, dtype=F64), Line(4, 0.7, 5.0, dtype=F64)][:d]
    x, y = (axes[0], far[0]) if d == 1 else (Grid(*axes), Grid(*far))
    kernel = Gaussian(0.8)
    ops = structured(kernel, x)
    assert len(ops) == d
    for op in ops:
        matrix, v = kernel.block(x.points, x.points), draw(op.shape[1], 2)
        close(op.tril() @ v, matrix.tril() @ v)
        close(op.mT.tril() @ v, matrix.mT.tril() @ v)
        close(op.normalised() @ v, matrix @ v / matrix.sum(-1, keepdim=True))
        close(op[[3, 0, 3], 1:].dense(), matrix[[3, 0, 3], 1:])
        close(op[2], matrix[2])
        close(op.tril().normalised() @ v, matrix.tril() @ v / matrix.tril().sum(-1, keepdim=True))
    for op in structured(kernel, x, y):
        v = draw(op.shape[1], 2)
        squares = ((x.points[:, None] - y.points[None]) / 0.8).square().sum(-1)
        assert float(torch.exp(-squares / 2).max()) == 0.0  # every entry underflows
        close(op.normalised() @ v, torch.softmax(-squares / 2, -1) @ v)
        close(op.tril().mT.mT.normalised() @ v, softmax_of_tril(-squares / 2) @ v)
        part = op[1:3, :2]
        close(part.normalised() @ v[:2], torch.softmax(-squares[1:3, :2] / 2, -1) @ v[:2])
        close(op.mT.normalised() @ draw(op.shape[0], 1), torch.softmax(-squares.mT / 2, -1) @ draw(op.shape[0], 1))
    for op in structured(Cosine(1.3), x):
        with pytest.raises(StructureError, match="may be negative"):
            op.normalised()


def test_a_line_follows_its_kernel():
    kernel, line, v = Gaussian(0.5), Line(30, 0.1, dtype=F64), draw(30, 1)
    op = Toeplitz.on(kernel, line)
    with torch.no_grad():
        op @ v
        kernel.lengthscale = 1.5
        close(op @ v, Gaussian(1.5).block(line.points, line.points) @ v)


def test_levinson_and_conjugate_gradients_agree(monkeypatch):
    t = np.array([math.exp(-0.5 * (0.3 * i) ** 2) for i in range(200)])
    t[0] += 1e-3
    b = draw(200, 2, seed=3)
    want = scipy.linalg.solve_toeplitz(t, b.numpy())
    op = Toeplitz(torch.from_numpy(t))
    close(op.solve(b).value, want, 1e-9)
    monkeypatch.setattr(levinson, "DIRECT", 8)
    found = op.solve(b)
    close(found.value, want, 1e-6)
    assert 1 < found.iterations < 200 and found.residual < 1e-9
    monkeypatch.setattr(levinson, "MOST", 2)
    with pytest.warns(ConvergenceWarning, match="residual"):
        found = op.solve(b)
    true = np.linalg.norm(scipy.linalg.toeplitz(t) @ found.value.numpy() - b.numpy(), axis=0) / b.norm(dim=0).numpy()
    assert not found.converged and abs(found.residual - true.max()) < 1e-9


GRIDS = [
    (Gaussian([0.6, 1.1, 0.8]), True),
    (2.5 * Laplace(0.7), True),
    (Periodic(0.9, 1.3) * Gaussian(2.0), True),
    (0.5 * Matern(1.5, 0.3).on(0) * Matern(2.5, 0.4).on(1) * Gaussian(0.9).on([2]), True),
    (Matern(1.5, 0.5), False),
    (Gaussian(1.0) + Laplace(1.0), False),
]


@pytest.mark.parametrize(("kernel", "found"), GRIDS, ids=lambda v: repr(v)[:24])
def test_a_separable_kernel_on_a_grid_is_kronecker(kernel, found):
    x = Grid(Line(4, 0.3, dtype=F64), Line(3, 0.2, 1.0, dtype=F64), Line(5, 0.1, -2.0, dtype=F64))
    y = Grid(Line(2, 0.3, 0.1, dtype=F64), Line(6, 0.25, dtype=F64), Line(1, 0.1, -1.0, dtype=F64))
    for right in (None, y):
        ops = [c.operator for c in candidates(request_for(kernel, x, right, 1, 1)) if c.name == "Kronecker"]
        assert bool(ops) == found
        for op in ops:
            dense = kernel.block(x.points, (right or x).points)
            v, u = draw(dense.shape[1], 2), draw(60, 2, seed=1)
            close(op @ v, dense @ v)
            close(op.mT @ u, dense.mT @ u)
            close(op.diagonal(), dense.diagonal())
            assert (Claim.PSD in op.claims) == (right is None)
            parameters = list(kernel.parameters())
            got = torch.autograd.grad((op @ v).sin().sum(), parameters)
            for g, w in zip(got, torch.autograd.grad((dense @ v).sin().sum(), parameters), strict=True):
                close(g, w, 1e-11)


def test_a_grid_of_lines_is_solved_through_its_factors():
    grid = Grid(Line(12, 0.3, dtype=F64), Line(9, 0.2, dtype=F64))
    kernel, b = 1.5 * Laplace(0.8), draw(108, 2)
    op = next(c.operator for c in candidates(request_for(kernel, grid, None, 1, 1)) if c.name == "Kronecker")
    x, y = np.arange(12) * 0.3, np.arange(9) * 0.2
    matrix = 1.5 * np.kron(np.exp(-abs(x[:, None] - x) / 0.8), np.exp(-abs(y[:, None] - y) / 0.8)) + 0.1 * np.eye(108)
    close(op.solve(b, 0.1).value, np.linalg.solve(matrix, b.numpy()), 1e-11)
    close(op.logdet(0.1), np.linalg.slogdet(matrix)[1], 1e-11)


@pytest.mark.parametrize(
    "kernel", [2.0 * Matern(1.5, 0.5), Gaussian([0.6, 1.1, 0.8]), SkewRamp()], ids=["Matern", "Gaussian", "skew"]
)
def test_a_stationary_kernel_on_a_grid_is_block_toeplitz(kernel):
    x = Grid(Line(4, 0.3, dtype=F64), Line(3, 0.2, 1.0, dtype=F64), Line(5, 0.1, -2.0, dtype=F64))
    y = Grid(Line(2, 0.3, 0.1, dtype=F64), Line(6, 0.2, dtype=F64), Line(1, 0.1, -1.0, dtype=F64))
    for right in (None, y):
        op = BlockToeplitz.on(kernel, x, right)
        dense = kernel.block(x.points, (right or x).points)
        v, u = draw(dense.shape[1], 2), draw(60, 2, seed=1)
        close(op @ v, dense @ v)
        close(op.mT @ u, dense.mT @ u)
        assert op.claims == (kernel.claims if right is None else frozenset())
        if parameters := list(kernel.parameters()):
            got = torch.autograd.grad((op @ v).sin().sum(), parameters)
            for g, w in zip(got, torch.autograd.grad((dense @ v).sin().sum(), parameters), strict=True):
                close(g, w, 1e-11)
    with pytest.raises(StructureError, match="equal steps"):
        BlockToeplitz.on(kernel, x, Grid(*y.axes[:2], Line(1, 0.2, dtype=F64)))
    if Claim.PSD in kernel.claims:
        op, eye = BlockToeplitz.on(kernel, x), torch.eye(60, dtype=F64)
        found = op.solve(u, 0.1)
        close(found.value, torch.linalg.solve(kernel.block(x.points, x.points) + 0.1 * eye, u), 1e-8)
        assert found.converged and found.residual < 1e-9 and found.iterations > 1
        close(op.logdet(0.1), torch.linalg.slogdet(kernel.block(x.points, x.points) + 0.1 * eye)[1], 1e-11)
        shift = torch.tensor(0.1, dtype=F64, requires_grad=True)
        leaves = [shift, *kernel.parameters()]
        got = torch.autograd.grad(op.solve(u, shift).value.sin().sum(), leaves)
        exact = torch.linalg.solve(kernel.block(x.points, x.points) + shift * eye, u)
        for g, w in zip(got, torch.autograd.grad(exact.sin().sum(), leaves), strict=True):
            close(g, w, 1e-7)


COMPACT = [
    Wendland(0.35, 1, 3),
    Wendland([0.2, 0.5], 2, 2),
    2.0 * Wendland(0.4, 0, 2) * Gaussian(0.8),
]


@pytest.mark.parametrize("kernel", COMPACT, ids=repr)
def test_a_compact_kernel_is_sparse(kernel):
    x, y = uniform(70, 2, seed=1) + 1e3, uniform(50, 2, seed=2) + 1e3  # far from the origin
    y[0] = x[0]
    lengthscale = next(k for k in kernel.modules() if isinstance(k, Wendland)).lengthscale.detach().numpy()
    near = cdist(x.numpy() / lengthscale, y.numpy() / lengthscale) < 1
    op, dense = Sparse.within(kernel, x, y), kernel.block(x, y)
    pattern, _ = op.parts()
    assert len(pattern.rows) == near.sum() and 0 < near.mean() < 0.5
    v, u = draw(50, 3), draw(70, 2)
    close(op @ v, dense @ v, 1e-11)
    close(op.mT @ u, dense.mT @ u, 1e-11)
    close(op.diagonal(), dense.diagonal(), 1e-11)
    close(op[[3, 3, 60], 5:].dense(), dense[[3, 3, 60], 5:], 1e-11)
    both = Sparse.within(kernel, x)
    assert both.claims == kernel.claims
    close(both.solve(u, 0.1).value, torch.linalg.solve(kernel.block(x, x) + 0.1 * torch.eye(70, dtype=F64), u), 1e-10)
    leaves = [x.requires_grad_(), y.requires_grad_(), v.requires_grad_(), *kernel.parameters()]
    got = torch.autograd.grad((op @ v).sin().sum(), leaves, create_graph=True)
    want = torch.autograd.grad((kernel.block(x, y) @ v).sin().sum(), leaves, create_graph=True)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-9)


BEND = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()).double()
with torch.no_grad():
    BEND[0].weight.copy_(torch.tensor([[2.0, 0.5, -1.0], [0.5, -1.5, 1.0]]))
    BEND[0].bias.zero_()
MADE_OF_COMPACT = {
    "sum": Wendland(0.3, 1, 3) + Wendland([0.5, 0.2, 0.4], 0, 3),
    "scaled sum": 2.0 * (Wendland(0.3, 1, 3) + 0.5 * Wendland(0.2, 2, 3)),
    "columns": Wendland(0.2, 1, 2).on([0, 2]),
    "product of columns": Wendland(0.4, 1, 1).on(0) * Wendland(0.1, 1, 1).on(1) * Matern(1.5).on(2),
    "sum of products": Wendland(0.3, 1, 3) * Gaussian() + Linear() * Wendland(0.2, 1, 1).on(1) * Wendland(0.9, 0, 3),
    "product of sums": (Wendland(0.2, 1, 3) + Wendland(0.1, 0, 3)) * (Gaussian() + Constant(0.3)),
    "warp": Wendland(0.3, 1, 2).warp(BEND),
    "warp of a sum of columns": (Wendland(0.2, 1, 1).on(0) + 0.3 * Wendland(0.1, 1, 2)).warp(BEND),
}


@pytest.mark.parametrize("name", MADE_OF_COMPACT)
def test_what_is_made_of_compact_kernels_is_sparse(name):
    """Products, transposes, and gradients by points, values and every parameter, warps too: those of the matrix."""
    kernel = MADE_OF_COMPACT[name]
    x, y = uniform(90, 3, seed=1).requires_grad_(), uniform(60, 3, seed=2).requires_grad_()
    v, w = draw(60, 2).requires_grad_(), draw(90, 2)
    with torch.no_grad():
        assert len(Sparse.within(kernel, x, y).parts()[0].rows) < 0.6 * 90 * 60
    leaves = [x, y, v, *kernel.parameters()]
    found, wanted = Sparse.within(kernel, x, y) @ v, kernel.block(x, y) @ v
    close(found, wanted, 1e-12)
    close(Sparse.within(kernel, x, y).mT @ w, kernel.block(x, y).mT @ w, 1e-12)
    close(Sparse.within(kernel, x).dense(), kernel.block(x, x), 1e-12)
    for got, true in zip(
        torch.autograd.grad((found * w).sum(), leaves), torch.autograd.grad((wanted * w).sum(), leaves), strict=True
    ):
        close(got, true, 1e-11)
    assert isinstance(compact(request_for(kernel, uniform(700, 3), None, 1, 1)), Sparse)


@pytest.mark.parametrize(
    "kernel",
    [Wendland() + Gaussian(), Wendland() + Constant(), Gaussian().warp(BEND), Wendland() * Gaussian() + Linear()],
)
def test_one_part_that_reaches_everywhere_is_enough(kernel):
    with pytest.raises(StructureError, match="made of such"):
        Sparse.within(kernel, uniform(9, 3))


def test_a_point_that_is_not_finite_has_no_neighbours():
    x = uniform(30, 2)
    x[7, 1] = torch.nan
    with pytest.raises(DataError, match="x has a number that is not finite in row 7"):
        _ = Sparse.within(Wendland(0.3, 1, 2), x) @ draw(30, 1)


def test_sparse_entries_follow_points_and_parameters():
    x, v, kernel = uniform(80, 2), draw(80, 1), Wendland(0.2, 1, 2)
    op = Sparse.within(kernel, x)
    with torch.no_grad():
        first = op.parts()
        assert op.parts()[1] is first[1]  # kept
        kernel.lengthscale = 0.6
        assert len(op.parts()[0].rows) > len(first[0].rows)
        close(op @ v, kernel.block(x, x) @ v)
        x[0] += 0.4
        close(op @ v, kernel.block(x, x) @ v)


def test_reach_of_an_unknown_profile_is_found():
    class Cut(Wendland):
        def profile(self, s):
            return super().profile(s / 6.25)

    x = uniform(60, 1)
    kernel = Cut(0.05, 1, 1)
    close(Sparse.within(kernel, x).dense(), kernel.block(x, x))
    assert len(Sparse.within(kernel, x).parts()[0].rows) == (cdist(x, x) < 2.5 * 0.05).sum()
    with pytest.raises(StructureError, match="zero beyond a distance"):
        Sparse.within(Gaussian(), x)


def test_vecchia_is_the_sequential_conditional_density():
    """-log p(b) / const = sum of conditional normal densities given the nearest earlier points [vecchia1988]."""
    x, b, noise = uniform(40, 2), draw(40), 0.05
    op = Vecchia(2.0 * Matern(1.5, 0.5), x, noise, neighbours=5)

    def cov(a, c):
        r = math.sqrt(3) * cdist(a, c) / 0.5
        return 2 * (1 + r) * np.exp(-r)

    points, values = x.numpy(), b.numpy()
    order = maximin(points)
    total = 0.0
    for place, i in enumerate(order):
        before = order[:place]
        near = before[np.argsort(np.linalg.norm(points[before] - points[i], axis=1))[:5]]
        gram, cross = cov(points[near], points[near]) + noise * np.eye(len(near)), cov(points[near], points[[i]])
        weights = np.linalg.solve(gram, cross)[:, 0]
        variance = 2 + noise - float(weights @ cross[:, 0])
        total += scipy.stats.norm.logpdf(values[i], weights @ values[near], math.sqrt(variance))
    quadratic = float(b @ op.solve(b).value.detach())
    assert abs(-0.5 * (quadratic + float(op.logdet().detach()) + 40 * math.log(2 * math.pi)) - total) < 1e-9
    v = draw(40, 2)
    close(op.solve(op @ v).value, v, 1e-10)
    close(op.precision() @ v, op.solve(v).value, 1e-10)
    close(op.factor() @ (op.factor().mT @ v), op.solve(v).value, 1e-10)


def test_vecchia_error_falls_with_neighbours_and_is_said():
    x, v, kernel = uniform(120, 2), draw(120, 3), Matern(1.5, 0.6)
    matrix = kernel.block(x, x).detach() + 0.02 * torch.eye(120, dtype=F64)
    divergence, errors = [], []
    for neighbours in (1, 4, 16, 119):
        op = Vecchia(kernel, x, 0.02, neighbours)
        divergence.append(0.5 * float((op.logdet() - torch.linalg.slogdet(matrix)[1]).detach()))
        inverse = op.precision().dense().detach()
        full = 0.5 * float((matrix @ inverse).trace() - 120 + op.logdet().detach() - torch.linalg.slogdet(matrix)[1])
        assert abs(full - divergence[-1]) < 1e-8  # its trace term is n: the factor is the best of its pattern
        errors.append(op.error(v))
        assert abs(errors[-1] - float((op @ v - matrix @ v).detach().norm() / (matrix @ v).norm())) < 1e-10
    assert divergence[0] > 3 * divergence[1] > 9 * divergence[2] and abs(divergence[3]) < 1e-9
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-10
    assert "Vecchia" not in [c.name for c in candidates(request_for(kernel, x, None, 1, 100))]


def test_orders_and_neighbours_by_brute_force():
    for points in (uniform(150, 2).numpy(), np.repeat(uniform(40, 3, seed=1).numpy(), 2, axis=0)):
        order = maximin(points)
        assert sorted(order) == list(range(len(points)))
        for i in range(1, len(order)):
            gap = cdist(points[order[i:]], points[order[:i]]).min(1)
            assert gap[0] >= gap.max() - 1e-15
    late = np.concatenate([uniform(100, 2).numpy(), 1e-3 * uniform(100, 2, seed=2).numpy()])  # near ones come later
    for ordered in (points[order], late):
        near = earlier_neighbours(ordered, 7)
        for i in range(len(ordered)):
            gap = np.linalg.norm(ordered[:i] - ordered[i], axis=1)
            mine = near[i][near[i] >= 0]
            assert len(mine) == min(i, 7) and (mine < i).all()
            close(np.sort(gap[mine]), np.sort(gap)[:7])


def chosen(kernel, x, **how) -> str:
    return candidates(request_for(kernel, x, None, how.get("rhs", 1), how.get("products", 1)))[0].name


def test_assemble_takes_the_structure_where_it_wins(capsys):
    line, grid = Line(20_000, 0.01, dtype=F64), Grid(Line(300, 0.1, dtype=F64), Line(300, 0.1, dtype=F64))
    points = uniform(20_000, 2)
    assert chosen(Gaussian(), line) == "Toeplitz"
    assert chosen(Gaussian(), grid) == "Kronecker"
    assert chosen(Matern(1.5), grid) == "BlockToeplitz"
    assert chosen(Wendland(0.01, 1, 2), points, products=10) == "Sparse"
    assert chosen(Wendland(0.5, 1, 2), uniform(4, 2)) in ("Dense", "Fused", "Tiled")
    assert chosen(Wendland(2.0, 1, 2), points) != "Sparse"  # everything within reach
    v = draw(20_000, 1)
    rows = torch.tensor([0, 7, 19_999])
    close((Gaussian()(line) @ v)[rows], Gaussian().block(line.points[rows], line.points) @ v, 1e-11)
    explain(Gaussian(), line)
    printed = capsys.readouterr().out
    assert printed.index("->Toeplitz") < printed.index("Tiled")


def test_other_lines_are_not_toeplitz():
    x = Line(3000, 0.1, dtype=F64)
    names = lambda k, y: {c.name for c in candidates(request_for(k, x, y, 1, 1))}  # noqa: E731
    assert "Toeplitz" in names(Gaussian(), Line(50, 0.1, 3.0, dtype=F64))
    assert "Toeplitz" not in names(Gaussian(), Line(50, 0.2, dtype=F64))
    assert "Toeplitz" not in names(Gaussian() * 2 + Gaussian().warp(torch.nn.Tanh()), None)
    assert "Toeplitz" not in names(Gaussian(), draw(50, 1))


def test_a_million_points_on_a_line_take_little_memory():
    line, kernel = Line(10**6, 1e-4, dtype=torch.float32), Matern(0.5)
    op = assemble(kernel, line)
    v = draw(10**6, 1).float()
    with torch.no_grad():
        op @ v[:, :1]  # torch's FFT plans are made once
        peak = peak_bytes(lambda: op @ v)
    assert isinstance(op, Toeplitz)
    assert peak < 64 * 2**20, peak  # sixteen vectors
    assert peak <= op.cost().memory + 4 * 10**6


def test_many_columns_stay_within_the_budget():
    op, v = Toeplitz(0.99 ** torch.arange(20_000, dtype=F64)), draw(20_000, 64)
    want = op @ v[:, :2]
    with memory("16M"):
        peak = peak_bytes(lambda: op @ v)
        assert peak < 16 * 2**20 + 2 * 8 * 64 * 20_000, peak  # and the result, in pieces and whole
        close((op @ v)[:, :2], want)
        kron = Kronecker(Dense(spd(100, 1)), Dense(spd(100, 2)))
        wide = draw(10_000, 256, seed=3)
        peak = peak_bytes(lambda: kron @ wide)
        assert peak < 16 * 2**20 + 2 * 8 * 256 * 10_000, peak


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_the_nearest_circulant_is_the_mean_along_wrapped_diagonals(n):
    """The orthogonal projection of a Toeplitz matrix on circulant ones, entry by entry."""
    lags = draw(2, 2 * n - 1)
    for one, found in zip(lags, levinson.nearest_circulant(lags, n), strict=True):
        matrix = np.array([[float(one[n - 1 + i - j]) for j in range(n)] for i in range(n)])
        close(found, [np.mean([matrix[(j + k) % n, j] for j in range(n)]) for k in range(n)])


EMPTY = {
    "no columns": lambda: (Toeplitz(draw(1), draw(1)), Circulant(draw(1)), BlockToeplitz(draw(1, 3), (1, 2), (1, 2))),
    "no rows": lambda: (
        Toeplitz(draw(2, 0)),
        Circulant(draw(2, 0)),
        Kronecker(Dense(draw(2, 0, 0)), Dense(draw(3, 3))),
    ),
    "no entries": lambda: (Sparse(draw(0), torch.arange(0), torch.arange(0), (3, 3)),),
}


@pytest.mark.parametrize("name", EMPTY)
def test_of_nothing_comes_nothing(name):
    """Products and solves without rows, columns, right-hand sides or entries have the shape and dtype of any other."""
    for op in EMPTY[name]():
        for c in (0, 2):
            b = draw(op.shape[-1], c)
            assert (op @ b).shape == (*op.shape[:-1], c) and (op.mT @ b).dtype == F64
            if not b.numel() and not isinstance(op, BlockToeplitz):
                assert op.solve(b).value.shape == (*op.shape[:-1], c)
        assert op.diagonal().dtype == F64 and op.diagonal().shape == op.shape[:-1]
    alone = Sparse(draw(0), torch.arange(0), torch.arange(0), (3, 3), PSD)
    close(alone.solve(torch.ones(3, 1, dtype=F64), 0.5).value, np.full((3, 1), 2.0))
    close(alone.logdet(0.5), 3 * math.log(0.5))


def test_errors_say_what_to_do():
    op = Toeplitz(torch.tensor([1.0, 2.0, 0.5], dtype=F64))
    with pytest.raises(NotPositiveDefiniteError, match="add a shift") as caught:
        op.logdet()
    assert caught.value.smallest == -3.0
    with pytest.raises(NotPositiveDefiniteError, match="singular"):
        Toeplitz(torch.ones(3, dtype=F64)).solve(torch.ones(3, dtype=F64))
    with pytest.raises(ShapeError, match="A has 3 rows"):
        op.solve(torch.ones(4, dtype=F64))
    with pytest.raises(TypeError, match=r"b is torch.float32"):
        op.solve(torch.ones(3))
    with pytest.raises(TypeError, match="float32 or float64"):
        Toeplitz(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ShapeError, match="square"):
        Toeplitz(torch.ones(3), torch.ones(2)).solve(torch.ones(3))
    with pytest.raises(StructureError, match="steps of 1.0 and 2.0"):
        Toeplitz.on(Gaussian(), Line(3), Line(3, 2.0))
    with pytest.raises(NotPositiveDefiniteError, match="not positive"):
        Circulant(torch.tensor([0.0, 1.0])).logdet()
    plain = Dense(spd(2, 1))
    with pytest.raises(StructureError, match="claim to be symmetric"):
        Kronecker(plain, plain).solve(torch.ones(4, dtype=F64), 0.1)
    with pytest.raises(NotPositiveDefiniteError, match="larger shift"):
        Kronecker(Dense(-spd(2, 1), PSD), Dense(spd(2, 1), PSD)).logdet(0.1)
    with pytest.raises(IndexError, match="column is outside 0 ... 1"):
        Sparse(torch.ones(1), torch.tensor([0]), torch.tensor([2]), (2, 2))
    with pytest.raises(NotPositiveDefiniteError, match="pivot"):
        Sparse(-torch.ones(2), torch.arange(2), torch.arange(2), (2, 2), PSD).logdet()
    with pytest.raises(ShapeError, match=r"column 1 of the blocks has sizes \[2, 3\]"):
        Block([[plain, plain], [plain, Dense(draw(2, 3))]])
    with pytest.raises(ShapeError, match="row 1 of the blocks has no operator"):
        Block([[plain], [None]])
    with pytest.raises(StructureError, match=r"noise=..."):
        Vecchia(Gaussian(), draw(4, 1)).logdet(0.1)
    with pytest.raises(NotPositiveDefiniteError, match="add noise"):
        Vecchia(Gaussian(), torch.ones(4, 1)).logdet()


def test_empty_operators_answer():
    none = torch.zeros(0, dtype=F64)
    at = torch.zeros(0, dtype=torch.long)
    empty = [Toeplitz(none), Circulant(none), Sparse(none, at, at, (0, 0), PSD), Vecchia(Gaussian(), none[:, None])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for op in [*empty, Kronecker(Dense(torch.zeros(0, 0, dtype=F64), PSD), Dense(spd(2, 1), PSD))]:
            assert (op @ torch.zeros(0, 2, dtype=F64)).shape == (0, 2)
            assert op.solve(torch.zeros(0, 2, dtype=F64)).value.shape == (0, 2)
            assert op.logdet().detach().item() == 0.0
    assert Sparse.within(Wendland(1.0), torch.zeros(0, 2), torch.zeros(3, 2)).dense().shape == (0, 3)


def test_a_tiled_operator_agrees_on_the_points_of_a_grid():
    grid = Grid(Line(40, 0.05, dtype=F64), Line(30, 0.07, 2.0, dtype=F64))
    kernel, v = Gaussian([0.4, 0.6]), draw(1200, 2)
    close(kernel(grid) @ v, Tiled(kernel, grid.points, grid.points) @ v)


def test_circulant_names_the_eigenvalue_that_is_zero():
    for column, at in ((torch.ones(6, dtype=F64), 1), (torch.tensor([2.0, -1, 0, 0, -1], dtype=F64), 0)):
        with pytest.raises(NotPositiveDefiniteError, match=f"eigenvalue at frequency {at} is 0") as error:
            Circulant(column).solve(draw(len(column)))
        assert error.value.smallest == 0
        with pytest.raises(NotPositiveDefiniteError, match="add a shift"):
            Circulant(column).inverse()
        assert Circulant(column).solve(draw(len(column)), 0.5).converged


@pytest.mark.parametrize("first", [0.0, 1e-17])
def test_toeplitz_is_solved_where_a_leading_block_is_singular(first):
    column, b = torch.tensor([first, 1.0, 0.5], dtype=F64), draw(3, 2)
    found = Toeplitz(column).solve(b)
    want = np.linalg.solve(scipy.linalg.toeplitz(column.numpy()), b.numpy())
    assert found.converged
    np.testing.assert_allclose(found.value, want, rtol=1e-12)
    row = torch.tensor([first, -1.0, 2.0], dtype=F64)
    want = np.linalg.solve(scipy.linalg.toeplitz(column.numpy(), row.numpy()), b.numpy())
    np.testing.assert_allclose(Toeplitz(column, row).solve(b).value, want, rtol=1e-12)
    with memory(8), pytest.raises(NotPositiveDefiniteError, match="memory budget|step"):
        Toeplitz(torch.tensor([0.0, 1.0, 0.5], dtype=F64)).solve(b[:, 0])
    with pytest.raises(DataError, match="finite"):
        Toeplitz(column).solve(b * math.nan)


@pytest.mark.parametrize("n", [40, 2100])
def test_structured_solves_take_right_hand_sides_of_any_size(n):
    column, b = 0.5 ** torch.arange(n, dtype=F64), draw(n, 1)
    for op in (Toeplitz(column, claims=PSD), Circulant(column)):
        plain = op.solve(b)
        for size in (1e200, 1e-200):
            found = op.solve(b * size)
            assert found.converged and found.residual < 1e-9
            np.testing.assert_allclose(found.value / size, plain.value, rtol=1e-9, atol=1e-10)
