"""The two-sample test against double loops, its level and its power."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.spatial.distance import cdist

from mercer.budget import memory
from mercer.compare import median_kernel, mmd, squared_mmd
from mercer.domain import Points
from mercer.errors import DataError, ShapeError, StructureError
from mercer.features import Fourier
from mercer.kernels import ExpDot, Gaussian, Laplace, Linear, Matern, Riesz

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=DOUBLE)


def loop(value, x, y, w=None, u=None) -> float:
    """The unbiased squared MMD, pair by pair; weights count pairs w_i w_j times."""
    w, u = [1.0] * len(x) if w is None else w, [1.0] * len(y) if u is None else u

    def mean(a, b, p, q, distinct):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (distinct and i == j)]
        total = math.fsum(p[i] * q[j] * value(a[i], b[j]) for i, j in pairs)
        return total / math.fsum(p[i] * q[j] for i, j in pairs)

    return mean(x, x, w, w, True) + mean(y, y, u, u, True) - 2 * mean(x, y, w, u, False)


VALUES = {
    "gaussian": (Gaussian(0.8), lambda a, b: math.exp(-(math.dist(a, b) ** 2) / 1.28)),
    "laplace": (Laplace(1.2), lambda a, b: math.exp(-sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 1.2)),
    "linear": (Linear(), lambda a, b: sum(p * q for p, q in zip(a, b, strict=True))),
    "riesz": (Riesz(), lambda a, b: -math.dist(a, b)),
    "sum": (
        Gaussian(0.8) + 0.5 * Riesz(1.5),
        lambda a, b: math.exp(-(math.dist(a, b) ** 2) / 1.28) - math.dist(a, b) ** 1.5 / 2,
    ),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("n,m", [(2, 2), (7, 7), (5, 12)])
def test_statistic_equals_the_double_loop(name, n, m):
    kernel, value = VALUES[name]
    x, y = normal(n, 3, seed=1), normal(m, 3, seed=2) + 0.4
    wanted = loop(value, x.tolist(), y.tolist())
    found = squared_mmd(kernel, x, y)
    assert abs(float(found.detach()) - wanted) < 1e-10
    assert mmd(kernel, x, y, permutations=3, generator=rng()).statistic == pytest.approx(wanted, abs=1e-10)
    shuffled = squared_mmd(kernel, x[torch.randperm(n, generator=rng())], y.flip(0))
    assert abs(float((shuffled - found).detach())) < 1e-12
    assert abs(float((squared_mmd(kernel, y, x) - found).detach())) < 1e-12


def test_weights_of_a_domain_count_points():
    kernel, value = VALUES["gaussian"]
    x, y = normal(6, 2, seed=1), normal(4, 2, seed=2)
    w, u = torch.rand(6, generator=rng(3), dtype=DOUBLE) + 0.1, torch.rand(4, generator=rng(4), dtype=DOUBLE) + 0.1
    found = squared_mmd(kernel, Points(x, w), Points(y, u))
    assert abs(float(found.detach()) - loop(value, x.tolist(), y.tolist(), w.tolist(), u.tolist())) < 1e-10
    assert abs(float((squared_mmd(kernel, Points(x, 3 * w), Points(y, u)) - found).detach())) < 1e-12


def test_energy_distance():
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with means over distinct pairs [szekely2013]."""
    x, y = normal(30, 3, seed=1), 1.3 * normal(20, 3, seed=2)
    within = [cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    wanted = 2 * cdist(x, y).mean() - sum(within)
    assert abs(float(squared_mmd(Riesz(), x, y).detach()) - wanted) < 1e-12


def test_null_draws_are_the_statistic_of_permuted_samples():
    """All splits of 3 + 2 points: each null draw is the statistic of one of the ten, and none is missing."""
    kernel, value = VALUES["gaussian"]
    pooled = normal(5, 2)
    splits = []
    for first in itertools.combinations(range(5), 3):
        rest = [i for i in range(5) if i not in first]
        splits.append(loop(value, pooled[list(first)].tolist(), pooled[rest].tolist()))
    result = mmd(kernel, pooled[:3], pooled[3:], permutations=2000, generator=rng())
    gaps = (result.null[:, None] - torch.tensor(splits, dtype=DOUBLE)).abs()
    assert gaps.min(1).values.max() < 1e-12
    share = torch.bincount(gaps.argmin(1), minlength=10) / 2000
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / 2000)
    beyond = sum(s >= splits[0] - 1e-12 for s in splits) / 10
    assert abs(result.p_value - beyond) < 5 * math.sqrt(0.25 / 2000)


def test_p_value_counts_ties_and_itself():
    """Two equal samples of twin points: every split is as far apart, so p = 1."""
    x = torch.ones(4, 2, dtype=DOUBLE)
    result = mmd(Gaussian(), x, x.clone(), permutations=19, generator=rng())
    assert result.p_value == 1.0
    far = mmd(Gaussian(), normal(12, 2), normal(12, 2, seed=1) + 50, permutations=19, generator=rng())
    assert far.p_value == 1 / 20
    assert len(far.null) == 19 and far.estimator == "unbiased"


