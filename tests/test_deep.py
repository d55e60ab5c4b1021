"""Deep kernel machines against formulas typed from the papers, dense loops, and sampled wide networks."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_iris
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import ConvergenceWarning, MemoryBudgetError, ShapeError, StructureError
from mercer.kernels import ArcCosine, Gaussian, Linear, Periodic, Riesz
from mercer.learn import ConvolutionalDeepKernelMachine, DeepKernelMachine, DeepKernelMachineClassifier
from mercer.learn.tower import Layer, widths


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(n: int = 30, d: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = rng(seed)
    x = random.uniform(-2, 2, size=(n, d))
    return x, np.sin(2 * x[:, 0]) * x[:, 1] + 0.1 * random.normal(size=n)


def squared(gram: np.ndarray, lengthscale: float = 1.0) -> np.ndarray:
    """exp(-(G_ii + G_jj - 2 G_ij) / (2 lengthscale^2)): the squared exponential kernel of a Gram matrix."""
    size = np.diag(gram)
    return np.exp(-(size[:, None] + size[None] - 2 * gram) / (2 * lengthscale**2))


def relu(gram: np.ndarray) -> np.ndarray:
    """Cho and Saul's kernel of order 1 of a Gram matrix, entry by entry."""
    found = np.zeros_like(gram)
    for i, j in itertools.product(range(len(gram)), repeat=2):
        size = math.sqrt(gram[i, i] * gram[j, j])
        angle = 0.0 if i == j or size == 0 else math.acos(min(max(gram[i, j] / size, -1), 1))
        found[i, j] = size * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    return found


def divergence(g: np.ndarray, k: np.ndarray) -> float:
    """KL(N(0, G) | N(0, K))."""
    inner = np.linalg.solve(k, g)
    return 0.5 * (np.trace(inner) - len(g) - np.linalg.slogdet(inner)[1])


