"""What the rules read: the documents of one manifest, joined writer by writer.

A writer takes part twice: its own document says what it offers, the backup components document says what
the requester included. Both carry the writer's class id and the id of the running instance, which is new
for each writer process; only documents that agree in both come from the same run.

Which components have to be included explicitly follows from their logical paths. A component is an ancestor
of those whose logical path equals or begins with its full path. Below a *selectable* ancestor a component
comes along implicitly; without one it takes part only if it is listed. Microsoft's pages disagree about one
case, a non-selectable component below a non-selectable one; it is accepted either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from .documents import (
    BackupComponent,
    BackupComponents,
    BackupWriter,
    ComponentKey,
    Document,
    QuiesceManifest,
    Unreadable,
    WriterComponent,
    WriterMetadata,
    normalise_guid,
)
from .requested import BACKUP_TYPES, RequestedQuiescing, effective_type
from .writers import KnownWriter, known_writer


@dataclass(frozen=True, slots=True)
class Above:
    """A component's ancestors: whether there are any, selectable ones, and the nearest of these that is listed."""

    any: bool
    selectable: bool
    listed: ComponentKey | None


@dataclass(frozen=True)
class WriterEvidence:
    """One writer instance in both documents. Either side may be missing.

    `twins` are further documents that claim the same ids. `excluded`: the user said that it may be left out.
    """

    writer_id: str
    instance_id: str
    backup: BackupWriter | None
    metadata: WriterMetadata | None
    twins: tuple[WriterMetadata, ...] = ()
    excluded: bool = False

    @cached_property
    def known(self) -> KnownWriter | None:
        return known_writer(self.writer_id, self.metadata.friendly_name if self.metadata else "")

    @property
    def application(self) -> str:
        return self.known.application if self.known else ""

    @property
    def counts(self) -> bool:
        return not self.excluded and (self.known.counts if self.known else True)

    @property
    def backup_schema(self) -> int:
        document = self.metadata or self.backup
        return document.backup_schema if document else 0

    @property
    def name(self) -> str:
        """The best name there is: the writer's own, the table's, the instance's, the id."""
        own = self.metadata.friendly_name if self.metadata else ""
        listed = self.backup.instance_name if self.backup else ""
        return own or (self.known.name if self.known else "") or listed or self.writer_id or "unnamed writer"

    @property
    def included(self) -> tuple[BackupComponent, ...]:
        return self.backup.components if self.backup else ()

    @cached_property
    def included_keys(self) -> frozenset[ComponentKey]:
        return frozenset(component.key for component in self.included)

    @cached_property
    def offered(self) -> dict[ComponentKey, WriterComponent]:
        return {component.key: component for component in (self.metadata.components if self.metadata else ())}

    @cached_property
    def captions(self) -> dict[str, str]:
        """Names for people by component (full path), where they differ from the component's name."""
        return {
            component.path: component.caption
            for component in self.offered.values()
            if component.caption and component.caption.lower() != component.name.lower()
        }

    @cached_property
    def explicit(self) -> tuple[WriterComponent, ...]:
        """Offered components that take part only when the backup components document lists them."""
        return tuple(component for component in self.offered.values() if self._is_explicit(component))

    @cached_property
    def implied(self) -> tuple[WriterComponent, ...]:
        """Offered components that come along with a selectable ancestor, and are not listed themselves."""
        return tuple(
            component
            for component in self.offered.values()
            if component.key not in self.included_keys and self.above(component).selectable
        )

    def carrier(self, component: WriterComponent) -> ComponentKey | None:
        """The listed component that includes this one: itself, or a selectable ancestor."""
        if component.key in self.included_keys:
            return component.key
        return self.above(component).listed

    def takes_part(self, component: WriterComponent) -> bool:
        """True when the component is in the backup and nothing says that it failed."""
        carrier = self.carrier(component)
        failed = self.backup.failures if self.backup else ()
        return carrier is not None and not failed and carrier not in self._failed_keys

    def above(self, component: WriterComponent) -> Above:
        """The component's ancestors; looked for once per logical path, which may be long."""
        path = component.logical_path.lower()
        found = self._above.get(path)
        if found is None:
            ancestors = list(self._ancestors(path))
            listed = (one.key for one in ancestors if one.selectable and one.key in self.included_keys)
            found = Above(bool(ancestors), any(one.selectable for one in ancestors), next(listed, None))
            self._above[path] = found
        return found

    def _ancestors(self, path: str) -> Iterator[WriterComponent]:
        """Components of this writer at this logical path and above, nearest first."""
        while path:
            yield from self._by_path.get(path, ())
            path = path.rpartition("\\")[0]

    def _is_explicit(self, component: WriterComponent) -> bool:
        above = self.above(component)
        return not above.any or (component.selectable and not above.selectable)

    @cached_property
    def _above(self) -> dict[str, Above]:
        return {}

    @cached_property
    def _failed_keys(self) -> frozenset[ComponentKey]:
        return frozenset(component.key for component in self.included if component.failed)

    @cached_property
    def _by_path(self) -> dict[str, list[WriterComponent]]:
        found: dict[str, list[WriterComponent]] = {}
        for component in self.offered.values():
            found.setdefault(component.path.lower(), []).append(component)
        return found


