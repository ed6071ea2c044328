"""Datastore paths, `[datastore] directory/file`, files under `/folder`, and the search of a directory."""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, unquote, urlencode, urlsplit

from pyVmomi import vim

from ..api.faults import NotOffered, ObjectGone, SessionExpired, VsphereError
from ..api.http import HttpClient, Refusal
from ..api.properties import read_each
from ..api.session import VcenterSession
from ..api.tasks import wait_for_tasks

Browser = vim.host.DatastoreBrowser
_SEARCH = "SearchDatastore_Task"
_SEARCHES = 32  # at once: few enough that a host answers other calls too
_ANSWER = 1 << 20  # bytes of the answer to a PUT or a DELETE, which says nothing
_REFUSALS = {
    http.client.UNAUTHORIZED: Refusal("it requires a login", error=SessionExpired),
    http.client.FORBIDDEN: Refusal(
        "the account may not write files there (privilege Datastore.FileManagement)",
        "Give the account this privilege on the datastore.",
    ),
}
_SHAPE = re.compile(r"\[(?P<datastore>.+?)\](?: (?P<path>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A file or directory on a datastore. `path` has no slash at either end; it is empty for the root."""

    datastore: str
    path: str

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}" if self.path else f"[{self.datastore}]"

    @classmethod
    def parse(cls, text: str) -> DatastorePath:
        """From `[ds] dir/file`, with a trailing slash or without. Raises ValueError for anything else."""
        shape = _SHAPE.fullmatch(text)
        if shape is None:
            raise ValueError(f"not a datastore path: {text!r}. Expected '[datastore] directory/file'")
        return cls(shape["datastore"], _tidy(shape["path"] or "", text))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> DatastorePath:
        return DatastorePath(self.datastore, self.path.rpartition("/")[0])

    def join(self, relative: str) -> DatastorePath:
        """A path below this directory. Raises ValueError when it would leave the directory."""
        below = _tidy(relative, relative)
        return DatastorePath(self.datastore, f"{self.path}/{below}" if self.path else below)


def _tidy(path: str, text: str) -> str:
    segments = [segment for segment in path.split("/") if segment]
    if "." in segments or ".." in segments:
        raise ValueError(f"datastore path with relative segments: {text!r}. Name the directory itself")
    return "/".join(segments)


def folder_url(server: str, path: DatastorePath | str, datacenter_path: str | None) -> str:
    """The URL of a datastore file for GET, HEAD and PUT.

    Args:
        server: Host or host:port, an IPv6 address in brackets.
        path: The file.
        datacenter_path: Inventory path with folders, as in `Folder/DC`; None for an ESXi host, which has one
            datacenter.

    Raises:
        ValueError: `path` is no datastore path.

    Source: vSphere Web Services SDK, HTTPS access to datastores.
    """
    place = DatastorePath.parse(path) if isinstance(path, str) else path
    segments = "/".join(quote(segment, safe="") for segment in place.path.split("/"))
    query = {"dsName": place.datastore}
    if datacenter_path is not None:
        query = {"dcPath": datacenter_path.strip("/"), **query}
    return f"https://{server}/folder/{segments}?{urlencode(query, quote_via=quote, safe='')}"


async def put_file(session: VcenterSession, place: DatastorePath, datacenter: str, content: bytes) -> None:
    """Write a whole file, and read it back; whatever has this name is replaced. May be repeated.

    Args:
        session: The session.
        place: The file; its directory is there.
        datacenter: The inventory path of the datacenter; without meaning on an ESXi host.
        content: All of it.

    Raises:
        VsphereError: The server refuses.
        NotOffered: The file does not read back as it was written.
    """
    put = partial(_request, session, "PUT", place, datacenter, content, _ANSWER)
    await session.call(f"PUT {place}", put)
    get = partial(_request, session, "GET", place, datacenter, None, len(content) + _ANSWER)
    if await session.call(f"GET {place}", get) != content:
        raise NotOffered(f"{place} does not read back as it was written.", server=session.server)


async def delete_file(session: VcenterSession, place: DatastorePath, datacenter: str) -> bool:
    """Delete a file; returns whether it was there. Raises VsphereError when the server refuses."""
    try:
        await session.call(
            f"DELETE {place}", partial(_request, session, "DELETE", place, datacenter, None, _ANSWER)
        )
    except VsphereError as exc:
        if exc.facts.get("status") != http.client.NOT_FOUND:
            raise
        return False
    return True


def _request(
    session: VcenterSession,
    method: str,
    place: DatastorePath,
    datacenter: str,
    body: bytes | None,
    limit: int,
) -> bytes:
    url = urlsplit(folder_url("server", place, datacenter if session.is_vcenter else None))
    headers = {"Cookie": session.cookie}
    if body is not None:
        headers["Content-Type"] = "application/octet-stream"
    with HttpClient(session.endpoint) as client:
        answer = client.request(
            method,
            f"{url.path}?{url.query}",
            call=f"{method} {place}",
            limit=limit,
            headers=headers,
            body=body,
        )
    return answer.require_success(_REFUSALS)


async def search_directories(
    session: VcenterSession,
    datastores: Sequence[vim.Datastore],
    directories: Sequence[DatastorePath],
    spec: Browser.SearchSpec,
) -> list[Sequence[Browser.FileInfo]]:
    """The files in each of these directories, with one call per directory and few others.

    Args:
        session: The session.
        datastores: The datastores among which those of the directories are.
        directories: The directories to search.
        spec: Which files, and what to say of each.

    Raises:
        ObjectGone: A directory's datastore is not among `datastores`.
        VsphereError: A search is refused.
    """

    def start(places: Sequence[DatastorePath]) -> list[vim.Task]:
        return [browser_of(place).Search(str(place), spec) for place in places]

    def browser_of(place: DatastorePath) -> Browser:
        for store in stores:
            if is_called(str(store.get("name")), place.datastore):
                browser: Browser = store.get("browser")
                return browser
        raise ObjectGone(f"The VM has no datastore {place.datastore!r}.", server=session.server, call=_SEARCH)

    stores = await session.call(
        "RetrieveProperties", lambda: read_each(session.content, datastores, ["name", "browser"], strict=True)
    )
    found: list[Sequence[Browser.FileInfo]] = []
    for first in range(0, len(directories), _SEARCHES):
        places = directories[first : first + _SEARCHES]
        tasks = await session.call(_SEARCH, partial(start, places))
        for place, result in zip(places, await wait_for_tasks(session, tasks, _SEARCH), strict=True):
            if not isinstance(result, Browser.SearchResults):
                raise VsphereError(
                    f"The search of {place} has no result.", server=session.server, call=_SEARCH
                )
            found.append(result.file)
    return found


def vms_on(
    content: vim.ServiceInstanceContent, datastores: Sequence[vim.Datastore]
) -> dict[str, vim.VirtualMachine]:
    """The VMs with files on these datastores, by moref. Blocks."""
    stores = read_each(content, datastores, ["vm"])
    return {str(vm._moId): vm for store in stores for vm in store.get("vm") or ()}


def is_called(inventory_name: str, name: str) -> bool:
    """Whether an inventory object has this name. The inventory escapes '/', '\\' and '%' in names."""
    return name in (inventory_name, unquote(inventory_name))
