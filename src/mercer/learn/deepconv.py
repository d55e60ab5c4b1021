"""Convolutional deep kernel machines: towers of Gram matrices of image patches."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mercer.errors import ShapeError
from mercer.features.nystrom import cholesky_landmarks
from mercer.kernel import Kernel
from mercer.kernels import ArcCosine, Linear, Scaled
from mercer.learn.arguments import count
from mercer.learn.deep import DeepProcess
from mercer.learn.inducing import RIDGE
from mercer.learn.rows import Rows
from mercer.learn.table import Scaler
from mercer.learn.tower import Tower, factor, widths
from mercer.learn.variational import SparseClassifier

FIRST = 64  # images that the landmarks of each layer are made from, at least
CANDIDATES = 4000  # patches that the landmarks of a layer are picked from
LOOSE = 1e-4  # ridge of their first weights, of the mean diagonal


class _Convolution(Tower):
    """The prior of a layer is the kernel of the Gram matrix below, averaged over the D places of a patch.

    Landmark j of level + 1 has weights C `m m p p` on the landmarks i below, one for each place d of its patch:
    Gamma_jk = mean_d C_dj Omega C_dk^T; with the row at s: mean_d C_dj omega(s + d); of the row mean_d omega(s + d).
    Outside the image all is zero. Source [milsom2024, eq. 14-18].
    """

    def __init__(
        self, kernels: Sequence[Kernel], m: int, nu: Sequence[float], image: tuple[int, int, int], patch: int,
        stride: int, pool: str,
    ):  # fmt: skip
        super().__init__(m, nu, RIDGE)
        self.kernels, self.image, self.patch = nn.ModuleList(kernels), image, patch
        self.stride, self.pool = stride, pool
        self.sizes = [image[1:]]
        for _ in nu:
            high, wide = ((side - 1) // stride + 1 for side in self.sizes[-1])
            self.sizes.append((high, wide))
        ends = [(patch, patch)] * len(nu) + ([self.sizes[-1]] if pool == "flat" else [])
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(m, m, *end, dtype=torch.float64)) for end in ends)

    def _kernel(self, level: int) -> Kernel:
        return cast(Kernel, self.kernels[level])

    def _step(self, level: int) -> tuple[int, int]:
        """(padding, stride) of the average that ends a level."""
        return (self.patch // 2, self.stride) if level < len(self.layers) else (0, 1)

    def begin(self, x: Tensor) -> Tensor:
        """Patches of images `b c*h*w`: b*h*w c*p*p, divided so that their products are means."""
        images = x.reshape(-1, *self.image)
        parts = functional.unfold(images, self.patch, padding=self.patch // 2)
        return parts.mT.reshape(-1, parts.shape[1]) / math.sqrt(parts.shape[1])

    def among(self, level: int, points: Tensor) -> Tensor:
        omega = self._kernel(level).block(points, points)
        if level == len(self.weights):
            return omega
        c = self.weights[level].flatten(2).permute(2, 0, 1)
        return (c @ omega @ c.mT).mean(0)

    def across(self, level: int, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        kernel, (high, wide) = self._kernel(level), self.sizes[level]
        cross = kernel.block(rows, points).reshape(-1, high, wide, len(points)).permute(0, 3, 1, 2)
        own = kernel.diagonal(rows).reshape(-1, 1, high, wide)
        if level == len(self.weights):
            return cross.permute(1, 0, 2, 3).flatten(1), own.flatten()
        padding, stride = self._step(level)
        c = self.weights[level]
        mixed = functional.conv2d(cross, c, padding=padding, stride=stride) / c[0, 0].numel()
        box = torch.full((1, 1, *c.shape[2:]), 1 / c[0, 0].numel(), dtype=torch.float64)
        alone = functional.conv2d(own, box, padding=padding, stride=stride)
        return mixed.permute(1, 0, 2, 3).flatten(1), alone.flatten()

    def rise(self, x: Tensor, floors: Any, levels: int | None = None) -> tuple[Tensor, Tensor]:
        a, rest = super().rise(x, floors, levels)
        if self.pool == "flat" or levels is not None:
            return a, rest
        places = math.prod(self.sizes[-1])  # the mean over an image; what landmarks do not see is taken as independent
        return a.reshape(len(a), -1, places).mean(2), rest.reshape(-1, places).mean(1) / places

    @torch.no_grad()
    def settle_on(self, x: Tensor, z: Tensor, generator: torch.Generator) -> None:
        """Weights with which the landmarks of each layer are patches of these images, as those below tell them."""
        points, rows = z, self.begin(x)
        for level, c in enumerate(self.weights):
            kernel, m, (padding, stride) = self._kernel(level), len(z), self._step(level)
            lower, _ = factor(kernel.block(points, points), LOOSE)
            half = torch.linalg.solve_triangular(lower, kernel.block(points, rows), upper=False)
            seen = half.reshape(m, len(x), *self.sizes[level]).permute(1, 0, 2, 3)
            parts = functional.unfold(seen, c.shape[2:], padding=padding, stride=stride).mT.flatten(0, 1)
            few = torch.randperm(len(parts), generator=generator)[:CANDIDATES]
            at = few[cholesky_landmarks(Linear(), parts[few], m, generator)]
            at = torch.cat([at, few[~torch.isin(few, at)]])[:m]
            told = torch.linalg.solve_triangular(lower.mT, parts[at].reshape(m, m, -1), upper=True)
            c.copy_(told.reshape(c.shape))
            if level < len(self.layers):
                above, _ = factor(self.among(level, points), self.ridge)
                cross, own = self.across(level, points, rows)
                a = torch.linalg.solve_triangular(above, cross, upper=False)
                rest = (own - a.square().sum(0)).clamp_min(0).sqrt()
                points, rows = torch.cat([above, above.new_zeros(m, 1)], 1), torch.cat([a.mT, rest[:, None]], 1)


def _image(shape: Any, columns: int) -> tuple[int, int, int]:
    """(channels, height, width). Raises ShapeError where they do not make that many columns."""
    given = (1, columns) if shape is None else shape
    whole = isinstance(given, Sequence) and len(given) in (2, 3) and all(isinstance(v, int) and v > 0 for v in given)
    if not whole or math.prod(given) != columns:
        raise ShapeError(
            f"image_shape is {shape!r}; expected (height, width) or (channels, height, width), X.d {columns}"
        )
    found = (1, *given) if len(given) == 2 else tuple(given)
    return found[0], found[1], found[2]


class ConvolutionalDeepKernelMachine(DeepProcess, SparseClassifier):
    """Images to classes: a deep kernel machine whose layers average kernels of the Gram matrix over patches.

    The limit of wide Bayesian convolutional networks in which Gram matrices are learned; those at m landmarks, which
    are patches at first and weights on the landmarks below later. f is dense on the last layer (pool "flat") or its
    mean over places ("average"); p(class) as in DeepKernelMachineClassifier.
    image_shape: (h, w) or (c, h, w), of a row of X; None: one line. layers: L >= 1. nu: > 0; inf: the convolutional
    network Gaussian process. patch: odd side. stride: of each layer, >= 1. kernel: of inner products; None: ArcCosine.
    landmarks: m, of each layer. epochs, batch_size: of Adam. Others as in DeepKernelMachine. Fitted: classes_, grams_.
    Cost: 6 (L + 1) n h w m^2 p^2 flops an epoch. Error: the optimum is local; what landmarks do not see of two places
    counts as independent for "average". Raises ShapeError. Source [milsom2024, sec. 3].
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        image_shape: Any = None,
        layers: int = 1,
        nu: Any = 10.0,
        patch: int = 3,
        stride: int = 1,
        pool: str = "flat",
        landmarks: int = 100,
        batch_size: int = 100,
        epochs: int = 10,
        learn: bool = True,
        standardize: bool | None = None,
        tolerance: float = 1e-3,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.image_shape, self.layers, self.nu, self.patch = kernel, image_shape, layers, nu, patch
        self.stride, self.pool, self.landmarks, self.batch_size = stride, pool, landmarks, batch_size
        self.epochs, self.learn, self.standardize, self.tolerance = epochs, learn, standardize, tolerance
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state

    def _check(self) -> None:
        super()._check()
        for name in ("patch", "stride", "landmarks"):
            count(name, getattr(self, name), 1)
        if int(self.patch) % 2 == 0:
            raise ValueError(f"patch is {self.patch}; expected an odd side, so that it has a middle")
        if self.pool not in ("flat", "average"):
            raise ValueError(f"pool is {self.pool!r}; expected 'flat' or 'average'")

    def _scaling(self, rows: Rows) -> Scaler:
        """One mean and one deviation: pixels are alike wherever they are."""
        some, d = rows.take(rows.sample()), rows.columns
        return Scaler(np.full(d, some.mean()), np.full(d, some.std() or 1.0))

    _whole = 0  # images come in batches

    def _pixels(self, columns: int) -> int:
        return math.prod(_image(self.image_shape, columns)[1:])

    def _tower(self, kernels: list[Kernel], m: int, columns: int) -> _Convolution:
        image, nu = _image(self.image_shape, columns), widths(self.nu, int(self.layers))
        return _Convolution(kernels, m, nu, image, int(self.patch), int(self.stride), self.pool)

    def _build(self, x: Tensor, generator: torch.Generator) -> tuple[list[Kernel], Tower, Tensor, bool]:
        m = min(int(self.landmarks), len(x))
        given = ArcCosine(1) if self.kernel is None else self.kernel
        kernels = [copy.deepcopy(given) for _ in range(int(self.layers) + 1)]
        if self.kernel is None:
            kernels[-1] = Scaled(kernels[-1], 1.0)
        tower = self._tower(kernels, m, x.shape[1])
        some = x[torch.randperm(len(x), generator=generator)[: max(FIRST, m)]]
        with torch.no_grad():
            parts = tower.begin(some)
            parts = parts[torch.randperm(len(parts), generator=generator)[:CANDIDATES]]
            z = parts[cholesky_landmarks(kernels[0], parts, m, generator)]
            z = torch.cat([z, parts[: m - len(z)]])
        tower.settle_on(some, z, generator)
        return kernels, tower, z, False
