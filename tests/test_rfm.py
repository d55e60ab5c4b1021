"""Feature learning: gradients against autograd of the dense formula, recursive feature machines, learned metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from mercer import kernels
from mercer.errors import ShapeError, StructureError
from mercer.kernels import Gaussian, Laplace, Linear, Matern, Metric
from mercer.learn.gradients import agop
from mercer.learn.spec import from_spec, to_spec


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


TURN = draws(4, 4, seed=9)
KERNELS = [
    Gaussian(1.3),
    Matern(2.5, torch.tensor([0.7, 1.0, 1.5, 3.0])),
    Matern(0.5, 2.0).warp(Metric(TURN)),
    Laplace(3.0),
    0.5 * Gaussian(2.0) + Linear(1.5) * Matern(1.5, 2.0),
    kernels.ArcCosine(1),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agop_is_the_mean_outer_product_of_jacobians(kernel: kernels.Kernel, dtype: torch.dtype) -> None:
    x, points, weights = draws(30, 4), draws(11, 4, seed=1), draws(11, 2, seed=2)
    each = torch.stack([torch.func.jacrev(lambda r: kernel.block(r[None], points)[0] @ weights)(row) for row in x])
    wanted = torch.einsum("ncd,nce->de", each, each).detach() / len(x)
    found = agop(kernel, x.to(dtype), points.to(dtype), weights.to(dtype))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4  # float32 products of some hundred terms
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    slopes = agop(kernel, x.to(dtype), points.to(dtype), weights.to(dtype), diagonal=True)
    torch.testing.assert_close(slopes, found.diagonal(), rtol=1e-6, atol=0)
    assert found.dtype == slopes.dtype == torch.float64


def test_agop_of_a_plane_is_its_normal_and_leaves_the_kernel_alone() -> None:
    kernel = Linear(1.0)
    kernel.requires_grad_(True)
    slope = torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)
    found = agop(kernel, draws(9000, 3), slope, torch.ones(1, 1, dtype=torch.float64))  # f(x) = slope . x
    torch.testing.assert_close(found, slope.mT @ slope, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in kernel.parameters())
    with pytest.raises(ShapeError, match="x, points and weights"):
        agop(kernel, draws(3, 2), draws(4, 2), draws(5, 1))


def test_slopes_at_a_kink_count_as_zero() -> None:
    x = draws(5, 2)
    found = agop(Matern(0.5), x, x, torch.ones(5, 1, dtype=torch.float64))
    by_hand = torch.zeros(2, 2, dtype=torch.float64)
    for i in range(5):
        slope = torch.zeros(2, dtype=torch.float64)
        for j in range(5):
            gap = x[i] - x[j]
            slope -= 0 if i == j else gap / gap.norm() * math.exp(-float(gap.norm()))
        by_hand += torch.outer(slope, slope) / 5
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)


def test_a_metric_is_the_mahalanobis_distance() -> None:
    half = draws(4, 4, seed=3)
    m = half @ half.mT
    kernel = Gaussian(1.0).warp(Metric.of(m))
    x, y = draws(6, 4), draws(5, 4, seed=1)
    gap = (x[:, None] - y[None]).numpy()
    wanted = np.exp(-0.5 * np.einsum("ijd,de,ije->ij", gap, m.numpy(), gap))
    np.testing.assert_allclose(kernel.block(x, y).detach().numpy(), wanted, rtol=1e-11)
    np.testing.assert_allclose((kernel(x.float(), y.float()) @ torch.eye(5)).detach().numpy(), wanted, atol=2e-6)
    flat = Metric.of(torch.outer(half[0], half[0]))  # one direction
    assert flat.matrix.shape == (4, 1)
    np.testing.assert_allclose(np.abs(flat.matrix[:, 0].numpy()), np.abs(half[0].numpy()), rtol=1e-9)


@pytest.mark.parametrize(
    ("bad", "error"),
    [([1.0, 2.0], ShapeError), ([[1.0, float("nan")]], ValueError), ([[]], ShapeError)],
)
def test_what_is_no_metric_is_refused(bad: list, error: type[Exception]) -> None:
    with pytest.raises(error, match="Metric.matrix"):
        Metric(bad)
    with pytest.raises(ValueError, match="psd"):
        Metric.of([[1.0, 0.0], [0.0, -1.0]])
    with pytest.raises(ShapeError, match="4 columns, x.d is 3"):
        Gaussian().warp(Metric(TURN)).block(draws(2, 3), draws(2, 3))


def test_kernels_in_a_metric_are_saved_as_numbers() -> None:
    kernel = 2.0 * Matern(2.5, torch.tensor([0.5, 2.0])).warp(Metric(draws(4, 2)))
    spec = json.loads(json.dumps(to_spec(kernel)))
    x = draws(7, 4, seed=5)
    torch.testing.assert_close(from_spec(spec).block(x, x), kernel.block(x, x), rtol=0, atol=0)
    inner = spec["arguments"]["kernel"]["kernel"]
    for wrong in ([[1.0, "a"]], [[1.0], [1.0, 2.0]], "code", [[float("inf")]], [[True]]):
        inner["matrix"] = wrong
        with pytest.raises(StructureError, match="saved metric"):
            from_spec(spec)
