"""The empirical tangent kernel against a plain double loop over samples, outputs and parameters."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from mercer.budget import memory
from mercer.errors import ShapeError, StructureError
from mercer.kernels.ntk import CHUNK_NUMBERS, EmpiricalNTK
from mercer.operators import Tiled
from tests.peak import peak_bytes

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=DOUBLE)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.scale = nn.Parameter(torch.tensor(1.7))

    def forward(self, x):
        return self.scale * self.b(torch.tanh(self.a(x)))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.block(x).mean(1)


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), None, 4),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(48, 3)
        ).eval(),
        (1, 4, 4),
        16,
    ),
    "tied": (Tied, None, 4),
    "recurrent": (Recurrent, (3, 2), 6),
    "attention": (Attending, (3, 4), 12),
}


def net(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    make, shape, d = NETS[name]
    module = make().double()
    g = rng(1)
    for p in module.parameters():
        p.data.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=DOUBLE))
    return module, shape or (d,), d


def rows(module, shape, outputs, x):
    """One gradient at a time: n outputs parameters."""
    found = []
    for sample in x:
        values = module(sample.reshape(1, *shape)).flatten()
        values = (
            {"trace": list(values), "sum": [values.sum()]}[outputs] if isinstance(outputs, str) else [values[outputs]]
        )
        grads = [torch.autograd.grad(v, list(module.parameters()), create_graph=True) for v in values]
        found.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in grads]))
    return torch.stack(found)


def gram(module, shape, outputs, x, y):
    return torch.einsum("ncp,mcp->nm", rows(module, shape, outputs, x), rows(module, shape, outputs, y))


@pytest.mark.parametrize("outputs", ["trace", "sum", 1])
@pytest.mark.parametrize("name", NETS)
def test_kernel_equals_the_double_loop(name, outputs):
    module, shape, d = net(name)
    x, y = normal(6, d, seed=1), normal(5, d, seed=2)
    kernel = EmpiricalNTK(module, outputs, sample_shape=shape)
    wanted = gram(module, shape, outputs, x, y).detach()
    size = wanted.abs().max()
    assert (kernel.block(x, y) - wanted).abs().max() < 1e-12 * size
    operator = kernel(x, y)
    v = normal(5, 2, seed=3)
    assert (operator @ v - wanted @ v).abs().max() < 1e-12 * size
    square = gram(module, shape, outputs, x, x).detach()
    assert (kernel(x).dense() - square).abs().max() < 1e-12 * size
    assert (kernel.diagonal(x) - square.diagonal()).abs().max() < 1e-12 * size
    assert torch.linalg.eigvalsh(kernel(x).dense())[0] > -1e-9 * size
    assert (kernel.block(x.reshape(2, 3, d), y) - wanted.reshape(2, 3, 5)).abs().max() < 1e-12 * size


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("outputs", ["trace", "sum"])
def test_gradients_reach_the_points(outputs, loop):
    module, shape, d = net("mlp")
    x, y = normal(4, d, seed=1).requires_grad_(), normal(5, d, seed=2).requires_grad_()
    weight = normal(4, 5, seed=3)
    wanted = torch.autograd.grad((gram(module, shape, outputs, x, y) * weight).sum(), (x, y))
    kernel = EmpiricalNTK(module, outputs)
    kernel._loop = loop
    for dense in (kernel.block(x, y), kernel(x, y) @ torch.eye(5, dtype=DOUBLE)):
        found = torch.autograd.grad((dense * weight).sum(), (x, y))
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() < 1e-11 * b.abs().max()


def test_the_loop_says_so_and_agrees(caplog):
    module, shape, d = net("recurrent")
    kernel = EmpiricalNTK(module, sample_shape=shape)
    with caplog.at_level(logging.WARNING, logger="mercer"):
        kernel.block(normal(3, d), normal(2, d))
        kernel.block(normal(3, d), normal(2, d))
    assert kernel._loop
    assert [r.getMessage().startswith("EmpiricalNTK: vmap refuses Recurrent") for r in caplog.records] == [True]
    plain, shape, d = net("mlp")
    fast, slow = EmpiricalNTK(plain), EmpiricalNTK(plain)
    slow._loop = True
    x = normal(4, d)
    assert not fast._loop and (fast.block(x, x) - slow.block(x, x)).abs().max() < 1e-12


def test_the_kernel_is_a_fixed_function():
    module, _, d = net("mlp")
    kernel = EmpiricalNTK(module)
    x = normal(3, d)
    before = kernel.block(x, x)
    for p in module.parameters():
        p.data.add_(1.0)
    assert torch.equal(kernel.block(x, x), before)
    assert not any(p.requires_grad for p in kernel.parameters())
    other = EmpiricalNTK(module)
    assert not torch.allclose(other.block(x, x), before)
    other.load_state_dict(kernel.state_dict())
    assert torch.equal(other.block(x, x), before)
    cnn, shape, d = net("cnn")
    kernel = EmpiricalNTK(cnn, sample_shape=shape)
    x = normal(3, d)
    before, statistics = kernel.block(x, x), copy.deepcopy(kernel.module[1].running_mean)
    kernel.train()
    assert torch.equal(kernel.block(x, x), before)
    assert torch.equal(kernel.module[1].running_mean, statistics)


def test_frozen_parameters_do_not_count():
    module, _, d = net("mlp")
    x = normal(4, d)
    module[0].requires_grad_(False)
    hidden = torch.tanh(module[0](x))
    wanted = 3 * (hidden @ hidden.mT + 1)  # last layer only: three outputs, each with weights and a bias
    assert (EmpiricalNTK(module).block(x, x) - wanted).abs().max() < 1e-12


def test_tiles_stay_in_the_budget():
    module = nn.Sequential(nn.Linear(10, 300), nn.Tanh(), nn.Linear(300, 10))
    count = sum(p.numel() for p in module.parameters())
    kernel = EmpiricalNTK(module)
    assert kernel.workspace(10) == 10 * count + 20
    assert EmpiricalNTK(module, "sum").workspace(10) == count + 20
    x = torch.randn(40, 10, generator=rng())
    with memory("64M"):
        operator = kernel(x)
        assert isinstance(operator, Tiled)
        height, width = operator._tile_shape()
        assert (height + width) * 10 * count * 4 <= 64 * 2**20 or (height, width) == (16, 16)
        v = torch.ones(40, 1)
        assert ((operator @ v) - kernel.block(x, x) @ v).abs().max() < 1e-5 * (kernel.block(x, x) @ v).abs().max()


@pytest.mark.parametrize("loop", [False, True])
def test_a_block_takes_what_workspace_says(loop):
    module = nn.Sequential(nn.Linear(10, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 1))
    kernel = EmpiricalNTK(module)
    kernel._loop = loop
    x, y = torch.randn(60, 10, generator=rng()), torch.randn(50, 10, generator=rng(1))
    most = 4 * (kernel.workspace(10) * 110 + 3 * max(CHUNK_NUMBERS, kernel.workspace(10)))
    assert 4 * kernel.workspace(10) * 110 < peak_bytes(lambda: kernel.block(x, y)) < most
    with memory("16M"):
        assert peak_bytes(lambda: kernel.diagonal(x)) < 16 * 2**20
    assert (kernel.diagonal(x) - kernel.block(x, x).diagonal()).abs().max() < 1e-4 * kernel.diagonal(x).max()


def test_precision_is_the_modules_and_the_dtype_the_points():
    module = nn.Linear(3, 2)
    found = EmpiricalNTK(module).block(normal(2, 3), normal(2, 3))
    assert found.dtype == DOUBLE
    assert EmpiricalNTK(module).block(normal(2, 3).float(), normal(2, 3).float()).dtype == torch.float32
    assert EmpiricalNTK(module)(torch.zeros(0, 3), torch.zeros(2, 3)).dense().shape == (0, 2)


class Dropping(nn.Module):
    """Functional dropout: nothing in `modules()` shows it. recurrent: a part that vmap refuses for another reason."""

    def __init__(self, recurrent: bool):
        super().__init__()
        self.cell = nn.GRU(2, 3, batch_first=True) if recurrent else nn.Linear(2, 3)

    def forward(self, x):
        found = self.cell(x)
        return nn.functional.dropout(found[0] if isinstance(found, tuple) else found, 0.5, self.training).sum((1, 2))


class Noisy(nn.Linear):
    """Noise from a generator of its own, which leaves torch's state alone."""

    source = torch.Generator()

    def forward(self, x):
        return super().forward(x) * torch.rand(self.out_features, generator=self.source)


