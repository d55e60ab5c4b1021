"""Can an operator learned on a coarse grid be used on a fine one? The heat equation by one Fourier layer."""

import math

import torch

from mercer.nn import SpectralConv

g = torch.Generator().manual_seed(0)
modes, time = 8, 0.01


def heat(count, n):
    """Random periodic initial states on n points, and their solutions at `time`, from one Fourier series."""
    k = torch.arange(1, modes + 1)
    a, b = torch.randn(2, count, modes, generator=g) / k
    phase = 2 * math.pi * k[:, None] * torch.arange(n) / n
    decay = torch.exp(-((2 * math.pi * k) ** 2) * time)
    waves = [a * f @ phase.cos() + b * f @ phase.sin() for f in (torch.ones(modes), decay)]
    return waves[0][:, None], waves[1][:, None]


layer = SpectralConv(1, 1, modes, generator=g)
optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
start, end = heat(64, 32)
for _ in range(300):
    optimiser.zero_grad()
    loss = (layer(start) - end).square().mean()
    loss.backward()
    optimiser.step()

start, end = heat(64, 128)  # unseen states on a grid four times as fine
error = ((layer(start) - end).norm() / end.norm()).item()
between = ((layer(start[..., ::4], size=128) - end).norm() / end.norm()).item()
print(f"trained on 32 points; relative error on 128: {error:.1e}; from 32 points to 128: {between:.1e}")
