"""The normal equations of landmarks as running sums: rows may come in any number of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mercer.kernel import Kernel
from mercer.learn.landmarks import block_rows
from mercer.learn.state import record
from mercer.linalg import Cholesky

KEPT = 20_000  # left-out residuals kept, a uniform draw of all


@record
class Sums:
    """K_mn D K_nm and K_mn D y in float64; f = k(., z) w with (K_mn D K_nm + level (K_mm + jitter I)) w = K_mn D y.

    middle: K_mm + jitter I in float64. The order in which rows come changes nothing but rounding.
    Cost: n m^2 flops for n rows, m^3 / 3 for an answer; 24 m^2 bytes.
    """

    def __init__(self, kernel: Kernel, z: Tensor, middle: Tensor, level: float, outputs: int, seed: int):
        self.kernel, self.z, self.middle, self.level, self.seed = kernel, z, middle, level, seed
        self.gram, self.right = torch.zeros_like(middle), middle.new_zeros(len(z), outputs)
        self.rows = 0
        self.order = middle.new_zeros(0)
        self.where, self.wrong = middle.new_zeros(0, 0), middle.new_zeros(0, outputs)

    def plain(self) -> dict[str, Any]:
        """What was added so far: numbers and tensors by name."""
        return {name: value for name, value in vars(self).items() if name != "factor"}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Sums:
        """The sums that `plain` described."""
        kernel, z, middle, level, seed = (plain[name] for name in ("kernel", "z", "middle", "level", "seed"))
        found = cls(kernel, z, middle, level, plain["right"].shape[1], seed)
        vars(found).update({name: plain[name] for name in vars(found)})
        return found

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
        """Rows x: n d, y: n c, weight: n 1 or None, all float64."""
        for part in torch.arange(len(x)).split(block_rows(len(self.z))):
            k = self.kernel.block(x[part], self.z)
            heavy = k if weight is None else weight[part] * k
            self.gram.addmm_(k.mT, heavy)
            self.right.addmm_(heavy.mT, y[part])

    def solve(self) -> Tensor:
        """The weights w, `m c`."""
        self.factor = Cholesky().factor(self.gram.add(self.middle, alpha=self.level))
        return self.factor.solve(self.right)

    @torch.no_grad()
    def left_out(self, x: Tensor, y: Tensor, weight: Tensor | None, w: Tensor) -> Tensor:
        """y - f, `n c`, of rows that are in the sums, f without the row itself: residual / (1 - leverage).

        Source [rasmussen2006, eq. 5.12].
        """
        wrong = []
        for part in torch.arange(len(x)).split(block_rows(len(self.z))):
            k = self.kernel.block(x[part], self.z)
            half = torch.linalg.solve_triangular(self.factor.lower, k.mT, upper=False)
            leverage = half.square().sum(0)[:, None] * (1.0 if weight is None else weight[part])
            wrong.append((y[part] - k @ w) / (1 - leverage).clamp_min(1e-6))
        return torch.cat(wrong)

    def choose(self, x: Tensor, y: Tensor, weight: Tensor | None, levels: Sequence[float]) -> None:
        """The level by which the rows in the sums are best predicted without themselves."""
        errors = {}
        for self.level in levels:
            wrong = self.left_out(x, y, weight, self.solve()).square().sum(1, keepdim=True)
            errors[self.level] = float((wrong if weight is None else weight * wrong).sum())
        self.level = min(errors, key=lambda level: errors[level])

    def judge(self, x: Tensor, y: Tensor, weight: Tensor | None, w: Tensor, where: Tensor) -> None:
        """Keep (where, left-out y - f) of rows that were just added."""
        order = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed + self.rows))
        self.rows += len(x)
        kept = order.argsort()[:KEPT]
        wrong = self.left_out(x[kept], y[kept], None if weight is None else weight[kept], w)
        self.order = torch.cat([self.order, order[kept]])
        self.where = torch.cat([self.where.reshape(-1, where.shape[1]), where[kept]])
        self.wrong = torch.cat([self.wrong, wrong])
        some = self.order.argsort()[:KEPT]
        self.order, self.where, self.wrong = self.order[some], self.where[some], self.wrong[some]
