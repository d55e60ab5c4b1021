"""Building the compiled core: one shared library for each instruction set of this platform."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
)
QUIET = ("-Wno-psabi",)
X86 = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
HERE = Path(__file__).parent


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of c++, g++ and clang++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def cores() -> dict[str, tuple[str, ...]]:
    """The cores of this platform and their compiler flags."""
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else {"portable": ()}


def build(to: Path = HERE, extra: tuple[str, ...] = (), only: str | None = None) -> list[Path]:
    """Compile every core (or one) into `to`; returns the libraries. Raises CalledProcessError or FileNotFoundError."""
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C++ compiler: set CXX, or install g++ or clang++")

    def one(core: tuple[str, tuple[str, ...]]) -> Path:
        name, flags = core
        target = to / f"core_{name}{SUFFIX}"
        with tempfile.TemporaryDirectory(dir=to) as room:  # a library in use is replaced, not written over
            fresh = Path(room) / target.name
            command = [program, *FLAGS, *QUIET, *flags, *extra, str(HERE / "core.cpp"), "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            fresh.replace(target)
        return target

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, [(name, flags) for name, flags in cores().items() if only in (None, name)]))
