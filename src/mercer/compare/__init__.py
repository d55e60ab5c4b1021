"""Compare: numbers from samples."""

from mercer.compare.mmd import MMDResult, median_kernel, mmd, squared_mmd

__all__ = ["MMDResult", "median_kernel", "mmd", "squared_mmd"]
