"""Gaussian processes at scale against their peers: seconds to the same held-out error, in one run.

python benchmarks/processes.py [rows] [python of the peers]: with the second, GPyTorch runs there on the same rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import make_friedman1

from mercer.kernels import Matern
from mercer.learn import GaussianProcessRegressor, MultitaskGaussianProcess, VariationalGaussianProcess

THREADS, LANDMARKS, TEST = 2, 300, 5000
SCALE, EXACT = 1.5, 12_000  # lengthscale of the held kernel; rows up to which the factor is tried as well

PEER = """
import json, sys, time
import gpytorch, numpy as np, torch
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
data = np.load(sys.argv[1])
x, y, new, true = (torch.from_numpy(data[k]).float() for k in ("x", "y", "new", "true"))
start = time.perf_counter()
centre, scale = x.mean(0), x.std(0)
shift, unit = y.mean(), y.std()
x, new, t = (x - centre) / scale, (new - centre) / scale, (y - shift) / unit


class Model(gpytorch.models.ApproximateGP):
    def __init__(self, z):
        q = CholeskyVariationalDistribution(len(z))
        super().__init__(VariationalStrategy(self, z, q, learn_inducing_locations=True))
        self.mean_module = gpytorch.means.ConstantMean()
        kernel = gpytorch.kernels.MaternKernel(2.5, ard_num_dims=z.shape[1])
        kernel.lengthscale = z.shape[1] ** 0.5
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


model = Model(x[torch.randperm(len(x))[: int(sys.argv[3])]].clone())
noise = gpytorch.likelihoods.GaussianLikelihood()
bound = gpytorch.mlls.VariationalELBO(noise, model, num_data=len(x))
adam = torch.optim.Adam([*model.parameters(), *noise.parameters()], lr=0.01)
tested = 0.0
for epoch in range(int(sys.argv[4])):
    model.train(), noise.train()
    for at in torch.randperm(len(x)).split(1000):
        adam.zero_grad()
        loss = -bound(model(x[at]), t[at])
        loss.backward()
        adam.step()
    pause = time.perf_counter()
    model.eval(), noise.eval()
    with torch.no_grad():
        q = noise(model(new))
        mean, deviation = q.mean * unit + shift, q.stddev * unit
        density = torch.distributions.Normal(mean, deviation).log_prob(true).mean().item()
        r2 = 1 - ((mean - true).square().mean() / true.var()).item()
    tested += time.perf_counter() - pause
    print(json.dumps([epoch + 1, time.perf_counter() - start - tested, r2, density]), flush=True)
"""

EXACT_PEER = """
import json, sys, time
import gpytorch, numpy as np, torch

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
data = np.load(sys.argv[1])
x, y, new, true = (torch.from_numpy(data[k]).double() for k in ("x", "y", "new", "true"))


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, noise):
        super().__init__(x, y, noise)
        self.mean_module = gpytorch.means.ZeroMean()
        kernel = gpytorch.kernels.MaternKernel(2.5, ard_num_dims=x.shape[1])
        kernel.lengthscale = torch.full((x.shape[1],), float(sys.argv[3]))
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)
        self.covar_module.outputscale = float(y.var())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


noise = gpytorch.likelihoods.GaussianLikelihood()
noise.noise = 1.0
model = Model(x, y - y.mean(), noise)
value = gpytorch.mlls.ExactMarginalLogLikelihood(noise, model)
with gpytorch.settings.max_cholesky_size(0), gpytorch.settings.max_preconditioner_size(100):
    model.train(), noise.train()
    start = time.perf_counter()
    found = value(model(x), y - y.mean()) * len(x)
    found.backward()
    seconds = time.perf_counter() - start
    model.eval(), noise.eval()
    start = time.perf_counter()
    with torch.no_grad(), gpytorch.settings.eval_cg_tolerance(1e-4):
        q = model(new)
        mean, deviation = q.mean + y.mean(), q.stddev
    print(json.dumps([found.item(), seconds, time.perf_counter() - start, ((mean - true) ** 2).mean().item()]))
