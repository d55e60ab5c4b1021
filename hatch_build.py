"""Build hook: compile the kernel core into the wheel where there is a compiler, and go on without it where not.

MERCER_CORE_BUILD=off leaves it out, =required fails where it cannot be built.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


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
            module.build()
        except (OSError, subprocess.CalledProcessError) as error:
            if wish == "required":
                raise
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"mercer: no compiled core, torch tiles will run instead: {reason}")
            return
        platform = os.environ.get("MERCER_WHEEL_PLATFORM") or sysconfig.get_platform()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform.replace('-', '_').replace('.', '_')}"
