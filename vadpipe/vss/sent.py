"""What a snapshot was asked for in VSS's terms, and what each writer makes of the type of backup.

Sources: Microsoft, VSS_BACKUP_TYPE and VSS_BACKUP_SCHEMA (vss.h) and their reference pages; the VDDK guide for
VMware's defaults; the documentation of SQL Server's and Exchange's writers for what a type does to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A requester's type holds only for writers whose schema has its bit; for all others it counts as FULL.
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
_EXCHANGE_TRUNCATES = (
    "it may truncate its logs as soon as the guest is done, even when this backup fails afterwards"
)
_LOGS_OF = {
    ("SQL Server", "copy"): "the base of its differential backups stays as it is, and no log is truncated",
    (
        "SQL Server",
        "full",
    ): "this becomes the base of its differential backups; its writer makes no log backups",
    ("SQL Server", "differential"): "it counts from its last full backup, whoever made that",
    ("Exchange", "full"): _EXCHANGE_TRUNCATES,
    ("Exchange", "incremental"): _EXCHANGE_TRUNCATES,
    ("Exchange", "log"): _EXCHANGE_TRUNCATES,
}
_TALKS_OF_LOGS = frozenset(application for application, _ in _LOGS_OF)


@dataclass(frozen=True, slots=True)
class SentQuiescing:
    """The quiesce spec that a snapshot was finally taken with. What is not given is VMware's default."""

    kind: Literal["application", "auto", "file-system", "none"]
    backup_type: str = "copy"
    bootable_system_state: bool = True
    partial_files: bool = False


VMWARE_DEFAULTS = SentQuiescing("application")


def effective_type(backup_type: str, schema: int) -> str:
    """What `backup_type` comes to for a writer of this backup schema. Empty, and other types, stay as they are."""
    bit = _SCHEMA_BITS.get(backup_type)
    return backup_type if bit is None or schema & bit else "full"


def tells_types_apart(application: str, schema: int) -> bool:
    """True for writers whose logs or history hang on the type, as far as anything is known of them."""
    return application in _TALKS_OF_LOGS or bool(schema & _ALL_BITS)


def changes_logs(effective: str) -> bool:
    """True for types after which logs may be gone or the backup history is another."""
    return effective in ("full", "incremental", "log")


def about_logs(application: str, effective: str) -> str:
    """What a backup of this effective type does to logs and history, as half a sentence; empty if unknown."""
    return _LOGS_OF.get((application, effective)) or _LOGS.get(effective, "")
