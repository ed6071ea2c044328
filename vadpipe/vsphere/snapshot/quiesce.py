"""How a guest is quiesced for a snapshot, and the call that creates one. `fallback` deals with failures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

from pyVmomi import vim

from pipeline.errors import ConfigError

from ..api.faults import NotOffered
from ..api.session import VcenterSession
from ..inventory.lookup import Vm

log = logging.getLogger(__name__)

QuiesceKind = Literal["application", "auto", "file-system", "none"]
BackupType = Literal["copy", "full", "incremental", "differential", "log"]
Policy = Literal["require", "try", "never"]

# VSS_BACKUP_TYPE of the Windows SDK (vss.h).
_BACKUP_TYPES: dict[BackupType, int] = {"full": 1, "incremental": 2, "differential": 3, "log": 4, "copy": 5}

# VirtualMachineWindowsQuiesceSpec.vssBackupContext. `ctx_backup` cannot degrade by itself, `ctx_auto` can.
_CONTEXTS: dict[QuiesceKind, str] = {
    "application": "ctx_backup",
    "auto": "ctx_auto",
    "file-system": "ctx_file_share_backup",
}

# What the documentation of VSS_BACKUP_TYPE and of the writers says about logs.
_LOG_WARNINGS: dict[BackupType, str] = {
    "full": "applications such as Exchange may truncate their logs",
    "incremental": "applications may truncate their logs, and count it into their backup history",
    "differential": "applications count from the last full backup, which another product may have made",
    "log": "applications may truncate their logs",
}

_TIMEOUT_MIN = range(5, 241)  # VirtualMachineGuestQuiesceSpec.timeout
_EX_SINCE = (6, 5)


class QuiesceOptions(TypedDict, total=False):
    """Options of every kind of quiescing; `Quiesce` describes them."""

    timeout_min: int | None
    policy: Policy
    retries: int
    retry_after_s: float | None


class VssOptions(QuiesceOptions, total=False):
    """Options of the kinds in which VSS writers take part."""

    backup_type: BackupType
    bootable_system_state: bool
    partial_files: bool


@dataclass(frozen=True)
class Quiesce:
    """What is asked of the guest. Make one with `application()`, `auto()`, `file_system()` or `none()`.

    Args:
        backup_type: 'copy' leaves the applications' logs and backup history alone; see `warning` for the others.
        bootable_system_state: VSS option.
        partial_files: VSS option.
        timeout_min: Minutes for the guest to get ready, 5 to 240; None for the server's default (15).
        policy: 'require' fails the backup when the guest cannot be quiesced in this way. 'try' takes the next
            weaker kind, down to none, and reports it. 'never' does not ask at all.
        retries: Further attempts after a failure that may pass.
        retry_after_s: Seconds before each of them; None for what the catalogue of failures says.
    """

    kind: QuiesceKind
    backup_type: BackupType = "copy"
    bootable_system_state: bool = True
    partial_files: bool = False
    timeout_min: int | None = None
    policy: Policy = "require"
    retries: int = 1
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*_CONTEXTS, "none"):
            raise ConfigError(
                f"{self.kind!r} is not a kind of quiescing.", remedy="Use Quiesce.application()."
            )
        if self.backup_type not in _BACKUP_TYPES:
            raise ConfigError(
                f"{self.backup_type!r} is not a VSS backup type.",
                remedy=f"Choose one of {', '.join(_BACKUP_TYPES)}.",
            )
        whole = isinstance(self.timeout_min, int | None)
        if not whole or (self.timeout_min is not None and self.timeout_min not in _TIMEOUT_MIN):
            raise ConfigError(
                f"A quiescing time-out of {self.timeout_min} minutes is outside what vSphere takes.",
                remedy=f"Choose {_TIMEOUT_MIN[0]} to {_TIMEOUT_MIN[-1]} minutes, or None for its default.",
            )
        if self.policy not in ("require", "try", "never") or (self.policy == "never") != (
            self.kind == "none"
        ):
            raise ConfigError(
                f"{self.policy!r} is not a policy for {self.kind} quiescing.",
                remedy="Choose 'require' or 'try'; Quiesce.none() is the policy 'never'.",
            )
        if self.retries < 0 or (self.retry_after_s or 0) < 0:
            raise ConfigError(
                "retries and retry_after_s must not be negative.", remedy="Give 0 for one attempt only."
            )

    @classmethod
    def application(cls, **options: Unpack[VssOptions]) -> Quiesce:
        """Applications make their files consistent (on Windows: VSS with its writers)."""
        return cls("application", **options)

    @classmethod
    def auto(cls, **options: Unpack[VssOptions]) -> Quiesce:
        """VMware Tools choose: applications where they can, else file systems. Only the manifest shows which."""
        return cls("auto", **options)

    @classmethod
    def file_system(cls, **options: Unpack[QuiesceOptions]) -> Quiesce:
        """File systems are flushed and held; applications are not told."""
        return cls("file-system", **options)

    @classmethod
    def none(cls) -> Quiesce:
        """The disks as after a power failure."""
        return cls("none", policy="never", retries=0)

    @property
    def warning(self) -> str:
        """What the backup type does to the applications' logs; empty for 'copy', which leaves them alone."""
        effect = _LOG_WARNINGS.get(self.backup_type) if self.kind in ("application", "auto") else None
        if effect is None:
            return ""
        return (
            f"With the VSS backup type {self.backup_type!r} {effect}, even when this backup fails afterwards; "
            "use 'copy' unless this is the only backup of these applications."
        )


