"""Bytes of one document to its value, by the root element, never by the name.

Values are built while elements pass by, so a writer that lists 20,000 files costs its text and no tree. What an
element means depends on where it stands, so a stack of roles runs along; an unknown element has no role and neither
have its children. What is kept of a document is bounded here, what it costs to read it in `elements`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from xml.parsers.expat import ErrorString, ExpatError

from .attributes import (
    MAX_NAME,
    MAX_TEXT,
    database_file_of,
    decimal,
    dependency_of,
    guid,
    shown,
    weight,
    yes_or_no,
)
from .documents import (
    BackupComponent,
    BackupComponents,
    BackupWriter,
    Dependency,
    Document,
    QuiesceManifest,
    Unreadable,
    Unrecognised,
    WriterComponent,
    WriterMetadata,
)
from .elements import (
    Attributes,
    Refused,
    local_name,
    read_elements,
)
from .text import Undecodable, read_text

MAX_COMPONENTS = 8_000  # writers, components, dependencies; real sets have some dozens to some thousands
MAX_FAILURES = 1_000  # messages in a document
MAX_PATH = 1024  # of a component; every step up its logical path is looked at
MAX_PATHS = 1 << 20  # weight of the paths of components and database files; 3,000 databases have half of it

_NOT_SYSTEM_STATE = 4  # of VSS_COMPONENT_FLAGS
_ROOT = "root"
# (role of the parent, element) -> role
_ROLES = {
    (_ROOT, "BACKUP_COMPONENTS"): "backup",
    ("backup", "WRITER_COMPONENTS"): "writer",
    ("writer", "COMPONENT"): "component",
    ("component", "BACKUP_METADATA"): "metadata",
    (_ROOT, "WRITER_METADATA"): "offer",
    ("offer", "IDENTIFICATION"): "identification",
    ("offer", "BACKUP_LOCATIONS"): "locations",
    ("locations", "FILE_GROUP"): "filegroup",
    ("locations", "DATABASE"): "database",
    ("locations", "EXCLUDE_FILES"): "excluded",
    ("filegroup", "FILE_LIST"): "files",
    ("database", "DATABASE_FILES"): "files",
    ("database", "DATABASE_LOGFILES"): "files",
    (_ROOT, "quiesceManifest"): "quiesce",
    ("quiesce", "productVersion"): "quiesce_text",
    ("quiesce", "providerName"): "quiesce_text",
}


def parse_document(name: str, data: bytes) -> Document:
    """The document's value; whatever is wrong with it is a value too: Unreadable."""
    pieces = read_text(data)
    try:
        first = next(pieces, "")
        if not first:
            return Unreadable(name, "empty document", "byte 0")
        return read_elements(chain((first,), pieces), _Reader(name))
    except Undecodable as exc:
        return Unreadable(name, f"not text in {exc.encoding}: {exc.reason}", f"byte {exc.position:,}")
    except LookupError as exc:
        return Unreadable(name, str(exc), "XML declaration")
    except ExpatError as exc:
        return Unreadable(name, ErrorString(exc.code) or "not XML", f"line {exc.lineno}, column {exc.offset}")
    except Refused as exc:
        return Unreadable(name, str(exc), exc.where)


@dataclass
class _OpenComponent:
    """A component whose end tag is still to come, in either document."""

    attributes: Attributes
    failures: list[tuple[str, str]] = field(default_factory=list)
    has_metadata: bool = False
    files: int = 0
    dependencies: list[Dependency] = field(default_factory=list)
    database_files: list[str] = field(default_factory=list)

    def included(self) -> BackupComponent:
        return BackupComponent(
            logical_path=self.attributes.get("logicalPath", ""),
            name=self.attributes.get("componentName", ""),
            component_type=shown(self.attributes.get("componentType", "")),
            backup_succeeded=yes_or_no(self.attributes.get("backupSucceeded")),
            has_backup_stamp=bool(self.attributes.get("backupStamp")),
            has_backup_metadata=self.has_metadata,
            failures=tuple(self.failures),
        )

    def offered(self, kind: str) -> WriterComponent:
        return WriterComponent(
            kind=kind,
            logical_path=self.attributes.get("logicalPath", ""),
            name=self.attributes.get("componentName", ""),
            selectable=yes_or_no(self.attributes.get("selectable")) is True,
            files=self.files,
            system_state=not decimal(self.attributes.get("componentFlags")) & _NOT_SYSTEM_STATE,
            dependencies=tuple(self.dependencies),
            database_files=tuple(self.database_files),
        )


@dataclass
class _OpenWriter:
    """A writer of the backup components document whose end tag is still to come."""

    attributes: Attributes
    failures: list[tuple[str, str]] = field(default_factory=list)
    components: list[BackupComponent] = field(default_factory=list)

    def closed(self) -> BackupWriter:
        return BackupWriter(
            writer_id=guid(self.attributes.get("writerId")),
            instance_id=guid(self.attributes.get("instanceId")),
            instance_name=shown(self.attributes.get("instanceName", ""), MAX_NAME),
            backup_schema=decimal(self.attributes.get("backupSchema")),
            components=tuple(self.components),
            failures=tuple(self.failures),
        )


