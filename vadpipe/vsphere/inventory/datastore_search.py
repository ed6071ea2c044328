"""Searching one directory of a datastore for files, by the datastore's browser."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from pyVmomi import vim

from ..api.faults import ObjectGone, VsphereError
from ..api.properties import read
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from .datastore_path import DatastorePath

Browser = vim.host.DatastoreBrowser


async def search_directory(
    session: VcenterSession,
    datastores: Sequence[vim.Datastore],
    directory: DatastorePath,
    patterns: Sequence[str],
    details: Browser.FileInfo.Details | None = None,
) -> Sequence[Browser.FileInfo]:
    """The files in the directory whose names match one of the patterns (`*`, `?`); names only without `details`.

    `datastores`: among which the directory's is. Raises ObjectGone when it is not, VsphereError.
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
    """Whether an object of the inventory, which escapes '/', '\\' and '%' in names, has this name."""
    return name in (inventory_name, unquote(inventory_name))
