"""How wide is the blur that turned one signal into another? A convolution whose kernel width is learned."""

import torch

from mercer.kernels import Gaussian
from mercer.nn import KernelConv

g = torch.Generator().manual_seed(0)
sharp = torch.zeros(1, 401, dtype=torch.float64)
sharp[0, torch.randint(20, 380, (12,), generator=g)] = 1.0
step, true_width = 0.01, 0.073
t = step * torch.arange(401, dtype=torch.float64)
blurred = (torch.exp(-(t[:, None] - t).square() / (2 * true_width**2)) * step @ sharp[0])[None]
blurred = blurred + 1e-4 * torch.randn(1, 401, generator=g, dtype=torch.float64)

layer = KernelConv(Gaussian(0.3), spacing=step)
optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
for _ in range(150):
    optimiser.zero_grad()
    loss = (layer(sharp) - blurred).square().mean()
    loss.backward()
    optimiser.step()

width = layer.kernel.lengthscale.item()
print(f"width {width:.4f}, true width {true_width}, mean squared error {loss.item():.1e}")
