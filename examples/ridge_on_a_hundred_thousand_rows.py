"""How does one fit 100,000 rows without a 100,000 x 100,000 matrix? Random features and a 512 x 512 system."""

import torch

from mercer.features import Orthogonal
from mercer.kernels import Gaussian

g = torch.Generator().manual_seed(0)
n, noise = 100_000, 0.1
x = 4 * torch.rand(n, 3, generator=g, dtype=torch.float64) - 2
truth = torch.sin(2 * x[:, 0]) * x[:, 1] + x[:, 2].cos()
y = truth + noise * torch.randn(n, generator=g, dtype=torch.float64)

phi = Orthogonal(Gaussian(1.2), d=3, rank=512, generator=g)
with torch.no_grad():
    features = phi.features(x)
    system = features.mT @ features + 0.01 * torch.eye(512, dtype=torch.float64)
    weights = torch.linalg.solve(system, features.mT @ y)
    error = (features @ weights - truth).square().mean().sqrt().item()

print(f"root mean squared error against the truth {error:.4f}, noise {noise}, spread {truth.std().item():.2f}")
