"""Cascades of polyharmonic splines: packages that interpolate values at fixed nodes, trained by one solve a batch."""

from __future__ import annotations

from abc import ABC
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.errors import DataError
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, positive
from mercer.learn.classify import encoded
from mercer.learn.state import Saved, record
from mercer.learn.table import Scaler, Target, read

RAISED, TRIES = 8.0, 6  # the damping, after a step that did not lower the loss of its batch
FLAT = 1e-8  # of the largest variance: directions in which rows do not differ
ROWS = 2048  # predicted together


@record
class Package:
    """Thin-plate spline through values at fixed nodes: s(x) = sum_j w_j r_j^2 log r_j + a + b x, with w orthogonal to
    affine functions; linear in the values. nodes: m d in general position, m > d + 1; values: m c. Float64.
    """

    def __init__(self, nodes: Tensor, values: Tensor):
        self.nodes, self.values = nodes, values
        m, d = nodes.shape
        affine = torch.cat([torch.ones(m, 1, dtype=nodes.dtype), nodes], 1)
        whole = nodes.new_zeros(m + d + 1, m + d + 1)
        whole[:m, :m], whole[:m, m:], whole[m:, :m] = _bumps(nodes, nodes)[0], affine, affine.mT
        right = torch.eye(m + d + 1, m, dtype=nodes.dtype)
        self.inverse = torch.linalg.solve(whole, right)

    def plain(self) -> dict[str, Tensor]:
        return {"nodes": self.nodes, "values": self.values}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Package:
        return cls(plain["nodes"], plain["values"])

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what each node's value counts at x `n m`, the spline `n c`, its derivatives `n c d`)."""
        bumps, slopes = _bumps(x, self.nodes)
        shares = torch.cat([bumps, torch.ones_like(x[:, :1]), x], 1) @ self.inverse
        weights, linear = (self.inverse @ self.values).split([len(self.nodes), x.shape[1] + 1])
        # the gradient of r^2 log r is (2 log r + 1)(x - node)
        both = slopes @ torch.cat([weights, (weights[:, :, None] * self.nodes[:, None]).flatten(1)], 1)
        own, others = both.split([weights.shape[1], weights.shape[1] * x.shape[1]], 1)
        turned = own[:, :, None] * x[:, None] - others.reshape(len(x), -1, x.shape[1]) + linear[1:].mT
        return shares, shares @ self.values, turned


