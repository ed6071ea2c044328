"""A manifest's bytes to its documents, within bounds that hold for each document and for all of them together.

A document is what its root element says, never what its name says. Values are built while elements pass by, so a
writer that lists 20,000 files costs its text and no tree. An element's meaning depends on its place, so a stack of
roles runs along; unknown elements have no role, and neither have their children.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .archive import DamagedMember, ManifestUnreadable, Member, looks_like_zip, read_members
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
    normalise_file,
    normalise_guid,
)
from .xml import Attributes, Malformed, local_name, read_elements

MAX_COMPONENTS = 8_000  # writers, components, dependencies; real sets have some dozens to some thousands
MAX_FAILURES = 1_000  # messages in a document
MAX_PATH = 1024  # of a component; every step up its logical path is looked at
MAX_PATHS = 1 << 20  # weight of the paths of components and database files; 3,000 databases have half of it
MAX_TEXT = 256  # of what is only shown
MAX_NAME = 80  # of a writer and a caption; findings repeat them
_QUIESCE_MANIFEST_SIZE = 1 << 16  # it names a product and a provider: a few hundred bytes

_NOT_SYSTEM_STATE = 4  # of VSS_COMPONENT_FLAGS
_DATABASE_FILES = (".mdf", ".ndf", ".ldf", ".edb")  # SQL Server; Extensible Storage Engine
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
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
    ("quiesce", "providerName"): "quiesce_text",
}


def read_manifest(content: bytes) -> tuple[Document, ...]:
    """The documents of a manifest file: of a zip, or of a Linux guest's single document.

    A member that is damaged or malformed becomes an `Unreadable`.

    Raises:
        ManifestUnreadable: The whole is no manifest, or breaks a bound.
    """
    if len(content) <= _QUIESCE_MANIFEST_SIZE and not looks_like_zip(content):
        document = parse_document("manifest", content)
        if isinstance(document, QuiesceManifest):
            return (document,)
    return read_documents(read_members(content))


def read_documents(members: Iterable[Member | DamagedMember]) -> tuple[Document, ...]:
    """The documents of one manifest, for example of loose files.

    Raises:
        ManifestUnreadable: The documents together break a bound.
    """
    kept = _Kept()
    documents: list[Document] = []
    for member in members:
        if isinstance(member, DamagedMember):
            documents.append(Unreadable(member.name, f"damaged in the archive: {member.reason}", "archive"))
        else:
            documents.append(kept.checked(parse_document(member.name, member.data)))
    return tuple(documents)


def parse_document(name: str, data: bytes) -> Document:
    """The document's value; one that cannot be read becomes an `Unreadable`."""
    try:
        return read_elements(data, _Reader(name))
    except Malformed as exc:
        return Unreadable(name, exc.why, exc.where)


