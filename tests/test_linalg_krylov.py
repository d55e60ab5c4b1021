"""linalg: CG in float32, block CG, MINRES and refinement against scipy and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from scipy.spatial.distance import cdist

from mercer.budget import memory
from mercer.claims import NO_CLAIMS, PSD, Claim
from mercer.errors import ConvergenceWarning, MemoryBudgetError, ShapeError, StructureError
from mercer.kernels import Gaussian, Matern, Riesz
from mercer.linalg import CG, MINRES, BlockCG, NystromPreconditioner, PivotedCholesky, Refined, Woodbury
from mercer.operators import Dense, Shifted

SYMMETRIC = frozenset({Claim.SYMMETRIC})


def points(n: int, d: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram(x: torch.Tensor, lengthscale: float, noise: float) -> np.ndarray:
    """Gaussian kernel plus noise by scipy's distances."""
    k = np.exp(-cdist(x.double().numpy(), x.double().numpy(), "sqeuclidean") / (2 * lengthscale**2))
    return k + noise * np.eye(len(x))


def relative(matrix: np.ndarray, value: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    gap = matrix @ value.double().numpy() - b.double().numpy()
    return np.linalg.norm(gap, axis=0) / np.linalg.norm(b.double().numpy(), axis=0)


@pytest.mark.parametrize("method", [CG, BlockCG, MINRES])
@pytest.mark.parametrize("preconditioner", [None, NystromPreconditioner(60, torch.Generator().manual_seed(0))])
def test_every_column_has_its_true_residual(method: type, preconditioner: object) -> None:
    """Columns of very different size and difficulty, one of them zero: the report is |A x - b| / |b| of each."""
    x, b = points(300), points(300, 4, 1) - 0.5
    b[:, 1] *= 1e-30
    b[:, 2] = 0
    matrix = gram(x, 0.5, 1e-3)
    solver = method(preconditioner, tolerance=1e-9)
    answer = solver.solve(solver.prepare(Shifted(Gaussian(0.5)(x), 1e-3)), b)
    assert answer.converged and not bool(answer.value[:, 2].any())
    some = [0, 1, 3]
    true = relative(matrix, answer.value[:, some], b[:, some])
    np.testing.assert_allclose(answer.residuals[some], true, rtol=1e-3, atol=1e-13)
    assert answer.residual == float(answer.residuals.max()) and true.max() <= 1.001e-9
    np.testing.assert_allclose(answer.value[:, 1] * 1e30, np.linalg.solve(matrix, b[:, 1] * 1e30), rtol=0, atol=1e-4)


def test_block_cg_shares_its_space_and_survives_dependent_columns() -> None:
    x, b = points(400, 2), points(400, 6, 1) - 0.5
    a = Shifted(Matern(1.5, 0.5)(x), 1e-3)
    taken = {}
    for method in (CG, BlockCG):
        solver = method(tolerance=1e-8, max_iterations=2000)
        taken[method] = solver.solve(solver.prepare(a), b).iterations
    assert taken[BlockCG] < 0.6 * taken[CG]
    matrix = a.dense().detach().numpy()
    twins = torch.stack([b[:, 0], b[:, 0], 2 * b[:, 0] - b[:, 1], b[:, 1], 0 * b[:, 1]], 1)
    solver = BlockCG(tolerance=1e-9, max_iterations=2000)
    answer = solver.solve(solver.prepare(a), twins)
    assert answer.converged and torch.equal(answer.value[:, 4], torch.zeros(400, dtype=torch.float64))
    np.testing.assert_allclose(answer.value, np.linalg.solve(matrix, twins.numpy()), rtol=0, atol=1e-5)
    wide = points(5, 9, 3)  # more columns than rows
    small = Shifted(Gaussian()(points(5)), 0.1)
    found = solver.solve(solver.prepare(small), wide)
    np.testing.assert_allclose(found.value, np.linalg.solve(small.dense().detach().numpy(), wide), rtol=1e-7)


def test_block_cg_refuses_what_is_not_definite_without_inventing_an_answer() -> None:
    a = Dense(torch.diag(torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)), PSD)  # the claim is false
    solver = BlockCG(tolerance=1e-8)
    with pytest.warns(ConvergenceWarning):
        answer = solver.solve(solver.prepare(a), torch.eye(3, dtype=torch.float64))
    assert not answer.converged and bool(answer.value.isfinite().all())


