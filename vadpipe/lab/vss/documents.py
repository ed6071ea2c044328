"""A guest's writers to the two kinds of VSS documents, as elements that can still be altered."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Iterator
from typing import Literal, Protocol

from .elements import Element, told
from .guest import Component, Writer

_BACKUP_NAMESPACE = "x-schema:#VssComponentMetadata"
_METADATA_NAMESPACE = "x-schema:#VssWriterMetadataInfo"
_BACKUP_TYPES = {1: "full", 2: "incremental", 3: "differential", 4: "log", 5: "copy"}  # VSS_BACKUP_TYPE
_ALL_FULL = 3855  # 0xF0F, the default of a file entry: backup and snapshot required for every type
_SAVED_AT = 133_590_384_000_000_000  # 2024-05-01 12:00 UTC as FILETIME: 100 ns since 1601


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


def backup_document(request: QuiesceRequest, set_id: str) -> Element:
    """The requester's document, without a writer yet."""
    return Element(
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
    )


def listed_writer(writer: Writer, instance_id: str, rng: random.Random) -> Element:
    """The writer in the requester's document, with the components that have to be listed."""
    attributes = {
        "instanceId": instance_id,
        "writerId": writer.writer_id,
        "backupSchema": str(writer.schema),
        "instanceName": writer.instance_name,
    }
    listed = [listed_component(component, writer, rng) for component in writer.components if component.listed]
    return Element("WRITER_COMPONENTS", told(attributes), listed)


def listed_component(component: Component, writer: Writer, rng: random.Random) -> Element:
    attributes = {
        "componentName": component.name,
        "logicalPath": component.path,
        "componentType": "database" if component.kind == "DATABASE" else "filegroup",
    }
    listed = Element("COMPONENT", told(attributes))
    if writer.stamps:
        listed.attributes["backupStamp"] = _base64(struct.pack("<IQ", 8, _SAVED_AT))
        tape = b"TAPE" + rng.randbytes(8188)
        block = _base64(struct.pack("<Q", len(tape)) + tape)
        listed.children.append(Element("BACKUP_METADATA", {"xmlns": "", "metadata": block}))
    return listed


def writer_document(writer: Writer, instance_id: str) -> Element:
    """The writer's own document."""
    ids = {"writerId": writer.writer_id, "instanceId": instance_id}
    if writer.upper_case_ids:
        ids = {name: value.upper() for name, value in ids.items()}
    about = {
        "instanceName": writer.instance_name,
        "friendlyName": writer.name,
        "usage": writer.usage,
        "dataSource": writer.source,
        "majorVersion": "1",
        "minorVersion": "0",
    }
    children = [Element("IDENTIFICATION", told(ids | about))]
    if writer.restore:
        method = {"method": writer.restore, "writerRestore": "never", "rebootRequired": "no"}
        children.append(Element("RESTORE_METHOD", method))
    children.append(Element("BACKUP_LOCATIONS", {}, list(_locations(writer))))
    root = {"xmlns": _METADATA_NAMESPACE, "version": "1.2"}
    if writer.schema:
        root["backupSchema"] = str(writer.schema)
    return Element("WRITER_METADATA", root, children)


def quiesce_manifest(provider: str = "vmtoolsd", version: str = "12.4.0") -> Element:
    """What a Linux guest leaves instead."""
    return Element("quiesceManifest", {"productVersion": version, "providerName": provider})


def _locations(writer: Writer) -> Iterator[Element]:
    for tag, directory, spec in writer.excludes:
        yield Element(tag, {"path": directory, "filespec": spec, "recursive": "no"})
    for component in writer.components:
        yield offered_component(component)


def offered_component(component: Component) -> Element:
    attributes = {
        "logicalPath": component.path,
        "componentName": component.name,
        "caption": component.caption,
        "restoreMetadata": "no",
        "notifyOnBackupComplete": _yes(component.notify),
        "selectable": _yes(component.selectable),
        "selectableForRestore": _yes(component.selectable),
        "componentFlags": str(component.flags),
    }
    tag = "DATABASE_FILES" if component.kind == "DATABASE" else "FILE_LIST"
    files = [_file(tag, *place) for place in component.files]
    files += [_file("DATABASE_LOGFILES", *place) for place in component.logs]
    return Element(component.kind, told(attributes), files)


def _file(tag: str, directory: str, spec: str) -> Element:
    return Element(tag, {"path": directory, "filespec": spec, "filespecBackupType": str(_ALL_FULL)})


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
