"""The compiled core: within its stated error of float64, inside its buffers, the same bits on any number of threads."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mercer.machine.library as library
import mercer.machine.rates as rates
from mercer.app.calibrate import calibrate
from mercer.budget import memory, memory_budget
from mercer.errors import ShapeError
from mercer.kernels import (
    ArcCosine,
    Constant,
    Cosine,
    ExpDot,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Linear,
    Matern,
    Periodic,
    Polynomial,
    RationalQuadratic,
    Riesz,
    Wendland,
)  # fmt: skip
from mercer.machine import core, threads
from mercer.machine.build import build, compiler, cores
from mercer.machine.job import Run, known, prepare
from mercer.machine.schedule import rounds
from mercer.operators import Fused, Normalised, Tiled

ROOT = Path(__file__).parents[1]
NAMES = [name for name in cores() if library.load(name) is not None]
needs_core = pytest.mark.skipif(core() is None, reason="no compiled core was built here")
KERNELS = {
    "gaussian": (lambda d: Gaussian(d**0.5), lambda s, d: np.exp(-s / (2 * d))),
    "matern12": (lambda d: Matern(0.5, d**0.5), lambda s, d: np.exp(-np.sqrt(s / d))),
    "matern32": (
        lambda d: Matern(1.5, d**0.5),
        lambda s, d: (1 + np.sqrt(3 * s / d)) * np.exp(-np.sqrt(3 * s / d)),
    ),
    "matern52": (
        lambda d: Matern(2.5, d**0.5),
        lambda s, d: (1 + np.sqrt(5 * s / d) + 5 * s / (3 * d)) * np.exp(-np.sqrt(5 * s / d)),
    ),
    "rational": (lambda d: RationalQuadratic(d**0.5, 0.7), lambda s, d: (1 + s / (1.4 * d)) ** -0.7),
    "inverse": (lambda d: InverseMultiquadric(d**0.5), lambda s, d: (1 + s / d) ** -0.5),
    "riesz": (lambda d: Riesz(1.0, d**0.5), lambda s, d: -np.sqrt(s / d)),
    "wendland": (
        lambda d: Wendland(4 * d**0.5, 1, d),
        lambda s, d: np.maximum(1 - np.sqrt(s / d) / 4, 0) ** (d // 2 + 3) * ((d // 2 + 3) * np.sqrt(s / d) / 4 + 1),
    ),
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def exact_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances from differences, in float64."""
    return np.stack([np.square(row[None, :] - y).sum(-1) for row in x])


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [1, 3, 4, 5, 16, 100, 2000])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1e4])
def test_products_stay_within_the_stated_error(name, d, offset, monkeypatch):
    """Every profile at every offset, with duplicates and near duplicates, against differences in float64."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, y, v = draw(40, d), draw(75, d, seed=1), draw(75, 2, seed=2)
    y[:8], y[8:16] = x[:8], x[8:16] + 1e-3 * draw(8, d, seed=3)
    for dtype, eps in ((np.float32, 1.2e-7), (np.float64, 2.3e-16)):
        a, b, w = (t.astype(dtype) for t in (x + offset, y + offset, v))
        s = exact_squares(a.astype(float), b.astype(float))
        middle = np.median(b.astype(float), axis=0)
        size = np.square(a - middle).sum(1)[:, None] + np.square(b - middle).sum(1)
        for case, (make, formula) in KERNELS.items():
            if d > 100 and case == "wendland":
                continue  # (1 - r)^1000 is a matter of rounding alone
            found = (Fused(Tiled(make(d), *map(torch.from_numpy, (a, b)))) @ torch.from_numpy(w)).detach().numpy()
            # the statistic's error as docs/machine.md states it, through the slope of this profile; then the values
            wrong = (d + 4) * eps * (s if d <= 4 else size)
            if d > 4 and case in ("matern12", "riesz", "wendland"):
                wrong = np.where(s < (1e-3 if eps > 1e-10 else 1e-6) * size, (d + 4) * eps * s, wrong)
            step = np.abs(formula(s + wrong, d) - formula(np.maximum(s - wrong, 0), d))
            power = 12 if case == "wendland" else 6
            allowed = (step + power * eps * (np.abs(formula(s, d)) + 0.1)) @ np.abs(w.astype(float))
            gap = np.abs(found - formula(s, d) @ w.astype(float))
            assert (gap <= allowed).all(), (case, dtype, float((gap / allowed).max()))


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(name, dtype, monkeypatch):
    """Denormal and huge points, tiny and huge lengthscales, far pairs: the right limit, never NaN."""
    monkeypatch.setenv("MERCER_CORE", name)
    tiny = torch.finfo(dtype).tiny / 8
    x = torch.tensor([[0.0, 0.0], [tiny, 0.0], [1.0, -1.0], [1e12, 1e12]], dtype=dtype)
    unit = torch.eye(4, dtype=dtype)
    for kernel in (Gaussian(1.0), Matern(0.5), Matern(1.5), Matern(2.5), Laplace(), Wendland(0.5), RationalQuadratic()):
        found = Fused(Tiled(kernel, x, x)) @ unit
        wanted = kernel.block(x.double(), x.double())
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=2e-7)
    near = Fused(Tiled(Gaussian(1e-6), x, x)) @ unit
    assert torch.equal(near, torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=dtype))
    wide = Fused(Tiled(Gaussian(1e15), x, x)) @ unit
    torch.testing.assert_close(wide, torch.ones_like(wide), rtol=0, atol=1e-5)
    far = torch.tensor([[0.0], [torch.finfo(dtype).max ** 0.6]], dtype=dtype)
    assert torch.equal(Fused(Tiled(Gaussian(1e-3), far, far)) @ torch.eye(2, dtype=dtype), torch.eye(2, dtype=dtype))


PROGRAMS = [
    Gaussian([0.5, 1.0, 2.0]), Laplace(0.8), Matern(0.5, 0.8), Matern(1.5, 2.0), Matern(2.5),
    RationalQuadratic(0.9, 0.7), InverseMultiquadric(1.3), Riesz(), Wendland(3.0, 0), Wendland(3.0, 1),
    Wendland(3.0, 2), Linear(2.0), Polynomial(3, 1.5, 0.7), ExpDot(1.2), ExpDot(), Periodic(1.0, 2.0),
    Cosine(3.0), Constant(0.7) + Gaussian(), ArcCosine(0), 0.5 * ArcCosine(1) + Gaussian(),
    2.0 * Matern(1.5) * Periodic() + Linear(), Gaussian().on([0, 2]) * Matern(0.5).on(1) + 0.3 * RationalQuadratic(),
    Gaussian().warp(torch.nn.Linear(3, 2, dtype=torch.float64)),
]  # fmt: skip


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", PROGRAMS, ids=repr)
def test_gradients_of_every_program(name, kernel, monkeypatch):
    """By x, y, v and every parameter, against autograd of the kernel's own block; for K(x, x) too."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, y, v = (torch.from_numpy(draw(*shape, seed=4)).requires_grad_() for shape in ((41, 3), (29, 3), (29, 2)))
    for left, right, rhs in ((x, y, v), (x, x, torch.from_numpy(draw(41, 1, seed=5)).requires_grad_())):
        weight = torch.from_numpy(draw(41, rhs.shape[1], seed=6))
        by = [left, rhs, *([right] if right is not left else []), *kernel.parameters()]
        op = Fused(Tiled(kernel, left, right))
        assert known(kernel.program())
        found = torch.autograd.grad(((op @ rhs) * weight).sum(), by, allow_unused=True)
        wanted = torch.autograd.grad(((kernel.block(left, right) @ rhs) * weight).sum(), by, allow_unused=True)
        for got, true in zip(found, wanted, strict=True):
            true = torch.zeros_like(got) if true is None else true
            torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9 * float(true.abs().max()) + 1e-12)


