"""Features: maps phi with k(x, y) = phi(x) . phi(y). A map stands wherever a kernel stands."""

from mercer.features.favor import Favor
from mercer.features.fourier import Fourier, Orthogonal
from mercer.features.nystrom import Nystrom

__all__ = ["Favor", "Fourier", "Nystrom", "Orthogonal"]