"""


def every_row(rows: int, peer: str | None) -> None:
    """All rows, kernel held: seconds of one likelihood with its gradient, and of 200 means with deviations."""
    x, y = make_friedman1(rows + 200, 10, noise=1.0, random_state=0)
    x, new, y, true = x[:rows], x[rows:], y[:rows], y[rows:]
    kernel = Matern(2.5, torch.full((10,), SCALE, dtype=torch.float64)).scale(float(y.var()))
    print(
        f"{'all rows':<34}{'log p':>12}{'+-':>8}{'gradient s':>12}{'fit s':>8}{'200 rows s':>12}{'squared error':>15}"
    )
    for method in ("cg", "exact") if rows <= EXACT else ("cg",):
        start = time.perf_counter()
        model = GaussianProcessRegressor(kernel, 1.0, method=method, learn=False, random_state=0).fit(x, y - y.mean())
        fitted = time.perf_counter()
        value, _, error, _ = model.log_marginal_likelihood(eval_gradient=True, return_error=True)
        middle = time.perf_counter()
        mean, _ = model.predict(new, return_std=True)
        end = time.perf_counter()
        line = f"{'mercer, ' + method:<34}{value:>12.1f}{error:>8.1f}{middle - fitted:>12.1f}{fitted - start:>8.1f}"
        print(f"{line}{end - middle:>12.1f}{np.mean((mean + y.mean() - true) ** 2):>15.4f}", flush=True)
    if peer is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", x=x, y=y, new=new, true=true)
        command = [peer, "-c", EXACT_PEER, f"{folder}/rows.npz", str(THREADS), str(SCALE)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    value, gradient, predicted, wrong = json.loads(told.splitlines()[-1])
    print(
        f"{'GPyTorch, CG and Lanczos':<34}{value:>12.1f}{'':>8}{gradient:>12.1f}{'':>8}{predicted:>12.1f}{wrong:>15.4f}"
    )


def related_tasks() -> None:
    """Three tasks drawn from a coregionalised process, one seen at 8 of 150 rows: its error, together and alone."""
    together, alone = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        x = np.sort(random.uniform(0, 6, (150, 1)), 0)
        mix = np.array([[1.0, 0.0], [0.9, 0.45], [-0.9, 0.3]])
        root = np.linalg.cholesky(np.exp(-((x - x.T) ** 2) / 2) + 1e-9 * np.eye(150))
        f = root @ random.normal(size=(150, 2)) @ mix.T
        y, kept = f + 0.1 * random.normal(size=f.shape), random.permutation(150)[:8]
        y[np.setdiff1d(np.arange(150), kept), 1] = np.nan
        mine = MultitaskGaussianProcess(random_state=0).fit(x, y)
        single = GaussianProcessRegressor(Matern(2.5).scale(1.0), random_state=0).fit(x[kept], y[kept, 1])
        together.append(np.sqrt(np.mean((mine.predict(x)[:, 1] - f[:, 1]) ** 2)))
        alone.append(np.sqrt(np.mean((single.predict(x) - f[:, 1]) ** 2)))
    print(f"a task with 8 of 150 rows: error {np.mean(together):.3f} with two others, {np.mean(alone):.3f} alone")


def inducing(rows: int, peer: str | None) -> None:
    """Friedman's first function, ten columns, noise 1: R2, log predictive density and seconds."""
    x, y = make_friedman1(rows + TEST, 10, noise=1.0, random_state=0)
    x, new, y, true = x[:rows], x[rows:], y[:rows], y[rows:]
    print(f"{'inducing points':<44}{'R2':>9}{'density':>10}{'s':>8}")
    for name, epochs in (("kernel of a draw, q in closed form", 0), ("mercer", 20)):
        start = time.perf_counter()
        model = VariationalGaussianProcess(landmarks=LANDMARKS, epochs=epochs, random_state=0).fit(x, y)
        seconds = time.perf_counter() - start
        density = float(model.log_predictive_density(new, true).mean())
        print(f"{name:<44}{model.score(new, true):>9.4f}{density:>10.4f}{seconds:>8.1f}", flush=True)
    if peer is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", x=x, y=y, new=new, true=true)
        command = [peer, "-c", PEER, f"{folder}/rows.npz", str(THREADS), str(LANDMARKS), "60"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [json.loads(line) for line in told]
    for epoch in (1, 5, 10, 20, 40, 60):
        _, seconds, r2, density = lines[epoch - 1]
        print(f"{f'GPyTorch SVGP, float32, {epoch} epochs':<44}{r2:>9.4f}{density:>10.4f}{seconds:>8.1f}")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    every_row(int(sys.argv[1]) // 2 if len(sys.argv) > 1 else 10_000, sys.argv[2] if len(sys.argv) > 2 else None)
    related_tasks()
    inducing(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, sys.argv[2] if len(sys.argv) > 2 else None)
