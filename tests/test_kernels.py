"""Every kernel against its scalar formula, and every claim against the points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.autograd import forward_ad

from mercer import kernels
from mercer.assemble import assemble
from mercer.claims import Claim
from mercer.errors import ShapeError, StructureError
from tests.catalogue import KERNELS, KernelCase

case_of = pytest.mark.parametrize("case", KERNELS, ids=lambda c: c.name)


def reference(case: KernelCase, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = [[case.formula(a, b) for b in y.tolist()] for a in x.tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(x), len(y))


@case_of
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_formula(case, offset):
    for d in case.dims:
        x, y = case.points(7, d, seed=1), case.points(5, d, seed=2)
        if not case.categories:
            y = y + offset
            x = x + offset
        x[0], x[1] = y[0], y[1] + (0 if case.categories else 1e-9)  # a duplicate and a near duplicate
        want = reference(case, x, y)
        got = case.make(d).block(x, y)
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12 * float(want.abs().max())), (got - want).abs().max()


@case_of
def test_float32_stays_near_float64_away_from_the_origin(case):
    """Rounding 100 + x to float32 costs 4e-6 in x; the formula at the rounded points is met to the same order."""
    d = 10
    kernel = case.make(d)
    stationary = Claim.STATIONARY in kernel.claims
    shift = 100.0 if stationary and not case.categories else 0.0
    x, y = case.points(30, d, 1).float() + shift, case.points(20, d, 2).float() + shift
    x[0], x[1] = y[0], y[1] * (1 + 1e-6)
    want = reference(case, x.double(), y.double())
    got = kernel.block(x, y)
    assert got.dtype == torch.float32
    # a phase takes the raw coordinate: x / period is rounded to eps |x| / period turns, on both sides, in each column
    period = {"Cosine": 2.5, "Periodic": 1.7, "SpectralMixture": 1.0}.get(case.name)
    bound = 1e-5 if period is None else 4 * math.pi * d * 105 / period * 2**-24
    assert (got.double() - want).abs().max() <= bound * want.abs().max()


@case_of
def test_symmetric(case):
    kernel = case.make(3)
    assert Claim.SYMMETRIC in kernel.claims
    x, y = case.points(6, 3, 1), case.points(5, 3, 2)
    assert torch.allclose(kernel.block(x, y), kernel.block(y, x).mT, rtol=1e-13, atol=1e-13)


@case_of
def test_definite(case):
    kernel = case.make(3)
    x = case.points(60, 3, 3)
    gram = kernel.block(x, x)
    values = torch.linalg.eigvalsh(gram)
    if Claim.PSD in kernel.claims:
        assert values[0] >= -1e-12 * values[-1]
        assert Claim.CPD in kernel.claims
    else:
        assert values[0] < -1e-3, "psd is not claimed, so there should be a witness"
        assert Claim.CPD in kernel.claims
        centre = torch.eye(60, dtype=torch.float64) - 1 / 60
        values = torch.linalg.eigvalsh(centre @ gram @ centre)
        assert values[0] >= -1e-12 * values[-1]


def test_wendland_is_definite_up_to_its_dimension_only():
    x = torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64)] * 5)
    assert torch.linalg.eigvalsh(kernels.Wendland(1.7, 0, 5).block(x, x))[0] > -1e-12
    r = torch.cdist(x, x) / 1.7  # the profile of one dimension, (1 - r)_+, is not psd in five
    assert torch.linalg.eigvalsh((1 - r).clamp_min(0))[0] < -1e-3
    with pytest.raises(ShapeError, match="psd up to 3 columns"):
        kernels.Wendland(1.0).block(x, x)


@case_of
def test_stationary_isotropic_unit_diagonal(case):
    kernel, d = case.make(3), 3
    x, y = case.points(6, d, 4), case.points(5, d, 5)
    base = kernel.block(x, y)
    if Claim.STATIONARY in kernel.claims:
        shift = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)
        assert torch.allclose(kernel.block(x + shift, y + shift), base, rtol=1e-11, atol=1e-12)
    if Claim.ISOTROPIC in kernel.claims and case.name != "Gaussian-ard":
        turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
        assert torch.allclose(kernel.block(x @ turn, y @ turn), base, rtol=1e-11, atol=1e-12)
    ones = torch.ones(6, dtype=torch.float64)
    if Claim.UNIT_DIAGONAL in kernel.claims:
        assert torch.allclose(kernel.block(x, x).diagonal(), ones, atol=1e-14)
    assert torch.allclose(kernel.diagonal(x), kernel.block(x, x).diagonal(), rtol=1e-12, atol=1e-13)


@case_of
def test_separable_compact_positive(case):
    kernel, d = case.make(3), 3
    x, y = case.points(6, d, 6), case.points(5, d, 7)
    if Claim.SEPARABLE in kernel.claims:
        want = torch.ones(6, 5, dtype=torch.float64)
        for column in range(d):
            for j in range(5):
                mixed = y[j].repeat(6, 1)
                mixed[:, column] = x[:, column]
                want[:, j] *= kernel.block(mixed, y[j : j + 1])[:, 0] / kernel.diagonal(y[j : j + 1])
        assert torch.allclose(kernel.block(x, y), want * kernel.diagonal(y), rtol=1e-11)
    if Claim.COMPACT in kernel.claims:
        assert (kernel.block(x, y + 1e3) == 0).all()
    if Claim.POSITIVE in kernel.claims:
        assert (kernel.block(x, y) >= 0).all()
        assert torch.allclose(kernel.log_block(x, y).exp(), kernel.block(x, y), rtol=1e-11, atol=1e-300)
    else:
        with pytest.raises(StructureError, match="may be negative"):
            kernel.log_block(x, y)


@case_of
def test_gradients(case):
    kernel = case.make(3)
    x, y = case.points(3, 3, 8).requires_grad_(), case.points(2, 3, 9).requires_grad_()
    parameters = [p for p in kernel.parameters()]
    inputs = tuple(parameters) if case.categories else (x, y, *parameters)
    if not inputs:
        pytest.fail("a kernel without inputs to differentiate is a mistake in the catalogue")

    def value(*_):
        return kernel.block(x, y)

    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6)
    if case.name != "Constant":
        assert torch.autograd.gradgradcheck(value, inputs, eps=1e-6, atol=1e-5)


SMOOTH = [c for c in KERNELS if c.name not in ("Laplace", "Matern12", "Wendland0", "Riesz", "ArcCosine0", "Hamming")]


@pytest.mark.parametrize("case", [c for c in SMOOTH if not c.name.startswith("Riesz")], ids=lambda c: c.name)
def test_mixed_derivative_at_coincident_points(case):
    """d2k/dx dy at x = y by finite differences of the scalar formula: no NaN, no lost term."""
    for d in (2, 6):  # differences, and the expanded form
        p = case.points(1, d, 10)[0]
        x, y = p.clone().requires_grad_(), p.clone().requires_grad_()
        value = case.make(d).block(x[None], y[None])[0, 0] + 0 * (x * y).sum()  # a constant has a derivative, too
        (gx,) = torch.autograd.grad(value, x, create_graph=True)
        (got,) = torch.autograd.grad(gx[0], y)
        got = float(got[0])
        h = 3e-4

        def f(a, b, p=p):
            left, right = p.tolist(), p.tolist()
            left[0], right[0] = left[0] + a, right[0] + b
            return case.formula(left, right)

        want = (f(h, h) - f(h, -h) - f(-h, h) + f(-h, -h)) / (4 * h * h)
        kink = case.name in (
            "Matern32",
            "ArcCosine1",
            "Product",
            "Wendland1",
        )  # |t|^3 terms: differences converge like h
        tolerance = 2e-2 if kink else 1e-5
        assert math.isclose(got, want, rel_tol=tolerance, abs_tol=1e-5), (d, got, want)


@case_of
def test_no_nan_at_coincident_points(case):
    for d in (3, 6):
        x = case.points(4, d, 11)
        x[1] = x[0]
        x.requires_grad_()
        kernel = case.make(d)
        value = kernel.block(x, x).sin().sum() + 0 * x.sum()
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        assert torch.isfinite(g).all()
        if g.requires_grad:
            (h,) = torch.autograd.grad(g.square().sum(), x, allow_unused=True)
            assert h is None or torch.isfinite(h).all()


@case_of
def test_batch_of_points_is_a_batch_of_matrices(case):
    kernel = case.make(3)
    x = torch.stack([case.points(4, 3, s) for s in range(6)]).reshape(2, 3, 4, 3)
    y = torch.stack([case.points(5, 3, s + 9) for s in range(3)])
    got = kernel.block(x, y)
    assert got.shape == (2, 3, 4, 5)
    assert torch.allclose(got[1, 2], kernel.block(x[1, 2], y[2]), rtol=1e-12, atol=1e-13)
    assert kernel.block(x[0, 0, :0], y[0]).shape == (0, 5)
    assert kernel.block(x[0, 0], y[0, :0]).shape == (4, 0)


def test_all_triples_obey_the_algebra():
    """One case of each class; combinations among them, so that sums nest in products and the other way round."""
    cases = list({type(c.make(3)): c for c in KERNELS if not c.categories}.values())
    x, y = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = {c.name: c.make(3) for c in cases}
    value = {name: kernel.block(x, y) for name, kernel in made.items()}
    count = 0
    for a, b, c in itertools.product(made, repeat=3):
        A, B, C = value[a], value[b], value[c]
        for kernel, want in (
            (made[a] + made[b] * made[c], A + B * C),
            ((made[a] + made[b]) * made[c], (A + B) * C),
        ):
            assert torch.allclose(kernel.block(x, y), want, rtol=1e-12, atol=1e-12), (a, b, c)
            count += 1
    assert count == 2 * len(cases) ** 3


def test_claims_of_sums_and_products_hold():
    """Every pair under + and *: what the rules let through is checked on points."""
    cases = [c for c in KERNELS if not c.categories]
    x, y = torch.randn(2, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shift = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)
    for a, b in itertools.combinations_with_replacement(cases, 2):
        for kernel in (a.make(3) + b.make(3), a.make(3) * b.make(3)):
            gram = kernel.block(x, x)
            values = torch.linalg.eigvalsh(gram)
            if Claim.PSD in kernel.claims:
                assert values[0] >= -1e-11 * values.abs().max(), kernel
            if Claim.CPD in kernel.claims:
                centre = torch.eye(12, dtype=torch.float64) - 1 / 12
                centred = torch.linalg.eigvalsh(centre @ gram @ centre)
                assert centred[0] >= -1e-11 * values.abs().max(), kernel
            if Claim.UNIT_DIAGONAL in kernel.claims:
                assert torch.allclose(gram.diagonal(), torch.ones(12, dtype=torch.float64)), kernel
            if Claim.STATIONARY in kernel.claims:
                assert torch.allclose(kernel.block(x + shift, y + shift), kernel.block(x, y), rtol=1e-9, atol=1e-10), (
                    kernel
                )
            if Claim.COMPACT in kernel.claims:
                assert (kernel.block(x, y + 30.0) == 0).all(), kernel
            if Claim.POSITIVE in kernel.claims:
                assert (kernel.block(x, y) >= 0).all(), kernel


def test_a_sum_with_a_cpd_kernel_is_not_psd():
    kernel = kernels.Gaussian() + kernels.Riesz()
    assert Claim.CPD in kernel.claims and Claim.PSD not in kernel.claims
    assert Claim.CPD not in (kernels.Riesz() * kernels.Riesz()).claims


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Gaussian([1.0, 0.5]),
        kernels.Matern(0.5),
        kernels.Matern(1.5, 0.7),
        kernels.Matern(2.5),
        kernels.Laplace(1.2),
        kernels.RationalQuadratic(1.1, 0.8),
        kernels.InverseMultiquadric(1.4),
        kernels.Logistic(0.6),
        kernels.Cosine(2.0),
        kernels.SpectralMixture([0.7, 1.2], [[0.1, 0.2], [0.3, 0.1]], [[0.1, 0.1], [0.2, 0.05]]),
        2.5 * kernels.Gaussian(1.3),
        kernels.Gaussian(1.3).on([1]),
    ],
    ids=repr,
)
def test_spectrum_is_the_fourier_transform(kernel):
    """Bochner: the mean of cos(w . (u(x) - u(y))) over the spectrum is the kernel, within five standard errors."""
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(6, 2, dtype=torch.float64, generator=g), torch.randn(5, 2, dtype=torch.float64, generator=g)
    spectrum = kernel.spectrum()
    u, v = spectrum.coordinates(x), spectrum.coordinates(y)
    w = spectrum.sample(40_000, u.shape[-1], g)
    waves = torch.cos((u[:, None] - v[None]) @ w.T) * spectrum.variance()
    error = (waves.mean(-1) - kernel.block(x, y)).abs()
    assert (error <= 5 * waves.std(-1) / 200 + 1e-12).all(), (error / (waves.std(-1) / 200)).max()


def test_no_spectrum_is_an_error_that_says_what_to_use():
    with pytest.raises(StructureError, match="Nystrom"):
        kernels.Linear().spectrum()


def test_bad_arguments_are_named():
    for build, words in (
        (lambda: kernels.Gaussian(0.0), "lengthscale is 0.0; expected finite numbers > 0"),
        (lambda: kernels.Gaussian([1.0, math.nan]), "lengthscale"),
        (lambda: kernels.Matern(2.0), "expected 0.5, 1.5 or 2.5"),
        (lambda: kernels.Polynomial(0), "integer >= 1"),
        (lambda: kernels.Riesz(2.0), r"in \(0, 2\)"),
        (lambda: kernels.Wendland(1.0, 3), "expected 0, 1 or 2"),
        (lambda: kernels.ArcCosine(2), "expected 0 or 1"),
        (lambda: kernels.Gaussian().on([]), "at least one column"),
        (lambda: kernels.Gaussian().scale(-1.0), "variance is -1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    x = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match=r"y\.d is 4, elsewhere 3"):
        kernels.Gaussian().block(x, torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="lengthscale"):
        kernels.Gaussian([1.0, 2.0]).block(x, x)
    with pytest.raises(ShapeError, match="reads column 5"):
        kernels.Gaussian().on([5]).block(x, x)


FAR = [
    (kernels.Gaussian(0.01), lambda t: math.exp(-t * t / 2e-4)),
    (kernels.Laplace(0.01), lambda t: math.exp(-abs(t) / 0.01)),
    (kernels.Matern(0.5, 0.1), lambda t: math.exp(-abs(t) / 0.1)),
    (kernels.Periodic(1.0, 0.1), lambda t: math.exp(-2 * math.sin(math.pi * t / 0.1) ** 2)),
    (kernels.Cosine(0.1), lambda t: math.cos(2 * math.pi * t / 0.1)),
    (
        kernels.SpectralMixture([1.0], [[10.0]], [[1.0]]),
        lambda t: math.exp(-2 * math.pi**2 * t * t) * math.cos(20 * math.pi * t),
    ),
]


@pytest.mark.parametrize(("kernel", "formula"), FAR, ids=lambda v: repr(v)[:20])
def test_float32_far_from_the_origin_with_short_lengthscales(kernel, formula):
    """Steps of 1/1024 beside an offset of 10,000 are exact in float32: nothing may be lost by scaling them first."""
    steps = torch.arange(-40, 41)
    x = 10_000 + steps.float()[:, None] / 1024
    want = torch.tensor([[formula((a - b) / 1024) for b in steps.tolist()] for a in steps.tolist()])
    assert (kernel.block(x, x).double() - want).abs().max() < 2e-5


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(0.1), kernels.RationalQuadratic(0.1), kernels.Matern(2.5, 0.1)], ids=repr
)
def test_one_far_row_does_not_spoil_the_others(kernel):
    x = 0.05 * torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    x[7] = 1e5
    keep = torch.arange(200) != 7
    got = kernel.block(x, x).double()[keep][:, keep]
    close = kernel.block(x[keep].double(), x[keep].double())
    assert (got - close).abs().max() < 1e-4


def test_not_finite_stays_in_its_row_and_huge_is_zero():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    y = x.clone()
    y[3, 1] = math.nan
    block = kernels.Gaussian().block(x, y)
    assert torch.isnan(block[:, 3]).all() and torch.isfinite(block[:, torch.arange(20) != 3]).all()
    assert torch.equal(kernels.Gaussian().block(1e20 * x, 1e20 * x), torch.eye(20))


def test_near_pairs_of_many_columns_take_little_memory():
    """All pairs near: 400 x 400 x 2,000 columns gathered at once would be 1.3 GB."""
    x = torch.ones(400, 2000)
    assert torch.equal(kernels.Matern(2.5, 10.0).block(x, x), torch.ones(400, 400))
    x[::2, 0] = 2.0
    s = torch.where(torch.arange(400)[:, None] % 2 == torch.arange(400) % 2, 0.0, 1.0)
    assert torch.allclose(kernels.Matern(0.5).block(x, x), torch.exp(-s))


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_log_of_matern_where_the_kernel_underflows(nu):
    kernel = kernels.Matern(nu, 1e-3)
    x, y = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    r = math.sqrt(2 * nu) * torch.cdist(x, y) / 1e-3
    want = torch.log({0.5: torch.ones_like(r), 1.5: 1 + r, 2.5: 1 + r + r * r / 3}[nu]) - r
    assert torch.allclose(kernel.log_block(x, y), want, rtol=1e-10)
    two = kernel + kernel
    assert torch.allclose(two.log_block(x, y), want + math.log(2), rtol=1e-10)
    x, y = (t.detach().requires_grad_() for t in (x, y))
    moderate = kernels.Matern(nu, 0.7)
    assert torch.autograd.gradcheck(lambda x, y: moderate.log_block(x, y), (x, y), atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x, y: moderate.log_block(x, y), (x, y), atol=1e-5)


def test_arccosine_at_zero_and_opposite_vectors():
    for order in (0, 1):
        x = torch.tensor([[0.0, 0, 0], [1, 2, 3], [-1, -2, -3], [2, 4, 6]], dtype=torch.float64, requires_grad=True)
        kernel = kernels.ArcCosine(order)
        (g,) = torch.autograd.grad(kernel.block(x, x).sin().sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x)
        assert torch.isfinite(g).all() and torch.isfinite(h).all() and g.abs().max() < 1e3


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fill_value_is_far_away_and_harms_no_other_row(nu, dtype):
    y = torch.cat([torch.randn(20, 3), torch.full((1, 3), 1e20)]).to(dtype)
    if dtype == torch.float64:
        y[-1] = 1e200
    x = torch.randn(30, 3, dtype=dtype)
    v = torch.ones(21, 1, dtype=dtype)
    found = (kernels.Matern(nu)(x, y) @ v).detach()
    near = kernels.Matern(nu).block(x, y[:-1]).detach() @ v[:-1]
    torch.testing.assert_close(found, near)
    assert not kernels.Matern(nu).log_block(x, y).isnan().any()


@pytest.mark.parametrize("d", [3, 8])
@pytest.mark.parametrize(
    "make", [lambda: kernels.Gaussian(1.3), lambda: kernels.Matern(1.5), lambda: kernels.Periodic()]
)
def test_vmap_of_a_block_is_the_batch(make, d):
    x, y = torch.randn(3, 4, d, dtype=torch.float64), torch.randn(5, d, dtype=torch.float64)
    kernel = make()
    torch.testing.assert_close(torch.func.vmap(lambda a: kernel.block(a, y))(x), kernel.block(x, y))


def test_a_changed_profile_is_not_run_by_the_code_of_its_parent():
    class Cauchy(kernels.Gaussian):
        def profile(self, s):
            return 1 / (1 + s)

    x = torch.randn(9, 3, dtype=torch.float64)
    assert Cauchy().program() is None and kernels.Gaussian().program() is not None
    want = 1 / (1 + torch.cdist(x, x).square())
    torch.testing.assert_close((Cauchy()(x) @ torch.ones(9, 1, dtype=torch.float64)), want.sum(1, keepdim=True))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at its first dual number
def test_forward_mode_is_refused_and_never_dropped():
    x = torch.randn(9, 3)
    kernel, one = kernels.Gaussian(), torch.ones(9, 1)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for task in (
            lambda: kernel(dual, x).dense(),
            lambda: kernel(dual, x) @ one,
            lambda: assemble(kernel, dual, x, products=10**5) @ one,
            lambda: kernel(x, x).normal(forward_ad.make_dual(one, one)),
        ):
            with pytest.raises(NotImplementedError, match="jvp"):
                task()
