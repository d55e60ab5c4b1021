"""Feature learning: gradients against autograd of the dense formula, recursive feature machines, learned metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer import kernels
from mercer.errors import ShapeError, StructureError
from mercer.kernels import Gaussian, Laplace, Linear, Matern, Metric
from mercer.learn import (
    GaussianProcessRegressor,
    KernelClassifier,
    KernelRidge,
    RecursiveFeatureClassifier,
    RecursiveFeatureMachine,
)
from mercer.learn import metric as learned
from mercer.learn.gradients import agop
from mercer.learn.metric import Data, Recursion, metric_of, parted, sharpened, stretched
from mercer.learn.spec import from_spec, to_spec
from mercer.learn.tune import Clock


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


TURN = draws(4, 4, seed=9)
KERNELS = [
    Gaussian(1.3),
    Matern(2.5, torch.tensor([0.7, 1.0, 1.5, 3.0])),
    Matern(0.5, 2.0).warp(Metric(TURN)),
    Laplace(3.0),
    0.5 * Gaussian(2.0) + Linear(1.5) * Matern(1.5, 2.0),
    kernels.ArcCosine(1),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agop_is_the_mean_outer_product_of_jacobians(kernel: kernels.Kernel, dtype: torch.dtype) -> None:
    x, points, weights = draws(30, 4), draws(11, 4, seed=1), draws(11, 2, seed=2)
    each = torch.stack([torch.func.jacrev(lambda r: kernel.block(r[None], points)[0] @ weights)(row) for row in x])
    wanted = torch.einsum("ncd,nce->de", each, each).detach() / len(x)
    found = agop(kernel, x.to(dtype), points.to(dtype), weights.to(dtype))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4  # float32 products of some hundred terms
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    slopes = agop(kernel, x.to(dtype), points.to(dtype), weights.to(dtype), diagonal=True)
    torch.testing.assert_close(slopes, found.diagonal(), rtol=1e-6, atol=0)
    assert found.dtype == slopes.dtype == torch.float64


def test_agop_of_a_plane_is_its_normal_and_leaves_the_kernel_alone() -> None:
    kernel = Linear(1.0)
    kernel.requires_grad_(True)
    slope = torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)
    found = agop(kernel, draws(9000, 3), slope, torch.ones(1, 1, dtype=torch.float64))  # f(x) = slope . x
    torch.testing.assert_close(found, slope.mT @ slope, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in kernel.parameters())
    with pytest.raises(ShapeError, match="x, points and weights"):
        agop(kernel, draws(3, 2), draws(4, 2), draws(5, 1))


def test_slopes_at_a_kink_count_as_zero() -> None:
    x = draws(5, 2)
    found = agop(Matern(0.5), x, x, torch.ones(5, 1, dtype=torch.float64))
    by_hand = torch.zeros(2, 2, dtype=torch.float64)
    for i in range(5):
        slope = torch.zeros(2, dtype=torch.float64)
        for j in range(5):
            gap = x[i] - x[j]
            slope -= 0 if i == j else gap / gap.norm() * math.exp(-float(gap.norm()))
        by_hand += torch.outer(slope, slope) / 5
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)


def test_a_metric_is_the_mahalanobis_distance() -> None:
    half = draws(4, 4, seed=3)
    m = half @ half.mT
    kernel = Gaussian(1.0).warp(Metric.of(m))
    x, y = draws(6, 4), draws(5, 4, seed=1)
    gap = (x[:, None] - y[None]).numpy()
    wanted = np.exp(-0.5 * np.einsum("ijd,de,ije->ij", gap, m.numpy(), gap))
    np.testing.assert_allclose(kernel.block(x, y).detach().numpy(), wanted, rtol=1e-11)
    np.testing.assert_allclose((kernel(x.float(), y.float()) @ torch.eye(5)).detach().numpy(), wanted, atol=2e-6)
    flat = Metric.of(torch.outer(half[0], half[0]))  # one direction
    assert flat.matrix.shape == (4, 1)
    np.testing.assert_allclose(np.abs(flat.matrix[:, 0].numpy()), np.abs(half[0].numpy()), rtol=1e-9)


@pytest.mark.parametrize(
    ("bad", "error"),
    [([1.0, 2.0], ShapeError), ([[1.0, float("nan")]], ValueError), ([[]], ShapeError)],
)
def test_what_is_no_metric_is_refused(bad: list, error: type[Exception]) -> None:
    with pytest.raises(error, match="Metric.matrix"):
        Metric(bad)
    with pytest.raises(ValueError, match="psd"):
        Metric.of([[1.0, 0.0], [0.0, -1.0]])
    with pytest.raises(ShapeError, match="4 columns, x.d is 3"):
        Gaussian().warp(Metric(TURN)).block(draws(2, 3), draws(2, 3))


def test_kernels_in_a_metric_are_saved_as_numbers() -> None:
    kernel = 2.0 * Matern(2.5, torch.tensor([0.5, 2.0])).warp(Metric(draws(4, 2)))
    spec = json.loads(json.dumps(to_spec(kernel)))
    x = draws(7, 4, seed=5)
    torch.testing.assert_close(from_spec(spec).block(x, x), kernel.block(x, x), rtol=0, atol=0)
    inner = spec["arguments"]["kernel"]["kernel"]
    for wrong in ([[1.0, "a"]], [[1.0], [1.0, 2.0]], "code", [[float("inf")]], [[True]]):
        inner["matrix"] = wrong
        with pytest.raises(StructureError, match="saved metric"):
            from_spec(spec)


def rotated(n: int, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, the d 2 directions that y depends on, orthonormal and no columns): noise 0.1 beside a deviation of 0.9."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    turn = np.linalg.qr(random.normal(size=(d, d)))[0][:, :2]
    u, v = (x @ turn).T
    return x, np.sin(2 * u) + 0.5 * v**2 + 0.1 * random.normal(size=n), turn


QUICK = {"iterations": 1, "metric": "diagonal"}  # fewer numbers to learn, so fewer folds learn anew


@parametrize_with_checks([RecursiveFeatureMachine(**QUICK), RecursiveFeatureClassifier(alpha=0.1, **QUICK)])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def test_a_round_by_hand() -> None:
    """One round in numpy: solve, sum slopes by loops, take the root of the sum, keep the mean distance."""
    x, y, _ = rotated(80, 3)
    held, held_y, _ = rotated(20, 3, 1)
    data = Data(*(torch.tensor(v) for v in (x, y[:, None], held, held_y[:, None])))
    run = Recursion(data, True, 100, Clock.of(None), 0, 1e-9, search=False)
    stages = list(run.rounds(Gaussian(1.5).requires_grad_(False), 0.1, 1))
    scale = float(stages[0].kernel.lengthscale)  # left-out rows chose it, of 1.5 and its neighbours on the grid
    assert scale in [pytest.approx(1.5 * f) for f in (1.0, 0.7, 1 / 0.7)]

    def gram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * scale**2))

    weights = np.linalg.solve(gram(x, x) + 0.1 * np.eye(80), y)
    np.testing.assert_allclose(stages[0].errors.numpy(), (gram(held, x) @ weights - held_y) ** 2, atol=1e-9)
    slopes = -((x[:, None] - x[None]) * (gram(x, x) * weights)[..., None]).sum(1) / scale**2
    values, vectors = np.linalg.eigh(slopes.T @ slopes / 80)
    wanted = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    found = metric_of(stages[1].kernel, 3).numpy()
    np.testing.assert_allclose(found / np.trace(found), wanted / np.trace(wanted), atol=1e-9)
    base, matrix = parted(stages[1].kernel, 3)
    points = torch.tensor(x)
    ratio = torch.cdist(points @ matrix, points @ matrix).mean() / (torch.cdist(points, points).mean() / scale)
    assert float(ratio) in [pytest.approx(f) for f in (1.0, 0.7, 1 / 0.7)] and float(base.lengthscale) == 1.0


def test_directions_are_found_and_held_out_rows_choose_the_round() -> None:
    x, y, turn = rotated(900)
    plain, machine, columns = (
        RecursiveFeatureMachine(random_state=0, **kind).fit(x[:500], y[:500])
        for kind in ({"iterations": 0}, {"iterations": 4}, {"iterations": 4, "metric": "diagonal"})
    )
    scores = [model.score(x[500:], y[500:]) for model in (plain, machine, columns)]
    assert scores[1] > max(scores[0] + 0.12, scores[2] + 0.04), scores
    assert machine.iteration_ == int(np.argmin(machine.history_)) > 0 and len(machine.history_) == 5
    vectors = np.linalg.eigh(machine.metric_)[1]
    own = vectors[:, -2:] * machine.scaler_.scale[:, None] ** -1  # in the columns as they came
    angle = np.linalg.svd(np.linalg.qr(own)[0].T @ turn)[1].min()
    assert angle > math.cos(math.radians(10)), angle
    assert (
        machine.metric_.shape == (6, 6) and np.count_nonzero(columns.metric_ - np.diag(np.diag(columns.metric_))) == 0
    )
    low, high = machine.predict_interval(x[500:])
    assert 0.84 < np.mean((low <= y[500:]) & (y[500:] <= high)) < 0.96  # 400 rows: 3 deviations are 4.5 %


def test_the_diagonal_metric_finds_columns() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 8))
    y = np.stack([np.sin(2 * x[:, 1]), x[:, 1] * x[:, 4]], 1) + 0.05 * random.normal(size=(400, 2))
    model = RecursiveFeatureMachine(metric="diagonal", iterations=4, random_state=0).fit(x[:300], y[:300])
    relevance = np.diag(model.metric_)
    assert set(np.argsort(relevance)[-2:]) == {1, 4} and relevance[[1, 4]].min() > 4 * np.sort(relevance)[-3]
    assert model.predict(x[300:]).shape == (100, 2) and model.score(x[300:], y[300:]) > 0.9
    again = RecursiveFeatureMachine.from_state(*model.get_state())
    np.testing.assert_array_equal(again.predict(x[300:]), model.predict(x[300:]))
    np.testing.assert_array_equal(again.metric_, model.metric_)
    assert again.history_ == model.history_ and again.iteration_ == model.iteration_


def test_a_classifier_learns_directions_too() -> None:
    x, y, _ = rotated(800)
    labels = np.array(["low", "mid", "high"])[np.digitize(y, np.quantile(y, [0.33, 0.67]))]
    plain, machine = (
        RecursiveFeatureClassifier(iterations=k, random_state=0).fit(x[:400], labels[:400]) for k in (0, 4)
    )
    assert machine.score(x[400:], labels[400:]) > plain.score(x[400:], labels[400:]) + 0.08
    chances = machine.predict_proba(x[400:])
    np.testing.assert_allclose(chances.sum(1), 1)
    assert machine.metric_.shape == (6, 6)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"metric": "half"}, "metric is 'half'"), ({"power": 0}, "power is 0"), ({"iterations": -1}, "iterations is -1")],
)
def test_what_a_machine_cannot_take_is_named(wrong: dict, match: str) -> None:
    x, y, _ = rotated(20)
    with pytest.raises(ValueError, match=match):
        RecursiveFeatureMachine(**wrong).fit(x, y)


def tried(x: np.ndarray, y: np.ndarray, kernel: kernels.Kernel, noise: float = 0.1) -> tuple[kernels.Kernel, float]:
    points, goal = torch.tensor(x), torch.tensor(y)[:, None] / float(y.std())
    generator = torch.Generator().manual_seed(0)
    return sharpened(kernel, noise, points, goal, goal, None, Clock.of(None), generator, 1e-6)


def test_a_metric_is_kept_where_held_out_rows_surely_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LEAST_ROWS", 400)
    x, y, _ = rotated(400)
    start = Matern(2.5, torch.full((6,), 3.0)).requires_grad_(False)
    found, noise = tried(x, y, start)
    assert learned.directions(found) == 6 and noise >= 1e-6
    again, same = tried(x, y, start)
    torch.testing.assert_close(metric_of(again, 6), metric_of(found, 6), rtol=0, atol=0)
    assert noise == same
    line = np.sin(2 * x[:, 0]) + 0.3 * np.random.default_rng(1).normal(size=400)  # columns are the directions
    ard = Matern(2.5, torch.tensor([1.0, *[300.0] * 5])).requires_grad_(False)
    assert tried(x, line, ard) == (ard, 0.1)
    assert tried(x[:399], y[:399], start) == (start, 0.1)  # too few rows
    monkeypatch.setattr(learned, "SURE", 1e9)
    assert tried(x, y, start)[0] is start


def test_a_kernel_of_columns_gives_way_to_one_that_can_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LEAST_ROWS", 400)
    x, y, _ = rotated(400)
    found, _ = tried(x, y, Laplace(torch.full((6,), 8.0)).requires_grad_(False))
    assert isinstance(parted(found, 6)[0], Matern) and learned.directions(found) == 6


def test_stretching_divides_distances() -> None:
    x = draws(5, 4)
    for kernel in (Gaussian(1.3), Matern(1.5, torch.ones(4)).warp(Metric(TURN)), Linear().warp(Metric(TURN))):
        torch.testing.assert_close(stretched(kernel, 2.0).block(x, x), kernel.block(x / 2, x / 2))


@pytest.mark.parametrize("kind", [KernelRidge, GaussianProcessRegressor, KernelClassifier])
def test_every_learner_takes_the_metric(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LEAST_ROWS", 300)
    x, y, _ = rotated(650)
    y = np.digitize(y, [0.5]) if kind is KernelClassifier else y
    model = kind(random_state=0).fit(x[:400], y[:400])
    assert learned.directions(model.kernel_) == 6 and "in a learned metric of 6 directions" in model.plan_.sentence
    again = kind.from_state(*model.get_state())
    np.testing.assert_array_equal(again.predict(x[400:]), model.predict(x[400:]))
    if kind is KernelRidge:
        monkeypatch.setattr(learned, "LEAST_ROWS", 10**9)
        plain = kind(random_state=0).fit(x[:400], y[:400])
        assert learned.directions(plain.kernel_) == 0
        assert model.score(x[400:], y[400:]) > plain.score(x[400:], y[400:]) + 0.02


def test_a_constant_has_no_directions():
    random = np.random.default_rng(0)
    y = random.normal(size=60)
    model = RecursiveFeatureMachine(iterations=1, random_state=0).fit(np.ones((60, 3)), y)
    assert np.allclose(model.predict(np.ones((2, 3))), model.predict(np.ones((1, 3)))) and model.iteration_ == 0
    flat = RecursiveFeatureMachine(iterations=1, random_state=0).fit(random.normal(size=(60, 3)), np.ones(60))
    assert np.allclose(flat.predict(np.zeros((1, 3))), 1.0)
