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

from mercer.learn import VariationalGaussianProcess

THREADS, LANDMARKS, TEST = 2, 300, 5000

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
    inducing(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, sys.argv[2] if len(sys.argv) > 2 else None)
