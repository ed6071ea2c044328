"""Files in datastores: datastore paths, the browser's searches, and FileManager."""

from __future__ import annotations

import fnmatch
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from pyVmomi import VmomiSupport, vim

from ..api.managed import Call, Managed

if TYPE_CHECKING:
    from ..service import Service

_DATASTORE_PATH = re.compile(r"\[(?P<datastore>[^\]]+)\]\s*(?P<path>.*)")


@dataclass(frozen=True)
class DatastoreFile:
    """A place in a datastore. path: below the datastore, with slashes; local: the same on this machine."""

    datastore: str
    path: str
    local: Path

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}"


def locate(service: Service, datastore: str, path: str) -> DatastoreFile:
    """The file at `path` in `datastore`. Raises InvalidDatastore, NoPermission, or InvalidDatastorePath for a
    path that leaves the datastore."""
    if datastore not in service.inventory.datastores:
        raise vim.fault.InvalidDatastore(name=datastore, msg=f"Datastore '{datastore}' does not exist.")
    if datastore in service.forbidden_datastores:
        raise vim.fault.NoPermission(
            object=service.datastore(datastore).ref,
            privilegeId="Datastore.Browse",
            msg="Permission to perform this operation was denied.",
        )
    root = service.inventory.datastore_root(datastore).resolve()
    local = (root / path.strip("/")).resolve()
    if not local.is_relative_to(root):
        raise vim.fault.InvalidDatastorePath(
            datastorePath=f"[{datastore}] {path}", msg=f"Invalid datastore path '[{datastore}] {path}'."
        )
    return DatastoreFile(datastore, path.strip("/"), local)


def parse(service: Service, name: str) -> DatastoreFile:
    """The file that `[datastore] path`, or a URL of the `/folder` kind, names. Raises as `locate`."""
    if name.startswith("https://"):
        url = urlsplit(name)
        datastore = parse_qs(url.query).get("dsName", [""])[0]
        return locate(service, datastore, unquote(url.path.removeprefix("/folder")))
    match = _DATASTORE_PATH.fullmatch(name)
    if match is None:
        raise vim.fault.InvalidDatastorePath(datastorePath=name, msg=f"Invalid datastore path '{name}'.")
    return locate(service, match["datastore"], match["path"])


def existing(service: Service, name: str) -> DatastoreFile:
    """As `parse`. Raises FileNotFound also."""
    file = parse(service, name)
    if not file.local.exists():
        raise vim.fault.FileNotFound(file=name, msg=f"File {name} was not found")
    return file


class DatastoreBrowser(Managed):
    vim_type = vim.host.DatastoreBrowser

    def SearchDatastore_Task(
        self, call: Call, datastore_path: str, search_spec: vim.host.DatastoreBrowser.SearchSpec | None
    ) -> vim.Task:
        return self.service.tasks.start(
            call, None, lambda: self._results(existing(self.service, datastore_path), search_spec)
        )

    def SearchDatastoreSubFolders_Task(
        self, call: Call, datastore_path: str, search_spec: vim.host.DatastoreBrowser.SearchSpec | None
    ) -> vim.Task:
        def search() -> object:
            top = existing(self.service, datastore_path)
            below = sorted(path for path in top.local.rglob("*") if path.is_dir())
            folders = [
                locate(self.service, top.datastore, f"{top.path}/{path.relative_to(top.local)}")
                for path in below
            ]
            results = [self._results(folder, search_spec) for folder in [top, *folders]]
            return VmomiSupport.GetVmodlType("vim.host.DatastoreBrowser.SearchResults[]")(results)

        return self.service.tasks.start(call, None, search)

    def _results(
        self, folder: DatastoreFile, spec: vim.host.DatastoreBrowser.SearchSpec | None
    ) -> vim.host.DatastoreBrowser.SearchResults:
        spec = spec or vim.host.DatastoreBrowser.SearchSpec()
        files = [
            _file_info(path, spec.details)
            for path in sorted(folder.local.iterdir())
            if _matches(path.name, spec.matchPattern, bool(spec.searchCaseInsensitive))
        ]
        return vim.host.DatastoreBrowser.SearchResults(
            datastore=self.service.datastore(folder.datastore).ref,
            folderPath=f"{folder}/" if folder.path else f"[{folder.datastore}]",
            file=files,
        )


def _matches(name: str, patterns: list[str], ignore_case: bool) -> bool:
    if ignore_case:
        name, patterns = name.lower(), [pattern.lower() for pattern in patterns]
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _file_info(
    path: Path, details: vim.host.DatastoreBrowser.FileInfo.Details | None
) -> vim.host.DatastoreBrowser.FileInfo:
    fields: dict[str, object] = {"path": path.name}
    kind: type[vim.host.DatastoreBrowser.FileInfo] = vim.host.DatastoreBrowser.FileInfo
    if details is not None:
        status = path.stat()
        if details.fileType and path.is_dir():
            kind = vim.host.DatastoreBrowser.FolderInfo
        if details.fileSize:
            fields["fileSize"] = status.st_size
        if details.modification:
            fields["modification"] = datetime.fromtimestamp(status.st_mtime, UTC)
    return kind(**fields)


class FileManager(Managed):
    vim_type = vim.FileManager

    def CopyDatastoreFile_Task(
        self,
        call: Call,
        source_name: str,
        source_datacenter: vim.Datacenter | None,
        destination_name: str,
        destination_datacenter: vim.Datacenter | None,
        force: bool | None,
    ) -> vim.Task:
        def copy() -> None:
            source, destination = existing(self.service, source_name), parse(self.service, destination_name)
            if destination.local.exists() and not force:
                raise vim.fault.FileAlreadyExists(
                    file=destination_name, msg=f"The file {destination_name} already exists."
                )
            if not destination.local.parent.is_dir():
                raise vim.fault.FileNotFound(
                    file=destination_name, msg=f"The folder of {destination_name} was not found"
                )
            shutil.copyfile(source.local, destination.local)

        return self.service.tasks.start(call, None, copy)

    def DeleteDatastoreFile_Task(self, call: Call, name: str, datacenter: vim.Datacenter | None) -> vim.Task:
        def delete() -> None:
            file = existing(self.service, name)
            if file.local.is_dir():
                shutil.rmtree(file.local)
            else:
                file.local.unlink()

        return self.service.tasks.start(call, None, delete)

    def MakeDirectory(
        self, call: Call, name: str, datacenter: vim.Datacenter | None, create_parents: bool | None
    ) -> None:
        folder = parse(self.service, name)
        try:
            folder.local.mkdir(parents=bool(create_parents))
        except FileExistsError:
            raise vim.fault.FileAlreadyExists(file=name, msg=f"The file {name} already exists.") from None
        except FileNotFoundError:
            raise vim.fault.FileNotFound(file=name, msg=f"The folder of {name} was not found") from None
