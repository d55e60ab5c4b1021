"""One kernel object, six uses; and the tangent kernel of a network, which is a kernel like any other."""

import torch

from mercer import compare, compress, explain, features, kernels, learn, nn

g = torch.Generator().manual_seed(0)
x, z = torch.rand(500, 2, generator=g), torch.rand(400, 2, generator=g).square()
y, truth = (torch.sin(6 * t[:, 0]) * t[:, 1] for t in (x, z))
k = kernels.Matern(2.5, lengthscale=0.5)

model = learn.KernelRidge(k, random_state=0).fit(x, y)
error = (model.predict(z) - truth).abs().max().item()
p_value = compare.mmd(k, x, z, generator=g).p_value
coreset = compress.thin(k, x, 16, generator=g)
phi = features.Orthogonal(k, d=2, rank=1024, generator=g)
feature_error = (phi(x).dense() - k(x).dense()).abs().max().item()
attended = nn.KernelAttention(k)(z, x, y[:, None])
smooth = nn.KernelConv(k, spacing=(0.1, 0.1))(torch.rand(3, 32, 32, generator=g))
tangent = kernels.EmpiricalNTK(torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)))(x)

print(f"regression: largest error {error:.3f}\ntwo-sample test: p = {p_value:.3f}\nthinning: rows {coreset.tolist()}")
print(f"1024 random features: largest error {feature_error:.3f}\nattention: {tuple(attended.shape)}")
print(f"convolution: {tuple(smooth.shape)}\ntangent kernel: {tangent}")
explain(k, x, products=100)
