"""Spectral algorithms: filters against direct solves, loops and matrix exponentials; rates against the theory."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.kernel_ridge import KernelRidge as PeerRidge
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.claims import PSD
from mercer.errors import ConvergenceWarning, DataError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Laplace
from mercer.learn import (
    SpectralRegressor,
    TransformedKernelClassifier,
    TransformedKernelRidge,
    filters,
    spectra,
    transforms,
)

PLAIN = [
    SpectralRegressor(filter="gradient_flow", learn=False),
    TransformedKernelRidge(),
    TransformedKernelClassifier(),
]


def by_design(estimator: Any) -> dict[str, str]:
    classifier = isinstance(estimator, TransformedKernelClassifier)
    return {"check_classifiers_classes": "its labels are -1 and 1, and -1 means unlabelled"} if classifier else {}


@parametrize_with_checks(PLAIN, expected_failed_checks=by_design)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def problem(n: int = 120, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x, new = random.normal(size=(n, 2)), random.normal(size=(30, 2))
    y = np.stack([np.sin(2 * x[:, 0] + c) * x[:, 1] + 0.2 * random.normal(size=n) for c in range(outputs)], 1)
    return x, y, new


def gram(x: np.ndarray, z: np.ndarray, lengthscale: float = 0.8) -> np.ndarray:
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / (2 * lengthscale**2))


def fixed(filter: Any, level: float | None, solver: str | None = None) -> SpectralRegressor:
    return SpectralRegressor(Gaussian(0.8), filter, level, solver=solver, learn=False, random_state=0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_filter_is_the_algorithm_it_names(outputs: int) -> None:
    """Direct solve, loops and scipy's matrix exponential, each on the kernel matrix typed out."""
    x, y, new = problem(outputs=outputs)
    n, k, across = len(x), gram(x, x), gram(new, x)
    top = float(np.linalg.eigvalsh(k / n)[-1])
    level = 2e-3

    def gap(filter: Any, weights: np.ndarray, given: float = level) -> float:
        found = fixed(filter, given).fit(x, y).predict(new).reshape(len(new), -1)
        return float(np.abs(found - across @ weights).max() / np.abs(across @ weights).max())

    assert gap("ridge", np.linalg.solve(k + n * level * np.eye(n), y)) < 5e-13
    once = np.linalg.solve(k + n * level * np.eye(n), y)
    assert gap("iterated_ridge", once + np.linalg.solve(k + n * level * np.eye(n), y - k @ once)) < 5e-13

    w = np.zeros_like(y)
    for _ in range(500):
        w += (y - k @ w) / (n * top)
    assert gap("landweber", w, top / 500) < 3e-10

    # w' = (y - K w) / n up to the time 1 / level, by the exponential of the augmented matrix: no inverse of K
    c = y.shape[1]
    system = np.zeros((n + c, n + c))
    system[:n, :n], system[:n, n:] = -k / n, y / n
    flow = scipy.linalg.expm(system / level)[:n, n:]
    assert gap("gradient_flow", flow) < 1e-10

    values, vectors = np.linalg.eigh(k / n)
    kept = values >= level
    assert gap("cutoff", vectors[:, kept] / (n * values[kept]) @ vectors[:, kept].T @ y) < 1e-10
    assert gap(lambda v, a: v / (v + a), once) < 5e-13
    assert gap(lambda v: v / (v + level), once) < 5e-13


@torch.no_grad()
@pytest.mark.parametrize(("steps", "tolerance"), [(20, 1e-6), (40, 5e-13)])
def test_lanczos_sees_a_filter_in_few_products(steps: int, tolerance: float) -> None:
    x, y, new = problem(400)
    k = gram(x, x)
    exact = gram(new, x) @ np.linalg.solve(k + 400 * 1e-2 * np.eye(400), y[:, 0])
    space = spectra._Krylov(
        Gaussian(0.8), torch.tensor(x), torch.tensor(y), torch.full((400,), 1 / 400).double(), torch.arange(400) % 4
    )
    for _ in range(steps):
        space.step()
    space.look()
    found = gram(new, x) @ space.weights(filters.ridge, 1e-2).numpy()[:, 0]
    assert np.abs(found - exact).max() < tolerance * np.abs(exact).max()


