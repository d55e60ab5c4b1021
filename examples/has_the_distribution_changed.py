"""Has the distribution changed between two samples? A kernel two-sample test, without choosing a parameter."""

import torch

from mercer.compare import mmd
from mercer.kernels import Riesz

g = torch.Generator().manual_seed(0)
january = torch.randn(300, 3, generator=g)
february = torch.randn(250, 3, generator=g)
march = torch.randn(250, 3, generator=g) * torch.tensor([1.0, 1.0, 1.6])  # same mean, one column spreads more

same = mmd(None, january, february, generator=g)  # None: a Gaussian at the pooled median distance
changed = mmd(None, january, march, generator=g)
energy = mmd(Riesz(), january, march, generator=g)  # the energy distance

print(f"january, february: MMD^2 {same.statistic:+.5f}, p = {same.p_value:.3f}   {same.kernel}")
print(f"january, march:    MMD^2 {changed.statistic:+.5f}, p = {changed.p_value:.3f}")
print(f"january, march:    energy distance {energy.statistic:+.5f}, p = {energy.p_value:.3f}")