def saddle(n: int) -> tuple[np.ndarray, np.ndarray]:
    """[[K, 1], [1^T, 0]] with K = -|x - y|, and a right-hand side: interpolation with a conditionally psd kernel."""
    x = points(n).numpy()
    matrix = np.zeros((n + 1, n + 1))
    matrix[:n, :n] = -cdist(x, x)
    matrix[:n, n] = matrix[n, :n] = 1
    return matrix, np.append(np.sin(5 * x.sum(1)), 0)


def test_minres_agrees_with_scipy_on_indefinite_systems() -> None:
    matrix, b = saddle(60)
    assert (np.linalg.eigvalsh(matrix) < 0).any() and (np.linalg.eigvalsh(matrix) > 0).any()
    solver = MINRES(tolerance=1e-9, max_iterations=3000)
    answer = solver.solve(solver.prepare(Dense(torch.as_tensor(matrix), SYMMETRIC)), torch.as_tensor(b))
    np.testing.assert_allclose(answer.value, np.linalg.solve(matrix, b), rtol=0, atol=1e-6)
    peer, info = scipy.sparse.linalg.minres(matrix, b, rtol=1e-12)
    assert info == 0 and answer.converged
    np.testing.assert_allclose(answer.value, peer, rtol=0, atol=1e-6)
    x, rhs = points(80), points(80, 2, 1)
    shifted = Shifted(Riesz()(x), 0.5)
    with pytest.raises(StructureError, match="psd"):
        CG().prepare(shifted)
    found = solver.solve(solver.prepare(shifted), rhs)
    np.testing.assert_allclose(
        found.value, np.linalg.solve(0.5 * np.eye(80) - cdist(x.numpy(), x.numpy()), rhs.numpy()), rtol=0, atol=1e-6
    )
    with pytest.raises(StructureError, match="symmetric"):
        solver.prepare(Dense(torch.as_tensor(matrix), NO_CLAIMS))


