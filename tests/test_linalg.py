"""linalg: solvers and preconditioners against scipy and dense algebra."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch

from mercer.budget import memory
from mercer.claims import PSD
from mercer.errors import (
    ConvergenceWarning,
    DataError,
    JitterWarning,
    NotPositiveDefiniteError,
    ShapeError,
    StructureError,
)
from mercer.features.nystrom import Nystrom, cholesky_landmarks
from mercer.kernels import Gaussian, Linear, Matern
from mercer.linalg import CG, MINRES, Cholesky, NystromPreconditioner, PivotedCholesky, Woodbury, solve
from mercer.operators import Dense, Shifted, Tiled
from mercer.operators.pivoted import pivoted_cholesky


def points(n: int, d: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(x: np.ndarray, lengthscale: float) -> np.ndarray:
    """The Gram matrix by scipy's distances."""
    return np.exp(-scipy.spatial.distance.cdist(x, x, "sqeuclidean") / (2 * lengthscale**2))


def test_cholesky_agrees_with_scipy() -> None:
    x, b = points(80), points(80, 4, 1)
    matrix = gaussian(x.numpy(), 1.3) + 0.1 * np.eye(80)
    solver = Cholesky()
    state = solver.prepare(Shifted(Gaussian(1.3)(x), 0.1))
    answer = solver.solve(state, b)
    assert state.jitter == 0 and answer.converged and answer.residual < 1e-12
    np.testing.assert_allclose(
        answer.value, scipy.linalg.solve(matrix, b.numpy(), assume_a="pos"), rtol=1e-10, atol=1e-10
    )
    assert float(state.logdet()) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12)
    np.testing.assert_allclose(state.inverse_diagonal(), np.diag(np.linalg.inv(matrix)), rtol=1e-10)
    assert solver.solve(state, b[:, 0]).value.shape == (80,)


def test_jitter_is_relative_recorded_and_announced() -> None:
    x = points(40)
    twice = torch.cat([x, x])  # rank 40 of 80: no factor without help
    for scale in (1.0, 1e12):
        matrix = scale * torch.as_tensor(gaussian(twice.numpy(), 3.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JitterWarning)
            state = Cholesky().prepare(Dense(matrix, PSD))
        assert 0 < state.jitter <= 1e-9 * scale
    broken = torch.eye(50, dtype=torch.float64)
    broken[0, 0] = -1e-6
    with pytest.warns(JitterWarning) as seen:
        state = Cholesky().prepare(Dense(broken, PSD))
    assert 1e-6 < state.jitter < 2e-5 and seen[0].message.jitter == state.jitter


def test_indefinite_matrices_are_refused_with_their_smallest_eigenvalue() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, -0.5], dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match=r"smallest eigenvalue is -0\.5") as error:
        Cholesky().prepare(Dense(matrix, PSD))
    assert error.value.smallest == pytest.approx(-0.5)
    with pytest.raises(StructureError, match="psd"):
        Cholesky().prepare(Dense(matrix))


def test_bad_right_hand_sides_are_named() -> None:
    a = Shifted(Gaussian()(points(5)), 1.0)
    b = torch.zeros(5, 2, dtype=torch.float64)
    b[3, 1] = math.nan
    for solver in (Cholesky(), CG()):
        state = solver.prepare(a)
        with pytest.raises(DataError, match=r"b\[3, 1\] is nan"):
            solver.solve(state, b)
        with pytest.raises(ShapeError, match="5 rows"):
            solver.solve(state, torch.zeros(4, 1, dtype=torch.float64))
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 0] = math.inf
    with pytest.raises(DataError, match=r"A\[2, 0\] is inf"):
        Cholesky().prepare(Dense(matrix, PSD))


