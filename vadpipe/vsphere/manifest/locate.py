"""Which manifest file belongs to a snapshot.

`directory_state` records the VM's directory before the snapshot, because a manifest of an earlier snapshot can
still lie there and must never be used for this one. `find_manifest` then decides from plain facts:

* The snapshot's own `backupManifest` comes first.
* Without it, only a file that did not exist before the snapshot counts: manifests of removed snapshots can stay
  behind, and their numbers can be reused. A known name, in whatever notation of the directory (vVols show object
  ids), counts only when two searches of the same directory show that the file was written again.
* A file that both searches show unchanged is never used, not even when vSphere names it.

"There is no manifest" and "nobody could look" are different answers: the first means that nothing was quiesced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from pyVmomi import vim

from pipeline.errors import SourceError
from vadpipe.vss.fetched import FetchedManifest, ManifestKind

from ..api.faults import ConnectionLost, TaskForgotten
from ..api.session import VcenterSession
from ..inventory.datastore import Browser, DatastorePath, search_directories
from ..inventory.lookup import Vm
from ..snapshot.snapshot import Snapshot
from ..snapshot.tree import named_manifest, snapshots_of

# `<vm>-vss_manifests<N>.zip` is what hosts write, `vss-manifest.zip` what the programming guide names.
_VSS_ZIP = re.compile(r"(.*vss_manifests.*|vss-manifest.*)\.zip", re.IGNORECASE | re.DOTALL)
_LINUX_XML = re.compile(r".*quiesce_manifest\d*\.xml", re.IGNORECASE | re.DOTALL)
_PATTERNS = ("*vss_manifests*.zip", "vss-manifest*.zip", "*quiesce_manifest*.xml")  # of a datastore search
_NUMBER = re.compile(r"(\d+)\.\w+$")


class FoundBy(Enum):
    """Where the file's name came from."""

    BACKUP_MANIFEST = "backupManifest"
    LAYOUT = "layoutEx"
    SEARCH = "datastore search"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file in the answer of a datastore search.

    Args:
        path: Full path, or name in the directory that was searched.
        size: Bytes; None when the datastore does not say.
        modified: Time of the last write by the datastore's clock; None when the datastore does not say.
    """

    path: str
    size: int | None = None
    modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """The manifest file of a snapshot. `size`: bytes; None when unknown."""

    path: DatastorePath
    kind: ManifestKind
    found_by: FoundBy
    size: int | None = None


@dataclass(frozen=True)
class DirectoryState:
    """The files of a VM's snapshot directory at one time.

    Args:
        directory: Its datastore path.
        layout: The names that the API lists as the VM's files.
        searched: The manifests that a search of the datastore found.
        problem: Why that search failed; empty when it did not.
    """

    directory: str
    layout: frozenset[str]
    searched: frozenset[ListedFile]
    problem: str


async def directory_state(session: VcenterSession, vm: Vm) -> DirectoryState:
    """Look at the VM's snapshot directory. A refused search is part of the answer. Raises VsphereError."""
    subject = vm.reference(session)
    paths = ["layoutEx", "config.files.snapshotDirectory", "config.files.vmPathName", "datastore"]
    row = await session.properties(subject, paths)
    directory = row.get("config.files.snapshotDirectory") or _directory_of(
        row.get("config.files.vmPathName") or ""
    )
    layout = row.get("layoutEx")
    names = frozenset(file.name for file in layout.file) if layout else frozenset[str]()
    try:
        found = await _search(session, row.get("datastore") or (), directory)
    except (ConnectionLost, TaskForgotten):
        raise
    except (SourceError, ValueError) as exc:  # ValueError: not a datastore path
        return DirectoryState(directory, names, frozenset(), str(exc))
    return DirectoryState(directory, names, found, "")


async def look(
    session: VcenterSession, snapshot: Snapshot, before: DirectoryState
) -> FoundManifest | FetchedManifest:
    """The manifest file of the snapshot, or the answer that there is none now. Raises VsphereError."""
    nodes = await snapshots_of(session, snapshot.vm.moref)
    after = await directory_state(session, snapshot.vm)
    named = named_manifest(nodes, snapshot.family | {snapshot.moref})
    found = find_manifest(
        named, after.directory, before.layout, after.layout, before.searched, after.searched
    )
    if found is not None:
        return found
    problem = before.problem or after.problem
    if not (before.layout or before.searched) or (problem and not (before.layout and after.layout)):
        return FetchedManifest(None, f"nobody could look for it: {problem or 'no files are listed'}", None)
    reason = f"the snapshot left no manifest in {after.directory}"
    if named:
        reason += f"; vSphere names {named}, which was there before and has not changed"
    return FetchedManifest(None, reason, None, absent=True)


