"""What this machine offers and what may hold it back."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info

from mercer.app.calibrate import calibrate
from mercer.app.cores import cores
from mercer.budget import free_memory, memory_budget, mib
from mercer.machine import core
from mercer.machine.library import wanted
from mercer.machine.rates import rates

_PACKAGES = (
    "mercer",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "pandas",
    "pyarrow",
    "skrub",
    "matplotlib",
    "lightgbm",
)
_SAFE_TORCH = (2, 11)


def versions(names: tuple[str, ...] = _PACKAGES) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _torch_release() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def examine(calibrated: bool = False) -> dict[str, Any]:
    """Facts about the machine, and `advice`: a sentence for each thing worth mending.

    calibrated: measure the machine's speed for the planner before.
    """
    if calibrated:
        calibrate()
    packages, advice = versions(), []
    if core() is None:
        advice.append("there is no compiled core: kernel products take several times longer; install a C++ compiler")
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if driver and not torch.cuda.is_available():
        advice.append("an NVIDIA driver is present but this torch is built for the CPU: install a CUDA build of torch")
    if _torch_release() < _SAFE_TORCH:
        advice.append(f"torch {torch.__version__} has known advisories on loading files; update to 2.11 or later")
    if packages["lightgbm"] is None:
        advice.append(
            "lightgbm is not installed, so reports lack their strongest yardstick: pip install 'mercer[compare]'"
        )
    if free_memory() < 2**30:
        advice.append(f"only {mib(free_memory())} of memory are free: close something, or fit fewer rows")
    if torch.get_num_threads() > cores():
        advice.append(f"torch uses {torch.get_num_threads()} threads on {cores()} cores: set OMP_NUM_THREADS={cores()}")
    blas = sorted({f"{b['internal_api']} {b['version']}" for b in threadpool_info() if b["user_api"] == "blas"})
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "core": wanted() if core() is not None else None,
        "rates": rates().source,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "blas": blas,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "free_memory": free_memory(),
        "memory_budget": memory_budget(),
        "free_disk": shutil.disk_usage(".").free,
        "advice": advice,
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as lines."""
    lines = [f"python {facts['python']} on {facts['system']}, {facts['device']} ({facts['instructions']})"]
    lines += [f"{name:13} {version or 'not installed'}" for name, version in facts["packages"].items()]
    lines.append(f"{facts['threads']} threads on {facts['cores']} cores; BLAS {', '.join(facts['blas']) or 'unknown'}")
    lines.append(f"compiled core: {facts['core'] or 'none'}; planner: {facts['rates']}")
    lines.append(
        f"{mib(facts['free_memory'])} of memory free, {mib(facts['memory_budget'])} of it for one product; "
        f"{mib(facts['free_disk'])} of disk free here"
    )
    lines += [f"! {advice}" for advice in facts["advice"]] or ["nothing to mend"]
    return "\n".join(lines)
