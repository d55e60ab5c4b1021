"""Every operator is its matrix: products, transposes, gradients, blocks, at every size, within the budget."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mercer.operators.tiled as tiled
from mercer import budget
from mercer.assemble import _request as request_for
from mercer.assemble import assemble, candidates, explain
from mercer.budget import free_memory, memory, memory_budget, parse_bytes
from mercer.claims import Claim
from mercer.domain import Grid, Line, Points
from mercer.errors import DataError, MemoryBudgetError, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.kernels import (
    ArcCosine,
    Constant,
    Cosine,
    ExpDot,
    Gaussian,
    Laplace,
    Linear,
    Logistic,
    Matern,
    Periodic,
    Polynomial,
    Riesz,
    Wendland,
)  # fmt: skip
from mercer.machine import core
from mercer.operators import Dense, Diagonal, Fused, LowRank, Pivots, Shifted, Tiled, Toeplitz
from mercer.operators.rounding import entry_error
from mercer.operators.tilesum import GROUPS
from tests.catalogue import CANNOT, OPERATORS

case_of = pytest.mark.parametrize("case", OPERATORS, ids=lambda c: c.name)
SIZES = [(17, 13), (13, 17), (16, 16), (1, 1), (1, 7), (7, 1)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 64 entries, so that every small case crosses many tile borders."""
    monkeypatch.setattr(tiled, "TILE", 64)
    monkeypatch.setattr(tiled, "LEAST", 64)


def vectors(n: int, c: int, dtype=torch.float64, seed: int = 99) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, tol: float = 1e-12) -> None:
    assert got.shape == want.shape, (got.shape, want.shape)
    scale = float(want.detach().abs().max()) if want.numel() else 1.0
    assert torch.allclose(got, want, rtol=tol, atol=tol * max(scale, 1.0)), (got - want).abs().max()


def test_a_group_of_many_stripes_adds_up():
    """More stripes of rows than groups: what a group knows of a column is the sum over its stripes."""
    kernel = Matern(2.5, 0.7)
    x, y, v = vectors(300, 2), vectors(40, 2, seed=1).requires_grad_(), vectors(40, 2, seed=2)
    leaves = [y, *kernel.parameters()]
    assert Tiled(kernel, x, y)._tile_shape()[0] * 2 * GROUPS < 300
    found = torch.autograd.grad((Tiled(kernel, x, y) @ v).square().sum(), leaves)
    for got, true in zip(found, torch.autograd.grad((kernel.block(x, y) @ v).square().sum(), leaves), strict=True):
        close(got, true)


@case_of
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product_and_transpose(case, size, batch):
    n, m = (size[0], size[0]) if case.square else size
    op, matrix, _ = case.make(torch.float64, batch, n, m)
    assert tuple(op.shape) == (*batch, n, m)
    v, u = vectors(m, 3), vectors(n, 2)
    close(op @ v, matrix @ v)
    close(op @ v[:, 0], (matrix @ v[:, :1]).squeeze(-1))
    close(op.mT @ u, matrix.mT @ u)
    close(op.mT.mT @ v, matrix @ v)
    close(op.dense(), matrix)
    close(op.diagonal(), matrix.diagonal(dim1=-2, dim2=-1))
    assert op.mT.shape == matrix.mT.shape
    adjoint = ((op @ v)[..., :2] * u).sum((-1, -2)) - (v[:, :2] * (op.mT @ u)).sum((-1, -2))
    assert adjoint.abs().max() <= 1e-11 * max(1.0, float(matrix.detach().abs().sum()))
    if case.rows_sum_to_one:
        close(op @ torch.ones(m, 1, dtype=torch.float64), torch.ones(*batch, n, 1, dtype=torch.float64))


@case_of
def test_float32_and_vectors_with_a_batch(case):
    op, matrix, _ = case.make(torch.float32, (2,), 9, 9)
    v = torch.stack([vectors(9, 2, torch.float32, s) for s in (1, 2)])
    assert op.dtype == torch.float32 and (op @ v).dtype == torch.float32
    close(op @ v, matrix @ v, tol=3e-6)


