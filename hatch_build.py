"""Build hook: compile the kernel core into the wheel where there is a compiler, and go on without it where not.

MERCER_CORE_BUILD=off leaves it out, =required fails where it cannot be built. MERCER_WHEEL_PLATFORM is the platform in
the wheel's name; "manylinux" stands for the oldest manylinux whose C library has what the core uses.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST = 17  # manylinux2014: what installers of the last years know


def manylinux(libraries: list[Path]) -> str:
    """The manylinux tag of libraries that need the C library alone, from the versions of its symbols that they name."""
    held = b"".join(path.read_bytes() for path in libraries)
    minors = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", held)]
    if not minors or b"\0libstdc++.so" in held:
        raise ValueError("these cores were not linked with the GNU C library alone: give MERCER_WHEEL_PLATFORM a tag")
    return f"manylinux_2_{max(OLDEST, *minors)}_{platform.machine()}"


class CoreHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wish = os.environ.get("MERCER_CORE_BUILD", "")
        if self.target_name != "wheel" or wish == "off":
            return
        path = Path(self.root, "src", "mercer", "machine", "build.py")
        spec = importlib.util.spec_from_file_location("mercer_core_build", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            libraries = module.build()
        except (OSError, subprocess.CalledProcessError) as error:
            if wish == "required":
                raise
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"mercer: no compiled core, torch tiles will run instead: {reason}")
            return
        # cores of another build that lie in the tree stay out: git ignores them, and only these are named
        build_data["artifacts"] += [f"/{library.relative_to(self.root)}" for library in libraries]
        tag = os.environ.get("MERCER_WHEEL_PLATFORM") or sysconfig.get_platform()
        tag = manylinux(libraries) if tag == "manylinux" else tag
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag.replace('-', '_').replace('.', '_')}"