class _Kept:
    """Counts what the documents of one manifest keep: all together as much as a single one may."""

    def __init__(self) -> None:
        self._components = 0
        self._paths = 0
        self._failures = 0

    def checked(self, document: Document) -> Document:
        match document:
            case BackupComponents(writers=writers):
                for writer in writers:
                    self._components += 1 + len(writer.components)
                    self._paths += sum(_weight(one.path) for one in writer.components)
                    self._failures += len(writer.failures)
                    self._failures += sum(len(one.failures) for one in writer.components)
            case WriterMetadata(components=components, excluded_databases=excluded):
                self._components += 1 + sum(1 + len(one.dependencies) for one in components)
                self._paths += sum(map(_weight, excluded))
                for component in components:
                    self._paths += _weight(component.path) + _weight(component.caption)
                    self._paths += sum(map(_weight, component.database_files))
                    self._paths += sum(_weight(one.path) for one in component.dependencies)
        if self._components > MAX_COMPONENTS or self._paths > MAX_PATHS or self._failures > MAX_FAILURES:
            raise ManifestUnreadable(f"its documents hold too much (reached at {document.document})")
        return document


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
            component_type=_shown(self.attributes.get("componentType", "")),
            backup_succeeded=_yes_or_no(self.attributes.get("backupSucceeded")),
            has_backup_stamp=bool(self.attributes.get("backupStamp")),
            has_backup_metadata=self.has_metadata,
            failures=tuple(self.failures),
        )

    def offered(self, kind: str) -> WriterComponent:
        return WriterComponent(
            kind=kind,
            logical_path=self.attributes.get("logicalPath", ""),
            name=self.attributes.get("componentName", ""),
            caption=_shown(self.attributes.get("caption", ""), MAX_NAME),
            selectable=_yes_or_no(self.attributes.get("selectable")) is True,
            files=self.files,
            system_state=not _decimal(self.attributes.get("componentFlags")) & _NOT_SYSTEM_STATE,
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
            writer_id=_guid(self.attributes.get("writerId")),
            instance_id=_guid(self.attributes.get("instanceId")),
            instance_name=_shown(self.attributes.get("instanceName", ""), MAX_NAME),
            backup_schema=_decimal(self.attributes.get("backupSchema")),
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
                self._path_weight += _weight(_shown(attributes.get("caption", ""), MAX_NAME))
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
                if dependency := _dependency_of(attributes):
                    self._count_component(dependency.path)
                    self._component.dependencies.append(dependency)
        if self._writer:
            self._note_failures(self._component or self._writer, attributes)

    def _count_component(self, path: str = "") -> None:
        self._components += 1
        if self._components > MAX_COMPONENTS:
            raise Malformed(f"more than {MAX_COMPONENTS:,} writers and components")
        self._count_path(path)

    def _count_path(self, path: str) -> None:
        self._path_weight += _weight(path)
        if len(path) > MAX_PATH:
            raise Malformed(f"path longer than {MAX_PATH:,} characters")
        if self._path_weight > MAX_PATHS:
            raise Malformed(f"paths heavier than {MAX_PATHS:,} of components and database files")

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
                    provider_name=_shown(self._root.get("providerName", "")),
                )
            case _:
                return Unrecognised(self._name, _shown(self._root_name))

    def _note_failures(self, holder: _OpenComponent | _OpenWriter, attributes: Attributes) -> None:
        """Failure messages count wherever they stand in their component: the exact spelling is undocumented."""
        for name, value in attributes.items():
            if name.lower().endswith("failuremsg") and value.strip():
                self._failures += 1
                if self._failures > MAX_FAILURES:
                    raise Malformed(f"more than {MAX_FAILURES:,} failure messages")
                holder.failures.append((_shown(local_name(name)), _shown(value)))

    def _note_database_file(self, attributes: Attributes, files: list[str]) -> None:
        if file := _database_file_of(attributes):
            self._count_path(file)
            files.append(file)

    def _backup_components(self) -> BackupComponents:
        return BackupComponents(
            document=self._name,
            select_components=_yes_or_no(self._root.get("selectComponents")),
            bootable_system_state=_yes_or_no(self._root.get("bootableSystemStateBackup")),
            partial_file_support=_yes_or_no(self._root.get("partialFileSupport")),
            backup_type=_shown(self._root.get("backupType", "")).lower(),
            writers=tuple(self._writers),
        )

    def _writer_metadata(self) -> WriterMetadata:
        identity = self._identity
        writer_id = _guid(identity.get("writerId"))
        instance_id = _guid(identity.get("instanceId"))
        if not writer_id or not instance_id:
            raise Malformed("the writer does not identify itself by writerId and instanceId")
        return WriterMetadata(
            document=self._name,
            writer_id=writer_id,
            instance_id=instance_id,
            instance_name=_shown(identity.get("instanceName", ""), MAX_NAME),
            friendly_name=_shown(identity.get("friendlyName", ""), MAX_NAME),
            usage=_shown(identity.get("usage", "")),
            data_source=_shown(identity.get("dataSource", "")),
            backup_schema=_decimal(self._root.get("backupSchema")),
            components=tuple(self._offers),
            excluded_databases=tuple(self._excluded),
        )


def _dependency_of(attributes: Mapping[str, str]) -> Dependency | None:
    """The dependency that an element states, None when it states none.

    The spelling of a dependency is not documented, its content is: a writer's class id, and a component's path and
    name. So any element with these is one, whatever it and its attributes are called.
    """
    stated = {local_name(name).lower(): value for name, value in sorted(attributes.items())}
    writer_id = next((one for value in stated.values() if _GUID.fullmatch(one := normalise_guid(value))), "")
    name = next((value for key, value in stated.items() if key.endswith("name")), "")
    path = next((value for key, value in stated.items() if key.endswith("path")), "")
    return Dependency(writer_id, path, name) if writer_id and name else None


def _database_file_of(attributes: Mapping[str, str]) -> str | None:
    """The file of a file entry when it holds a database, None for other files and for patterns."""
    filespec = attributes.get("filespec", "").lower()
    if not filespec.endswith(_DATABASE_FILES) or "*" in filespec or "?" in filespec:
        return None
    return normalise_file(attributes.get("path", ""), filespec)


def _shown(text: str, length: int = MAX_TEXT) -> str:
    """Text for people: one line, cut."""
    return " ".join(text[: 4 * length].split())[:length]


def _guid(text: str | None) -> str:
    """A GUID to compare by. Any other text is cut, because findings repeat it."""
    return normalise_guid(_shown(text or "", MAX_NAME))


def _weight(path: str) -> int:
    """The memory of a path: a single character outside ASCII may widen all others four-fold."""
    return len(path) if path.isascii() else 4 * len(path)


def _yes_or_no(text: str | None) -> bool | None:
    return {"yes": True, "no": False}.get((text or "").strip().lower())


def _decimal(text: str | None) -> int:
    """A decimal mask; 0 when it is absent or no number."""
    digits = (text or "").strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else 0