@case_of
def test_gradients_against_the_dense_matrix(case):
    op, matrix, leaves = case.make(torch.float64, (2,), 11, 11)
    v = vectors(11, 2).requires_grad_()
    got = torch.autograd.grad((op @ v).sin().sum(), [*leaves, v], create_graph=True)
    want = torch.autograd.grad((matrix @ v).sin().sum(), [*leaves, v], create_graph=True)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-11)
    twice = torch.autograd.grad(sum(g.square().sum() for g in got), [*leaves, v], allow_unused=True, retain_graph=True)
    reference = torch.autograd.grad(sum(w.square().sum() for w in want), [*leaves, v], allow_unused=True)
    for g, w in zip(twice, reference, strict=True):
        close(torch.zeros(()) if g is None else g, torch.zeros(()) if w is None else w, 1e-10)


@case_of
def test_transpose_gradients(case):
    op, matrix, leaves = case.make(torch.float64, (), 8, 8)
    u = vectors(8, 2)
    got = torch.autograd.grad((op.mT @ u).sin().sum(), leaves, retain_graph=True)
    want = torch.autograd.grad((matrix.mT @ u).sin().sum(), leaves)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-11)


@case_of
def test_blocks_rows_and_entries(case):
    op, matrix, _ = case.make(torch.float64, (2,), 10, 10)
    close(op[2:7, 1:4].dense(), matrix[..., 2:7, 1:4])
    close(op[[5, 0, 3]].dense(), matrix[..., [5, 0, 3], :])
    close(op[torch.arange(10) % 2 == 0, 3:].dense(), matrix[..., ::2, 3:])
    close(op[4], matrix[..., 4, :])
    close(op[4, -1], matrix[..., 4, -1])
    close(op[:, 2], matrix[..., 2])
    close(op[1:3].mT @ vectors(2, 1), matrix[..., 1:3, :].mT @ vectors(2, 1))
    close(op[[-1, -10]].dense(), matrix[..., [-1, -10], :])
    close(op[np.int64(3)], matrix[..., 3, :])
    for bad, words in (
        (10, "row 10 is out of range"),
        ([0, -11], "row -11"),
        (torch.ones(4).bool(), r"expected \(10,\)"),
    ):
        with pytest.raises(IndexError, match=words):
            op[bad]


@case_of
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_causal_part(case, size, cannot):
    cannot(case.name, "tril")
    n, m = (size[0], size[0]) if case.square else size
    op, matrix, leaves = case.make(torch.float64, (2,), n, m)
    v, u = vectors(m, 3), vectors(n, 2)
    close(op.tril() @ v, matrix.tril() @ v)
    close(op.tril().mT @ u, matrix.tril().mT @ u)
    got = torch.autograd.grad((op.tril() @ v).sin().sum(), leaves, retain_graph=True)
    want = torch.autograd.grad((matrix.tril() @ v).sin().sum(), leaves)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-11)


@pytest.mark.parametrize("case", [c for c in OPERATORS if (c.name, "tril") in CANNOT], ids=lambda c: c.name)
def test_no_causal_part_is_a_typed_error(case):
    op, _, _ = case.make(torch.float64, (), 4, 4)
    with pytest.raises(StructureError, match="no causal part"):
        op.tril()


@case_of
def test_empty(case, cannot):
    cannot(case.name, "empty")
    op, _, _ = case.make(torch.float64, (), 0, 0)
    assert (op @ vectors(0, 2)).shape == (0, 2)
    if not case.square:
        op, _, _ = case.make(torch.float64, (), 4, 0)
        close(op @ vectors(0, 2), torch.zeros(4, 2, dtype=torch.float64))
        op, _, _ = case.make(torch.float64, (), 0, 4)
        assert (op @ vectors(4, 2)).shape == (0, 2)


@case_of
def test_claims_hold(case):
    op, matrix, _ = case.make(torch.float64, (), 12, 12)
    if Claim.SYMMETRIC in op.claims:
        close(matrix.mT, matrix)
    if Claim.PSD in op.claims:
        assert torch.linalg.eigvalsh(matrix)[0] >= -1e-10 * matrix.abs().max()


