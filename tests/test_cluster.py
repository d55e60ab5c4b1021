"""Clusters in feature space against scikit-learn, explicit features and dense loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import make_blobs, make_circles, make_moons
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import ConvergenceWarning, MercerWarning, StructureError
from mercer.kernels import Gaussian, Linear
from mercer.learn import KernelKMeans, KernelSpectralClustering, gram


@parametrize_with_checks([KernelKMeans(), KernelSpectralClustering()])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def rbf(x: np.ndarray, z: np.ndarray, lengthscale: float) -> np.ndarray:
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / (2 * lengthscale**2))


def distances(k: np.ndarray, labels: np.ndarray, c: int) -> np.ndarray:
    """|phi_i - m_j|^2 from the whole matrix, one pair at a time."""
    found = np.empty((len(k), c))
    for j in range(c):
        own = np.flatnonzero(labels == j)
        for i in range(len(k)):
            found[i, j] = k[i, i] - 2 * k[i, own].mean() + k[np.ix_(own, own)].mean()
    return found


def test_with_a_linear_kernel_it_is_k_means() -> None:
    x, _ = make_blobs(200, 4, centers=5, cluster_std=2.5, random_state=0)
    mine = KernelKMeans(5, Linear(), n_init=20, random_state=0).fit(x)
    theirs = KMeans(5, n_init=20, random_state=0).fit(x)
    assert mine.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert adjusted_rand_score(mine.labels_, theirs.labels_) == 1
    new = make_blobs(50, 4, centers=5, cluster_std=2.5, random_state=1)[0]
    assert adjusted_rand_score(mine.predict(new), theirs.predict(new)) == 1


def test_no_row_is_nearer_to_another_mean() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    model = KernelKMeans(4, Gaussian(0.8), random_state=0).fit(x)
    found = distances(rbf(x, x, 0.8), model.labels_, 4)
    np.testing.assert_array_equal(found.argmin(1), model.labels_)
    assert model.inertia_ == pytest.approx(found.min(1).sum(), rel=1e-10)
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    new = np.random.default_rng(1).normal(size=(9, 2))
    both = np.concatenate([x, new])
    k, labels = rbf(both, both, 0.8), model.labels_
    wanted = [
        np.argmin([k[60 + i, 60 + i] - 2 * k[60 + i, :60][labels == j].mean()
                   + k[:60, :60][np.ix_(labels == j, labels == j)].mean() for j in range(4)])
        for i in range(9)
    ]  # fmt: skip
    np.testing.assert_array_equal(model.predict(new), wanted)


def test_runs_side_by_side_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).normal(size=(80, 3))
    together = KernelKMeans(6, Gaussian(1.0), n_init=5, random_state=1).fit(x)
    with memory(40 * 80 * 6 + 1):  # room for one run at a time
        alone = KernelKMeans(6, Gaussian(1.0), n_init=5, random_state=1).fit(x)
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    assert together.inertia_ == pytest.approx(alone.inertia_)
    single = [KernelKMeans(6, Gaussian(1.0), n_init=1, random_state=s).fit(x).inertia_ for s in range(8)]
    assert together.inertia_ <= np.median(single) and max(single) > min(single)


def test_starts_are_spread_over_far_groups() -> None:
    """k-means++: ten tight far groups are all found by one start."""
    x, y = make_blobs(200, 2, centers=10, cluster_std=0.01, center_box=(-50, 50), random_state=3)
    model = KernelKMeans(10, Linear(), n_init=1, random_state=0).fit(x)
    assert adjusted_rand_score(model.labels_, y) == 1


class Radius(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.norm(dim=-1, keepdim=True)


def test_rings_need_the_right_kernel() -> None:
    x, y = make_circles(300, noise=0.05, factor=0.3, random_state=0)
    assert adjusted_rand_score(KernelKMeans(2, Linear(), random_state=0).fit(x).labels_, y) < 0.1
    model = KernelKMeans(2, Gaussian(0.5).warp(Radius()), random_state=0).fit(x)
    assert adjusted_rand_score(model.labels_, y) == 1


def test_fewer_places_than_clusters_is_said() -> None:
    x = np.repeat(np.array([[0.0], [1.0], [5.0]]), 6, 0)
    with pytest.warns(MercerWarning, match="3 different places"):
        model = KernelKMeans(5, Linear(), random_state=0).fit(x)
    assert len(set(model.labels_)) == 3 and model.inertia_ < 1e-12
    np.testing.assert_array_equal(model.predict(x), model.labels_)


def test_rounds_that_end_too_early_are_said() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    with pytest.warns(ConvergenceWarning, match="still moved"):
        KernelKMeans(8, Gaussian(0.5), max_iter=1, random_state=0).fit(x)


@pytest.mark.parametrize(("name", "seed"), [("moons", 0), ("moons", 1), ("circles", 0), ("circles", 1)])
def test_moons_and_circles_are_told_apart(name: str, seed: int) -> None:
    make = {"moons": make_moons, "circles": lambda n, **k: make_circles(n, factor=0.4, **k)}[name]
    x, y = make(300, noise=0.05, random_state=seed)
    model = KernelSpectralClustering(2, random_state=0).fit(x)
    assert adjusted_rand_score(model.labels_, y) == 1
    theirs = SpectralClustering(2, affinity="precomputed", random_state=0)
    k = rbf(model.scaler_(x).numpy(), model.scaler_(x).numpy(), float(model.kernel_.lengthscale))
    assert adjusted_rand_score(model.labels_, theirs.fit(k).labels_) == 1
    new, true = make(200, noise=0.05, random_state=seed + 10)
    assert abs(adjusted_rand_score(model.predict(new), true)) == 1


@pytest.mark.parametrize("small", [500, 10])
def test_modes_are_those_of_the_random_walk(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P f = lambda f with P = D^-1 K, on training rows and, by the same equation, on new ones."""
    monkeypatch.setattr(gram, "SMALL", small)
    x = np.random.default_rng(0).normal(size=(90, 2))
    model = KernelSpectralClustering(3, Gaussian(0.6), random_state=0).fit(x)
    k = rbf(x, x, 0.6)
    walk, f = k / k.sum(1, keepdims=True), model.embedding_
    np.testing.assert_allclose(walk @ f, f * model.eigenvalues_, atol=1e-6)
    wanted = np.sort(np.linalg.eigvals(walk).real)[::-1][:3]
    np.testing.assert_allclose(model.eigenvalues_, wanted, atol=1e-9)
    np.testing.assert_allclose(f[:, 0], f[0, 0], atol=1e-6)
    np.testing.assert_allclose(model.modes(x), f, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    new = np.random.default_rng(1).normal(size=(5, 2))
    side = rbf(new, x, 0.6)
    np.testing.assert_allclose(model.modes(new), side / side.sum(1, keepdims=True) @ f / model.eigenvalues_, atol=1e-6)


def test_errors_and_far_rows() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(StructureError, match="never negative"):
        KernelSpectralClustering(2, Linear()).fit(x)
    for kind in (KernelKMeans, KernelSpectralClustering):
        with pytest.raises(ValueError, match="n_clusters is 31"):
            kind(31).fit(x)
    with pytest.raises(ValueError, match="n_init is 0"):
        KernelKMeans(2, n_init=0).fit(x)
    model = KernelSpectralClustering(2, Gaussian(0.5), random_state=0).fit(x)
    with pytest.warns(MercerWarning, match="row 1 of X is so far"):
        model.predict(np.array([[0.0, 0.0], [1e4, 0.0]]))
    assert torch.is_tensor(model._points)
