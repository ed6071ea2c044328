"""Files of a guest, through VMware Tools: list, read, replace and remove. Needs an account of the guest itself.

A file is replaced in two steps, so that a reader sees the old or the new one, and a broken connection leaves no
half file: the new bytes are written beside it, then moved over it. The move is one changing call. When its
answer is lost, the error says so, and repeating the whole replacement is right in either case.

The bytes travel in one HTTPS request to an address that the server gives. The address names vCenter ('*' stands
for the server that was called) or, in most cases, the ESXi host of the VM. It contains a token that grants
access to the file, so it is in no error and in no log. The session's cookie and the guest's password are not
sent there.

Source: vSphere API reference, GuestFileManager and FileTransferInformation. Overwriting does not keep the
attributes of a file, so the new one gets the old one's owner and permissions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from pyVmomi import vim
from pyVmomi.VmomiSupport import long

from pipeline.errors import SourceError
from pipeline.secrets import Secret

from ..api.faults import ConnectionLost, NotOffered, VsphereError
from ..api.http import HTTPS_PORT, Endpoint, HttpClient
from ..api.session import VcenterSession
from ..inventory.hosts import host_of
from ..inventory.lookup import Vm

T = TypeVar("T")

READ_LIMIT = 1 << 20  # bytes; configuration files and scripts have some kilobytes
_ANSWER_LIMIT = 1 << 16  # bytes that the server may answer to an upload
_NEW = ".vadpipe-new"
_PAGE = 200  # files per answer of ListFilesInGuest
_ATTEMPTS = 2  # a broken transfer is repeated once, with a new address

_MEANINGS = {
    "FileNotFound": "there is no such file",
    "FileAlreadyExists": "there is such a file already",
    "CannotAccessFile": "it cannot be accessed",
    "FileFault": "it cannot be used",
}


@dataclass(frozen=True)
class GuestAccount:
    """An account of the guest's operating system. The password is read at each call and never shown."""

    user: str
    password: Secret

    def authentication(self) -> vim.vm.guest.NamePasswordAuthentication:
        """For one call. It contains the password, so nothing keeps it. Raises ConfigError."""
        return vim.vm.guest.NamePasswordAuthentication(
            interactiveSession=False, username=self.user, password=self.password.reveal()
        )


class GuestFileError(VsphereError):
    """A file of a guest does not exist, or cannot be used. Facts: `path`, `fault`, `vm`."""

    @property
    def is_missing(self) -> bool:
        return self.facts.get("fault") == "FileNotFound"


@dataclass(frozen=True)
class GuestFile:
    """A file's bytes, and the attributes that a new version of it must get."""

    content: bytes
    attributes: vim.vm.guest.FileManager.FileAttributes


@dataclass(frozen=True)
class _Address:
    """Where a file's bytes are. `target` contains the token."""

    endpoint: Endpoint
    target: str = field(repr=False)

    def get(self, call: str) -> bytes:
        return self._request("GET", call, READ_LIMIT)

    def put(self, call: str, content: bytes) -> None:
        self._request("PUT", call, _ANSWER_LIMIT, content)

    def _request(self, method: str, call: str, limit: int, body: bytes | None = None) -> bytes:
        with HttpClient(self.endpoint) as http:
            response = http.request(method, self.target, call=call, limit=limit, body=body)
        return response.require_success(
            remedy="Run again: an address for a file works once. If it fails again, see the events of the VM."
        )


