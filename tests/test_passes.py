"""The short loop of torch tiles: equal to sums over pairs in float64, whatever the tiles, threads and offsets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad

from mercer import memory
from mercer.kernels import ExpDot, Gaussian, Laplace, Matern, RationalQuadratic
from mercer.operators import Tiled
from mercer.operators.passes import copies, product, servable
from tests.peak import peak_bytes

PROFILES = {
    "gaussian": (lambda s: Gaussian(s), lambda s, q: torch.exp(-q / (2 * s * s))),
    "matern": (lambda s: Matern(1.5, s), lambda s, q: (1 + (3 * q).sqrt() / s) * torch.exp(-(3 * q).sqrt() / s)),
    "matern12": (lambda s: Matern(0.5, s), lambda s, q: torch.exp(-q.sqrt() / s)),
    "rational": (lambda s: RationalQuadratic(s, 2.0), lambda s, q: (1 + q / (4 * s * s)) ** -2.0),
}


def loop(formula, scale, x, y, v):
    """By differences in float64: what is summed is never expanded."""
    x, y, v = x.double(), y.double(), v.double()
    return torch.stack([formula(scale, (a - y).square().sum(-1)) @ v for a in x])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("d", [1, 3, 10, 100])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_equal_the_sum_over_pairs(name, d, offset, dtype):
    make, formula = PROFILES[name]
    g = torch.Generator().manual_seed(d)
    x = (torch.randn(70, d, generator=g, dtype=torch.float64) / d**0.5 + offset).to(dtype)
    y = torch.cat([(torch.randn(50, d, generator=g, dtype=torch.float64) / d**0.5 + offset).to(dtype), x[:9]])
    v = torch.randn(59, 3, generator=g, dtype=torch.float64).to(dtype)
    kernel = make(0.7)
    with torch.no_grad():
        assert servable(kernel, x, y, v)
        found = product(kernel, x, y, v, 16, 24)  # neither divides the sizes
    # averages over 59 pairs: the error of one entry, some eps, is divided among them
    size = v.double().abs().sum(0)
    worst = ((found.double() - loop(formula, 0.7, x, y, v)).abs() / size).max()
    assert worst <= 4 * torch.finfo(dtype).eps


def test_dot_products_have_no_centre():
    g = torch.Generator().manual_seed(0)
    x, y, v = (torch.randn(n, d, generator=g, dtype=torch.float64) for n, d in ((20, 4), (30, 4), (30, 2)))
    x, y = x + 1.0, y + 1.0
    found = product(ExpDot(), x, y, v, 7, 11)
    want = torch.stack([torch.exp((a * y).sum(-1) / 2) @ v for a in x])  # temperature sqrt(4)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_bits_do_not_depend_on_threads():
    g = torch.Generator().manual_seed(1)
    x, y, v = (torch.randn(n, d, generator=g) for n, d in ((900, 3), (700, 3), (700, 1)))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(product(Gaussian(0.5), x, y, v, 64, 128))
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:  # callers side by side share no buffer
        found += pool.map(lambda _: product(Gaussian(0.5), x, y, v, 64, 128), range(4))
    assert all(torch.equal(found[0], other) for other in found)


def test_what_it_leaves_to_the_general_loop():
    x, v = torch.randn(5, 2, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)
    kernel = Gaussian(1.0)
    assert not servable(kernel, x.requires_grad_(), x, v)  # a gradient is wanted
    with torch.no_grad():
        assert servable(kernel, x, x, v)
        assert not servable(Laplace(1.0), x, x, v)  # sums of absolute differences
        assert not servable(kernel + kernel, x, x, v)
        assert not servable(kernel, x[None], x, v)
        assert not servable(kernel, x, x, v.float())


def test_copies_that_do_not_fit_are_left_to_the_general_loop():
    x, v = torch.randn(4000, 50), torch.randn(4000, 1)
    with memory("2M"), torch.no_grad():
        assert copies(x, x) == 2 * 4000 * 154 * 4 and not servable(Gaussian(1.0), x, x, v)
        tiled = Tiled(Gaussian(5.0), x, x + 0.1)
        assert tiled.cost().memory <= 2**21
        took = peak_bytes(lambda: tiled @ v)
        assert took <= 2**21
    with torch.no_grad():
        assert servable(Gaussian(1.0), x, x, v)
        torch.testing.assert_close(tiled @ v, Gaussian(5.0).block(x, x + 0.1).detach() @ v, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at its first dual number
def test_transforms_and_dual_numbers_are_not_for_it():
    x, v = torch.randn(5, 3, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        assert not servable(Gaussian(1.0), forward_ad.make_dual(x, x), x, v)
    seen = []

    def inner(a):
        with torch.no_grad():
            seen.append(servable(Gaussian(1.0), a, x, v))
        return a.sum()

    torch.func.vmap(inner)(torch.randn(2, 5, 3, dtype=torch.float64))
    assert seen == [False]


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 1)])
def test_empty_and_single(n, m):
    x, y, v = torch.zeros(n, 2), torch.zeros(m, 2), torch.ones(m, 2)
    assert torch.equal(product(Gaussian(1.0), x, y, v, 8, 8), torch.full((n, 2), float(m)))
