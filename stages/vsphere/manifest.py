"""Fetching the VSS manifest of a snapshot: found through the API, read from the datastore over HTTPS.

What was in the VM's directory is recorded before the snapshot, because a manifest of an earlier one may still lie
there and must never be taken for this one's. "There is none" and "it could not be fetched" are different answers:
the first means that nothing was quiesced, the second that nobody knows.
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from pyVmomi import vim

from pipeline.errors import SourceError
from stages.vss.archive import MAX_ARCHIVE_SIZE
from stages.vss.datastore_path import DatastorePath, folder_url
from stages.vss.fetched import FetchedManifest
from stages.vss.find import find_manifest

from .datastore_search import search_directory
from .faults import ConnectionLost, SessionExpired, TaskForgotten, VsphereError
from .lookup import Vm
from .patience import patiently
from .properties import read
from .session import VcenterSession
from .siblings import named_manifest
from .snapshot import Snapshot
from .snapshot_tree import snapshots_of

_PATTERNS = ("*vss_manifests*.zip", "vss-manifest*.zip", "*quiesce_manifest*.xml")


@dataclass(frozen=True)
class DirectoryState:
    """Manifest files and all others in the VM's snapshot directory, at one time.

    `layout`: names that the API lists as the VM's files; `searched`: manifests that a search of the datastore
    found; `problem`: why that search failed.
    """

    directory: str
    layout: frozenset[str]
    searched: frozenset[str]
    problem: str


async def directory_state(session: VcenterSession, vm: Vm) -> DirectoryState:
    """Look at the VM's snapshot directory. Raises VsphereError; a search that is refused is part of the answer."""
    subject = vm.reference(session)
    paths = ["layoutEx", "config.files.snapshotDirectory", "config.files.vmPathName", "datastore"]
    row = await session.call("RetrieveProperties", lambda: read(session.content, subject, paths))
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
    session: VcenterSession, snapshot: Snapshot, before: DirectoryState
) -> FetchedManifest:
    """The manifest of this snapshot. `before`: the directory as it was before the snapshot.

    Waits for a server that is away for some minutes. Nothing is raised: not knowing is an answer too.
    """
    try:
        return await patiently(partial(_fetched, session, snapshot, before), session.settings.patience_s)
    except SourceError as exc:
        return FetchedManifest(None, f"it could not be looked for: {exc.problem}", None)


async def _fetched(session: VcenterSession, snapshot: Snapshot, before: DirectoryState) -> FetchedManifest:
    nodes = await snapshots_of(session, snapshot.vm.moref)
    after = await directory_state(session, snapshot.vm)
    named = named_manifest(nodes, snapshot.family | {snapshot.moref})
    known = before.layout | before.searched
    found = find_manifest(named, after.directory, known, after.layout, after.searched)
    if found is None:
        problem = before.problem or after.problem
        if not known or (problem and not (before.layout and after.layout)):
            return FetchedManifest(
                None, f"it could not be looked for: {problem or 'no files are listed'}", None
            )
        return FetchedManifest(None, f"the snapshot left no manifest in {after.directory}", None, absent=True)
    path = str(found.path)
    try:
        content = await session.call(f"GET {path}", lambda: _get(session, snapshot.vm, found.path))
    except ConnectionLost:
        raise
    except SourceError as exc:
        return FetchedManifest(None, exc.problem, path)
    return FetchedManifest(content, f"named by {found.found_by.value}", path)


async def _search(
    session: VcenterSession, datastores: Sequence[vim.Datastore], directory: str
) -> frozenset[str]:
    """Full paths of the manifests in the directory, by the browser of its datastore."""
    place = DatastorePath.parse(directory)
    found = await search_directory(session, datastores, place, _PATTERNS)
    return frozenset(str(place.join(file.path)) for file in found)


def _get(session: VcenterSession, vm: Vm, path: DatastorePath) -> bytes:
    """The file's bytes, within the bound for manifests. Blocks. Raises OSError, HTTPException, VsphereError."""
    url = urlsplit(folder_url(session.server, path, vm.datacenter if session.is_vcenter else None))
    connection = session.connection()
    try:
        connection.request("GET", f"{url.path}?{url.query}", headers={"Cookie": session.cookie})
        response = connection.getresponse()
        content = response.read(MAX_ARCHIVE_SIZE + 1)
    finally:
        connection.close()
    call = f"GET {path}"
    if response.status == http.client.UNAUTHORIZED:
        raise SessionExpired(f"{session.server} wants a login for {path}.", server=session.server, call=call)
    if response.status != http.client.OK:
        refusal = _refusal(session.server, path, response.status, response.reason)
        raise VsphereError(refusal, server=session.server, call=call, status=response.status)
    if len(content) > MAX_ARCHIVE_SIZE:
        problem = f"{path} is larger than {MAX_ARCHIVE_SIZE} bytes, which no manifest is."
        raise VsphereError(problem, server=session.server, call=call)
    return content


def _refusal(server: str, path: DatastorePath, status: int, reason: str) -> str:
    meanings: dict[int, str] = {
        http.client.FORBIDDEN: "the account may not read files there (privileges Datastore.Browse and "
        "Datastore.FileManagement)",
        http.client.NOT_FOUND: "there is no such file",
    }
    return f"{server} does not give out {path}: {meanings.get(status, f'{status} {reason}')}."


def _directory_of(vmx: str) -> str:
    return vmx.rpartition("/")[0] if "/" in vmx else vmx.rpartition("]")[0] + "]"