def test_noise_of_a_private_generator_is_refused_by_name():
    with pytest.raises(StructureError, match="Noisy draws random numbers"):
        EmpiricalNTK(Noisy(3, 2)).jacobian(torch.zeros(2, 3))


@pytest.mark.parametrize("recurrent", [False, True])
def test_functional_dropout_is_refused_by_name(recurrent):
    x = normal(4, 6).float()
    kernel = EmpiricalNTK(Dropping(recurrent), sample_shape=(3, 2))
    for ask in (kernel.jacobian, kernel.diagonal, lambda z: kernel(z).dense()):
        with pytest.raises(StructureError, match="Dropping draws random numbers"):
            ask(x)
    still = EmpiricalNTK(Dropping(recurrent).eval(), sample_shape=(3, 2))
    assert torch.equal(still.block(x, x), still.block(x, x))


def test_modules_that_are_no_function_are_refused_by_name():
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    with pytest.raises(StructureError, match=r"1 \(Dropout\) is in training mode"):
        EmpiricalNTK(dropout)
    EmpiricalNTK(dropout.eval())
    EmpiricalNTK(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)))
    with pytest.raises(StructureError, match=r"0 \(BatchNorm1d\)"):
        EmpiricalNTK(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    with pytest.raises(StructureError, match=r"0 \(GRU\)"):
        EmpiricalNTK(nn.Sequential(nn.GRU(3, 3, num_layers=2, dropout=0.1)))
    with pytest.raises(StructureError, match="no parameter"):
        EmpiricalNTK(nn.Linear(3, 1).requires_grad_(False))
    with pytest.raises(ValueError, match="outputs is 'mean'"):
        EmpiricalNTK(nn.Linear(3, 1), "mean")
    with pytest.raises(ShapeError, match="2 outputs"):
        EmpiricalNTK(nn.Linear(3, 2), 2).block(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"x.d is 5"):
        EmpiricalNTK(nn.Linear(3, 2), sample_shape=(3,)).block(torch.zeros(1, 5), torch.zeros(1, 5))