class _Reader:
    """SAX target that builds one document."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._roles = [_ROOT]
        self._root_name = ""
        self._root: Attributes = {}
        self._writer: _OpenWriter | None = None
        self._component: _OpenComponent | None = None
        self._identity: Attributes = {}
        self._writers: list[BackupWriter] = []
        self._offers: list[WriterComponent] = []
        self._excluded: list[str] = []
        self._text = ""
        self._components = 0
        self._failures = 0
        self._path_weight = 0

    def start(self, name: str, attributes: Attributes) -> None:
        if len(self._roles) == 1:
            self._root_name, self._root = name, attributes
        role = _ROLES.get((self._roles[-1], name), "")
        self._roles.append(role)
        self._text = ""
        match role:
            case "writer":
                self._count_component()
                self._writer = _OpenWriter(attributes)
            case "component" | "filegroup" | "database":
                self._count_component(attributes.get("logicalPath", "") + attributes.get("componentName", ""))
                self._component = _OpenComponent(attributes)
            case "identification":
                self._identity = attributes
            case "metadata" if self._component:
                self._component.has_metadata |= bool(attributes.get("metadata"))
            case "files" if self._component:
                self._component.files += 1
                self._note_database_file(attributes, self._component.database_files)
            case "excluded":
                self._note_database_file(attributes, self._excluded)
            case "" if self._component and not self._writer:
                if dependency := dependency_of(attributes):
                    self._count_component(dependency.path)
                    self._component.dependencies.append(dependency)
        if self._writer:
            self._note_failures(self._component or self._writer, attributes)

    def _count_component(self, path: str = "") -> None:
        self._components += 1
        if self._components > MAX_COMPONENTS:
            raise Refused(f"more than {MAX_COMPONENTS:,} writers and components")
        self._count_path(path)

    def _count_path(self, path: str) -> None:
        self._path_weight += weight(path)
        if len(path) > MAX_PATH:
            raise Refused(f"path longer than {MAX_PATH:,} characters")
        if self._path_weight > MAX_PATHS:
            raise Refused(f"paths heavier than {MAX_PATHS:,} of components and database files")

    def text(self, text: str) -> None:
        if self._roles[-1] == "quiesce_text" and len(self._text) < MAX_TEXT:
            self._text += text

    def end(self, name: str) -> None:
        role = self._roles.pop()
        if role == "quiesce_text":
            self._root[name] = self._text
        elif role == "writer" and self._writer:
            self._writers.append(self._writer.closed())
            self._writer = None
        elif role == "component" and self._component and self._writer:
            self._writer.components.append(self._component.included())
            self._component = None
        elif role in ("filegroup", "database") and self._component:
            self._offers.append(self._component.offered(role))
            self._component = None

    def close(self) -> Document:
        match self._root_name:
            case "BACKUP_COMPONENTS":
                return self._backup_components()
            case "WRITER_METADATA":
                return self._writer_metadata()
            case "quiesceManifest":
                return QuiesceManifest(
                    document=self._name,
                    provider_name=shown(self._root.get("providerName", "")),
                    product_version=shown(self._root.get("productVersion", "")),
                )
            case _:
                return Unrecognised(self._name, shown(self._root_name))

    def _note_failures(self, holder: _OpenComponent | _OpenWriter, attributes: Attributes) -> None:
        """Failure messages count wherever they stand in their component: the exact spelling is undocumented."""
        for name, value in attributes.items():
            if name.lower().endswith("failuremsg") and value.strip():
                self._failures += 1
                if self._failures > MAX_FAILURES:
                    raise Refused(f"more than {MAX_FAILURES:,} failure messages")
                holder.failures.append((shown(local_name(name)), shown(value)))

    def _note_database_file(self, attributes: Attributes, files: list[str]) -> None:
        if file := database_file_of(attributes):
            self._count_path(file)
            files.append(file)

    def _backup_components(self) -> BackupComponents:
        return BackupComponents(
            document=self._name,
            select_components=yes_or_no(self._root.get("selectComponents")),
            bootable_system_state=yes_or_no(self._root.get("bootableSystemStateBackup")),
            partial_file_support=yes_or_no(self._root.get("partialFileSupport")),
            backup_type=shown(self._root.get("backupType", "")).lower(),
            snapshot_set_id=guid(self._root.get("snapshotSetId")),
            writers=tuple(self._writers),
        )

    def _writer_metadata(self) -> WriterMetadata:
        identity = self._identity
        writer_id = guid(identity.get("writerId"))
        instance_id = guid(identity.get("instanceId"))
        if not writer_id or not instance_id:
            raise Refused("the writer does not identify itself by writerId and instanceId")
        return WriterMetadata(
            document=self._name,
            writer_id=writer_id,
            instance_id=instance_id,
            instance_name=shown(identity.get("instanceName", ""), MAX_NAME),
            friendly_name=shown(identity.get("friendlyName", ""), MAX_NAME),
            usage=shown(identity.get("usage", "")),
            data_source=shown(identity.get("dataSource", "")),
            backup_schema=decimal(self._root.get("backupSchema")),
            components=tuple(self._offers),
            excluded_databases=tuple(self._excluded),
        )
