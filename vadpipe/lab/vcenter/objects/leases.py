"""ResourcePool.ImportVApp and its lease: the VM is made at once, its disks are sent over HTTPS while it lasts.

A lease without progress for its time ends, and the VM with it; so does one that is aborted, and one whose stream
was bad. A restart of the vCenter forgets leases, and leaves the VMs as they are.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from ...disks import LabDisk
from ..api.managed import Call, Entity, Managed, moref_of, vim_property
from ..api.tasks import system_error
from ..faults.on_demand import LeaseTraits
from ..state import vm_devices
from ..state.inventory import VmState
from .creation import create, destroy
from .reconfiguration import need_privileges

if TYPE_CHECKING:
    from ..service import Service

IMPORT = "ImportVApp"


@dataclass
class Target:
    """A disk that a lease takes data for. received: bytes of the stream; sha1: of them, when all are here."""

    lease: HttpNfcLease
    token: str
    name: str
    key: int
    url_key: str
    import_key: str
    received: int = 0
    sha1: str = ""

    @property
    def path(self) -> str:
        return f"/nfc/{self.token}/{self.name}"

    def fresh_disk(self) -> LabDisk:
        """The disk to be filled, empty also when data came before."""
        service, vm = self.lease.service, self.lease.vm
        assert vm is not None
        with service.changes.lock:
            disks = service.inventory.disks_of(vm)
            old = disks[self.key]
            if old.holds_data:
                disks[self.key] = old.emptied()
            return disks[self.key]


class HttpNfcLease(Managed):
    vim_type = vim.HttpNfcLease

    def __init__(self, service: Service, moref: str, leases: Leases) -> None:
        super().__init__(service, moref)
        self._leases = leases
        self._state = "initializing"
        self._error: vmodl.MethodFault | None = None
        self._percent = 0
        self._progressed = threading.Event()
        self.vm: VmState | None = None
        self.targets: list[Target] = []

    @vim_property
    def state(self) -> str:
        return self._state

    @vim_property
    def error(self) -> vmodl.MethodFault | None:
        return self._error

    @vim_property
    def initializeProgress(self) -> int:
        return 0 if self._state == "initializing" else 100

    @vim_property
    def transferProgress(self) -> int:
        return self._percent

    @vim_property
    def mode(self) -> str:
        return "pushOrGet"

    @vim_property
    def capabilities(self) -> vim.HttpNfcLease.Capabilities:
        return vim.HttpNfcLease.Capabilities(pullModeSupported=False, corsSupported=False)

    @vim_property
    def info(self) -> vim.HttpNfcLease.Info | None:
        if self._state != "ready" or self.vm is None or self.vm.moref not in self.service.inventory.vms:
            return None
        guests, disks = self.service.guests, self.service.inventory.disks_of(self.vm)
        return vim.HttpNfcLease.Info(
            lease=self.ref,
            entity=vim.VirtualMachine(self.vm.moref),
            deviceUrl=[
                vim.HttpNfcLease.DeviceUrl(
                    key=target.url_key,
                    importKey=target.import_key,
                    url=f"https://{guests.door}{target.path}",
                    sslThumbprint=guests.host_thumbprint or "",
                    disk=True,
                    targetId=target.name,
                )
                for target in self.targets
            ],
            totalDiskCapacityInKB=sum(disk.capacity for disk in disks.values()) // 1024,
            leaseTimeout=max(1, int(self._leases.traits.timeout_s)),
        )

    # -- what clients do

    def HttpNfcLeaseProgress(self, call: Call, percent: int) -> None:
        self._need_ready()
        if not 0 <= percent <= 100:
            raise vmodl.fault.InvalidArgument(invalidProperty="percent", msg=f"{percent} is no percentage.")
        self._percent = percent
        self._progressed.set()
        self.service.changes.touch(self.moref)

    def HttpNfcLeaseComplete(self, call: Call) -> None:
        with self.service.changes.lock:
            self._need_ready()
            self._percent = 100
            self._end("done")

    def HttpNfcLeaseAbort(self, call: Call, fault: vmodl.MethodFault | None) -> None:
        with self.service.changes.lock:
            if self._state in ("done", "error"):
                raise _wrong_state()
        self.fail(fault or vmodl.fault.RequestCanceled())

    def HttpNfcLeaseGetManifest(self, call: Call) -> list[vim.HttpNfcLease.ManifestEntry]:
        self._need_ready()
        return [
            vim.HttpNfcLease.ManifestEntry(key=one.url_key, sha1=one.sha1, size=one.received, disk=True)
            for one in self.targets
            if one.sha1
        ]

    def _need_ready(self) -> None:
        if self._state != "ready":
            raise _wrong_state()

    # -- what the server does

    @property
    def active(self) -> bool:
        return self._state in ("initializing", "ready")

    def ready(self, vm: VmState, targets: list[Target]) -> None:
        with self.service.changes.lock:
            self.vm, self.targets, self._state = vm, targets, "ready"
            self.service.changes.touch(self.moref)

    def fail(self, fault: vmodl.MethodFault) -> None:
        """End the lease with a fault, and the VM with it."""
        with self.service.changes.lock:
            if not self.active:
                return
            fault.msg = None  # the schema of a fault inside a value has no place for it
            self._error = fault
            self._end("error")
            vm = self.vm
        if vm is not None and vm.moref in self.service.inventory.vms:
            destroy(self.service, vm)

    def _end(self, state: str) -> None:
        self._state = state
        self._progressed.set()
        self.service.changes.touch(self.moref, *([self.vm.moref] if self.vm else []))

    def watch(self) -> None:
        """Wait until the lease ends, or its time without progress is over."""
        while self.active and not self._leases.stopping:
            if not self._progressed.wait(self._leases.traits.timeout_s):
                self.fail(vim.fault.Timedout())
            self._progressed.clear()

    def wake(self) -> None:
        self._progressed.set()


def _wrong_state() -> vim.fault.InvalidState:
    return vim.fault.InvalidState(msg="The operation is not allowed in the current state of the lease.")


class Leases:
    """The leases of a server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.traits = LeaseTraits()
        self.stopping = False
        self._leases: dict[str, HttpNfcLease] = {}
        self._threads: list[threading.Thread] = []

    def find(self, moref: str) -> HttpNfcLease | None:
        return self._leases.get(moref)

    def target(self, path: str) -> Target | None:
        """The disk that data for this path is for; None where no lease waits for any."""
        return next(
            (
                target
                for lease in list(self._leases.values())
                if lease.state == "ready"
                for target in lease.targets
                if target.path == path
            ),
            None,
        )

    def holds(self, moref: str) -> bool:
        """Whether a lease has not ended yet on that VM."""
        return any(
            lease.active and lease.vm is not None and lease.vm.moref == moref
            for lease in list(self._leases.values())
        )

    def forget(self) -> None:
        """A restarted vCenter knows none of them."""
        forgotten, self._leases = list(self._leases.values()), {}
        for lease in forgotten:
            lease._state = "done"
            lease.wake()

    def stop(self) -> None:
        self.stopping = True
        for lease in list(self._leases.values()):
            lease.wake()
        for thread in self._threads:
            thread.join()

    def start(self, config: vim.vm.ConfigSpec, folder: str, pool: Entity, host: vim.HostSystem | None) -> str:
        """A new lease, whose VM is made in a thread of its own; its moref."""
        moref = f"session[{secrets.token_hex(4)}]{secrets.token_hex(8)}"
        lease = self._leases[moref] = HttpNfcLease(self._service, moref, self)

        def work() -> None:
            try:
                later = self._service.injections.before_task_work(IMPORT)
                vm = create(self._service, folder, config, pool.ref, host)
                lease.ready(vm, self._targets(lease, vm))
                self._service.injections.happen(later)
            except vmodl.MethodFault as fault:
                lease.fail(fault)
            except Exception as error:
                lease.fail(system_error(error))
            lease.watch()

        self._threads = [one for one in self._threads if one.is_alive()]
        thread = threading.Thread(target=work, name=moref)
        self._threads.append(thread)
        thread.start()
        return moref

    def _targets(self, lease: HttpNfcLease, vm: VmState) -> list[Target]:
        devices = vm_devices.kept(self._service.inventory, vm)
        token, targets = secrets.token_hex(16), []
        for number, key in enumerate(self._service.inventory.disks_of(vm)):
            disk = devices[key]
            controller = devices[disk.controllerKey or 0]
            assert isinstance(controller, vim.vm.device.VirtualController)
            kind = type(controller).__name__.rpartition(".")[2]
            place = f"{kind}{controller.busNumber}:{disk.unitNumber}"
            names = f"disk-{number}.vmdk", key, f"/{vm.moref}/{place}", f"/{vm.name}/{place}"
            targets.append(Target(lease, token, *names))
        return targets[::-1] if self.traits.reversed else targets


class Importing(Entity):
    """The method of a resource pool that imports a VM."""

    def ImportVApp(
        self, call: Call, spec: vim.ImportSpec, folder: vim.Folder | None, host: vim.HostSystem | None
    ) -> vim.HttpNfcLease:
        if not isinstance(spec, vim.vm.VmImportSpec):
            raise vmodl.fault.NotSupported(msg="The lab imports virtual machines, and no vApps.")
        self.service.need("VApp.Import", self.ref)
        need_privileges(self.service, self.ref, spec.configSpec, creating=True)
        path = self.service.vm_folder_path(self.service.find(folder, call.session)) if folder else None
        if folder is None or path is None:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="folder", msg="A virtual machine is imported into a folder of them."
            )
        if not spec.configSpec.name:
            raise vim.fault.InvalidName(name="", msg="A virtual machine needs a name.")
        with self.service.changes.lock:
            self.service.need_free_name(spec.configSpec.name, path)
        named = vim.HostSystem(moref_of(host)) if host else None
        return vim.HttpNfcLease(self.service.leases.start(spec.configSpec, path, self, named))
