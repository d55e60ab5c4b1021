"""Numbers from tensors, accurately: distances and elementary functions that the kernels share."""

from mercer.numerics.distance import absolute_distance, centre, squared_distance
from mercer.numerics.elementary import exp, log, log_add

__all__ = ["absolute_distance", "centre", "exp", "log", "log_add", "squared_distance"]
