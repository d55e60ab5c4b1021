"""linalg: Lanczos, eigenpairs, log-determinants and traces against numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from mercer.claims import NO_CLAIMS, PSD, Claim
from mercer.errors import ConvergenceWarning, NotPositiveDefiniteError, StructureError
from mercer.kernels import Gaussian, Laplace, Matern, RationalQuadratic
from mercer.linalg import (
    SLQ,
    Cholesky,
    NystromPreconditioner,
    PivotedCholesky,
    eigenpairs,
    lanczos,
    logdet,
    randomised_eigenpairs,
    trace_inverse,
)
from mercer.operators import Dense, Shifted

SYMMETRIC = frozenset({Claim.SYMMETRIC})


def points(n: int, d: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def indefinite(n: int, seed: int = 0) -> torch.Tensor:
    m = points(n, n, seed) - 0.5
    return m + m.mT


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lanczos_is_a_tridiagonalisation() -> None:
    matrix, start = indefinite(40), points(40, 3, 1)
    found = lanczos(Dense(matrix, SYMMETRIC), start, 40)
    for c in range(3):
        q = found.basis[c]
        np.testing.assert_allclose(q.mT @ q, torch.eye(40), atol=1e-13)
        np.testing.assert_allclose(q.mT @ matrix @ q, found.dense()[c], atol=1e-12)
        np.testing.assert_allclose(q[:, 0], start[:, c] / start[:, c].norm(), rtol=1e-14)
    np.testing.assert_allclose(torch.linalg.eigvalsh(found.dense()[1]), np.linalg.eigvalsh(matrix), atol=1e-12)
    nodes, weights = found.quadrature()
    cubes = np.einsum("nc,nc->c", start.numpy(), np.linalg.matrix_power(matrix.numpy(), 3) @ start.numpy())
    np.testing.assert_allclose((weights * nodes**3).sum(1), cubes, rtol=1e-11)
    few = lanczos(Dense(matrix, SYMMETRIC), start, 6, reorthogonalise=False)
    assert few.basis is None and few.off_diagonal.shape == (3, 5)
    np.testing.assert_allclose(few.diagonal, found.diagonal[:, :6], atol=1e-11)
    with pytest.raises(StructureError, match="symmetric"):
        lanczos(Dense(matrix, NO_CLAIMS), start, 3)
    with pytest.raises(ValueError, match="steps is 41"):
        lanczos(Dense(matrix, SYMMETRIC), start, 41)


def test_lanczos_stands_still_where_its_space_is_complete() -> None:
    a = Dense(torch.diag(torch.tensor([1.0, 1.0, 4.0, 9.0], dtype=torch.float64)), SYMMETRIC)
    start = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    nodes, weights = lanczos(a, start, 4).quadrature()
    np.testing.assert_allclose((weights * nodes.log()).sum(1), [0, 9 * math.log(4)], atol=1e-13)


@pytest.mark.parametrize("largest", [True, False])
def test_eigenpairs_agree_with_scipy(largest: bool) -> None:
    matrix = indefinite(200)
    found = eigenpairs(Dense(matrix, SYMMETRIC), 6, largest, tolerance=1e-9, generator=seeded())
    peer = np.sort(scipy.sparse.linalg.eigsh(matrix.numpy(), 6, which="LA" if largest else "SA")[0])
    np.testing.assert_allclose(found.values, peer[::-1] if largest else peer, rtol=0, atol=1e-9)
    gap = np.linalg.norm(matrix.numpy() @ found.vectors.numpy() - found.vectors.numpy() * found.values.numpy(), axis=0)
    np.testing.assert_allclose(found.residuals, gap, rtol=1e-2, atol=1e-13)
    assert found.converged and found.vectors.shape == (200, 6) and gap.max() <= 1e-9 * np.abs(peer).max()
    np.testing.assert_allclose(found.vectors.mT @ found.vectors, np.eye(6), atol=1e-10)


def test_eigenpairs_of_small_low_rank_and_float32_operators() -> None:
    f = points(30, 2)
    low = Dense(f @ f.mT, PSD)  # the Krylov space ends after three steps
    exact = np.linalg.eigvalsh(low.dense().numpy())[::-1]
    np.testing.assert_allclose(eigenpairs(low, 5, generator=seeded()).values, exact[:5], atol=1e-12)
    np.testing.assert_allclose(eigenpairs(Dense(indefinite(3), SYMMETRIC), 3).values.flip(0),
                               np.linalg.eigvalsh(indefinite(3)), atol=1e-12)  # fmt: skip
    twos = Dense(2 * torch.eye(60, dtype=torch.float64), PSD)  # A v is v: nothing new but by another draw
    np.testing.assert_allclose(eigenpairs(twos, 4, generator=seeded()).values, 2 * np.ones(4), rtol=1e-13)
    x = points(300, dtype=torch.float32)
    kernel = Gaussian(0.5)
    exact = np.linalg.eigvalsh(kernel.block(x.double(), x.double()).detach())[::-1]
    for found in (
        eigenpairs(kernel(x), 5, tolerance=1e-6, generator=seeded()),
        randomised_eigenpairs(kernel(x), 5, passes=20, tolerance=1e-6, generator=seeded()),
    ):
        assert found.converged and found.vectors.dtype == torch.float32
        assert np.abs(found.values.numpy() - exact[:5]).max() < 1e-6 * exact[0]
    with pytest.warns(ConvergenceWarning, match="eigenpairs stopped"):
        assert not eigenpairs(kernel(x.double()), 3, largest=False, max_products=40).converged


def test_randomised_eigenpairs_see_copies_and_say_what_is_missing() -> None:
    basis = torch.linalg.qr(points(120, 120))[0]
    values = torch.cat([torch.tensor([9.0, 9.0, -8.0, 9.0, 5.0], dtype=torch.float64), 0.5 * points(115, 1, 2)[:, 0]])
    matrix = (basis * values) @ basis.mT
    found = randomised_eigenpairs(Dense(matrix, SYMMETRIC), 5, passes=30, tolerance=1e-10, generator=seeded())
    np.testing.assert_allclose(found.values, [9, 9, 9, -8, 5], atol=1e-9)
    assert found.converged and found.products < 30 * 15
    once = randomised_eigenpairs(Dense(matrix, SYMMETRIC), 5, passes=1, generator=seeded())
    gap = torch.linalg.vector_norm(matrix @ once.vectors - once.vectors * once.values, dim=0)
    np.testing.assert_allclose(once.residuals, gap, rtol=1e-8)
    near = np.abs(np.linalg.eigvalsh(matrix)[:, None] - once.values.numpy()).min(0)
    assert (near <= once.residuals.numpy()).all()  # the bound
    with pytest.warns(ConvergenceWarning, match="randomised_eigenpairs"):
        assert not randomised_eigenpairs(Dense(matrix, SYMMETRIC), 5, passes=1, tolerance=1e-10).converged


KERNELS = [Gaussian(0.5), Matern(2.5, 0.3), Matern(0.5, 1.0), Laplace(0.2), RationalQuadratic(1.0, 0.4)]
NOISES = [1.0, 0.1, 1e-2, 1e-3, 1e-4]
CASES = [(kernel, noise, seed) for kernel in KERNELS for noise in NOISES for seed in (0, 1)]


@pytest.mark.parametrize("preconditioner", ["none", "nystrom", "pivoted"])
def test_error_bars_of_log_determinants_hold_the_exact_value(preconditioner: str) -> None:
    """50 cases: five kernels, five noises, two draws of points and probes; at least 90 % must be inside."""
    assert len(CASES) == 50
    inside, widths = 0, []
    for case, (kernel, noise, seed) in enumerate(CASES):
        x = points(150, 2, seed)
        made = {"none": None, "nystrom": NystromPreconditioner(40, seeded(case)), "pivoted": PivotedCholesky(20)}
        with torch.no_grad():
            a = Shifted(Dense(kernel.block(x, x), kernel.claims), noise)
            found = logdet(a, SLQ(made[preconditioner], probes=12, generator=seeded(case + 100)))
        exact = np.linalg.slogdet(a.dense().numpy())[1]
        assert found.converged and found.confidence == 0.95
        inside += abs(float(found.value) - exact) <= found.error
        widths.append(found.error / (1 + abs(exact)))
    assert inside >= 45, inside
    assert np.median(widths) < (0.1 if preconditioner == "none" else 0.05)


def test_log_determinants_are_exact_where_nothing_is_random() -> None:
    x = points(60, 2)
    a = Shifted(Matern(1.5, 0.5)(x), 0.1)
    exact = np.linalg.slogdet(a.dense().detach().numpy())[1]
    found = logdet(a)
    assert abs(float(found.value.detach()) - exact) <= found.error + 1e-12 and found.error < 1e-10
    assert torch.equal(logdet(a, Cholesky()).value, found.value)
    scaled = Dense(3 * torch.eye(50, dtype=torch.float64), PSD)  # every probe gives the same, after one step
    found = logdet(scaled, SLQ(generator=seeded()))
    assert abs(float(found.value) - 50 * math.log(3)) <= found.error < 1e-11
    exact = np.trace(np.linalg.inv(a.dense().detach().numpy()))
    found = trace_inverse(a)
    assert abs(float(found.value.detach()) - exact) <= found.error + 1e-12 and found.error < 1e-8


def test_log_determinants_say_when_they_cannot_tell() -> None:
    x = points(300, 2)
    a = Shifted(Gaussian(1.0)(x), 1e-8)
    with pytest.warns(ConvergenceWarning, match="max_steps"):
        found = logdet(a, SLQ(max_steps=5, generator=seeded()))
    assert not found.converged
    negative = Dense(torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)), PSD)
    with pytest.raises(NotPositiveDefiniteError, match="no logarithm"):
        logdet(negative, SLQ(generator=seeded()))
    with pytest.raises(StructureError, match="psd"):
        logdet(Dense(indefinite(5), SYMMETRIC), SLQ())
    with pytest.raises(StructureError, match="Woodbury"):
        logdet(a, SLQ(Dense(torch.eye(300, dtype=torch.float64))))  # type: ignore[arg-type]


def test_error_bars_of_traces_of_inverses_hold_the_exact_value() -> None:
    inside, widths = 0, {True: 0.0, False: 0.0}
    for noise in (1.0, 0.1, 0.01):
        for seed in range(5):
            x, kernel = points(120, 2, seed), Matern(2.5, 0.6)
            a = Shifted(Dense(kernel.block(x, x).detach(), kernel.claims), noise)
            exact = np.trace(np.linalg.inv(a.dense().numpy()))
            for preconditioner in (None, NystromPreconditioner(60, seeded(seed))):
                found = trace_inverse(a, SLQ(preconditioner, generator=seeded(seed + 7)), tolerance=1e-8)
                inside += abs(float(found.value) - exact) <= found.error
                widths[preconditioner is None] += found.error
    assert inside >= 27 and widths[False] < 0.2 * widths[True]


def test_probes_are_drawn_from_the_generator() -> None:
    a = Shifted(Gaussian(0.3)(points(50)), 0.1)
    values = {float(logdet(a, SLQ(generator=seeded(s))).value.detach()) for s in (1, 1, 2)}
    assert len(values) == 2


@pytest.mark.parametrize("largest", [True, False])
def test_eigenpairs_in_float32_reach_what_float32_holds(largest):
    """The tolerance that nobody gave is one that products in float32 can meet: no warning, and right to 1e-5."""
    root = torch.randn(30, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix = (root @ root.mT / 30).float()
    found = eigenpairs(Dense(matrix, PSD), 3, largest=largest, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.eigvalsh(matrix.double())
    exact = exact.flip(0)[:3] if largest else exact[:3]
    assert found.converged and float((found.values - exact).abs().max()) < 1e-5 * float(exact.max() + 1)


def test_the_interval_holds_what_the_quadrature_and_the_solves_left() -> None:
    """A loose solve is off by more than its probes vary: the error bar must say so."""
    half, drawn = SLQ().interval(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), 0.75, 0.0)
    assert half == pytest.approx(drawn + 0.75, rel=1e-9) and drawn > 0
    none, _ = SLQ().interval(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), 0.0, 0.0)
    assert half - none == pytest.approx(0.75, rel=1e-9)
    loose = Shifted(Gaussian(0.5)(points(200)), 1e-3)
    found = trace_inverse(loose, SLQ(probes=4, generator=seeded()), tolerance=0.3)
    spread = float(found.samples.std()) / 2 * 3.182446  # Student's t, 3 degrees of freedom
    assert found.error > 1.5 * spread
