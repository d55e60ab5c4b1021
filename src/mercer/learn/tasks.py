"""What several tasks share: covariances sum_q k_q(x, y) B_q[i, j] between the values of task i at x and j at y."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.claims import PSD, Claim
from mercer.kernel import Kernel
from mercer.learn.crossed import Crossed
from mercer.learn.likelihood import Evidence, gaussian, slopes
from mercer.learn.plan import EXACT_ROWS
from mercer.learn.state import record
from mercer.learn.stochastic import PRODUCTS, StochasticLikelihood, Whole
from mercer.linalg import Cholesky
from mercer.operator import Operator
from mercer.operator import Sum as Total
from mercer.operators import Dense, Kronecker

COPIES = 8  # matrices of all observed entries alive at once while a likelihood and its gradient are formed


@record
class Tasks(Kernel):
    """k((x, i), (y, j)) = sum_q k_q(x, y) B_q[i, j], B_q = W_q W_q^T + diag(own_q); points carry the task last.

    kernels: q of them. weights: W, q T r. own: q T, > 0. noise: T, > 0, the variance of each task's noise.
    One kernel is the intrinsic model of coregionalisation, several are the linear one. interact: Gaussian k_q only;
    adds sum_{p<q} C_pq k_pq(x, y) (W_p W_q^T + W_q W_p^T)[i, j] with k_pq as in `Crossed` and a learned correlation
    matrix C of the terms, at first I, which is the linear model: psd as a product of psd block matrices.
    Source [bonilla2007], [alvarez2012, sec. 4.2]; interactions derived after [chen2018].
    """

    claims = PSD

    def __init__(self, kernels: Sequence[Kernel], weights: Tensor, own: Tensor, noise: Tensor, interact: bool = False):
        super().__init__()
        self.kernels = nn.ModuleList(kernels)
        self.weights = nn.Parameter(weights)
        self.log_own, self.log_noise = nn.Parameter(own.log()), nn.Parameter(noise.log())
        pairs = list(itertools.combinations(range(len(kernels)), 2)) if interact else []
        self.pairs = [(p, q, Crossed(kernels[p], kernels[q])) for p, q in pairs]  # a list: no parameters of their own
        self.root = nn.Parameter(weights.new_zeros(len(pairs))) if pairs else None

    def interactions(self) -> Tensor:
        """C, `q q`: rows of a lower triangle with ones on its diagonal, scaled to one, times themselves."""
        lower = torch.eye(len(self.kernels), dtype=torch.float64)
        if self.root is not None:
            at = torch.tensor([(q, p) for p, q, _ in self.pairs])
            lower = lower.index_put((at[:, 0], at[:, 1]), self.root)
        unit = lower / lower.norm(dim=1, keepdim=True)
        return unit @ unit.mT

    def plain(self) -> dict[str, Any]:
        """The kernels, and all other numbers as they are trained."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("kernels.")}
        return {"kernels": list(self.kernels), "numbers": own}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Tasks:
        """What `plain` described."""
        kernels, numbers = plain["kernels"], plain["numbers"]
        own, noise = numbers["log_own"].exp(), numbers["log_noise"].exp()
        found = cls(kernels, numbers["weights"], own, noise, interact="root" in numbers)
        found.load_state_dict(numbers, strict=False)
        return found.requires_grad_(False)

    def parts(self) -> list[tuple[Kernel, Tensor]]:
        """(k_q, B_q: T T) for each q, then the pairs of terms that interact."""
        w = self.weights
        between = w @ w.mT + torch.diag_embed(self.log_own.exp())
        found = [(k, b) for k, b in zip(self.kernels, between, strict=True) if isinstance(k, Kernel)]
        if self.pairs:
            c = self.interactions()
            for p, q, kernel in self.pairs:
                both = w[p] @ w[q].mT
                found.append((kernel, c[p, q] * (both + both.mT)))
        return found

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        i, j = x[..., -1].long(), y[..., -1].long()
        found = [k.block(x[..., :-1], y[..., :-1]) * b[i][..., j] for k, b in self.parts()]
        return torch.stack(found).sum(0)

    def prior(self, x: Tensor) -> Tensor:
        """The variance of each task at x: n d, `n T`."""
        return torch.stack([k.diagonal(x)[:, None] * b.diagonal() for k, b in self.parts()]).sum(0)

    def gram(self, x: Tensor, row: Tensor, task: Tensor) -> Tensor:
        """The matrix of observed entries (row of x, task), `N N`."""
        found = [k.block(x, x)[row][:, row] * b[task][:, task] for k, b in self.parts()]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)

    def entries(self, x: Tensor, row: Tensor, task: Tensor, columns: int, products: int = 1) -> Operator:
        """The same, by products of each k_q with T columns and of B_q: never formed."""
        at, made = row * self.weights.shape[1] + task, []
        for k, b in self.parts():
            inner = assemble(k, x, rhs=columns * len(b), products=products)
            claimed = frozenset({Claim.SYMMETRIC}) if isinstance(k, Crossed) else PSD
            made.append(cast(Operator, Kronecker(inner, Dense(b.to(x), claimed))[at, at]))
        total = Total(*made)
        total.claims = PSD  # rows and columns are the same ones
        return total

    def whole(self, x: Tensor, row: Tensor, task: Tensor, columns: int, rank: int, seed: int = 0) -> Whole:
        """What solves with all observed entries and their noise."""
        with torch.no_grad():
            wide = self.entries(x, row, task, columns, PRODUCTS)
            close = self.entries(x.float(), row, task, columns, PRODUCTS)
            return Whole(wide, close, self.log_noise.exp()[task], rank, seed)