@needs_core
def test_second_gradients_come_from_the_definition():
    x = torch.from_numpy(draw(6, 2)).requires_grad_()
    v = torch.from_numpy(draw(6, 1, seed=1)).requires_grad_()
    kernel = Matern(2.5, 0.7)
    assert torch.autograd.gradgradcheck(lambda x, v: Fused(Tiled(kernel, x, x)) @ v, (x, v))


@needs_core
def test_any_number_of_threads_gives_the_same_bits():
    x, v = torch.from_numpy(draw(3000, 5)).float(), torch.from_numpy(draw(3000, 3, seed=1)).float()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            out = Gaussian(2.0)(leaf) @ v
            out.square().sum().backward()
            found.append((out.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for out, grad in found[1:]:
        assert torch.equal(out, found[0][0]) and torch.equal(grad, found[0][1])


@needs_core
def test_products_in_parallel_threads():
    x, v = torch.from_numpy(draw(800, 3)), torch.from_numpy(draw(800, 1, seed=1))
    wanted, found = Gaussian()(x) @ v, [None] * 6

    def work(i: int) -> None:
        found[i] = Gaussian()(x) @ v

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(f, wanted) for f in found)


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n, m, r", [(1, 1, 1), (5, 3, 2), (7, 64, 1), (65, 129, 3), (6, 1000, 5), (100, 1, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffers_are_poisoned_and_only_the_outputs_change(name, n, m, r, dtype, monkeypatch):
    """Inputs lie between NaNs and outputs between sentinels, rows are strided: nothing outside is read or written."""
    monkeypatch.setenv("MERCER_CORE", name)

    def guarded(rows: int, columns: int, fill: float) -> torch.Tensor:
        return torch.full((rows + 4, columns + 3), fill, dtype=dtype)

    kernel = 0.5 * Matern(1.5) + Gaussian([0.5, 1.0, 2.0, 1.0, 3.0]) * Laplace(3.0)
    held = {}
    for key, rows, columns, seed in (("x", n, 5, 0), ("y", m, 5, 1), ("v", m, r, 2), ("g", n, r, 3)):
        whole = guarded(rows, columns, float("nan"))
        inside = whole[2 : 2 + rows, 1 : 1 + columns]
        inside.copy_(torch.from_numpy(draw(rows, columns, seed=seed)))
        held[key] = inside
    factors, parameters = prepare(kernel.program(), held["x"], held["y"])
    run = Run(kernel.program(), factors, parameters)
    out = guarded(n, r, 7.5)
    target = out[2 : 2 + n, 1 : 1 + r]
    run._launch("product", n, held["v"], out=target)
    tile = kernel.block(held["x"].double(), held["y"].double())
    torch.testing.assert_close(target.double(), (tile @ held["v"].double()).detach(), rtol=2e-5, atol=1e-5)
    kept = out.clone()
    kept[2 : 2 + n, 1 : 1 + r] = 7.5
    assert torch.equal(kept, torch.full_like(kept, 7.5))
    slopes, _ = run.gradient(held["g"], held["v"], [True] * len(factors))
    assert all(torch.isfinite(s).all() for s in slopes)


@needs_core
def test_ctrl_c_stops_a_long_product():
    """A product of minutes ends within seconds of the signal, as KeyboardInterrupt."""
    script = """
import torch, time
from mercer.kernels import Gaussian
torch.set_num_threads(1)
x = torch.randn(400_000, 30); v = torch.randn(400_000, 4)
Gaussian(5.0)(x[:100]) @ v[:100]
print("go", flush=True)
try:
    Gaussian(5.0)(x) @ v
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline().strip() == "go"
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert out.strip() == "stopped"


def turned(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of vectors at all angles, among them 0, pi and what is next to them, and zero vectors."""
    x, y = draw(20, d, seed=seed), draw(40, d, seed=seed + 1)
    y[:5], y[5:10] = x[:5], -3 * x[5:10]
    for k in range(10):
        y[10 + k] = (-1) ** k * x[k] + 10.0 ** (-k) * draw(d, seed=k)
    x[19] = y[39] = 0
    return x, y


@needs_core
@pytest.mark.parametrize("name", [*NAMES, "tiles"])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 30, 400])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_angles_are_exact_at_both_ends(name, d, dtype, monkeypatch):
    """ArcCosine against Kahan's formula for the angle in extended precision: within docs/machine.md at 0 and at pi."""
    x, y = (t.astype(dtype) for t in turned(d, d))
    a, b = x.astype(np.longdouble), y.astype(np.longdouble)
    na, nb = (np.sqrt(np.square(t).sum(1)) for t in (a, b))
    left, right = a[:, None] * nb[None, :, None], b[None] * na[:, None, None]
    angle = 2 * np.arctan2(*(np.sqrt(np.square(t).sum(-1)) for t in (left - right, left + right)))
    size, eps = na[:, None] * nb, np.finfo(dtype).eps
    pi = np.longdouble("3.14159265358979323846")
    zero = np.where(size > 0, 1 - angle / pi, 0.5)
    one = size * (np.sin(angle) + (pi - angle) * np.cos(angle)) / pi
    sine = np.where(np.abs(np.cos(angle)) > 1 - (1e-3 if dtype == np.float32 else 1e-6), 1, np.sin(angle))
    wrong = (4 if name == "tiles" else 1) * (d + 4) * eps / np.where(size > 0, sine, 1)  # tiles centre: |u|^2 to 4
    for order, wanted, allowed in ((0, zero, wrong + 6 * eps), (1, one, size * (2 * d + 12) * eps)):
        tiled = Tiled(ArcCosine(order), torch.from_numpy(x), torch.from_numpy(y))
        if name != "tiles":
            monkeypatch.setenv("MERCER_CORE", name)
        with torch.no_grad():
            found = (tiled if name == "tiles" else Fused(tiled)).dense().numpy()
        gap = np.abs(found - wanted)
        assert (gap <= allowed).all(), (order, float((gap / np.where(allowed > 0, allowed, 1)).max()))


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_slopes_of_angles_near_the_ends(name, monkeypatch):
    """By points that are nearly parallel, opposite or zero: the closed form, whose cos t and sin t do not cancel."""
    monkeypatch.setenv("MERCER_CORE", name)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    for turn in (1e-9, 1e-4, 1.0, np.pi - 1e-4, np.pi - 1e-9):
        there = torch.tensor([[np.cos(turn) - 2 * np.sin(turn), 2 * np.cos(turn) + np.sin(turn)]], dtype=torch.float64)
        (slope,) = torch.autograd.grad((Fused(Tiled(ArcCosine(0), x, there)) @ there[:, :1]).sum(), x)
        across = torch.tensor([[-2.0, 1.0]], dtype=torch.float64) / 5 / np.pi  # 1 - t / pi grows as x turns towards y
        torch.testing.assert_close(slope, across * there[0, 0], rtol=2e-16 / min(turn, np.pi - turn) + 1e-13, atol=0)
    for order in (0, 1):
        nothing = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(
            (Fused(Tiled(ArcCosine(order), x, nothing)) @ torch.ones(1, 1).double()).sum(), nothing
        )
        assert torch.equal(slope[0], torch.zeros(1, 2, dtype=torch.float64))


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kernel", [ExpDot(1.0), Polynomial(2), Linear(), ArcCosine(0), ArcCosine(1), Gaussian()], ids=repr
)
def test_nan_is_never_lost(name, kernel, monkeypatch):
    """A NaN in a point is in every product that meets it, and in no other."""
    monkeypatch.setenv("MERCER_CORE", name)
    x = torch.from_numpy(draw(9, 3)).float()
    x[4, 1] = torch.nan
    y, v = torch.from_numpy(draw(40, 3, seed=1)).float(), torch.ones(40, 1)
    assert torch.equal((Fused(Tiled(kernel, x, y)) @ v).isnan()[:, 0], torch.arange(9) == 4)
    assert (Fused(Tiled(kernel, y, x)) @ v[:9]).isnan().all()


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_softmax_in_one_pass(name, dtype, causal, size, monkeypatch):
    """Scores to +-10^4, growing along a row: values and first gradients against float64, in one call of the core."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, y, v, w = (draw(*s, seed=i) for i, s in enumerate(((2, 37, 3), (700, 3), (700, 2), (2, 37, 2))))
    x, y = size * x, size * y[np.argsort(y[:, 0])]
    leaves = [torch.from_numpy(t).to(dtype).requires_grad_() for t in (x, y, v)]
    a, b, c = (t.detach().double().numpy() for t in leaves)
    scores = a @ b.T
    scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf) if causal else scores
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    called: list[str] = []
    real = Run._launch
    monkeypatch.setattr(
        Run, "_launch", lambda run, what, *rest, **more: called.append(what) or real(run, what, *rest, **more)
    )
    op = Fused(Tiled(ExpDot(1.0), leaves[0], leaves[1]))
    found = (op.tril() if causal else op).normalised() @ leaves[2]
    assert called == ["softmax"]
    wrong = 8 * torch.finfo(dtype).eps * (1 + (np.abs(a) @ np.abs(b).T).max())  # of exponents, and so of ratios
    out = p @ c
    assert np.abs(found.detach().numpy() - out).max() <= 2 * wrong * np.abs(c).max()
    slopes = torch.autograd.grad((found * torch.from_numpy(w).to(dtype)).sum(), leaves)
    inner = p * (w @ c.T - (w * out).sum(-1, keepdims=True))
    wanted = (inner @ b, (np.swapaxes(inner, -1, -2) @ a).sum(0), (np.swapaxes(p, -1, -2) @ w).sum(0))
    for got, true, scale in zip(slopes, wanted, (size, 37 * size, 37), strict=True):
        assert np.abs(got.numpy() - true).max() <= 60 * wrong * scale
    if dtype == torch.float64 and size == 1.0:
        x2, y2, v2 = (t.detach().requires_grad_() for t in (leaves[0][0, :4], leaves[1][:5], leaves[2][:5]))
        assert torch.autograd.gradgradcheck(
            lambda x, y, v: Fused(Tiled(ExpDot(1.0), x, y)).normalised() @ v, (x2, y2, v2)
        )


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", [Polynomial(3), Polynomial(3) * Gaussian(1e20), ExpDot(1.0)], ids=repr)
def test_what_no_row_sees_may_overflow(name, kernel, monkeypatch):
    """A column beyond the causal part whose values are infinite: gradients are those without it."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, y, v = (torch.from_numpy(draw(*s, seed=i)).float() for i, s in enumerate(((5, 2), (6, 2), (6, 2))))
    y[5] = 1e25
    found, wanted = [], []
    for m, to in ((6, found), (5, wanted)):
        leaves = [x.clone().requires_grad_(), y[:m].clone().requires_grad_(), *kernel.parameters()]
        out = Fused(Tiled(kernel, leaves[0], leaves[1])).tril() @ v[:m]
        to += [out, *torch.autograd.grad(out.square().sum(), leaves)]
    assert torch.equal(found[2][5], torch.zeros(2))
    for got, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(got[: len(true)] if got.ndim else got, true)


