"""Random features against their kernels: error laws typed from the papers, and what a feature map must keep."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import RBFSampler

from mercer.budget import memory
from mercer.errors import ShapeError, StructureError
from mercer.features import Favor, Fourier, Orthogonal
from mercer.features.fourier import haar
from mercer.kernels import (
    Cosine,
    ExpDot,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Linear,
    Logistic,
    Matern,
    RationalQuadratic,
    SpectralMixture,
)
from mercer.operators import LowRank, PositiveLowRank
from tests.peak import peak_bytes

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=DOUBLE)


MAPS = {
    "fourier": lambda g: Fourier(Gaussian(1.3), 5, 64, g),
    "fourier-ard": lambda g: Fourier(Matern(1.5, lengthscale=[0.5, 1.0, 2.0, 1.0, 3.0]).scale(2.0), 5, 64, g),
    "orthogonal": lambda g: Orthogonal(Matern(2.5, 0.8), 5, 64, g),
    "columns": lambda g: Orthogonal(Gaussian(0.7).on([0, 3]), 5, 64, g),
    "favor": lambda g: Favor(ExpDot(), 5, 64, generator=g),
    "favor-iid": lambda g: Favor(ExpDot(lengthscale=2.0), 5, 64, orthogonal=False, generator=g),
}


@pytest.mark.parametrize("name", MAPS)
def test_state_dict_round_trip_and_redraw(name):
    x = normal(7, 5)
    phi, other = MAPS[name](rng(1)), MAPS[name](rng(2))
    assert not torch.allclose(phi.features(x), other.features(x))
    other.load_state_dict(phi.state_dict())
    assert torch.equal(phi.features(x), other.features(x))
    before = phi.features(x)
    phi.redraw(rng(3))
    assert not torch.allclose(phi.features(x), before)
    phi.redraw(rng(1))
    other = MAPS[name](rng(1))
    assert torch.equal(phi.features(x), other.features(x))
    assert phi.features(x.float()).dtype == torch.float32
    assert "generator" not in repr(phi)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_stands_where_a_kernel_stands(name):
    phi = MAPS[name](rng())
    x, y, v = normal(2, 300, 5, seed=1), normal(2, 280, 5, seed=2), normal(2, 280, 3, seed=3)
    left, right = phi.features(x), phi.features(y)
    matrix = torch.einsum("bnr,bmr->bnm", left, right)
    operator = phi(x, y)
    assert isinstance(operator, PositiveLowRank if "favor" in name else LowRank)
    assert (operator @ v - matrix @ v).abs().max() < 1e-11
    assert (operator.mT @ v[:, :1].expand(2, 300, 3) - matrix.mT @ v[:, :1].expand(2, 300, 3)).abs().max() < 1e-11
    assert (phi(x).diagonal() - left.square().sum(-1)).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(phi(x[0]).dense())[0] > -1e-10


@pytest.mark.parametrize("kind", [Fourier, Orthogonal])
def test_the_lengthscale_stays_live(kind):
    kernel = Gaussian(1.0)
    phi = kind(kernel, 3, 4096, rng())
    x = normal(6, 3)
    for lengthscale in (0.7, 2.5):
        kernel.lengthscale = lengthscale
        wanted = torch.exp(-torch.cdist(x, x).square() / (2 * lengthscale**2))
        assert (phi.block(x, x) - wanted).abs().max() < 0.1
    exact = torch.autograd.grad(kernel.block(x, x).sum(), kernel.log_lengthscale)[0]
    found = torch.autograd.grad(phi.block(x, x).sum(), kernel.log_lengthscale)[0]
    assert abs(float(found / exact) - 1) < 0.1


@pytest.mark.parametrize(
    "kernel", [Gaussian(1.0), Matern(1.5, 1.0), Laplace(1.0)], ids=["gaussian", "matern", "laplace"]
)
def test_fourier_error_follows_its_law(kernel):
    """Var = (1 + k(2 delta) - 2 k(delta)^2) / rank [sutherland2015, eq. 4], so the error falls as 1 / sqrt(rank)."""
    x, y = torch.zeros(1, 4, dtype=DOUBLE), torch.tensor([[0.5, -0.3, 0.2, 0.4]], dtype=DOUBLE)
    kernel.requires_grad_(False)
    value, twice = float(kernel.block(x, y)), float(kernel.block(x, 2 * y))
    g = rng(5)
    for rank in (16, 256):
        draws = torch.stack([Fourier(kernel, 4, rank, g).block(x, y).detach().flatten() for _ in range(1500)])
        law = (1 + twice - 2 * value**2) / rank
        assert abs(float(draws.mean()) - value) < 4 * math.sqrt(law / 1500)
        assert 0.85 < float(draws.var()) / law < 1.15


def test_fourier_error_on_digits():
    """(cos, sin) pairs err by (1 - k^2) / sqrt(rank) per entry; cosines with a random phase, as in sklearn, by more."""
    x = torch.as_tensor(load_digits().data[:600], dtype=DOUBLE) / 16
    kernel = Gaussian(3.0433)
    exact = kernel.block(x, x).detach()
    off = ~torch.eye(len(x), dtype=torch.bool)
    law = float((1 - exact[off].square()).square().mean().sqrt())
    for rank in (256, 1024):
        errors = [(Fourier(kernel, 64, rank, rng(s)).block(x, x).detach() - exact)[off] for s in range(6)]
        scaled = float(torch.stack(errors).square().mean().sqrt()) * math.sqrt(rank)
        assert 0.85 < scaled / law < 1.15, (scaled, law)
        peer = torch.as_tensor(RBFSampler(gamma=0.5 / 3.0433**2, n_components=rank, random_state=0).fit_transform(x))
        assert scaled < 0.9 * float((peer @ peer.mT - exact)[off].square().mean().sqrt()) * math.sqrt(rank)


def test_directions_are_haar():
    q = haar(7, 3, rng())
    for block in (q[:3], q[3:6]):
        assert (block @ block.mT - torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-12
    assert q.shape == (7, 3)
    first = torch.stack([haar(3, 3, rng(s)) for s in range(4000)])
    assert first.mean(0).abs().max() < 4 * math.sqrt(1 / 3 / 4000)  # LAPACK's own signs leave a bias here
    assert (first.square().mean(0) - 1 / 3).abs().max() < 4 * 0.3 / math.sqrt(4000)


@pytest.mark.parametrize("z", [0.7, 1.0, 2.0])
def test_orthogonal_directions_reduce_the_error(z):
    """Variance ratio to independent directions: 1 - (D - 1) / d exp(-z^2) z^4 / (1 - exp(-z^2))^2 [yu2016, thm. 1]."""
    d, g = 16, rng(1)
    kernel = Gaussian(1.0).requires_grad_(False)
    x, y = torch.zeros(1, d, dtype=DOUBLE), torch.zeros(1, d, dtype=DOUBLE)
    y[0, 0] = z
    exact = math.exp(-(z**2) / 2)

    def error(kind):
        return torch.stack([(kind(kernel, d, 2 * d, g).block(x, y) - exact).square() for _ in range(2500)]).mean()

    ratio = float(error(Orthogonal) / error(Fourier))
    law = 1 - (d - 1) / d * math.exp(-(z**2)) * z**4 / (1 - math.exp(-(z**2))) ** 2
    assert abs(ratio - law) < 0.1, (ratio, law)
    assert ratio < 0.6 or z > 1.5


def test_orthogonal_is_unbiased_with_independent_norms():
    kernel, g = Matern(2.5, 1.0).requires_grad_(False), rng(2)
    x, y = torch.zeros(1, 4, dtype=DOUBLE), torch.tensor([[0.8, -0.3, 0.5, 0.4]], dtype=DOUBLE)
    draws = torch.stack([Orthogonal(kernel, 4, 8, g).block(x, y).detach().flatten() for _ in range(3000)])
    assert abs(float(draws.mean() - kernel.block(x, y))) < 4 * float(draws.std()) / math.sqrt(3000)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_favor_is_unbiased(orthogonal):
    g = rng(3)
    x, y = 0.5 * normal(5, 8, seed=1), 0.5 * normal(6, 8, seed=2)
    exact = torch.exp(x @ y.mT / math.sqrt(8))
    draws = torch.stack([Favor(ExpDot(), 8, 16, orthogonal, g).block(x, y) for _ in range(3000)])
    z = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(3000))
    assert z.abs().max() < 4.5
    assert (draws > 0).all()


def relative_error(d: int, norm: float, orthogonal: bool, seed: int) -> float:
    """Relative mean squared error per block of d features, over random directions of x and y."""
    g = rng(seed)
    x, y = (norm * haar(60, d, g) for _ in range(2))
    kernel = ExpDot(lengthscale=1.0)
    exact = kernel.block(x, y).detach()
    draws = [Favor(kernel, d, d, orthogonal, g).block(x, y).detach() for _ in range(400)]
    return float(((torch.stack(draws) - exact) / exact).square().mean())


def test_favor_error_is_that_of_the_literature():
    """d = 16, norms .5: independent .0417, orthogonal .0351 (measured elsewhere); law (exp(|x + y|^2) - 1) / rank."""
    independent, orthogonal = relative_error(16, 0.5, False, 1), relative_error(16, 0.5, True, 1)
    assert 0.036 < independent < 0.048, independent
    assert 0.030 < orthogonal < 0.040, orthogonal
    assert orthogonal < 0.93 * independent


def test_favor_is_positive_and_keeps_large_inputs_in_log_space():
    phi = Favor(ExpDot(), 4, 32, generator=rng())
    x = 300 * normal(5, 4)
    assert torch.isfinite(phi.log_features(x)).all()
    weights = (phi.log_features(x)[:, None] + phi.log_features(x)[None]).logsumexp(-1).softmax(-1)
    v = normal(5, 2)
    assert (phi(x).normalised() @ v - weights @ v).abs().max() < 1e-12


@pytest.mark.parametrize("n,m", [(1, 1), (8, 8), (13, 7), (7, 13), (33, 33)])
@pytest.mark.parametrize("causal", [False, True])
def test_positive_lowrank_equals_its_matrix(n, m, causal):
    left, right = 3 * normal(2, n, 6, seed=1), 3 * normal(2, m, 6, seed=2)
    operator, matrix = PositiveLowRank(left, right), left.exp() @ right.exp().mT
    if causal:
        operator, matrix = operator.tril(), matrix.tril()
    v, w = normal(2, m, 3, seed=3), normal(2, n, 3, seed=4)
    weights = matrix / matrix.sum(-1, keepdim=True)
    size = matrix.abs().max()
    assert (operator @ v - matrix @ v).abs().max() < 1e-12 * size
    assert (operator.mT @ w - matrix.mT @ w).abs().max() < 1e-12 * size
    for rows in (operator.stabilised(), operator.normalised()):
        assert (rows @ v - weights @ v).abs().max() < 1e-12
        assert (rows.mT @ w - weights.mT @ w).abs().max() < 1e-12
    assert (operator.diagonal() - matrix.diagonal(dim1=-2, dim2=-1)).abs().max() < 1e-12 * size


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["fourier", "favor-iid"])
@pytest.mark.parametrize("budget", ["20K", "4G"])
def test_features_block_by_block_equal_the_matrix(name, causal, budget):
    phi = MAPS[name](rng(1))
    x, y = 0.5 * normal(2, 333, 5, seed=1), 0.5 * normal(2, 217, 5, seed=2)
    matrix = torch.einsum("bnr,bmr->bnm", phi.features(x), phi.features(y))
    operator = phi(x, y)
    if causal:
        operator, matrix = operator.tril(), matrix.tril()
    v, w = normal(2, 217, 3, seed=3), normal(2, 333, 3, seed=4)
    leaves = [p for p in phi.parameters() if p.requires_grad]
    wanted = torch.autograd.grad((matrix @ v).square().sum(), leaves)
    with memory(budget):
        assert (operator @ v - matrix @ v).abs().max() < 1e-11
        assert (operator.mT @ w - matrix.mT @ w).abs().max() < 1e-11
        assert (operator.diagonal() - matrix.diagonal(dim1=-2, dim2=-1)).abs().max() < 1e-12
        found = torch.autograd.grad((operator @ v).square().sum(), leaves)
        if not causal:
            assert (operator[3:90, 5:70] @ v[:, 5:70] - matrix[:, 3:90, 5:70] @ v[:, 5:70]).abs().max() < 1e-11
    assert (operator.dense() - matrix).abs().max() < 1e-12
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-9 * b.abs().max()


def test_features_block_by_block_differentiate_twice():
    phi = Fourier(Gaussian(0.9), 2, 6, rng())
    x, v = normal(7, 2, seed=1).requires_grad_(), normal(7, 1, seed=2).requires_grad_()
    with memory("1K"):
        assert torch.autograd.gradcheck(lambda a, b: phi(a) @ b, (x, v))
        assert torch.autograd.gradgradcheck(lambda a, b: phi(a) @ b, (x, v))


def test_features_take_the_budget_and_calling_the_map_takes_nothing():
    phi = Fourier(Gaussian(1.0), 3, 500, rng())
    x, v = torch.randn(20_000, 3, generator=rng()), torch.ones(20_000, 1)  # the features would be 40 MB
    with memory("8M"):
        assert peak_bytes(lambda: phi(x)) < 1024
        operator = phi(x)
        assert operator.cost().memory < 8 * 2**20
        assert peak_bytes(lambda: operator @ v) < 8 * 2**20
        assert peak_bytes(lambda: (operator @ v).sum().backward()) < 8 * 2**20


@pytest.mark.parametrize("name", MAPS)
def test_an_operator_follows_its_map(name):
    """Products see the parameters as they are, also when changed behind autograd's back."""
    phi = MAPS[name](rng(1))
    x, v = 0.3 * normal(30, 5), normal(30, 2, seed=1)
    operator = phi(x)

    def changes():
        yield lambda: None
        for p in phi.parameters():
            yield lambda p=p: p.data.add_(0.3)
        yield lambda: phi.redraw(rng(7))
        yield lambda: x.mul_(1.5)

    with torch.no_grad():
        for change in changes():
            before = operator @ v
            change()
            left = phi.features(x)
            assert (operator @ v - left @ (left.mT @ v)).abs().max() < 1e-11
            assert torch.equal(operator @ v, operator @ v)
        assert not torch.allclose(before, operator @ v)


