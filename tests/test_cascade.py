"""Cascades of polyharmonic splines against scipy's interpolator, automatic derivatives and dense least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from sklearn.datasets import load_digits, make_friedman1
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.errors import DataError
from mercer.learn import PolyharmonicCascadeClassifier, PolyharmonicCascadeRegressor, cascade

SMALL = {"packages": 2, "nodes": 30, "width": 3, "epochs": 2, "random_state": 0}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def packages(*sizes: int) -> list[cascade.Package]:
    """Of 25 nodes each."""
    return [
        cascade.Package(normal(25, d, seed=i), normal(25, w, seed=10 + i))
        for i, (d, w) in enumerate(itertools.pairwise(sizes))
    ]


@parametrize_with_checks([PolyharmonicCascadeRegressor(**SMALL), PolyharmonicCascadeClassifier(**SMALL)])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


@pytest.mark.parametrize(("m", "d"), [(40, 1), (60, 3), (100, 8), (100, 33)])
def test_a_package_is_the_thin_plate_spline_of_scipy(m, d) -> None:
    nodes, values, x = normal(m, d), normal(m, 2, seed=1), normal(20, d, seed=2)
    package = cascade.Package(nodes, values)
    want = RBFInterpolator(nodes.numpy(), values.numpy(), kernel="thin_plate_spline", degree=1)(x.numpy())
    np.testing.assert_allclose(package.seen(x)[1], want, atol=1e-8)  # as far as the matrix is conditioned, d = 1
    np.testing.assert_allclose(package.seen(nodes)[1], values, atol=1e-8)


def test_affine_functions_are_reproduced_everywhere() -> None:
    nodes, x, a = normal(30, 4), 5 * normal(12, 4, seed=1), normal(4, 3, seed=2)
    shares, found, slopes = cascade.Package(nodes, nodes @ a + 2).seen(x)
    np.testing.assert_allclose(found, x @ a + 2, atol=1e-10)
    np.testing.assert_allclose(slopes, a.mT.expand(12, 3, 4), atol=1e-10)
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-10)


def test_derivatives_are_those_of_automatic_differentiation() -> None:
    """Of the output by every package's values, and at a node itself, where r^2 log r has derivative 0."""
    made, x = packages(3, 4, 2, 2), normal(6, 3, seed=30)
    x[0] = made[0].nodes[5]

    def output(*values: torch.Tensor) -> torch.Tensor:
        return cascade.forward([cascade.Package(p.nodes, v) for p, v in zip(made, values, strict=True)], x)[2]

    wanted = torch.autograd.functional.jacobian(output, tuple(p.values for p in made))
    shares, moved, _ = cascade.forward(made, x)
    for share, move, want in zip(shares, moved, wanted, strict=True):
        np.testing.assert_allclose(torch.einsum("nm,ncw->ncmw", share, move), want, atol=1e-9)


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_one_solve_is_damped_least_squares_in_all_values_at_once(damping) -> None:
    made, x, wrong = packages(3, 4, 2, 2), normal(7, 3, seed=30), normal(7, 2, seed=31)
    shares, moved, _ = cascade.forward(made, x)
    pairs = list(zip(shares, moved, strict=True))
    jacobian = torch.cat([torch.einsum("nm,ncw->ncmw", s, g).reshape(14, -1) for s, g in pairs], 1)
    both = torch.cat([jacobian, damping**0.5 * torch.eye(jacobian.shape[1], dtype=torch.float64)])
    right = torch.cat([wrong.reshape(-1), torch.zeros(jacobian.shape[1], dtype=torch.float64)])
    want = torch.linalg.lstsq(both, right[:, None], driver="gelsd").solution[:, 0]
    got = torch.cat([change.reshape(-1) for change in cascade.steps(shares, moved, wrong, damping)])
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_solves_lower_the_loss_of_three_packages_on_digits() -> None:
    """Each epoch lowers it, and three packages classify new digits better than one."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:800], order[800:]
    scores = {}
    for many in (1, 3):
        model = PolyharmonicCascadeClassifier(many, epochs=2, batch_size=100, random_state=0).fit(x[train], y[train])
        assert all(b < a for a, b in itertools.pairwise(model.loss_)) and len(model.loss_) == 3
        scores[many] = model.score(x[test], y[test])
    assert model.loss_[0] == pytest.approx(1.0) and model.loss_[-1] < 0.08
    assert scores[3] > 0.95 and scores[3] > scores[1] + 0.02


def test_a_batch_never_raises_its_own_loss() -> None:
    x, y = normal(60, 3), normal(60, 1, seed=1)
    model = PolyharmonicCascadeRegressor(nodes=40, width=3, epochs=0, damping=1e-9, random_state=0)
    model.fit(x.numpy(), y[:, 0].numpy())
    seen = (model.scaler_(x.numpy()) - model._middle) @ model._turn
    losses = []
    for _ in range(4):  # with hardly any damping a whole step overshoots
        losses.append(float((y - cascade.forward(model.packages_, seen)[2]).square().mean()))
        with torch.no_grad():
            model._step(seen, y)
    assert all(b <= a for a, b in itertools.pairwise(losses)) and losses[-1] < 0.5 * losses[0]


def test_regression_of_several_outputs_in_their_units() -> None:
    x, y = make_friedman1(700, random_state=0, noise=0.5)
    both = np.stack([100 + 10 * y, -y], 1)
    model = PolyharmonicCascadeRegressor(random_state=0).fit(x[:500], both[:500])
    line = LinearRegression().fit(x[:500], both[:500])
    assert model.score(x[500:], both[500:]) > line.score(x[500:], both[500:]) + 0.1
    answer = model.predict(torch.from_numpy(x[500:]))
    assert isinstance(answer, torch.Tensor) and answer.shape == (200, 2)


def test_what_cannot_be_is_named() -> None:
    x, y = normal(20, 2).numpy(), np.arange(20.0)
    with pytest.raises(ValueError, match="nodes is 2; expected a whole number >= 3"):
        PolyharmonicCascadeRegressor(nodes=2).fit(x, y)
    with pytest.raises(ValueError, match="damping is 0"):
        PolyharmonicCascadeRegressor(damping=0).fit(x, y)
    with pytest.raises(DataError, match="one class only"):
        PolyharmonicCascadeClassifier().fit(x, np.ones(20))
