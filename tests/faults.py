"""Seed one wrong constant at a time and see whether the suite notices: python tests/faults.py

Each fault is a change of one expression in a copy of the package; the tests named beside it run against the copy.
A fault that no test notices is printed as SURVIVED, and the exit status is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# (file, right, wrong, tests)
FAULTS = [
    ("kernels/gaussian.py", "exp(s, -0.5)", "exp(s, -0.51)", "test_kernels.py"),
    ("kernels/matern.py", "(1 + r + q / 3)", "(1 + r + q / 2)", "test_kernels.py"),
    ("kernels/matern.py", "chain(2 * self.nu * s", "chain(self.nu * s", "test_kernels.py"),
    ("kernels/matern.py", "_times(-1 / 6", "_times(-1 / 5", "test_kernels.py"),
    ("kernels/rational.py", "s / (2 * alpha)", "s / alpha", "test_kernels.py"),
    ("kernels/wendland.py", "(j * j + 4 * j + 3) * s", "(j * j + 4 * j + 2) * s", "test_kernels.py"),
    ("kernels/wendland.py", "-0.5 * (j + 1) * (j + 2)", "-0.5 * (j + 1) * (j + 1)", "test_kernels.py"),
    (
        "kernels/arccosine.py",
        "(math.pi - angle) * torch.cos(angle)",
        "(math.pi - angle) * torch.sin(angle)",
        "test_kernels.py",
    ),
    ("kernels/logistic.py", "return 4 * torch.sigmoid", "return 3.99 * torch.sigmoid", "test_kernels.py"),
    ("kernels/logistic.py", "secant.sum(0) / 2", "secant.sum(0)", "test_kernels.py"),
    ("kernels/mixture.py", "-2 * math.pi**2", "-2 * math.pi", "test_kernels.py"),
    ("kernels/dot.py", "** 0.25", "** 0.5", "test_kernels.py"),
    ("claims.py", "_SUM: Claims = LINEAR |", "_SUM: Claims = LINEAR | {Claim.UNIT_DIAGONAL} |", "test_kernels.py"),
    ("kernel.py", "x, y = x - middle, y - middle", "x, y = x, y", "test_kernels.py"),
    ("statistic.py", "gx = 2 * (g.sum", "gx = (g.sum", "test_kernels.py"),
    ("operators/tilesum.py", "col_out[j] = _add(col_out.get(j), c)", "col_out[j] = list(c)", "test_operators.py"),
    ("operators/tiled.py", "self._mask(block, i - j, 0.0)", "self._mask(block, j - i, 0.0)", "test_operators.py"),
    ("operators/lowrank.py", ".tril() @ values", " @ values", "test_operators.py"),
    ("operators/shifted.py", "+ shift * v", "- shift * v", "test_operators.py"),
    ("features/fourier.py", "phase.cos(), phase.sin()", "phase.cos(), phase.cos()", "test_features.py"),
    ("features/favor.py", "keepdim=True) / 2", "keepdim=True)", "test_features.py"),
    ("compare/mmd.py", "- 2 * cross / (size_a", "- cross / (size_a", "test_compare.py"),
    ("compare/mmd.py", "(1 + beyond)", "(beyond)", "test_compare.py"),
    ("compress/thinning.py", "0.5 * (1 - alpha / safe)", "0.5 * (1 + alpha / safe)", "test_compress.py"),
    ("nn/spectral.py", "2 * k.abs() == n, 0.5", "2 * k.abs() == n, 1.0", "test_nn.py"),
    ("nn/conv.py", "share[0] = share[-1] = 0.5", "share[0] = share[-1] = 1.0", "test_nn.py"),
    ("kernels/ntk.py", "found.sum(0, keepdim=True)", "found.mean(0, keepdim=True)", "test_ntk.py"),
]


def main() -> int:
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", f"{folder}/tests")
        for page in ("docs", "examples", "README.md", "pyproject.toml"):
            source = ROOT / page
            (shutil.copytree if source.is_dir() else shutil.copy)(source, f"{folder}/{page}")
        for file, right, wrong, tests in FAULTS:
            shutil.rmtree(f"{folder}/src", ignore_errors=True)
            shutil.copytree(ROOT / "src", f"{folder}/src")
            path = Path(folder, "src/mercer", file)
            text = path.read_text()
            if text.count(right) < 1:
                print(f"STALE     {file}: {right!r} is not there")
                survived += 1
                continue
            path.write_text(text.replace(right, wrong, 1))
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{tests}"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": f"{folder}/src", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            noticed = run.returncode == 1
            survived += not noticed
            by = next((line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith("FAILED")), "")
            print(f"{'noticed' if noticed else 'SURVIVED':<9} {file}: {right!r} -> {wrong!r}  {by}", flush=True)
    print(f"{len(FAULTS) - survived} of {len(FAULTS)} faults noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
