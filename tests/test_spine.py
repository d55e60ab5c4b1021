"""Parameters, shapes and errors: what every kernel shares."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mercer.budget import memory
from mercer.errors import MemoryBudgetError, ShapeError, StructureError
from mercer.kernels import ExpDot, Gaussian, Matern, Periodic, Product, RationalQuadratic, Sum
from mercer.shapes import check, shapes
from tests.catalogue import KERNELS

case_of = pytest.mark.parametrize("case", KERNELS, ids=lambda c: c.name)


def test_parameters_read_and_write_like_attributes():
    kernel = Gaussian(0.7)
    assert kernel.lengthscale.item() == pytest.approx(0.7, abs=1e-15) and kernel.lengthscale.dtype == torch.float64
    kernel.lengthscale = 2.0
    assert kernel.lengthscale.item() == pytest.approx(2.0)
    kernel.lengthscale = [1.0, 3.0]
    assert kernel.lengthscale.tolist() == pytest.approx([1.0, 3.0])
    kernel.lengthscale = 4
    assert kernel.lengthscale.item() == pytest.approx(4.0) and len(list(kernel.parameters())) == 1
    for graph in (nn.Parameter(torch.tensor(4.0)), Gaussian(2.0).lengthscale):  # would cut the graph without a word
        with pytest.raises(TypeError, match="detach it, and train log_lengthscale"):
            kernel.lengthscale = graph
    for bad in (0, -1.0, float("nan"), float("inf"), [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"Gaussian.lengthscale is .* expected finite numbers > 0"):
            kernel.lengthscale = bad
    assert kernel.lengthscale.item() == pytest.approx(4.0)


def test_setting_keeps_the_parameter_an_optimiser_holds():
    kernel = Gaussian(0.7)
    optimiser = torch.optim.SGD(kernel.parameters(), lr=0.1)
    kernel.lengthscale = 1.5
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel.block(x, x).sum().backward()
    before = float(kernel.lengthscale.detach())
    optimiser.step()
    assert float(kernel.lengthscale.detach()) < before


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS], ids=lambda o: o.__name__)
def test_positive_whatever_the_optimiser_does(optimiser):
    kernel = RationalQuadratic(1.0, 1.0)
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = optimiser(kernel.parameters(), lr=5.0)

    def loss():
        run.zero_grad()
        value = kernel.block(x, x).sum()
        value.backward()
        return value

    first = float(loss().detach())
    for _ in range(3):
        run.step(loss)
    assert float(kernel.lengthscale.detach()) > 0 and float(kernel.alpha.detach()) > 0
    assert float(kernel.block(x, x).sum().detach()) < first


def test_a_frozen_parameter_stays_frozen_when_it_changes_shape():
    kernel = Gaussian(0.7)
    kernel.log_lengthscale.requires_grad_(False)
    kernel.lengthscale = [1.0, 2.0]
    assert not kernel.log_lengthscale.requires_grad


@case_of
def test_save_and_load(case):
    kernel, twin = case.make(3), case.make(3)
    with torch.no_grad():
        for p in kernel.parameters():
            p.add_(0.1)
    x = case.points(5, 3)
    twin.load_state_dict(kernel.state_dict())
    assert torch.equal(twin.block(x, x), kernel.block(x, x))
    assert torch.equal(pickle.loads(pickle.dumps(kernel)).block(x, x), kernel.block(x, x))
    assert torch.equal(copy.deepcopy(kernel).block(x, x), kernel.block(x, x))


@case_of
def test_a_kernel_prints_as_one_line_of_algebra(case):
    text = repr(case.make(3))
    assert "\n" not in text and len(text) < 160


def test_arguments_rebuild_the_kernel():
    for kernel in (Matern(1.5, [0.5, 2.0]), Periodic(0.3, 2.0), ExpDot(), ExpDot(2.0), RationalQuadratic(2.0, 0.3)):
        again = type(kernel)(**kernel.arguments())
        x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(again.block(x, x), kernel.block(x, x), rtol=1e-14)
    with torch.no_grad():
        assert repr(2 * (Gaussian(2.0) + Matern(0.5))) == (
            "2 * (Gaussian(lengthscale=2) + Matern(nu=0.5, lengthscale=1))"
        )


def test_hyperparameters_follow_the_points_not_the_other_way_round():
    kernel = Gaussian([1.0, 2.0])
    assert kernel.block(torch.randn(3, 2), torch.randn(4, 2)).dtype == torch.float32
    assert kernel(torch.randn(3, 2)).dtype == torch.float32


def test_shapes_name_the_axis_at_fault():
    @shapes("x: ... n d, w: n 2 -> ... n")
    def f(x, w=None):
        return x.sum(-1)

    assert f(torch.ones(5, 4, 3), torch.ones(4, 2)).shape == (5, 4)
    assert f(torch.ones(4, 3)).shape == (4,)
    with pytest.raises(ShapeError, match=r"expected \[x: ... n d, w: n 2 -> ... n\], but w.n is 5, elsewhere 4"):
        f(torch.ones(4, 3), torch.ones(5, 2))
    with pytest.raises(ShapeError, match="w.2 is 3, elsewhere 2"):
        f(torch.ones(4, 3), w=torch.ones(4, 3))
    with pytest.raises(ShapeError, match="1 axes"):
        f(torch.ones(4))

    @shapes("x: n d -> n n")
    def wrong(x):
        return x

    with pytest.raises(ShapeError, match="the result.n is 3, elsewhere 4"):
        wrong(torch.ones(4, 3))
    assert check("x: ... n d", x=torch.ones(2, 4, 3)) == {"n": 4, "d": 3}


def test_parameters_have_their_number_of_axes():
    for build in (
        lambda: Gaussian([[1.0, 2.0]]),
        lambda: Gaussian().scale(torch.tensor([1.0, 2.0])),
        lambda: RationalQuadratic(1.0, [1.0, 2.0]),
    ):
        with pytest.raises(ShapeError, match="axes; expected"):
            build()


def test_parameters_keep_their_precision_when_a_module_changes_its_own():
    layer = nn.Sequential(nn.Linear(2, 2), Gaussian(0.3)).to(torch.bfloat16)
    assert layer[0].weight.dtype == torch.bfloat16 and layer[1].log_lengthscale.dtype == torch.float64
    assert layer[1].lengthscale.item() == pytest.approx(0.3, rel=1e-15)


def test_sum_of_a_list_of_kernels():
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    parts = [Gaussian(), Matern(0.5), Periodic()]
    assert torch.allclose(sum(parts).block(x, x), parts[0].block(x, x) + parts[1].block(x, x) + parts[2].block(x, x))


def test_points_that_are_not_floating_are_refused_in_block():
    with pytest.raises(TypeError, match="x.double"):
        (2.5 * Gaussian(1.5)).block(torch.arange(4)[:, None], torch.arange(4)[:, None])
    with pytest.raises(TypeError, match="complex"):
        Gaussian()(torch.randn(3, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="nn.Module"):
        Gaussian().warp(torch.tanh)
    with pytest.raises(StructureError, match="BatchNorm1d"):
        Gaussian().warp(nn.BatchNorm1d(2))(torch.randn(9, 2)) @ torch.ones(9)
    assert Gaussian().on(1).block(torch.zeros(2, 2), torch.ones(3, 2)).shape == (2, 3)


def test_questions_that_have_no_answer_are_named():
    x = torch.zeros(2, 5, 3)
    k = Gaussian()(x)
    with pytest.raises(ShapeError, match=r"batch of A is \[2\], that of v \[3\]"):
        k @ torch.zeros(3, 5, 1)
    assert (k @ torch.zeros(4, 1, 5, 1)).shape == (4, 2, 5, 1)
    for index in ((..., 0), (0, 0, 0), None):
        with pytest.raises(IndexError, match="expected rows, or rows and columns"):
            k[index]
    for kind in (Sum, Product):
        with pytest.raises(StructureError, match=rf"{kind.__name__}\(\) has no parts"):
            kind()
    with pytest.raises(StructureError, match="is its diagonal"):
        k.tril().mT.tril()
    with memory(2000), pytest.raises(MemoryBudgetError, match=r"the budget is 0.002 MiB"):
        Gaussian()(torch.zeros(100, 3)).dense()