@pytest.mark.parametrize(
    "preconditioner", [None, PivotedCholesky(30), PivotedCholesky(30, True), NystromPreconditioner(40)]
)
def test_cg_agrees_with_scipy_and_direct(preconditioner: object) -> None:
    x, b = points(150, 2), points(150, 3, 1)
    matrix = gaussian(x.numpy(), 0.8) + 0.05 * np.eye(150)
    solver = CG(preconditioner, tolerance=1e-10)
    answer = solver.solve(solver.prepare(Shifted(Gaussian(0.8)(x), 0.05)), b)
    direct = np.linalg.solve(matrix, b.numpy())
    np.testing.assert_allclose(answer.value, direct, rtol=0, atol=1e-7)
    peer, info = scipy.sparse.linalg.cg(matrix, b.numpy()[:, 0], rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(answer.value[:, 0], peer, rtol=0, atol=1e-7)
    true = np.linalg.norm(matrix @ answer.value.numpy() - b.numpy(), axis=0) / np.linalg.norm(b.numpy(), axis=0)
    assert answer.converged and answer.residual == pytest.approx(true.max(), rel=1e-3, abs=1e-14)


def test_preconditioners_save_iterations() -> None:
    x, b = points(400, 2), points(400, 1, 1)
    a = Shifted(Matern(1.5, 2.0)(x), 1e-3)
    taken = {}
    for name, p in {"none": None, "pivoted": PivotedCholesky(100), "nystrom": NystromPreconditioner(150)}.items():
        solver = CG(p, tolerance=1e-8)
        taken[name] = solver.solve(solver.prepare(a), b).iterations
    assert taken["pivoted"] < taken["none"] / 4 and taken["nystrom"] < taken["none"] / 4


def test_cg_says_when_it_missed() -> None:
    solver = CG(max_iterations=3, tolerance=1e-12)
    x, b = points(100, 1), points(100, 1, 1)
    with pytest.warns(ConvergenceWarning) as seen:
        answer = solver.solve(solver.prepare(Shifted(Gaussian(0.3)(x), 1e-4)), b)
    assert not answer.converged and answer.iterations == 3 and seen[0].message.residual == answer.residual > 1e-12


def test_cg_columns_stop_on_their_own_and_zero_columns_are_zero() -> None:
    x = points(60, 2)
    b = points(60, 3, 1)
    b[:, 1] = 0
    b[:, 2] *= 1e-200  # each column has its own scale
    a = Shifted(Gaussian()(x), 0.1)
    value = CG(tolerance=1e-9).solve(CG().prepare(a), b).value
    expected = torch.linalg.solve(a.dense().detach(), b)
    assert bool((value[:, 1] == 0).all())
    for c, unit in ((0, 1.0), (2, 1e200)):
        got, wanted = value[:, c] * unit, expected[:, c] * unit
        assert float((got - wanted).norm() / wanted.norm()) < 1e-6


class Rows(Tiled):
    """A tiled operator that refuses to show all of itself."""

    def dense(self) -> torch.Tensor:
        if self.shape[-2] > 64:
            raise AssertionError("the whole matrix was formed")
        return super().dense()

    def _select(self, rows: torch.Tensor, cols: torch.Tensor) -> Tiled:
        return Rows(self.kernel, self.x[rows], self.y[cols])


@pytest.mark.parametrize("preconditioner", [PivotedCholesky(50), PivotedCholesky(50, True), NystromPreconditioner(50)])
def test_preconditioners_read_rows_only_and_stay_below_the_matrix(preconditioner: PivotedCholesky) -> None:
    x = points(200, 2)
    kernel = Gaussian(0.7)
    factor = preconditioner.factor(Rows(kernel, x, x, kernel.claims))
    rest = np.linalg.eigvalsh(gaussian(x.numpy(), 0.7) - factor.numpy() @ factor.numpy().T)
    assert rest[0] > -1e-9 and rest.sum() < 0.05 * 200
    with pytest.raises(StructureError, match="Shifted"):
        preconditioner.prepare(kernel(x))


def test_pivoted_cholesky_stops_at_the_rank_of_the_matrix() -> None:
    x = points(10, 2).repeat(5, 1)
    assert PivotedCholesky(40).factor(Gaussian()(x)).shape[1] <= 11
    assert len(cholesky_landmarks(Gaussian(), x, 40)) <= 11


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pivoted_cholesky_stops_before_rounding(dtype: torch.dtype, random: bool) -> None:
    """Ranks far beyond the numerical one: F F^T stays at K to rounding, and CG with it converges."""
    eps = torch.finfo(dtype).eps
    x = points(300, 2, dtype=dtype)
    draws = {"random": random, "block": 64 if random else 1, "generator": torch.Generator().manual_seed(1)}
    factor, pivots = pivoted_cholesky(Linear()(x), 50, **draws)
    linear = x.numpy() @ x.numpy().T
    assert factor.shape == (300, 2) and len(set(pivots.tolist())) == 2
    assert np.abs(factor.numpy() @ factor.numpy().T - linear).max() < 8 * eps * np.abs(linear).max()
    x = points(1000, 3, dtype=dtype)
    factor, pivots = pivoted_cholesky(Gaussian(3.0)(x), 200, **draws)
    gap = gaussian(x.double().numpy(), 3.0) - (factor.double() @ factor.double().mT).numpy()
    assert len(set(pivots.tolist())) == factor.shape[1] and factor.square().sum(1).max() < 1 + 200 * 8 * eps
    assert np.abs(gap).max() < 2e-3 and abs(np.trace(gap)) < 1e-4 * 1000
    a, b = Shifted(Linear()(points(300, 2, dtype=dtype)), 0.1), points(300, 1, 2, dtype=dtype)
    solver = CG(PivotedCholesky(50, random, torch.Generator().manual_seed(0)), tolerance=2e-4)
    answer = solver.solve(solver.prepare(a), b)
    assert answer.converged and answer.iterations <= 3


def test_pivoted_cholesky_reads_no_rows_of_rounding() -> None:
    x, asked = points(300, 2, dtype=torch.float32), []

    class Reading(Rows):
        def _select(self, rows: torch.Tensor, cols: torch.Tensor) -> Tiled:
            asked.append(len(rows))
            return super()._select(rows, cols)

    pivoted_cholesky(Reading(Linear(), x, x, Linear.claims), 50)
    assert asked == [1, 1, 1]  # two pivots, and one that turned out to be rounding


def test_a_zero_matrix_has_a_zero_factor_and_an_indefinite_one_a_typed_error() -> None:
    b = points(20, 2, 1)
    zero = Dense(torch.zeros(20, 20, dtype=torch.float64), PSD)
    for preconditioner in (NystromPreconditioner(5), PivotedCholesky(5)):
        assert float(preconditioner.factor(zero).abs().sum()) == 0
        solver = CG(preconditioner)
        np.testing.assert_allclose(solver.solve(solver.prepare(Shifted(zero, 0.5)), b).value, 2 * b, rtol=1e-12)
    with pytest.raises(NotPositiveDefiniteError, match="NystromPreconditioner") as error:
        NystromPreconditioner(20).factor(Dense(torch.diag(points(20, 1)[:, 0]), PSD))
    assert error.value.smallest == pytest.approx(float(points(20, 1).min()))


def test_cg_restarts_where_the_recursion_has_drifted() -> None:
    """From a start 1e5 away the recursion loses five of float32's seven digits; the answer does not."""
    x, b = points(200, 2, dtype=torch.float32), points(200, 1, 2, dtype=torch.float32)
    a, start = Shifted(Gaussian(1.0)(x), 1.0), 1e5 * points(200, 1, 4, dtype=torch.float32)
    answer = CG(tolerance=1e-5).solve(CG().prepare(a), b, start)
    wanted = np.linalg.solve(gaussian(x.double().numpy(), 1.0) + np.eye(200), b.double().numpy())
    assert answer.converged and np.abs(answer.value.numpy() - wanted).max() < 1e-4


def test_cg_ends_without_nan_where_the_preconditioner_is_not_definite() -> None:
    """r . z = 0 for a rotation by a right angle: that column can take no step, which is said; the other goes on."""
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    a = Dense(torch.diag(torch.tensor([1.0, 1.0, 2.0, 5.0], dtype=torch.float64)), PSD)
    b = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    solver = CG(Dense(turn), tolerance=1e-8)
    with pytest.warns(ConvergenceWarning):
        answer = solver.solve(solver.prepare(a), b)
    assert not answer.converged and answer.residual == 1.0
    np.testing.assert_allclose(answer.value, [[0, 0], [0, 0], [0, 1.5], [0, 0.2]], atol=1e-12)


def test_solvers_take_one_matrix_and_cg_its_dtype() -> None:
    batch = Dense(torch.eye(3, dtype=torch.float64).expand(2, 3, 3), PSD)
    for solver in (CG(), Cholesky()):
        with pytest.raises(ShapeError, match=r"one matrix at a time, A has shape \(2, 3, 3\)"):
            solver.prepare(batch)
    a = Shifted(Gaussian()(points(5)), 1.0)
    with pytest.raises(TypeError, match=r"A is torch.float64, b is torch.float32"):
        CG().solve(CG().prepare(a), torch.zeros(5, 1))
    assert Cholesky().solve(Cholesky().prepare(a), torch.ones(5, 1)).value.dtype == torch.float32


def test_answers_carry_no_gradient_as_documented() -> None:
    a, b = Shifted(Gaussian()(points(5)), 1.0), points(5, 1).requires_grad_()
    for solver in (CG(), Cholesky()):
        assert not solver.solve(solver.prepare(a), b).value.requires_grad


def test_woodbury_is_the_inverse() -> None:
    f, v = points(30, 4), points(30, 2, 1)
    for shift in (torch.tensor(0.3, dtype=torch.float64), points(30, 1, 2)[:, 0].square() + 0.1):
        dense = f @ f.mT + torch.diag(shift.expand(30))
        w = Woodbury(f, shift)
        np.testing.assert_allclose(w @ v, np.linalg.solve(dense.numpy(), v.numpy()), rtol=1e-9, atol=1e-10)
        assert float(w.logdet()) == pytest.approx(np.linalg.slogdet(dense.numpy())[1])
    with pytest.raises(StructureError, match="shift"):
        Woodbury(f, 0.0)


def test_nystrom_equals_the_formula_and_is_exact_at_landmarks() -> None:
    x, z = points(40), points(12, seed=5)
    kernel = Matern(2.5, 1.2)
    phi = Nystrom(kernel, z)
    k_xz, k_zz = kernel.block(x, z).detach().numpy(), kernel.block(z, z).detach().numpy()
    np.testing.assert_allclose(phi.block(x, x).detach(), k_xz @ np.linalg.pinv(k_zz) @ k_xz.T, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(phi.block(x, z).detach(), k_xz, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        (phi(x) @ torch.ones(40, 1, dtype=torch.float64)).detach().numpy()[:, 0],
        phi.block(x, x).detach().sum(1).numpy(),
        rtol=1e-9,
    )
    twice = Nystrom(kernel, torch.cat([z, z]))  # a singular K_mm: the pseudo-inverse, not an error
    np.testing.assert_allclose(twice.block(x, x).detach(), phi.block(x, x).detach(), rtol=0, atol=1e-8)


def test_nystrom_gradients_exist_where_eigenvalues_repeat() -> None:
    """Landmarks on a square grid: K_mm has repeated eigenvalues, whose vectors have no derivative."""
    at = torch.arange(4, dtype=torch.float64)
    grid, x, weight = torch.cartesian_prod(at, at), points(9, 2), points(9, 9, 3)
    kernel = Gaussian(1.3)
    phi = Nystrom(kernel, grid)
    found = torch.autograd.grad((phi.block(x, x) * weight).sum(), kernel.log_lengthscale)[0]
    values = []
    for ell in (1.3 * math.exp(1e-5), 1.3 * math.exp(-1e-5)):
        k_xz = np.exp(-scipy.spatial.distance.cdist(x, grid, "sqeuclidean") / (2 * ell**2))
        values.append(float((weight.numpy() * (k_xz @ np.linalg.solve(gaussian(grid.numpy(), ell), k_xz.T))).sum()))
    assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    z = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: phi.block(t, t), (z,))
    twice = Nystrom(kernel, torch.cat([grid, grid]))  # a singular K_mm
    again = torch.autograd.grad((twice.block(x, x) * weight).sum(), kernel.log_lengthscale)[0]
    assert float(again) == pytest.approx(float(found), rel=1e-2)


def test_nystrom_jitter_is_relative_to_the_data_and_recorded() -> None:
    x, z = points(50), points(12, seed=5)
    kernel = 1e6 * Gaussian(1.3)
    phi = Nystrom(kernel, z)
    phi.features(x)
    assert 0 < phi.jitter <= 1e6 * 12 * 2.3e-16
    exact = phi.block(x, x).detach()
    single = phi.block(x.float(), x.float()).detach()
    assert 1e6 * 1e-6 < phi.jitter <= 1e6 * 12 * 1.2e-7
    assert float((single - exact).abs().max()) < 1e6 * 1e-4  # ill-conditioned landmarks do not amplify float32 noise
    close = Nystrom(kernel, x[:1] + 1e-3 * points(30, seed=2)).block(x.float(), x.float()).detach()
    assert torch.linalg.eigvalsh((1e6 * torch.as_tensor(gaussian(x.numpy(), 1.3))) - close)[0] > -1e6 * 1e-4

    class Wrong(Linear):
        def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -super().block(x, y)

    with pytest.raises(NotPositiveDefiniteError, match="12 landmarks"):
        Nystrom(Wrong(), z).features(x)


def test_nystrom_factors_its_landmarks_once_per_parameter_change() -> None:
    made = []

    class Counting(Gaussian):
        def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            made.append(len(x) == len(y) == 12)
            return super().block(x, y)

    x, kernel = points(300), Counting(1.0)
    phi = Nystrom(kernel, points(12, seed=5))
    operator = Tiled(phi + Linear(), x, x)
    with torch.no_grad(), memory("64K"):
        before = operator @ x[:, :1]
        assert len(made) > 8 and sum(made) == 1
        kernel.log_lengthscale.data.add_(0.5)
        assert not torch.allclose(before, operator @ x[:, :1]) and sum(made) == 2
        phi.landmarks.mul_(1.1)
        phi.features(x)
    assert sum(made) == 3
    fresh = Nystrom(Gaussian(math.exp(0.5)), 1.1 * points(12, seed=5))
    np.testing.assert_allclose(phi.features(x).detach(), fresh.features(x).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["uniform", "cholesky"])
def test_nystrom_landmarks_are_rows_and_the_error_falls(method: str) -> None:
    x = points(300, 2)
    kernel = Gaussian(1.0)
    truth = kernel.block(x, x).detach()
    errors = []
    for rank in (5, 20, 60):
        phi = Nystrom.fit(kernel, x, rank, method, torch.Generator().manual_seed(0))
        assert bool((phi.landmarks[:, None] == x).all(-1).any(1).all())
        errors.append(float((truth - phi.block(x, x).detach()).diagonal().sum()))
    assert errors[0] > errors[1] > errors[2] > -1e-8 and errors[2] < 0.02 * 300
    with pytest.raises(ValueError, match="method"):
        Nystrom.fit(kernel, x, 5, "best")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_right_hand_sides_are_real_numbers(dtype):
    """A complex b lost its imaginary part, and an integer b got a truncated answer."""
    a = Dense(2 * torch.eye(3, dtype=torch.float64), PSD)
    for solver in (Cholesky(), CG(), MINRES()):
        with pytest.raises(TypeError, match="A x = b"):
            solver.solve(solver.prepare(a), torch.ones(3, 1, dtype=dtype))


def test_cholesky_measures_the_answer_it_returns_in_float32() -> None:
    """The float64 answer inside has a residual of 1e-13; what float32 keeps of it does not."""
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(1))
    b, a = x.sin(), Shifted(Gaussian(0.5)(x), 1e-5)
    with torch.no_grad():
        matrix = a.dense().double().numpy()
    for answer in (Cholesky().solve(Cholesky().prepare(a), b), solve(a, b)):
        gap = np.linalg.norm(matrix @ answer.value.detach().double().numpy() - b.double().numpy(), axis=0)
        np.testing.assert_allclose(answer.residuals, gap / np.linalg.norm(b.double().numpy(), axis=0), rtol=1e-3)
        assert answer.residual > 1e-6 and answer.converged  # 1e-3 in float32
    strict = Cholesky(tolerance=1e-6)
    with pytest.warns(ConvergenceWarning, match="float32 may hold no more: use float64, or Refined"):
        assert not strict.solve(strict.prepare(a), b).converged


def test_cholesky_warns_where_it_missed_and_scales_right_hand_sides() -> None:
    x = points(40, 2)
    twice, b = torch.cat([x, x]), points(80, 1)[:, 0]
    with pytest.warns(ConvergenceWarning, match="jitter") as seen:
        answer = solve(Gaussian(0.5)(twice), b)
    assert not answer.converged and answer.residual > 0.1 and seen[-1].message.residual == answer.residual
    a = Shifted(Gaussian(0.5)(x), 0.1)
    rhs = torch.stack([b[:40] * 1e200, b[:40] * 1e-200, 0 * b[:40]], 1)
    with torch.no_grad():
        large, plain = solve(a, rhs), solve(a, b[:40]).value
    assert large.converged and large.residual < 1e-12
    np.testing.assert_allclose(large.value[:, 0] * 1e-200, plain, rtol=1e-12)
    np.testing.assert_allclose(large.value[:, 1] * 1e200, plain, rtol=1e-12)
    with pytest.warns(ConvergenceWarning):  # the answer is beyond float32
        found = solve(Shifted(Gaussian(0.5)(x.float()), 1e-3), (1e38 * torch.tensor([1.0, -1.0])).repeat(20))
    assert not found.converged and found.residual == math.inf