def test_gram_of_the_same_points_inherits_the_claims():
    x = vectors(12, 3)
    assert Gaussian()(x).claims == Gaussian().claims
    assert Gaussian()(x, x.clone()).claims == frozenset()
    assert Claim.PSD not in Riesz()(x).claims
    assert Claim.PSD in Shifted(Gaussian()(x), 0.1).claims and Claim.PSD not in Shifted(Gaussian()(x), -2.0).claims
    assert Claim.PSD in (2.0 * Gaussian()(x)).claims and Claim.PSD not in (-2.0 * Gaussian()(x)).claims


def test_hyperparameter_gradients_by_recomputed_tiles():
    kernel = Matern(1.5, [0.7, 1.1, 0.9]) * Gaussian(2.0) + 0.5 * Linear(1.3)
    x, v = vectors(23, 3), vectors(23, 2)
    parameters = list(kernel.parameters())
    got = torch.autograd.grad((kernel(x) @ v).square().sum(), parameters)
    want = torch.autograd.grad((kernel.block(x, x) @ v).square().sum(), parameters)
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-11)


def test_gradcheck_through_the_tiles():
    kernel = Matern(2.5, 0.9)
    x, y, v = vectors(9, 2, seed=1), vectors(8, 2, seed=2), vectors(8, 2, seed=3)
    for t in (x, y, v):
        t.requires_grad_()

    def product(x, y, v, _):
        return kernel(x, y) @ v

    assert torch.autograd.gradcheck(product, (x, y, v, kernel.log_lengthscale))
    assert torch.autograd.gradgradcheck(product, (x, y, v, kernel.log_lengthscale))


def test_softmax_survives_huge_scores():
    x, y = 60 * vectors(5, 4, seed=4), 60 * vectors(9, 4, seed=5)
    v = vectors(9, 2)
    close(ExpDot()(x, y).normalised() @ v, torch.softmax(x @ y.mT / 2, -1) @ v)


def test_a_kernel_that_is_not_symmetric_transposes():
    class Skewed(Gaussian):
        claims = frozenset()

        def block(self, x, y):
            return super().block(x, y) * (1 + x[..., :, None, 0] ** 2)

    x, y, u = vectors(9, 3, seed=1), vectors(7, 3, seed=2), vectors(9, 2)
    op = Tiled(Skewed(), x, y)
    close(op.mT @ u, Skewed().block(x, y).mT @ u)
    close(op.mT.mT @ vectors(7, 1), Skewed().block(x, y) @ vectors(7, 1))


def test_weights_of_a_domain_multiply_the_columns():
    x, y, w = vectors(6, 2), vectors(5, 2, seed=3), vectors(5, 1, seed=4)[:, 0].exp()
    v = vectors(5, 2)
    close(Gaussian()(x, Points(y, w)) @ v, Gaussian().block(x, y) @ (w[:, None] * v))


def test_domains():
    line = Line(5, 0.5, 1.0, dtype=torch.float64)
    assert line.points[:, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0] and (line.n, line.d, len(line)) == (5, 1, 5)
    grid = Grid(Line(2, dtype=torch.float64), line)
    assert grid.sizes == (2, 5) and grid.points.shape == (10, 2) and grid.points[6].tolist() == [1.0, 1.5]
    assert line[[1, 3]].points[:, 0].tolist() == [1.5, 2.5]
    close(Gaussian()(line).dense(), Gaussian().block(line.points, line.points))
    with pytest.raises(ShapeError, match=r"write x\[:, None\]"):
        Gaussian()(torch.zeros(4))
    with pytest.raises(ShapeError, match=r"weights.n"):
        Points(torch.zeros(4, 2), torch.ones(3))
    with pytest.raises(ShapeError, match=r"y.d is 3, x.d is 2"):
        Gaussian()(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="at least one Line"):
        Grid()
    integers = Gaussian()([[0, 1], [1, 1]])
    assert integers.dtype == torch.float64


