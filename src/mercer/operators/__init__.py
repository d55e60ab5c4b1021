"""Operators: linear maps. Importing this room registers the rules by which `assemble` finds them."""

import mercer.operators.linear
import mercer.operators.rounding  # noqa: F401  (they register a rule, and the bound of errors)
from mercer.operator import Composed, Diagonal, Normalised, Operator, Scaled, Selected, Sum
from mercer.operators.block import Block
from mercer.operators.blocktoeplitz import BlockToeplitz
from mercer.operators.circulant import Circulant
from mercer.operators.converted import Converted
from mercer.operators.convolve import conv, conv_plan
from mercer.operators.dense import Dense
from mercer.operators.fused import Fused
from mercer.operators.kronecker import Kronecker
from mercer.operators.lowrank import LowRank
from mercer.operators.pivots import Pivots
from mercer.operators.positive import PositiveLowRank
from mercer.operators.shifted import Shifted
from mercer.operators.solvable import Solvable
from mercer.operators.sparse import Sparse
from mercer.operators.tiled import Tiled
from mercer.operators.toeplitz import Toeplitz
from mercer.operators.vecchia import Vecchia

__all__ = [
    "Block",
    "BlockToeplitz",
    "Circulant",
    "Composed",
    "Converted",
    "Dense",
    "Diagonal",
    "Fused",
    "Kronecker",
    "LowRank",
    "Normalised",
    "Operator",
    "Pivots",
    "PositiveLowRank",
    "Scaled",
    "Selected",
    "Shifted",
    "Solvable",
    "Sparse",
    "Sum",
    "Tiled",
    "Toeplitz",
    "Vecchia",
    "conv",
    "conv_plan",
]