@pytest.mark.parametrize("kernel", [None, Riesz()], ids=["median", "riesz"])
@pytest.mark.parametrize("n,m", [(15, 15), (10, 30)])
def test_level_under_the_null(kernel, n, m):
    g = rng(11)
    low = sum(
        mmd(
            kernel, torch.randn(n, 2, generator=g), torch.randn(m, 2, generator=g), permutations=99, generator=g
        ).p_value
        <= 0.05
        for _ in range(400)
    )
    assert 6 <= low <= 38, low  # 20 expected, standard deviation 4.4


def test_power_and_float32():
    g = rng(2)
    x, y = torch.randn(60, 2, generator=g), torch.randn(60, 2, generator=g)
    assert mmd(None, x, y, generator=g, permutations=199).p_value > 0.05
    for other in (y + 0.8, 2 * y):
        for kernel in (None, Matern(1.5), Riesz(), Fourier(Gaussian(), 2, 200, g)):
            assert mmd(kernel, x, other, generator=g, permutations=199).p_value < 0.02
    single, double = squared_mmd(Gaussian(), x, y), squared_mmd(Gaussian(), x.double(), y.double())
    assert single.dtype == DOUBLE and torch.equal(single, double)


def test_units_do_not_matter_and_the_seed_does():
    x, y = normal(30, 2, seed=1), normal(25, 2, seed=2) + 0.3
    first = mmd(None, x, y, generator=rng(3), permutations=99)
    scaled = mmd(None, 1e3 * x, 1e3 * y, generator=rng(3), permutations=99)
    assert first.p_value == scaled.p_value
    assert abs(first.statistic - scaled.statistic) < 1e-12
    assert torch.equal(first.null, mmd(None, x, y, generator=rng(3), permutations=99).null)
    assert not torch.equal(first.null, mmd(None, x, y, generator=rng(4), permutations=99).null)
    distances = torch.as_tensor(cdist(x, x))[torch.ones(30, 30).triu(1).bool()]
    assert median_kernel(x).lengthscale.item() == pytest.approx(distances.median().item(), rel=1e-12)


def test_memory_budget_does_not_change_the_answer():
    x, y = normal(300, 2, seed=1), normal(200, 2, seed=2)
    wanted = mmd(Gaussian(), x, y, permutations=40, generator=rng())
    for budget in ("600K", "64K", "1G"):
        with memory(budget):
            found = mmd(Gaussian(), x, y, permutations=40, generator=rng())
        assert abs(found.statistic - wanted.statistic) < 1e-12
        assert found.p_value == wanted.p_value and (found.null - wanted.null).abs().max() < 1e-12


def test_statistic_differentiates():
    x, y = normal(5, 2, seed=1).requires_grad_(), normal(4, 2, seed=2).requires_grad_()
    kernel = Gaussian(0.9)
    assert torch.autograd.gradcheck(lambda a, b: squared_mmd(kernel, a, b), (x, y))
    assert torch.isfinite(torch.autograd.grad(squared_mmd(kernel, x, y), kernel.log_lengthscale)[0])


def test_a_statistic_that_is_no_number_is_refused():
    x, y = 60 * normal(40, 3, seed=1), 60 * normal(40, 3, seed=2)
    for ask in (squared_mmd, mmd):
        with pytest.raises(DataError, match=r"ExpDot.* overflows"):
            ask(ExpDot(), x, y)
    assert mmd(ExpDot(), x / 60, y / 60, permutations=19, generator=rng()).p_value > 0.05


def test_weights_that_leave_no_pair_are_refused():
    x, y = normal(5, 2, seed=1), normal(6, 2, seed=2)
    single = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    for ask in (squared_mmd, mmd):
        for pair in ((Points(x, single), y), (y, Points(x, single)), (Points(x, 0 * single), y)):
            with pytest.raises(DataError, match="no pair"):
                ask(Gaussian(), *pair)
        with pytest.raises(DataError, match=r"x.weights is -1.0 at row 1"):
            ask(Gaussian(), Points(x, -single / 3), y)
    two = Points(x, torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0], dtype=DOUBLE))
    assert torch.isfinite(squared_mmd(Gaussian(), two, y))


def test_bad_input_is_refused_by_name():
    x = normal(5, 2)
    bad = x.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(DataError, match="y is nan at row 3, column 1"):
        mmd(Gaussian(), x, bad)
    with pytest.raises(DataError, match="x has 1 points"):
        mmd(Gaussian(), x[:1], x)
    with pytest.raises(ShapeError, match=r"y.d is 3, x.d is 2"):
        mmd(Gaussian(), x, normal(5, 3))
    with pytest.raises(DataError, match="median distance is 0"):
        mmd(None, torch.ones(5, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="permutations is 0"):
        mmd(Gaussian(), x, x, permutations=0)
    with pytest.raises(StructureError, match="conditionally psd"):
        mmd(Riesz() * Riesz(), x, x)  # |x - y|^2 with a plus sign
