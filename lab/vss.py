"""Makes the VSS manifest zip that a Windows guest leaves at a quiesced snapshot.

Shaped after what a Windows Server 2012 with SQL Server leaves: eleven writer documents, eight of these writers
in the backup components document, the same writer and instance ids in both. Quirks are kept on purpose,
because parsers have to live with them: upper-case ids, line breaks inside captions, `xmlns=""` children,
attributes of 11,000 characters, writers without components. Everything is derived from the request and
the recipe, so the same two give the same bytes.
"""

from __future__ import annotations

import base64
import io
import random
import struct
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

_BACKUP_NAMESPACE = "x-schema:#VssComponentMetadata"
_METADATA_NAMESPACE = "x-schema:#VssWriterMetadataInfo"
_BACKUP_TYPES = {1: "full", 2: "incremental", 3: "differential", 4: "log", 5: "copy"}  # VSS_BACKUP_TYPE
_ALL_FULL = 3855  # 0xF0F, the default of a file entry: backup and snapshot required for every type
_SAVED_AT = 133_590_384_000_000_000  # 2024-05-01 12:00 UTC as FILETIME: 100 ns since 1601
_ZIP_DATE = (2024, 5, 1, 12, 0, 0)
_MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


class QuiesceRequest(Protocol):
    """What VSS was run with."""

    @property
    def context(self) -> Literal["application", "file-system"]: ...
    @property
    def backup_type(self) -> int: ...
    @property
    def bootable_system_state(self) -> bool: ...
    @property
    def partial_file_support(self) -> bool: ...
    @property
    def timeout_min(self) -> int: ...
    @property
    def vm_name(self) -> str: ...


@dataclass(frozen=True)
class ManifestRecipe:
    """What the guest is like, and how its requester writes.

    `declaration` is the encoding that the XML declaration names (it may lie); empty for no declaration.
    `drop_writers` are left out of the backup components document, the first component of `failing_writers`
    carries a failure message; both by friendly name. `huge` is the number of the System Writer's file entries.
    `excluded_databases` are there, and SQL Server's writer leaves their files out and offers no component for them.
    """

    seed: int = 0
    encoding: Literal["utf-8", "utf-16-le", "utf-16-be"] = "utf-8"
    bom: bool = False
    declaration: str = ""
    trailing_nul: bool = False
    databases: Sequence[str] = ("master", "model", "msdb", "sales")
    drop_writers: frozenset[str] = frozenset()
    failing_writers: frozenset[str] = frozenset()
    huge: int = 40
    excluded_databases: Sequence[str] = ()

    def __post_init__(self) -> None:
        known = {writer.name for writer in _WRITERS} | {_SQL_SERVER}
        if unknown := sorted((self.drop_writers | self.failing_writers) - known):
            raise ValueError(f"no such writer: {', '.join(unknown)}. Known: {', '.join(sorted(known))}")


@dataclass(frozen=True)
class _Component:
    name: str
    path: str = ""
    selectable: bool = False
    caption: str = ""
    flags: int = 0
    files: tuple[tuple[str, str], ...] = ()  # directory, file specification


@dataclass(frozen=True)
class _Writer:
    writer_id: str
    name: str
    usage: str = "BOOTABLE_SYSTEM_STATE"
    source: str = "OTHER"
    schema: int = 0
    instance_name: str = ""
    restore: str = "REPLACE_AT_REBOOT_IF_CANNOT_REPLACE"  # empty: no restore method, as some writers
    components: tuple[_Component, ...] = ()
    excludes: tuple[tuple[str, str, str], ...] = ()  # element, directory, file specification
    included: bool = True
    upper_case_ids: bool = False


