"""conv against torch's padded sum, index by index at its boundaries, in every method, with gradients of two orders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mercer.errors import ShapeError
from mercer.operators import conv, conv_plan
from mercer.operators.stencil import stencil
from mercer.operators.stencil_plan import choose

METHODS = ("direct", "channels_last", "fft", "overlap", "shift")
TORCH = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def loop(x: np.ndarray, w: np.ndarray, left: Sequence[int], out: Sequence[int], kinds: Sequence[str]) -> np.ndarray:
    """The definition, one number at a time: x in *sizes, w out in *taps, stride and dilation 1."""
    y = np.zeros((w.shape[0], *out))
    for place in np.ndindex(*y.shape):
        for tap in np.ndindex(*w.shape[1:]):
            at, inside = [], True
            for s, o, a, n, kind in zip(place[1:], tap[1:], left, x.shape[1:], kinds, strict=True):
                i = s + o - a
                if kind == "circular":
                    i %= n
                elif kind == "reflect":
                    while n > 1 and not 0 <= i < n:
                        i = -i if i < 0 else 2 * (n - 1) - i
                    i = i if n > 1 else 0
                inside &= 0 <= i < n
                at.append(i)
            if inside:
                y[place] += w[(place[0], *tap)] * x[(tap[0], *at)]
    return y


def serves(method: str, axes: int, single: bool) -> bool:
    return (method != "overlap" or axes == 1) and (method != "shift" or single)


SIZES = {1: [(1,), (7,), (16,)], 2: [(5, 6), (1, 9)], 3: [(3, 4, 5)]}
TAPS = {1: [(1,), (2,), (5,), (8,)], 2: [(1, 1), (3, 2), (4, 5)], 3: [(2, 3, 1)]}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups, inputs, outputs", [(1, 2, 3), (4, 4, 4), (2, 4, 6), (2, 2, 4)])
def test_every_method_equals_torch_with_gradients(axes: int, groups: int, inputs: int, outputs: int) -> None:
    """Odd, even and rectangular sizes, of one point too, with strides and dilations, padded in each way."""
    seen = 0
    for sizes, taps, stride, dilation, padding, causal in itertools.product(
        SIZES[axes], TAPS[axes], (1, 2, 3), (1, 2), ("same", "valid", 2), (False, True)
    ):
        reach = [dilation * (k - 1) for k in taps]
        total = {"same": reach, "valid": [0] * axes, 2: [4] * axes}[padding]
        if min(n + t - r for n, t, r in zip(sizes, total, reach, strict=True)) < 1:
            continue
        x = draw(2, inputs, *sizes).requires_grad_()
        w = draw(outputs, inputs // groups, *taps, seed=1).requires_grad_()
        widths = [v for t in reversed(total) for v in ((t, 0) if causal else (t // 2, t - t // 2))]
        wanted = TORCH[axes](torch.nn.functional.pad(x, widths), w, None, stride, 0, dilation, groups)
        g = draw(*wanted.shape, seed=2)
        slopes = torch.autograd.grad(wanted, (x, w), g)
        for method in METHODS:
            if not serves(method, axes, groups == inputs == outputs):
                continue
            boundary = "causal" if causal else "zero"
            found = conv(x, w, None, stride, padding, dilation, groups, boundary=boundary, method=method)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
            for a, b in zip(torch.autograd.grad(found, (x, w), g), slopes, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
            seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    "kinds", [("circular",), ("reflect",), ("causal", "circular"), ("reflect", "zero"), ("circular",) * 2]
)
@pytest.mark.parametrize("method", ["auto", "direct", "fft", "channels_last"])
def test_boundaries_equal_the_loop(kinds: tuple[str, ...], method: str) -> None:
    """Taps that are more than the grid wrap around and reflect more than once."""
    axes = len(kinds)
    for sizes in ((6, 5)[:axes], (1, 4)[:axes], (3, 2)[:axes]):
        for taps in ((3, 2)[:axes], (4, 9)[:axes], (11, 1)[:axes]):
            x, w = draw(2, *sizes, seed=3), draw(3, 2, *taps, seed=4)
            left = [k - 1 if kind == "causal" else (k - 1) // 2 for k, kind in zip(taps, kinds, strict=True)]
            wanted = loop(x.numpy(), w.numpy(), left, sizes, kinds)
            found = conv(x, w, boundary=kinds, method=method)
            np.testing.assert_allclose(found.numpy(), wanted, atol=1e-11)
            assert torch.autograd.gradcheck(
                lambda a, b, k=kinds, m=method: conv(a, b, boundary=k, method=m),
                (x[:, :2].clone().requires_grad_(), w[:1].clone().requires_grad_()),
            )


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward mode calls it
@pytest.mark.parametrize("method", ["direct", "channels_last", "fft", "overlap", "separable", "shift"])
def test_gradients_of_gradients_forward_mode_and_vmap(method: str) -> None:
    x, w = draw(2, 3, 7).requires_grad_(), draw(3, 1, 4, seed=1).requires_grad_()

    def run(a: Tensor, b: Tensor) -> Tensor:
        return conv(a, b, None, 2, dilation=1, groups=3, boundary="causal", method=method)

    assert torch.autograd.gradcheck(run, (x, w)) and torch.autograd.gradgradcheck(run, (x, w))
    tangents = draw(2, 3, 7, seed=5), draw(3, 1, 4, seed=6)
    _, slope = torch.func.jvp(run, (x.detach(), w.detach()), tangents)
    step = 1e-6
    ahead, behind = (run(*(t + sign * step * d for t, d in zip((x, w), tangents, strict=True))) for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind).detach() / (2 * step), rtol=1e-7, atol=1e-8)
    if method not in ("shift", "separable"):  # these look at values, which vmap refuses
        many = draw(5, 2, 3, 7, seed=7)
        found = torch.func.vmap(lambda a: run(a, w))(many)
        torch.testing.assert_close(found, torch.stack([run(a, w) for a in many]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "direct", "fft", "overlap"])
def test_causal_convolutions_of_every_length_do_not_see_the_future(method: str) -> None:
    """Lengths 1 to 70 and some primes, as many taps as points; float32 to 1e-6 of the largest value."""
    for n in (*range(1, 71), 101, 127, 509):
        x, w = draw(1, 2, n), draw(2, 1, n, seed=1)
        wanted = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (n - 1, 0)), w, groups=2)
        found = conv(x, w, groups=2, boundary="causal", method=method)
        assert float((found - wanted).abs().max()) < 1e-12 * max(float(wanted.abs().max()), 1.0)
        single = conv(x.float(), w.float(), groups=2, boundary="causal", method=method)
        assert float((single - wanted).abs().max()) < 1e-6 * max(float(wanted.abs().max()), 1.0)
        if method == "direct" and n > 2:
            later = x.clone()
            later[..., n // 2 :] += 1e3
            again = conv(later, w, groups=2, boundary="causal", method=method)
            assert torch.equal(again[..., : n // 2], found[..., : n // 2])


def test_products_over_axes_and_sparse_taps_are_found() -> None:
    x = draw(1, 4, 30, 41)
    rows, columns = draw(4, 7, 1, seed=1), draw(4, 1, 9, seed=2)
    w = (rows * columns)[:, None]
    wanted = conv(x, w, groups=4, method="direct")
    torch.testing.assert_close(conv(x, w, groups=4, method="separable"), wanted, rtol=0, atol=1e-12)
    w[0, 0, 3, 3] += 1e-3
    with pytest.raises(ValueError, match="no product over axes"):
        conv(x, w, groups=4, method="separable")
    few = torch.zeros_like(w)
    few[:, :, [0, 3, 6], [1, 4, 8]] = draw(4, 1, 3, seed=3)
    wanted = conv(x, few, groups=4, method="direct")
    torch.testing.assert_close(conv(x, few, groups=4, method="shift"), wanted, rtol=0, atol=1e-12)


def test_auto_looks_at_taps_where_that_may_pay() -> None:
    x, axis = draw(1, 8, 120, 120), torch.linspace(-2, 2, 31, dtype=DOUBLE)
    bell = torch.exp(-axis.square())
    w = (bell[:, None] * bell)[None, None].expand(8, 1, 31, 31).contiguous()
    s, _ = stencil(x, w, 1, "same", 1, 8, "zero")
    assert choose("forward", x, w, s, "auto") == "separable"
    one = torch.zeros_like(w)
    one[..., 3, 4] = 1.0
    one[0, 0, 7, 9] = 1.0
    assert choose("forward", x, one, s, "auto") == "shift"
    assert choose("forward", x, draw(8, 1, 31, 31), s, "auto") in ("fft", "direct", "channels_last")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_transformed_in_float32(dtype: torch.dtype) -> None:
    x, w = draw(1, 2, 40, dtype=dtype), draw(2, 1, 9, seed=1, dtype=dtype)
    found = conv(x, w, groups=2, method="fft")
    wanted = conv(x.double(), w.double(), groups=2, method="direct")
    eps = torch.finfo(dtype).eps
    assert found.dtype == dtype and float((found.double() - wanted).abs().max()) < 2 * eps * float(wanted.abs().max())


def test_empty_batches_bias_and_single_signals() -> None:
    w, bias = draw(3, 2, 3), draw(3, seed=1)
    for method in ("auto", "direct", "fft"):
        assert conv(draw(0, 2, 8), w, bias, method=method).shape == (0, 3, 8)
        x = draw(2, 8, seed=2)
        wanted = torch.nn.functional.conv1d(x, w, bias, padding=1)
        torch.testing.assert_close(conv(x, w, bias, method=method), wanted, rtol=0, atol=1e-12)


def test_the_plan_names_every_method_best_first() -> None:
    plan = conv_plan(torch.empty(1, 64, 56, 56, device="meta"), torch.empty(64, 1, 51, 51, device="meta"), groups=64)
    assert set(plan) == {"forward", "input_grad", "weight_grad"} and next(iter(plan["forward"])) == "fft"
    assert all(list(part.values()) == sorted(part.values()) for part in plan.values())
    small = conv_plan(torch.empty(1, 64, 56, 56), torch.empty(64, 1, 3, 3), groups=64)
    assert next(iter(small["forward"])) == "direct"


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_it_compiles_without_a_break() -> None:
    x, w = draw(1, 4, 20, 20), draw(4, 1, 5, 5, seed=1)
    run = torch.compile(lambda a, b: conv(a, b, groups=4, method="direct"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x, w), conv(x, w, groups=4))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"stride": 0}, ValueError, "stride is 0"),
        ({"dilation": (1, 2)}, ValueError, "dilation is"),
        ({"padding": "full"}, ValueError, "padding is 'full'"),
        ({"padding": -1}, ValueError, "padding is -1"),
        ({"groups": 2}, ValueError, "groups is 2"),
        ({"boundary": "wrap"}, ValueError, "boundary is 'wrap'"),
        ({"method": "quick"}, ValueError, "method is 'quick'"),
        ({"bias": torch.zeros(2)}, ShapeError, "bias has shape"),
        ({"weight": torch.zeros(3, 5, 3)}, ShapeError, "x.in is 2"),
        ({"weight": torch.zeros(3, 2, 3, 3)}, ShapeError, "x has shape"),
        ({"weight": torch.zeros(3, 2)}, ShapeError, "weight has shape"),
        ({"padding": "valid", "weight": torch.zeros(3, 2, 9)}, ShapeError, "reach beyond the grid"),
        ({"method": "overlap", "x": torch.zeros(2, 5, 5), "weight": torch.zeros(3, 2, 3, 3)}, ValueError, "overlap"),
        ({"method": "shift"}, ValueError, "shift"),
        ({"x": torch.zeros(2, 8, dtype=torch.complex64)}, TypeError, "complex"),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, TypeError, "float64"),
    ],
)
def test_bad_arguments_are_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(3, 2, 3), **change}
    with pytest.raises(error, match=message):
        conv(**arguments)