@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_softmax_of_very_small_numbers(name, monkeypatch):
    """Rows whose largest score is -10^4: the columns that fill a panel up are not among them, in gradients too."""
    monkeypatch.setenv("MERCER_CORE", name)
    x = (100 + torch.from_numpy(draw(7, 2))).requires_grad_()
    y, v = (-50 - torch.from_numpy(draw(13, 2, seed=1))).requires_grad_(), torch.from_numpy(draw(13, 1, seed=2))
    kernel = ExpDot([1.0, 1.0])
    scores = (x / kernel.lengthscale) @ (y / kernel.lengthscale).mT
    op = Fused(Tiled(kernel, x, y))
    for found in (op.normalised() @ v, Normalised(op.stabilised()) @ v):
        wanted = scores.softmax(-1) @ v
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        by = (x, y, *kernel.parameters())
        pairs = zip(*(torch.autograd.grad(t.sum(), by, retain_graph=True) for t in (found, wanted)), strict=True)
        for got, true in pairs:
            torch.testing.assert_close(got, true, rtol=1e-7, atol=1e-7)


@needs_core
def test_what_does_not_fit_together_is_the_definition_s_to_refuse():
    """Operators made by hand: points of other widths or precisions never reach the core, which would misread them."""
    x, y, v = torch.from_numpy(draw(50, 3)), torch.from_numpy(draw(40, 2, seed=1)), torch.ones(40, 1).double()
    with pytest.raises(ShapeError):
        _ = Fused(Tiled(Gaussian(), x, y)) @ v
    x, y = torch.full((50, 3), 0.5), torch.from_numpy(draw(40, 3, seed=1))
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_launch", lambda run, what, *rest, **more: called.append(what))
        found = Fused(Tiled(Gaussian(), x, y)) @ v
    assert not called
    torch.testing.assert_close(found, Gaussian().block(x.double(), y) @ v)
    weights, one = torch.from_numpy(draw(40, 2, seed=3)), Fused(Tiled(Gaussian(), y, y))
    k = Gaussian().block(y, y)
    with torch.no_grad():
        torch.testing.assert_close(one.normal(v, weights), k.mT @ (weights * (k @ v)))  # one column, two weightings


