"""A Gaussian posterior whose precision has a sparse triangular root, beside a prior that has one too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from mercer.claims import PSD
from mercer.kernel import Kernel
from mercer.learn.sequential import Rows, factor, height
from mercer.linalg import CG
from mercer.operator import Composed, Cost, Operator
from mercer.operators import Diagonal, Sparse
from mercer.operators.pattern import Pattern, product
from mercer.operators.sparse import solve_pattern
from mercer.operators.vecchia import seen, sequence

JITTER = 1e-9  # of the kernel's diagonal: f is continuous, and points may nearly coincide
EACH = 3  # nearest places of each member that its group is shown
EXACT = 3000  # places up to which q's covariance is held
DENSE = 800  # places up to which the mean is solved for without iterations
PROBES = 32  # random signs that stand for all directions above
ROUNDS, STEPS = 60, 6  # of sites; of the posterior's root for given sites
SOLVED = 1e-10  # residual of the mean
SETTLED = 1e-10  # rise of the bound for each row that ends the rounds


class _Inverse(Operator):
    """b -> (V V^T)^-1 b."""

    def __init__(self, pattern: Pattern, values: Tensor):
        self.pattern, self.values = pattern, values
        self.shape, self.dtype = torch.Size([pattern.n, pattern.n]), values.dtype
        self.device, self.claims = values.device, PSD
        self._lu = splu(pattern.csr(values.numpy()).tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0.0)

    def matmul(self, v: Tensor) -> Tensor:
        return torch.from_numpy(self._lu.solve(self._lu.solve(np.ascontiguousarray(v.numpy())), "T"))

    @property
    def mT(self) -> _Inverse:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        work = 4.0 * len(self.values) * rhs
        return Cost(0.0, work, 40.0 * len(self.values), 0.0, work / 2.5e8)


def _solve(pattern: Pattern, values: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    return solve_pattern(pattern, "NATURAL", transposed, b, (values, torch.zeros((), dtype=values.dtype)))


class DoubleKL:
    """p(f) = N(0, (U U^T)^-1) and q(f) = N(mean, (V V^T)^-1), U and V upper triangular with the same few entries.

    U has the least KL(k's distribution | p) of its pattern; V and the mean the least KL(q | p(f | y)), so that the
    evidence bound is largest. Points are ordered from coarse to fine; a column holds a point and its nearest earlier
    `neighbours`. q is found by site updates: V V^T is drawn to U U^T + diag(precision), precision = -2 dE/dvariance.
    Cost: n s^3 / 3 flops for each round, s = 5 neighbours or so, and n^2 neighbours where q's covariance is held.
    Error: KL(q | exact posterior), zero with all neighbours and Gaussian noise; precisions stay >= 0, as those
    of Student's outliers should not. Above 3,000 places variances are of nearby sites, V from probes.
    Source [cao2023], [schafer2021, thm. 2.1], [khan2017].
    """

    def __init__(self, kernel: Kernel, x: Tensor, neighbours: int, generator: torch.Generator, *laid: Tensor):
        order, groups = laid or sequence(kernel, x, neighbours)
        self.kernel, self.order, self.groups, self.generator = kernel, order, groups, generator
        self.x, self.neighbours = x[order], neighbours
        self.real, self.at = groups >= 0, groups.clamp_min(0)
        n, k = groups.shape
        self.exact = n <= EXACT
        row, rows = torch.nonzero(self.real)[:, 0], groups[self.real]
        self.pattern, self.sorting = Pattern.sorted(rows, row, n, n)
        self.tree = cKDTree(seen(kernel, self.x))
        many = min(neighbours + 1, n)
        near = torch.from_numpy(np.asarray(self.tree.query(seen(kernel, self.x), many, workers=-1)[1]).reshape(n, many))
        extra = torch.cat([near, near[self.at][:, :, :EACH].reshape(n, -1)], 1)
        known = torch.cat([self.groups, extra], 1)  # a site counts once
        again = torch.zeros_like(extra, dtype=torch.bool)
        for j in range(extra.shape[1]):
            again[:, j] = (known[:, : k + j] == extra[:, j : j + 1]).any(1)
        most = int((~again).sum(1).max())
        first = again.to(torch.int8).argsort(stable=True, dim=1)[:, :most]
        self.extra, self.fresh = extra.gather(1, first), ~again.gather(1, first)
        self.renew()

    def renew(self) -> None:
        """Make U anew: the kernel has changed. The order and the neighbours stay."""
        self.u = self._prior()

    def columns(self, group: Tensor, real: Tensor) -> Tensor:
        """Columns of U, `b k`, differentiable in the kernel."""
        block = self.kernel.block(self.x[group], self.x[group])
        lower = factor(block, real, JITTER * block.detach().diagonal(dim1=-2, dim2=-1))
        ends = torch.zeros_like(block[..., :1])
        ends[:, -1] = 1.0
        return torch.linalg.solve_triangular(lower.mT, ends, upper=True)[..., 0] * real

    @torch.no_grad()
    def _prior(self) -> Tensor:
        size = height(self.groups.shape[1])
        parts = [self.columns(a, r) for a, r in zip(self.at.split(size), self.real.split(size), strict=True)]
        return torch.cat(parts)

    def _packed(self, values: Tensor) -> Tensor:
        return values[self.real][self.sorting]

    @torch.no_grad()
    def _local(self, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(roots C of each group's covariance given nearby sites, `n k k`; columns of V; variances)."""
        k, found, columns = self.groups.shape[1], [], []
        size = height(k + self.extra.shape[1])
        for some in torch.arange(len(self.x)).split(size):
            at = torch.cat([self.extra[some], self.at[some]], 1)
            live = torch.cat([self.fresh[some], self.real[some]], 1)
            block = self.kernel.block(self.x[at], self.x[at])
            block.diagonal(dim1=-2, dim2=-1).mul_(1 + JITTER)
            root = torch.where(live, precision[at].sqrt(), 0.0)
            eye = torch.eye(at.shape[1], dtype=block.dtype)
            lower = torch.linalg.cholesky(eye + root[..., None] * block * root[..., None, :])
            half = torch.linalg.solve_triangular(lower, root[..., None] * block[..., -k:], upper=False)
            rest = block[:, -k:, -k:] - half.mT @ half
            real = self.real[some]
            c = factor(rest, real, JITTER * rest.diagonal(dim1=-2, dim2=-1))
            ends = torch.zeros_like(c[..., :1])
            ends[:, -1] = 1.0
            columns.append(torch.linalg.solve_triangular(c.mT, ends, upper=True)[..., 0] * real)
            found.append(c)
        c = torch.cat(found)
        return c, torch.cat(columns), c[:, -1].square().sum(1)

    def _directions(self) -> tuple[Tensor, float]:
        n = len(self.x)
        if self.exact:
            return torch.eye(n, dtype=torch.float64), 1.0
        signs = torch.randint(0, 2, (n, PROBES), generator=self.generator).double() * 2 - 1
        return signs, 1.0 / PROBES

    def _pull(self, precision: Tensor, b: Tensor) -> Tensor:
        u = self._packed(self.u)
        return product(self.pattern, u, product(self.pattern, u, b, transposed=True)) + precision[:, None] * b

    @torch.no_grad()
    def improve(self, v: Tensor, c: Tensor, precision: Tensor, steps: int = STEPS) -> Tensor:
        """Columns nearer to the least KL(N(0, (V V^T)^-1) | N(0, (U U^T + diag(precision))^-1)) on the pattern.

        Newton steps in the coordinates that C whitens. The slope V^-T - S P V^-T (S: covariance, P: target) is
        -E (S P - I) V^-T z z^T, which vanishes with its noise where V V^T = P.
        """
        best, kept, rate = float("inf"), v, 1.0
        z, share = self._directions()
        for _ in range(steps + 1):
            packed = self._packed(v)
            x = _solve(self.pattern, packed, z, transposed=True)
            px = self._pull(precision, x)
            loss = 0.5 * share * float((x * px).sum()) + float(v[:, -1].log().sum())
            if loss < best:
                best, kept = loss, v
                off = _solve(self.pattern, packed, _solve(self.pattern, packed, px), transposed=True) - x
                if self.exact:
                    slope = -off[self.at, torch.arange(len(v))[:, None]]
                else:
                    slope = -share * torch.stack([(off[j] * z).sum(1) for j in self.at.T], 1)
                slope = (slope * self.real)[..., None]
                inner = torch.linalg.solve_triangular(c, slope, upper=False)
                inner[:, -1] /= 2
                step = torch.linalg.solve_triangular(c.mT, inner, upper=True)[..., 0] * self.real
            else:
                rate /= 4
            trial = kept - rate * step
            v = torch.where((trial[:, -1] > 0.3 * kept[:, -1])[:, None], trial, kept)
        return kept

    @torch.no_grad()
    def fit(
        self, rows: Rows, refine: bool = True, settled: float = SETTLED, stop: Callable[[], bool] = lambda: False
    ) -> float:
        """Find q; returns the evidence bound (above 3,000 places an estimate of it). Starts from the last sites.

        stop: asked after each round; `ended` says "settled", "rounds" or "time". Ctrl-C leaves the best q so far.
        """
        n = len(self.x)
        if not hasattr(self, "precision"):
            flat = torch.zeros(n, dtype=torch.float64)
            _, first, second = rows.slopes(flat, self.kernel.diagonal(self.x))
            self.precision, self.pulled = (-2 * second).clamp_min(1e-8), first
        old: tuple[Tensor, Tensor] = (self.precision, self.pulled)
        aim, rate, best, fine = old, 1.0, -float("inf"), False
        state: tuple[Tensor, ...] = ()
        self.ended = "rounds"
        try:
            for _ in range(ROUNDS):
                if state and stop():
                    self.ended = "time"
                    break
                bound, first, second, *found = self._round(rows, fine)
                if bound < best - 1e-9 * abs(best) and rate > 1e-3:
                    rate /= 2
                else:
                    gain, best = bound - best, bound
                    state, self.bound, old = tuple(found), bound, (self.precision, self.pulled)
                    precision = (-2 * second).clamp_min(1e-8)
                    aim = precision, first + precision * found[0]
                    rate = min(1.0, 1.5 * rate)
                    moved = float(((aim[0] - old[0]).abs() / (old[0] + 1e-3 * old[0].mean())).max())
                    if gain < settled * n or moved < 1e-9:
                        if fine or not refine:
                            self.ended = "settled"
                            break
                        fine, best = True, -float("inf")
                self.precision, self.pulled = (a + rate * (b - a) for a, b in zip(old, aim, strict=True))
        finally:
            self.precision, self.pulled = old
            if state:
                self.mean, self.variance, self.v, self.c = state
                self.root = self._covariance(self.v) if self.exact else None
        return self.bound

    def _round(self, rows: Rows, fine: bool) -> tuple[float, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(bound, slopes of E log p in mean and variance, mean, variance, V, C) of the sites as they are."""
        c, v, variance = self._local(self.precision)
        if fine:
            v = self.improve(v, c, self.precision)
        root = self._covariance(v) if self.exact else None
        variance = variance if root is None else root.square().sum(1)
        mean = self._mean(v)
        value, first, second = rows.slopes(mean, variance)
        return value - self._divergence(v, mean, root), first, second, mean, variance, v, c

    def _covariance(self, v: Tensor) -> Tensor:
        """V^-T: q's covariance is that times its transpose."""
        return _solve(self.pattern, self._packed(v), torch.eye(len(v), dtype=torch.float64), transposed=True)

    def _mean(self, v: Tensor) -> Tensor:
        """(U U^T + diag(precision))^-1 pulled, by Cholesky, or by conjugate gradients that V preconditions."""
        n, pattern = len(self.x), self.pattern
        if n <= DENSE:
            full = torch.zeros(n, n, dtype=torch.float64).index_put((pattern.rows, pattern.cols), self._packed(self.u))
            lower, info = torch.linalg.cholesky_ex(full @ full.mT + torch.diag(self.precision))
            if not info:
                return torch.cholesky_solve(self.pulled[:, None], lower)[:, 0]
        u = Sparse(self._packed(self.u), pattern.rows, pattern.cols, (n, n))
        whole = Composed(u, u.mT) + Diagonal(self.precision)
        whole.claims = PSD
        solver = CG(preconditioner=_Inverse(pattern, self._packed(v)), tolerance=SOLVED, max_iterations=500)
        return solver.solve(solver.prepare(whole), self.pulled[:, None]).value[:, 0]

    def _divergence(self, v: Tensor, mean: Tensor, root: Tensor | None) -> float:
        """KL(q | p)."""
        u = self._packed(self.u)
        if root is None:
            z, share = self._directions()
            root = _solve(self.pattern, self._packed(v), z, transposed=True) * share**0.5
        spread = product(self.pattern, u, root, transposed=True).square().sum()
        far = product(self.pattern, u, mean[:, None], transposed=True).square().sum()
        logs = (v[:, -1] / self.u[:, -1]).log().sum()
        return float(0.5 * (spread + far - len(v)) + logs)

    def objective(self) -> Tensor:
        """-KL(q | p) of the present q as a function of the kernel's parameters, but for a constant."""
        size = height(self.groups.shape[1])
        total = torch.zeros((), dtype=torch.float64)
        for some in torch.arange(len(self.x)).split(size):
            u = self.columns(self.at[some], self.real[some])
            spread = (self.c[some].mT @ u[..., None]).square().sum()
            far = (u * self.mean[self.at[some]]).sum(1).square().sum()
            total = total - 0.5 * (spread + far) + u[:, -1].log().sum()
        return total

    @torch.no_grad()
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f at x: q d, each from its nearest places."""
        k = min(self.neighbours, len(self.x))
        wide = k if self.exact else min(4 * k, len(self.x))
        means, variances = [x.new_zeros(0)], [x.new_zeros(0)]
        for some in x.split(max(height(wide) // (1 + len(self.x) * self.exact // 200), 8)):
            near = np.asarray(self.tree.query(seen(self.kernel, some), wide)[1], dtype=np.int64)
            at = torch.from_numpy(near.reshape(len(some), wide))
            block = self.kernel.block(self.x[at], self.x[at])
            across = self.kernel.block(self.x[at], some[:, None])
            prior = self.kernel.diagonal(some)
            block.diagonal(dim1=-2, dim2=-1).mul_(1 + JITTER)
            weights = torch.cholesky_solve(across[:, :k], torch.linalg.cholesky(block[:, :k, :k]))[..., 0]
            means.append((weights * self.mean[at[:, :k]]).sum(1))
            if self.root is not None:
                rest = prior - (weights * across[:, :k, 0]).sum(1)
                seen_ = torch.einsum("qk,qkn->qn", weights, self.root[at]).square().sum(1)
                variances.append(rest.clamp_min(0) + seen_)
                continue
            root = self.precision[at].sqrt()
            whole = torch.eye(wide, dtype=x.dtype) + root[..., None] * block * root[..., None, :]
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(whole), root[..., None] * across, upper=False)
            variances.append((prior - half[..., 0].square().sum(1)).clamp_min(0))
        return torch.cat(means), torch.cat(variances)
