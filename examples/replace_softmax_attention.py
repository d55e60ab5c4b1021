"""What happens when the softmax of a trained attention layer is replaced by random features, or by another kernel?"""

import torch

from mercer.features import Favor
from mercer.kernels import ExpDot, Laplace
from mercer.nn import MultiheadKernelAttention

g = torch.Generator().manual_seed(0)
trained = torch.nn.MultiheadAttention(64, 8, batch_first=True)
x = 0.5 * torch.randn(2, 200, 64, generator=g)
wanted = trained(x, x, x, need_weights=False)[0]


def swapped(kernel):
    layer = MultiheadKernelAttention(64, 8, kernel=kernel, batch_first=True)
    layer.load_state_dict(trained.state_dict(), strict=False)  # the kernel's own parameters are new
    return layer(x, x, x)[0]


def error(out):
    return ((out - wanted).norm() / wanted.norm()).item()


exact = error(swapped(ExpDot()))
linear = {rank: error(swapped(Favor(ExpDot(), 8, rank, generator=g))) for rank in (16, 64, 256, 1024)}
other = error(swapped(Laplace(4.0)))

print(f"the same softmax:          {exact:.1e}")
for rank, value in linear.items():
    print(f"{rank:>5} positive features:   {value:.3f}   (cost linear in the sequence length)")
print(f"a Laplace kernel instead:  {other:.3f}")