@needs_core
def test_softmax_of_rows_without_columns_is_zero():
    """Rows of an upper triangle beyond the last column have nothing to average."""
    x, y = torch.from_numpy(draw(9, 2)), torch.from_numpy(draw(4, 2, seed=1))
    found = Fused(Tiled(ExpDot(1.0), x, y, part="upper")).normalised() @ torch.ones(4, 1, dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], (torch.arange(9) < 4).double())


@needs_core
def test_log_sums_do_not_overflow():
    x, y = 40 * torch.from_numpy(draw(9, 4)), 40 * torch.from_numpy(draw(300, 4, seed=1))
    found = Fused(Tiled(ExpDot(1.0), x, y)).stabilised()
    assert isinstance(found, Fused)
    torch.testing.assert_close(found.tiled.log_scale[:, 0], torch.logsumexp(x @ y.mT, -1), rtol=1e-13, atol=0)


def test_without_a_core_tiles_do_the_work(monkeypatch, caplog):
    x, v = torch.from_numpy(draw(20, 3)), torch.from_numpy(draw(20, 1, seed=1))
    wanted = Gaussian().block(x, x) @ v
    monkeypatch.setenv("MERCER_CORE", "off")
    assert core() is None and isinstance(Gaussian()(x), Tiled)
    torch.testing.assert_close(Gaussian()(x) @ v, wanted)
    monkeypatch.setenv("MERCER_CORE", "avx")
    library.load.cache_clear()
    assert core() is None and "MERCER_CORE is 'avx': expected one of avx512, avx2, portable, off" in caplog.text
    assert core() is None and isinstance(Gaussian()(x), Tiled)


