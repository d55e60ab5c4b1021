"""Compare: numbers from samples."""

from mercer.compare.mmd import MMDResult, median_kernel, mmd, squared_mmd
from mercer.compare.smoothness import Smoothness, smoothness

__all__ = ["MMDResult", "Smoothness", "median_kernel", "mmd", "smoothness", "squared_mmd"]
