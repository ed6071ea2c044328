"""Datastore paths, `[datastore] directory/file`, their address under `/folder`, and the search of a directory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlencode

from pyVmomi import vim

from ..api.faults import ObjectGone, VsphereError
from ..api.properties import read
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task

Browser = vim.host.DatastoreBrowser
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


async def search_directory(
    session: VcenterSession,
    datastores: Sequence[vim.Datastore],
    directory: DatastorePath,
    patterns: Sequence[str],
    details: Browser.FileInfo.Details | None = None,
) -> Sequence[Browser.FileInfo]:
    """The files in the directory whose names match one of the patterns.

    Args:
        session: The session.
        datastores: The datastores among which the directory's is.
        directory: The directory to search.
        patterns: Patterns with `*` and `?`.
        details: What to say of each file; None for names only.

    Raises:
        ObjectGone: The directory's datastore is not among `datastores`.
        VsphereError: The search is refused.
    """

    def start() -> vim.Task:
        for datastore in datastores:
            facts = read(session.content, datastore, ["name", "browser"])
            if is_called(str(facts.get("name")), directory.datastore):
                browser: Browser = facts.get("browser")
                return browser.Search(
                    str(directory), Browser.SearchSpec(matchPattern=list(patterns), details=details)
                )
        raise ObjectGone(
            f"The VM has no datastore {directory.datastore!r}.", server=session.server, call="SearchDatastore"
        )

    task = await session.call("SearchDatastore_Task", start)
    found = await wait_for_task(session, task, "SearchDatastore_Task")
    if not isinstance(found, Browser.SearchResults):
        raise VsphereError(
            f"The search of {directory} has no result.", server=session.server, call="SearchDatastore_Task"
        )
    return found.file


def is_called(inventory_name: str, name: str) -> bool:
    """Whether an inventory object has this name. The inventory escapes '/', '\\' and '%' in names."""
    return name in (inventory_name, unquote(inventory_name))