@pytest.mark.skipif(compiler() is None or not sys.platform.startswith("linux"), reason="needs a compiler on Linux")
def test_the_sanitisers_find_nothing(tmp_path):
    """The tests of bounds and gradients again, on a core compiled with AddressSanitizer and UBSan."""
    runtime = subprocess.run(
        [str(compiler()), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()  # fmt: skip
    if not Path(runtime).is_absolute():
        pytest.skip("this compiler has no AddressSanitizer")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O0")
    widest = NAMES[0] if NAMES else "portable"
    library_path = build(tmp_path, flags, only=widest)[0]
    script = f"""
import ctypes, torch
import mercer.machine.library as library
library.load = lambda name: ctypes.CDLL({str(library_path)!r})
from mercer.operators import Fused, Tiled
from mercer.kernels import *
torch.set_num_threads(1)
kernels = [Gaussian(), Gaussian([1.0, 2.0, 1.0, 1.0, 1.0, 0.5]), Laplace(), Matern(0.5), RationalQuadratic(),
           ExpDot(1.0), Polynomial(2), ArcCosine(0), ArcCosine(1),
           Wendland(3.0, 1, 7), 0.5 * Matern(2.5) + Linear() * Riesz() + Constant()]
for dtype in (torch.float32, torch.float64):
    for n, m, d, r in ((1, 1, 1, 1), (7, 65, 3, 1), (131, 67, 6, 3), (5, 700, 6, 9), (50, 1, 6, 1)):
        for kernel in kernels:
            if isinstance(kernel, Gaussian) and kernel.lengthscale.ndim and d != 6:
                continue
            x, y = (torch.randn(k, d, dtype=dtype).requires_grad_() for k in (n, m))
            v = torch.randn(m, r, dtype=dtype).requires_grad_()
            (Fused(Tiled(kernel, x, y)) @ v).square().sum().backward()
            (Fused(Tiled(kernel, x, y)).tril() @ v).square().sum().backward()
            with torch.no_grad():
                Fused(Tiled(kernel, x, y)).normal(v)
                Fused(Tiled(kernel, x, y)).dense()
                Fused(Tiled(kernel, x, x)) @ torch.ones(n, r, dtype=dtype)
        (Fused(Tiled(ExpDot(), x, y)).normalised() @ v).square().sum().backward()
print("clean")
"""
    env = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "clean", done.stderr[-3000:]


def test_the_core_of_another_version_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(library, "VERSION", -1)
    library.load.cache_clear()
    try:
        name = library.wanted()
        assert library.load(name) is None
        if NAMES:
            assert "another version" in caplog.text
    finally:
        library.load.cache_clear()


def test_structures_match_the_source():
    """The structures that ctypes passes have the fields of core.cpp, in order."""
    source = (ROOT / "src/mercer/machine/core.cpp").read_text()
    for kind in (library.Factor, library.Step, library.Job):
        body = source.split(f"struct {kind.__name__} {{", 1)[1].split("\n};", 1)[0]
        names = []
        for line in body.splitlines():
            for statement in line.split("//")[0].split(";"):
                words = statement.replace("*", " ").replace("[6]", " ").replace("volatile", " ").split()
                words = [w for w in words if w != "const"]
                if len(words) > 1:
                    names += [w.strip(",") for w in words[1:]]
        assert names == [field[0] for field in kind._fields_]
        assert ctypes.sizeof(kind) > 0


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", PROGRAMS[:20], ids=repr)
def test_the_matrix_itself(name, kernel, monkeypatch):
    """dense() from the core equals the definition; under autograd it is the definition."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, y = torch.from_numpy(draw(2, 13, 3)), torch.from_numpy(draw(150, 3, seed=1))
    op = Fused(Tiled(kernel, x, y))
    with torch.no_grad():
        torch.testing.assert_close(op.dense(), kernel.block(x, y), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(op.tril().dense(), kernel.block(x, y).tril(), rtol=1e-12, atol=1e-14)
    assert op.dense().requires_grad == any(p.requires_grad for p in kernel.parameters())


def test_rates_are_measured_kept_and_read_again(monkeypatch, tmp_path):
    """A calibration writes this machine's rates; damaged files are not used, and say so; other versions have others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {
        "SIZES": {Tiled: 96, Fused: 96},
        "MANY": 2048,
        "WIDE": 96,
        "LARGE": 2**14,
        "LENGTH": 2**8,
        "CHANNELS": 4,
        "SIDE": 20,
    }
    for name, size in sizes.items():
        monkeypatch.setattr(f"mercer.app.calibrate.{name}", size)
    assert rates.rates().source.startswith("usual rates")
    file = calibrate()
    assert file.parent == tmp_path / "mercer" and "measured" in rates.rates().source
    held = json.loads(file.read_text())
    measured = [name for name in rates.DEFAULTS if name in held["rates"]]
    if core() is not None:
        assert set(rates.DEFAULTS) - set(held["rates"]) == {"tiles.other"}  # a kernel without a program
    assert all(0 < ns < 1e6 for pair in held["rates"].values() for ns in pair)
    name = measured[0]
    assert rates.rates()(name, torch.float64) == held["rates"][name][1]
    held["rates"][name] = [-1.0, 2.0]
    file.write_text(json.dumps(held))
    rates._read.cache_clear()
    assert "damaged" in rates.rates().source and rates.rates()(name, torch.float32) == rates.DEFAULTS[name][0]
    monkeypatch.setenv("MERCER_CORE", "off")
    assert rates.path() != file
    rates._read.cache_clear()


def test_predicted_seconds_grow_as_the_work_does():
    """Twice the pairs, columns of points and right-hand sides cost more; threads share; kernels differ."""
    x, wide = torch.zeros(2000, 3), torch.zeros(2000, 200)
    gaussian, matern = Tiled(Gaussian(), x, x), Tiled(Matern(2.5), x, x)
    assert gaussian.cost(8).seconds() > gaussian.cost(1).seconds()
    assert Tiled(Gaussian(), wide, wide).cost().seconds() > gaussian.cost().seconds()
    assert matern.cost().seconds() > gaussian.cost().seconds()
    ratio = Tiled(Gaussian(), torch.zeros(4000, 3), x).cost().seconds() / gaussian.cost().seconds()
    assert 1.8 < ratio < 2.1
    if core() is not None:
        assert Fused(gaussian).cost().seconds() < gaussian.cost().seconds()
        large, before = Fused(Tiled(Gaussian(), x.new_zeros(90_000, 3), x)), torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = large.cost().seconds()
            torch.set_num_threads(4)
            assert 3 < alone / large.cost().seconds() < 4
        finally:
            torch.set_num_threads(before)


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n, r", [(3000, 1), (3001, 3), (5017, 1)])
def test_half_of_a_symmetric_matrix_does_for_the_whole(name, n, r, monkeypatch):
    """K(x, x) v from half of the entries equals K(x, y) v of equal points, and the definition on some rows."""
    monkeypatch.setenv("MERCER_CORE", name)
    x, v = torch.from_numpy(draw(n, 3)), torch.from_numpy(draw(n, r, seed=1))
    rows = torch.arange(0, n, 97)
    for kernel in (Gaussian(0.7), Laplace(), 0.5 * Matern(1.5) + Linear() * Gaussian().on([0, 1])):
        with torch.no_grad():
            whole = Fused(Tiled(kernel, x, x)) @ v
            torch.testing.assert_close(whole, Fused(Tiled(kernel, x, x.clone())) @ v, rtol=1e-11, atol=1e-10)
            torch.testing.assert_close(whole[rows], kernel.block(x[rows], x) @ v, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("count", range(1, 12))
def test_every_pair_of_blocks_meets_once_and_never_twice_in_a_round(count):
    met_in = list(rounds(count))
    met = sorted(pair for pairs in met_in for pair in pairs)
    assert met == [(i, j) for i in range(count) for j in range(i + 1, count)]
    for pairs in met_in:
        busy = [block for pair in pairs for block in pair]
        assert len(busy) == len(set(busy))


@needs_core
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n, m, r", [(1, 1, 1), (2000, 300, 1), (1501, 777, 3), (13, 900, 2)])
def test_normal_equations_form_each_entry_once(name, n, m, r, monkeypatch):
    """K^T (weights * (K v)) against the dense matrix, with and without weights, in both precisions."""
    monkeypatch.setenv("MERCER_CORE", name)
    for kernel in (Gaussian(1.5), Laplace(2.0), 0.5 * Matern(1.5) + Linear() * Gaussian().on([0, 1, 2, 3, 4, 5])):
        x, y, v, w = (torch.from_numpy(draw(*s, seed=i)) for i, s in enumerate(((n, 6), (m, 6), (m, r), (n, r))))
        with torch.no_grad():
            k = kernel.block(x, y)
            for weights in (None, w.square()):
                wanted = k.mT @ (k @ v * (1 if weights is None else weights))
                found = Fused(Tiled(kernel, x, y)).normal(v, weights)
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))
                small = None if weights is None else weights.float()
                found = Fused(Tiled(kernel, x.float(), y.float())).normal(v.float(), small).double()
                assert float((found - wanted).norm() / wanted.norm()) < 2e-5
    x = torch.from_numpy(draw(8, 2)).requires_grad_()
    kernel, v = Gaussian(), torch.from_numpy(draw(8, 1, seed=1))
    (slope,) = torch.autograd.grad(Fused(Tiled(kernel, x, x)).normal(v).sum(), x)
    (true,) = torch.autograd.grad((kernel.block(x, x).mT @ (kernel.block(x, x) @ v)).sum(), x)
    torch.testing.assert_close(slope, true)


