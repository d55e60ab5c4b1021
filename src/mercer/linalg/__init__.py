"""Answers about operators: solutions of A x = b, factors, preconditioners, eigenpairs, log-determinants."""

from mercer.linalg.cg import CG, BlockCG
from mercer.linalg.cholesky import Cholesky, Factor
from mercer.linalg.eigen import Eigenpairs, eigenpairs, randomised_eigenpairs
from mercer.linalg.implicit import solve
from mercer.linalg.lanczos import Tridiagonal, lanczos
from mercer.linalg.minres import MINRES
from mercer.linalg.precondition import NystromPreconditioner, PivotedCholesky, Preconditioner
from mercer.linalg.refined import Refined
from mercer.linalg.trace import SLQ, Estimate, logdet, trace_inverse
from mercer.linalg.woodbury import Woodbury

__all__ = [
    "CG",
    "MINRES",
    "SLQ",
    "BlockCG",
    "Cholesky",
    "Eigenpairs",
    "Estimate",
    "Factor",
    "NystromPreconditioner",
    "PivotedCholesky",
    "Preconditioner",
    "Refined",
    "Tridiagonal",
    "Woodbury",
    "eigenpairs",
    "lanczos",
    "logdet",
    "randomised_eigenpairs",
    "solve",
    "trace_inverse",
]