_SQL_SERVER = "SqlServerWriter"
_WRITERS = (
    _Writer(
        "4969d978-be47-48b0-b100-f328f07ac1e0", "BITS Writer", "SYSTEM_SERVICE", restore="", included=False,
        excludes=(("EXCLUDE_FILES", r"%ProgramData%\Microsoft\Network\Downloader", "Cache\\*"),),
    ),
    _Writer(
        "d61d61c8-d73a-4eee-8cdd-f6f9786b7124", "Task Scheduler Writer", upper_case_ids=True,
        components=(_Component("TasksStore", files=((r"%windir%\system32\Tasks", "*"),)),),
    ),
    _Writer(
        "75dfb225-e2e4-4d39-9ac9-ffaff65ddf06", "VSS Metadata Store Writer", "SYSTEM_SERVICE",
        components=(_Component("WriterMetadataStore", files=((r"%windir%\Vss\Writers", "*.xml"),)),),
    ),
    _Writer(
        "0bada1de-01a9-4625-8278-69e735f39dd2", "Performance Counters Writer",
        components=(_Component("PerfCounters", files=((r"%windir%\system32", "perf?00?.dat"),)),),
    ),
    _Writer("e8132975-6f93-4464-a53e-1050253ae220", "System Writer"),
    _Writer(
        "be000cbe-11fe-4426-9c58-531aa6355fc4", "ASR Writer", restore="RESTORE_IF_CAN_BE_REPLACED",
        included=False,
        components=(
            _Component("ASR", caption="This is the path to the ASR boot files."),
            _Component("BCD", "BCD", caption="Boot store\non the system volume", files=((r"\Boot", "BCD*"),)),
            _Component("harddisk0", "Disks", True, caption="This is harddisk0.\r\nIt holds C:"),
        ),
    ),
    _Writer(
        "4dc3bdd4-ab48-4d07-adb0-3bee2926fd7f", "Shadow Copy Optimization Writer", restore="", included=False,
        excludes=(("EXCLUDE_FILES_FROM_SNAPSHOT", r"%windir%\Temp", "*"),),
    ),
    _Writer(
        "afbab4a2-367d-4d15-a586-71dbb18f8485", "Registry Writer",
        components=(_Component("Registry", files=((r"%windir%\System32\config", "*"),)),),
    ),
    _Writer(
        "542da469-d3e1-473c-9f4f-7847f01fc64f", "COM+ REGDB Writer",
        components=(_Component("COM+ REGDB", files=((r"%windir%\Registration", "*.clb"),)),),
    ),
    _Writer(
        "a6ad56c2-b509-4e6c-bb19-49d8f43532f0", "WMI Writer",
        components=(_Component("WMI", files=((r"%windir%\System32\wbem\Repository", "*"),)),),
    ),
)  # fmt: skip
_STANDARD = ManifestRecipe()


def manifest_zip(request: QuiesceRequest, recipe: ManifestRecipe = _STANDARD) -> bytes:
    """The zip of one quiesced snapshot: `backup.xml`, and for application quiescing a document per writer."""
    rng = random.Random(f"{recipe.seed}/{request.vm_name}")
    writers = tuple(_guest_writers(recipe)) if request.context == "application" else ()
    instances = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in writers]
    pairs = list(zip(writers, instances, strict=True))
    set_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    documents = {"backup.xml": _backup_document(request, recipe, pairs, set_id, rng)}
    for number, (writer, instance_id) in enumerate(pairs, 1):
        documents[f"writer{number}.xml"] = _writer_document(writer, instance_id)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in documents.items():
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _encoded(text, recipe))
    return buffer.getvalue()


def _guest_writers(recipe: ManifestRecipe) -> Iterator[_Writer]:
    for writer in _WRITERS:
        yield _system_writer(writer, recipe.huge) if writer.name == "System Writer" else writer
    if recipe.databases:
        yield _sql_server_writer(recipe.databases, recipe.excluded_databases)


def _system_writer(writer: _Writer, entries: int) -> _Writer:
    directory = r"%WinDir%\WinSxS\amd64_microsoft-windows-feature{:04}_31bf3856ad364e35_neutral"
    files = [(directory.format(number % 997), f"file{number:06}.dll") for number in range(entries)]
    half = entries // 2
    system = _Component("System Files", caption="System Files", files=tuple(files[:half]))
    services = _Component("Win32 Services Files", caption="Services", flags=4, files=tuple(files[half:]))
    return replace(writer, components=(system, services))


def _sql_server_writer(databases: Sequence[str], excluded: Sequence[str]) -> _Writer:
    data = r"D:\MSSQL\DATA"
    left_out = ["tempdb.mdf", "templog.ldf"]
    left_out += [file for name in excluded for file in (f"{name}.mdf", f"{name}_log.ldf")]
    return _Writer(
        "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a",
        _SQL_SERVER,
        usage="USER_DATA",
        source="TRANSACTION_DB",
        schema=881,  # differential, copy, time stamped, last modify, new target, restore with move
        instance_name="Microsoft SQL Server 2017:SQLWriter",
        restore="RESTORE_IF_CAN_BE_REPLACED",
        components=tuple(
            _Component(
                name, "WIN-SQL01", True, flags=2, files=((data, f"{name}.mdf"), (data, f"{name}_log.ldf"))
            )
            for name in databases
        ),
        excludes=tuple(("EXCLUDE_FILES", data, file) for file in left_out),
    )


