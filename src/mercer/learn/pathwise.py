"""Functions drawn from a Gaussian process posterior: a draw of the prior, moved by what the data say about it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget, mib
from mercer.errors import MemoryBudgetError, StructureError
from mercer.feature import FeatureMap
from mercer.features.fourier import width
from mercer.kernel import Kernel, Scaled, Spectrum, Sum, Warped
from mercer.learn.answers import as_given
from mercer.linalg import Cholesky

SETS, TILE = 32, 2**18  # of frequencies that draws share; values formed at once
JITTER = 1e-8  # of the prior variance: what a joint draw of smooth functions needs to be factored
Prior = Callable[[Tensor], Tensor]  # points n d -> values n s of s draws


class FunctionSamples:
    """Functions drawn from a posterior: f(x) = prior(x) + k(x, points) weights, given by `sample_functions`.

    Called with X: n d it gives their values, `n count` or `n c count`, in units of y: numpy in, numpy out; a torch X
    may ask for gradients. The same functions in every call. Cost: for n rows n frequencies min(count, 32) cosines,
    n frequencies count flops and a product with k(x, points).
    """

    def __init__(self, model: Any, prior: Prior, weights: Tensor, count: int):
        self.model, self.prior, self.weights, self.count = copy.copy(model), prior, weights, count

    def __call__(self, X: Any) -> Any:
        model = self.model
        table, _ = model._read(X, reset=False)
        tracked = isinstance(X, Tensor) and X.requires_grad
        x = model.scaler_.tensor(X.double().cpu()) if tracked else model.scaler_(table)
        update = assemble(model.kernel_, x, model._points.double(), rhs=self.weights.shape[1]).matmul(self.weights)
        found = (self.prior(x) + update).reshape(len(x), -1, self.count)
        scale, centre = (torch.from_numpy(v)[:, None] for v in (model.target_.scale, model.target_.centre))
        found = centre + scale * found
        found = found[:, 0] if model._vector else found
        return found.to(X) if tracked else as_given(X, found.detach().numpy())


class _Waves:
    """sqrt(variance / r) sum of a_i cos(w_i . u(x)) + b_i sin(w_i . u(x)), in up to 32 sets of r frequencies.

    Mean and covariance over sets are those of the kernel for any r; r decides how Gaussian several values are.
    """

    def __init__(self, kernel: Kernel, spectrum: Spectrum, d: int, draws: int, r: int, generator: torch.Generator):
        self.spectrum, self.draws = spectrum, draws
        sets, columns = min(draws, SETS), width(spectrum, d)
        self.frequencies = spectrum.sample(sets * r, columns, generator).reshape(sets, r, columns)
        sides = torch.randn(sets, 2 * r, -(-draws // sets), generator=generator, dtype=torch.float64)
        self.weights = (float(spectrum.variance().detach()) / r) ** 0.5 * sides

    def __call__(self, x: Tensor) -> Tensor:
        high = max(TILE // self.weights.shape[1], 1)
        return torch.cat([self._rows(part) for part in x.split(high)])

    def _rows(self, x: Tensor) -> Tensor:
        u, found = self.spectrum.coordinates(x), []
        for frequencies, weights in zip(self.frequencies, self.weights, strict=True):
            phase = u @ frequencies.mT
            found.append(torch.cat([phase.cos(), phase.sin()], 1) @ weights)
        return torch.cat(found, 1)[:, : self.draws]


class _Joint:
    """Draws of any kernel by Cholesky on all points asked for so far, which are remembered: no gradients in x."""

    def __init__(self, kernel: Kernel, draws: int, generator: torch.Generator):
        self.kernel, self.draws, self.generator = kernel, draws, generator
        self.at: dict[bytes, int] = {}
        self.points: Tensor | None = None
        self.lower = self.white = self.values = torch.zeros(0, 0, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise StructureError(
                f"{self.kernel!r} has no spectrum, so its draws are known at the points asked for only and have no "
                "gradient; use a kernel with a spectrum"
            )
        keys = [row.tobytes() for row in x.numpy()]
        new = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self.at}
        if new:
            self._extend(x[sorted(new.values())])
            self.at |= {keys[place]: len(self.at) + i for i, place in enumerate(sorted(new.values()))}
        return self.values[[self.at[key] for key in keys]]

    @torch.no_grad()
    def _extend(self, x: Tensor) -> None:
        old = 0 if self.points is None else len(self.points)
        n = old + len(x)
        if 32 * n * n > memory_budget():
            raise MemoryBudgetError(
                f"{self.kernel!r} has no spectrum: a draw at {n:,} points by Cholesky needs {mib(32 * n * n)}, the "
                f"budget is {mib(memory_budget())}"
            )
        near = self.kernel.block(x, x)
        near.diagonal().add_(JITTER * float(near.diagonal().mean()))
        side = torch.zeros(len(x), 0, dtype=torch.float64)
        if self.points is not None:
            cross = self.kernel.block(self.points, x)
            side = torch.linalg.solve_triangular(self.lower, cross, upper=False).mT
            near -= side @ side.mT
        corner = Cholesky().factor(near).lower
        self.lower = torch.cat([torch.nn.functional.pad(self.lower, (0, len(x))), torch.cat([side, corner], 1)])
        fresh = torch.randn(len(x), self.draws, generator=self.generator, dtype=torch.float64)
        self.white = torch.cat([self.white.reshape(old, self.draws), fresh])
        self.points = x if self.points is None else torch.cat([self.points, x])
        self.values = torch.cat([self.values.reshape(old, self.draws), self.lower[old:] @ self.white])


def prior_draws(kernel: Kernel, d: int, draws: int, frequencies: int, generator: torch.Generator) -> Prior:
    """Independent draws of a Gaussian process with this covariance on points with d columns.

    By features where the kernel is one, by waves where it has a spectrum, part by part through sums, factors and
    warps; else by Cholesky on the points asked for.
    """
    if isinstance(kernel, FeatureMap):
        weights = torch.randn(kernel.rank, draws, generator=generator, dtype=torch.float64)
        return lambda x: kernel.features(x) @ weights
    try:
        return _Waves(kernel, kernel.spectrum(), d, draws, frequencies, generator)
    except StructureError:
        pass_on = (draws, frequencies, generator)
    if isinstance(kernel, Sum):
        parts = [prior_draws(part, d, *pass_on) for part in kernel.parts if isinstance(part, Kernel)]
        return lambda x: torch.stack([part(x) for part in parts]).sum(0)
    if isinstance(kernel, Scaled):
        inner, size = prior_draws(kernel.kernel, d, *pass_on), float(kernel.variance.detach()) ** 0.5
        return lambda x: size * inner(x)
    if isinstance(kernel, Warped):
        with torch.no_grad():
            columns = kernel.moved(torch.zeros(1, d, dtype=torch.float64)).shape[-1]
        moved = prior_draws(kernel.kernel, columns, *pass_on)
        return lambda x: moved(kernel.moved(x))
    return _Joint(kernel, draws, generator)


@torch.no_grad()
def sample_posterior(model: Any, count: int, frequencies: int, random_state: Any) -> FunctionSamples:
    """Draws of the posterior of a fitted GaussianProcessRegressor.

    All rows: f + k(., x) A^-1 (y - f(x) - e) for a draw f of the prior and e of the noise. Landmarks:
    f + k(., z) K_mm^-1 (u - f(z)) for a draw u of what is known of the landmarks.
    """
    if count < 1 or frequencies < 1:
        raise ValueError(f"count is {count}, frequencies {frequencies}; expected whole numbers >= 1")
    generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
    points, known = model._points.double(), model._weights.double()
    draws = known.shape[1] * count
    prior = prior_draws(model.kernel_, points.shape[1], draws, frequencies, generator)
    before = prior(points)
    luck = torch.randn(len(points), draws, generator=generator, dtype=torch.float64)
    if len(model._roots) == 2:
        middle, total = model._roots
        spread = torch.linalg.solve_triangular(total.mT, luck, upper=True)
        moved = model.noise_**0.5 * spread - torch.cholesky_solve(before, middle)
    else:
        wrong = before + model._noises().sqrt()[:, None] * luck
        if model._roots:
            moved = -torch.cholesky_solve(wrong, model._roots[0])
        else:
            engine = model._engine(draws)
            moved = -torch.cat([engine.solve(part).value for part in wrong.split(engine.columns, 1)], 1)
    return FunctionSamples(model, prior, known.repeat_interleave(count, 1) + moved, count)