@parametrize_with_checks(
    [
        DeepKernelMachine(layers=1, landmarks=60, tolerance=10.0),
        DeepKernelMachineClassifier(layers=1, landmarks=6, tolerance=10.0),
        ConvolutionalDeepKernelMachine(landmarks=6, epochs=1),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def deep_process(x: np.ndarray, y: np.ndarray, new: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) by a Gaussian process with the kernel of an infinitely wide deep one, dense, two layers."""
    points = np.concatenate([x, new])
    k, n = squared(squared(squared(points @ points.T))), len(x)
    inverse = np.linalg.inv(k[:n, :n] + noise * np.eye(n))
    mean = k[n:, :n] @ inverse @ y
    return mean, np.sqrt(np.diag(k[n:, n:] - k[n:, :n] @ inverse @ k[:n, n:]))


def test_infinite_nu_is_the_network_gaussian_process() -> None:
    x, y = problem()
    new = problem(11, seed=5)[0]
    fit = DeepKernelMachine(Gaussian(), nu=math.inf, noise=0.05, landmarks=30, learn=False).fit(x, y)
    below = squared(x @ x.T)
    np.testing.assert_allclose(fit.grams_[0], below, atol=1e-7)  # the ridge is 1e-8
    np.testing.assert_allclose(fit.grams_[1], squared(below), atol=1e-7)
    wanted = deep_process(x, y, new, 0.05)
    for found, true in zip(fit.predict(new, return_std=True), wanted, strict=True):
        np.testing.assert_allclose(found, true, atol=1e-5)
    evidence = stats.multivariate_normal(np.zeros(30), squared(squared(below)) + 0.05 * np.eye(30)).logpdf(y)
    assert fit.bound_ == pytest.approx(evidence, abs=1e-4)


def test_each_layer_has_a_kernel_of_its_own() -> None:
    x, y = problem()
    fit = DeepKernelMachine(layers=2, nu=math.inf, landmarks=8, tolerance=0.01, random_state=0).fit(x, y)
    first, second, top = fit._kernels
    scales = first.lengthscale.detach().numpy()
    assert len({float(scales[0]), float(scales[1]), float(second.lengthscale), float(top.kernel.lengthscale)}) == 4
    z = fit.landmarks_ / scales
    np.testing.assert_allclose(fit.grams_[0], squared(z @ z.T), atol=1e-6)
    np.testing.assert_allclose(fit.grams_[1], squared(fit.grams_[0], float(second.lengthscale)), atol=1e-6)
    wanted = float(top.variance) * squared(fit.grams_[1], float(top.kernel.lengthscale))
    np.testing.assert_allclose((fit._lower @ fit._lower.mT).numpy(), wanted, atol=1e-5)


def test_large_nu_goes_to_the_network_gaussian_process() -> None:
    x, y = problem()
    gaps = []
    for nu in (1e2, 1e4, 1e12):
        fit = DeepKernelMachine(Gaussian(), nu=nu, noise=0.05, landmarks=30, learn=False, tolerance=1e-9).fit(x, y)
        gaps.append(
            [np.abs(fit.grams_[0] - squared(x @ x.T)).max(), np.abs(fit.grams_[1] - squared(fit.grams_[0])).max()]
        )
    assert gaps[0][0] > 30 * gaps[1][0] > 0 and gaps[0][1] > 30 * gaps[1][1] > 0  # of the order of 1 / nu
    assert max(gaps[2]) < 1e-6


def test_the_bound_is_the_objective_of_the_paper() -> None:
    """log N(y | 0, K(G_L) + noise I) - sum nu KL(N(0, G_l) | N(0, K(G_l-1))), of two outputs, in dense matrices."""
    x, y = problem(20)
    both = np.stack([y, y[::-1]], 1)
    fit = DeepKernelMachine(Gaussian(), nu=[3.0, 5.0], noise=0.1, landmarks=20, learn=False).fit(x, both)
    first, second = fit.grams_
    final = stats.multivariate_normal(np.zeros(20), squared(second) + 0.1 * np.eye(20))
    below = squared(x @ x.T) + 1e-8 * np.eye(20)  # as the ridge has it
    cost = 3 * divergence(first, below) + 5 * divergence(second, squared(first) + 1e-8 * np.eye(20))
    assert cost > 1
    assert fit.bound_ == pytest.approx(sum(final.logpdf(c) for c in both.T) - cost, abs=1e-3)


def test_linear_kernels_have_the_closed_form() -> None:
    """nu = outputs, hardly any noise: G_l = G_0 (G_0^-1 Y Y^T / nu)^(l / (L + 1)), where all slopes are zero."""
    random = rng(2)
    x, y = random.normal(size=(4, 6)), random.normal(size=(4, 8))
    fit = DeepKernelMachine(Linear(), nu=8.0, noise=1e-5, landmarks=4, learn=False, tolerance=1e-9, max_iter=2000).fit(
        x, y
    )
    bottom, top = x @ x.T, y @ y.T / 8
    values, vectors = np.linalg.eig(np.linalg.solve(bottom, top))
    for layer, gram in enumerate(fit.grams_, 1):
        wanted = bottom @ (vectors * values ** (layer / 3)) @ np.linalg.inv(vectors)
        np.testing.assert_allclose(gram, wanted.real, atol=1e-4 * np.abs(wanted).max())


def wishart_moments(x: np.ndarray, y: np.ndarray, noise: float, nu: float, copies: int, grams: Any) -> Any:
    """(E G_1, E G_2, effective share) of a deep Gaussian process of nu * copies features that sees y copies times.

    G of F features is Wishart: G_1 ~ W(K(G_0) / F, F), G_2 | G_1 ~ W(K(G_1) / F, F); weights of draws near `grams`.
    """
    features, draws, random, n = nu * copies, 10_000, np.random.RandomState(0), len(x)
    wide = [stats.wishart(0.6 * features, g / (0.6 * features)) for g in grams]  # of heavier tails
    first, second = (w.rvs(draws, random_state=random) for w in wide)
    weights = stats.wishart(features, squared(x @ x.T) / features).logpdf(np.moveaxis(first, 0, -1))
    for own, proposal in zip((first, second), wide, strict=True):
        weights -= proposal.logpdf(np.moveaxis(own, 0, -1))
    k = np.stack([squared(g) for g in first])
    weights += 0.5 * (features - n - 1) * np.linalg.slogdet(second)[1] - 0.5 * features * np.linalg.slogdet(k)[1]
    weights -= 0.5 * features * np.trace(np.linalg.solve(k, second), axis1=1, axis2=2)
    top = np.stack([squared(g) for g in second]) + noise * np.eye(n)
    quadratic = (y * np.linalg.solve(top, np.broadcast_to(y, (draws, *y.shape)))).sum((1, 2))
    weights -= 0.5 * copies * (y.shape[1] * np.linalg.slogdet(top)[1] + quadratic)
    share = np.exp(weights - weights.max())
    effective = share.sum() ** 2 / (share**2).sum() / draws
    return [np.einsum("i,ijk->jk", share / share.sum(), own) for own in (first, second)], effective


def test_gram_matrices_are_the_second_moments_of_a_wide_deep_process() -> None:
    """Two layers of nu N features, y seen N times, by importance sampling: the gap falls as 1 / N."""
    x, y = np.array([[0.3], [1.4]]), np.array([[1.0, 0.4, -2.0], [0.9, 0.6, -1.7]])
    fit = DeepKernelMachine(Gaussian(), nu=2.0, noise=0.1, landmarks=2, learn=False, tolerance=1e-12).fit(x, y)
    assert np.abs(fit.grams_[1] - squared(squared(x @ x.T))).max() > 0.1  # far from the infinitely wide one
    gaps = []
    for copies in (5, 400):
        moments, effective = wishart_moments(x, y, 0.1, 2, copies, fit.grams_)
        assert effective > 0.3
        gaps.append(max(np.abs(m - g).max() for m, g in zip(moments, fit.grams_, strict=True)))
    assert gaps[1] < 0.2 * gaps[0] and gaps[1] < 0.002  # 10,000 draws of deviation 0.05, a third of them effective


def test_rows_are_seen_through_the_tower() -> None:
    """With nu infinite G(x, z) and G(x, x) in the tower are entries of the dense matrix of landmarks and rows."""
    x, y = problem(40)
    fit = DeepKernelMachine(ArcCosine(1), nu=math.inf, noise=0.1, landmarks=x[:9], learn=False).fit(x, y)
    dense = relu(relu(relu(x @ x.T)))
    tower = fit._model.tower
    floors = tower.climb(fit._model.z)
    a, rest = tower.rise(torch.from_numpy(x), floors)
    np.testing.assert_allclose((floors[-1].factor @ a).detach(), dense[:9], atol=1e-5)
    np.testing.assert_allclose((a.square().sum(0) + rest).detach(), np.diag(dense), atol=1e-9)


def test_the_sparse_bound_rises_with_landmarks_to_the_evidence() -> None:
    x, y = problem(40)
    exact = stats.multivariate_normal(np.zeros(40), squared(squared(squared(x @ x.T))) + 0.05 * np.eye(40)).logpdf(y)
    held = [
        DeepKernelMachine(Gaussian(), nu=math.inf, noise=0.05, landmarks=x[:m], learn=False).fit(x, y).bound_
        for m in (3, 10, 25, 40)
    ]
    assert all(a < b for a, b in itertools.pairwise(held)) and held[-2] < exact
    assert held[-1] == pytest.approx(exact, abs=1e-3)
    free = DeepKernelMachine(Gaussian(), nu=5.0, noise=0.05, landmarks=x[:10], learn=False).fit(x, y).bound_
    assert free > held[1] + 1


def test_layer_cost_and_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    for nu in (2.0, 1e6):
        layer = Layer(4, nu)
        with torch.no_grad():
            layer.log_size.copy_(0.3 * torch.randn(4, generator=generator, dtype=torch.float64))
            layer.below.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
        root = layer.root().detach().numpy()
        assert float(layer.divergence().detach()) == pytest.approx(divergence(root @ root.T, np.eye(4)), rel=1e-9)
        assert float(layer.cost().detach()) == pytest.approx(nu * divergence(root @ root.T, np.eye(4)), rel=1e-9)
    fit = DeepKernelMachine(Gaussian(), landmarks=problem()[0][:5], max_iter=2, time_budget=5.0).fit(*problem())
    model = fit._model.requires_grad_(True)
    x = torch.from_numpy(problem(7, seed=3)[0])
    model.observed.requires_grad_(False)
    y = torch.ones(7, 1, dtype=torch.float64)
    named = [p for p in model.parameters() if p.requires_grad]

    def bound(*_: torch.Tensor) -> torch.Tensor:
        return model.bound(fit._q, model.see(x, y, model.lower()))

    assert torch.autograd.gradcheck(bound, named, atol=1e-4, rtol=1e-4)


def images(n: int = 3, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=(n, 2 * 4 * 5))


def patches(maps: np.ndarray, stride: int) -> np.ndarray:
    """`n h w c` to `n h' w' 9 c`: zeros outside."""
    n, high, wide, c = maps.shape
    found = np.zeros((n, -(-high // stride), -(-wide // stride), 9, c))
    for i, r, s, a, b in itertools.product(range(n), range(found.shape[1]), range(found.shape[2]), range(3), range(3)):
        u, v = r * stride + a - 1, s * stride + b - 1
        if 0 <= u < high and 0 <= v < wide:
            found[i, r, s, 3 * a + b] = maps[i, u, v]
    return found


def dense_convolution(fit: Any, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """(prior of each layer at landmarks and rows; that of the output): all pairs of places of all images, in loops.

    A landmark is a weighted sum of landmarks below at each place of its patch, a row is a sum over places of its own:
    both are rows of a matrix that the kernel of everything below is multiplied with from both sides.
    """
    tower, m = fit._model.tower, len(fit.landmarks_)
    at = patches(x.reshape(-1, 2, 4, 5).transpose(0, 2, 3, 1), 1)
    flat = at.transpose(0, 1, 2, 4, 3).reshape(-1, 18) / math.sqrt(18)
    points, (high, wide), n = np.concatenate([fit.landmarks_, flat]), (4, 5), len(x)
    gram, found = points @ points.T, []
    for level, weights in enumerate(tower.weights):
        omega, c = relu(gram), weights.detach().numpy()
        top = level == len(tower.layers)
        if top:
            omega = omega * float(fit.kernel_.variance)
        number = np.arange(m, m + n * high * wide).reshape(n, high, wide, 1) + 1  # 0: outside
        around = number.reshape(n, 1, 1, -1, 1) if top else patches(number.astype(float), tower.stride).astype(int)
        around = around[..., 0].reshape(-1, around.shape[3])
        places = around.shape[1]
        maps = np.zeros((places, m + len(around), len(omega)))  # one for each place of a patch
        for d in range(places):
            maps[d, :m, :m] = c.reshape(m, m, -1)[:, :, d]
            for row, seen in enumerate(around[:, d]):
                if seen:
                    maps[d, m + row, seen - 1] = 1
        gram = np.mean([a @ omega @ a.T for a in maps], 0)
        found.append(gram)
        high, wide = tower.sizes[min(level + 1, len(tower.layers))]
    return found[:-1], found[-1]


def convolution(nu: float, **more: Any) -> Any:
    return ConvolutionalDeepKernelMachine(
        image_shape=(2, 4, 5), layers=2, nu=nu, stride=2, landmarks=6, random_state=0, standardize=False, **more
    )


def test_convolutional_tower_is_the_dense_network_gaussian_process() -> None:
    """nu infinite: among landmarks, with rows and of rows alone, for two layers of stride 2 and the top."""
    x = images(8)
    fit = convolution(math.inf, epochs=1).fit(x, np.arange(8) % 2)
    hidden, top = dense_convolution(fit, x)
    tower = fit._model.tower
    floors = tower.climb(fit._model.z)
    for level, wanted in enumerate([*hidden, top]):
        np.testing.assert_allclose(floors[level].gram.detach(), wanted[:6, :6], atol=1e-6)
        a, rest = tower.rise(torch.from_numpy(x), floors, level)
        np.testing.assert_allclose((floors[level].factor @ a).detach(), wanted[:6, 6:], atol=1e-6)
        np.testing.assert_allclose((a.square().sum(0) + rest).detach(), np.diag(wanted)[6:], atol=1e-6)


def test_a_large_nu_recovers_the_gram_of_the_convolutional_process() -> None:
    x = images(8)
    large = convolution(1e14, epochs=2).fit(x, np.arange(8) % 2)
    small = convolution(1.0, epochs=2).fit(x, np.arange(8) % 2)
    gaps = [np.abs(fit.grams_[0] - dense_convolution(fit, x)[0][0][:6, :6]).max() for fit in (large, small)]
    assert gaps[0] < 1e-6 and gaps[1] > 1e-3
    hidden = dense_convolution(large, x)[0]
    np.testing.assert_allclose(large.grams_[1], hidden[1][:6, :6], atol=1e-6)


def test_average_pool_is_the_mean_over_places() -> None:
    x = images(8)
    fit = convolution(math.inf, epochs=1, pool="average").fit(x, np.arange(8) % 2)
    tower = fit._model.tower
    floors = tower.climb(fit._model.z)
    each, alone = tower.rise(torch.from_numpy(x), floors, 2)  # of places: 8 images of 1 x 2
    a, rest = tower.rise(torch.from_numpy(x), floors)
    for i in range(8):
        np.testing.assert_allclose(a[:, i].detach(), (each[:, 2 * i] + each[:, 2 * i + 1]).detach() / 2, atol=1e-12)
        assert float(rest[i]) == pytest.approx(float(alone[2 * i] + alone[2 * i + 1]) / 4)


def test_learned_gram_matrices_beat_held_ones_on_digits() -> None:
    """Ten digits, the same few landmarks: more images right that were not seen, and a smaller log loss."""
    x, y = load_digits(return_X_y=True)
    train, test = np.arange(150), np.arange(900, 1300)
    losses, right = [], []
    for nu in (math.inf, 5.0):
        fit = ConvolutionalDeepKernelMachine(
            image_shape=(8, 8), nu=nu, stride=2, landmarks=16, epochs=4, batch_size=50, random_state=0
        ).fit(x[train], y[train])
        losses.append(-fit.log_predictive_density(x[test], y[test]).mean())
        right.append(fit.score(x[test], y[test]))
    assert right[1] > right[0] > 0.7 and losses[1] < losses[0] - 0.2


def test_many_outputs_teach_what_the_kernel_does_not_know() -> None:
    """Eight outputs of one direction of five columns: free Gram matrices leave half of the error of held ones."""
    random = rng(0)
    turn, shared = np.linalg.qr(random.normal(size=(5, 5)))[0][:, :1], random.normal(size=(3, 8))

    def true(x: np.ndarray) -> np.ndarray:
        a = 3 * (x @ turn)
        return np.concatenate([np.sin(a), np.cos(2 * a), a > 0.3], 1) @ shared

    x, new = random.uniform(-1, 1, size=(80, 5)), random.uniform(-1, 1, size=(200, 5))
    y = true(x) + 0.2 * random.normal(size=(80, 8))
    left = [
        1
        - DeepKernelMachine(layers=1, nu=nu, landmarks=30, tolerance=0.3, random_state=0)
        .fit(x, y)
        .score(new, true(new))
        for nu in (math.inf, 10.0)
    ]
    assert left[1] < left[0] / 2


def test_batches_and_all_rows_learn_alike() -> None:
    x, y = problem(150)
    machine = DeepKernelMachine(layers=1, nu=50.0, landmarks=15, tolerance=0.01, random_state=0)
    whole = machine.fit(x, y)
    score, bound = whole.score(x, y), whole.bound_
    machine._whole = 0
    machine.set_params(batch_size=50, epochs=20).fit(x, y)
    assert machine.score(x, y) > score - 0.02 and "150 rows, Gram matrices learned by" in machine.plan_.sentence
    assert "natural gradients" in machine.plan_.sentence and machine.bound_ < bound + 1


def test_classes() -> None:
    x, y = load_iris(return_X_y=True)
    fit = DeepKernelMachineClassifier(layers=1, landmarks=12, max_iter=8, time_budget=20.0, random_state=0).fit(x, y)
    assert fit.score(x, y) > 0.95
    chances = fit.predict_proba(torch.from_numpy(x[::7]))
    assert isinstance(chances, torch.Tensor)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize(
    "machine",
    [
        DeepKernelMachine(layers=2, landmarks=6, nu=[3.0, math.inf], time_budget=5.0, max_iter=5, random_state=0),
        DeepKernelMachineClassifier(layers=1, landmarks=6, time_budget=5.0, max_iter=3, random_state=0),
        convolution(3.0, epochs=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_state_and_seed(machine: Any) -> None:
    x = images(12)
    y = np.arange(12) % 3 if hasattr(machine, "predict_proba") else x[:, 0]
    fit = machine.fit(x, y)
    ask = "predict_proba" if hasattr(machine, "predict_proba") else "predict"
    before = getattr(fit, ask)(x)
    again = type(machine).from_state(*fit.get_state())
    np.testing.assert_array_equal(getattr(again, ask)(x), before)
    np.testing.assert_array_equal(getattr(machine.fit(x, y), ask)(x), before)


def test_bad_arguments_are_named() -> None:
    x, y = problem()
    wrong = [
        (DeepKernelMachine(layers=0), "layers is 0"),
        (DeepKernelMachine(nu=0.0), "nu is 0.0"),
        (DeepKernelMachine(nu=[1.0, 2.0, 3.0]), "one for each of 2 layers"),
        (DeepKernelMachine(nu="wide"), "nu is 'wide'"),
        (DeepKernelMachine(max_iter=-1), "max_iter is -1"),
        (ConvolutionalDeepKernelMachine(patch=2), "patch is 2"),
        (ConvolutionalDeepKernelMachine(pool="max"), "pool is 'max'"),
        (ConvolutionalDeepKernelMachine(stride=0), "stride is 0"),
    ]
    for machine, words in wrong:
        with pytest.raises(ValueError, match=re.escape(words)):
            machine.fit(x, y > 0)
    for kernel in (Gaussian([1.0, 2.0]), Gaussian([1.0, 2.0, 3.0]), Periodic()):
        with pytest.raises(StructureError, match="inner products|of columns|a rotation"):
            DeepKernelMachine(kernel).fit(x, y)
    with pytest.raises(StructureError, match="psd"):
        DeepKernelMachine(Riesz()).fit(x, y)
    with pytest.raises(ShapeError, match="image_shape is"):
        ConvolutionalDeepKernelMachine(image_shape=(3, 3)).fit(x, y > 0)
    with memory("1 MiB"), pytest.raises(MemoryBudgetError, match="landmarks fit"):
        DeepKernelMachine(landmarks=x[:20].repeat(20, 0) + rng().normal(size=(400, 2))).fit(x, y)
    with memory("1 MiB"), pytest.raises(MemoryBudgetError, match="400 landmarks"):
        DeepKernelMachine(landmarks=400).fit(*problem(500))
    assert widths(2, 3) == [2.0, 2.0, 2.0]


def test_it_says_when_it_has_not_converged() -> None:
    x, y = problem()
    with pytest.warns(ConvergenceWarning, match="still rose"):
        DeepKernelMachine(layers=1, landmarks=10, nu=1.0, max_iter=2).fit(x, y)
