"""The machine this process runs on."""

from __future__ import annotations

import sys
from typing import TypeAlias

from pipeline.errors import ConfigError

from .linux import LinuxProxy
from .windows import WindowsProxy

Machine: TypeAlias = LinuxProxy | WindowsProxy
"""A proxy of one platform. Its methods block.

platform, settings  what undo files name it; the settings that harden may change here, by id
state_directory     where undo files go by default
judge               gathers the facts and judges them; what cannot be read is a finding
read, set           one setting; both raise MoverError, and `set` returns remarks for people
"""


def this_machine(platform: str = sys.platform) -> Machine:
    """Raises ConfigError on a platform that VDDK does not run on."""
    if platform == "win32":
        return WindowsProxy()
    if platform == "linux":
        return LinuxProxy()
    raise ConfigError(
        f"A proxy on {platform} is not supported.", remedy="VDDK runs on Windows and Linux: use one of them."
    )
