"""Kernel thinning: closed-form MMDs to the source, swaps that never hurt, valid indices."""

from __future__ import annotations

import math

import pytest
import torch

from mercer.budget import memory, parse_bytes
from mercer.compress import thin
from mercer.compress.thinning import _split, _swap, _walk
from mercer.domain import Points
from mercer.errors import DataError, ShapeError, StructureError
from mercer.kernels import Gaussian, InverseMultiquadric, Laplace, Matern, Riesz
from tests.peak import peak_bytes

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=DOUBLE)


def squared(value, x, chosen) -> float:
    """Squared MMD of the chosen rows to all rows, from a dense matrix."""
    k = value(x, x)
    weights = torch.full((len(x),), -1 / len(x), dtype=DOUBLE)
    weights[chosen] += 1 / len(chosen)
    return float(weights @ k @ weights)


def to_normal(z: torch.Tensor) -> float:
    """MMD of z to N(0, I_2) for k = exp(-|x - y|^2 / 4), by the Gaussian integrals."""
    own = torch.exp(-torch.cdist(z, z).square() / 4).mean()
    cross = 2 / 3 * torch.exp(-z.square().sum(-1) / 6).mean()
    return math.sqrt(float(own - 2 * cross + 1 / 2))


def test_thinning_beats_random_rows_as_published():
    """N(0, I_2), 4096 -> 64, exact MMD to the source: iid .0739, kernel thinning .0120 (goodpoints 0.6.3)."""
    kernel, iid, thinned = Gaussian(math.sqrt(2)), [], []
    for seed in range(4):
        x = normal(4096, 2, seed=seed)
        iid.append(to_normal(x[:64]))
        thinned.append(to_normal(x[thin(kernel, x, 64, generator=rng(seed))]))
    random, ours = (sum(v) / len(v) for v in (iid, thinned))
    assert 0.055 < random < 0.095, random
    assert ours < 0.016, ours
    assert random / ours >= 5


