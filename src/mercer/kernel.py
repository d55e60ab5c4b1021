"""Kernel: the function k(x, y) and its algebra. One mandatory method, `block`."""

from __future__ import annotations

import functools
import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mercer import claims
from mercer.assemble import assemble
from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.domain import Domain
from mercer.errors import ShapeError, StructureError
from mercer.numerics import centre, log, log_add
from mercer.operator import Operator
from mercer.parameter import Positive, WithParameters, like
from mercer.shapes import shapes
from mercer.statistic import Statistic, pairwise


@dataclass(frozen=True)
class Spectrum:
    """The spectral measure of a stationary kernel: k(x, y) = variance E cos(w . (u(x) - u(y))).

    sample: (rank, d, generator) -> frequencies `rank d`, float64, for the scaled coordinates u the kernel itself uses.
    isotropic: directions are uniform and independent of norms, so that they may be made orthogonal.
    """

    sample: Callable[[int, int, torch.Generator | None], Tensor]
    coordinates: Callable[[Tensor], Tensor]
    isotropic: bool
    variance: Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a kernel's program in postfix order, which compiled backends run in place of `block`.

    op: constant, scale, add or multiply; or a profile of that name, of `statistic` taken of points(x, y), each * scale.
    """

    op: str
    parameters: tuple[float | Tensor, ...] = ()
    statistic: Statistic | None = None
    points: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    scale: Tensor | None = None


class Kernel(WithParameters, ABC):
    """k(x, y), differentiable in x, y and its parameters. `k(x, y)` is a lazy Operator: it computes nothing."""

    claims: Claims = NO_CLAIMS

    @abstractmethod
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """The definition: the matrix of k, x: ... n d, y: ... m d -> ... n m."""

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        """log k, for row normalisation without overflow. Raises StructureError where k may be negative."""
        if Claim.POSITIVE not in self.claims:
            raise StructureError(f"{self!r} may be negative, so its rows cannot be normalised; use a positive kernel")
        return log(self.block(x, y))

    def diagonal(self, x: Tensor) -> Tensor:
        """k(x_i, x_i): x: ... n d -> ... n."""
        if Claim.UNIT_DIAGONAL in self.claims:
            return torch.ones_like(x[..., 0])
        return self.block(x.unsqueeze(-2), x.unsqueeze(-2)).squeeze(-1).squeeze(-1)

    def spectrum(self) -> Spectrum:
        """The spectral measure, where the kernel has one. Raises StructureError where it has none."""
        raise StructureError(f"{self!r} has no spectral measure; use features.Nystrom, which takes any psd kernel")

    def program(self) -> list[Step] | None:
        """The same function as steps for compiled backends, or None where it is not made of what they know."""
        return None

    def workspace(self, d: int) -> int:
        """Numbers that `block` needs for each point beside the block itself; it bounds the height of a tile."""
        return 2 * d

    def forward(self, x: Tensor | Domain, y: Tensor | Domain | None = None) -> Operator:
        """The lazy operator of k on x (`... n d`) and y (`... m d`, default x)."""
        return assemble(self, x, y)

    def arguments(self) -> dict[str, Any]:
        """What the constructor was given, by name, parameters at their present values."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        values = {name: getattr(self, name) for name in names}
        return {name: v.detach() if isinstance(v, Tensor) else v for name, v in values.items()}

    def __add__(self, other: Kernel) -> Kernel:
        if not isinstance(other, Kernel):
            raise TypeError(f"k + {other!r}: a kernel adds to a kernel; for a number write k + Constant({other!r})")
        return Sum(self, other)

    def __mul__(self, other: Kernel | float) -> Kernel:
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(self, other) if isinstance(other, int | float | Tensor) else NotImplemented

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Kernel:
        return self if other == 0 else self + other  # so that sum(kernels) works

    def scale(self, variance: float | Tensor = 1.0) -> Kernel:
        """variance * k, variance > 0 and trainable."""
        return Scaled(self, variance)

    def warp(self, module: nn.Module) -> Kernel:
        """k(module(x), module(y)): a learned or fixed change of coordinates, `... n d -> ... n d'`."""
        if not isinstance(module, nn.Module):
            raise TypeError(f"warp takes an nn.Module, got {type(module).__name__}; wrap a function in a Module")
        return Warped(self, module)

    def on(self, columns: int | Sequence[int]) -> Kernel:
        """k of the chosen columns of the points only."""
        return Warped(self, Columns(columns))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={_show(v)}' for k, v in self.arguments().items())})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        flat = [f"{v:.4g}" for v in value.detach().flatten()[:4].tolist()]
        if value.ndim == 0:
            return flat[0]
        return f"[{', '.join(flat)}{', ...' if value.numel() > 4 else ''}]"
    return repr(value)


