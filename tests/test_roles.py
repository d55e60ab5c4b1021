"""The role matrix: every kernel of the catalogue in every role. A cell checks one property or has a written reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mercer import compare, compress, features, learn, linalg, nn
from mercer.claims import Claim
from mercer.domain import Grid, Line
from mercer.errors import StructureError
from mercer.kernel import Kernel
from mercer.kernels import Columns, Metric, Warped
from mercer.learn.spec import from_spec, to_spec
from mercer.operators import Shifted
from tests.catalogue import KERNELS, ROLE_KERNELS

SEED = 7
CATEGORIES = {c.name for c in KERNELS if c.categories}


def points(name: str, n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if name in CATEGORIES:
        return torch.randint(0, 3, (n, 3), generator=g).double()
    return torch.randn(n, 3, generator=g, dtype=torch.float64)


def matrix(kernel: Kernel, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return kernel.block(x, y).detach()


def target(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x[:, 0]) + 0.5 * x[:, 1] - 0.3 * x[:, 2]


def ridge(name: str, kernel: Kernel) -> None:
    """Predictions are K(z, x) (K + alpha I)^-1 y."""
    x, z = points(name, 30), points(name, 9, 1)
    y = target(x)
    model = learn.KernelRidge(kernel, alpha=0.3, learn=False, standardize=False).fit(x, y)
    gram = matrix(kernel, x, x) + 0.3 * torch.eye(30, dtype=torch.float64)
    want = matrix(kernel, z, x) @ torch.linalg.solve(gram, y)
    assert torch.allclose(model.predict(z), want, rtol=1e-7, atol=1e-8)


def gp(name: str, kernel: Kernel) -> None:
    """The log marginal likelihood is the log density of y under N(0, K + noise I)."""
    x = points(name, 20)
    y = target(x)
    model = learn.GaussianProcessRegressor(kernel, noise=0.2, learn=False, standardize=False).fit(x, y)
    cov = matrix(kernel, x, x).numpy() + 0.2 * np.eye(20)
    want = multivariate_normal.logpdf(y.numpy(), cov=cov)
    assert float(model.log_marginal_likelihood()) == pytest.approx(want, rel=1e-8)


def classifier(name: str, kernel: Kernel) -> None:
    """Probabilities sum to one and beat the base rate on separable labels."""
    x = points(name, 60)
    labels = (x[:, 0] > 0.5) if name in CATEGORIES else (x[:, 2] + x[:, 1] > 0)
    model = learn.KernelClassifier(kernel, alpha=0.1, learn=False, random_state=0).fit(x.numpy(), labels.numpy())
    p = model.predict_proba(x.numpy())
    assert np.allclose(p.sum(1), 1) and (p >= 0).all()
    loss = -np.log(p[np.arange(60), labels.long().numpy()].clip(1e-12)).mean()
    rate = labels.double().mean().item()
    assert loss < -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) + 0.02


def components(name: str, kernel: Kernel) -> None:
    """The variances along principal components are eigenvalues of the centred Gram."""
    x = points(name, 25)
    middle = torch.eye(25, dtype=torch.float64) - 1 / 25
    want = torch.linalg.eigvalsh(middle @ matrix(kernel, x, x) @ middle).flip(0)[:3].clamp_min(0)
    found = torch.tensor(learn.KernelPCA(3, kernel).fit(x).eigenvalues_)
    assert torch.allclose(found, want, rtol=1e-7, atol=1e-9 * float(want[0] + 1))


def mmd(name: str, kernel: Kernel) -> None:
    """The unbiased statistic is the brute-force double sum."""
    x, y = points(name, 7), points(name, 5, 1) + (0.0 if name in CATEGORIES else 0.4)
    kx, ky, kxy = matrix(kernel, x, x), matrix(kernel, y, y), matrix(kernel, x, y)
    within = sum(kx[i, j] for i in range(7) for j in range(7) if i != j) / 42
    within += sum(ky[i, j] for i in range(5) for j in range(5) if i != j) / 20
    want = float(within - 2 * kxy.mean())
    got = compare.mmd(kernel, x, y, permutations=9, generator=torch.Generator().manual_seed(SEED))
    assert got.statistic == pytest.approx(want, rel=1e-9, abs=1e-10) and 0 < got.p_value <= 1


def thinning(name: str, kernel: Kernel) -> None:
    """Sixteen chosen rows are closer to all than the first sixteen."""
    x = points(name, 128, 2)
    gram = matrix(kernel, x, x)

    def squared(rows: torch.Tensor) -> float:
        w = torch.full((128,), -1 / 128, dtype=torch.float64)
        w.index_add_(0, rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))
        return float(w @ gram @ w)

    rows = compress.thin(kernel, x, 16, generator=torch.Generator().manual_seed(SEED))
    assert len(set(rows.tolist())) == 16
    assert squared(rows) <= squared(torch.arange(16)) + 1e-12


def random_features(name: str, kernel: Kernel) -> None:
    """8,192 Fourier features reproduce the kernel within five standard errors."""
    x = points(name, 10)
    phi = features.Fourier(kernel, 3, 8192, torch.Generator().manual_seed(SEED))
    gram, scale = matrix(kernel, x, x), float(matrix(kernel, x, x).diagonal().max())
    assert (phi.block(x, x).detach() - gram).abs().max() <= 5 * scale / math.sqrt(4096)


def nystrom(name: str, kernel: Kernel) -> None:
    """With every point a landmark the features give back the kernel."""
    x = points(name, 10)
    phi = features.Nystrom(kernel, x)
    gram = matrix(kernel, x, x)
    assert torch.allclose(phi.block(x, x).detach(), gram, atol=1e-6 * float(gram.abs().max()))


def attention(name: str, kernel: Kernel) -> None:
    """Rows are weighted means; the causal layer does not see the future."""
    q, keys = points(name, 9, 3), points(name, 9, 4)
    v = torch.randn(9, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    with torch.no_grad():
        k = matrix(kernel, q, keys)
        want = (k @ v) / torch.where(k.sum(-1, keepdim=True) == 0, 1.0, k.sum(-1, keepdim=True))
        assert torch.allclose(nn.KernelAttention(kernel)(q, keys, v), want, rtol=1e-9, atol=1e-10)
        causal = nn.KernelAttention(kernel, is_causal=True)
        before = causal(q, keys, v)
        keys[6:], v[6:] = points(name, 3, 5), 9.0
        assert torch.allclose(causal(q, keys, v)[:6], before[:6], rtol=1e-12, atol=1e-13)


def convolution(name: str, kernel: Kernel) -> None:
    """A convolution on a grid is the Gram operator of the grid's points."""
    grid = Grid(Line(3, 0.5, dtype=torch.float64), Line(4, 0.7, dtype=torch.float64), Line(2, 0.9, dtype=torch.float64))
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    layer = nn.KernelConv(kernel, spacing=(0.5, 0.7, 0.9), weight=1.0)
    want = (kernel(grid) @ x.flatten()).detach().reshape(3, 4, 2)
    assert torch.allclose(layer(x).detach(), want, rtol=1e-9, atol=1e-10)


