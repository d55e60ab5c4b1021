"""Claims: what a kernel or an operator promises, and what survives a sum, a product, a scaling or a warp."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto


class Claim(Enum):
    """A promise about a kernel or an operator. Declared, never inferred; the test suite checks each one."""

    SYMMETRIC = auto()
    PSD = auto()  # v^T K v >= 0 for every v
    CPD = auto()  # v^T K v >= 0 for every v that sums to zero (every psd kernel is cpd as well)
    STATIONARY = auto()  # depends on x - y only
    ISOTROPIC = auto()  # depends on |x - y| only, where the lengthscale is one number
    UNIT_DIAGONAL = auto()  # k(x, x) = 1
    SEPARABLE = auto()  # a product over columns
    COMPACT = auto()  # zero beyond a finite distance
    POSITIVE = auto()  # no value is negative


Claims = frozenset[Claim]
NO_CLAIMS: Claims = frozenset()
PSD: Claims = frozenset({Claim.SYMMETRIC, Claim.PSD, Claim.CPD})
ALL: Claims = frozenset(Claim)

# Each set names the claims that hold for the result when they hold for every part.
LINEAR: Claims = PSD | {Claim.POSITIVE}  # sums and positive multiples of matrices
_SUM: Claims = LINEAR | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.COMPACT}
_PRODUCT: Claims = ALL - {Claim.CPD, Claim.COMPACT}  # Schur: psd times psd is psd; cpd times cpd need not be cpd
SCALED: Claims = ALL - {Claim.UNIT_DIAGONAL}
WARPED: Claims = LINEAR | {Claim.UNIT_DIAGONAL}
ON_COLUMNS: Claims = WARPED | {Claim.STATIONARY, Claim.SEPARABLE}


def of_sum(parts: Iterable[Claims]) -> Claims:
    """Claims of k1 + k2 + ..."""
    return frozenset.intersection(*parts) & _SUM


def of_product(parts: Iterable[Claims]) -> Claims:
    """Claims of k1 * k2 * ...: compact when any factor is, cpd when all are psd."""
    parts = list(parts)
    found = frozenset.intersection(*parts) & _PRODUCT
    if any(Claim.COMPACT in part for part in parts):
        found |= {Claim.COMPACT}
    return found | {Claim.CPD} if Claim.PSD in found else found
