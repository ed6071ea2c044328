"""What writers make of each type of backup, written down by hand.

Microsoft, VSS_BACKUP_TYPE: a type that the writer's schema lacks counts as full. Copy and differential backups
leave the backup history alone; full, incremental and log backups change it, or the logs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KEPT, CHANGED, AS_FULL = "logs-kept", "logs-changed", "counts-as-full"
TYPE_RULES = frozenset({KEPT, CHANGED, AS_FULL})


@dataclass(frozen=True)
class TypeTable:
    """For each type that is asked for: (what it comes to, the rule that tells)."""

    full: tuple[str, str]
    copy: tuple[str, str]
    differential: tuple[str, str]
    incremental: tuple[str, str]
    log: tuple[str, str]

    def of(self, asked: str) -> tuple[str, str]:
        return {
            "full": self.full,
            "copy": self.copy,
            "differential": self.differential,
            "incremental": self.incremental,
            "log": self.log,
        }[asked]


# Nothing is known of its logs, and it declares no type.
FULL_ONLY = TypeTable(*[("full", "")] * 5)
# The same with a database: that a type is not kept matters to somebody.
FULL_ONLY_DATABASE = TypeTable(("full", ""), *[("full", AS_FULL)] * 4)
# Schema 0x371: differential and copy. SQL Server's writer makes no log backups.
SQL_SERVER_TYPES = TypeTable(
    full=("full", CHANGED),
    copy=("copy", KEPT),
    differential=("differential", KEPT),
    incremental=("full", CHANGED),
    log=("full", CHANGED),
)
# Schema 0x17: differential, incremental, copy.
AS_ASKED_BUT_LOG = replace(SQL_SERVER_TYPES, incremental=("incremental", CHANGED))
# Schema 0x3f: all of them.
AS_ASKED = replace(AS_ASKED_BUT_LOG, log=("log", CHANGED))
# Schema 0xb: it knows no copies, so its history is not protected by one.
ALL_BUT_COPY = replace(AS_ASKED, copy=("full", CHANGED))
# Schema 0x10.
COPY_ONLY = replace(SQL_SERVER_TYPES, differential=("full", CHANGED))

THIRD_PARTY: tuple[tuple[int, str, TypeTable], ...] = (
    (0, "OTHER", FULL_ONLY),
    (0, "TRANSACTION_DB", FULL_ONLY_DATABASE),
    (0x60, "TRANSACTION_DB", FULL_ONLY_DATABASE),  # time stamps and modification times are no types
    (0x10, "OTHER", COPY_ONLY),
    (0xB, "TRANSACTION_DB", ALL_BUT_COPY),
    (0x3F, "OTHER", AS_ASKED),
)
"""(schema, data source, table) of writers that nobody knows."""
