"""A manifest to its documents, within bounds that hold for all of them together."""

from __future__ import annotations

from collections.abc import Iterable

from .archive import (
    DamagedMember,
    ManifestUnreadable,
    Member,
    looks_like_zip,
    read_members,
)
from .attributes import weight
from .documents import (
    BackupComponents,
    Document,
    QuiesceManifest,
    Unreadable,
    WriterMetadata,
)
from .parse import (
    MAX_COMPONENTS,
    MAX_FAILURES,
    MAX_PATHS,
    parse_document,
)

_QUIESCE_MANIFEST_SIZE = 1 << 16  # it names a product and a provider: a few hundred bytes


def read_manifest(content: bytes) -> tuple[Document, ...]:
    """The documents of a manifest file as it came from the datastore: a zip, or a Linux guest's one document.

    A member that is damaged or malformed is a value. Raises ManifestUnreadable when the whole is no manifest or
    breaks a bound.
    """
    if len(content) <= _QUIESCE_MANIFEST_SIZE and not looks_like_zip(content):
        document = parse_document("manifest", content)
        if isinstance(document, QuiesceManifest):
            return (document,)
    return read_documents(read_members(content))


def read_documents(members: Iterable[Member | DamagedMember]) -> tuple[Document, ...]:
    """The documents of one manifest, also of one that lies about as loose files. Raises ManifestUnreadable."""
    kept = _Kept()
    documents: list[Document] = []
    for member in members:
        if isinstance(member, DamagedMember):
            documents.append(Unreadable(member.name, f"damaged in the archive: {member.reason}", "archive"))
        else:
            documents.append(kept.checked(parse_document(member.name, member.data)))
    return tuple(documents)


class _Kept:
    """What the documents of one manifest keep in memory, counted: each may keep as much as all may together."""

    def __init__(self) -> None:
        self._components = 0
        self._paths = 0
        self._failures = 0

    def checked(self, document: Document) -> Document:
        """The document. Raises ManifestUnreadable when it is one too many."""
        match document:
            case BackupComponents(writers=writers):
                for writer in writers:
                    self._components += 1 + len(writer.components)
                    self._paths += sum(weight(one.path) for one in writer.components)
                    self._failures += len(writer.failures)
                    self._failures += sum(len(one.failures) for one in writer.components)
            case WriterMetadata(components=components, excluded_databases=excluded):
                self._components += 1 + sum(1 + len(one.dependencies) for one in components)
                self._paths += sum(map(weight, excluded))
                for component in components:
                    self._paths += weight(component.path) + sum(map(weight, component.database_files))
                    self._paths += sum(weight(one.path) for one in component.dependencies)
        if self._components > MAX_COMPONENTS or self._paths > MAX_PATHS or self._failures > MAX_FAILURES:
            raise ManifestUnreadable(f"its documents tell too much (reached at {document.document})")
        return document