def test_features_are_made_once_for_many_products():
    class Counting(Fourier):
        made = 0

        def features(self, x):
            self.made += 1
            return super().features(x)

    phi = Counting(Gaussian(), 2, 8, rng())
    x, v = normal(40, 2), normal(40, 1, seed=1)
    operator, total = phi(x), 0
    with torch.no_grad():
        for i in range(5):
            total = total + operator @ v + operator[i : i + 3].mT @ v[:3]
    assert phi.made == 1
    columns = torch.func.vmap(lambda u: operator @ u, in_dims=1, out_dims=1)(normal(40, 3, seed=2))
    assert (columns - operator @ normal(40, 3, seed=2)).abs().max() < 1e-12


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(StructureError, match="Linear"):
        Fourier(Linear(), 3, 8)
    with pytest.raises(StructureError, match="every direction"):
        Orthogonal(Laplace(), 3, 8)
    with pytest.raises(StructureError, match="ExpDot"):
        Favor(Gaussian(), 3, 8)
    with pytest.raises(ValueError, match="rank is 7"):
        Fourier(Gaussian(), 3, 7)
    with pytest.raises(StructureError, match="negative"):
        Fourier(Gaussian(), 3, 8).log_features(normal(2, 3))


@pytest.mark.parametrize("name", MAPS)
def test_points_of_another_dimension_are_named(name):
    phi = MAPS[name](rng())
    for ask in (phi, phi.features, lambda z: phi.block(z, z)):
        with pytest.raises(ShapeError, match=r"d = 5 columns, x.d is 2"):
            ask(normal(4, 2))


