"""linalg: implicit gradients of solutions, log-determinants and traces against autograd of dense torch.linalg."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ConvergenceWarning
from mercer.kernels import Gaussian, Matern, Riesz
from mercer.linalg import (
    CG,
    MINRES,
    SLQ,
    BlockCG,
    Cholesky,
    NystromPreconditioner,
    Refined,
    logdet,
    solve,
    trace_inverse,
)
from mercer.operator import Operator
from mercer.operators import Dense, Shifted, Tiled, Toeplitz

N = 40
EYE = torch.eye(N, dtype=torch.float64)


def points(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves() -> list[Tensor]:
    """Points, noise, right-hand sides."""
    made = [points(N), torch.tensor(0.05), points(N, 3, 1) - 0.5]
    return [t.double().requires_grad_() for t in made]


def matrix(kernel: Matern, x: Tensor, noise: Tensor) -> Tensor:
    """Matern 3/2 plus noise, typed from its formula."""
    gap = x[:, None] - x[None]
    r = math.sqrt(3) * (gap.square().sum(-1) + EYE).sqrt() * (1 - EYE) / kernel.log_lengthscale.exp()
    return (1 + r) * torch.exp(-r) + noise * EYE


def operator(kernel: Matern, x: Tensor, noise: Tensor) -> Operator:
    return Shifted(Tiled(kernel, x, x, kernel.claims), noise)


def compare(got: Tensor, wanted: Tensor, inputs: list[Tensor], tolerance: float = 1e-8) -> None:
    pairs = [torch.autograd.grad(value, inputs, retain_graph=True) for value in (got, wanted)]
    for a, b in zip(*pairs, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


PRECONDITION = NystromPreconditioner(20, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "solver",
    [Cholesky(), CG(PRECONDITION, 1e-12), BlockCG(tolerance=1e-12), MINRES(tolerance=1e-12), None],
    ids=["cholesky", "cg", "block", "minres", "default"],
)
def test_solutions_have_the_gradients_of_dense_algebra(solver: object) -> None:
    kernel, (x, noise, b) = Matern(1.5, 0.6), leaves()
    inputs = [x, noise, b, kernel.log_lengthscale]
    found = solve(operator(kernel, x, noise), b, solver)
    dense = torch.linalg.solve(matrix(kernel, x, noise), b)
    assert found.converged and torch.allclose(found.value, dense, rtol=0, atol=1e-9)
    compare(found.value.sin().sum(), dense.sin().sum(), inputs)
    single = solve(operator(kernel, x, noise), b[:, 0], solver)
    compare(single.value.square().sum(), dense[:, 0].square().sum(), inputs)


def test_solutions_of_operators_from_kernels_and_of_refinement_are_differentiable() -> None:
    """`k(x)` as a user writes it, with the parameter of the kernel; and an indefinite one."""
    x, b = points(N).requires_grad_(), points(N, 2, 1)
    kernel = Gaussian(0.4)
    ell = torch.tensor(math.log(0.4), dtype=torch.float64, requires_grad=True)
    dense = torch.exp(-0.5 * (x[:, None] - x[None]).square().sum(-1) / ell.exp() ** 2) + 0.1 * EYE
    wanted = torch.autograd.grad(torch.linalg.solve(dense, b).sin().sum(), [x, ell])
    close = Shifted(kernel(x.detach().float()), 0.1)
    for solver in (Cholesky(), Refined(CG(tolerance=1e-4), close, 1e-12)):
        value = solve(Shifted(kernel(x), 0.1), b, solver).value.sin().sum()
        got = torch.autograd.grad(value, [x, kernel.log_lengthscale])
        for g, w in zip(got, wanted, strict=True):
            assert float((g - w).abs().max()) <= 1e-8 * float(w.abs().max())
    distance = (x[:, None] - x[None]).square().sum(-1)
    riesz = 0.5 * EYE - torch.where(EYE > 0, 0.0, (distance + 1e-30 * EYE).sqrt())
    found = solve(Shifted(Riesz()(x), 0.5), b, MINRES(tolerance=1e-12, max_iterations=4000)).value
    compare(found.sin().sum(), torch.linalg.solve(riesz, b).sin().sum(), [x])


def test_an_operator_that_is_not_symmetric_is_turned_for_the_gradient() -> None:
    class Lu(Cholesky):
        needs = frozenset()

        def factor(self, m: Tensor):  # type: ignore[no-untyped-def]
            class State:
                lower, jitter = torch.eye(len(m), dtype=torch.float64), 0.0

                def solve(self, b: Tensor) -> Tensor:
                    return torch.linalg.solve(m, b)

            return State()

    m, b = (points(5, 5) + 2 * torch.eye(5)).requires_grad_(), points(5, 2, 1).requires_grad_()
    compare(solve(Dense(m), b, Lu(tolerance=10.0)).value.sin().sum(), torch.linalg.solve(m, b).sin().sum(), [m, b])


def test_gradients_are_of_first_order_and_say_so() -> None:
    m = (points(5, 5) @ points(5, 5).mT + torch.eye(5)).requires_grad_()
    for value in (solve(Dense(m, PSD), points(5, 1, 1)).value.sum(), logdet(Dense(m, PSD)).value):
        for total in (value, value + m.square().sum(), value.square()):  # no part may be left out silently
            (g,) = torch.autograd.grad(total, m, create_graph=True)
            with pytest.raises(RuntimeError, match="first order"):
                torch.autograd.grad(g.sum(), m)


def test_no_graph_is_kept_where_none_is_wanted() -> None:
    kernel, (x, noise, b) = Matern(1.5, 0.6), leaves()
    with torch.no_grad():
        assert not solve(operator(kernel, x, noise), b).value.requires_grad
        assert not logdet(operator(kernel, x, noise)).value.requires_grad
    plain = Dense(torch.eye(4, dtype=torch.float64), PSD)
    assert not solve(plain, torch.ones(4, dtype=torch.float64)).value.requires_grad


def test_a_gradient_that_misses_its_tolerance_warns() -> None:
    kernel, (x, noise, b) = Matern(1.5, 0.6), leaves()
    a = operator(kernel, x, noise)
    exact = torch.linalg.eigh(a.dense().detach())[1][:, -1:]  # an eigenvector: forward needs one step
    found = solve(a, exact, CG(tolerance=1e-10, max_iterations=2))
    assert found.converged
    with pytest.warns(ConvergenceWarning):
        (found.value * b).sum().backward()


def test_log_determinants_have_the_gradients_of_dense_algebra() -> None:
    kernel, (x, noise, _) = Matern(1.5, 0.6), leaves()
    a, m, inputs = operator(kernel, x, noise), matrix(kernel, x, noise), [x, noise, kernel.log_lengthscale]
    found = logdet(a)
    dense = torch.logdet(m)
    assert abs(float((found.value - dense).detach())) <= found.error + 1e-11
    compare(2 * found.value, 2 * dense, inputs)
    compare(trace_inverse(a).value, torch.linalg.inv(m).diagonal().sum(), inputs)


class Exhaustive(SLQ):
    """Probes sqrt(n) e_i in place of random signs: the mean over them is the exact trace."""

    def draw(self, a: Operator) -> Tensor:
        return math.sqrt(a.shape[-1]) * torch.eye(a.shape[-1], dtype=torch.float64)


@pytest.mark.parametrize("preconditioner", [None, PRECONDITION], ids=["plain", "preconditioned"])
def test_estimated_log_determinants_have_the_gradient_of_their_probes(preconditioner: object) -> None:
    kernel, (x, noise, _) = Matern(1.5, 0.6), leaves()
    a, m, inputs = operator(kernel, x, noise), matrix(kernel, x, noise), [x, noise, kernel.log_lengthscale]
    wanted, inverse = torch.logdet(m), torch.linalg.inv(m).diagonal().sum()
    method = Exhaustive(preconditioner, confidence=1e-6)  # hence the quadrature is run to its end
    with torch.no_grad():
        assert abs(float(logdet(a, method).value - wanted)) < 1e-6
    compare(logdet(a, method).value, wanted, inputs, 1e-7)
    compare(trace_inverse(a, method, 1e-12).value, inverse, inputs)
    random: Callable[[int], SLQ] = lambda s: SLQ(preconditioner, 50, generator=torch.Generator().manual_seed(s))  # noqa: E731
    drawn = [torch.autograd.grad(logdet(a, random(s)).value, noise)[0] for s in range(5)]
    exact = float(torch.autograd.grad(wanted, noise)[0])
    assert float(torch.stack(drawn).mean()) == pytest.approx(exact, rel=0.03)


def test_structure_answers_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Cholesky, "prepare")
    column = (0.5 ** torch.arange(30.0)).double().requires_grad_()
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    b, inputs = points(30, 2, 1), [column, shift]
    dense = column[(torch.arange(30)[:, None] - torch.arange(30)).abs()] + shift * torch.eye(30, dtype=torch.float64)
    found = solve(Shifted(Toeplitz(column, None, PSD), shift), b)
    compare(found.value.sin().sum(), torch.linalg.solve(dense, b).sin().sum(), inputs)
    compare(logdet(Shifted(Toeplitz(column, None, PSD), shift)).value, torch.logdet(dense), inputs)


def test_claims_decide_what_may_be_differentiated_through() -> None:
    with pytest.raises(Exception, match="symmetric"):
        solve(Dense(torch.eye(3, dtype=torch.float64), frozenset({Claim.POSITIVE})), torch.ones(3).double(), MINRES())
