"""Folders of VMs below the datacenter's own, made when the first VM is put into them."""

from __future__ import annotations

from collections.abc import Callable

from .entities import Folder, VirtualApp
from .state import VmState

_PREFIX = {Folder: "group-v", VirtualApp: "resgroup-v"}


class VmFolders:
    """By path, as in "Web/Test". top: the folder of all VMs; register: makes a new one known to the service."""

    def __init__(self, top: Folder, register: Callable[[Folder], None]) -> None:
        self._service = top.service
        self._register = register
        self._by_path = {"": top}

    def of(self, vm: VmState) -> Folder:
        """The folder or the vApp of a VM."""
        if vapp := vm.traits.vapp:
            return self.at(f"{vm.folder}/{vapp}".strip("/"), VirtualApp)
        return self.at(vm.folder)

    def at(self, path: str, kind: type[Folder] = Folder) -> Folder:
        """The folder, made with those above it when it is not there; its moref is the same after a restart."""
        if path not in self._by_path:
            above, _, name = path.rpartition("/")
            inventory = self._service.inventory
            if path not in inventory.folders:
                inventory.folders[path] = f"{_PREFIX[kind]}{inventory.number()}"
            made = kind(self._service, inventory.folders[path], name)
            self.at(above).adopt(made)
            self._register(made)
            self._by_path[path] = made
        return self._by_path[path]
