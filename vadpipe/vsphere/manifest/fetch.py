"""Fetching the manifest of a snapshot.

The programming guide names four ways: HTTPS (`https`), a copy on a datastore (`copy`), vifs and PowerCLI
(`external`). Each is a `ManifestFetcher`. Whatever a way returns is checked here: its size against the one that the
datastore lists, and whether it is a complete zip. A failure is recorded, and the next way is tried. What the bytes
say is for `vadpipe.vss` to judge.
"""

from __future__ import annotations

import io
import logging
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio
from pyVmomi import vim

from pipeline.errors import MoverError, SourceError
from vadpipe.vss.archive import MAX_ARCHIVE_SIZE
from vadpipe.vss.fetched import FetchAttempt, FetchedManifest, ManifestKind

from ..api.faults import VsphereError
from ..api.properties import Row, read
from ..api.retry import retry
from ..api.session import VcenterSession
from ..inventory.datastore import DatastorePath, is_called
from ..inventory.lookup import Vm
from ..snapshot.snapshot import Snapshot
from .locate import DirectoryState, FoundBy, FoundManifest, look

log = logging.getLogger(__name__)

# Seconds after a snapshot in which its manifest can still appear. The API promises nothing; in the field it exists
# when the task ends. This is a margin, which takes time only when vSphere names no manifest.
LATE_S = 5.0
_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True)
class ManifestPlace:
    """Where a manifest is.

    Args:
        path: Its datastore path.
        size: Bytes as the datastore lists them; None when unknown.
        vm: The VM that it belongs to.
        datacenter_path: As the inventory writes it, with its escapes.
        datastore: Moref; None when the datastore is none of the VM's own.
        datacenter: Moref; None likewise.
    """

    path: DatastorePath
    size: int | None
    vm: Vm
    datacenter_path: str
    datastore: str | None = None
    datacenter: str | None = None


@dataclass(frozen=True)
class Fetched:
    """The bytes of a file. `remark`: a sentence about what the way left behind on purpose."""

    content: bytes
    remark: str = ""


class ManifestFetcher(Protocol):
    """A way to fetch a file from a datastore. Settings only; usable alone.

    Args:
        way: Its name in reports.
        timeout_s: Seconds that `fetch_within` gives it.
    """

    @property
    def way(self) -> str: ...

    @property
    def timeout_s(self) -> float: ...

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """The file. It has no time limit of its own, and leaves nothing behind when it is cancelled.

        Raises:
            MoverError: It cannot be fetched this way.
        """
        ...

    def effects(self) -> Sequence[str]:
        """A sentence for each change outside of this process."""
        ...


async def fetch_manifest(
    session: VcenterSession,
    snapshot: Snapshot,
    before: DirectoryState,
    fetchers: Sequence[ManifestFetcher],
    *,
    late_until: float = -math.inf,
) -> FetchedManifest:
    """The manifest of this snapshot, by the first of the ways that returns a complete one.

    Waits for a server that is away, as long as the session's `patience_s`.

    Args:
        session: The session that took the snapshot.
        snapshot: The snapshot.
        before: Its directory as it was before the snapshot.
        fetchers: The ways to try, in order.
        late_until: Until when, on trio's clock, to look again while there is none.

    Returns:
        The manifest, or why there is none. Nothing is raised: "unknown" is an answer too.
    """
    patience_s = session.settings.patience_s
    if snapshot.quiesce.kind == "none":  # then the guest writes none
        late_until = -math.inf
    try:
        found = await _found_in_time(session, snapshot, before, late_until)
        if isinstance(found, FetchedManifest):
            return found
        place = await retry(partial(place_of, session, snapshot.vm, found), patience_s)
    except SourceError as exc:
        return FetchedManifest(None, f"nobody could look for it: {exc.problem}", None)
    return await fetch_in_order(session, found, place, fetchers)


async def _found_in_time(
    session: VcenterSession, snapshot: Snapshot, before: DirectoryState, late_until: float
) -> FoundManifest | FetchedManifest:
    """The file, or the answer that there is none. A late file counts once two looks show the same size."""
    look_now = partial(look, session, snapshot, before)
    earlier: FoundManifest | FetchedManifest | None = None
    while True:
        found = await retry(look_now, session.settings.patience_s)
        if isinstance(found, FoundManifest) and (
            earlier is None or found == earlier or found.found_by is FoundBy.BACKUP_MANIFEST
        ):
            return found
        if trio.current_time() >= late_until:
            return found
        log.info("%s: no complete manifest yet; looking again in %.1f s", session.server, _LOOK_AGAIN_S)
        earlier = found
        await trio.sleep(_LOOK_AGAIN_S)


