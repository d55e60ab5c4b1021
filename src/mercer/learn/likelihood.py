"""The log marginal likelihood of a kernel and a noise level, with its gradient, as a function of one vector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mercer.kernel import Kernel
from mercer.linalg.cholesky import Cholesky

NARROW, WIDE = -11.5, 11.5  # of the logarithm of a positive parameter, unless it starts outside
Part = tuple[Tensor, ...]
LEAST, MOST = 1e-10, 1e4  # noise; a float64 factor of 5,000 rows rounds at 1e-12


class Evidence(ABC):
    """A log marginal likelihood as a function of one vector, `theta`: the kernel's parameters, then log noise.

    parts: x: n d, y: n c in float64, and where rows are means: their shares of the noise and what they have beside
    it, `n` each; several are taken as independent, which is how neighbourhoods of a large table are used.
    keep_noise: set it to hold the noise where it is.
    """

    def __init__(self, kernel: Kernel, noise: float, parts: Sequence[Part], profile: bool = True):
        self.kernel, self.parts, self.profile, self.keep_noise = kernel, list(parts), profile, False
        self.least = LEAST
        self.named: list[tuple[str, nn.Parameter]] = [(n, p) for n, p in kernel.named_parameters() if p.requires_grad]
        self.log_noise = math.log(noise)

    @property
    def theta(self) -> np.ndarray:
        flat = [p.detach().double().flatten().numpy() for _, p in self.named]
        return np.concatenate([*flat, [self.log_noise]])

    @theta.setter
    def theta(self, value: np.ndarray) -> None:
        at = 0
        with torch.no_grad():
            for _, p in self.named:
                p.copy_(torch.as_tensor(value[at : at + p.numel()]).reshape(p.shape))
                at += p.numel()
        self.log_noise = float(value[at])

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Limits for each entry of theta: positive parameters stay within e^+-11.5, wider where they start outside."""
        found: list[tuple[float | None, float | None]] = []
        for name, p in self.named:
            for v in p.detach().flatten().tolist():
                logarithm = name.split(".")[-1].startswith("log_")
                found.append((min(NARROW, v - 1), max(WIDE, v + 1)) if logarithm else (None, None))
        if self.keep_noise:
            return [*found, (self.log_noise, self.log_noise)]
        return [*found, (min(math.log(self.least), self.log_noise), max(math.log(MOST), self.log_noise))]

    def _leaves(self, part: Part, gradient: bool) -> tuple[list[Tensor], Tensor]:
        """(what is differentiated: the parameters and log noise, the noise of each row as a function of the last)."""
        log_noise = torch.tensor(self.log_noise, dtype=torch.float64, requires_grad=gradient)
        n = len(part[1])
        share, beside = part[2:] if len(part) > 2 else (part[1].new_ones(n), part[1].new_zeros(n))
        return [*[p for _, p in self.named], log_noise], log_noise.exp() * share + beside

    @abstractmethod
    def _part(self, part: Part, gradient: bool) -> tuple[float, list[Tensor]]:
        """(log likelihood of one part, its gradient in each leaf)."""

    def evaluate(self, theta: np.ndarray | None = None, gradient: bool = True) -> tuple[float, np.ndarray]:
        """(log likelihood, its gradient in theta); the kernel is left at `theta`."""
        if theta is not None:
            self.theta = theta
        total, slope = 0.0, np.zeros(len(self.theta))
        for part in self.parts:
            value, grads = self._part(part, gradient)
            total += value
            if gradient:
                slope += np.concatenate([g.double().flatten().numpy() for g in grads])
        return total, slope


def gaussian(fit: Tensor, logdet: float, n: int, profile: bool) -> tuple[float, Tensor]:
    """(log density of c outputs, the scale s of each) from y^T A^-1 y: c and log det A; profile: s at its best."""
    if profile:
        scale = (fit / n).clamp_min(1e-300)
        whole = logdet + n * (1 + math.log(2 * math.pi))
        return -0.5 * n * float(scale.log().sum()) - 0.5 * len(fit) * whole, scale
    return -0.5 * float(fit.sum()) - 0.5 * len(fit) * (logdet + n * math.log(2 * math.pi)), torch.ones_like(fit)


def slopes(sources: Sequence[tuple[Tensor, Tensor]], leaves: Sequence[Tensor], again: bool = False) -> list[Tensor]:
    """The gradient in each leaf of sum(source * weight) over the sources that have one; zeros where there is none.

    again: sources will be asked once more.
    """
    live = [(source, weight) for source, weight in sources if source.requires_grad]
    inputs, weights = [s for s, _ in live], [w for _, w in live]
    found = torch.autograd.grad(inputs, leaves, weights, again, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


class Likelihood(Evidence):
    """log p(y | x) of a Gaussian process with covariance s_c (k(x, x) + noise I) for each output c, by Cholesky.

    profile: s_c is set to its best value in closed form (then `noise` is relative to it); otherwise s_c = 1.
    Cost: n^3 flops and 5 n^2 numbers for each part. Source [rasmussen2006, eq. 5.8-5.9].
    """

    def _part(self, part: Part, gradient: bool) -> tuple[float, list[Tensor]]:
        x, y = part[:2]
        n, outputs = y.shape
        leaves, noise = self._leaves(part, gradient)
        with torch.set_grad_enabled(gradient):
            k = self.kernel.block(x, x)
        a = k.detach().clone()
        a.diagonal().add_(noise.detach())
        factor = Cholesky().factor(a)
        weights = factor.solve(y)
        value, scale = gaussian((y * weights).sum(0), float(factor.logdet()), n, self.profile)
        if not gradient:
            return value, []
        slope = 0.5 * ((weights / scale) @ weights.mT - outputs * factor.inverse())
        return value, slopes([(k, slope), (noise, slope.diagonal())], leaves)
