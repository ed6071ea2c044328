"""The machine this process runs on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError

from .linux import LinuxProxy
from .report import Report, Transport
from .settings import Setting, Value
from .windows import WindowsProxy


class Machine(Protocol):
    """A proxy of one platform. All of it blocks."""

    @property
    def platform(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Setting]:
        """id -> what may be changed here."""
        ...

    @property
    def state_directory(self) -> Path:
        """Where undo files go unless told otherwise."""
        ...

    def judge(self, transport: Transport) -> Report:
        """Gather the facts and judge them; what cannot be read is a finding."""
        ...

    def read(self, setting: Setting) -> Value:
        """The value that is there now. Raises MoverError, or OSError of the registry."""
        ...

    def set(self, setting: Setting, value: Value) -> Sequence[str]:
        """Make it the value that is there. Returns remarks for people. Raises MoverError."""
        ...


def this_machine(platform: str = sys.platform) -> Machine:
    """Raises ConfigError on a platform that VDDK does not run on."""
    if platform == "win32":
        return WindowsProxy()
    if platform == "linux":
        return LinuxProxy()
    raise ConfigError(
        f"A proxy on {platform} is not supported.", remedy="VDDK runs on Windows and Linux: use one of them."
    )
