"""A rough field in the plane (Matern 3/2, lengthscale 0.03): nearest neighbours against inducing points, in one run.

python benchmarks/fields.py [rows]: seconds to fit, error of f, and log density of held-out rows, for each.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from mercer.features import Fourier
from mercer.kernels import Matern
from mercer.learn import VariationalGaussianProcess, VecchiaGaussianProcess

THREADS, TEST, LENGTHSCALE, NOISE, LANDMARKS = 2, 2000, 0.03, 0.01, 500


def field(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, f and noisy y: a sum of 4,000 random waves, whose covariance is the kernel's but for chance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 2, dtype=torch.float64, generator=generator)
    waves = Fourier(Matern(1.5, LENGTHSCALE), 2, 4000, generator=generator)
    weights = torch.randn(waves.rank, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        f = torch.cat([waves.features(part) @ weights for part in x.split(2000)])
    y = f + NOISE**0.5 * torch.randn(n, dtype=torch.float64, generator=generator)
    return x.numpy(), f.numpy(), y.numpy()


def main() -> None:
    torch.set_num_threads(THREADS)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    x, f, y = field(rows + TEST)
    models = {
        "Vecchia, 15 neighbours": VecchiaGaussianProcess(neighbours=15, random_state=0),
        "Vecchia, 30 neighbours": VecchiaGaussianProcess(neighbours=30, random_state=0),
        f"{LANDMARKS} inducing points": VariationalGaussianProcess(landmarks=LANDMARKS, random_state=0),
    }
    print(
        f"{rows:,} rows, {THREADS} threads\n{'model':26} {'fit s':>8} {'predict s':>10} {'rmse f':>10} {'density':>9}"
    )
    for name, model in models.items():
        start = time.perf_counter()
        model.fit(x[:rows], y[:rows])
        middle = time.perf_counter()
        error = np.sqrt(np.mean((model.predict(x[rows:]) - f[rows:]) ** 2))
        end = time.perf_counter()
        density = model.log_predictive_density(x[rows:], y[rows:]).mean()
        print(f"{name:26} {middle - start:8.1f} {end - middle:10.2f} {error:10.4f} {density:9.3f}")
        print(f"    {model.plan_.sentence}", flush=True)


if __name__ == "__main__":
    main()