class ProfileKernel(Kernel, ABC):
    """A kernel that sees two points only through one statistic of their coordinates: k = profile(statistic(u, v)).

    The triple (coordinates, statistic, profile) is the definition, the gradient and the source of fused code.
    A lengthscale of shape () or (d,) divides the coordinates.
    """

    statistic: ClassVar[Statistic]

    @abstractmethod
    def profile(self, s: Tensor) -> Tensor:
        """The value of k at the statistic `s`, elementwise."""

    def log_profile(self, s: Tensor) -> Tensor:
        """log of `profile`, overridden where it is simpler than the profile itself."""
        return log(self.profile(s))

    def coordinates(self, x: Tensor) -> Tensor:
        """What the statistic is taken of: x / lengthscale where the kernel has one, `... n d -> ... n d'`."""
        lengthscale = getattr(self, "lengthscale", None)
        if lengthscale is None:
            return x
        if lengthscale.ndim > 0 and lengthscale.shape[-1] != x.shape[-1]:
            raise ShapeError(f"{self!r}: lengthscale.d is {lengthscale.shape[-1]}, x.d is {x.shape[-1]}")
        return x / like(lengthscale, x)

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        """The profile's name and parameters in compiled backends, where they have it."""
        return None

    def program(self) -> list[Step] | None:
        own = next(vars(c) for c in type(self).__mro__ if {"native", "profile", "block"} & vars(c).keys())
        op, *parameters = (self.native() if "native" in own else None) or (None,)  # a changed profile is not native
        if op is None:
            return None
        if type(self).coordinates is not ProfileKernel.coordinates:
            return [Step(op, tuple(parameters), self.statistic, self._points)]
        lengthscale = getattr(self, "lengthscale", None)
        scale = None if lengthscale is None else 1 / lengthscale
        return [Step(op, tuple(parameters), self.statistic, scale=scale)]

    def _points(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of both sides, shifted first where that changes nothing: scaling rounds far from the origin."""
        same = y is x
        if Claim.STATIONARY in self.claims and y.shape[-2] > 0:
            middle = centre(y)
            x, y = x - middle, y - middle
        u = self.coordinates(x)
        return u, u if same else self.coordinates(y)

    def _reduce(self, x: Tensor, y: Tensor, profile: Callable[[Tensor], Tensor], multiply: Callable) -> Tensor:
        u, v = self._points(x, y)
        if self.statistic is not Statistic.PER_AXIS:
            scaled = type(self).coordinates is ProfileKernel.coordinates
            return profile(pairwise(self.statistic, u, v, scaled and Claim.STATIONARY in self.claims))
        total = profile(u[..., :, None, 0] - v[..., None, :, 0])
        for k in range(1, u.shape[-1]):
            total = multiply(total, profile(u[..., :, None, k] - v[..., None, :, k]))
        return total

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix of k, x: ... n d, y: ... m d -> ... n m."""
        return self._reduce(x, y, self.profile, torch.mul)

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        """log k. Raises StructureError where k may be negative."""
        if Claim.POSITIVE not in self.claims:
            return super().log_block(x, y)
        return self._reduce(x, y, self.log_profile, torch.add)


class _Combined(Kernel, ABC):
    """What sums and products of kernels share: every part is asked, and the answers are joined."""

    _rule: ClassVar[Any]  # claims of the parts -> claims of the whole
    _join: ClassVar[Any]  # two values -> one
    _log_join: ClassVar[Any]  # the same for their logarithms
    _symbol: ClassVar[str]
    _op: ClassVar[str]

    def __init__(self, *parts: Kernel):
        super().__init__()
        if not parts:
            raise StructureError(f"{type(self).__name__}() has no parts; expected one kernel or more")
        self.parts = nn.ModuleList(parts)
        self.claims = self._rule([k.claims for k in parts])

    def _each(self, ask: Callable[[Kernel], Any], join: Callable[[Any, Any], Any]) -> Any:
        return functools.reduce(join, [ask(cast(Kernel, k)) for k in self.parts])

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return self._each(lambda k: k.block(x, y), self._join)

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        return self._each(lambda k: k.log_block(x, y), self._log_join)

    def diagonal(self, x: Tensor) -> Tensor:
        return self._each(lambda k: k.diagonal(x), self._join)

    def program(self) -> list[Step] | None:
        return self._each(lambda k: k.program(), lambda a, b: a and b and [*a, *b, Step(self._op)])

    def workspace(self, d: int) -> int:
        return self._each(lambda k: k.workspace(d), operator.add)

    def arguments(self) -> dict[str, Any]:
        return {"parts": list(self.parts)}

    def __repr__(self) -> str:
        return self._symbol.join(f"({k!r})" if isinstance(k, Sum) else repr(k) for k in self.parts)


class Sum(_Combined):
    """k1(x, y) + k2(x, y) + ..."""

    _rule, _symbol, _op = staticmethod(claims.of_sum), " + ", "add"
    _join, _log_join = staticmethod(operator.add), staticmethod(log_add)


class Product(_Combined):
    """k1(x, y) * k2(x, y) * ... (entry by entry)."""

    _rule, _symbol, _op = staticmethod(claims.of_product), " * ", "multiply"
    _join, _log_join = staticmethod(operator.mul), staticmethod(operator.add)


class Scaled(Kernel):
    """variance * k(x, y), variance > 0."""

    variance = Positive(axes=(0,))

    def __init__(self, kernel: Kernel, variance: float | Tensor = 1.0):
        super().__init__()
        self.kernel, self.variance = kernel, variance
        self.claims = kernel.claims & claims.SCALED

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return like(self.variance, x) * self.kernel.block(x, y)

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        return like(self.variance.log(), x) + self.kernel.log_block(x, y)

    def diagonal(self, x: Tensor) -> Tensor:
        return like(self.variance, x) * self.kernel.diagonal(x)

    def spectrum(self) -> Spectrum:
        inner = self.kernel.spectrum()
        return replace(inner, variance=lambda: self.variance * inner.variance())

    def program(self) -> list[Step] | None:
        inner = self.kernel.program()
        return inner and [*inner, Step("scale", (self.variance,))]

    def workspace(self, d: int) -> int:
        return self.kernel.workspace(d)

    def __repr__(self) -> str:
        inner = f"({self.kernel!r})" if isinstance(self.kernel, Sum) else repr(self.kernel)
        return f"{_show(self.variance)} * {inner}"


def random_or_coupled(module: nn.Module) -> str | None:
    """The first submodule whose output for a point is random or depends on the other points."""
    for name, part in module.named_modules():
        dropout = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0)
        drops = isinstance(dropout, int | float) and dropout > 0
        if part.training and (drops or isinstance(part, _BatchNorm)):
            return f"{name or 'module'} ({type(part).__name__})"
    return None


