"""nn: torch modules that apply a kernel operator to a signal or a sequence."""

from mercer.nn.attention import KernelAttention, MultiheadKernelAttention
from mercer.nn.conv import KernelConv
from mercer.nn.spectral import SpectralConv

__all__ = ["KernelAttention", "KernelConv", "MultiheadKernelAttention", "SpectralConv"]
