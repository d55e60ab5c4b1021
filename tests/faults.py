"""Seed one wrong constant at a time and see whether the suite notices: python tests/faults.py [folder ...]

Each fault is a change of one expression in a copy of the package; the tests named beside it (a file, and perhaps what
-k takes) run against the copy. Folders (machine, linalg ...) choose their faults alone. One in core.cpp is compiled, as
the portable core. A fault that no test notices is printed as SURVIVED, and the exit status is 1.
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
    ("numerics/distance.py", "gx = 2 * (g.sum", "gx = (g.sum", "test_numerics.py"),
    (
        "operators/tilesum.py",
        "group.cols[j] = _add(group.cols.get(j), c)",
        "group.cols[j] = list(c)",
        "test_operators.py",
    ),
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
    ("machine/core.cpp", "0.240222420853767", "0.240322420853767", "test_machine.py products_stay"),
    ("machine/core.cpp", "0.0750000000033699948", "0.0751", "test_machine.py angles"),
    ("machine/core.cpp", "T(LN2 * LN2 / 6) * (r", "T(LN2 * LN2 / 5) * (r", "test_machine.py gradients"),
    ("machine/core.cpp", "state[1] *= shrink;", "state[1] *= 1;", "test_machine.py softmax"),
    ("machine/core.cpp", "    if (crossing) work.mask(adjoint, row, column);\n", "", "test_machine.py overflow"),
    ("machine/core.cpp", "if (largest == largest && !(", "if (!(", "test_machine.py nan"),
    ("operators/slopes.py", "power = 1 if self", "power = 2 if self", "test_machine.py gradients"),
    ("operators/softmax.py", "-(g * out).sum(-1", "(g * out).sum(-1", "test_machine.py softmax"),
    ("operators/circulant.py", "(at[:, None] - at) %", "(at - at[:, None]) %", "test_structure.py"),
    ("operators/levinson.py", "reflection = -(float(t[k])", "reflection = (float(t[k])", "test_structure.py"),
    ("operators/levinson.py", "(n - k) * t", "(n + k) * t", "test_structure.py"),
    (
        "operators/kronecker.py",
        "(a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), [f.diag",
        "(a.unsqueeze(-2) * b.unsqueeze(-1)).flatten(-2), [f.diag",
        "test_operators.py Kronecker",
    ),
    ("operators/support.py", "self.radius() * (1 + 1e-9)", "self.radius() * 0.98", "test_structure.py"),
    ("operators/vecchia.py", "block + noise * eye", "block + 2 * noise * eye", "test_structure.py"),
    ("linalg/lanczos.py", "vectors[:, 0, :].square() *", "vectors[:, 0, :].abs() *", "test_linalg_spectral.py"),
    ("linalg/minres.py", "delta - cosine_old * sine", "delta + cosine_old * sine", "test_linalg_krylov.py"),
    ("linalg/cg.py", "x += p @ step", "x += 0.9 * p @ step", "test_linalg_krylov.py"),
    ("linalg/cg.py", "new / torch.where(live, rho", "0.9 * new / torch.where(live, rho", "test_linalg_krylov.py"),
    ("linalg/woodbury.py", "return 2 * self._lower.diag", "return self._lower.diag", "test_linalg_spectral.py"),
    ("linalg/woodbury.py", "self._mixed(v, 1 / (1 + s))", "self._mixed(v, 1 / s)", "test_linalg_krylov.py woodbury"),
    ("kernels/ntk.py", "found.sum(0, keepdim=True)", "found.mean(0, keepdim=True)", "test_ntk.py"),
]


def compile_core(folder: str) -> str:
    """The altered core.cpp as the portable core of the copy, the only one there."""
    machine = Path(folder, "src/mercer/machine")
    for old in machine.glob("core_*"):
        old.unlink()
    command = "import sys, pathlib, build; build.build(pathlib.Path(sys.argv[1]), ('-O1',), only='portable')"
    subprocess.run(
        [sys.executable, "-c", command, str(machine)], check=True, env={**os.environ, "PYTHONPATH": str(machine)}
    )
    return "portable"


def main(folders: list[str]) -> int:
    survived, chosen = 0, [fault for fault in FAULTS if not folders or fault[0].split("/")[0] in folders]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", f"{folder}/tests")
        for page in ("docs", "examples", "README.md", "pyproject.toml"):
            source = ROOT / page
            (shutil.copytree if source.is_dir() else shutil.copy)(source, f"{folder}/{page}")
        for file, right, wrong, tests in chosen:
            shutil.rmtree(f"{folder}/src", ignore_errors=True)
            shutil.copytree(ROOT / "src", f"{folder}/src")
            path = Path(folder, "src/mercer", file)
            text = path.read_text()
            if text.count(right) < 1:
                print(f"STALE     {file}: {right!r} is not there")
                survived += 1
                continue
            path.write_text(text.replace(right, wrong, 1))
            environment = {**os.environ, "PYTHONPATH": f"{folder}/src", "OMP_NUM_THREADS": "1"}
            if path.suffix == ".cpp":
                environment["MERCER_CORE"] = compile_core(folder)
            test, *some = tests.split(" ", 1)
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{test}", *(["-k", some[0]] if some else [])],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            noticed = run.returncode == 1
            survived += not noticed
            by = next((line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith("FAILED")), "")
            print(f"{'noticed' if noticed else 'SURVIVED':<9} {file}: {right!r} -> {wrong!r}  {by}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} faults noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