def cg(name: str, kernel: Kernel) -> None:
    """(K + I) x = b by conjugate gradients on the lazy operator."""
    x = points(name, 40)
    b = target(x)[:, None]
    solver = linalg.CG(tolerance=1e-10)
    with torch.no_grad():
        a = Shifted(kernel(x), 1.0)
        solution = solver.solve(solver.prepare(a), b)
        want = torch.linalg.solve(matrix(kernel, x, x) + torch.eye(40, dtype=torch.float64), b)
    assert solution.converged and torch.allclose(solution.value, want, rtol=1e-7, atol=1e-8)


def gradient_step(name: str, kernel: Kernel) -> None:
    """One step against the gradient, through the tiles, lowers a loss of the parameters."""
    x = points(name, 20)
    v = target(x)[:, None]

    def loss() -> torch.Tensor:
        return (kernel(x) @ v - v).square().mean()

    parameters = [p for p in kernel.parameters() if p.requires_grad]
    first = loss()
    grads = torch.autograd.grad(first, parameters)
    size = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert size > 0
    with torch.no_grad():
        for p, g in zip(parameters, grads, strict=True):
            p -= 1e-4 * g / size
    assert float(loss().detach()) < float(first.detach())


def save_and_load(name: str, kernel: Kernel) -> None:
    """JSON-able description and back: the same block to rounding."""
    x = points(name, 6)
    again = from_spec(to_spec(kernel))
    assert torch.allclose(matrix(again, x, x), matrix(kernel, x, x), rtol=1e-13, atol=1e-14)


ROLES: dict[str, Callable[[str, Kernel], None]] = {
    role.__name__: role
    for role in (
        ridge, gp, classifier, components, mmd, thinning, random_features, nystrom,
        attention, convolution, cg, gradient_step, save_and_load,
    )
}  # fmt: skip


def reason(role: str, name: str, kernel: Kernel) -> str | None:
    """Why a cell cannot run, from the claims; each reason is an error that the role itself raises (tested below)."""
    has = kernel.claims
    is_map = isinstance(kernel, features.Fourier | features.Orthogonal | features.Favor | features.Nystrom)
    if role in ("ridge", "gp", "classifier", "components", "nystrom", "cg") and Claim.PSD not in has:
        return "needs a psd kernel, this one is only conditionally psd"
    if role == "attention" and Claim.POSITIVE not in has:
        return "divides by row sums, this kernel may be negative"
    if role == "convolution" and Claim.STATIONARY not in has:
        return "needs a function of x - y"
    if role == "random_features":
        try:
            kernel.spectrum()
        except StructureError:
            return "has no spectral measure"
    if role == "gradient_step" and not any(p.requires_grad for p in kernel.parameters()):
        return "has no trainable parameter"
    if role == "save_and_load" and (
        is_map
        or name == "EmpiricalNTK"
        or (isinstance(kernel, Warped) and not isinstance(kernel.module, Columns | Metric))
    ):
        return "holds a torch module or drawn numbers: state_dict is its format, not a description by name"
    return None


CELLS = [(role, name) for role in ROLES for name in ROLE_KERNELS]


@pytest.mark.parametrize(("role", "name"), CELLS, ids=lambda v: v)
def test_role(role, name):
    kernel = ROLE_KERNELS[name]()
    why = reason(role, name, kernel)
    if why is None:
        ROLES[role](name, kernel)
    elif role == "gradient_step":
        assert not any(p.requires_grad for p in kernel.parameters())
    else:
        with pytest.raises(StructureError):
            ROLES[role](name, kernel)


def test_count_of_cells(capsys):
    """Printed for the reader: how many cells run, and how many raise their reason instead."""
    reasons = [reason(role, name, ROLE_KERNELS[name]()) for role, name in CELLS]
    with capsys.disabled():
        refused = sum(r is not None for r in reasons)
        print(f"\nrole matrix: {len(CELLS)} cells, {len(CELLS) - refused} run, {refused} refuse with a reason")
    assert refused < len(CELLS) / 5, "a fifth of the matrix refuses: the roles ask too much"
