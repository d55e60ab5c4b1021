"""Fourier transforms for operators: lengths that are quick, their cost, and products with Toeplitz matrices."""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor


def fft_length(n: int) -> int:
    """The next length >= n that a real FFT likes."""
    return next_fast_len(max(n, 1), real=True)


def fft_flops(length: int) -> float:
    """Flops of one real FFT."""
    return 2.5 * length * max(math.log2(length), 1.0)


def embedded(lags: Tensor, n: int, m: int) -> Tensor:
    """The spectrum of the circulant matrix that holds an n x m Toeplitz matrix in its corner.

    lags: `... n+m-1`, lag -(m-1) first.
    """
    gap = lags.new_zeros(*lags.shape[:-1], fft_length(n + m - 1) - (n + m - 1))
    return torch.fft.rfft(torch.cat([lags[..., m - 1 :], gap, lags[..., : m - 1]], -1))


def convolve(spectrum: Tensor, v: Tensor, n: int) -> Tensor:
    """The first n rows of that circulant matrix times v, padded with zeros: ... m c -> ... n c."""
    size = fft_length(n + v.shape[-2] - 1)
    if not v.numel():  # some FFT libraries refuse to transform nothing
        return v.new_zeros(*torch.broadcast_shapes(spectrum.shape[:-1], v.shape[:-2]), n, v.shape[-1])
    return torch.fft.irfft(torch.fft.rfft(v.mT, size) * spectrum.unsqueeze(-2), size)[..., :n].mT
