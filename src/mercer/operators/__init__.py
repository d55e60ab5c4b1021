"""Operators: linear maps. Importing this room registers the rules by which `assemble` finds them."""

from mercer.operator import Composed, Diagonal, Normalised, Operator, Scaled, Selected, Sum
from mercer.operators.converted import Converted
from mercer.operators.dense import Dense
from mercer.operators.fused import Fused
from mercer.operators.lowrank import LowRank
from mercer.operators.positive import PositiveLowRank
from mercer.operators.shifted import Shifted
from mercer.operators.tiled import Tiled

__all__ = [
    "Composed",
    "Converted",
    "Dense",
    "Diagonal",
    "Fused",
    "LowRank",
    "Normalised",
    "Operator",
    "PositiveLowRank",
    "Scaled",
    "Selected",
    "Shifted",
    "Sum",
    "Tiled",
]