KERNELS = {
    "gaussian": (Gaussian(1.0), lambda x, y: torch.exp(-torch.cdist(x, y).square() / 2)),
    "laplace": (Laplace(2.0), lambda x, y: torch.exp(-torch.cdist(x, y, p=1) / 2)),
    "matern": (Matern(0.5, 1.5), lambda x, y: torch.exp(-torch.cdist(x, y) / 1.5)),
    "imq": (InverseMultiquadric(), None),
    "riesz": (Riesz(), lambda x, y: -torch.cdist(x, y)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n,size,d", [(512, 16, 2), (500, 30, 5), (300, 200, 3)])
def test_coresets_are_distinct_rows_and_better_than_random(name, n, size, d):
    kernel, value = KERNELS[name]
    kernel.requires_grad_(False)
    value = value or kernel.block
    x = normal(n, d, seed=1)
    chosen = thin(kernel, x, size, generator=rng(2))
    assert chosen.shape == (size,) and chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == size and 0 <= int(chosen.min()) and int(chosen.max()) < n
    g = rng(3)
    random = [squared(value, x, torch.randperm(n, generator=g)[:size]) for _ in range(20)]
    rough = name in ("laplace", "matern") and d == 5  # slowly decaying spectra in five dimensions leave less to gain
    assert squared(value, x, chosen) < (0.65 if rough else 0.5) * sum(random) / 20
    assert squared(value, x, chosen) < min(random)
    assert torch.equal(chosen, thin(kernel, x, size, generator=rng(2)))


def test_error_falls_faster_than_random():
    """Error against size sqrt(n): random rows n^-1/4; thinning clearly faster."""
    kernel = Gaussian(math.sqrt(2))
    sizes, errors = (64, 512, 4096), []
    for n in sizes:
        draws = []
        for seed in range(3):
            x = normal(n, 2, seed=seed)
            draws.append(to_normal(x[thin(kernel, x, math.isqrt(n), generator=rng(seed))]))
        errors.append(sum(draws) / 3)
    slope = math.log(errors[2] / errors[0]) / math.log(sizes[2] / sizes[0])
    assert slope < -0.38, slope


def walk(k, x, y, scale, chance):
    """The halving step as published, point by point with its running sets; one list of pairs."""
    everything, first, swapped, variance = [], [], [], 0.0
    for a, b, u in zip(x, y, chance, strict=True):
        size = float(k(a, a) + k(b, b) - 2 * k(a, b))
        bound = max(math.sqrt(size * variance * scale), size)
        variance += size * max(1 + (size - 2 * bound) * variance / bound**2, 0.0)
        alpha = sum(float(k(z, a) - k(z, b)) for z in everything) - 2 * sum(float(k(z, a) - k(z, b)) for z in first)
        swap = u < min(1.0, max(0.0, 0.5 * (1 - alpha / bound)))
        swapped.append(swap)
        everything += [a, b]
        first.append(b if swap else a)
    return swapped


@pytest.mark.parametrize("count", [40, 300])
def test_walk_is_the_published_halving(count):
    """Algorithm 1a of Kernel Thinning with the same uniform draws; 300 pairs cross the block boundary."""
    x, y, scale = normal(2, count, 2, seed=1), normal(2, count, 2, seed=2), 12.0
    found = _walk(Gaussian(0.7).requires_grad_(False), x, y, scale, rng(5))
    chance = torch.rand(2, count, dtype=DOUBLE, generator=rng(5))

    def k(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / 0.98)

    for b in range(2):
        assert found[b].tolist() == walk(k, x[b].tolist(), y[b].tolist(), scale, chance[b].tolist())


def test_split_halves_with_the_published_thresholds():
    """Two rounds of halving by the loop above, threshold 2 log(2 / delta') with delta' = 2^(j-1) delta / (m n)."""
    n, m, delta = 512, 2, 0.5
    x = normal(n, 2, seed=3)
    found = _split(Gaussian(0.5).requires_grad_(False), x, torch.arange(n), m, delta, rng(8))

    def k(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / 0.5)

    g, coresets = rng(8), [list(range(n))]
    for j in (1, 2):
        scale = 2 * math.log(2 / (2 ** (j - 1) / m * delta / n))
        chance, halves = torch.rand(len(coresets), len(coresets[0]) // 2, dtype=DOUBLE, generator=g).tolist(), []
        for rows, draws in zip(coresets, chance, strict=True):
            a, b = rows[::2], rows[1::2]
            swapped = walk(k, x[a].tolist(), x[b].tolist(), scale, draws)
            halves.append([q if s else p for p, q, s in zip(a, b, swapped, strict=True)])
            halves.append([p if s else q for p, q, s in zip(a, b, swapped, strict=True)])
        coresets = halves
    assert found.tolist() == coresets


def test_walk_stays_in_the_budget_and_does_not_depend_on_it():
    x, y = normal(12, 150, 2, seed=1), normal(12, 150, 2, seed=2)
    kernel = Gaussian(0.7).requires_grad_(False)
    wanted = _walk(kernel, x, y, 12.0, rng(5))
    for budget in ("1M", "16M"):  # one Gram block takes 0.7 MB, all of them 8 MB, and several such
        with memory(budget):
            found = []
            assert peak_bytes(lambda kept=found: kept.append(_walk(kernel, x, y, 12.0, rng(5)))) < parse_bytes(budget)
        assert torch.equal(found[0], wanted)


def test_split_keeps_every_point_once():
    x = normal(96, 2)
    order = torch.randperm(96, generator=rng())
    coresets = _split(Gaussian(), x, order, 3, 0.5, rng(1))
    assert coresets.shape == (8, 12)
    assert sorted(coresets.flatten().tolist()) == list(range(96))


@pytest.mark.parametrize("name", KERNELS)
def test_swap_never_raises_the_discrepancy(name):
    kernel, value = KERNELS[name]
    kernel.requires_grad_(False)
    value = value or kernel.block
    x = normal(150, 2, seed=4)
    mean = value(x, x).mean(1)
    for seed in range(5):
        start = torch.randperm(150, generator=rng(seed))[:10]
        last = squared(value, x, start)
        for passes in (1, 2, 5):
            chosen = _swap(kernel, x, start, mean, passes)
            assert len(set(chosen.tolist())) == 10
            assert squared(value, x, chosen) <= last + 1e-12
            last = squared(value, x, chosen)
        assert last < squared(value, x, start)
    best = _swap(kernel, x, start, mean, 50)
    for place in range(10):  # no single exchange is left that would help
        for new in set(range(150)) - set(best.tolist()):
            trial = best.clone()
            trial[place] = new
            assert squared(value, x, trial) >= squared(value, x, best) - 1e-12


def test_whole_single_and_twin_points():
    x = normal(20, 2)
    assert sorted(thin(Gaussian(), x, 20, generator=rng()).tolist()) == list(range(20))
    one = int(thin(Gaussian(), x, 1, generator=rng())[0])
    k = torch.exp(-torch.cdist(x, x).square() / 2)
    assert one == int(k.mean(1).argmax())
    twins = torch.zeros(16, 3)
    assert len(set(thin(Gaussian(), twins, 4, generator=rng()).tolist())) == 4


def test_bad_input_is_refused_by_name():
    x = normal(10, 2)
    with pytest.raises(DataError, match="size is 11"):
        thin(Gaussian(), x, 11)
    with pytest.raises(DataError, match="size is 0"):
        thin(Gaussian(), x, 0)
    with pytest.raises(StructureError, match="conditionally psd"):
        thin(Riesz() * Riesz(), x, 2)
    with pytest.raises(ShapeError, match="n d"):
        thin(Gaussian(), normal(2, 10, 2), 2)
    with pytest.raises(DataError, match="row 0, column 1"):
        thin(Gaussian(), torch.tensor([[0.0, torch.inf], [1.0, 2.0]]), 1)
    with pytest.raises(DataError, match="weights"):
        thin(Gaussian(), Points(x, torch.ones(10)), 2)
    with pytest.raises(ValueError, match="delta is 2"):
        thin(Gaussian(), x, 2, delta=2)


def test_a_size_that_is_no_whole_number_is_refused():
    with pytest.raises(TypeError, match=r"size is 8.0; expected a whole number"):
        thin(Gaussian(), normal(20, 3), 8.0)
