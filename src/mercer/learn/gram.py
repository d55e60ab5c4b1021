"""What the learners without a target share with each other: a table in, a kernel, and its Gram operator."""

from __future__ import annotations

import copy
from abc import ABC
from typing import Any

import numpy as np
import scipy.linalg
import torch
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.errors import DataError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian
from mercer.learn.arguments import usual
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, read
from mercer.linalg import eigenpairs
from mercer.operator import Operator

SAMPLE = 1000  # rows from which a lengthscale is taken
NEIGHBOUR, PART = 7, 100  # the scale of neighbourhoods in a cluster: the 7th neighbour, or a hundredth of the rows
SMALL, SHARE = 500, 6  # rows up to which all of K is decomposed, and above which part of its pairs that is cheaper


def median_distance(x: Tensor, generator: torch.Generator) -> float:
    """The median distance of two rows of x, of up to 1,000 drawn ones; 1 where most are equal."""
    some = x[torch.randperm(len(x), generator=generator)[:SAMPLE]]
    found = torch.pdist(some - some.median(0).values)
    return (float(found.median()) if len(found) else 0.0) or 1.0


def neighbour_distance(x: Tensor, generator: torch.Generator) -> float:
    """The median distance of a row to its 7th (of many rows: n / 100-th) neighbour, of up to 1,000 drawn rows.

    Source [zelnik2004, sec. 2], who take a scale for each row.
    """
    at = torch.randperm(len(x), generator=generator)[:SAMPLE].numpy()
    table = x.numpy()
    count = min(max(NEIGHBOUR, len(table) // PART) + 1, len(table))
    search = NearestNeighbors(n_neighbors=count).fit(table)
    found = float(np.median(search.kneighbors(table[at])[0][:, -1]))
    return found or median_distance(x, generator)


def gaussian_by(distance: float) -> Kernel:
    return Gaussian(torch.tensor(distance, dtype=torch.float64))


def held(n: int, copies: int = 3) -> bool:
    """Whether so many n x n matrices in float64 fit the memory budget."""
    return 8 * n * n * copies <= memory_budget()


def top_eigenpairs(a: Operator, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(values `count`, falling; vectors `n count`) of a symmetric operator: LAPACK on small ones, else Lanczos.

    Signs: the entry of a vector that is largest in magnitude is positive.
    """
    n = a.shape[-1]
    if held(n) and (n <= SMALL or count * SHARE > n):
        values, vectors = scipy.linalg.eigh(a.dense().numpy(), subset_by_index=[n - count, n - 1])
        u, top = torch.from_numpy(vectors[:, ::-1].copy()), torch.from_numpy(values[::-1].copy())
    else:
        found = eigenpairs(a, count, max_products=max(2000, 40 * count), generator=generator)
        top, u = found.values, found.vectors
    return top, u * signs(u)


def signs(u: Tensor) -> Tensor:
    """For each column 1 or -1, so that its entry of largest magnitude becomes positive."""
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(u.dtype)


class GramEstimator(Saved, BaseEstimator, ABC):
    """Base of the learners on one Gram: not public, and of no use alone."""

    kernel: Any
    standardize: bool | None
    random_state: Any
    _fitted: tuple[str, ...] = ("kernel_", "scaler_")

    def _usual(self, x: Tensor, generator: torch.Generator) -> Kernel:
        """The kernel of scaled rows when none is given."""
        return gaussian_by(median_distance(x, generator))

    def _begin(self, X: Any, y: Any = None, *, classes: bool = False) -> tuple[Tensor, Any, torch.Generator]:
        """(scaled rows `n d` float64, y in numpy, generator); sets scaler_ and kernel_."""
        usual(self)
        table, y = read(self, X, y, reset=True, classes=classes, target=classes)
        if len(table) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        ours = self.kernel is None if self.standardize is None else bool(self.standardize)
        self.scaler_ = Scaler.fit(table) if ours else Scaler.identity(table.shape[1])
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        generator = torch.Generator().manual_seed(int(seed))
        x = self.scaler_(table)
        kernel = self._usual(x, generator) if self.kernel is None else copy.deepcopy(self.kernel)
        self.kernel_ = kernel.requires_grad_(False)
        return x, y, generator

    def _seen(self, X: Any) -> Tensor:
        """New rows as `kernel_` sees them."""
        return self.scaler_(read(self, X, reset=False, target=False)[0])

    def _gram(self, x: Tensor, rhs: int, products: int) -> Operator:
        """The operator of kernel_ on x, for so many products."""
        return assemble(self.kernel_, x, rhs=rhs, products=products)

    def _times(self, x: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """k(x, points) weights: x `n d`, weights `m c` -> `n c`; no n x m matrix is kept."""
        return assemble(self.kernel_, x, points, rhs=weights.shape[1]).matmul(weights.contiguous())
