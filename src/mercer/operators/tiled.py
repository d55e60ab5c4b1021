"""Tiled: kernel blocks made on the fly; the n x m matrix is never in memory at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.errors import StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel, ProfileKernel
from mercer.numerics import exp
from mercer.operator import Cost, Operator
from mercer.operators.converted import Converted
from mercer.operators.passes import copies, product, servable
from mercer.operators.speed import tile_seconds
from mercer.operators.tilesum import Plan, Tensors, tile_sum

TILE = 2**19  # entries of one tile: about the size of the caches of one core
LEAST = 256  # entries below which a tile is not cut further, however small the budget
COPIES = 8  # tile-sized temporaries alive at once while a block and its gradient are formed
KERNEL_FLOPS = 30  # flops of one kernel value beside the 2 d of its statistic


class Tiled(Operator):
    """k on x and y, applied tile by tile within the memory budget; gradients recompute the tiles.

    x: ... n d, y: ... m d. part: None, "lower" (causal: entries with column > row are zero) or "upper".
    log_scale: ... n 1, divided out of the rows as exp(log_scale), in log space; transposed says that it belongs to
    the columns. Cost: n m (2 d + 30) flops each product, memory O(n + m) and one tile.
    """

    def __init__(
        self,
        kernel: Kernel,
        x: Tensor,
        y: Tensor,
        claims: Claims = NO_CLAIMS,
        part: str | None = None,
        log_scale: Tensor | None = None,
        transposed: bool = False,
    ):
        self.kernel, self.x, self.y, self.part, self.log_scale = kernel, x, y, part, log_scale
        self.transposed = transposed
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        self.shape = torch.Size([*batch, x.shape[-2], y.shape[-2]])
        self.dtype, self.device, self.claims = torch.promote_types(x.dtype, y.dtype), x.device, claims

    def _tile_shape(self) -> tuple[int, int]:
        batch = max(math.prod(self.shape[:-2]), 1)
        points = self.kernel.workspace(self.x.shape[-1]) * self.dtype.itemsize * batch
        budget = memory_budget() // 2 // torch.get_num_threads()  # each thread works on a tile of its own
        entries = max(min(TILE, budget // (COPIES * self.dtype.itemsize)) // batch, LEAST)
        side = max(int(math.sqrt(entries)), 8)
        if points:  # two tiles' worth of per-point workspace must fit beside the entries
            side = max(min(side, budget // (4 * points)), 8)
        n, m = self.shape[-2:]
        height = min(side, max(n, 1))
        width = min(max(min(entries // height, budget // (4 * max(points, 1))), 8), max(m, 1))
        return height, width

    def _block(self, i: int, j: int, x: Tensor, y: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            block = self.kernel.block(x, y)
        else:
            block = exp(self.kernel.log_block(x, y) - scale)
        return self._mask(block, i - j, 0.0)

    def _mask(self, block: Tensor, offset: int, fill: float) -> Tensor:
        if self.part is None:
            return block
        column = torch.arange(block.shape[-1], device=block.device)
        row = torch.arange(block.shape[-2], device=block.device)[:, None] + offset
        outside = column > row if self.part == "lower" else column < row
        return block.masked_fill(outside, fill)

    def _skip(self, i: int, high: int, j: int, wide: int) -> bool:
        if self.part is None:
            return False
        return j > i + high - 1 if self.part == "lower" else j + wide - 1 < i

    def matmul(self, v: Tensor) -> Tensor:
        kernel, whole = self.kernel, self.part is None and self.log_scale is None
        if whole and isinstance(kernel, ProfileKernel) and servable(kernel, self.x, self.y, v):
            return product(kernel, self.x, self.y, v, *self._tile_shape())
        parameters = [p for p in kernel.parameters() if p.requires_grad]
        rows, cols = [self.x], [self.y, v]
        if self.log_scale is not None:
            (cols if self.transposed else rows).append(self.log_scale)

        def fn(i: int, j: int, left: Tensors, right: Tensors) -> tuple[Tensors, Tensors, Tensors]:
            scale = left[1] if len(left) > 1 else right[2].mT if len(right) > 2 else None
            return ((self._block(i, j, left[0], right[0], scale) @ right[1],), (), ())

        n, m = self.shape[-2:]
        plan = Plan(fn, n, m, *self._tile_shape(), len(rows), len(cols), len(parameters), self._skip)
        return tile_sum(plan, [*rows, *cols, *parameters])[0]

    @property
    def mT(self) -> Tiled:
        part = {None: None, "lower": "upper", "upper": "lower"}[self.part]
        return Tiled(_Swapped.of(self.kernel), self.y, self.x, self.claims, part, self.log_scale, not self.transposed)

    def cost(self, rhs: int = 1) -> Cost:
        n, m = self.shape[-2:]
        height, width = self._tile_shape()
        batch = max(math.prod(self.shape[:-2]), 1)
        work = batch * n * m * (2 * self.x.shape[-1] + KERNEL_FLOPS + 2 * rhs)
        points = self.kernel.workspace(self.x.shape[-1]) * (height + width)
        memory = batch * self.dtype.itemsize * (COPIES * height * width + points) * torch.get_num_threads()
        if isinstance(self.kernel, ProfileKernel) and 2 * copies(self.x, self.y) <= memory_budget():
            memory += copies(self.x, self.y)  # made by the loop without a gradient
        seconds = tile_seconds(self.kernel, self.x, float(batch) * n * m, rhs)
        return Cost(0, work, memory, 0.0, seconds)

    def dense(self) -> Tensor:
        """The matrix itself, `... n m`, formed in tiles. Raises MemoryBudgetError when it does not fit."""
        self._fits()
        n, m = self.shape[-2:]
        height, width = self._tile_shape()
        scale, strips = self.log_scale, []
        for i in range(0, max(n, 1), height):
            x, pieces = self.x[..., i : i + height, :], []
            for j in range(0, max(m, 1), width):
                here = scale if scale is None else scale[..., j : j + width, :].mT
                if scale is not None and not self.transposed:
                    here = scale[..., i : i + height, :]
                pieces.append(self._block(i, j, x, self.y[..., j : j + width, :], here))
            strips.append(torch.cat(pieces, -1))
        return torch.cat(strips, -2)

    def diagonal(self) -> Tensor:
        k = min(self.shape[-2:])
        x = self.x[..., :k, :]
        if self.x is self.y and self.log_scale is None:
            return self.kernel.diagonal(x)
        x, y = x.unsqueeze(-2), self.y[..., :k, :].unsqueeze(-2)
        if self.log_scale is None:
            return self.kernel.block(x, y)[..., 0, 0]
        return (self.kernel.log_block(x, y)[..., 0, 0] - self.log_scale[..., :k, 0]).exp()

    def tril(self) -> Operator:
        if self.part == "upper":
            raise StructureError("the causal part of an upper triangle is its diagonal: use A.diagonal()")
        return Tiled(self.kernel, self.x, self.y, NO_CLAIMS, "lower", self.log_scale, self.transposed)

    def stabilised(self) -> Operator:
        """Rows divided by their sums in log space (as constants: a positive factor per row is free to choose)."""
        if self.log_scale is not None:
            return self
        n, m = self.shape[-2:]
        height, width = self._tile_shape()
        pieces: list[Tensor] = []
        with torch.no_grad():
            for i in range(0, n, height):
                total = self.x.new_full((*self.shape[:-2], 1, 1), -math.inf)
                for j in range(0, m, width):
                    x, y = self.x[..., i : i + height, :], self.y[..., j : j + width, :]
                    if self._skip(i, x.shape[-2], j, y.shape[-2]):
                        continue
                    part = self._mask(self.kernel.log_block(x, y), i - j, -math.inf).logsumexp(-1, keepdim=True)
                    total = torch.logaddexp(total, part)
                pieces.append(total.expand(*self.shape[:-2], min(height, n - i), 1))
        scale = torch.cat(pieces, -2) if pieces and m else self.x.new_zeros(*self.shape[:-1], 1)
        scale = torch.where(scale == -math.inf, 0.0, scale)  # a row of zeros stays a row of zeros
        return Tiled(self.kernel, self.x, self.y, NO_CLAIMS, self.part, scale)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        if self.part is not None or self.log_scale is not None:
            return super()._select(rows, cols)
        return Tiled(self.kernel, self.x[..., rows, :], self.y[..., cols, :])


class _Swapped(Kernel):
    """k(y, x): the transpose of a kernel that is not symmetric."""

    def __init__(self, kernel: Kernel):
        super().__init__()
        self.kernel = kernel

    @staticmethod
    def of(kernel: Kernel) -> Kernel:
        if isinstance(kernel, _Swapped):
            return kernel.kernel
        return kernel if Claim.SYMMETRIC in kernel.claims else _Swapped(kernel)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kernel.block(y, x).mT

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kernel.log_block(y, x).mT

    def workspace(self, d: int) -> int:
        return self.kernel.workspace(d)


@rule
def tiles(request: Request) -> Operator | None:
    """Any kernel on any points; positive features are left to the operator that works on their logarithms.

    Half precision is for storage: tiles are formed in float32.
    """
    kernel, x, y = request.kernel, request.x.points, request.y.points
    if isinstance(kernel, FeatureMap) and Claim.POSITIVE in kernel.claims:
        return None
    half = x.dtype in (torch.bfloat16, torch.float16)
    left = x.float() if half else x
    right = left if request.square else y.float() if half else y
    tiled = Tiled(kernel, left, right, kernel.claims if request.square else NO_CLAIMS)
    return Converted(tiled, x.dtype) if half else tiled
