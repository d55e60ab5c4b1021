"""Which 64 of 4,096 rows stand for all of them? Kernel thinning against a random choice."""

import torch

from mercer.compress import thin
from mercer.kernels import Gaussian

g = torch.Generator().manual_seed(0)
centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
x = centres[torch.randint(0, 3, (4096,), generator=g)] + torch.randn(4096, 2, generator=g)

chosen = thin(Gaussian(1.5), x, 64, generator=g)
random = torch.randperm(4096, generator=g)[:64]

functions = {"x1": lambda t: t[:, 0], "x1 squared": lambda t: t[:, 0].square(), "cos x2": lambda t: t[:, 1].cos()}
errors = {}
for name, f in functions.items():
    errors[name] = [(f(x[rows]).mean() - f(x).mean()).abs().item() for rows in (chosen, random)]
    print(f"mean of {name:<11} off by {errors[name][0]:.4f} with thinned rows, {errors[name][1]:.4f} with random ones")
