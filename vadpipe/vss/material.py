"""What a restore reads of a manifest: the documents under safe names, and each writer's files and restore method.

The verdict needs no files, so `parse` only counts them. Here they are kept within bounds of their own: a writer may
list 20,000 files, and nobody reads all of them on a sheet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vadpipe.words import counted, printable

from .archive import DamagedMember, ManifestUnreadable, Member, looks_like_zip, read_members
from .documents import ComponentKey, QuiesceManifest
from .evidence import ManifestEvidence
from .fetched import DOCUMENT_NAMES, ManifestKind
from .parse import read_documents, read_manifest
from .xml import Attributes, Malformed, read_elements

DOCUMENTS = "documents"  # the directory of the documents
MAX_LISTED = 100  # file entries of a component; the rest is counted
MAX_LISTED_IN_ALL = 5_000  # of a document: 1,000 databases with five files each
MAX_SHOWN = 512  # characters of a path

_MAX_NAME = 48  # characters of a file's stem; Joliet takes 64 of the whole name
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # devices of Windows

_DOCUMENT = "WRITER_METADATA"
_METHOD = (_DOCUMENT, "RESTORE_METHOD")
_COMPONENTS = ((_DOCUMENT, "BACKUP_LOCATIONS", "FILE_GROUP"), (_DOCUMENT, "BACKUP_LOCATIONS", "DATABASE"))
_FILES = ("FILE_LIST", "DATABASE_FILES", "DATABASE_LOGFILES")


@dataclass(frozen=True)
class Material:
    """A manifest taken apart.

    Args:
        evidence: Its documents, joined writer by writer.
        files: The documents as they came, by their place beside the restored machine.
        places: That place, by the document's own name.
        contents: The bytes, by the document's own name.
        problem: What cannot be read, as a clause; empty when all can be.
        linux: It is the document that a Linux guest leaves instead.
    """

    evidence: ManifestEvidence = field(default_factory=ManifestEvidence)
    files: Mapping[str, bytes] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    problem: str = ""
    linux: bool = False

    @property
    def backup(self) -> str:
        """Where the backup components document is; empty when there is none."""
        return self.places.get(self.evidence.backup_document, "")


def read_material(manifest: bytes | None) -> Material:
    """The manifest of a point, or what there is of it. Never raises on bad input."""
    if manifest is None:
        return Material()
    if not looks_like_zip(manifest):
        return _no_zip(manifest)
    zip_name = DOCUMENT_NAMES[ManifestKind.VSS_ZIP]
    whole = {f"{DOCUMENTS}/{zip_name}": manifest}
    try:
        members = list(read_members(manifest))
        evidence = ManifestEvidence(read_documents(members))
    except ManifestUnreadable as exc:
        return Material(files=whole, problem=printable(exc.reason))
    names = FileNames({zip_name})
    contents = {one.name: one.data for one in members if isinstance(one, Member)}
    places = {name: f"{DOCUMENTS}/{names.of(name)}" for name in contents}
    files = {places[name]: data for name, data in contents.items()}
    damaged = [one for one in members if isinstance(one, DamagedMember)]
    problem = ""
    if damaged:
        problem = f"{counted(len(damaged), 'document')} of the manifest cannot be unpacked"
    return Material(evidence, {**whole, **files}, places, contents, problem)


def _no_zip(content: bytes) -> Material:
    """The document of a Linux guest, or no manifest at all."""
    try:
        linux = any(isinstance(one, QuiesceManifest) for one in read_manifest(content))
    except ManifestUnreadable as exc:
        return Material(files={f"{DOCUMENTS}/vss-manifest.bin": content}, problem=printable(exc.reason))
    return Material(files={f"{DOCUMENTS}/{DOCUMENT_NAMES[ManifestKind.LINUX_XML]}": content}, linux=linux)


class FileNames:
    """Safe and different file names for names that a guest gave. `taken`: those that are used already."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = {name.lower() for name in taken}

    def of(self, name: str) -> str:
        """A name without directories, of characters that every file system takes, not used before."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "document"
        stem, dot, extension = name.rpartition(".")
        if not dot or len(extension) > 8:
            stem, extension = name, ""
        stem = stem[:_MAX_NAME].replace(".", "_").rstrip("._-") or "document"
        if _RESERVED.match(stem):
            stem = f"_{stem}"
        number, found = 1, ""
        while not found or found.lower() in self._taken:
            again = f"-{number}" if number > 1 else ""
            found = f"{stem}{again}.{extension}" if extension else f"{stem}{again}"
            number += 1
        self._taken.add(found.lower())
        return found


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file, or a pattern of files. `alternate`: its alternate path, where the writer states one."""

    directory: str
    filespec: str
    recursive: bool = False
    alternate: str = ""

    @property
    def path(self) -> str:
        directory = self.directory.rstrip("\\")
        return f"{directory}\\{self.filespec}" if directory else self.filespec


