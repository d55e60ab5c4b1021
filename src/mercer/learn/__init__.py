"""Learners: scikit-learn estimators that predict, with intervals or calibrated probabilities."""

from mercer.learn.classify import KernelClassifier
from mercer.learn.conformal import LocalConformal
from mercer.learn.neighbours import NeighbourRidge
from mercer.learn.process import GaussianProcessRegressor
from mercer.learn.ridge import KernelRidge
from mercer.learn.spectral import SpectralRegressor

__all__ = [
    "GaussianProcessRegressor",
    "KernelClassifier",
    "KernelRidge",
    "LocalConformal",
    "NeighbourRidge",
    "SpectralRegressor",
]