async def create_snapshot(
    session: VcenterSession,
    vm: Vm,
    quiesce: Quiesce,
    *,
    name: str,
    description: str,
    guest_id: str,
    remark: Callable[[str], None],
) -> vim.Task:
    """Start the creation of a snapshot without memory; returns its task.

    CreateSnapshotEx_Task takes a quiesce specification. Where the server does not have it (API before 6.5),
    CreateSnapshot_Task is used, which takes yes or no; `remark` then gets a sentence on what could not be passed
    on.
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
            log.info("%s has no CreateSnapshotEx_Task; using CreateSnapshot_Task", session.server)
    if lost := not_conveyed(quiesce, guest_id):
        remark(lost)
    return await session.call(
        "CreateSnapshot_Task",
        lambda: subject.CreateSnapshot(name, description, False, spec is not None),
        changes=True,
    )


def quiesce_spec(quiesce: Quiesce, guest_id: str) -> vim.vm.GuestQuiesceSpec | None:
    """The API's specification for a guest with this configured guest id; None: do not quiesce."""
    if quiesce.kind == "none":
        return None
    if not is_windows(guest_id):
        return vim.vm.GuestQuiesceSpec(timeout=quiesce.timeout_min)
    return vim.vm.WindowsQuiesceSpec(
        timeout=quiesce.timeout_min,
        vssBackupType=_BACKUP_TYPES[quiesce.backup_type],
        vssBootableSystemState=quiesce.bootable_system_state,
        vssPartialFileSupport=quiesce.partial_files,
        vssBackupContext=_CONTEXTS[quiesce.kind],
    )


def not_conveyed(quiesce: Quiesce, guest_id: str) -> str:
    """What CreateSnapshot_Task, which always makes a 'copy', cannot express, as a sentence; or empty."""
    lost = [] if quiesce.timeout_min is None else [f"the time-out of {quiesce.timeout_min} minutes"]
    if is_windows(guest_id) and quiesce.kind != "none":
        if quiesce.kind != "auto":
            lost.append(f"the context ({quiesce.kind}), which VMware Tools choose")
        if quiesce.backup_type != "copy":
            lost.append(f"the backup type {quiesce.backup_type!r}, which is 'copy' instead")
        if not quiesce.bootable_system_state:
            lost.append("to leave out the bootable system state")
        if quiesce.partial_files:
            lost.append("partial files")
    if not lost:
        return ""
    return (
        "The server has no CreateSnapshotEx_Task, so the guest was not told: "
        f"{'; '.join(lost)}. The VSS manifest shows what was done."
    )


def is_windows(guest_id: str) -> bool:
    """Whether the configured guest id is one of Windows."""
    return guest_id.lower().startswith("win")