def test_minres_says_when_there_is_no_solution() -> None:
    a = Dense(torch.diag(torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)), SYMMETRIC)
    solver = MINRES(tolerance=1e-8)
    with pytest.warns(ConvergenceWarning):
        answer = solver.solve(solver.prepare(a), torch.ones(3, dtype=torch.float64))
    assert not answer.converged and answer.residual == pytest.approx(3**-0.5)
    within = solver.solve(solver.prepare(a), torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(within.value, [1, -1, 0], atol=1e-12)


@pytest.mark.parametrize("method", [CG, BlockCG, MINRES])
def test_float32_answers_tell_their_residual(method: type) -> None:
    """Where float32 can hold the answer it is reached; where it cannot, that is said, and the number is true."""
    x, b = points(500, dtype=torch.float32), points(500, 2, 1, torch.float32) - 0.5
    precondition = NystromPreconditioner(60, torch.Generator().manual_seed(0))
    solver = method(precondition, tolerance=1e-6)
    answer = solver.solve(solver.prepare(Shifted(Gaussian(0.1)(x), 0.5)), b)
    assert answer.converged and relative(gram(x, 0.1, 0.5), answer.value, b).max() < 2e-6
    hard = gram(x, 1.0, 0.01)
    with pytest.warns(ConvergenceWarning, match="float32 may hold no more"):
        answer = solver.solve(solver.prepare(Shifted(Gaussian(1.0)(x), 0.01)), b)
    true = relative(hard, answer.value, b).max()
    best = relative(hard, torch.as_tensor(np.linalg.solve(hard, b.double().numpy())).float(), b).max()
    assert not answer.converged and true / 3 < answer.residual < 3 * true and true < 20 * best


def test_refinement_reaches_float64_residuals_with_float32_products() -> None:
    x, b = points(400), points(400, 2, 1) - 0.5
    a, close = (Shifted(Gaussian(0.7)(p), 1e-2) for p in (x, x.float()))
    inner = CG(NystromPreconditioner(80, torch.Generator().manual_seed(0)), tolerance=1e-3)
    solver = Refined(inner, close, tolerance=1e-11)
    answer = solver.solve(solver.prepare(a), b)
    assert answer.converged and answer.value.dtype == torch.float64
    assert relative(gram(x, 0.7, 1e-2), answer.value, b).max() < 1.1e-11
    far = Refined(inner, Shifted(Gaussian(0.7)(x.float()), 10.0), tolerance=1e-11)  # not close: said, not hidden
    with pytest.warns(ConvergenceWarning, match="Refined"):
        assert not far.solve(far.prepare(a), b).converged
    with pytest.raises(ShapeError, match="close operator"):
        Refined(inner, Shifted(Gaussian()(x[:5]), 1.0)).prepare(a)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_woodbury_has_a_root_a_diagonal_and_no_cancellation(
    dtype: torch.dtype, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F F^T a million times the shift: a float32 factor still gives the inverse to float64's digits."""
    monkeypatch.setattr("mercer.linalg.woodbury.BLOCK", 100)  # more than one block
    f = (100 * (points(40, 5) - 0.5)).to(dtype)
    f = f.mT.contiguous().mT if turned else f
    shift = 1e-3 * (0.5 + points(40, 1, 2)[:, 0])
    dense = f.double() @ f.double().mT + torch.diag(shift)
    w, v = Woodbury(f, shift, torch.float64), points(40, 3, 1)
    exact = np.linalg.inv(dense.numpy())
    np.testing.assert_allclose(w @ v, exact @ v.numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(w.diagonal(), np.diag(exact), rtol=1e-6)
    eye = torch.eye(40, dtype=torch.float64)
    root = w.root(eye).numpy()
    np.testing.assert_allclose(root @ root.T, dense, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(root @ w.whiten(eye).numpy(), eye, atol=1e-7)
    np.testing.assert_allclose(w.whiten_mT(eye), w.whiten(eye).mT, atol=1e-9)


def test_preconditioners_help_float32_far_below_its_rounding() -> None:
    """The largest eigenvalue is 1e5 times the noise: the factor's own products must not cancel in float32."""
    x = points(1000, dtype=torch.float32)
    b = (points(1000, 1, 1, torch.float32) - 0.5).sign()
    for precondition in (NystromPreconditioner(250, torch.Generator().manual_seed(0)), PivotedCholesky(250)):
        solver = CG(precondition, tolerance=1e-3)
        answer = solver.solve(solver.prepare(Shifted(Gaussian(0.7)(x), 1e-2)), b)
        assert answer.converged and answer.iterations <= 4


def test_a_rank_that_does_not_fit_is_refused_with_one_that_does() -> None:
    k = Gaussian()(points(2000))
    for precondition in (NystromPreconditioner(500), PivotedCholesky(500)):
        with memory("1M"), pytest.raises(MemoryBudgetError, match="rank of at most 65"):
            precondition.prepare(Shifted(k, 0.1))


@pytest.mark.parametrize("method", [CG, BlockCG])
def test_no_answer_is_worse_than_zero_where_rounding_makes_the_matrix_indefinite(method: type) -> None:
    x = points(1500, dtype=torch.float32)
    b = x.sin()
    solver = method(NystromPreconditioner(150, torch.Generator().manual_seed(0)), tolerance=1e-6)
    with pytest.warns(ConvergenceWarning, match="Refined") as seen:
        answer = solver.solve(solver.prepare(Shifted(Matern(2.5, 3.0)(x), 1e-6)), b)
    matrix = Matern(2.5, 3.0)(x).dense().detach().double().numpy() + 1e-6 * np.eye(1500)
    assert relative(matrix, answer.value, b).max() < 0.3  # the recursion goes to 1e25
    assert answer.residual < 0.3 and answer.iterations < 200 and seen[-1].message.residual == answer.residual


@pytest.mark.parametrize("method", [CG, BlockCG])
def test_the_best_iterate_is_returned_when_the_iterations_are_used_up(method: type) -> None:
    """Condition 1e10: residuals of conjugate gradients swing, and the last one is larger than that of zero."""
    q, _ = np.linalg.qr(points(200, 200).numpy() - 0.5)
    matrix = (q * np.logspace(0, -10, 200)) @ q.T
    b, told = points(200, 1, 1) - 0.5, []
    for most in (20, 150):
        solver = method(tolerance=1e-8, max_iterations=most)
        with pytest.warns(ConvergenceWarning):
            answer = solver.solve(solver.prepare(Dense(torch.as_tensor((matrix + matrix.T) / 2), PSD)), b)
        told.append(answer.residual)
        np.testing.assert_allclose(answer.residual, relative(matrix, answer.value, b).max(), rtol=1e-3)
    assert told[1] <= told[0] <= 1


@pytest.mark.parametrize("low", [0, -5, -25])
@pytest.mark.parametrize("n", [10, 50])
def test_minres_ends_with_least_squares_where_a_is_singular(n: int, low: int) -> None:
    q, _ = np.linalg.qr(points(n, n).numpy() - 0.5)
    values = np.arange(n) + max(low, -n // 2)
    matrix = (q * values) @ q.T
    b = points(n, 1, 3) - 0.5
    least = abs(q[:, values == 0].T @ b.numpy()).item() / float(b.norm())  # what lies in the null space stays
    solver = MINRES(tolerance=1e-10)
    with pytest.warns(ConvergenceWarning, match="singular"):
        answer = solver.solve(solver.prepare(Dense(torch.as_tensor((matrix + matrix.T) / 2), SYMMETRIC)), b)
    assert not answer.converged and answer.iterations < 6 * n
    np.testing.assert_allclose(answer.residual, least, rtol=1e-3)
    np.testing.assert_allclose(relative(matrix, answer.value, b), least, rtol=1e-3)


@pytest.mark.parametrize("method", [CG, BlockCG, MINRES])
def test_the_scale_of_a_does_not_matter(method: type) -> None:
    matrix = torch.as_tensor(gram(points(60), 0.5, 0.1))
    solver, b = method(tolerance=1e-9), points(60, 2, 1) - 0.5
    plain = solver.solve(solver.prepare(Dense(matrix, PSD)), b)
    for size in (1e-200, 1e200):
        answer = solver.solve(solver.prepare(Dense(matrix * size, PSD)), b)
        assert answer.converged and abs(answer.iterations - plain.iterations) <= 2
        np.testing.assert_allclose(answer.value * size, plain.value, rtol=1e-6)


def test_residuals_are_of_the_answer_that_fits_its_dtype() -> None:
    """b = 1e38 in float32 has no answer there: infinity is handed out, and its residual is said."""
    solver = CG(tolerance=1e-5)
    with pytest.warns(ConvergenceWarning):
        answer = solver.solve(
            solver.prepare(Dense(0.01 * torch.eye(4), PSD)), torch.tensor([1.0, 0.0, 0.0, 0.0]) * 1e38
        )
    assert not answer.converged and answer.residual == np.inf


@pytest.mark.parametrize("method", [CG, BlockCG, MINRES])
def test_zero_competes_with_a_bad_start(method: type) -> None:
    x, b = points(100), points(100, 2, 1) - 0.5
    solver, start = method(tolerance=1e-12, max_iterations=1), torch.zeros(100, 2, dtype=torch.float64)
    start[:, 1] = 1e12
    with pytest.warns(ConvergenceWarning):
        answer = solver.solve(solver.prepare(Shifted(Gaussian(0.2)(x), 1e-3)), b, start)
    assert answer.residual <= 1 and not bool(answer.value[:, 1].any())
    np.testing.assert_allclose(relative(gram(x, 0.2, 1e-3), answer.value, b), answer.residuals, rtol=1e-6)
