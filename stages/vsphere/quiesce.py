"""How the guest is quiesced for a snapshot, and the call that does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyVmomi import vim

from pipeline.errors import ConfigError

from .faults import NotOffered
from .lookup import Vm
from .session import VcenterSession

Kind = Literal["application", "file-system", "none"]
BackupType = Literal["copy", "full", "incremental", "differential", "log"]

# VSS_BACKUP_TYPE of the Windows SDK (vss.h).
_BACKUP_TYPES: dict[BackupType, int] = {"full": 1, "incremental": 2, "differential": 3, "log": 4, "copy": 5}

# VirtualMachineWindowsQuiesceSpec.vssBackupContext. `ctx_backup` cannot degrade by itself, `ctx_auto` can.
_CONTEXTS: dict[Kind, str] = {"application": "ctx_backup", "file-system": "ctx_file_share_backup"}

_TIMEOUT_MIN = range(5, 241)  # VirtualMachineGuestQuiesceSpec.timeout
_EX_SINCE = (6, 5)


@dataclass(frozen=True)
class Quiesce:
    """What is asked of the guest. Made by `application()`, `file_system()` and `none()`.

    `backup_type`: 'copy' leaves the applications' logs alone; 'full' and 'log' let them truncate their logs.
    `timeout_min`: 5 to 240 minutes for the guest to get ready, None for the server's default (15).
    """

    kind: Kind
    backup_type: BackupType = "copy"
    bootable_system_state: bool = True
    partial_files: bool = False
    timeout_min: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*_CONTEXTS, "none"):
            raise ConfigError(f"{self.kind!r} is no kind of quiescing.", remedy="Use Quiesce.application().")
        if self.backup_type not in _BACKUP_TYPES:
            raise ConfigError(
                f"{self.backup_type!r} is not a VSS backup type.",
                remedy=f"Choose one of {', '.join(_BACKUP_TYPES)}.",
            )
        if self.timeout_min is not None and self.timeout_min not in _TIMEOUT_MIN:
            raise ConfigError(
                f"A quiescing time-out of {self.timeout_min} minutes is outside what vSphere takes.",
                remedy=f"Choose {_TIMEOUT_MIN[0]} to {_TIMEOUT_MIN[-1]} minutes, or None for its default.",
            )

    @classmethod
    def application(
        cls,
        *,
        backup_type: BackupType = "copy",
        bootable_system_state: bool = True,
        partial_files: bool = False,
        timeout_min: int | None = None,
    ) -> Quiesce:
        """Applications bring their files into order (on Windows: VSS with its writers)."""
        return cls("application", backup_type, bootable_system_state, partial_files, timeout_min)

    @classmethod
    def file_system(cls, *, timeout_min: int | None = None) -> Quiesce:
        """File systems flush and hold; applications are not told."""
        return cls("file-system", timeout_min=timeout_min)

    @classmethod
    def none(cls) -> Quiesce:
        """The disks as after a power failure."""
        return cls("none")


async def create_snapshot(
    session: VcenterSession, vm: Vm, quiesce: Quiesce, *, name: str, description: str, guest_id: str
) -> vim.Task:
    """Start a snapshot without memory; returns its task.

    By CreateSnapshotEx_Task, which takes a specification; where that is not to be had (API before 6.5) by
    CreateSnapshot_Task, where VMware Tools choose between applications and file systems.
    """
    subject = vm.reference(session)
    spec = quiesce_spec(quiesce, guest_id)
    if session.api_version >= _EX_SINCE:
        try:
            return await session.call(
                "CreateSnapshotEx_Task",
                lambda: subject.CreateSnapshotEx(name, description, False, spec),
                changes=True,
            )
        except NotOffered:
            pass  # it was refused, not run: the older call follows
    return await session.call(
        "CreateSnapshot_Task",
        lambda: subject.CreateSnapshot(name, description, False, spec is not None),
        changes=True,
    )


def quiesce_spec(quiesce: Quiesce, guest_id: str) -> vim.vm.GuestQuiesceSpec | None:
    """The API's specification for a guest with this configured guest id; None: do not quiesce."""
    if quiesce.kind == "none":
        return None
    if not guest_id.lower().startswith("win"):
        return vim.vm.GuestQuiesceSpec(timeout=quiesce.timeout_min)
    return vim.vm.WindowsQuiesceSpec(
        timeout=quiesce.timeout_min,
        vssBackupType=_BACKUP_TYPES[quiesce.backup_type],
        vssBootableSystemState=quiesce.bootable_system_state,
        vssPartialFileSupport=quiesce.partial_files,
        vssBackupContext=_CONTEXTS[quiesce.kind],
    )