@dataclass(frozen=True, slots=True)
class RestoreMethod:
    """How a writer wants its files put back, in its own words; an empty text is what it does not state."""

    method: str = ""
    writer_restore: str = ""
    reboot_required: str = ""


@dataclass(frozen=True, slots=True)
class Locations:
    """The files of a writer's components, and its restore method.

    Args:
        method: None: the document states none.
        files: The first file entries of each component that has any.
        counted: How many file entries each component has in all.
    """

    method: RestoreMethod | None = None
    files: Mapping[ComponentKey, tuple[FileEntry, ...]] = field(default_factory=dict)
    counted: Mapping[ComponentKey, int] = field(default_factory=dict)


def read_locations(data: bytes) -> Locations:
    """What a writer's document says of places; nothing when it is no such document or cannot be read."""
    try:
        return read_elements(data, _Reader())
    except Malformed:
        return Locations()


class _Reader:
    """SAX target; what an element means depends on the names above it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._method: RestoreMethod | None = None
        self._component: ComponentKey | None = None
        self._files: dict[ComponentKey, list[FileEntry]] = {}
        self._counted: dict[ComponentKey, int] = {}
        self._listed = 0

    def start(self, name: str, attributes: Attributes) -> None:
        self._names.append(name)
        place = tuple(self._names)
        if place == _METHOD and self._method is None:
            self._method = RestoreMethod(
                method=_shown(attributes.get("method")),
                writer_restore=_shown(attributes.get("writerRestore")),
                reboot_required=_shown(attributes.get("rebootRequired")),
            )
        elif place in _COMPONENTS:
            self._component = ComponentKey.of(
                attributes.get("logicalPath", ""), attributes.get("componentName", "")
            )
        elif self._component and name in _FILES and place[:-1] in _COMPONENTS:
            self._keep(self._component, attributes)

    def _keep(self, component: ComponentKey, attributes: Attributes) -> None:
        self._counted[component] = self._counted.get(component, 0) + 1
        files = self._files.setdefault(component, [])
        if len(files) >= MAX_LISTED or self._listed >= MAX_LISTED_IN_ALL:
            return
        self._listed += 1
        files.append(
            FileEntry(
                directory=_shown(attributes.get("path")),
                filespec=_shown(attributes.get("filespec")),
                recursive=attributes.get("recursive", "").strip().lower() == "yes",
                alternate=_shown(attributes.get("alternatePath")),
            )
        )

    def text(self, text: str) -> None:
        pass

    def end(self, name: str) -> None:
        if tuple(self._names) in _COMPONENTS:
            self._component = None
        self._names.pop()

    def close(self) -> Locations:
        files = {component: tuple(entries) for component, entries in self._files.items()}
        return Locations(self._method, files, self._counted)


def _shown(text: str | None) -> str:
    return (text or "").strip()[:MAX_SHOWN]
