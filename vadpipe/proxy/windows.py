"""A Windows proxy: its facts, and its settings read and written, in the 64-bit registry and by DiskPart."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

from pipeline.errors import ContractError, MoverError

from .command import Run, failure, run_command
from .report import Report, Transport, judge_machine
from .settings import (
    AUTOMOUNT,
    AUTOMOUNT_SCRUBBED,
    REMOTE_DESKTOP,
    SAN_POLICY,
    WINDOWS_SETTINGS,
    RegistryValue,
    Setting,
    Value,
)
from .windows_rules import RULES, WindowsFacts

# The group policy's own value; it goes before the local one (Microsoft, Terminal Services policies).
RDP_POLICY = RegistryValue(r"SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "fDenyTSConnections")
# A configured node has the cluster service, and not disabled ([MS-CMRP] 3.1.3.2).
CLUSTER_SERVICE = RegistryValue(r"SYSTEM\CurrentControlSet\Services\ClusSvc", "Start")
SERVICE_DISABLED = 4
# In full: a program of that name in the current directory would be found before it.
_DISKPART = os.environ.get("SYSTEMROOT", r"C:\Windows") + r"\System32\diskpart.exe"


class Registry(Protocol):
    """REG_DWORD values below HKEY_LOCAL_MACHINE. Both raise OSError when access is denied."""

    def read(self, key: str, name: str) -> int | None:
        """The number; None: there is no such key or value. Raises MoverError for a value of another type."""
        ...

    def write(self, key: str, name: str, value: int | None) -> None:
        """Set the value, making its key; None removes it."""
        ...


class WindowsRegistry:
    """The registry of this machine. `winreg`: Python's module of that name, which exists on Windows only."""

    def __init__(self, winreg: ModuleType | None = None) -> None:
        self._winreg = winreg or import_module("winreg")

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


class WindowsProxy:
    """This machine, by its registry and DiskPart."""

    platform = "windows"
    settings: Mapping[str, Setting] = WINDOWS_SETTINGS

    def __init__(self, registry: Registry | None = None, run: Run = run_command) -> None:
        self._registry = registry or WindowsRegistry()
        self._run = run

    @property
    def state_directory(self) -> Path:
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "vadpipe"

    def judge(self, transport: Transport) -> Report:
        facts = self.facts()
        notes = [f"The SAN policy is {facts.san_policy_name}."]
        return judge_machine(self.platform, RULES, facts, transport, notes)

    def facts(self) -> WindowsFacts:
        unreadable: dict[str, str] = {}

        def number(fact: str, place: RegistryValue) -> int | None:
            try:
                return self._number(place)
            except MoverError as exc:
                unreadable[fact] = exc.problem
                return None

        start = number("cluster_node", CLUSTER_SERVICE)
        return WindowsFacts(
            automount_off=bool(number("automount_off", _place(AUTOMOUNT))),
            scrubbed=bool(number("scrubbed", _place(AUTOMOUNT_SCRUBBED))),
            rdp_denied=number("rdp_denied", _place(REMOTE_DESKTOP)),
            rdp_denied_by_policy=number("rdp_denied_by_policy", RDP_POLICY),
            san_policy=number("san_policy", _place(SAN_POLICY)),
            cluster_node=start is not None and start != SERVICE_DISABLED,
            unreadable=unreadable,
        )

    def read(self, setting: Setting) -> Value:
        return self._number(_place(setting))

    def set(self, setting: Setting, value: Value) -> Sequence[str]:
        """Bring the value about, through DiskPart where it keeps it. Returns remarks: none. Raises MoverError."""
        place = _place(setting)
        if script := setting.script(value):
            self._diskpart(script)
            return ()
        if isinstance(value, str):
            raise ContractError(f"{place} holds a number, not {value!r}.")
        try:
            self._registry.write(place.key, place.name, value)
        except OSError as exc:
            raise MoverError(
                f"{place} cannot be changed: {exc}.", remedy="Run it as administrator.", setting=setting.id
            ) from exc
        return ()

    def _number(self, place: RegistryValue) -> int | None:
        try:
            value = self._registry.read(place.key, place.name)
        except OSError as exc:
            raise MoverError(f"{place} cannot be read: {exc}.", remedy="Run it as administrator.") from exc
        return int(bool(value)) if place.flag else value

    def _diskpart(self, lines: Sequence[str]) -> None:
        """Run a script. In a directory of our own, so that nobody else can put one in its place."""
        with tempfile.TemporaryDirectory(prefix="vadpipe-") as directory:
            script = Path(directory) / "script.txt"
            script.write_bytes("".join(f"{line}\r\n" for line in lines).encode("ascii"))
            argv = (_DISKPART, "/s", str(script))
            code, output = self._run(argv)
        if code:
            raise MoverError(
                f"DiskPart could not do `{'; '.join(lines)}`: {failure(argv, code, output)}.",
                remedy="Run it as administrator; the Virtual Disk service must be able to start.",
            )


def _place(setting: Setting) -> RegistryValue:
    if not isinstance(setting.place, RegistryValue):
        raise ContractError(f"{setting.id} is no setting of Windows.")
    return setting.place