def find_manifest(
    backup_manifest: str | None,
    snapshot_directory: str,
    layout_before: Collection[str],
    layout_after: Collection[str],
    search_before: Collection[ListedFile],
    search_after: Collection[ListedFile],
) -> FoundManifest | None:
    """The manifest of the snapshot just taken. A kernel.

    Args:
        backup_manifest: The value in the snapshot tree: a full path, or one relative to `snapshot_directory`.
        snapshot_directory: `[ds] dir`, with a trailing slash or without.
        layout_before: The names in `layoutEx.file` before the snapshot.
        layout_after: The same after it.
        search_before: What a search of the directory for manifests listed before the snapshot.
        search_after: The same after it.

    Returns:
        The file, or None. When nothing is known from before, only `backup_manifest` can name it.
    """
    directory = _parsed(snapshot_directory)
    before, after = _placed_files(search_before, directory), _placed_files(search_after, directory)
    sizes = {place.name: file.size for place, file in after.items()}
    if backup_manifest and (named := _placed(backup_manifest, directory)):
        kind = ManifestKind.LINUX_XML if _LINUX_XML.fullmatch(named.name) else ManifestKind.VSS_ZIP
        if not _is_unchanged(before.get(named), after.get(named)):
            return FoundManifest(named, kind, FoundBy.BACKUP_MANIFEST, sizes.get(named.name))
    old = {name.rpartition("/")[2] for name in layout_before} | {place.name for place in before}
    if not old:
        return None
    rewritten = {place.name for place, file in after.items() if _is_rewritten(before.get(place), file)}
    layout = [place for name in layout_after if (place := _placed(name, directory))]
    for places, found_by in ((layout, FoundBy.LAYOUT), (list(after), FoundBy.SEARCH)):
        new = [place for place in places if place.name not in old or place.name in rewritten]
        if found := _newest(new, found_by, sizes):
            return found
    return None


async def _search(
    session: VcenterSession, datastores: Sequence[vim.Datastore], directory: str
) -> frozenset[ListedFile]:
    """The manifests in the directory, by the browser of its datastore."""
    place = DatastorePath.parse(directory)
    details = Browser.FileInfo.Details(fileType=False, fileSize=True, modification=True, fileOwner=False)
    spec = Browser.SearchSpec(matchPattern=list(_PATTERNS), details=details)
    [found] = await search_directories(session, datastores, [place], spec)
    return frozenset(
        ListedFile(str(place.join(file.path)), file.fileSize, file.modification) for file in found
    )


def _directory_of(vmx: str) -> str:
    return vmx.rpartition("/")[0] if "/" in vmx else vmx.rpartition("]")[0] + "]"


def _newest(
    places: Iterable[DatastorePath], found_by: FoundBy, sizes: dict[str, int | None]
) -> FoundManifest | None:
    """The VSS zip with the highest number, else the Linux manifest."""
    ranked = sorted(places, key=lambda place: (_number(place.name), str(place)), reverse=True)
    for pattern, kind in ((_VSS_ZIP, ManifestKind.VSS_ZIP), (_LINUX_XML, ManifestKind.LINUX_XML)):
        for place in ranked:
            if pattern.fullmatch(place.name):
                return FoundManifest(place, kind, found_by, sizes.get(place.name))
    return None


def _number(name: str) -> int:
    found = _NUMBER.search(name)
    return int(found[1][:9]) if found else 0


def _is_unchanged(before: ListedFile | None, after: ListedFile | None) -> bool:
    """Whether both searches list the file with the same size and time."""
    if before is None or after is None or before.modified is None:
        return False
    return (before.size, before.modified) == (after.size, after.modified)


def _is_rewritten(before: ListedFile | None, after: ListedFile) -> bool:
    """Whether the file existed before and was written since. Unknown times prove nothing."""
    if before is None or before.modified is None or after.modified is None:
        return False
    return after.modified > before.modified


def _parsed(text: str) -> DatastorePath | None:
    try:
        return DatastorePath.parse(text.strip())
    except ValueError:
        return None


def _placed(name: str, directory: DatastorePath | None) -> DatastorePath | None:
    """A full path, or a relative one below the directory; None for anything else."""
    if full := _parsed(name):
        return full
    try:
        return directory.join(name) if directory else None
    except ValueError:
        return None


def _placed_files(
    files: Iterable[ListedFile], directory: DatastorePath | None
) -> dict[DatastorePath, ListedFile]:
    return {place: file for file in files if (place := _placed(file.path, directory))}
