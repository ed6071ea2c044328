"""Files of a guest, through VMware Tools: listed, read, replaced, removed. Needs an account of the guest itself.

A file is replaced in two steps, so that what reads it sees the old or the new one and a broken connection leaves no
half file: the new bytes go beside it, then it is moved over. The move is one call that changes something: when its
answer is lost, the error says so, and doing it all once more is right in either case.

Source: vSphere API reference, GuestFileManager; attributes of a file that is overwritten are not kept by it, so the
old one's owner and permissions are given to the new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pyVmomi import vim

from pipeline.errors import SourceError
from pipeline.secrets import Secret

from ..api.faults import ConnectionLost, NotOffered, VsphereError
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from .transfer import door_of, download, upload

T = TypeVar("T")

READ_LIMIT = 1 << 20  # configuration files and scripts are some kilobytes
_NEW = ".vadpipe-new"
_PAGE = 200  # files per answer of ListFilesInGuest
_ATTEMPTS = 2  # a broken transfer is begun anew once

_MEANINGS = {
    "FileNotFound": "there is no such file",
    "FileAlreadyExists": "there is such a file already",
    "CannotAccessFile": "it cannot be accessed",
    "FileFault": "it cannot be used",
}


@dataclass(frozen=True)
class GuestAccount:
    """An account of the guest's operating system. The password is read at each call and shown never."""

    user: str
    password: Secret

    def authentication(self) -> vim.vm.guest.NamePasswordAuthentication:
        """For one call; it holds the password, so it is kept nowhere. Raises ConfigError."""
        return vim.vm.guest.NamePasswordAuthentication(
            interactiveSession=False, username=self.user, password=self.password.reveal()
        )


class GuestFileError(VsphereError):
    """A file of a guest is not there, or cannot be used so. Facts: `path`, `fault`, `vm`."""

    @property
    def is_missing(self) -> bool:
        return self.facts.get("fault") == "FileNotFound"


@dataclass(frozen=True)
class GuestFile:
    """A file's bytes, and the attributes that a new version of it has to get."""

    content: bytes
    attributes: vim.vm.guest.FileManager.FileAttributes


@dataclass(frozen=True)
class GuestFiles:
    """The files of one running VM. Paths are the guest's own, with its separators.

    Every method raises GuestRefused, GuestFileError, CertificateRefused, VsphereError. For transfers TCP 443 of the
    VM's host has to be open from here.
    """

    session: VcenterSession
    vm: Vm
    account: GuestAccount
    windows: bool

    async def names(self, directory: str) -> list[str]:
        """The names of the files, not directories, in a directory, or that of the one file; none: no such path."""
        names: list[str] = []
        seen = 0
        while True:
            try:
                page = await self._page(directory, seen)
            except GuestFileError as exc:
                if exc.is_missing:
                    return []
                raise
            seen += len(page.files)
            # Servers give a name or a whole path.
            names += [
                file.path.replace("\\", "/").rpartition("/")[2]
                if self.windows
                else file.path.rpartition("/")[2]
                for file in page.files
                if file.type != "directory"
            ]
            if not page.remaining or not page.files:
                return names

    async def read(self, path: str) -> GuestFile | None:
        """The file; None: there is none."""
        try:
            return await self._again_if_broken(lambda: self._read(path))
        except GuestFileError as exc:
            if exc.is_missing:
                return None
            raise

    async def replace(self, path: str, content: bytes, like: GuestFile | None = None) -> None:
        """Give the file this content, made when it is not there, with the owner and permissions of `like`."""
        attributes = like.attributes if like is not None else self._no_attributes()
        await self._again_if_broken(lambda: self._upload(path + _NEW, content, attributes))
        await self._call(
            "MoveFileInGuest",
            path,
            lambda files, vm, auth: files.MoveFile(vm, auth, path + _NEW, path, True),
            True,
        )

    async def remove(self, path: str) -> None:
        """Remove the file; it is no error that it is not there."""
        try:
            await self._call(
                "DeleteFileInGuest", path, lambda files, vm, auth: files.DeleteFile(vm, auth, path), True
            )
        except GuestFileError as exc:
            if not exc.is_missing:
                raise

    async def _page(self, directory: str, index: int) -> vim.vm.guest.FileManager.ListFileInfo:
        return await self._call(
            "ListFilesInGuest",
            directory,
            lambda files, vm, auth: files.ListFiles(vm, auth, directory, index, _PAGE, None),
        )

    async def _read(self, path: str) -> GuestFile:
        told = await self._call(
            "InitiateFileTransferFromGuest",
            path,
            lambda files, vm, auth: files.InitiateFileTransferFromGuest(vm, auth, path),
        )
        door = await self.session.call("RetrieveProperties", lambda: door_of(self.session, self.vm, told.url))
        content = await self.session.call(
            f"GET {path}", lambda: download(door, READ_LIMIT, path), repeat=False
        )
        if len(content) != told.size:
            raise ConnectionLost(
                f"{door.host} gave {len(content)} bytes of {path} in {self.vm.name}, which has {told.size}.",
                remedy="Run again.",
                path=path,
            )
        return GuestFile(content, told.attributes)

    async def _upload(
        self, path: str, content: bytes, attributes: vim.vm.guest.FileManager.FileAttributes
    ) -> None:
        url = await self._call(
            "InitiateFileTransferToGuest",
            path,
            lambda files, vm, auth: files.InitiateFileTransferToGuest(
                vm, auth, path, attributes, len(content), True
            ),
            True,
        )
        door = await self.session.call("RetrieveProperties", lambda: door_of(self.session, self.vm, url))
        await self.session.call(
            f"PUT {path}", lambda: upload(door, content, path), changes=True, repeat=False
        )

    async def _again_if_broken(self, work: Callable[[], Awaitable[T]]) -> T:
        """An address for a file is good once, so a broken transfer begins with a new one."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await work()
            except ConnectionLost:
                continue
        return await work()

    async def _call(
        self,
        name: str,
        path: str,
        work: Callable[
            [vim.vm.guest.FileManager, vim.VirtualMachine, vim.vm.guest.NamePasswordAuthentication], T
        ],
        changes: bool = False,
    ) -> T:
        def perform() -> T:
            manager = self.session.content.guestOperationsManager
            files = manager.fileManager if manager is not None else None
            if files is None:
                raise NotOffered(f"{self.session.server} has no access to files of guests.", call=name)
            return work(files, self.vm.reference(self.session), self.account.authentication())

        try:
            return await self.session.call(name, perform, changes=changes)
        except SourceError as exc:
            meaning = _MEANINGS.get(str(exc.facts.get("fault")))
            if meaning is None:
                raise
            raise GuestFileError(
                f"{path} in the guest of {self.vm.name}: {meaning} ({name}).",
                remedy="See the path, and what the account may do in the guest.",
                **{**exc.facts, "path": path, "vm": self.vm.name},
            ) from None

    def _no_attributes(self) -> vim.vm.guest.FileManager.FileAttributes:
        kinds = vim.vm.guest.FileManager
        return kinds.WindowsFileAttributes() if self.windows else kinds.PosixFileAttributes()
