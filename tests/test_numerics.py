"""Distances and elementary functions against fractions, decimals and numpy in float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mercer.numerics import absolute_distance, centre, exp, log, log_add, squared_distance


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("d", [1, 4, 5, 40])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_squared_distance_against_exact_fractions(d, offset):
    x, y = draw(6, d) + offset, draw(5, d, seed=1) + offset
    y[0] = x[0]
    exact = [
        [float(sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(r, s, strict=True))) for s in y.tolist()]
        for r in x.tolist()
    ]
    found = squared_distance(x, y, kink=True)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)
    assert found[0, 0] == 0 and bool((found >= 0).all())


def test_squared_distance_has_gradients_of_any_order_at_coincident_points():
    x = draw(4, 6).requires_grad_()
    y = torch.cat([x.detach()[:2], draw(3, 6, seed=2)]).requires_grad_()
    assert torch.autograd.gradcheck(squared_distance, (x, y))
    assert torch.autograd.gradgradcheck(squared_distance, (x, y))


def test_absolute_distance_against_numpy_with_gradients():
    x, y = draw(7, 3).requires_grad_(), draw(2, 5, 3, seed=1).requires_grad_()
    wanted = np.abs(x.detach().numpy()[None, :, None] - y.detach().numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(absolute_distance(x, y).detach().numpy(), wanted, rtol=1e-14)
    assert torch.autograd.gradcheck(absolute_distance, (x, y))


def test_centre_is_moved_neither_by_outliers_nor_by_nan():
    y = draw(500, 2)
    spoiled = y.clone()
    spoiled[::7] = 1e12
    spoiled[3] = float("nan")
    assert float(centre(spoiled).abs().max()) < 1 and centre(spoiled).shape == (1, 2)
    assert not centre(y.requires_grad_()).requires_grad


def test_exponentials_and_logarithms_against_numpy():
    x = torch.linspace(-700, 0, 2001, dtype=torch.float64)
    np.testing.assert_allclose(exp(x, 0.5).numpy(), np.exp(x.numpy() / 2), rtol=2e-13)
    a, b = torch.tensor([-np.inf, -np.inf, -3.0, 1000.0]), torch.tensor([-np.inf, 2.0, -3.0, 1000.0])
    a, b = a.double().requires_grad_(), b.double()
    found = log_add(a, b)
    np.testing.assert_allclose(found.detach().numpy(), np.logaddexp(a.detach().numpy(), b.numpy()), rtol=1e-15)
    (slope,) = torch.autograd.grad(found[1:].sum(), a)
    np.testing.assert_allclose(slope.numpy(), [0, 0, 0.5, 0.5])
    zero = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log(zero)[1:].sum() + log(zero)[0], zero)
    assert log(zero)[0] == -np.inf and slope.tolist() == [0.0, 0.5]