@dataclass(frozen=True)
class GuestFiles:
    """The files of one running VM. Paths are the guest's own, with its separators.

    Transfers need TCP 443 of the VM's host to be open from this machine.

    Raises:
        GuestRefused: By every method: the guest refuses the account or the operation.
        GuestFileError: By every method: the file is missing or cannot be used.
        CertificateRefused: By `read` and `replace`: the host cannot be trusted. Nothing was sent.
        VsphereError: By every method: another failure of a call.
    """

    session: VcenterSession
    vm: Vm
    account: GuestAccount
    windows: bool

    async def names(self, directory: str) -> list[str]:
        """The names of the files in a directory; for a file its own name; [] when there is no such path."""
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
            # Servers return a name or a whole path.
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
        """The file; None when there is none."""
        try:
            return await self._again_if_broken(lambda: self._read(path))
        except GuestFileError as exc:
            if exc.is_missing:
                return None
            raise

    async def replace(self, path: str, content: bytes, like: GuestFile | None = None) -> None:
        """Write the file with the owner and permissions of `like`; create it when it does not exist."""
        attributes = like.attributes if like is not None else self._no_attributes()
        await self._again_if_broken(lambda: self._upload(path + _NEW, content, attributes))
        await self._call(
            "MoveFileInGuest",
            path,
            lambda files, vm, auth: files.MoveFile(vm, auth, path + _NEW, path, True),
            True,
        )

    async def remove(self, path: str) -> None:
        """Remove the file if it exists."""
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
        transfer = await self._call(
            "InitiateFileTransferFromGuest",
            path,
            lambda files, vm, auth: files.InitiateFileTransferFromGuest(vm, auth, path),
        )
        address = await self._address(transfer.url)
        call = f"GET {path}"
        content = await self.session.call(call, lambda: address.get(call), repeat=False)
        if len(content) != transfer.size:
            raise ConnectionLost(
                f"{address.endpoint.host} sent {len(content)} of {transfer.size} bytes of {path}.",
                remedy="Run again.",
                path=path,
            )
        return GuestFile(content, transfer.attributes)

    async def _upload(
        self, path: str, content: bytes, attributes: vim.vm.guest.FileManager.FileAttributes
    ) -> None:
        url = await self._call(
            "InitiateFileTransferToGuest",
            path,
            lambda files, vm, auth: files.InitiateFileTransferToGuest(
                vm, auth, path, attributes, long(len(content)), True
            ),
            True,
        )
        address, call = await self._address(url), f"PUT {path}"
        await self.session.call(call, lambda: address.put(call, content), changes=True, repeat=False)

    async def _address(self, url: str) -> _Address:
        return await self.session.call("RetrieveProperties", partial(_address_of, self.session, self.vm, url))

    async def _again_if_broken(self, work: Callable[[], Awaitable[T]]) -> T:
        """An address for a file works once, so a broken transfer begins again with a new one."""
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
                raise NotOffered(f"{self.session.server} does not give access to files of guests.", call=name)
            return work(files, self.vm.reference(self.session), self.account.authentication())

        try:
            return await self.session.call(name, perform, changes=changes)
        except SourceError as exc:
            meaning = _MEANINGS.get(str(exc.facts.get("fault")))
            if meaning is None:
                raise
            raise GuestFileError(
                f"{path} in the guest of {self.vm.name}: {meaning} ({name}).",
                remedy="Check the path, and the rights of the account in the guest.",
                **{**exc.facts, "path": path, "vm": self.vm.name},
            ) from None

    def _no_attributes(self) -> vim.vm.guest.FileManager.FileAttributes:
        kinds = vim.vm.guest.FileManager
        return kinds.WindowsFileAttributes() if self.windows else kinds.PosixFileAttributes()


def _address_of(session: VcenterSession, vm: Vm, url: str) -> _Address:
    """Where `url` leads to, and whose certificate is accepted there. Blocks."""
    parts, own = urlsplit(url), session.endpoint
    if parts.scheme != "https" or parts.hostname is None:
        raise VsphereError(
            f"{session.server} names an address without TLS for a file of {vm.name}.",
            remedy="Nothing is read or written there. Ask the administrator of this server.",
            server=session.server,
            vm=vm.name,
        )
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if parts.hostname == "*":
        return _Address(replace(own, port=parts.port or own.port), target)
    port = parts.port or HTTPS_PORT
    if (parts.hostname, port) == (own.host.lower(), own.port) or not session.is_vcenter:
        return _Address(replace(own, host=parts.hostname, port=port), target)
    host = replace(host_of(session, vm), name=parts.hostname, port=port)
    return _Address(host.endpoint(session), target)