def test_errors_repeat_the_question():
    op = Gaussian()(vectors(6, 2), vectors(5, 2))
    with pytest.raises(ShapeError, match="A has 5 columns, v has 6 rows"):
        op @ vectors(6, 1)
    with pytest.raises(TypeError, match=r"A is torch.float64, v is torch.float32"):
        op @ vectors(5, 1).float()
    with pytest.raises(TypeError, match="x is torch.float64, y is torch.float32"):
        Gaussian()(vectors(6, 2), vectors(5, 2).float())
    with pytest.raises(TypeError, match=r"k \+ Constant\(1.0\)"):
        Gaussian() + 1.0
    with pytest.raises(TypeError, match="multiply the kernels"):
        op * op
    with pytest.raises(ShapeError, match="cannot be added"):
        op + op.mT
    with pytest.raises(ShapeError, match="A has 5 columns, B has 6 rows"):
        op @ op
    with pytest.raises(ShapeError, match="square"):
        Shifted(op, 1.0)
    with pytest.raises(ShapeError, match="scalar"):
        op * torch.ones(3)
    with pytest.raises(StructureError, match="may be negative"):
        Linear()(vectors(6, 2)).normalised()


def test_memory_budget_is_honoured():
    with memory("3M"):
        assert memory_budget() == 3 * 2**20
        with pytest.raises(MemoryBudgetError, match=r"mercer.memory"):
            Gaussian()(vectors(1000, 2)).dense()
        rows = candidates(request_for(Gaussian(), vectors(1000, 2), None, 1, 50))
        assert rows[0].name == "Tiled" and rows[0].fits and not any(r.fits for r in rows[1:])
        assert "Dense" in [r.name for r in rows]
    assert memory_budget() >= 2**24 and free_memory() > 2**24
    assert [parse_bytes(t) for t in ("512M", "1.5GiB", "2k", 7)] == [2**29, 3 * 2**29, 2048, 7]
    for bad in ("four", "-1G", "", 0):
        with pytest.raises(ValueError, match="memory is"):
            parse_bytes(bad)


def test_free_memory_asks_the_cgroup_and_does_not_count_kept_files(monkeypatch, tmp_path):
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 7\ninactive_file 300000000\n")
    answers = {"/sys/fs/cgroup/memory.max": 10**9, "/sys/fs/cgroup/memory.current": 8 * 10**8}
    monkeypatch.setattr(budget, "_meminfo", lambda: 10**10)
    monkeypatch.setattr(budget, "_read", answers.get)
    kept = budget._reclaimable
    monkeypatch.setattr(budget, "_reclaimable", lambda path: kept(str(tmp_path / Path(path).name)))
    monkeypatch.setattr(budget, "_last", [-1.0, 0.0])
    assert free_memory() == 5 * 10**8
    answers["/sys/fs/cgroup/memory.max"] = 9 * 10**8
    assert free_memory() == 5 * 10**8  # asked a moment ago
    monkeypatch.setattr(budget, "_last", [-1.0, 0.0])
    assert free_memory() == 4 * 10**8 and kept(str(tmp_path / "nothing")) == 0


def test_planner_stores_the_matrix_only_when_it_pays(capsys):
    x = vectors(300, 4)
    assert type(assemble(Gaussian(), x)) is (Fused if core() else Tiled)
    many = assemble(Gaussian(), x, products=100)
    assert type(many) is Dense
    close(many @ vectors(300, 2), Gaussian().block(x, x) @ vectors(300, 2))
    assert many.claims == Gaussian().claims
    explain(Gaussian(), x, products=100)
    text = capsys.readouterr().out
    assert "-> Dense" in text.replace("->", "-> ") and "Tiled" in text and "300 x 300" in text and "flops" in text


def test_one_product_at_scale_stays_in_memory():
    """n = m = 20,000 in float32 would be 1.6 GB dense; the process may grow by less than 150 MB."""
    script = """
import resource, torch
torch.set_num_threads(1)
from mercer.kernels import Gaussian
g = torch.Generator().manual_seed(0)
x = torch.randn(20_000, 10, generator=g); v = torch.randn(20_000, 2, generator=g)
k = Gaussian(2.0)
k(x[:2000]) @ v[:2000]
x.requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = k(x, x.detach()) @ v
if {gradient}:
    torch.autograd.grad(out.sum(), [x, k.log_lengthscale])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
i = 12_345
print(float((out[i] - (torch.exp(-0.5 * (x[i] - x).square().sum(-1) / 4) @ v)).abs().max()))
"""
    run = subprocess.run(
        [sys.executable, "-c", script.replace("{gradient}", "True")], capture_output=True, text=True, check=True
    )
    grown, error = run.stdout.split()
    assert int(grown) < 150, grown
    assert float(error) < 1e-2


