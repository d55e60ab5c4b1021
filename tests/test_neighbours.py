"""NeighbourRidge against ordinary kriging as its bordered linear system, and on a surface it must reconstruct."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.interpolate import LinearNDInterpolator

from mercer.errors import DataError
from mercer.kernels import Matern
from mercer.learn.neighbours import Neighbourhoods, NeighbourRidge, local


def bordered(x, y, z, lengthscale, noise):
    """[[K + noise I, 1], [1^T, 0]] [w; m] = [k; 1], prediction w^T y: the textbook system, kernel typed out."""

    def k(a, b):
        return np.exp(-np.sqrt((((a[:, None] - b[None]) / lengthscale) ** 2).sum(-1)))

    n = len(x)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = k(x, x) + noise * np.eye(n)
    system[n, n] = 0.0
    right = np.vstack([k(x, z), np.ones(len(z))])
    return np.linalg.solve(system, right)[:n].T @ y


def test_all_rows_as_neighbours_is_ordinary_kriging():
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(40, 2)), rng.normal(size=(7, 2))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] ** 2], axis=1)
    model = NeighbourRidge(Matern(0.5, [0.7, 1.3]), alpha=0.05, neighbours=40).fit(x, y)
    inside, outside = model.coordinates(x).numpy(), model.coordinates(z).numpy()
    scaled = (y - y.mean(0)) / y.std(0)
    expected = bordered(inside, scaled, outside, np.array([0.7, 1.3]), 0.05) * y.std(0) + y.mean(0)
    np.testing.assert_allclose(model.predict(z), expected, atol=1e-9)
    many = NeighbourRidge(Matern(0.5, [0.7, 1.3]), alpha=0.05, neighbours=100).fit(x, y)
    np.testing.assert_allclose(many.predict(z), expected, atol=1e-9)


def test_left_out_rows_are_predicted_without_themselves():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    model = NeighbourRidge(Matern(0.5, [1.0, 1.0]), alpha=0.1, neighbours=29).fit(x, y)
    inside, scaled = model.coordinates(x).numpy(), (y - y.mean()) / y.std()
    for i in (0, 11, 29):
        rest = np.arange(30) != i
        alone = bordered(inside[rest], scaled[rest], inside[i : i + 1], np.ones(2), 0.1)
        assert model.left_out_[i] == pytest.approx(alone[0] * y.std() + y.mean(), abs=1e-9)


def test_a_rough_noisy_surface_is_better_than_linear_interpolation():
    rng = np.random.default_rng(2)
    x = rng.random((1200, 2))
    z = 0.1 + 0.8 * rng.random((400, 2))

    def surface(p):
        return np.sin(9 * p[:, 0]) * np.cos(7 * p[:, 1])

    y = surface(x) + 0.3 * rng.normal(size=1200)
    model = NeighbourRidge(random_state=0).fit(x, y)
    ours = np.mean((model.predict(z) - surface(z)) ** 2)
    linear = np.mean((LinearNDInterpolator(x, y)(z) - surface(z)) ** 2)
    assert ours < 0.5 * linear
    state, arrays = model.get_state()
    again = NeighbourRidge.from_state(json.loads(json.dumps(state)), arrays)
    np.testing.assert_array_equal(again.predict(z), model.predict(z))
    assert "nearest of 1,200 rows" in model.plan_.sentence


def test_what_it_cannot_do_is_said():
    with pytest.raises(DataError, match="at least 3 rows"):
        NeighbourRidge().fit(np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="neighbours is 1"):
        NeighbourRidge(neighbours=1).fit(np.zeros((5, 1)), np.zeros(5))
    with pytest.raises(DataError, match="NaN"):
        NeighbourRidge().fit(np.full((5, 1), np.nan), np.zeros(5))


def test_rows_at_one_place_do_not_predict_themselves() -> None:
    """Integers as coordinates: each row from all others, dense, whatever order a tree gives equal distances."""
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.integers(0, 3, size=(40, 2)).astype(np.float64))
    y = torch.from_numpy(random.normal(size=(40, 1)))
    near = Neighbourhoods(Matern(1.5, torch.tensor([1.0, 2.0], dtype=torch.float64)), 0.3, x, y)
    found = near.left_out(torch.arange(40), 39)
    for i in range(40):
        others = torch.tensor([[j for j in range(40) if j != i]])
        torch.testing.assert_close(found[i], local(near.kernel, 0.3, x[i : i + 1], others, x, y)[0])


def test_intervals_hold_on_a_grid_that_is_seen_again() -> None:
    random = np.random.default_rng(1)
    x = random.integers(0, 20, size=(4000, 2)).astype(np.float64)
    y = np.sin(x[:, 0] / 4) + np.cos(x[:, 1] / 5) + 0.5 * random.normal(size=4000)
    model = NeighbourRidge(time_budget=3, random_state=0).fit(x[:1200], y[:1200])
    low, high = model.predict_interval(x[1200:])
    assert 0.87 < ((low <= y[1200:]) & (y[1200:] <= high)).mean() < 0.93