@pytest.mark.parametrize("threads", [1, 2])
def test_work_inside_a_task_does_not_wait_for_the_pool(threads):
    """A warp that itself makes large kernel products, inside the tiles of another: it ends, and is right."""
    script = f"""
import torch
from mercer.kernels import Gaussian, Matern
from mercer.operators import Tiled
torch.set_num_threads({threads})
memory = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
class Attends(torch.nn.Module):
    def forward(self, x):
        return Tiled(Gaussian(), x, memory.repeat(60, 1)).normalised() @ memory.repeat(60, 1)
x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
kernel = Matern(1.5).warp(Attends())
with torch.no_grad():
    found = Tiled(kernel, x, x[:900]) @ torch.ones(900, 1, dtype=torch.float64)
    print(float((found - kernel.block(x, x[:900]).sum(1, keepdim=True)).abs().max()) < 1e-9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_a_pure_wheel_holds_no_core(tmp_path):
    """MERCER_CORE_BUILD=off names no platform and leaves out what another build left in the tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "MERCER_CORE_BUILD": "off"}, check=True, capture_output=True)
    (made,) = tmp_path.iterdir()
    with zipfile.ZipFile(made) as held:
        names = held.namelist()
    assert made.name.endswith("-py3-none-any.whl") and "mercer/machine/core.cpp" in names
    assert not [name for name in names if Path(name).suffix in (".so", ".dylib", ".dll")]