def test_diagonal_operator_is_symmetric():
    d = Diagonal(vectors(5, 1)[:, 0])
    assert d.mT is d and d.tril() is d


def test_rows_of_sums_and_weights_never_form_a_square(monkeypatch):
    """A row of a sum once cost an m x m identity; the budget would refuse it, were it asked."""
    monkeypatch.setattr(tiled, "TILE", 2**16)
    x = vectors(3000, 2)
    w = vectors(3000, 1)[:, 0].exp()
    k = Gaussian(), Matern(0.5)
    with memory("24M"):  # a row is 24 kB, the matrix 72 MB
        both = k[0](x) + k[1](x)
        close(both[5], k[0].block(x[5:6], x)[0] + k[1].block(x[5:6], x)[0])
        close((2 * k[0](x))[[7, 9]].dense(), 2 * k[0].block(x[[7, 9]], x))
        close(Shifted(both, 0.1)[5], both[5] + 0.1 * (torch.arange(3000) == 5).double())
        close(k[0](x, Points(x, w)).diagonal(), w)
        close(k[0](x, Points(x, w))[4], k[0].block(x[4:5], x)[0] * w)


def test_weights_and_softmax_and_causality_go_together():
    q, x, w = 60 * vectors(5, 4, seed=1), 60 * vectors(5, 4, seed=2), vectors(5, 1, seed=3)[:, 0].exp()
    scores = q @ x.mT / 2 + w.log()
    v = vectors(5, 2)
    close(ExpDot()(q, Points(x, w)).normalised() @ v, torch.softmax(scores, -1) @ v)
    past = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    close(ExpDot()(q, Points(x, w)).tril().normalised() @ v, torch.softmax(past, -1) @ v)


def test_a_stored_matrix_follows_its_parameters_and_gradients():
    x = vectors(40, 3)
    kernel = Gaussian(1.3)
    op = assemble(kernel, x, products=100)
    v = vectors(40, 1)
    with torch.no_grad():
        op @ v
    for _ in range(2):
        (op @ v).sum().backward()
    kernel.lengthscale = 2.0
    with torch.no_grad():
        close(op @ v, Gaussian(2.0).block(x, x) @ v)
        before = op.matrix
        assert op.matrix is before
        kernel.log_lengthscale.data.fill_(0.0)  # leaves no trace in torch's version counter
        close(op @ v, Gaussian(1.0).block(x, x) @ v)


def test_half_precision_points_are_served_in_float32():
    x, v = vectors(64, 8).bfloat16(), vectors(64, 2).bfloat16()
    for kernel in (Gaussian(0.5), Matern(0.5)):
        op = kernel(x)
        assert op.dtype == torch.bfloat16 and (op @ v).dtype == torch.bfloat16
        want = kernel.block(x.double(), x.double()) @ v.double()
        assert ((op @ v).double() - want).abs().max() <= 2**-8 * want.abs().max()


def test_algebra_that_a_newcomer_tries():
    x = vectors(5, 2)
    op, matrix = Gaussian()(x), Gaussian().block(x, x)
    v = vectors(5, 2)
    close(v.mT @ op, v.mT @ matrix)
    close(v[:, 0] @ op, v[:, 0] @ matrix)
    close((op - op / 2).dense(), matrix / 2)
    close((-op).dense(), -matrix)
    close(op @ np.ones(5), matrix.sum(1))
    close(op @ [1, 2, 3, 4, 5], matrix @ torch.arange(1.0, 6.0, dtype=torch.float64))
    with pytest.raises(ShapeError, match="single number"):
        op @ 2.0
    with pytest.raises(ShapeError, match="5 values"):
        Shifted(op, torch.ones(4))


def test_points_that_are_not_finite_are_named():
    x = vectors(6, 3)
    x[4, 2] = math.nan
    with pytest.raises(DataError, match="y is nan at row 4, column 2"):
        Gaussian()(vectors(5, 3), x)


