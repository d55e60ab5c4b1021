"""Answers about operators: solutions of A x = b, factors, preconditioners."""

from mercer.linalg.cg import CG
from mercer.linalg.cholesky import Cholesky, Factor
from mercer.linalg.precondition import NystromPreconditioner, PivotedCholesky, Preconditioner
from mercer.linalg.woodbury import Woodbury

__all__ = ["CG", "Cholesky", "Factor", "NystromPreconditioner", "PivotedCholesky", "Preconditioner", "Woodbury"]
