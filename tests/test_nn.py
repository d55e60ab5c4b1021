"""Layers against naive loops and dense matrices, causality by perturbing the future, odd and even sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mercer.budget import memory
from mercer.domain import Grid, Line
from mercer.errors import DataError, MemoryBudgetError, ShapeError, StructureError
from mercer.features import Favor, Fourier
from mercer.kernels import ExpDot, Gaussian, Laplace, Linear, Matern, RationalQuadratic, Wendland
from mercer.nn import KernelAttention, KernelConv, MultiheadKernelAttention, SpectralConv

DOUBLE = torch.float64
sdpa = torch.nn.functional.scaled_dot_product_attention


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=DOUBLE)


KERNELS = {
    "expdot": (ExpDot(), lambda q, k: math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)))),
    "gaussian": (Gaussian(0.8), lambda q, k: math.exp(-(math.dist(q, k) ** 2) / (2 * 0.64))),
    "laplace": (Laplace(1.5), lambda q, k: math.exp(-sum(abs(a - b) for a, b in zip(q, k, strict=True)) / 1.5)),
    "sum": (
        2.0 * Gaussian(0.8) + Matern(0.5),
        lambda q, k: 2 * math.exp(-(math.dist(q, k) ** 2) / (2 * 0.64)) + math.exp(-math.dist(q, k)),
    ),
}


def attend(value, q, k, v, weights, is_causal):
    """The definition: one row, one key at a time."""
    out = []
    for i, row in enumerate(q.tolist()):
        keys = range(min(i + 1, len(k)) if is_causal else len(k))
        share = [float(weights[j]) * value(row, k[j].tolist()) for j in keys]
        out.append(sum((s * v[j] for s, j in zip(share, keys, strict=True)), torch.zeros_like(v[0])) / sum(share))
    return torch.stack(out)


@pytest.mark.parametrize("n,m", [(1, 1), (5, 8), (9, 4)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_attention_equals_the_loop(name, is_causal, n, m):
    kernel, value = KERNELS[name]
    q, k, v = normal(n, 3, seed=1), normal(m, 3, seed=2), normal(m, 2, seed=3)
    weights = torch.rand(m, generator=rng(4), dtype=DOUBLE) + 0.1
    for measure in (torch.ones(m, dtype=DOUBLE), weights):
        wanted = attend(value, q, k, v, measure, is_causal)
        for fused in (True, False):
            layer = KernelAttention(kernel, is_causal, fused)
            found = layer(q, k, v) if measure is not weights else layer(q, k, v, weights)
            assert (found - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_expdot_attention_is_torch_attention(fused, is_causal):
    q, k, v = normal(2, 3, 37, 8, seed=1), normal(2, 3, 37, 8, seed=2), normal(2, 3, 37, 5, seed=3)
    layer = KernelAttention(ExpDot(), is_causal, fused)
    wanted = sdpa(q, k, v, is_causal=is_causal)
    assert (layer(q, k, v) - wanted).abs().max() < 1e-12
    single = layer(q.float(), k.float(), v.float())
    assert single.dtype == torch.float32
    assert (single - wanted).abs().max() < 2e-6
    assert (
        layer(1e3 * q, 1e3 * k, v) - sdpa(1e3 * q, 1e3 * k, v, is_causal=is_causal)
    ).abs().max() < 1e-9  # no overflow


def test_attention_stays_within_a_small_budget():
    q, k, v = normal(700, 4, seed=1), normal(650, 4, seed=2), normal(650, 2, seed=3)
    wanted = sdpa(q, k, v)
    with memory("1M"):
        assert (KernelAttention(ExpDot())(q, k, v) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("fused", [False, True])
def test_attention_broadcasts_batches(fused):
    q, k, v = normal(4, 1, 6, 3, seed=1), normal(5, 6, 3, seed=2), normal(6, 2, seed=3)
    wanted = sdpa(q.expand(4, 5, 6, 3), k.expand(4, 5, 6, 3), v.expand(4, 5, 6, 2))
    assert (KernelAttention(ExpDot(), fused=fused)(q, k, v) - wanted).abs().max() < 1e-12


def test_a_hidden_key_and_a_lonely_row():
    q, k, v = normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2)
    seen = torch.tensor([1.0, 0, 1, 1, 0], dtype=DOUBLE)
    kept = seen.bool()
    for kernel in (ExpDot(), Gaussian()):
        for fused in (True, False):
            layer = KernelAttention(kernel, fused=fused)
            assert (layer(q, k, v, seen) - layer(q, k[kept], v[kept])).abs().max() < 1e-12
            assert (layer(q, k, v, 0 * seen) == 0).all()
    far = KernelAttention(Wendland(lengthscale=1.0))(q + 100, k, v)
    assert (far == 0).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_linear_attention_equals_explicit_features(is_causal):
    phi = Favor(ExpDot(), 6, 48, generator=rng())
    q, k, v = normal(2, 45, 6, seed=1), normal(2, 45, 6, seed=2), normal(2, 45, 3, seed=3)
    share = torch.einsum("bnr,bmr->bnm", phi.features(q), phi.features(k))
    share = share.tril() if is_causal else share
    wanted = share @ v / share.sum(-1, keepdim=True)
    assert (KernelAttention(phi, is_causal)(q, k, v) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    "kernel", [ExpDot(), Gaussian(), Favor(ExpDot(), 4, 32, generator=rng())], ids=lambda k: type(k).__name__
)
@pytest.mark.parametrize("fused", [False, True])
def test_no_row_sees_the_future(kernel, fused):
    q, k, v = normal(40, 4, seed=1), normal(40, 4, seed=2), normal(40, 2, seed=3)
    layer = KernelAttention(kernel, True, fused)
    before = layer(q, k, v)
    for at in (39, 33, 20):
        for factor in (8.0, 1e3):
            later_k, later_v = k.clone(), v.clone()
            later_k[at:] *= factor
            later_v[at:] = 1e6
            after = layer(q, later_k, later_v)
            assert (after[:at] - before[:at]).abs().max() < 1e-12
            assert (after[at:] - before[at:]).abs().max() > 1e-3


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", ["expdot", "gaussian", "matern", "favor"])
def test_attention_gradients_equal_dense(name, is_causal):
    kernel = {"expdot": ExpDot(lengthscale=1.3), "gaussian": Gaussian(0.9), "matern": Matern(1.5)}.get(name)
    kernel = kernel or Favor(ExpDot(lengthscale=1.3), 3, 16, generator=rng())
    inputs = [normal(7, 3, seed=1), normal(7, 3, seed=2), normal(7, 2, seed=3)]
    inputs = [t.requires_grad_() for t in inputs]
    q, k, v = inputs
    block = kernel.block(q, k)
    block = block.tril() if is_causal else block
    dense = (block / block.sum(-1, keepdim=True)) @ v
    weight = normal(7, 2, seed=4)
    parameters = [*inputs, *kernel.parameters()]
    wanted = torch.autograd.grad((dense * weight).sum(), parameters)
    for fused in (True, False):
        found = torch.autograd.grad((KernelAttention(kernel, is_causal, fused)(q, k, v) * weight).sum(), parameters)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() < 1e-12


def test_attention_gradgradcheck():
    q, k, v = (normal(4, 2, seed=s).requires_grad_() for s in range(3))
    layer = KernelAttention(ExpDot(), True, fused=False)
    assert torch.autograd.gradcheck(layer, (q, k, v))
    assert torch.autograd.gradgradcheck(layer, (q, k, v))


def test_compact_support_has_finite_gradients():
    q, k, v = (normal(6, 2, seed=s).requires_grad_() for s in range(3))
    KernelAttention(Wendland(lengthscale=1.0))(q, k, v).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


@pytest.mark.parametrize("kernel", [Linear(), Fourier(Gaussian(), 3, 8, rng())], ids=["linear", "fourier"])
def test_a_kernel_that_may_be_negative_is_refused(kernel):
    with pytest.raises(StructureError, match="may be negative"):
        KernelAttention(kernel)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_multihead_loads_torch_weights(batch_first, bias):
    torch_layer = torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).double()
    ours = MultiheadKernelAttention(12, 3, bias=bias, batch_first=batch_first, dtype=DOUBLE)
    if bias:
        torch.nn.init.normal_(torch_layer.in_proj_bias, generator=rng())
    ours.load_state_dict(torch_layer.state_dict())
    x, y = normal(5, 5, 12, seed=1), normal(5, 5, 12, seed=2)
    wanted = torch_layer(x, y, y, need_weights=False)[0]
    assert (ours(x, y, y)[0] - wanted).abs().max() < 1e-12
    hidden = torch.arange(5)[None] > torch.arange(1, 6)[:, None]
    wanted = torch_layer(x, y, y, need_weights=False, key_padding_mask=hidden)[0]
    assert (ours(x, y, y, key_padding_mask=hidden)[0] - wanted).abs().max() < 1e-12
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    wanted = torch_layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)[0]
    assert (ours(x, x, x, is_causal=True)[0] - wanted).abs().max() < 1e-12
    flat = torch_layer(x[0], y[0], y[0], need_weights=False)[0]
    assert (ours(x[0], y[0], y[0])[0] - flat).abs().max() < 1e-12


def test_key_weights_have_gradients_on_every_path_and_are_not_negative():
    q, k, v = normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2)
    start = torch.tensor([1.0, 0.0, 0.3, 2.0, 0.5], dtype=DOUBLE)
    found = []
    for fused in (True, False):
        weights = start.clone().requires_grad_()
        layer = KernelAttention(ExpDot(), fused=fused)
        found.append(torch.autograd.grad(layer(q, k, v, weights).square().sum(), weights)[0])
        with pytest.raises(DataError, match=r"weights hold -1.0"):
            layer(q, k, v, torch.tensor([1.0, 1, 1, -1, 1], dtype=DOUBLE))
        with pytest.raises(DataError, match="weights hold nan"):
            layer(q, k, v, start * torch.nan)
    weights = start.clone().requires_grad_()
    share = weights * (q @ k.mT / math.sqrt(3)).exp()
    dense = share @ v / share.sum(-1, keepdim=True)
    wanted = torch.autograd.grad(dense.square().sum(), weights)[0]
    assert all((g - wanted).abs().max() < 1e-12 for g in found) and wanted[1] != 0


MASKS = {
    "none": None,
    "causal": torch.ones(6, 6, dtype=torch.bool).triu(1),
    "float causal": torch.nn.Transformer.generate_square_subsequent_mask(6, dtype=DOUBLE),
    "band": (torch.arange(6)[:, None] - torch.arange(6)).abs() > 2,
    "bias": torch.linspace(-2, 2, 36, dtype=DOUBLE).reshape(6, 6),
    "heads": torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(5)) > 0.6,
}
MASKS["heads"].diagonal(dim1=-2, dim2=-1).fill_(False)


@pytest.mark.parametrize("padded", [None, "bool", "float"])
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_takes_torchs_masks(mask, padded):
    torch_layer = torch.nn.MultiheadAttention(12, 4, batch_first=True).double()
    ours = MultiheadKernelAttention(12, 4, batch_first=True, dtype=DOUBLE)
    ours.load_state_dict(torch_layer.state_dict())
    x = normal(2, 6, 12, seed=1)
    hidden = torch.arange(6)[None] > torch.tensor([5, 3])[:, None]
    padding = {None: None, "bool": hidden, "float": torch.zeros(2, 6, dtype=DOUBLE).masked_fill(hidden, -2.5)}[padded]
    given = MASKS[mask]
    as_float = given
    if padded is not None and given is not None and given.dtype == torch.bool and padding.dtype != torch.bool:
        as_float = torch.zeros(given.shape, dtype=DOUBLE).masked_fill(given, -torch.inf)
    arguments = {"key_padding_mask": padding, "attn_mask": as_float}
    if padded == "bool" and given is not None and given.dtype != torch.bool:
        arguments["key_padding_mask"] = torch.zeros(2, 6, dtype=DOUBLE).masked_fill(hidden, -torch.inf)
    for average in (True, False):
        wanted, share = torch_layer(x, x, x, **arguments, average_attn_weights=average)
        plain, nothing = ours(x, x, x, padding, attn_mask=given)
        found, weights = ours(x, x, x, padding, True, given, average)
        assert nothing is None and weights.shape == share.shape
        there = ~torch.isnan(wanted)  # torch has NaN where a row sees no key, this layer zeros before the projection
        assert there.any() and (plain - wanted)[there].abs().max() < 1e-12
        assert (found - plain).abs().max() < 1e-12
        assert (weights - share)[~torch.isnan(share)].abs().max() < 1e-12


def test_multihead_stands_in_torchs_encoder_and_decoder():
    """Training, and evaluation, where torch would replace the layer by its own fused softmax if it could."""
    for make in (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer):
        layer = make(12, 4, 16, dropout=0.0, batch_first=True, dtype=DOUBLE)
        other = make(12, 4, 16, dropout=0.0, batch_first=True, dtype=DOUBLE)
        other.load_state_dict(layer.state_dict())
        other.self_attn = MultiheadKernelAttention(12, 4, batch_first=True, dtype=DOUBLE)
        other.load_state_dict(layer.state_dict())
        x = normal(2, 6, 12, seed=1)
        memory_ = () if make is torch.nn.TransformerEncoderLayer else (normal(2, 5, 12, seed=2),)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(6, dtype=DOUBLE)
        name = "src_mask" if not memory_ else "tgt_mask"
        for mode in (True, False):
            layer.train(mode), other.train(mode)
            with torch.set_grad_enabled(mode):
                assert (other(x, *memory_) - layer(x, *memory_)).abs().max() < 1e-12
                assert (other(x, *memory_, **{name: mask}) - layer(x, *memory_, **{name: mask})).abs().max() < 1e-12
    encoder = torch.nn.TransformerEncoderLayer(12, 4, 16, dropout=0.0, batch_first=True, dtype=DOUBLE)
    encoder.self_attn = MultiheadKernelAttention(12, 4, kernel=Gaussian(0.7), batch_first=True, dtype=DOUBLE)
    trained = encoder(x)
    with torch.no_grad():
        assert (encoder.eval()(x) - trained).abs().max() < 1e-12
        assert (
            torch.nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False).eval()(x) - trained
        ).abs().max() < 1e-12


def test_multihead_masks_of_other_kernels_and_their_refusals():
    layer = MultiheadKernelAttention(8, 2, kernel=Matern(1.5), batch_first=True, dtype=DOUBLE)
    x, band = normal(1, 6, 8), MASKS["band"]
    _, weights = layer(x, x, x, need_weights=True, attn_mask=band, average_attn_weights=False)
    q, k = (
        torch.nn.functional.linear(x, w).unflatten(-1, (2, -1)).transpose(1, 2)
        for w in layer.in_proj_weight.chunk(3)[:2]
    )
    r = math.sqrt(3) * torch.cdist(q, k)
    share = ((1 + r) * torch.exp(-r)).masked_fill(band, 0.0)
    assert (weights - share / share.sum(-1, keepdim=True)).abs().max() < 1e-12
    unseen = layer(x, x, x, attn_mask=torch.ones(6, 6, dtype=torch.bool))[0]
    assert (unseen - layer.out_proj.bias).abs().max() == 0
    for wrong in (torch.ones(5, 6, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool).triu(1)):
        with pytest.raises(ShapeError, match=r"attn_mask has shape .*expected \(6, 6\) or \(2, 6, 6\)"):
            layer(x, x, x, attn_mask=wrong)
    with memory("2K"), pytest.raises(MemoryBudgetError, match="key_padding_mask"):
        layer(x, x, x, attn_mask=band)


def test_multihead_with_another_kernel_round_trips():
    layer = MultiheadKernelAttention(8, 2, kernel=Gaussian(0.7), dtype=DOUBLE)
    other = MultiheadKernelAttention(8, 2, kernel=Gaussian(2.0), dtype=DOUBLE)
    x = normal(6, 1, 8)
    assert not torch.allclose(layer(x, x, x)[0], other(x, x, x)[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, x, x)[0], other(x, x, x)[0])
    with pytest.raises(ShapeError, match="embed_dim is 7"):
        MultiheadKernelAttention(7, 2)


SIZES = [(1,), (2,), (7,), (8,), (5, 6), (4, 7), (1, 3), (3, 4, 5)]
SPACING = (0.3, 0.5, 0.7)


def ard(kind, d):
    return kind(lengthscale=[0.8, 1.3, 0.6][:d])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("method", ["direct", "fft", "auto"])
@pytest.mark.parametrize("kind", [Gaussian, Laplace, RationalQuadratic])
def test_conv_is_the_gram_operator_of_the_grid(sizes, method, kind):
    kernel = ard(kind, len(sizes))
    x = normal(2, 3, *sizes)
    spacing = SPACING[: len(sizes)]
    grid = Grid(*[Line(n, h, dtype=DOUBLE) for n, h in zip(sizes, spacing, strict=True)])
    wanted = (x.reshape(6, -1) @ kernel.block(grid.points, grid.points)).reshape(x.shape) * math.prod(spacing)
    assert (KernelConv(kernel, spacing, method=method)(x) - wanted).abs().max() < 1e-12


def convolve(kernel, x, spacing, reach, boundary):
    """Offset by offset, with torch.roll."""
    kernel.requires_grad_(False)
    d, sizes = len(spacing), x.shape[-len(spacing) :]
    out = torch.zeros_like(x)
    wide = torch.nn.functional.pad(x, [reach] * (2 * d)) if boundary == "zero" else x
    for o in itertools.product(range(-reach, reach + 1), repeat=d):
        at = torch.tensor([[oi * h for oi, h in zip(o, spacing, strict=True)]], dtype=DOUBLE)
        moved = torch.roll(wide, o, tuple(range(-d, 0)))
        if boundary == "zero":
            moved = moved[(..., *(slice(reach, reach + n) for n in sizes))]
        out += float(kernel.block(at, torch.zeros_like(at))) * math.prod(spacing) * moved
    return out


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_conv_direct_and_fft_equal_the_loop(sizes, boundary, reach):
    kernel, spacing = ard(Gaussian, len(sizes)), SPACING[: len(sizes)]
    x = normal(2, *sizes)
    wanted = convolve(kernel, x, spacing, reach, boundary)
    for method in ("direct", "fft"):
        assert (KernelConv(kernel, spacing, reach, boundary, method=method)(x) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("n", [5, 6])
def test_circular_conv_over_the_whole_grid(n):
    kernel, h = Gaussian(0.9), 0.4
    at = torch.arange(n, dtype=DOUBLE)
    gap = (at[:, None] - at).abs()
    circle = torch.minimum(gap, n - gap) * h
    wanted = torch.exp(-circle.square() / (2 * 0.81)) @ normal(n) * h
    for method in ("direct", "fft"):
        assert (KernelConv(kernel, h, None, "circular", method=method)(normal(n)) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_conv_trains_its_lengthscale(method):
    x = normal(3, 9)
    assert torch.autograd.gradcheck(lambda t: KernelConv(Gaussian(0.8), 0.5, 3, method=method)(t), x.requires_grad_())
    kernel = Gaussian(0.8)
    layer = KernelConv(kernel, 0.5, 3, method=method)
    x = x.detach()
    found = torch.autograd.grad(layer(x).square().sum(), kernel.log_lengthscale)[0]
    step = 1e-6
    values = []
    for sign in (1, -1):
        kernel.lengthscale = 0.8 * math.exp(sign * step)
        values.append(float(layer(x).square().sum().detach()))
    assert abs(float(found) - (values[0] - values[1]) / (2 * step)) < 1e-6
    other = KernelConv(Gaussian(3.0), 0.5, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.kernel.lengthscale, kernel.lengthscale)


def test_conv_quadrature_makes_it_converge():
    """The integral of k(s, t) f(t) dt does not scale with the number of points: halving the step halves no value."""
    kernel, f = Gaussian(0.3), lambda t: torch.sin(3 * t) + 0.5
    values = []
    for n in (101, 201, 401):
        t = torch.linspace(0, 2, n, dtype=DOUBLE)
        values.append(float(KernelConv(kernel.requires_grad_(False), 2 / (n - 1))(f(t))[(n - 1) // 2]))
    assert abs(values[2] - values[1]) < 1e-3 * abs(values[2])
    assert KernelConv(kernel, 0.5, weight=1.0).weight == 1.0


def test_conv_precision_and_refusals():
    x = normal(4, 33)
    layer = KernelConv(Gaussian(1.0), 0.2)
    assert (layer(x.float()) - layer(x)).abs().max() < 1e-5
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(StructureError, match="stationary"):
        KernelConv(Linear())
    with pytest.raises(ValueError, match="boundary is 'reflect'"):
        KernelConv(Gaussian(), boundary="reflect")
    with pytest.raises(ValueError, match="reach is"):
        KernelConv(Gaussian(), (1.0, 1.0), (1, 2, 3))
    with pytest.raises(ShapeError, match="2 grid axes"):
        KernelConv(Gaussian(), (1.0, 1.0))(normal(4))


def matrix_of(layer: SpectralConv, k: tuple[int, ...]) -> torch.Tensor:
    """R_k, with R_-k its conjugate and the part of k_d = 0 that keeps the output real."""
    w = torch.view_as_complex(layer.weight.detach())

    def stored(k):
        return w[(slice(None), slice(None), *(c + m for c, m in zip(k[:-1], layer.modes[:-1], strict=True)), k[-1])]

    negative = tuple(-c for c in k)
    if k[-1] == 0:
        return (stored(k) + stored(negative).conj()) / 2
    return stored(k) if k[-1] > 0 else stored(negative).conj()


def lattice(sizes) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(n, dtype=DOUBLE) / n for n in sizes]).reshape(-1, len(sizes))


def spectral(layer, x, size):
    """Frequency by frequency: coefficients of the interpolant by sums, the result by evaluating exponentials."""
    n, flat = x.shape[2:], x.flatten(2).to(torch.complex128)
    out = 0
    for k in itertools.product(*[range(-m, m + 1) for m in layer.modes]):
        if any(2 * abs(c) > s for c, s in zip(k, n, strict=True)):
            continue
        share = math.prod(0.5 if 2 * abs(c) == s else 1.0 for c, s in zip(k, n, strict=True))
        wave = torch.tensor(k, dtype=DOUBLE)
        coefficient = share * (flat * torch.exp(-2j * math.pi * (lattice(n) @ wave))).mean(-1)
        values = torch.exp(2j * math.pi * (lattice(size) @ wave))
        out = out + torch.einsum("bi,io,p->bop", coefficient, matrix_of(layer, k), values)
    assert out.imag.abs().max() < 1e-12
    return out.real.reshape(*out.shape[:2], *size)


GRIDS = [
    ((8, 7, 4), (8, 7, 4)),
    ((7, 6, 3), (16, 9, 5)),
    ((9, 12, 6), (5, 4, 3)),
    ((6, 8, 2), (3, 3, 2)),
    ((1, 2, 5), (4, 1, 1)),
]


@pytest.mark.parametrize("modes", [(0,), (3,), (4,), (2, 3), (3, 2), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_spectral_conv_equals_its_definition(modes, grid):
    n, size = (tuple(s[: len(modes)]) for s in grid)
    layer = SpectralConv(2, 3, modes, rng(), dtype=DOUBLE)
    x = normal(2, 2, *n)
    assert (layer(x, size) - spectral(layer, x, size)).abs().max() < 1e-12
    single = SpectralConv(2, 3, modes, rng())
    single.weight.data.copy_(layer.weight)
    assert (single(x.float(), size) - layer(x, size)).abs().max() < 1e-5


@pytest.mark.parametrize("sizes", [(9,), (10,), (7, 9), (8, 6)], ids=str)
def test_spectral_conv_is_a_periodic_convolution(sizes):
    """out(s) = mean_t kappa(s - t) x(t), kappa(u) = sum_k R_k exp(2 pi i k.u) typed out."""
    layer = SpectralConv(2, 2, [2] * len(sizes), rng(1), dtype=DOUBLE)
    x, points = normal(3, 2, *sizes), lattice(sizes)
    kappa = torch.zeros(2, 2, len(points), len(points), dtype=torch.complex128)
    for k in itertools.product(range(-2, 3), repeat=len(sizes)):
        phase = (points[:, None] - points[None]) @ torch.tensor(k, dtype=DOUBLE)
        kappa += matrix_of(layer, k)[:, :, None, None] * torch.exp(2j * math.pi * phase)
    wanted = torch.einsum("iost,bit->bos", kappa.real, x.flatten(2)) / len(points)
    assert (layer(x).flatten(2) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    "n,size", list(itertools.product([(8, 8), (9, 7), (8, 11)], [(8, 8), (16, 17), (5, 6), (4, 4)])), ids=str
)
def test_spectral_resampling_is_exact(n, size):
    """With R_k = 1 a band-limited function comes out as its own values on the other grid, frequencies of both signs."""
    layer = SpectralConv(1, 1, (3, 3), dtype=DOUBLE)
    layer.weight.data.zero_()[..., 0] = 1

    def f(s):
        u, v = 2 * math.pi * s.T
        return 1 + (2 * u - 3 * v).cos() + (3 * u + v).sin() + 0.5 * (u * 3 + 3 * v).cos() + (-u + 2 * v).sin()

    x = f(lattice(n)).reshape(1, 1, *n)
    assert (layer(x, size).flatten() - f(lattice(size))).abs().max() < 1e-12


def test_spectral_shift_gradients_and_refusals():
    layer = SpectralConv(2, 2, (2, 3), rng(), dtype=DOUBLE)
    x = normal(1, 2, 9, 8)
    moved = layer(torch.roll(x, (2, 3), (2, 3)))
    assert (moved - torch.roll(layer(x), (2, 3), (2, 3))).abs().max() < 1e-12
    small = SpectralConv(1, 1, (1, 1), rng(), dtype=DOUBLE)
    inputs = (normal(1, 1, 3, 4).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda t: small(t, (4, 3)), inputs)
    other = SpectralConv(2, 2, (2, 3), rng(7), dtype=DOUBLE)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    with pytest.raises(ShapeError, match="2 grid axes"):
        layer(normal(1, 2, 9))
    with pytest.raises(TypeError, match="float32"):
        SpectralConv(2, 2, (2, 3))(x)
    with pytest.raises(ValueError, match="modes is"):
        SpectralConv(1, 1, (-1,))