def test_levels_are_judged_by_refits_without_each_fold() -> None:
    x, y, _ = problem(60)
    model = fixed("gradient_flow", None).fit(x, y[:, 0])
    seed = check_random_state(0).randint(2**31 - 1)
    fold = (torch.randperm(60, generator=torch.Generator().manual_seed(int(seed))) % 4).numpy()
    for i in (0, 7, 31):
        rest = fold != fold[i]
        again = fixed("gradient_flow", model.level_).fit(x[rest], y[rest, 0])
        assert model.left_out_[i] == pytest.approx(float(again.predict(x[[i]])[0]), abs=1e-9)
    assert model.errors_.min() == pytest.approx(np.square(model.left_out_ - y[:, 0]).mean(), rel=1e-9)
    assert 0 < int(model.errors_.argmin()) < len(model.levels_) - 1


def test_left_out_rows_of_ridge_are_those_of_true_refits() -> None:
    x, y, _ = problem(40)
    model = fixed("ridge", 1e-3).fit(x, y[:, 0])
    rest = np.arange(40) != 5
    w = np.linalg.solve(gram(x[rest], x[rest]) + 40 * 1e-3 * np.eye(39), y[rest, 0])
    assert model.left_out_[5] == pytest.approx(float((gram(x[[5]], x[rest]) @ w)[0]), abs=1e-10)


@pytest.mark.parametrize(("solver", "tolerance"), [("lanczos", 5e-3), ("features", 1e-2)])
def test_large_tables_get_nearly_the_same(solver: str, tolerance: float) -> None:
    x, y, new = problem(250)
    exact, close = (fixed("gradient_flow", 2e-3, way).fit(x, y[:, 0]) for way in ("eigh", solver))
    assert np.abs(close.predict(new) - exact.predict(new)).max() < tolerance
    assert close.plan_.algorithm == solver
    chosen, best = (fixed("ridge", None, way).fit(x, y[:, 0]) for way in (solver, "eigh"))
    assert chosen.errors_.min() == pytest.approx(best.errors_.min(), rel=0.25)  # folds learn from a quarter less


def test_lanczos_says_what_it_did_not_reach() -> None:
    x, y, _ = problem(400)
    with pytest.warns(ConvergenceWarning, match="Lanczos: the last steps still changed the fit"):
        SpectralRegressor(Laplace(0.05), "cutoff", 2.5e-3, solver="lanczos", learn=False).fit(x, y[:, 0])


