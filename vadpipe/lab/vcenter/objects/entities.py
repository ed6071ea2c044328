"""The inventory around the VMs: folders, one datacenter, hosts with their pools, a network and datastores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pyVmomi import VmomiSupport, vim

from ..api.about import about
from ..api.managed import Entity, Managed, vim_property
from ..state.inventory import FIRST_HOST, DatastoreTraits, HostTraits, VmState
from .compatibility import EnvironmentBrowser
from .creation import Creating
from .datastore import DatastoreBrowser
from .leases import Importing

if TYPE_CHECKING:
    from ..service import Service

_MAX_FILE_SIZE = 62 << 40  # VMFS 6


class Folder(Creating):
    vim_type: ClassVar[type[VmomiSupport.ManagedObject]] = vim.Folder

    def __init__(self, service: Service, moref: str, name: str) -> None:
        super().__init__(service, moref)
        self._name = name
        self.entities: list[Entity] = []

    def adopt(self, child: Entity) -> None:
        self.entities.append(child)
        child.parent_entity = self

    def drop(self, child: Managed) -> None:
        self.entities = [entity for entity in self.entities if entity is not child]
        self.service.changes.touch(self.moref)

    @property
    def display_name(self) -> str:
        return self._name

    @property
    def children(self) -> list[Entity]:
        return self.entities

    @vim_property
    def childEntity(self) -> list[VmomiSupport.ManagedObject]:
        return [entity.ref for entity in self.entities]


class VirtualApp(Folder):
    """A vApp: in a folder of VMs by `parentFolder`, in a resource pool by `parent`. Its VMs are in no folder."""

    vim_type = vim.VirtualApp

    @vim_property
    def parent(self) -> vim.ResourcePool:
        return self.service.pool_of(FIRST_HOST)

    @vim_property
    def parentFolder(self) -> VmomiSupport.ManagedObject | None:
        return self.parent_entity.ref if self.parent_entity else None

    @vim_property
    def vm(self) -> list[VmomiSupport.ManagedObject]:
        return [entity.ref for entity in self.entities]


class Datacenter(Folder):
    """Its four folders are its children; the API gives each a property of its own instead of a list."""

    vim_type = vim.Datacenter
    properties = Entity.properties

    @vim_property
    def vmFolder(self) -> vim.Folder:
        return vim.Folder(self.entities[0].moref)

    @vim_property
    def hostFolder(self) -> vim.Folder:
        return vim.Folder(self.entities[1].moref)

    @vim_property
    def datastoreFolder(self) -> vim.Folder:
        return vim.Folder(self.entities[2].moref)

    @vim_property
    def networkFolder(self) -> vim.Folder:
        return vim.Folder(self.entities[3].moref)

    @vim_property
    def datastore(self) -> list[vim.Datastore]:
        return self.service.datastore_refs

    @vim_property
    def network(self) -> list[vim.Network]:
        return [vim.Network(moref) for moref in self.service.inventory.networks]


class ComputeResource(Entity):
    """A host of its own, with its pool."""

    vim_type = vim.ComputeResource

    def __init__(self, service: Service, host: str) -> None:
        number = int(host.removeprefix("host-"))
        super().__init__(service, f"domain-s{number}")
        self.host_system = HostSystem(service, host)
        self.pool = ResourcePool(service, f"resgroup-{number}")
        self.browser = EnvironmentBrowser(service, f"envbrowser-{number}", host)
        for child in self.children:
            child.parent_entity = self

    @property
    def display_name(self) -> str:
        return self.host_system.display_name

    @property
    def children(self) -> list[Entity]:
        return [self.host_system, self.pool]

    @vim_property
    def host(self) -> list[vim.HostSystem]:
        return [vim.HostSystem(self.host_system.moref)]

    @vim_property
    def environmentBrowser(self) -> vim.EnvironmentBrowser:
        return vim.EnvironmentBrowser(self.browser.moref)

    @vim_property
    def network(self) -> list[vim.Network]:
        return [vim.Network(moref) for moref in self.service.inventory.networks]

    @vim_property
    def resourcePool(self) -> vim.ResourcePool:
        return vim.ResourcePool(self.pool.moref)

    @vim_property
    def datastore(self) -> list[vim.Datastore]:
        return self.service.mounted_by(self.host_system.moref)


class HostSystem(Entity):
    vim_type = vim.HostSystem

    @property
    def traits(self) -> HostTraits:
        return self.service.inventory.hosts[self.moref]

    @property
    def display_name(self) -> str:
        return self.traits.name

    @vim_property
    def runtime(self) -> vim.host.RuntimeInfo:
        host = self.traits
        return vim.host.RuntimeInfo(
            connectionState=host.connection, powerState="poweredOn", inMaintenanceMode=host.maintenance
        )

    @vim_property
    def summary(self) -> vim.host.Summary:
        host = self.traits
        product = about("HostAgent", self.service.inventory.instance_uuid)
        product.version, product.build = host.version, host.build
        return vim.host.Summary(
            host=self.ref,
            runtime=self.runtime,
            config=vim.host.Summary.ConfigSummary(
                name=host.name,
                port=host.port,
                sslThumbprint=self.service.guests.host_thumbprint,
                product=product,
                vmotionEnabled=True,
                faultToleranceEnabled=False,
            ),
            quickStats=vim.host.Summary.QuickStats(),
            overallStatus="green",
            rebootRequired=False,
        )

    @vim_property
    def vm(self) -> list[vim.VirtualMachine]:
        return [vim.VirtualMachine(vm.moref) for vm in self.service.vms_on(self.moref)]

    @vim_property
    def datastore(self) -> list[vim.Datastore]:
        return self.service.mounted_by(self.moref)

    @vim_property
    def datastoreBrowser(self) -> vim.host.DatastoreBrowser:
        return vim.host.DatastoreBrowser(self.service.host_browser.moref)


class ResourcePool(Importing):
    vim_type = vim.ResourcePool

    @property
    def display_name(self) -> str:
        return "Resources"

    @vim_property
    def owner(self) -> vim.ComputeResource | None:
        return vim.ComputeResource(self.parent_entity.moref) if self.parent_entity else None

    @vim_property
    def vm(self) -> list[vim.VirtualMachine]:
        assert isinstance(self.parent_entity, ComputeResource)
        return [
            vim.VirtualMachine(vm.moref) for vm in self.service.vms_on(self.parent_entity.host_system.moref)
        ]


class Datastore(Entity):
    """A directory below `datastores`."""

    vim_type = vim.Datastore

    def __init__(self, service: Service, moref: str, name: str) -> None:
        super().__init__(service, moref)
        self._name = name
        self.own_browser = DatastoreBrowser(service, f"datastoreBrowser-{moref}")

    @property
    def display_name(self) -> str:
        return self._name

    @vim_property
    def browser(self) -> vim.host.DatastoreBrowser:
        return vim.host.DatastoreBrowser(self.own_browser.moref)

    @vim_property
    def summary(self) -> vim.Datastore.Summary:
        usage = shutil.disk_usage(self.service.inventory.datastore_root(self._name))
        traits = self._traits
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self._name,
            url=f"ds:///vmfs/volumes/{self._name}/",
            capacity=usage.total,
            freeSpace=usage.free if traits.free is None else traits.free,
            accessible=traits.accessible,
            multipleHostAccess=len(self.service.inventory.hosts_of(self._name)) > 1,
            type=traits.kind,
            maintenanceMode=traits.maintenance,
        )

    @property
    def _traits(self) -> DatastoreTraits:
        return self.service.inventory.datastore_traits.get(self._name, DatastoreTraits())

    @vim_property
    def host(self) -> list[vim.Datastore.HostMount]:
        mount = vim.host.MountInfo(
            path=f"/vmfs/volumes/{self._name}",
            accessMode="readWrite",
            mounted=True,
            accessible=self._traits.accessible,
        )
        hosts = self.service.inventory.hosts_of(self._name)
        return [vim.Datastore.HostMount(key=vim.HostSystem(host), mountInfo=mount) for host in hosts]

    @vim_property
    def info(self) -> vim.Datastore.Info:
        return vim.Datastore.Info(
            name=self._name,
            url=self.summary.url,
            freeSpace=self.summary.freeSpace,
            maxFileSize=_MAX_FILE_SIZE,
            maxMemoryFileSize=_MAX_FILE_SIZE,
        )

    @vim_property
    def vm(self) -> list[vim.VirtualMachine]:
        vms = self.service.inventory.vms.values()
        on_it = (vm for vm in vms if self._name in self.service.inventory.datastores_of(vm))
        return [vim.VirtualMachine(vm.moref) for vm in on_it]


def build(service: Service) -> tuple[Folder, Folder, Folder, Folder, Folder]:
    """The tree down to the empty folders. Returns the root, and those of VMs, hosts, datastores and networks.

    The datacenter's name in the inventory may be a path: what is before its last slash are folders.
    """
    root = at = Folder(service, "group-d1", "Datacenters")
    *folders, name = service.inventory.datacenter.split("/")
    for number, folder_name in enumerate(folders):
        folder = Folder(service, f"group-d{20 + number}", folder_name)
        at.adopt(folder)
        at = folder
    datacenter = Datacenter(service, "datacenter-2", name)
    at.adopt(datacenter)
    vms = Folder(service, "group-v3", "vm")
    hosts = Folder(service, "group-h4", "host")
    datastores = Folder(service, "group-s5", "datastore")
    networks = Folder(service, "group-n6", "network")
    for folder in (vms, hosts, datastores, networks):
        datacenter.adopt(folder)
    return root, vms, hosts, datastores, networks


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

    def path_of(self, folder: Managed) -> str | None:
        """The path of a folder; None for one of another kind."""
        return next((path for path, one in self._by_path.items() if one is folder), None)

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
