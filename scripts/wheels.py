"""Build the source distribution and the wheels, and try each of them: python scripts/wheels.py [--to dist]

Needs a C++ compiler and hatchling. Three things are made from the source distribution: the wheel of this platform with
the compiled cores inside, and the pure wheel (MERCER_CORE_BUILD=off). Both are installed into fresh environments
without a compiler on PATH; the first must run a product in its core, the second in torch tiles. What mercer depends on
is taken from this interpreter's environment, or installed anew with --index. The pure wheel is tried and not kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIAL = """
import mercer, sys, torch
from mercer.kernels import Gaussian
from mercer.machine import core
from mercer.operators import Fused, Tiled
assert mercer.__file__.startswith(sys.prefix), mercer.__file__
x = torch.linspace(-1, 1, 300, dtype=torch.float64).reshape(100, 3)
k = Gaussian(0.7)
product = k(x[:60], x) @ x
torch.testing.assert_close(product, k.block(x[:60], x) @ x)
kind = type(Fused(Tiled(k, x, x)) if core() else Tiled(k, x, x)).__name__
print(kind, core()._name if core() else "no core")
"""


def run(*command: object, **more: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def wheel(source: Path, to: Path, **environment: str) -> Path:
    """The wheel that hatchling makes of an unpacked source distribution."""
    to.mkdir(parents=True, exist_ok=True)
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        to,
        cwd=source,
        env={**os.environ, **environment},
    )
    (made,) = to.glob("*.whl")
    return made


def cores(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as held:
        return sorted(Path(n).name for n in held.namelist() if Path(n).suffix in (".so", ".dylib", ".dll"))


def trial(path: Path, room: Path, index: bool) -> str:
    """What a fresh environment without a compiler runs a product with."""
    run(sys.executable, "-m", "venv", room)
    scripts = room / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    bare = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "PYTHONPATH", "MERCER_CORE")}
    bare["PATH"] = str(scripts)
    if not index:  # a path, not a site folder: editable installs in it are not followed
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", env=bare).strip()
        Path(site, "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    offline = [] if index else ["--no-deps", "--no-index"]
    run(python, "-m", "pip", "install", "--disable-pip-version-check", *offline, path, env=bare)
    return run(python, "-I", "-c", TRIAL, env=bare, cwd=room).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "dist")
    parser.add_argument("--index", action="store_true", help="install the dependencies from the package index")
    asked = parser.parse_args()
    asked.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", room / "sdist", cwd=ROOT)
        (sdist,) = (room / "sdist").glob("*.tar.gz")
        with tarfile.open(sdist) as held:
            held.extractall(room, filter="data")
        source = room / sdist.name.removesuffix(".tar.gz")
        assert not list(source.rglob("core_*")), "the source distribution holds compiled cores"
        tag = {"MERCER_WHEEL_PLATFORM": "manylinux"} if sys.platform.startswith("linux") else {}
        pure = wheel(source, room / "pure", MERCER_CORE_BUILD="off")
        found = trial(pure, room / "env-pure", asked.index)
        assert pure.name.endswith("-py3-none-any.whl") and not cores(pure), (pure.name, cores(pure))
        assert found == "Tiled no core", found
        print(f"{pure.name}: pure, {found}")
        native = wheel(source, room / "native", MERCER_CORE_BUILD="required", **tag)
        found = trial(native, room / "env-native", asked.index)
        assert cores(native) and found.startswith("Fused "), (cores(native), found)
        print(f"{native.name}: {', '.join(cores(native))}, {found.split()[0]}")
        for made in (sdist, native):
            (asked.to / made.name).write_bytes(made.read_bytes())
            print(f"wrote {asked.to / made.name}")


if __name__ == "__main__":
    main()
