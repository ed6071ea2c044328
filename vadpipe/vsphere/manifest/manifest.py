"""Finding the VSS manifest of a snapshot through the API, and having it fetched.

What was in the VM's directory is recorded before the snapshot, because a manifest of an earlier one may still lie
there and must never be taken for this one's. "There is none" and "it could not be fetched" are different answers:
the first means that nothing was quiesced, the second that nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import SourceError
from vadpipe.vss.fetched import FetchedManifest

from ..api.faults import ConnectionLost, TaskForgotten
from ..api.retry import patiently
from ..api.session import VcenterSession
from ..inventory.datastore_path import DatastorePath
from ..inventory.datastore_search import Browser, search_directory
from ..inventory.lookup import Vm
from ..snapshot.snapshot import Snapshot
from ..snapshot.tree import named_manifest, snapshots_of
from .fetch import ManifestFetcher, fetch_in_order, locate
from .https import OverHttps
from .locate import (
    FoundBy,
    FoundManifest,
    ListedFile,
    find_manifest,
)

# How long after a snapshot its manifest may still come. The API promises nothing; in the field it is there when the
# task ends, so this is a margin; it costs time only where vSphere names none.
LATE_S = 5.0
_LOOK_AGAIN_S = 0.5
_PATTERNS = ("*vss_manifests*.zip", "vss-manifest*.zip", "*quiesce_manifest*.xml")


@dataclass(frozen=True)
class DirectoryState:
    """Manifest files and all others in the VM's snapshot directory, at one time.

    `layout`: names that the API lists as the VM's files; `searched`: manifests that a search of the datastore
    found; `problem`: why that search failed.
    """

    directory: str
    layout: frozenset[str]
    searched: frozenset[ListedFile]
    problem: str


async def directory_state(session: VcenterSession, vm: Vm) -> DirectoryState:
    """Look at the VM's snapshot directory. Raises VsphereError; a search that is refused is part of the answer."""
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


async def fetch_manifest(
    session: VcenterSession,
    snapshot: Snapshot,
    before: DirectoryState,
    fetchers: Sequence[ManifestFetcher] = (OverHttps(),),
    *,
    late_until: float = -math.inf,
) -> FetchedManifest:
    """The manifest of this snapshot, by the first of `fetchers` that gives it. `before`: the directory as it was
    before the snapshot; `late_until`: until when, on trio's clock, to look again while there is none.

    Waits for a server that is away for some minutes. Nothing is raised: not knowing is an answer too.
    """
    patience_s = session.settings.patience_s
    if snapshot.quiesce.kind == "none":  # nobody was asked to write one
        late_until = -math.inf
    try:
        found = await _found_in_time(session, snapshot, before, late_until)
        if isinstance(found, FetchedManifest):
            return found
        place = await patiently(partial(locate, session, snapshot.vm, found), patience_s)
    except SourceError as exc:
        return FetchedManifest(None, f"it could not be looked for: {exc.problem}", None)
    return await fetch_in_order(session, found, place, fetchers)


async def _found_in_time(
    session: VcenterSession, snapshot: Snapshot, before: DirectoryState, late_until: float
) -> FoundManifest | FetchedManifest:
    """The file, or the answer that there is none. One that came late is taken once its size has settled."""
    look = partial(_look, session, snapshot, before)
    earlier: FoundManifest | FetchedManifest | None = None
    while True:
        found = await patiently(look, session.settings.patience_s)
        if isinstance(found, FoundManifest) and (
            earlier is None or found == earlier or found.found_by is FoundBy.BACKUP_MANIFEST
        ):
            return found
        if trio.current_time() >= late_until:
            return found
        earlier = found
        await trio.sleep(_LOOK_AGAIN_S)


async def _look(
    session: VcenterSession, snapshot: Snapshot, before: DirectoryState
) -> FoundManifest | FetchedManifest:
    """The file, or the answer that there is none, at this moment."""
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
        return FetchedManifest(None, f"it could not be looked for: {problem or 'no files are listed'}", None)
    reason = f"the snapshot left no manifest in {after.directory}"
    if named:
        reason += f"; vSphere names {named}, which was there before and has not changed"
    return FetchedManifest(None, reason, None, absent=True)


async def _search(
    session: VcenterSession, datastores: Sequence[vim.Datastore], directory: str
) -> frozenset[ListedFile]:
    """The manifests in the directory, with sizes and times, by the browser of its datastore."""
    place = DatastorePath.parse(directory)
    details = Browser.FileInfo.Details(fileType=False, fileSize=True, modification=True, fileOwner=False)
    found = await search_directory(session, datastores, place, _PATTERNS, details)
    return frozenset(
        ListedFile(str(place.join(file.path)), file.fileSize, file.modification) for file in found
    )


def _directory_of(vmx: str) -> str:
    return vmx.rpartition("/")[0] if "/" in vmx else vmx.rpartition("]")[0] + "]"