def pivots_for(kernel, x, tolerance):
    """The approximation among the candidates, cheapest or not."""
    rows = candidates(request_for(kernel, x, None, 1, 2, tolerance))
    return next((row.operator for row in rows if isinstance(row.operator, Pivots)), None)


def test_approximations_compete_only_under_a_tolerance_and_keep_it(capsys):
    """The measured error bounds every entry; kernels without quick decay get an exact operator; gradients are right."""
    x = vectors(600, 2)
    smooth, rough = Gaussian(1.5), Matern(0.5, 0.05)
    assert not isinstance(assemble(smooth, x, products=20), Pivots)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        points = x.to(dtype)
        found = pivots_for(smooth, points, tolerance)
        assert isinstance(found, Pivots) and 0 < found.error <= tolerance and len(found.pivots) < 300
        wrong = (found.dense().double() - smooth.block(x, x)).abs().max()
        assert float(wrong.detach()) <= found.error + 600 * torch.finfo(dtype).eps
    assert pivots_for(rough, x, 1e-6) is None and pivots_for(smooth, x, None) is None
    explain(smooth, x, products=20, tolerance=1e-8)
    text = capsys.readouterr().out
    assert "Pivots" in text and "times as long" in text and "tolerance 1e-08" in text
    for bad in (0.0, 2.0, -1.0):
        with pytest.raises(ValueError, match="tolerance is"):
            assemble(smooth, x, tolerance=bad)


def test_pivots_carry_gradients_and_follow_the_parameters():
    x, v = vectors(300, 2), vectors(300, 1, seed=3)
    kernel = Gaussian(1.5)
    found = pivots_for(kernel, x, 1e-7)
    assert isinstance(found, Pivots)
    (slope,) = torch.autograd.grad((found @ v).square().sum(), list(kernel.parameters()))
    (exact,) = torch.autograd.grad((kernel.block(x, x) @ v).square().sum(), list(kernel.parameters()))
    torch.testing.assert_close(slope, exact, rtol=1e-5, atol=0)
    kernel.lengthscale = 1.6
    with torch.no_grad():
        torch.testing.assert_close(found @ v, kernel.block(x, x) @ v, rtol=1e-5, atol=1e-5)


def test_counts_that_are_none_are_named():
    for name in ("rhs", "products"):
        for count in (0, -3, 1.5):
            with pytest.raises(ValueError, match=f"{name} is {count}; expected a whole number >= 1"):
                explain(Gaussian(), vectors(5, 2), **{name: count})


BOUNDED = [
    Matern(0.5, 0.01), Matern(0.5, 0.3), Gaussian(0.01), Gaussian(0.3), Laplace(0.1), Riesz(), Wendland(0.5, 1, 10),
    ExpDot(3.0), Polynomial(3), Periodic(1.0, 0.5), Cosine(2.0), Logistic(0.5), ArcCosine(0), ArcCosine(1),
    2.0 * Matern(0.5, 0.1) * Gaussian().on([0]) + Constant(0.5),
]  # fmt: skip


@pytest.mark.parametrize("kernel", BOUNDED, ids=repr)
@pytest.mark.parametrize("d", [1, 3, 10])
def test_the_error_that_explain_prints_bounds_every_entry(kernel, d):
    """Near pairs of float32 points many lengthscales from their middle, against the definition in float64."""
    x = vectors(300, d).float()
    y = (x.double() + 1e-3 * vectors(300, d, seed=1)).float()
    request = request_for(kernel, x, y, 1, 2)
    with torch.no_grad():
        wanted, diagonal = kernel.block(x.double(), y.double()), kernel.diagonal(x.double()).abs().max()
    for row in candidates(request):
        with torch.no_grad():
            wrong = (row.operator.dense().double() - wanted).abs().max() / (diagonal or wanted.abs().max())
        bound = entry_error(request, row.operator)
        assert wrong <= bound < 1e-3, (row.name, float(wrong), bound)
    large = request_for(Matern(0.5, 0.01), 100 * x, 100 * y, 1, 1)  # what is far from its middle is rounded more
    assert entry_error(large, candidates(large)[0].operator) > 20 * entry_error(
        request, candidates(request)[0].operator
    )