def observed(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, task, value) of the entries of y: n T that are not NaN."""
    row, task = (~y.isnan()).nonzero(as_tuple=True)
    return row, task, y[row, task]


def most_entries(kernels: int) -> int:
    """How many observed entries a Cholesky factor takes, by time and the memory budget."""
    return min(EXACT_ROWS, int((memory_budget() / (8 * (COPIES + 3 * kernels))) ** 0.5))


def algorithm(tasks: Tasks, y: Tensor) -> str:
    """How y: n T is solved: "kronecker" where one kernel sees all tasks at every row, "cholesky", or "cg"."""
    kernels = len(tasks.kernels) + len(tasks.pairs)
    limit = most_entries(kernels)
    if kernels == 1 and len(y) <= limit and not bool(y.isnan().any()):
        return "kronecker"
    return "cholesky" if int((~y.isnan()).sum()) <= limit else "cg"


@record
class Separable:
    """K kron B + I by the eigenvectors of both: A^-1 = (U kron V) (lambda s + 1)^-1 (U kron V)^T.

    K: n n, B: T T in units of each task's noise. Cost: 9 (n^3 + T^3) flops. Source [vanloan2000], [bonilla2007].
    """

    def __init__(self, k: Tensor, b: Tensor):
        self.values, self.u = torch.linalg.eigh(k)
        self.scales, self.v = torch.linalg.eigh(b)
        self.values, self.scales = self.values.clamp_min(0), self.scales.clamp_min(0)
        self.inverse = 1 / (self.values[:, None] * self.scales + 1)

    def plain(self) -> dict[str, Any]:
        """The eigenpairs."""
        return dict(vars(self))

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Separable:
        """What `plain` described."""
        found = cls.__new__(cls)
        vars(found).update({name: plain[name] for name in ("values", "u", "scales", "v", "inverse")})
        return found

    def solve(self, y: Tensor) -> Tensor:
        """A^-1 y for y: n T."""
        return self.u @ (self.inverse * (self.u.mT @ y @ self.v)) @ self.v.mT

    def logdet(self) -> float:
        return -float(self.inverse.log().sum())

    def slopes(self, k: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in K and B of -(y^T A^-1 y + log det A) / 2, for a = A^-1 y."""
        left = (self.inverse * self.scales).sum(1)
        right = (self.inverse * self.values[:, None]).sum(0)
        return (a @ b @ a.mT - (self.u * left) @ self.u.mT) / 2, (a.mT @ k @ a - (self.v * right) @ self.v.mT) / 2

    def explained(self, cross: Tensor, between: Tensor) -> Tensor:
        """c^T A^-1 c for c = k(x) kron B[:, t], `m T`; cross: n m, between: T T, column t for task t."""
        return (self.u.mT @ cross).square().mT @ self.inverse @ (self.v.mT @ between).square()


class TasksLikelihood(Evidence):
    """log p(y | x) of Gaussian tasks, y: n T with NaN where a task was not observed; theta as in `Tasks`.

    Exact by the eigenvectors of K and B where every task is seen at every row and there is one kernel, by Cholesky on
    the observed entries up to 5,000 of them, and by products beyond (see `StochasticLikelihood`).
    Cost: 9 n^3 + 9 T^3 flops; N^3; or about 40 products of each K with T columns.
    """

    def __init__(self, tasks: Tasks, parts: Sequence[tuple[Tensor, Tensor]]):
        super().__init__(tasks, 1.0, parts, profile=False)
        self.tasks, self.keep_noise = tasks, True  # the noise of each task is among the parameters
        self.sampler = StochasticLikelihood(tasks, 1.0, [], profile=False)

    def _part(self, part: tuple[Tensor, ...], gradient: bool) -> tuple[float, list[Tensor]]:
        x, y = part
        leaves = [*[p for _, p in self.named], torch.zeros((), dtype=torch.float64, requires_grad=True)]
        with torch.set_grad_enabled(gradient):
            how = algorithm(self.tasks, y)
            if how == "kronecker":
                return self._separable(x, y, leaves, gradient)
            row, task, values = observed(y)
            noise, target = self.tasks.log_noise.exp()[task], values[:, None]
            if how == "cg":
                columns = 1 + self.sampler.probes
                whole = self.tasks.whole(x, row, task, columns, self.sampler.rank)
                live = self.tasks.entries(x, row, task, columns)
                return self.sampler.sampled(whole, live, noise, target, leaves, gradient)[:2]
            k = self.tasks.gram(x, row, task)
        a = k.detach().clone()
        a.diagonal().add_(noise.detach())
        factor = Cholesky().factor(a)
        weights = factor.solve(target)
        value, _ = gaussian((target * weights).sum(0), float(factor.logdet()), len(row), False)
        if not gradient:
            return value, []
        slope = 0.5 * (weights @ weights.mT - factor.inverse())
        return value, slopes([(k, slope), (noise, slope.diagonal())], leaves)

    def _separable(self, x: Tensor, y: Tensor, leaves: list[Tensor], gradient: bool) -> tuple[float, list[Tensor]]:
        ((kernel, between),) = self.tasks.parts()
        level = self.tasks.log_noise
        root = (0.5 * level).exp()
        k, b, scaled = kernel.block(x, x), between / root / root[:, None], y / root
        with torch.no_grad():
            solver = Separable(k, b)
            a = solver.solve(scaled)
            n, count = y.shape
            logdet = solver.logdet() + n * float(level.sum())
            value = -0.5 * (float((a * scaled).sum()) + logdet + n * count * math.log(2 * math.pi))
            if not gradient:
                return value, []
            in_k, in_b = solver.slopes(k, b, a)
            each = torch.full_like(level, -n / 2)
        return value, slopes([(k, in_k), (b, in_b), (scaled, -a), (level * 1.0, each)], leaves)