async def fetch_within(fetcher: ManifestFetcher, session: VcenterSession, place: ManifestPlace) -> Fetched:
    """The complete file, within the time of the way.

    Raises:
        MoverError: It failed, took too long, or its size is not the one that the datastore lists.
    """
    fetched = None
    with trio.move_on_after(fetcher.timeout_s):
        fetched = await fetcher.fetch(session, place)
    if fetched is None:
        raise _refused(session, place, f"{place.path} did not arrive within {fetcher.timeout_s:g} s.")
    size = len(fetched.content)
    if size > MAX_ARCHIVE_SIZE:
        raise _refused(session, place, too_large(place.path))
    if place.size is not None and size != place.size:
        problem = f"{size} bytes of {place.path} arrived; the datastore lists {place.size}."
        raise _refused(session, place, f"{problem} {fetched.remark}".rstrip())
    return fetched


async def fetch_in_order(
    session: VcenterSession, found: FoundManifest, place: ManifestPlace, fetchers: Sequence[ManifestFetcher]
) -> FetchedManifest:
    """The manifest by the first way that returns a complete one. Every failure is recorded, none is raised.

    After an incomplete zip the next way is tried. When none returns a better one, the incomplete one is the result.
    """
    attempts: list[FetchAttempt] = []
    damaged: Fetched | None = None
    for fetcher in fetchers:
        try:
            fetched = await fetch_within(fetcher, session, place)
        except MoverError as exc:
            log.info("%s: %s failed: %s", session.server, fetcher.way, exc.problem)
            attempts.append(FetchAttempt(fetcher.way, exc.problem))
            continue
        damage = _damage(found.kind, fetched.content)
        attempts.append(FetchAttempt(fetcher.way, damage, fetched.remark))
        if not damage:
            return _answer(found, fetched, attempts)
        damaged = damaged or fetched
    return _answer(found, damaged, attempts)


async def place_of(session: VcenterSession, vm: Vm, found: FoundManifest) -> ManifestPlace:
    """The datastore and the datacenter of a file. Raises VsphereError."""
    name = found.path.datastore

    def work() -> ManifestPlace:
        row = read(session.content, vm.reference(session), ["datastore"])
        for datastore in row.get("datastore") or ():
            facts = read(session.content, datastore, ["name", "parent"])
            if is_called(str(facts.get("name")), name):
                datacenter, above = _datacenter_of(session, facts)
                return ManifestPlace(found.path, found.size, vm, above, facts.moref, datacenter)
        return ManifestPlace(found.path, found.size, vm, vm.datacenter)

    return await session.call("RetrieveProperties", work)


def too_large(path: DatastorePath) -> str:
    return f"{path} is larger than {MAX_ARCHIVE_SIZE} bytes, which no manifest is."


def _datacenter_of(session: VcenterSession, datastore: Row) -> tuple[str | None, str]:
    """Moref and inventory path, without the root folder, of the datacenter above a datastore. Blocks."""
    moref, names = None, list[str]()
    above = datastore.get("parent")
    while above is not None and above != session.content.rootFolder:
        facts = read(session.content, above, ["name", "parent"])
        if isinstance(above, vim.Datacenter):
            moref = facts.moref
        if moref is not None:
            names.append(str(facts.get("name")))
        above = facts.get("parent")
    return moref, "/".join(reversed(names))


def _damage(kind: ManifestKind, content: bytes) -> str:
    """Why this is no complete file; empty when it is one. A cut zip lacks the directory at its end."""
    if kind is ManifestKind.LINUX_XML or zipfile.is_zipfile(io.BytesIO(content)):
        return ""
    return "it is not a complete zip file"


def _answer(
    found: FoundManifest, fetched: Fetched | None, attempts: Sequence[FetchAttempt]
) -> FetchedManifest:
    path = str(found.path)
    if fetched is None:
        problems = [attempt.problem for attempt in attempts]
        if len(attempts) > 1:
            problems = [f"by {attempt.way}: {attempt.problem}" for attempt in attempts]
        reason = " ".join(problems) or "no way to fetch it is configured."
        return FetchedManifest(None, reason, path, kind=found.kind, attempts=attempts)
    reason = f"named by {found.found_by.value}"
    if found.kind is ManifestKind.LINUX_XML:
        reason = f"the quiesce manifest of a Linux guest, {reason}"
    return FetchedManifest(fetched.content, reason, path, kind=found.kind, attempts=attempts)


def _refused(session: VcenterSession, place: ManifestPlace, problem: str) -> VsphereError:
    return VsphereError(problem, server=session.server, path=str(place.path))