def test_explain_says_what_float32_cannot_reach(capsys):
    x = vectors(400, 2).float()
    for kernel, tolerance, words in (
        (Matern(0.5, 0.05), 1e-9, "float32 cannot reach 1e-09: use float64"),
        (Matern(0.5, 0.05), 2e-7, "float32 may not reach 2e-07, errors are bounded by"),
        (Gaussian(), 1e-2, None),
    ):
        explain(kernel, x, tolerance=tolerance)
        text = capsys.readouterr().out
        assert ("reach" not in text) if words is None else (words in text)


def test_explain_says_why_rules_declined(capsys):
    x = vectors(300, 2)
    grid = Grid(Line(4, dtype=torch.float64), Line(5, dtype=torch.float64))

    class Own(Kernel):
        def __init__(self):
            super().__init__()

        def block(self, x, y):
            return (x @ y.mT).tanh()

    for kernel, points, how, words in (
        (Matern(0.5, 0.05), x, {"tolerance": 1e-6}, "  Pivots: no low rank: the error is"),
        (Gaussian(), x[:50], {"tolerance": 1e-6}, "  Pivots: nothing to gain below 200 rows"),
        (Riesz(), x, {"tolerance": 1e-6}, "  Pivots: the kernel does not claim to be psd"),
        (Wendland(0.5, 1, 2), x, {}, "  Sparse: nothing to gain below 262,144 entries"),
        (Matern(1.5), grid, {}, "  Kronecker: the kernel is not a stationary product over columns"),
        (Own(), x, {}, "  Fused: this kernel is not made of what it runs" if core() else "  Fused: no compiled"),
    ):
        explain(kernel, points, **how)
        assert words in capsys.readouterr().out
    explain(Gaussian(), x)
    assert "Pivots" not in capsys.readouterr().out  # without a tolerance nobody asked for it


@pytest.mark.parametrize("products", [1, 100])
def test_what_is_evenly_spaced_can_solve_at_every_size(products, capsys):
    kernel = Matern(1.5, 0.3)
    axis = Line(4, 0.3, dtype=torch.float64)
    for points in (*(Line(n, 0.03, dtype=torch.float64) for n in (1, 2, 57, 700)), Grid(axis, axis)):
        op, b = assemble(kernel, points, products=products), vectors(points.n, 1)
        want = torch.linalg.solve(kernel.block(points.points, points.points) + 0.1 * torch.eye(points.n).double(), b)
        close(op.solve(b, 0.1).value, want, 1e-7)
    explain(kernel, Line(57, 0.03))
    text = capsys.readouterr().out
    assert "->Toeplitz" in text and "can solve, and takes hardly longer" in text
    assert type(assemble(kernel, vectors(57, 1))) is not Toeplitz


def test_the_error_of_pivots_is_that_of_what_is_used():
    """Measured again after the factor was made: its shift of K_rr is part of the error."""
    x = vectors(600, 2).float()
    found = pivots_for(Gaussian(1.5), x, 1e-3)
    assert isinstance(found, Pivots)
    left = float((1 - found.factor().detach().double().square().sum(-1)).max())
    rounded = len(found.pivots) * torch.finfo(torch.float32).eps
    assert abs(found.error - left - rounded) < 1e-6 and left > 0


def test_a_linear_kernel_is_low_rank_and_follows_its_lengthscale():
    g = torch.Generator().manual_seed(0)
    x, y, v = (torch.randn(n, d, generator=g, dtype=torch.float64) for n, d in ((40, 3), (30, 3), (30, 2)))
    kernel = Linear([0.5, 1.0, 2.0])
    op = kernel(x, y)
    assert isinstance(op, LowRank) and isinstance(kernel(x), LowRank)
    scale = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)  # 1 / lengthscale^2
    torch.testing.assert_close((op @ v).detach(), (x * scale) @ (y.mT @ v), rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        kernel.log_lengthscale.zero_()
    torch.testing.assert_close((op @ v).detach(), x @ (y.mT @ v), rtol=1e-13, atol=1e-13)
    (op @ v).sum().backward()
    want = -2 * ((x * (y.mT @ v).sum(1)).sum(0))  # d/dlog l of x y / l^2 at l = 1
    torch.testing.assert_close(kernel.log_lengthscale.grad, want, rtol=1e-12, atol=1e-12)
