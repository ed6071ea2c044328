"""Ways to fetch a manifest from its datastore: what they have in common, and trying them in order.

The programming guide names four: HTTPS (`fetch_https`), a copy on a datastore (`fetch_copy`), vifs (`fetch_vifs`)
and PowerCLI (`fetch_powercli`). Each is a `ManifestFetcher`. Whatever a way returns is checked here: its size
against what the datastore lists, and whether it is a whole zip. What fails is noted, and the next way is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import trio
from pyVmomi import vim

from pipeline.errors import MoverError
from vadpipe.vss.archive import MAX_ARCHIVE_SIZE, ManifestUnreadable, read_members
from vadpipe.vss.fetched import FetchAttempt, FetchedManifest, ManifestKind

from ..api.faults import VsphereError
from ..api.properties import Row, read
from ..api.session import VcenterSession
from ..inventory.datastore_path import DatastorePath
from ..inventory.datastore_search import is_called
from ..inventory.lookup import Vm
from .locate import FoundManifest


@dataclass(frozen=True)
class ManifestPlace:
    """Where a manifest lies.

    `size`: bytes as the datastore lists them, None when it does not tell. `datacenter_path`: as the inventory
    writes it, with its escapes. `datastore` and `datacenter` are morefs, None where the datastore is none of the
    VM's own.
    """

    path: DatastorePath
    size: int | None
    vm: Vm
    datacenter_path: str
    datastore: str | None = None
    datacenter: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A file's bytes. `remark`: a sentence about what the way left behind on purpose."""

    content: bytes
    remark: str = ""


class ManifestFetcher(Protocol):
    """A way to fetch a file from a datastore. Settings only; usable alone.

    `way`: its name in reports. `timeout_s`: how long `fetch_within` lets it try.
    """

    @property
    def way(self) -> str: ...

    @property
    def timeout_s(self) -> float: ...

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """The file. Raises MoverError; has no time limit of its own. Cancelled it leaves nothing behind."""
        ...

    def effects(self) -> Sequence[str]:
        """A sentence for each thing that it changes outside of this process."""
        ...


async def fetch_within(fetcher: ManifestFetcher, session: VcenterSession, place: ManifestPlace) -> Fetched:
    """The whole file, in time. Raises MoverError, also for a size that is not the one the datastore lists."""
    with trio.move_on_after(fetcher.timeout_s) as limit:
        fetched = await fetcher.fetch(session, place)
    if limit.cancelled_caught:
        raise _refused(session, place, f"{place.path} was not there after {fetcher.timeout_s:g} s.")
    size = len(fetched.content)
    if size > MAX_ARCHIVE_SIZE:
        raise _refused(session, place, too_large(place.path))
    if place.size is not None and size != place.size:
        problem = f"{size} bytes came of {place.path}; the datastore lists {place.size}."
        raise _refused(session, place, f"{problem} {fetched.remark}".rstrip())
    return fetched


async def fetch_in_order(
    session: VcenterSession, found: FoundManifest, place: ManifestPlace, fetchers: Sequence[ManifestFetcher]
) -> FetchedManifest:
    """The manifest by the first way that gives a whole one. Raises nothing of ours; every failure is kept.

    A file that is no whole zip is fetched by the next way; when none gives a better one, it is what there is.
    """
    attempts: list[FetchAttempt] = []
    damaged: Fetched | None = None
    for fetcher in fetchers:
        try:
            fetched = await fetch_within(fetcher, session, place)
        except MoverError as exc:
            attempts.append(FetchAttempt(fetcher.way, exc.problem))
            continue
        damage = await trio.to_thread.run_sync(_damage, found.kind, fetched.content)
        attempts.append(FetchAttempt(fetcher.way, damage, fetched.remark))
        if not damage:
            return _answer(found, fetched, attempts)
        damaged = damaged or fetched
    return _answer(found, damaged, attempts)


async def locate(session: VcenterSession, vm: Vm, found: FoundManifest) -> ManifestPlace:
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
    """The moref of the datacenter above a datastore, and its inventory path without the root folder. Blocks."""
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
    if kind is ManifestKind.LINUX_XML:
        return ""
    try:
        read_members(content)
    except ManifestUnreadable as exc:
        return exc.reason
    return ""


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