@pytest.mark.skipif(not NAMES or not sys.platform.startswith("linux"), reason="reads cores for Linux")
def test_cores_ask_for_an_old_c_library_alone():
    """What the dynamic linker is asked for, read by another hand: glibc 2.17 or older, and no other library."""
    folder = Path(library.__file__).parent
    found = [
        subprocess.run(["readelf", "-dVW", path], capture_output=True, text=True).stdout
        for path in folder.glob("core_*.so")
    ]
    needed = {word for text in found for word in re.findall(r"Shared library: \[(.*?)\]", text)}
    minors = {int(minor) for text in found for minor in re.findall(r"Name: GLIBC_2\.(\d+)", text)}
    assert needed == {"libc.so.6"} and max(minors) <= 17


def test_limits_match_the_source():
    source = (ROOT / "src/mercer/machine/core.cpp").read_text()
    names = {"DEPTH": library.DEPTH, "FACTORS": library.FACTORS, "STEPS": library.STEPS}
    assert all(f"{name} = {value}" in source for name, value in names.items())
    listed = source.split("enum Op : int32_t {", 1)[1].split("}", 1)[0].replace("\n", " ")
    assert [name.strip().lower().replace("_", "") for name in listed.split(",")] == list(library.OPS)


@needs_core
@pytest.mark.parametrize("kernel", [Matern(2.5, 0.7), ExpDot(1.0)], ids=repr)
def test_batches_of_points_and_of_vectors_meet_in_gradients(kernel):
    """Whatever has a batch and whatever has none, by points, vectors and lengthscale alone, against the block."""
    for points, vectors in (((2,), ()), ((2,), (3, 1)), ((2, 1), (3,)), ((), (2,)), ((1,), (2,)), ((2,), None)):
        x = torch.from_numpy(draw(*points, 12, 3))
        v = torch.from_numpy(draw(12) if vectors is None else draw(*vectors, 12, 2, seed=1))
        for leaves in ((x, v), (x,), (v,), ()):
            x.requires_grad_(any(t is x for t in leaves)), v.requires_grad_(any(t is v for t in leaves))
            op, k = Fused(Tiled(kernel, x, x)), kernel.block(x, x)
            pairs = [(op, k), (op.mT, k.mT), (op.tril(), k.tril()), (op.normalised(), k / k.sum(-1, keepdim=True))]
            for lazy, matrix in pairs:
                by = [*leaves, *kernel.parameters()]
                found = torch.autograd.grad((lazy @ v).sin().sum(), by)
                wanted = torch.autograd.grad((matrix @ v).sin().sum(), by, retain_graph=True)
                for got, true in zip(found, wanted, strict=True):
                    torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-10)


