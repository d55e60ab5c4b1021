"""Every error and warning of mercer. Each is also the builtin that a caller would expect to catch."""

from __future__ import annotations


class MercerError(Exception):
    """Base of all errors raised on purpose."""


class ShapeError(MercerError, ValueError):
    """An argument's shape does not fit the line it was checked against."""


class StructureError(MercerError, ValueError):
    """The kernel, the points or the operator lack a property that the request needs."""


class DataError(MercerError, ValueError):
    """The values are unusable: NaN, infinity, text where numbers belong, nothing to learn from."""


class NotPositiveDefiniteError(MercerError, ArithmeticError):
    """A factorisation failed even with the largest allowed jitter.

    smallest: the smallest eigenvalue seen, in the units of the matrix.
    """

    def __init__(self, message: str, smallest: float):
        super().__init__(message)
        self.smallest = smallest


class MemoryBudgetError(MercerError, MemoryError):
    """No algorithm for the request fits the memory budget."""


class MercerWarning(UserWarning):
    """Base of all warnings, so that one filter turns them into errors."""


class ConvergenceWarning(MercerWarning):
    """An iterative method stopped before its tolerance; residual and iterations say how far it came."""

    def __init__(self, message: str, residual: float, iterations: int):
        super().__init__(message)
        self.residual, self.iterations = residual, iterations


class JitterWarning(MercerWarning):
    """A matrix needed more than rounding-level jitter to be factorised; `jitter` is the amount added."""

    def __init__(self, message: str, jitter: float):
        super().__init__(message)
        self.jitter = jitter


class OutlierWarning(MercerWarning):
    """Target values lie so far from all others that they were clipped before fitting."""
