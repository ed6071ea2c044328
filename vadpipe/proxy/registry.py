"""Numbers in the registry of Windows, always in its 64-bit view."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol, cast

from pipeline.errors import MoverError


class Registry(Protocol):
    """REG_DWORD values below HKEY_LOCAL_MACHINE. Both raise OSError when access is denied."""

    def read(self, key: str, name: str) -> int | None:
        """The number; None: there is no such key or value. Raises MoverError for a value of another type."""
        ...

    def write(self, key: str, name: str, value: int | None) -> None:
        """Set the value, making its key; None removes it."""
        ...


class Winreg(Protocol):
    """What we use of Python's `winreg`, which exists on Windows only."""

    HKEY_LOCAL_MACHINE: int
    KEY_READ: int
    KEY_SET_VALUE: int
    KEY_WOW64_64KEY: int
    REG_DWORD: int

    def OpenKey(  # noqa: N802
        self, key: int, sub_key: str, reserved: int, access: int
    ) -> AbstractContextManager[object]: ...
    def CreateKeyEx(  # noqa: N802
        self, key: int, sub_key: str, reserved: int, access: int
    ) -> AbstractContextManager[object]: ...
    def QueryValueEx(self, key: object, name: str) -> tuple[object, int]: ...  # noqa: N802
    def SetValueEx(self, key: object, name: str, reserved: int, kind: int, value: int) -> None: ...  # noqa: N802
    def DeleteValue(self, key: object, name: str) -> None: ...  # noqa: N802


class WindowsRegistry:
    """The registry of this machine."""

    def __init__(self, winreg: Winreg | None = None) -> None:
        self._winreg = winreg or cast(Winreg, import_module("winreg"))

    def read(self, key: str, name: str) -> int | None:
        api = self._winreg
        try:
            with api.OpenKey(api.HKEY_LOCAL_MACHINE, key, 0, api.KEY_READ | api.KEY_WOW64_64KEY) as handle:
                value, kind = api.QueryValueEx(handle, name)
        except FileNotFoundError:
            return None
        if kind != api.REG_DWORD or not isinstance(value, int):
            raise MoverError(
                rf"HKLM\{key}, {name} is no REG_DWORD.",
                remedy="Somebody wrote it by hand: make it a REG_DWORD, or remove it.",
            )
        return value

    def write(self, key: str, name: str, value: int | None) -> None:
        api = self._winreg
        access = api.KEY_SET_VALUE | api.KEY_WOW64_64KEY
        if value is not None:
            with api.CreateKeyEx(api.HKEY_LOCAL_MACHINE, key, 0, access) as handle:
                api.SetValueEx(handle, name, 0, api.REG_DWORD, value)
            return
        try:
            with api.OpenKey(api.HKEY_LOCAL_MACHINE, key, 0, access) as handle:
                api.DeleteValue(handle, name)
        except FileNotFoundError:
            return