def test_a_few_directions_in_many_columns_need_no_square_factor():
    assert peak_bytes(lambda: haar(2, 2000, rng())) < 1e6  # a 2000 x 2000 matrix takes 32 MB
    q = haar(3, 2000, rng())
    assert q.shape == (3, 2000) and (q @ q.mT - torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-12
    assert torch.equal(q, haar(3, 2000, rng()))


SPECTRAL = {
    "gaussian-ard": Gaussian([0.5, 1.0, 2.0]),
    "matern12": Matern(0.5),
    "laplace-ard": Laplace([0.5, 1.0, 2.0]),
    "rational": RationalQuadratic(),
    "imq": InverseMultiquadric(),
    "logistic": Logistic(),
    "cosine": Cosine(),
    "mixture": SpectralMixture([0.7, 1.2], [[0.1, 0.2, 0.3], [0.4, 0.1, 0.2]], [[0.1] * 3, [0.2] * 3]),
    "warped": Gaussian().warp(torch.nn.Linear(3, 2)),
    "scaled-columns": (3.0 * Matern(1.5)).on([2, 0]),
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_every_spectrum_is_that_of_its_kernel(name):
    kernel = SPECTRAL[name].requires_grad_(False)
    x = 0.7 * normal(6, 3, seed=4)
    g, exact = rng(9), kernel.block(x, x)
    draws = torch.stack([Fourier(kernel, 3, 64, g).block(x, x) for _ in range(400)])
    z = (draws.mean(0) - exact) / (draws.std(0) / 20 + 1e-9 * exact.max())
    assert z.abs().max() < 4.5
    assert (draws.std(0) < 0.4 * float(exact.abs().max())).all()


def test_features_equal_their_formulas():
    x = normal(4, 3)
    fourier = Fourier(Gaussian(0.6).scale(2.5), 3, 6, rng(1))
    favor = Favor(ExpDot(lengthscale=1.4), 3, 5, generator=rng(2))
    for row, cosines, positive in zip(
        x.tolist(), fourier.features(x).tolist(), favor.features(x).tolist(), strict=True
    ):
        u, v = [c / 0.6 for c in row], [c / 1.4 for c in row]
        phases = [sum(a * b for a, b in zip(w, u, strict=True)) for w in fourier.frequencies.tolist()]
        wanted = [math.sqrt(2.5 / 3) * f(p) for f in (math.cos, math.sin) for p in phases]
        assert max(abs(a - b) for a, b in zip(cosines, wanted, strict=True)) < 1e-12
        size = sum(c * c for c in v) / 2
        dots = [sum(a * b for a, b in zip(w, v, strict=True)) for w in favor.frequencies.tolist()]
        wanted = [math.exp(p - size) / math.sqrt(5) for p in dots]
        assert max(abs(a / b - 1) for a, b in zip(positive, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("at", [39, 33, 8, 1])
def test_a_huge_later_key_does_not_reach_earlier_rows(at):
    """A constant shared by all keys would push the features of earlier ones below the smallest number."""
    left, right, v = normal(40, 6, seed=1), normal(40, 6, seed=2), normal(40, 2, seed=3)
    before = PositiveLowRank(left, right).tril().normalised() @ v
    right[at:] += 1e5
    v[at:] += 1
    after = PositiveLowRank(left, right).tril().normalised() @ v
    assert (after[:at] - before[:at]).abs().max() < 1e-14
    assert torch.isfinite(after).all() and (after[at:] - before[at:]).abs().min() > 1e-3
