"""What is inside the VMs' guests: a tree of files each, the account that may touch them, and the scripts that run.

The files of a guest lie in `guests/<moref>` of the lab directory, `C:` and all; a Windows guest finds them in any
case. A script is a text file that the lab reads and does not run: its exit status is the number behind `exit`.
"""

from __future__ import annotations

import configparser
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

if TYPE_CHECKING:
    from ..service import Service
    from .inventory import VmState

_DEFAULT_PERMISSIONS = 0o644  # as the API documents
_EXIT = re.compile(r"^\s*exit\s+(?:/b\s+)?(\d+)", re.MULTILINE | re.IGNORECASE)
_WINDOWS = (
    r"C:\ProgramData\VMware\VMware Tools\tools.conf",
    r"C:\Windows\pre-freeze-script.bat",
    r"C:\Windows\post-thaw-script.bat",
    r"C:\Program Files\VMware\VMware Tools\backupScripts.d",
)
_LINUX = (
    "/etc/vmware-tools/tools.conf",
    "/usr/sbin/pre-freeze-script",
    "/usr/sbin/post-thaw-script",
    "/etc/vmware-tools/backupScripts.d",
)


@dataclass(frozen=True)
class Transfer:
    """A file transfer that was begun. `size`: of what is to come; None: the file goes out."""

    file: Path
    size: int | None
    permissions: int | None

    def store(self, content: bytes) -> None:
        self.file.write_bytes(content)
        self.file.chmod(self.permissions or _DEFAULT_PERMISSIONS)


class Guests:
    """The guests of all VMs.

    account: user and password of every guest; forbidden: local paths that it may not touch; ran: the scripts that
    ran, as (moref, path, argument); door: the host and port in the addresses of files, '*' for this server;
    host_thumbprint: what the inventory says of the host's certificate.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.account = ("Administrator", "guest")
        self.forbidden: set[Path] = set()
        self.ran: list[tuple[str, str, str]] = []
        self.door = "*"
        self.host_thumbprint: str | None = service.certificate.thumbprint_sha1
        self._transfers: dict[str, Transfer] = {}

    def locate(self, moref: str, path: str) -> Path:
        """Where the file with this path in a guest is. Raises FileFault for a path that is not whole."""
        vm = self.service.inventory.vms[moref]
        separator = "\\" if _is_windows(vm) else "/"
        parts = path.split(separator)
        whole = parts[0].endswith(":") if _is_windows(vm) else parts[0] == ""
        if not whole or ".." in parts:
            raise vim.fault.FileFault(file=path, msg=f"{path} is not the full path of a file.")
        place = self.service.inventory.root / "guests" / moref
        for part in filter(None, parts):
            place = _child(place, part) if _is_windows(vm) else place / part
        return place

    def write(self, moref: str, path: str, content: bytes) -> Path:
        """Put a file into a guest, as its administrator would; where it is."""
        file = self.locate(moref, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    # Transfers

    def begin(self, transfer: Transfer) -> str:
        """The address for one transfer; good once."""
        token = secrets.token_hex(16)
        self._transfers[token] = transfer
        return f"https://{self.door}/guestFile?id={len(self._transfers)}&token={token}"

    def redeem(self, token: str, *, incoming: bool) -> Transfer | None:
        """The transfer that was begun with this token; it is good for no second one."""
        transfer = self._transfers.get(token)
        if transfer is None or (transfer.size is not None) != incoming:
            return None
        return self._transfers.pop(token)

    # Quiescing

    def vmbackup(self, vm: VmState) -> dict[str, str]:
        """The group [vmbackup] of the guest's tools.conf."""
        file = self.locate(vm.moref, _places(vm)[0])
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        if file.is_file():
            parser.read_string(file.read_text("utf-8", "replace"))
        return dict(parser["vmbackup"]) if "vmbackup" in parser else {}

    def freeze(self, vm: VmState, *, older_call: bool) -> bool:
        """Run the scripts before a snapshot; False when one failed, after those for a failed freeze."""
        if older_call and self.vmbackup(vm).get("execScripts") == "false":
            return True
        for path, file in self._freeze_scripts(vm):
            if not self._run(vm, path, file, "freeze"):
                for again, one in self._thaw_scripts(vm):
                    self._run(vm, again, one, "freezeFail")
                return False
        return True

    def thaw(self, vm: VmState, *, older_call: bool) -> None:
        """Run the scripts after a snapshot."""
        if not (older_call and self.vmbackup(vm).get("execScripts") == "false"):
            for path, file in self._thaw_scripts(vm):
                self._run(vm, path, file, "thaw")

    def _freeze_scripts(self, vm: VmState) -> Iterator[tuple[str, Path]]:
        _, pre_freeze, _, _ = _places(vm)
        if (file := self.locate(vm.moref, pre_freeze)).is_file():
            yield pre_freeze, file
        yield from self._shared_scripts(vm)

    def _thaw_scripts(self, vm: VmState) -> Iterator[tuple[str, Path]]:
        _, _, post_thaw, _ = _places(vm)
        yield from reversed(self._shared_scripts(vm))
        if (file := self.locate(vm.moref, post_thaw)).is_file():
            yield post_thaw, file

    def _shared_scripts(self, vm: VmState) -> list[tuple[str, Path]]:
        directory = _places(vm)[3]
        place = self.locate(vm.moref, directory)
        separator = "\\" if _is_windows(vm) else "/"
        files = sorted(place.iterdir()) if place.is_dir() else []
        return [(f"{directory}{separator}{file.name}", file) for file in files]

    def _run(self, vm: VmState, path: str, file: Path, argument: str) -> bool:
        self.ran.append((vm.moref, path, argument))
        status = _EXIT.search(file.read_text())
        return status is None or status[1] == "0"


def _is_windows(vm: VmState) -> bool:
    return vm.guest_id.startswith("win")


def _places(vm: VmState) -> tuple[str, str, str, str]:
    return _WINDOWS if _is_windows(vm) else _LINUX


def _child(directory: Path, name: str) -> Path:
    """The entry called so in any case; the name itself when there is none."""
    if directory.is_dir():
        for entry in directory.iterdir():
            if entry.name.lower() == name.lower():
                return entry
    return directory / name
