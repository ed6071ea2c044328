"""The writers of a Windows guest, as the generator knows them.

Component trees follow Microsoft's public pages; where a page gives a shape and no example, the shape is kept and
the names are ours. What the requester has to list is written down by hand at each component (`listed`), not
computed from the tree, so that nothing here can repeat a mistake of the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

# What writers make of each type of backup, written down by hand. Microsoft, VSS_BACKUP_TYPE: a type that the
# writer's schema lacks counts as full. Copy and differential backups leave the backup history alone; full,
# incremental and log backups change it, or the logs.
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


@dataclass(frozen=True)
class Component:
    """What a writer offers. `files` and `logs` are (directory, file specification).

    `listed`: the requester names it in its document. `under`: full path of the selectable ancestor that brings it
    along implicitly. `either`: Microsoft's pages disagree whether it is listed, so both are right.
    """

    name: str
    path: str = ""
    selectable: bool = False
    kind: Literal["FILE_GROUP", "DATABASE"] = "FILE_GROUP"
    caption: str = ""
    flags: int = 0
    notify: bool = False
    files: tuple[tuple[str, str], ...] = ()
    logs: tuple[tuple[str, str], ...] = ()
    listed: bool = True
    under: str = ""
    either: bool = False

    @property
    def full_path(self) -> str:
        return f"{self.path}\\{self.name}" if self.path else self.name


@dataclass(frozen=True)
class Writer:
    """A writer class and its components. `included`: the requester lists it.

    `counts`: the image is not whole without it. `restore` is the restore method; empty for none, as some writers.
    `excludes` are (element, directory, file specification); `lost` the primary files of databases among them that
    no component offers. `stamps`: leaves a stamp and metadata at each listed component. `application` is what
    verdicts call it; empty for writers that nobody knows. `types`: what it makes of each type of backup.
    """

    writer_id: str
    name: str
    usage: str = "BOOTABLE_SYSTEM_STATE"
    source: str = "OTHER"
    schema: int = 0
    instance_name: str = ""
    restore: str = "REPLACE_AT_REBOOT_IF_CANNOT_REPLACE"
    components: tuple[Component, ...] = ()
    excludes: tuple[tuple[str, str, str], ...] = ()
    included: bool = True
    counts: bool = True
    stamps: bool = False
    upper_case_ids: bool = False
    application: str = ""
    types: TypeTable = FULL_ONLY
    lost: tuple[str, ...] = ()


SQL_SERVER = "SqlServerWriter"
SYSTEM = "System Writer"
SYSTEM_WRITERS = (
    Writer(
        "4969d978-be47-48b0-b100-f328f07ac1e0", "BITS Writer", "SYSTEM_SERVICE", restore="", included=False,
        application="background transfers",
        excludes=(("EXCLUDE_FILES", r"%ProgramData%\Microsoft\Network\Downloader", "Cache\\*"),),
    ),
    Writer(
        "d61d61c8-d73a-4eee-8cdd-f6f9786b7124", "Task Scheduler Writer", upper_case_ids=True,
        application="scheduled tasks",
        components=(Component("TasksStore", files=((r"%windir%\system32\Tasks", "*"),)),),
    ),
    Writer(
        "75dfb225-e2e4-4d39-9ac9-ffaff65ddf06", "VSS Metadata Store Writer", "SYSTEM_SERVICE",
        application="express writers",
        components=(Component("WriterMetadataStore", files=((r"%windir%\Vss\Writers", "*.xml"),)),),
    ),
    Writer(
        "0bada1de-01a9-4625-8278-69e735f39dd2", "Performance Counters Writer", application="performance counters",
        components=(Component("PerfCounters", files=((r"%windir%\system32", "perf?00?.dat"),)),),
    ),
    Writer("e8132975-6f93-4464-a53e-1050253ae220", SYSTEM, application="system files and services"),
    Writer(
        "be000cbe-11fe-4426-9c58-531aa6355fc4", "ASR Writer", restore="RESTORE_IF_CAN_BE_REPLACED",
        application="disk layout and boot configuration",
        included=False, counts=False,  # its boot store lies on a volume that real sets leave out
        components=(
            Component("ASR", caption="This is the path to the ASR boot files."),
            Component("BCD", "BCD", caption="Boot store\non the system volume", files=((r"\Boot", "BCD*"),)),
            Component("harddisk0", "Disks", True, caption="This is harddisk0.\r\nIt holds C:"),
        ),
    ),
    Writer(
        "4dc3bdd4-ab48-4d07-adb0-3bee2926fd7f", "Shadow Copy Optimization Writer", restore="", included=False,
        application="shadow copy exclusions",
        excludes=(("EXCLUDE_FILES_FROM_SNAPSHOT", r"%windir%\Temp", "*"),),
    ),
    Writer(
        "afbab4a2-367d-4d15-a586-71dbb18f8485", "Registry Writer", application="registry",
        components=(Component("Registry", files=((r"%windir%\System32\config", "*"),)),),
    ),
    Writer(
        "542da469-d3e1-473c-9f4f-7847f01fc64f", "COM+ REGDB Writer", application="COM+ registration",
        components=(Component("COM+ REGDB", files=((r"%windir%\Registration", "*.clb"),)),),
    ),
    Writer(
        "a6ad56c2-b509-4e6c-bb19-49d8f43532f0", "WMI Writer", application="WMI repository",
        components=(Component("WMI", files=((r"%windir%\System32\wbem\Repository", "*"),)),),
    ),
)  # fmt: skip


def system_writers(entries: int) -> Iterator[Writer]:
    """The writers of every guest; the System Writer with this number of file entries."""
    directory = r"%WinDir%\WinSxS\amd64_microsoft-windows-feature{:04}_31bf3856ad364e35_neutral"
    files = [(directory.format(number % 997), f"file{number:06}.dll") for number in range(entries)]
    half = entries // 2
    system = Component("System Files", caption="System Files", files=tuple(files[:half]))
    services = Component("Win32 Services Files", caption="Services", flags=4, files=tuple(files[half:]))
    for writer in SYSTEM_WRITERS:
        yield replace(writer, components=(system, services)) if writer.name == SYSTEM else writer


def sql_server(databases: Sequence[str], *, instance: str = "", excluded: Sequence[str] = ()) -> Writer:
    """A file group per database, at `COMPUTER` or `COMPUTER\\INSTANCE`; tempdb and `excluded` as excluded files."""
    data = r"D:\MSSQL\DATA"
    left_out = ["tempdb.mdf", "templog.ldf"]
    left_out += [file for name in excluded for file in (f"{name}.mdf", f"{name}_log.ldf")]
    return Writer(
        "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a",
        SQL_SERVER,
        usage="USER_DATA",
        source="TRANSACTION_DB",
        schema=881,  # differential, copy, time stamped, last modify, new target, restore with move
        instance_name="Microsoft SQL Server 2017:SQLWriter",
        restore="RESTORE_IF_CAN_BE_REPLACED",
        components=tuple(
            Component(
                name,
                f"WIN-SQL01\\{instance}" if instance else "WIN-SQL01",
                True,
                flags=2,
                notify=True,
                files=((data, f"{name}.mdf"), (data, f"{name}_log.ldf")),
            )
            for name in databases
        ),
        excludes=tuple(("EXCLUDE_FILES", data, file) for file in left_out),
        stamps=True,
        application="SQL Server",
        types=SQL_SERVER_TYPES,
        lost=tuple(rf"{data}\{name}.mdf" for name in excluded),
    )


def _jet_database(path: str, name: str, *, selectable: bool, flags: int = 0) -> Component:
    """A writer of a Jet database: its directory, spelled with underscores, is the logical path."""
    return Component(
        name,
        path.replace("\\", "_"),
        selectable,
        kind="DATABASE",
        flags=flags,
        files=((path, f"{name}.dit"),),
        logs=((path, "edb*.log"), (path, "edb.chk")),
    )


_STORE = r"Microsoft Exchange Server\Microsoft Information Store\EX01"


def _mailbox_database(name: str) -> Iterator[Component]:
    """A selectable database; its files and logs below come along with it and are never listed."""
    database = f"{_STORE}\\{name}"
    place = rf"E:\{name}"
    yield Component(name, _STORE, True, caption=f"Mailbox database {name}", notify=True)
    yield Component("File", database, files=((place, f"{name}.edb"),), listed=False, under=database)
    yield Component("Logs", database, files=((place, "E00*.log"),), listed=False, under=database)


EXCHANGE = Writer(
    "76fe1ac4-15f7-4bcd-987e-8e1acb462fb7", "Microsoft Exchange Writer", "USER_DATA", "TRANSACTION_DB",
    schema=0x17,  # differential, incremental, exclusive of each other, copy
    instance_name="Exchange Information Store", restore="RESTORE_IF_CAN_BE_REPLACED",
    application="Exchange", types=AS_ASKED_BUT_LOG,
    components=(*_mailbox_database("mailbox-1"), *_mailbox_database("mailbox-2")),
)  # fmt: skip
NTDS = Writer(
    "b2014c9e-8711-4c5c-a5a9-3cf384484757", "NTDS", source="TRANSACTION_DB",
    application="Active Directory Domain Services", types=FULL_ONLY_DATABASE,
    components=(_jet_database(r"C:\Windows\NTDS", "ntds", selectable=False, flags=3),),
)  # fmt: skip
DHCP = Writer(
    "be9ac81e-3619-421f-920f-4c6fea9e93ad", "Dhcp Jet Writer", "SYSTEM_SERVICE", "TRANSACTION_DB",
    application="DHCP server", types=FULL_ONLY_DATABASE,
    components=(_jet_database(r"C:\Windows\system32\dhcp", "dhcp", selectable=True),),
)  # fmt: skip
DFS_REPLICATION = Writer(
    "2707761b-2324-473d-88eb-eb007a359533", "DFS Replication service writer", "USER_DATA",
    restore="RESTORE_IF_CAN_BE_REPLACED", application="DFS Replication",
    components=(
        Component("7e2c4a4c-33c0-4f5e-9d53-3d8a1f6a7b10-WIN-DC01", "SYSVOL", True,
                  files=((r"C:\Windows\SYSVOL\domain", "*"),)),
        Component("b58e0f1d-0c61-4b1b-8d61-02a4f6a1c9e2-WIN-DC01", "Projects", True,
                  files=((r"D:\Projects", "*"),)),
    ),
)  # fmt: skip
APPLICATIONS: Mapping[str, Writer] = MappingProxyType(
    {writer.name: writer for writer in (EXCHANGE, NTDS, DHCP, DFS_REPLICATION)}
)
