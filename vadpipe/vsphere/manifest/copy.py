"""Copying the manifest on its datastore, where the copy outlives the snapshot, and downloading the copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pyVmomi import vim

from pipeline.errors import ConfigError, MoverError, SourceError

from ..api.faults import (
    ConnectionLost,
    NotOffered,
    TaskForgotten,
    VsphereError,
)
from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.datastore import DatastorePath
from ..journal.journaled import new_run
from .fetch import Fetched, ManifestPlace
from .https import OverHttps


@dataclass(frozen=True)
class CopyOnDatastore:
    """Copy the file into a directory of the VM's datacenter, and download the copy.

    A copy's name begins with the time and a random number, so no copy is ever overwritten. Copies are not removed.
    When this is cancelled, the server still finishes a copy that it has begun.

    Args:
        directory: `[datastore] path`; created when it is missing.
        timeout_s: Seconds for copy and download.
        download: How to download the copy.

    Raises:
        ConfigError: `directory` is no datastore path.

    Source: vSphere API reference, FileManager.CopyDatastoreFile_Task.
    """

    directory: str
    timeout_s: float = 300.0
    download: OverHttps = field(default_factory=OverHttps)

    def __post_init__(self) -> None:
        try:
            DatastorePath.parse(self.directory)
        except ValueError as exc:
            raise ConfigError(
                f"CopyOnDatastore: {exc}.", remedy="Write it as '[datastore1] vss-manifests'."
            ) from exc

    @property
    def way(self) -> str:
        return "copy on a datastore"

    def effects(self) -> Sequence[str]:
        return [f"Copies the VSS manifest into {self.directory}, and leaves it there."]

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Copy, then download. Raises SourceError, VsphereError."""
        directory = DatastorePath.parse(self.directory)
        copy = replace(place, path=directory.join(f"{new_run()}-{place.path.name}"))
        task = _Copying(session, place, copy.path)
        await task.make_directory()
        await retry(task.copy, session.settings.patience_s)
        remark = f"A copy is kept as {copy.path}."
        try:
            fetched = await self.download.fetch(session, copy)
        except MoverError as exc:
            raise VsphereError(f"{exc.problem} {remark}", server=session.server, copy=str(copy.path)) from exc
        return Fetched(fetched.content, remark)


@dataclass
class _Copying:
    """One copy. `in_doubt`: an earlier call whose answer was lost may have made it."""

    session: VcenterSession
    source: ManifestPlace
    destination: DatastorePath
    in_doubt: bool = False

    async def make_directory(self) -> None:
        """Create the directory and its parents, unless they exist."""
        name, datacenter = str(self.destination.parent), self._datacenter
        if not self.destination.parent.path:
            return
        make = partial(self._files.MakeDirectory, name, datacenter, True)
        try:
            # Repeating it is harmless, so it is not marked as a changing call.
            await self.session.call("MakeDirectory", make)
        except SourceError as exc:
            if exc.facts.get("fault") != "FileAlreadyExists":
                raise

    async def copy(self) -> None:
        """Copy the file. After a lost answer, a file of that name is the copy: no other run uses the name."""
        source, destination, datacenter = str(self.source.path), str(self.destination), self._datacenter
        start = partial(self._files.CopyFile, source, datacenter, destination, datacenter, False)
        try:
            task: vim.Task = await self.session.call("CopyDatastoreFile_Task", start, changes=True)
            await wait_for_task(self.session, task, "CopyDatastoreFile_Task")
        except (ConnectionLost, TaskForgotten):
            self.in_doubt = True
            raise
        except SourceError as exc:
            if not (self.in_doubt and exc.facts.get("fault") == "FileAlreadyExists"):
                raise

    @property
    def _files(self) -> vim.FileManager:
        manager = self.session.content.fileManager
        if manager is None:
            raise NotOffered(f"{self.session.server} cannot copy files.", server=self.session.server)
        return manager

    @property
    def _datacenter(self) -> vim.Datacenter | None:
        moref = self.source.datacenter
        return vim.Datacenter(moref, self.session.stub) if moref and self.session.is_vcenter else None