class Columns(nn.Module):
    """Keep the chosen columns of the points, `... n d -> ... n len(columns)`."""

    def __init__(self, columns: int | Sequence[int]):
        super().__init__()
        self.columns = [columns] if isinstance(columns, int) else [int(c) for c in columns]
        if not self.columns or min(self.columns) < 0:
            raise ShapeError(f"columns are {columns}; expected at least one column number >= 0")

    def forward(self, x: Tensor) -> Tensor:
        if max(self.columns) >= x.shape[-1]:
            raise ShapeError(f"the kernel reads column {max(self.columns)}, but x.d is {x.shape[-1]}")
        return x[..., self.columns]


class Warped(Kernel):
    """k(g(x), g(y)) for a module g: `... n d -> ... n d'`, trained with the kernel."""

    def __init__(self, kernel: Kernel, module: nn.Module):
        super().__init__()
        self.kernel, self.module = kernel, module
        keeps = claims.ON_COLUMNS if isinstance(module, Columns) else claims.WARPED
        self.claims = kernel.claims & keeps

    def moved(self, x: Tensor) -> Tensor:
        """g(x), in the dtype of x. Raises StructureError for a module in training mode that is no function."""
        culprit = random_or_coupled(self.module)
        if culprit:
            raise StructureError(f"the warp's {culprit} is in training mode, so it is no function: call .eval() on it")
        dtype = next((p.dtype for p in self.module.parameters()), x.dtype)  # a network keeps its precision, data theirs
        return self.module(x.to(dtype)).to(x.dtype)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        u = self.moved(x)
        return self.kernel.block(u, u if y is x else self.moved(y))

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kernel.log_block(self.moved(x), self.moved(y))

    def diagonal(self, x: Tensor) -> Tensor:
        return self.kernel.diagonal(self.moved(x))

    def spectrum(self) -> Spectrum:
        inner = self.kernel.spectrum()
        return replace(inner, coordinates=lambda x: inner.coordinates(self.moved(x)))

    def program(self) -> list[Step] | None:
        def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            u = self.moved(x)
            return u, u if y is x else self.moved(y)

        def moved(step: Step) -> Step:
            after = step.points
            points = both if after is None else lambda x, y: after(*both(x, y))
            return step if step.statistic is None else replace(step, points=points)

        inner = self.kernel.program()
        return inner and [moved(step) for step in inner]

    def workspace(self, d: int) -> int:
        return self.kernel.workspace(d)

    def __repr__(self) -> str:
        columns = isinstance(self.module, Columns)
        return f"{self.kernel!r}." + (
            f"on({self.module.columns})" if columns else f"warp({type(self.module).__name__})"
        )
