"""Compress: fewer points that stand for many."""

from mercer.compress.thinning import thin

__all__ = ["thin"]