def test_models_are_saved_and_restored_and_refuse_nonsense() -> None:
    x, y, new = problem(60)
    model = fixed("landweber", None).fit(x, y[:, 0])
    values, arrays = model.get_state()
    back = SpectralRegressor.from_state(json.loads(json.dumps(values)), arrays)
    np.testing.assert_array_equal(back.predict(new), model.predict(new))
    assert back.level_ == model.level_
    given = torch.tensor(new)
    assert isinstance(model.predict(given), torch.Tensor)
    for wrong, message in (
        ({"filter": "lasso"}, "filter is 'lasso'"),
        ({"solver": "qr"}, "solver is 'qr'"),
        ({"level": -1.0}, "level is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralRegressor(**wrong).fit(x, y)
    with pytest.raises(ValueError, match="expected one for each"):
        fixed(lambda v: v[:3], None).fit(x, y)


def test_twins_are_rows_and_a_learned_kernel_has_a_noise_of_its_own() -> None:
    x, y, new = problem(40)
    weighty = np.repeat(np.arange(40), np.arange(40) % 3 + 1)
    random = np.random.default_rng(1)
    noisy = y[weighty, 0] + 0.05 * random.normal(size=len(weighty))
    model = fixed("ridge", 1e-3).fit(x[weighty], noisy)
    n = len(weighty)
    w = np.linalg.solve(gram(x[weighty], x[weighty]) + n * 1e-3 * np.eye(n), noisy)
    np.testing.assert_allclose(model.predict(new), gram(new, x[weighty]) @ w, atol=1e-9)
    learned = SpectralRegressor(filter="cutoff", level=1e-3, time_budget=2.0, random_state=0).fit(x, y[:, 0])
    assert learned.score(x, y[:, 0]) > 0.5 and learned.learned()[1] != learned.level_


def levelled(k: np.ndarray) -> np.ndarray:
    mean = k.mean(0)
    return k / np.sqrt(np.outer(mean, mean))


@pytest.mark.parametrize("solver", ["eigh", "products"])
@pytest.mark.parametrize("level", [False, True])
def test_inductive_is_the_transductive_closed_form(solver: str, level: bool) -> None:
    """A polynomial of K / n, typed out as matrix powers, on labelled and unlabelled rows; and new rows one by one."""
    x, y, new = problem(90, outputs=2)
    y[30:] = np.nan
    terms = (0.3, 0.0, 1.0, 0.5)
    model = TransformedKernelRidge(Gaussian(0.8), terms, alpha=0.05, level=level, solver=solver).fit(x, y)

    def closed(k: np.ndarray) -> np.ndarray:
        a = k / len(x)
        ks = len(x) * sum(c * np.linalg.matrix_power(a, p + 1) for p, c in enumerate(terms))
        block = ks[:30, :30]
        mean, spread = y[:30].mean(0), y[:30].std(0)
        right = (y[:30] - mean) / spread
        return mean + spread * (
            ks[:, :30] @ np.linalg.solve(block + 0.05 * (np.diag(block).mean() - block.mean()) * np.eye(30), right)
        )

    k = gram(x, x)
    wanted = closed(levelled(k) if level else k)
    np.testing.assert_allclose(model.transduction_, wanted, atol=1e-8)
    np.testing.assert_allclose(model.predict(x), wanted, atol=1e-8)
    # a new row: k(x, X) q(K / n) E a, with the weights taken from what the rows of fit were told
    wide, base = gram(new, x), levelled(k) if level else k
    across = wide / np.sqrt(np.outer(wide.mean(1), k.mean(0))) if level else wide
    mean = y[:30].mean(0)
    weights = np.linalg.lstsq(base, wanted - mean, rcond=1e-13)[0]
    np.testing.assert_allclose(model.predict(new), mean + across @ weights, atol=1e-4)


def setting(n: int = 80, labelled: int = 24) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, _ = problem(n)
    spread = transforms.Spread(Gaussian(0.8), torch.tensor(x), True)
    right = torch.tensor(y[:labelled])
    return spread, torch.arange(labelled), right, right - right.mean()


@torch.no_grad()
def test_strength_is_judged_by_true_refits_without_each_label() -> None:
    spread, at, _, y = setting()
    transform = transforms.Transform.of("inverse_laplacian", 0.9)
    found = transforms.Pairs(spread, None, torch.Generator()).solve(transform, at, y, [0.1, 1e3], True)
    assert found.alpha == 0.1
    values, vectors = np.linalg.eigh(spread.dense().numpy())
    ks = len(values) * (vectors * values / (1 - 0.9 * values / values.max())) @ vectors.T
    block = ks[:24, :24]
    noise = 0.1 * (np.diag(block).mean() - block.mean())
    wrong = []
    for i in range(24):
        rest = np.arange(24) != i
        a = np.linalg.solve(block[rest][:, rest] + noise * np.eye(23), y.numpy()[rest])
        wrong.append(float((block[i, rest] @ a)[0] - y[i]))
    assert found.error == pytest.approx(np.mean(np.square(wrong)), rel=1e-8)


@torch.no_grad()
def test_ways_to_solve_agree() -> None:
    """CG on the labelled rows, the formed block and eigenpairs; all components of kernel PCA."""
    spread, at, _, y = setting()
    transform = transforms.Transform.of("power", 3.0)
    formed = transforms.products(spread, transform, at, y, [0.05], False, 100)
    iterated = transforms.products(spread, transform, at, y, [0.05], False, 24 // 2)
    pairs = transforms.Pairs(spread, None, torch.Generator()).solve(transform, at, y, [0.05], False)
    x = spread.x
    assert float((spread.predict(x, pairs.weights) - spread.predict(x, formed.weights)).abs().max()) < 1e-8
    block = transforms.Labelled(spread, at, transform.coefficients).matmul(torch.eye(24, dtype=y.dtype))
    wanted = block @ torch.linalg.solve(block + 0.05 * iterated.unit * torch.eye(24, dtype=y.dtype), y)
    assert float((spread.predict(x, iterated.weights)[at] - wanted).abs().max()) < 1e-6  # CG stops at 1e-8
    assert iterated.steps > 0 and iterated.unit == pytest.approx(formed.unit, rel=0.5)
    judged = transforms.products(spread, transform, at, y, [1e-3, 10.0], True, 24 // 2)
    out = torch.arange(24) % 4 == 0
    wrong = []
    for alpha in (1e-3, 10.0):
        noisy = block[~out][:, ~out] + alpha * judged.unit * torch.eye(18, dtype=y.dtype)
        wrong.append(float((block[out][:, ~out] @ torch.linalg.solve(noisy, y[~out]) - y[out]).square().mean()))
    assert judged.error == pytest.approx(min(wrong), rel=1e-2)  # trials stop at 1e-4
    assert judged.alpha == (1e-3, 10.0)[int(np.argmin(wrong))]
    leading = transforms.Pairs(spread, 40, torch.Generator().manual_seed(0))
    close = leading.solve(transform, at, y, [0.05], False)
    assert close.tail < 1e-6
    assert float((spread.predict(x, close.weights) - spread.predict(x, formed.weights)).abs().max()) < 1e-5


def one_label_each(y: np.ndarray, per: int, seed: int) -> np.ndarray:
    random, labels = np.random.default_rng(seed), np.full(len(y), -1)
    for c in np.unique(y):
        labels[random.choice(np.flatnonzero(y == c), per, replace=False)] = c
    return labels


def test_unlabelled_rows_beat_any_ridge() -> None:
    """Two moons with one label each. Nothing can be chosen by two labels: both learners take alpha = 0.01.

    The plain ridge has the same kernel (strength 0), and any width that the test labels like best.
    """
    mine, plain, best = [], [], []
    for seed in range(5):
        x, y = make_moons(400, noise=0.1, random_state=seed)
        labels = one_label_each(y, 1, seed)
        known, rest = labels >= 0, labels < 0
        for found, strength in ((mine, None), (plain, 0.0)):
            model = TransformedKernelClassifier(strength=strength).fit(x, labels)
            found.append((model.transduction_[rest] == y[rest]).mean())
        peers = [PeerRidge(kernel="rbf", gamma=g, alpha=1e-2).fit(x[known], 2.0 * y[known] - 1) for g in (0.1, 1, 10)]
        best.append(max(((p.predict(x[rest]) > 0) == y[rest]).mean() for p in peers))
    assert np.mean(mine) > 0.95
    assert np.mean(mine) - max(np.mean(plain), np.mean(best)) >= 0.15


def test_digits_with_three_labels_each() -> None:
    x, y = load_digits(return_X_y=True)
    mine, plain = [], []
    for seed in range(2):
        rows = np.random.default_rng(seed).permutation(len(x))[:800]
        labels = one_label_each(y[rows], 3, seed)
        for found, strength in ((mine, 4), (plain, 1)):
            model = TransformedKernelClassifier(transformation="power", strength=strength, standardize=False)
            model.fit(x[rows], labels)
            found.append((model.transduction_ == y[rows])[labels < 0].mean())
    assert np.mean(mine) > np.mean(plain) + 0.02


def test_classes_may_have_any_labels_and_minus_one_is_none() -> None:
    x, y = make_moons(120, noise=0.05, random_state=0)
    names = np.where(y == 0, "left", "right").astype(object)
    names[20:] = None
    numbers = y.copy()
    numbers[20:] = -1
    a = TransformedKernelClassifier().fit(x, names)
    b = TransformedKernelClassifier().fit(x, numbers)
    assert a.predict(x).tolist() == np.where(b.predict(x) == 0, "left", "right").tolist()
    assert (b.predict(x) == b.transduction_).all()
    with pytest.raises(DataError, match="-1, None and NaN are unlabelled"):
        TransformedKernelClassifier().fit(x, np.where(y == 0, -1, 1))
    with pytest.raises(ValueError, match="transformation is 'cube'"):
        TransformedKernelRidge(transformation="cube").fit(x, y)
    with pytest.raises(ValueError, match="strength is 1"):
        TransformedKernelRidge(strength=1.0).fit(x, y)


def test_ridge_saturates_and_gradient_flow_does_not() -> None:
    """lambda_k = k^-2, f_k^2 = k^-9, noise 1: the loss of noisy observation of each mode at the best level.

    Ridge: level^2 + level^-1/2 / n gives n^-4/5. Without saturation, k^-8 + k / n gives n^-8/9.
    """
    k = torch.arange(1, 5001, dtype=torch.float64)
    sizes = torch.logspace(3, 7, 5, dtype=torch.float64)

    def slope(h: filters.Filter) -> float:
        best = []
        for n in sizes:
            loss = [float(((1 - (s := h(k**-2, a))).square() * k**-9 + s.square() / n).sum()) for a in levels]
            best.append(math.log(min(loss)))
        return float(np.polyfit(np.log(sizes.numpy()), best, 1)[0])

    levels = np.geomspace(1e-5, 1.0, 80).tolist()
    assert slope(filters.ridge) == pytest.approx(-0.80, abs=0.02)
    assert slope(filters.gradient_flow) < -0.86
    assert -0.89 < slope(filters.landweber) < -0.86
    # with qualification q ridge iterated q times reaches min(4q, 8) / (min(4q, 8) + 1), here 8 / 9 from 2 on
    assert slope(filters.iterated_ridge) < -0.84


class Circle(Kernel):
    """1 + 2 sum_l cos(2 pi l (x - y)) / l^2 in closed form: eigenvalues 1 and l^-2 on the circle."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u = (x - y.mT).remainder(1.0)
        return 1 + 2 * math.pi**2 * (u * u - u + 1 / 6)


MODES = np.concatenate([np.arange(0, 2001), np.arange(-2000, 0)])  # in the order of fft frequencies


def circle(
    n: int, power: float, outputs: int, seed: int, noise: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(a shifted grid, noisy values of a function with |c_l|^2 = max(|l|, 1)^-power, its Fourier coefficients)."""
    random = np.random.default_rng(seed)
    c = np.maximum(np.abs(MODES), 1.0) ** (-power / 2) * np.exp(1j * random.uniform(0, 2 * np.pi, len(MODES)))
    c[-2000:] = c[1:2001][::-1].conj()
    c[0] = 1.0
    x = (random.uniform() + np.arange(n)) / n
    y = (np.exp(2j * np.pi * np.outer(x, MODES)) @ c).real
    rows = y[:, None] + noise * random.normal(size=(n, outputs))
    return torch.from_numpy(x)[:, None], torch.from_numpy(rows), c


def risk(x: torch.Tensor, weights: torch.Tensor, c: np.ndarray) -> float:
    """Mean square of f - f^ on the circle, over the outputs, from Fourier coefficients."""
    size = np.where(MODES == 0, 1.0, 1.0 / np.maximum(np.abs(MODES), 1) ** 2)
    found = size[:, None] * (np.exp(-2j * np.pi * np.outer(MODES, x[:, 0].numpy())) @ weights.numpy())
    return float((np.abs(found - c[:, None]) ** 2).sum(0).mean())


def fitted(x: torch.Tensor, y: torch.Tensor, h: filters.Filter, levels: list[float] | None) -> spectra.Found:
    weight = torch.full((len(x),), 1 / len(x), dtype=x.dtype)

    def choose(top: float, narrow: bool) -> list[float]:
        return np.geomspace(1e-7, 1.0, 40).tolist() if levels is None else levels

    return spectra.eigh(Circle(), x, y, weight, h, choose, torch.Generator().manual_seed(0), h is filters.ridge)


@pytest.mark.parametrize("h", [filters.ridge, filters.gradient_flow, filters.cutoff], ids=lambda h: h.__name__)
def test_loss_is_the_functional_of_the_filter(h: filters.Filter) -> None:
    """On the circle: sum_l (1 - l_l g)^2 c_l^2 + (l_l g)^2 (aliases of c_l^2 + noise / n), g = h(aliased l) / it."""
    n, level, power = 64, 3e-3, 2.5
    size = np.where(MODES == 0, 1.0, 1.0 / np.maximum(np.abs(MODES), 1) ** 2)
    energy = np.maximum(np.abs(MODES), 1.0) ** -power
    at = MODES % n
    aliased, all_energy = np.bincount(at, size, n)[at], np.bincount(at, energy, n)[at]
    g = size * (h(torch.from_numpy(aliased), level).numpy() / aliased)
    wanted = float(((1 - g) ** 2 * energy + g**2 * (all_energy - energy + 0.25 / n)).sum())
    simulated = []
    for seed in range(8):
        x, y, c = circle(n, power, 40, seed)
        simulated.append(risk(x, fitted(x, y, h, [level]).weights, c))
    assert np.mean(simulated) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("s", [0.4, 0.8])
def test_misspecified_ridge_learns_at_the_minimax_rate(s: float) -> None:
    """beta = 2, target at the border of [H]^s: at the level of left-out rows risk falls as n^-(s beta / (s beta + 1)).

    Much noise, so that aliases on the grid, of order n^-(s beta), stay small beside it.
    """
    sizes, losses = [32, 64, 128, 256], []
    for n in sizes:
        draws = [circle(n, 2 * s + 1, 10, seed, 2.0) for seed in range(3)]
        losses.append(np.mean([risk(x, fitted(x, y, filters.ridge, None).weights, c) for x, y, c in draws]))
    slope = -float(np.polyfit(np.log(sizes), np.log(losses), 1)[0])
    assert slope == pytest.approx(2 * s / (2 * s + 1), abs=0.1)
