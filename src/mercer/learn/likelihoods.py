"""Observation models p(y | f): how a latent function shows itself in numbers, counts and labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from mercer.parameter import Positive, WithParameters

NODES = 40  # of Gauss-Hermite quadrature for expectations under q
REACH, STEP = 7.0, 0.05  # predictive sums run over 7 deviations: far finer than the narrowest interval is wide
LEAST = 1e-14  # variance of a latent value, relative to one: its square root has a slope
CHUNK = 2000  # rows whose quantiles are sought at once


def _hermite() -> tuple[Tensor, Tensor]:
    at, weight = np.polynomial.hermite.hermgauss(NODES)
    return torch.from_numpy(at * math.sqrt(2)), torch.from_numpy(weight / math.sqrt(math.pi))


def _even() -> tuple[Tensor, Tensor]:
    """Equal steps, the trapezium rule: exact to rounding for smooth integrands, and never further off than a step."""
    at = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64)
    weight = (-0.5 * at.square()).exp()
    return at, weight / weight.sum()


class Observation(WithParameters, ABC):
    """p(y | f) of each entry; y, f, mean, variance: `n c`, float64, f ~ N(mean, variance)."""

    concave: bool = True  # log p is concave in f
    conjugate: bool = False  # log p is quadratic in f

    @abstractmethod
    def log_density(self, y: Tensor, f: Tensor) -> Tensor:
        """log p(y | f)."""

    @abstractmethod
    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, deviation) of E[y | f], in units of y."""

    @abstractmethod
    def warm(self, y: Tensor) -> Tensor:
        """Numbers that a least squares fit may take for f + noise, to begin with."""

    def expected(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """E log p(y | f), by Gauss-Hermite quadrature unless there is a closed form."""
        at, weight = _hermite()
        f = mean[..., None] + variance.clamp_min(LEAST).sqrt()[..., None] * at
        return self.log_density(y[..., None], f) @ weight

    def log_predictive(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """log E p(y | f)."""
        at, weight = _even()
        found = []
        for part, m, v in zip(y.split(CHUNK), mean.split(CHUNK), variance.split(CHUNK), strict=True):
            f = m[..., None] + v.clamp_min(LEAST).sqrt()[..., None] * at
            found.append((self.log_density(part[..., None], f) + weight.log()).logsumexp(-1))
        return torch.cat(found) if found else torch.zeros_like(mean)

    def slopes(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of `expected`, its gradients in mean and in variance)."""
        with torch.enable_grad():
            m, v = mean.detach().requires_grad_(), variance.detach().requires_grad_()
            value = self.expected(y, m, v).sum()
            first, second = torch.autograd.grad(value, (m, v))
        return value.detach(), first, second

    def quantile(self, p: float, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """The value that y is below with chance p."""
        flat, wide = mean.ravel(), np.sqrt(variance.ravel())
        at, weight = (v.numpy() for v in _even())
        found = [
            self._quantile(p, flat[i : i + CHUNK], wide[i : i + CHUNK], at, weight) for i in range(0, len(flat), CHUNK)
        ]
        return np.concatenate(found).reshape(mean.shape) if found else np.zeros_like(mean)

    @abstractmethod
    def _quantile(self, p: float, mean: np.ndarray, wide: np.ndarray, at: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The same for one axis of rows; wide: deviations of f; at, weight: nodes of a standard normal."""


class GaussianNoise(Observation):
    """y = f + e, e ~ N(0, noise). noise: > 0."""

    noise = Positive(axes=(0,))
    conjugate = True

    def __init__(self, noise: float = 1.0):
        super().__init__()
        self.noise = noise

    def log_density(self, y: Tensor, f: Tensor) -> Tensor:
        return -0.5 * ((y - f).square() / self.noise + (2 * math.pi * self.noise).log())

    def expected(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self.log_density(y, mean) - 0.5 * variance / self.noise

    def log_predictive(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        total = variance + self.noise
        return -0.5 * ((y - mean).square() / total + (2 * math.pi * total).log())

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return mean, variance.sqrt()

    def warm(self, y: Tensor) -> Tensor:
        return y

    def _quantile(self, p: float, mean: np.ndarray, wide: np.ndarray, at: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return mean + np.sqrt(wide**2 + float(self.noise.detach())) * special.ndtri(p)


class StudentNoise(Observation):
    """y = f + sqrt(noise) t, t of Student's distribution with dof degrees of freedom. noise: > 0. dof: > 2, held.

    log p(y | f) = c - (dof + 1) / 2 log(1 + (y - f)^2 / (dof noise)). Source [rasmussen2006, sec. 9.2].
    """

    noise = Positive(axes=(0,))
    concave = False

    def __init__(self, noise: float = 1.0, dof: float = 4.0):
        super().__init__()
        self.noise, self.dof = noise, float(dof)

    def log_density(self, y: Tensor, f: Tensor) -> Tensor:
        dof = self.dof
        constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * (dof * math.pi * self.noise).log()
        return constant - 0.5 * (dof + 1) * torch.log1p((y - f).square() / (dof * self.noise))

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return mean, variance.sqrt()

    def warm(self, y: Tensor) -> Tensor:
        return y.clamp(-3, 3)  # y is in robust deviations

    def _quantile(self, p: float, mean: np.ndarray, wide: np.ndarray, at: np.ndarray, weight: np.ndarray) -> np.ndarray:
        scale = math.sqrt(float(self.noise.detach()))
        tail = abs(float(special.stdtrit(self.dof, min(p, 1 - p) / 2)))  # with all of f's reach it bounds the sum's
        low, high = (mean + sign * (REACH * wide + scale * tail) for sign in (-1, 1))
        f, guess = mean[:, None] + wide[:, None] * at, mean.copy()
        for _ in range(60):  # Newton's steps, or halves where they leave what is known
            z = (guess[:, None] - f) / scale
            short = p - special.stdtr(self.dof, z) @ weight
            low, high = np.where(short > 0, guess, low), np.where(short > 0, high, guess)
            slope = np.exp(-0.5 * (self.dof + 1) * np.log1p(z**2 / self.dof)) @ weight / (scale * self._spread())
            step = guess + short / np.maximum(slope, 1e-300)
            step = np.where((low < step) & (step < high), step, (low + high) / 2)
            done = not len(guess) or bool((np.abs(step - guess) <= 1e-10 * (scale + wide)).all())
            guess = step
            if done:
                break
        return guess

    def _spread(self) -> float:
        """What the density of t is divided by."""
        return math.exp(special.betaln(0.5, self.dof / 2)) * math.sqrt(self.dof)


class Poisson(Observation):
    """Counts: y ~ Poisson(exp(f))."""

    def log_density(self, y: Tensor, f: Tensor) -> Tensor:
        return y * f - f.exp() - torch.lgamma(y + 1)

    def expected(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return y * mean - (mean + variance / 2).exp() - torch.lgamma(y + 1)

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        rate = (mean + variance / 2).exp()
        return rate, rate * torch.expm1(variance).sqrt()

    def warm(self, y: Tensor) -> Tensor:
        return (y + 0.5).log()

    def _quantile(self, p: float, mean: np.ndarray, wide: np.ndarray, at: np.ndarray, weight: np.ndarray) -> np.ndarray:
        rate = np.exp(mean[:, None] + wide[:, None] * at)
        low = np.full(len(mean), -1.0)  # chance below p
        high = np.ceil(rate[:, -1] + 20 * np.sqrt(rate[:, -1]) + 40)
        while len(low) and bool(((high - low > 1) & (high - low > 1e-12 * high)).any()):
            middle = np.floor((low + high) / 2)
            below = (special.pdtr(np.maximum(middle, 0)[:, None], rate) @ weight < p) | (middle < 0)
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return high


class Bernoulli(Observation):
    """Labels y = -1 or 1: p(y | f) = Phi(y f), the normal distribution function. Source [hensman2015, sec. 2]."""

    def log_density(self, y: Tensor, f: Tensor) -> Tensor:
        return torch.special.log_ndtr(y * f)

    def log_predictive(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.special.log_ndtr(y * mean / (1 + variance).sqrt())

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        chance = torch.special.ndtr(mean / (1 + variance).sqrt())
        at, weight = _even()
        square = torch.special.ndtr(mean[..., None] + variance.sqrt()[..., None] * at).square() @ weight
        return chance, (square - chance.square()).clamp_min(0).sqrt()

    def warm(self, y: Tensor) -> Tensor:
        return y

    def _quantile(self, p: float, mean: np.ndarray, wide: np.ndarray, at: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.where(special.ndtr(mean / np.sqrt(1 + wide**2)) >= 1 - p, 1.0, -1.0)


def observation(name: str, noise: float, dof: float) -> Observation:
    """The model of that name. Raises ValueError naming those there are."""
    made: dict[str, Any] = {
        "gaussian": lambda: GaussianNoise(noise),
        "student_t": lambda: StudentNoise(noise, dof),
        "poisson": Poisson,
        "bernoulli": Bernoulli,
    }
    if name not in made:
        raise ValueError(f"likelihood is {name!r}; expected one of {', '.join(made)}")
    return made[name]()
