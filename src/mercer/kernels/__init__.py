"""Kernels: functions k(x, y). One file per kernel or family."""

from mercer.kernel import Columns, Kernel, Product, ProfileKernel, Scaled, Sum, Warped
from mercer.kernels.arccosine import ArcCosine
from mercer.kernels.constant import Constant
from mercer.kernels.dot import ExpDot, Linear, Polynomial
from mercer.kernels.gaussian import Gaussian
from mercer.kernels.hamming import Hamming
from mercer.kernels.laplace import Laplace
from mercer.kernels.logistic import Logistic
from mercer.kernels.matern import Matern
from mercer.kernels.metric import Metric
from mercer.kernels.mixture import SpectralMixture
from mercer.kernels.ntk import EmpiricalNTK
from mercer.kernels.periodic import Cosine, Periodic
from mercer.kernels.precomputed import Precomputed
from mercer.kernels.quantum import QuantumOverlap
from mercer.kernels.rational import InverseMultiquadric, RationalQuadratic
from mercer.kernels.riesz import Riesz
from mercer.kernels.wendland import Wendland

__all__ = [
    "ArcCosine",
    "Columns",
    "Constant",
    "Cosine",
    "EmpiricalNTK",
    "ExpDot",
    "Gaussian",
    "Hamming",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Linear",
    "Logistic",
    "Matern",
    "Metric",
    "Periodic",
    "Polynomial",
    "Precomputed",
    "Product",
    "ProfileKernel",
    "QuantumOverlap",
    "RationalQuadratic",
    "Riesz",
    "Scaled",
    "SpectralMixture",
    "Sum",
    "Warped",
    "Wendland",
]
