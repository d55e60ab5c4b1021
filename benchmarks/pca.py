"""Kernel PCA, clusters and novelty against scikit-learn, in one run: seconds, angles, agreement and areas.

python benchmarks/pca.py [rows]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from sklearn.datasets import load_breast_cancer, load_digits, make_moons
from sklearn.decomposition import KernelPCA as Peer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, OneClassSVM

from mercer.kernels import Gaussian, Linear
from mercer.learn import KernelNovelty, KernelPCA, KernelSpectralClustering, KernelSVC


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what came)."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def sine(a: np.ndarray, b: np.ndarray) -> float:
    """The sine of the largest principal angle between the column spaces of projections of the same rows."""
    u, v = np.linalg.qr(a - a.mean(0))[0], np.linalg.qr(b - b.mean(0))[0]
    return float(np.linalg.norm(v - u @ (u.T @ v), 2))


def curve(n: int) -> np.ndarray:
    """A noisy curve in ten columns."""
    r = np.random.default_rng(0)
    t = r.uniform(0, 6, n)
    return np.stack([np.cos(t), np.sin(t), t / 3], 1) @ r.normal(size=(3, 10)) + 0.1 * r.normal(size=(n, 10))


def components(rows: int) -> None:
    """Solvers against scikit-learn's: seconds, and the angle to its full decomposition."""
    tables = {"digits": (load_digits().data / 16, 3.04), "curve": (curve(rows), 2.0)}
    print(f"{'kernel PCA, 4 components':<28}{'rows':>7}{'solver':>18}{'seconds':>9}{'ratio':>7}{'sine':>9}")
    for name, (x, scale) in tables.items():
        peers = {f"sklearn {s}": Peer(4, kernel="rbf", gamma=1 / (2 * scale**2), eigen_solver=s, random_state=0)
                 for s in ("dense", "arpack", "randomized")}  # fmt: skip
        mine = {f"mercer {s}": KernelPCA(4, Gaussian(scale), solver=s, tolerance=1e-4, random_state=0)
                for s in ("svd", "dual")}  # fmt: skip
        first: tuple[float, Any] | None = None
        for label, model in {**peers, **mine}.items():
            seconds, found = timed(partial(model.fit_transform, x))
            first = first or (seconds, found)
            row = f"{name:<28}{len(x):>7,}{label:>18}{seconds:>9.2f}{first[0] / seconds:>7.1f}"
            print(f"{row}{sine(first[1], found):>9.1e}")


def outliers() -> None:
    """Angles to the space of the clean rows with 10 % outliers, ten draws, linear kernel, three components."""
    print(f"\n{'10 % outliers':<18}{'loss':>10}{'median angle':>14}{'worst':>8}")
    for case, size in (("one direction", 1.0), ("any direction", 30.0)):
        found: dict[str, list[float]] = {}
        for seed in range(10):
            r = np.random.default_rng(seed)
            clean = 0.1 * r.normal(size=(270, 10))
            clean[:, :3] += r.normal(size=(270, 3)) * [3, 2, 1]
            far = size * r.normal(size=(30, 10))
            far[:, 5] += 100 * (size == 1.0)
            both = np.concatenate([clean, far])
            true = np.linalg.svd(clean - clean.mean(0), full_matrices=False)[2][:3].T
            for loss in ("square", "capped", "huber"):
                model = KernelPCA(3, Linear(), loss=loss, random_state=0).fit(both)
                axes = np.linalg.qr(model.transform(np.eye(10)) - model.transform(np.zeros((1, 10))))[0]
                cosine = np.linalg.svd(true.T @ axes)[1][-1]
                found.setdefault(loss, []).append(float(np.degrees(np.arccos(min(cosine, 1.0)))))
        for loss, angles in found.items():
            print(f"{case:<18}{loss:>10}{np.median(angles):>14.2f}{max(angles):>8.2f}")


def clusters(rows: int) -> None:
    """Spectral clustering of two moons: seconds and agreement with the truth."""
    x, y = make_moons(rows, noise=0.06, random_state=0)
    seconds, mine = timed(lambda: KernelSpectralClustering(2, random_state=0).fit(x))
    points = mine.scaler_(x)
    with torch.no_grad():
        k = mine.kernel_.block(points, points).numpy()
    other, theirs = timed(lambda: SpectralClustering(2, affinity="precomputed", random_state=0).fit(k))
    scores = [adjusted_rand_score(m.labels_, y) for m in (mine, theirs)]
    print(f"\nspectral clustering, {rows:,} rows: mercer {seconds:.2f} s ({scores[0]:.3f}), "
          f"scikit-learn with the matrix given {other:.2f} s ({scores[1]:.3f})")  # fmt: skip


def margins(rows: int) -> None:
    """The same machine on our Gram and on LIBSVM's own kernel."""
    x, y = make_moons(rows, noise=0.25, random_state=0)
    seconds, mine = timed(lambda: KernelSVC(1.0, Gaussian(0.5)).fit(x, y))
    other, theirs = timed(lambda: SVC(gamma=2.0).fit(x, y))
    gap = np.abs(mine.decision_function(x[:500]) - theirs.decision_function(x[:500])).max()
    print(f"support vectors, {rows:,} rows: mercer {seconds:.2f} s, scikit-learn {other:.2f} s, difference {gap:.0e}")


def novelty() -> None:
    """Areas under the curve of usual against novel rows."""
    x, y = load_breast_cancer(return_X_y=True)
    digits, d = load_digits(return_X_y=True)
    tables = {"malignant": (x[y == 1], x[y == 0]), "not 1": (digits[d == 1], digits[d != 1])}
    tables["not 8"] = (digits[d == 8], digits[d != 8])
    print(f"\n{'novelty, ROC area':<20}{'variance':>10}{'mean':>8}{'one-class':>11}{'forest':>8}")
    for name, (usual, odd) in tables.items():
        half = len(usual) // 2
        train, both = usual[:half], np.concatenate([usual[half:], odd])
        label = np.repeat([0, 1], [len(usual) - half, len(odd)])
        scaler = StandardScaler().fit(train)
        scores = [KernelNovelty(method=m).fit(train).score_samples(both) for m in ("variance", "mean")]
        scores.append(OneClassSVM(nu=0.1).fit(scaler.transform(train)).score_samples(scaler.transform(both)))
        scores.append(IsolationForest(random_state=0).fit(train).score_samples(both))
        areas = [roc_auc_score(label, -s) for s in scores]
        print(f"{name:<20}{areas[0]:>10.4f}{areas[1]:>8.4f}{areas[2]:>11.4f}{areas[3]:>8.4f}")


def main(rows: int) -> None:
    """All tables, two threads."""
    torch.set_num_threads(2)
    components(rows)
    outliers()
    clusters(rows)
    margins(rows)
    novelty()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
