"""What a snapshot requested of VSS, and what each writer makes of the requested type of backup.

Sources: Microsoft, VSS_BACKUP_TYPE and VSS_BACKUP_SCHEMA (vss.h) and their reference pages; the VDDK guide for
VMware's defaults; the documentation of the writers of SQL Server and Exchange for the effect of a type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A type applies only to writers whose schema has its bit; for all others it counts as FULL.
_SCHEMA_BITS = {"differential": 0x1, "incremental": 0x2, "log": 0x8, "copy": 0x10}
BACKUP_TYPES = frozenset({"full", *_SCHEMA_BITS})
_ALL_BITS = sum(_SCHEMA_BITS.values())

_LOGS = {
    "copy": "its backup history stays as it is, and no log is truncated",
    "full": "its backup history is updated, and it may truncate logs by its own settings",
    "incremental": "its backup history is updated, and it may truncate logs by its own settings",
    "differential": "its backup history stays as it is; it counts from its last full backup, whoever made that",
    "log": "it may truncate its logs",
}
_TRUNCATES = "it may truncate its logs as soon as the guest is done, even when this backup fails afterwards"
_LOGS_OF = {
    "SQL Server": {
        "copy": "the base of its differential backups stays as it is, and no log is truncated",
        "full": "this becomes the base of its differential backups; its writer makes no log backups",
        "differential": "it counts from its last full backup, whoever made that",
    },
    "Exchange": {"full": _TRUNCATES, "incremental": _TRUNCATES, "log": _TRUNCATES},
}


@dataclass(frozen=True, slots=True)
class RequestedQuiescing:
    """The quiesce specification of a snapshot. The defaults are VMware's."""

    kind: Literal["application", "auto", "file-system", "none"]
    backup_type: str = "copy"
    bootable_system_state: bool = True
    partial_files: bool = False


VMWARE_DEFAULTS = RequestedQuiescing("application")


def effective_type(backup_type: str, schema: int) -> str:
    """The type that a writer with this schema performs: 'full' where the schema lacks the requested one."""
    bit = _SCHEMA_BITS.get(backup_type)
    return backup_type if bit is None or schema & bit else "full"


def distinguishes_types(application: str, schema: int) -> bool:
    """True for writers whose logs or history are known to depend on the type."""
    return application in _LOGS_OF or bool(schema & _ALL_BITS)


def changes_logs(effective: str) -> bool:
    """True for types that may truncate logs or change the backup history."""
    return effective in ("full", "incremental", "log")


def effect_on_logs(application: str, effective: str) -> str:
    """What a backup of this effective type does to logs and history, as a clause; empty if unknown."""
    return _LOGS_OF.get(application, {}).get(effective) or _LOGS.get(effective, "")
