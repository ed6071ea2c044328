"""The documents of a manifest as values; `parse.parse_document` makes them from bytes.

Names and meanings follow Microsoft's public documentation of the Volume Shadow Copy Service. Identifiers are
normalised here once (GUIDs without braces in lower case), so that the rules compare plain strings. Elements and
attributes that the parser does not know are ignored, never refused: producers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


def normalise_guid(text: str) -> str:
    """A GUID without braces and white space, in lower case: documents of one snapshot spell it differently."""
    return text.strip().strip("{}").strip().lower()


def join_path(logical_path: str, name: str) -> str:
    """Full path of a component in its writer: `logicalPath\\name`, or the name alone at the root."""
    return f"{logical_path}\\{name}" if logical_path else name


def normalise_file(directory: str, filespec: str) -> str:
    """A file's path in lower case, because Windows does not distinguish letter cases."""
    directory = directory.rstrip("\\")
    return f"{directory}\\{filespec}".lower()


@dataclass(frozen=True, slots=True, order=True)
class ComponentKey:
    """Identity of a component inside its writer; letter case does not count."""

    logical_path: str
    name: str

    @classmethod
    def of(cls, logical_path: str, name: str) -> ComponentKey:
        return cls(logical_path.lower(), name.lower())


@dataclass(frozen=True, slots=True)
class BackupComponent:
    """A component that the requester included, from the backup components document.

    `backup_succeeded` is None when the document does not say. `failures` are (attribute, text).
    """

    logical_path: str
    name: str
    component_type: str
    backup_succeeded: bool | None
    has_backup_stamp: bool
    has_backup_metadata: bool
    failures: tuple[tuple[str, str], ...]

    @property
    def key(self) -> ComponentKey:
        return ComponentKey.of(self.logical_path, self.name)

    @property
    def path(self) -> str:
        return join_path(self.logical_path, self.name)

    @property
    def failed(self) -> bool:
        return self.backup_succeeded is False or bool(self.failures)


@dataclass(frozen=True, slots=True)
class BackupWriter:
    """A writer with components in the backup components document. `backup_schema` is a bit mask."""

    writer_id: str
    instance_id: str
    instance_name: str
    backup_schema: int
    components: tuple[BackupComponent, ...]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BackupComponents:
    """The requester's document (BCD). A yes/no attribute that is missing or spelled otherwise is None."""

    document: str
    select_components: bool | None
    bootable_system_state: bool | None
    partial_file_support: bool | None
    backup_type: str
    writers: tuple[BackupWriter, ...]


@dataclass(frozen=True, slots=True)
class Dependency:
    """A component that another one needs to be of use, in a writer named by its class id."""

    writer_id: str
    logical_path: str
    name: str

    @property
    def path(self) -> str:
        return join_path(self.logical_path, self.name)

    @property
    def is_remote(self) -> bool:
        """On another machine: its logical path begins with `\\\\computer\\`."""
        return self.logical_path.startswith("\\\\")


@dataclass(frozen=True, slots=True)
class WriterComponent:
    """A component that a writer offers. `kind` is filegroup or database; `files` counts its file entries.

    `system_state` is False when a component of a system writer is marked as no part of the system state.
    `database_files` are those of its files that hold a database, as `normalise_file` writes them. `caption` is the
    name for people: of Exchange the database's, of Hyper-V the machine's, whose `name` is a GUID.
    """

    kind: str
    logical_path: str
    name: str
    selectable: bool
    files: int
    system_state: bool = True
    dependencies: tuple[Dependency, ...] = ()
    database_files: tuple[str, ...] = ()
    caption: str = ""

    @property
    def key(self) -> ComponentKey:
        return ComponentKey.of(self.logical_path, self.name)

    @property
    def path(self) -> str:
        return join_path(self.logical_path, self.name)


@dataclass(frozen=True, slots=True)
class WriterMetadata:
    """One writer's own document (WMD).

    `excluded_databases`: database files that the writer excludes, as `normalise_file` writes them.
    """

    document: str
    writer_id: str
    instance_id: str
    instance_name: str
    friendly_name: str
    usage: str
    data_source: str
    backup_schema: int
    components: tuple[WriterComponent, ...]
    excluded_databases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuiesceManifest:
    """The document that VMware Tools write for a Linux guest in place of a VSS manifest."""

    document: str
    provider_name: str


@dataclass(frozen=True, slots=True)
class Unrecognised:
    """Well-formed XML with any other root element."""

    document: str
    root: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A document that could not be read: its name, the cause, and the place in it."""

    document: str
    why: str
    where: str


Document: TypeAlias = BackupComponents | WriterMetadata | QuiesceManifest | Unrecognised | Unreadable