@dataclass(frozen=True)
class ManifestEvidence:
    """Everything known about one snapshot's manifest.

    `absent`: why there is none. `unfetched`: why it could not be fetched. `damage`: why the archive was
    refused. All three are None when there are documents. `requested`: the snapshot's quiesce specification,
    None when it is not known. `excluded`: names, applications or class ids of writers that the user says may be
    left out.
    """

    documents: tuple[Document, ...] = ()
    absent: str | None = None
    unfetched: str | None = None
    damage: str | None = None
    requested: RequestedQuiescing | None = None
    excluded: tuple[str, ...] = ()

    @cached_property
    def backups(self) -> tuple[BackupComponents, ...]:
        return tuple(one for one in self.documents if isinstance(one, BackupComponents))

    @cached_property
    def metadata(self) -> tuple[WriterMetadata, ...]:
        return tuple(one for one in self.documents if isinstance(one, WriterMetadata))

    @cached_property
    def unreadable(self) -> tuple[Unreadable, ...]:
        return tuple(one for one in self.documents if isinstance(one, Unreadable))

    @cached_property
    def quiesce_manifests(self) -> tuple[QuiesceManifest, ...]:
        return tuple(one for one in self.documents if isinstance(one, QuiesceManifest))

    @property
    def proves_absence(self) -> bool:
        """True in component mode: then a writer that the backup components document does not list took no part."""
        return bool(self.backups) and self.backups[0].select_components is not False

    @property
    def backup_document(self) -> str:
        return self.backups[0].document if self.backups else ""

    @cached_property
    def writers(self) -> tuple[WriterEvidence, ...]:
        """Writers of the backup components document first, in its order, then those that only have their own."""
        included: dict[tuple[str, str], list[BackupWriter]] = {}
        for writer in self.backups[0].writers if self.backups else ():
            included.setdefault((writer.writer_id, writer.instance_id), []).append(writer)
        described: dict[tuple[str, str], list[WriterMetadata]] = {}
        for metadata in self.metadata:
            described.setdefault((metadata.writer_id, metadata.instance_id), []).append(metadata)
        return tuple(
            self._with_exclusion(
                WriterEvidence(
                    *ids,
                    backup=_joined(included[ids]) if ids in included else None,
                    metadata=described[ids][0] if ids in described else None,
                    twins=tuple(described.get(ids, ())[1:]),
                )
            )
            for ids in dict.fromkeys([*included, *described])
        )

    def _with_exclusion(self, writer: WriterEvidence) -> WriterEvidence:
        names = {writer.name.lower(), writer.application.lower(), writer.writer_id}
        wanted = {name.strip().lower() for name in self.excluded} | {
            normalise_guid(one) for one in self.excluded
        }
        return replace(writer, excluded=True) if wanted & names - {""} else writer

    @property
    def backup_type(self) -> str:
        """The type of backup that the writers were told; empty when it is not known."""
        stated = self.backups[0].backup_type if self.backups else ""
        if stated in BACKUP_TYPES:
            return stated
        return self.requested.backup_type if self.requested else ""

    def effective_type(self, writer: WriterEvidence) -> str:
        """The type of backup that a writer performs; empty when it takes no part, or when the type is unknown."""
        return effective_type(self.backup_type, writer.backup_schema) if writer.backup else ""


def _joined(parts: list[BackupWriter]) -> BackupWriter:
    """One writer listed in several elements takes part with the components of all."""
    return replace(
        parts[0],
        components=tuple(component for part in parts for component in part.components),
        failures=tuple(failure for part in parts for failure in part.failures),
    )