def _bumps(x: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """(r^2 log r, 2 log r + 1) of all pairs; the second times x - node is 0 at r = 0, so its pole is cut there."""
    r = torch.cdist(x, nodes, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-150)
    return r.square() * r.log(), 2 * r.log() + 1


def forward(packages: list[Package], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """(what nodes count `n m` and what each package's output moves the last `n c w`, of each package; the output)."""
    shares, slopes = [], []
    for package in packages:
        share, x, slope = package.seen(x)
        shares.append(share)
        slopes.append(slope)
    moved = [torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)]
    for slope in reversed(slopes[1:]):
        moved.append(moved[-1] @ slope)
    return shares, moved[::-1], x


def steps(shares: list[Tensor], moved: list[Tensor], wrong: Tensor, damping: float) -> list[Tensor]:
    """Changes of all values of least |wrong - J change|^2 + damping |change|^2: one system of n c unknowns."""
    n, c = wrong.shape
    whole = wrong.new_zeros(n, c, n, c)
    for share, move in zip(shares, moved, strict=True):
        flat = move.reshape(n * c, -1)
        whole += (share @ share.mT)[:, None, :, None] * (flat @ flat.mT).reshape(n, c, n, c)
    system = whole.reshape(n * c, n * c)
    system.diagonal().add_(damping)
    dual = torch.cholesky_solve(wrong.reshape(-1, 1), torch.linalg.cholesky(system)).reshape(n, 1, c)
    return [share.mT @ (dual @ move)[:, 0] for share, move in zip(shares, moved, strict=True)]


class _Cascade(Saved, BaseEstimator, ABC):
    """What regressor and classifier share; not public."""

    packages: int
    nodes: int
    width: int
    epochs: int
    batch_size: int
    damping: float
    random_state: Any
    _fitted: tuple[str, ...] = ("scaler_", "packages_", "loss_", "_middle", "_turn")

    def _learn(self, table: np.ndarray, y: Tensor) -> None:
        for name, least in (("packages", 1), ("nodes", 3), ("width", 1), ("epochs", 0), ("batch_size", 1)):
            count(name, getattr(self, name), least)
        positive("damping", self.damping, optional=False)
        if len(table) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        self.scaler_ = Scaler.fit(table)
        x = self._begun(self.scaler_(table))
        self.packages_ = self._start(x, y.shape[1], generator)
        self.loss_ = [self._loss(x, y)]
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator).split(self.batch_size):
                self._step(x[rows], y[rows])
            self.loss_.append(self._loss(x, y))

    def _begun(self, x: Tensor) -> Tensor:
        """Principal directions, at most a third of the nodes, so that nodes lie in general position."""
        self._middle = x.mean(0)
        _, sizes, axes = torch.linalg.svd(x - self._middle, full_matrices=False)
        most = min(int((sizes.square() > FLAT * sizes[0].square()).sum()), self.nodes // 3)
        kept = max(most, 1)
        scale = float(sizes[:kept].square().mean().sqrt()) / len(x) ** 0.5 or 1.0
        self._turn = axes[:kept].mT / scale
        return (x - self._middle) @ self._turn

    def _start(self, x: Tensor, outputs: int, generator: torch.Generator) -> list[Package]:
        """Random nodes; values that make the cascade a random rotation, and nothing in the last package."""
        deviation, found = x.std(0).clamp_min(1e-3), []
        sizes = [x.shape[1], *[min(self.width, self.nodes // 3)] * (self.packages - 1)]
        for i, d in enumerate(sizes):
            nodes = torch.randn(self.nodes, d, generator=generator, dtype=torch.float64)
            nodes = nodes * deviation if i == 0 else nodes
            if i + 1 == len(sizes):
                values = nodes.new_zeros(len(nodes), outputs)
            else:
                turn = torch.randn(d, sizes[i + 1], generator=generator, dtype=torch.float64)
                values = nodes @ turn / (nodes @ turn).std(0)
            found.append(Package(nodes, values))
        return found

    def _step(self, x: Tensor, y: Tensor) -> None:
        """One solve for the values of all packages; damped more where the batch's loss would not fall."""
        shares, moved, output = forward(self.packages_, x)
        before, damping = float((y - output).square().mean()), self.damping
        old = [package.values for package in self.packages_]
        for _ in range(TRIES):
            for package, value, change in zip(
                self.packages_, old, steps(shares, moved, y - output, damping), strict=True
            ):
                package.values = value + change
            if float((y - forward(self.packages_, x)[2]).square().mean()) <= before:
                return
            damping *= RAISED
        for package, value in zip(self.packages_, old, strict=True):
            package.values = value

    def _loss(self, x: Tensor, y: Tensor) -> float:
        return float((y - self._output(x)).square().mean())

    def _output(self, x: Tensor) -> Tensor:
        return torch.cat([forward(self.packages_, part)[2] for part in x.split(ROWS)])

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "packages_")
        x = (self.scaler_(read(self, X, reset=False)[0]) - self._middle) @ self._turn
        return self._output(x).numpy()


class PolyharmonicCascadeRegressor(RegressorMixin, _Cascade):
    """Cascade of thin-plate splines: f = s_L(... s_1(x)), each spline through values at random nodes that stay.

    Training is no gradient descent: for each batch one linear system, in as many unknowns as the batch has outputs,
    gives the change of the values of all packages of least |wrong - J change|^2 + damping |change|^2.
    packages: splines, >= 1. nodes: of each, >= 3. width: columns between packages, at most nodes / 3; columns of X
    enter by their principal directions, as many. epochs: passes. batch_size: rows a system. damping: > 0, and eight
    times as much while a batch's loss would not fall. random_state: of nodes, start and batches.
    Fitted: packages_, loss_ (mean squared error on all rows before and after each epoch, y in deviations).
    Cost: (batch outputs)^3 / 3 flops a system, nodes^3 a package. Source [bakhvalov2025].
    """

    _fitted: tuple[str, ...] = ("target_", "_vector")

    def __init__(
        self,
        packages: int = 3,
        *,
        nodes: int = 100,
        width: int = 20,
        epochs: int = 5,
        batch_size: int = 150,
        damping: float = 1.0,
        random_state: Any = None,
    ):
        self.packages, self.nodes, self.width, self.epochs = packages, nodes, width, epochs
        self.batch_size, self.damping, self.random_state = batch_size, damping, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        table, y = read(self, X, y, reset=True)
        target = np.asarray(y, dtype=np.float64)
        self._vector = target.ndim == 1
        self.target_, scaled = Target.fit(target.reshape(len(table), -1), True)
        self._learn(table, scaled)
        return self

    @torch.no_grad()
    def predict(self, X: Any) -> Any:
        """Predictions for X: n d, of the shape of y; torch in, torch out."""
        found = self._scores(X)
        back = self.target_.back(found)
        return as_given(X, back[:, 0] if self._vector else back)


class PolyharmonicCascadeClassifier(ClassifierMixin, _Cascade):
    """Cascade of thin-plate splines with an output of 1 for the own class and -1 for others, the largest decides.

    Parameters, training and cost as in PolyharmonicCascadeRegressor. Fitted: classes_, packages_, loss_ (mean squared
    error of the outputs on all rows, before and after each epoch). Source [bakhvalov2025].
    """

    _fitted: tuple[str, ...] = ("classes_",)

    def __init__(
        self,
        packages: int = 3,
        *,
        nodes: int = 100,
        width: int = 20,
        epochs: int = 5,
        batch_size: int = 150,
        damping: float = 1.0,
        random_state: Any = None,
    ):
        self.packages, self.nodes, self.width, self.epochs = packages, nodes, width, epochs
        self.batch_size, self.damping, self.random_state = batch_size, damping, random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        table, y = read(self, X, y, reset=True, classes=True)
        self.classes_, codes = encoded(y)
        one = torch.eye(len(self.classes_), dtype=torch.float64)[torch.from_numpy(codes)]
        self._learn(table, 2 * one - 1)
        return self

    @torch.no_grad()
    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs for rows of X: of the second class less the first `n` where there are two, else of each `n c`."""
        found = self._scores(X)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    @torch.no_grad()
    def predict(self, X: Any) -> np.ndarray:
        """The label of the largest output of each row, `n`."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]
