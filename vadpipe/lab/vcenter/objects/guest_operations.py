"""GuestOperationsManager and what it holds: files of guests and the check of a guest's account."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from ..api.managed import Call, Managed, moref_of, vim_property
from ..state.guests import Transfer

if TYPE_CHECKING:
    from ..service import Service

MANAGER = "guestOperationsManager"
_AUTH, _FILES = "guestOperationsAuthManager", "guestOperationsFileManager"
_PAGE = 50  # what the API gives when it is not told how many


class GuestOperationsManager(Managed):
    vim_type = vim.vm.guest.GuestOperationsManager

    @vim_property
    def authManager(self) -> vim.vm.guest.AuthManager:
        return vim.vm.guest.AuthManager(_AUTH)

    @vim_property
    def fileManager(self) -> vim.vm.guest.FileManager:
        return vim.vm.guest.FileManager(_FILES)


class GuestAuthManager(Managed):
    vim_type = vim.vm.guest.AuthManager

    def ValidateCredentialsInGuest(
        self, call: Call, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication
    ) -> None:
        _admitted(self.service, vm, auth)


class GuestFileManager(Managed):
    vim_type = vim.vm.guest.FileManager

    def ListFilesInGuest(
        self,
        call: Call,
        vm: vim.VirtualMachine,
        auth: vim.vm.guest.GuestAuthentication,
        path: str,
        index: int | None,
        max_results: int | None,
        pattern: str | None,
    ) -> vim.vm.guest.FileManager.ListFileInfo:
        place = self._existing(vm, auth, path)
        listed = [place, place.parent, *sorted(place.iterdir())] if place.is_dir() else [place]
        names = [".", "..", *(one.name for one in listed[2:])] if place.is_dir() else [place.name]
        found = [
            vim.vm.guest.FileManager.FileInfo(
                path=name,
                type="directory" if file.is_dir() else "file",
                size=file.stat().st_size,
                attributes=self._attributes(vm, file),
            )
            for name, file in zip(names, listed, strict=True)
            if re.search(pattern or "", name)
        ]
        first, last = index or 0, (index or 0) + (max_results or _PAGE)
        return vim.vm.guest.FileManager.ListFileInfo(
            files=found[first:last], remaining=max(len(found) - last, 0)
        )

    def InitiateFileTransferFromGuest(
        self, call: Call, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication, path: str
    ) -> vim.vm.guest.FileManager.FileTransferInformation:
        file = self._existing(vm, auth, path)
        url = self.service.guests.begin(Transfer(file, None, None))
        return vim.vm.guest.FileManager.FileTransferInformation(
            attributes=self._attributes(vm, file), size=file.stat().st_size, url=url
        )

    def InitiateFileTransferToGuest(
        self,
        call: Call,
        vm: vim.VirtualMachine,
        auth: vim.vm.guest.GuestAuthentication,
        path: str,
        attributes: vim.vm.guest.FileManager.FileAttributes,
        size: int,
        overwrite: bool,
    ) -> str:
        file = self._place(vm, auth, path)
        if not file.parent.is_dir():
            raise vim.fault.FileNotFound(file=path, msg=f"File {path} was not found")
        if file.exists() and not overwrite:
            raise vim.fault.FileAlreadyExists(file=path, msg=f"File {path} already exists")
        return self.service.guests.begin(Transfer(file, size, getattr(attributes, "permissions", None)))

    def MoveFileInGuest(
        self,
        call: Call,
        vm: vim.VirtualMachine,
        auth: vim.vm.guest.GuestAuthentication,
        source: str,
        destination: str,
        overwrite: bool,
    ) -> None:
        old, new = self._existing(vm, auth, source), self._place(vm, auth, destination)
        if new.exists() and not overwrite:
            raise vim.fault.FileAlreadyExists(file=destination, msg=f"File {destination} already exists")
        old.replace(new)

    def DeleteFileInGuest(
        self, call: Call, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication, path: str
    ) -> None:
        self._existing(vm, auth, path).unlink()

    def _place(self, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication, path: str) -> Path:
        _admitted(self.service, vm, auth)
        place = self.service.guests.locate(moref_of(vm), path)
        if place in self.service.guests.forbidden:
            raise vim.fault.GuestPermissionDenied(msg="Permission to perform this operation was denied.")
        return place

    def _existing(self, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication, path: str) -> Path:
        place = self._place(vm, auth, path)
        if not place.exists():
            raise vim.fault.FileNotFound(file=path, msg=f"File {path} was not found")
        return place

    def _attributes(self, vm: vim.VirtualMachine, file: Path) -> vim.vm.guest.FileManager.FileAttributes:
        kinds = vim.vm.guest.FileManager
        if self.service.inventory.vms[moref_of(vm)].guest_id.startswith("win"):
            return kinds.WindowsFileAttributes(hidden=False, readOnly=False)
        return kinds.PosixFileAttributes(ownerId=0, groupId=0, permissions=file.stat().st_mode & 0o7777)


def guest_managers(service: Service) -> Iterator[Managed]:
    """The objects that the service has to know."""
    yield GuestOperationsManager(service, MANAGER)
    yield GuestAuthManager(service, _AUTH)
    yield GuestFileManager(service, _FILES)


def _admitted(service: Service, vm: vim.VirtualMachine, auth: vim.vm.guest.GuestAuthentication) -> None:
    """Raises GuestOperationsUnavailable, InvalidGuestLogin."""
    if not service.inventory.vms[moref_of(vm)].tools_running:
        raise vim.fault.GuestOperationsUnavailable(msg="The guest operations agent could not be contacted.")
    given = (
        (auth.username, auth.password) if isinstance(auth, vim.vm.guest.NamePasswordAuthentication) else None
    )
    if given != service.guests.account:
        raise vim.fault.InvalidGuestLogin(msg="Failed to authenticate with the guest operating system.")