def _backup_document(
    request: QuiesceRequest,
    recipe: ManifestRecipe,
    pairs: list[tuple[_Writer, str]],
    set_id: str,
    rng: random.Random,
) -> str:
    listed = [pair for pair in pairs if pair[0].included and pair[0].name not in recipe.drop_writers]
    return _element(
        "BACKUP_COMPONENTS",
        {
            "xmlns": _BACKUP_NAMESPACE,
            "version": "1.2",
            "bootableSystemStateBackup": _yes(request.bootable_system_state),
            "selectComponents": "yes",
            "backupType": _BACKUP_TYPES.get(request.backup_type, "other"),
            "partialFileSupport": _yes(request.partial_file_support),
            "snapshotSetId": set_id,
        },
        *(
            _element(
                "WRITER_COMPONENTS",
                {
                    "instanceId": instance_id,
                    "writerId": writer.writer_id,
                    "backupSchema": str(writer.schema),
                    "instanceName": writer.instance_name,
                },
                *_included_components(writer, writer.name in recipe.failing_writers, rng),
            )
            for writer, instance_id in listed
        ),
    )


def _included_components(writer: _Writer, failing: bool, rng: random.Random) -> Iterator[str]:
    for number, component in enumerate(writer.components):
        attributes = {
            "componentName": component.name,
            "logicalPath": component.path,
            "componentType": "filegroup",
        }
        children = []
        if writer.name == _SQL_SERVER:
            attributes["backupStamp"] = _base64(struct.pack("<IQ", 8, _SAVED_AT))
            tape = b"TAPE" + rng.randbytes(8188)
            block = _base64(struct.pack("<Q", len(tape)) + tape)
            children.append(_element("BACKUP_METADATA", {"xmlns": "", "metadata": block}, keep_empty=True))
        if failing and number == 0:
            # The API has this property; the attribute's spelling is not documented, its ending is.
            attributes["postSnapshotFailureMsg"] = "0x800423F4: the writer met a non-transient error"
        yield _element("COMPONENT", attributes, *children)


def _writer_document(writer: _Writer, instance_id: str) -> str:
    ids = {"writerId": writer.writer_id, "instanceId": instance_id}
    if writer.upper_case_ids:
        ids = {name: value.upper() for name, value in ids.items()}
    children = [
        _element(
            "IDENTIFICATION",
            ids
            | {
                "instanceName": writer.instance_name,
                "friendlyName": writer.name,
                "usage": writer.usage,
                "dataSource": writer.source,
                "majorVersion": "1",
                "minorVersion": "0",
            },
        )
    ]
    if writer.restore:
        method = {"method": writer.restore, "writerRestore": "never", "rebootRequired": "no"}
        children.append(_element("RESTORE_METHOD", method))
    excluded = (_files(element, directory, spec) for element, directory, spec in writer.excludes)
    groups = (_file_group(component, writer) for component in writer.components)
    children.append(_element("BACKUP_LOCATIONS", {}, *excluded, *groups))
    root = {"xmlns": _METADATA_NAMESPACE, "version": "1.2"}
    if writer.schema:
        root["backupSchema"] = str(writer.schema)
    return _element("WRITER_METADATA", root, *children)


def _file_group(component: _Component, writer: _Writer) -> str:
    attributes = {
        "logicalPath": component.path,
        "componentName": component.name,
        "caption": component.caption,
        "restoreMetadata": "no",
        "notifyOnBackupComplete": _yes(writer.name == _SQL_SERVER),
        "selectable": _yes(component.selectable),
        "selectableForRestore": _yes(component.selectable),
        "componentFlags": str(component.flags),
    }
    lists = (_files("FILE_LIST", directory, spec) for directory, spec in component.files)
    return _element("FILE_GROUP", attributes, *lists)


def _files(element: str, directory: str, spec: str) -> str:
    attributes = {"path": directory, "filespec": spec}
    if element == "FILE_LIST":
        attributes["filespecBackupType"] = str(_ALL_FULL)
    else:
        attributes["recursive"] = "no"
    return _element(element, attributes)


def _element(tag: str, attributes: dict[str, str], *children: str, keep_empty: bool = False) -> str:
    """One element. Empty attributes are left out, as producers do; line breaks in values stay raw."""
    told = "".join(
        f' {name}="{_escaped(value)}"' for name, value in attributes.items() if value or keep_empty
    )
    return f"<{tag}{told}>{''.join(children)}</{tag}>" if children else f"<{tag}{told}/>"


def _escaped(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _encoded(text: str, recipe: ManifestRecipe) -> bytes:
    declared = f'<?xml version="1.0" encoding="{recipe.declaration}"?>' if recipe.declaration else ""
    whole = declared + text + ("\0" if recipe.trailing_nul else "")
    return (_MARKS[recipe.encoding] if recipe.bom else b"") + whole.encode(recipe.encoding)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
