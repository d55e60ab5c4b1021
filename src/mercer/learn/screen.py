"""Which of very many columns matter at first sight: where to begin when rows are too few to learn every lengthscale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Matern

COLUMNS, RATIO = 50, 2  # screened are tables of more columns than this, and more than the rows over this
ROWS, FOLDS = 1000, 5
POWERS, NOISES = (1.0, 2.0), (0.03, 0.3, 3.0)
SURE = 2.0  # standard errors by which screening must lower the error of rows that it did not see
REST = 1e-3  # relevance of a column that shows nothing


def _units(table: Tensor) -> Tensor:
    table = table - table.mean(0)
    return table / table.square().mean(0).sqrt().clamp_min(1e-12)


def relevance(x: Tensor, y: Tensor, power: float) -> Tensor:
    """Of each column of x: n d, `d` of mean about one: its squared correlation, or its square's, with y: n c.

    What chance gives, 1 / n, is taken off; power: 2 sets the strong further apart from the many.
    """
    z, t = _units(x), _units(y)
    match = torch.maximum((z.mT @ t).square(), (_units(z.square()).mT @ t).square()).amax(1) / len(x) ** 2
    share = (match - 1 / len(x)).clamp_min(0) ** power
    return share / share.mean().clamp_min(1e-300) + REST


def _errors(x: Tensor, y: Tensor, power: float | None, fold: Tensor) -> Tensor:
    """Squared errors, `n`, at the best of a few noises; relevance and fit of each fold come from the other folds."""
    found = y.new_zeros(len(NOISES), len(x))
    for f in range(FOLDS):
        out, rest = fold == f, fold != f
        weight = torch.ones(x.shape[1], dtype=x.dtype) if power is None else relevance(x[rest], y[rest], power)
        kernel = Gaussian(math.sqrt(x.shape[1]))
        a, b = x[rest] * weight.sqrt(), x[out] * weight.sqrt()
        near, across, middle = kernel.block(a, a), kernel.block(b, a), y[rest].mean(0)
        for place, noise in enumerate(NOISES):
            weights = torch.linalg.solve(near + noise * torch.eye(len(a), dtype=x.dtype), y[rest] - middle)
            found[place, out] = (y[out] - middle - across @ weights).square().mean(1)
    return found[int(found.mean(1).argmin())]


@torch.no_grad()
def screened(x: Tensor, y: Tensor, generator: torch.Generator) -> list[Kernel]:
    """Kernels whose lengthscales begin short where a column by itself tells something of y; x: n d, y: n c, float64.

    Empty where columns are not many for the rows, or where screening does not help rows that it did not see: columns
    chosen by chance look as good as any on the rows that chose them.
    """
    n, d = x.shape
    if d <= COLUMNS or RATIO * d <= n or n < 4 * FOLDS:
        return []
    rows = torch.randperm(n, generator=generator)[:ROWS]
    some, goal = x[rows], y[rows]
    fold = torch.arange(len(rows)) % FOLDS
    plain = [_errors(some, goal, None, fold), (goal - goal.mean(0)).square().mean(1)]
    usual = min(plain, key=lambda errors: float(errors.mean()))
    tried = {power: _errors(some, goal, power, fold) for power in POWERS}
    power = min(tried, key=lambda p: float(tried[p].mean()))
    gain = usual - tried[power]
    if float(gain.mean()) <= SURE * float(gain.std()) / math.sqrt(len(rows)):
        return []
    scales = math.sqrt(d) / relevance(some, goal, power).sqrt()
    return [Matern(2.5, scales), Gaussian(scales)]