@needs_core
def test_sums_of_a_symmetric_product_stay_in_the_budget(monkeypatch):
    """Their memory is counted, and the right-hand sides are split where it would be too much: the same bits."""
    n, rhs = 3000, 40
    x, v = torch.from_numpy(draw(n, 2)), torch.from_numpy(draw(n, rhs, seed=1))
    op, held = Fused(Tiled(Gaussian(0.7), x, x)), 2.0**22 * torch.get_num_threads()
    seen, product = [], Run.product
    monkeypatch.setattr(Run, "product", lambda run, v, n: seen.append(v.shape[-1]) or product(run, v, n))
    with torch.no_grad():
        whole = op @ v
        assert seen == [rhs] and op.cost(rhs).memory == held + 8 * n * rhs
        with memory(int(held) + 8 * n * 12 + 5):
            assert torch.equal(op @ v, whole)
            assert seen == [rhs, 12, 12, 12, 4] and op.cost(rhs).memory == held + 8 * n * 12
    wide = torch.zeros(9, 10**6, dtype=torch.float64)
    assert Fused(Tiled(Gaussian(), wide, wide.clone())).cost().memory > 1e9 * torch.get_num_threads()


@needs_core
def test_sums_of_normal_equations_stay_in_the_budget(monkeypatch):
    """One pass holds sums for each stretch of rows; where they are too much, two products do."""
    x, y, v = (torch.from_numpy(draw(*s, seed=i)) for i, s in enumerate(((300, 2), (900, 2), (900, 50))))
    op, called, normal = Fused(Tiled(Gaussian(), x, y)), [], Run.normal
    monkeypatch.setattr(Run, "normal", lambda run, *rest: called.append(1) or normal(run, *rest))
    with torch.no_grad():
        whole = op.normal(v)
        assert called == [1]
        with memory(2**22 * torch.get_num_threads() + 700_000):  # two stretches of 900 x 50 sums take 720,000 bytes
            torch.testing.assert_close(op.normal(v), whole, rtol=1e-11, atol=1e-10)
    assert called == [1]


def test_the_memory_budget_reaches_the_threads():
    seen: list[int] = []
    with memory(12_345_678):
        threads.run([lambda: seen.append(memory_budget()) for _ in range(3)], threads.Stop())
    assert seen == [12_345_678] * 3


def test_rates_belong_to_a_version_of_mercer(monkeypatch):
    """What another version measured may mean something else: it has a file of its own."""
    now = rates.path()
    monkeypatch.setattr(rates, "_installed", lambda: "0.0.0")
    assert rates.path() != now and rates.path().parent == now.parent
