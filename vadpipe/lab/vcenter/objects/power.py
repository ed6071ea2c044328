"""Power: what a VM needs to be powered on, and what happens then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from ..api.managed import Call, Entity
from ..state import configuration, hardware, snapshots
from ..state.inventory import HostTraits, VmState
from ..state.outside import note
from . import vm_disks

if TYPE_CHECKING:
    from ..service import Service

_NVRAM_SIZES = {"bios": 8684, "efi": 270840}  # as ESXi 7 and 8 write them
_NVRAM_MAGIC = b"MRVN"


class Powered(Entity):
    """The methods of a VM that concern its power."""

    state: VmState

    def PowerOnVM_Task(self, call: Call, host: vim.HostSystem | None) -> vim.Task:
        return self._start_power(call, "PowerOn", "poweredOn")

    def PowerOffVM_Task(self, call: Call) -> vim.Task:
        return self._start_power(call, "PowerOff", "poweredOff")

    def _start_power(self, call: Call, privilege: str, wanted: str) -> vim.Task:
        self.service.need(f"VirtualMachine.Interact.{privilege}", self.ref)
        return self.service.tasks.start(call, self, lambda: self._power(wanted), exclusive=True)

    def ShutdownGuest(self, call: Call) -> None:
        self._need_tools()
        self._power("poweredOff")

    def RebootGuest(self, call: Call) -> None:
        self._need_tools()

    def _need_tools(self) -> None:
        if self.state.power != "poweredOn":
            raise self._power_fault("poweredOff")
        if not self.state.tools_running:
            raise vim.fault.ToolsUnavailable(
                msg="Cannot complete operation because VMware Tools is not running in this virtual machine."
            )

    def _power(self, wanted: str) -> None:
        with self.service.changes.lock:
            self.service.need_vm(self.state)
            if self.state.power == wanted:
                raise self._power_fault(wanted)
            if wanted == "poweredOn":
                check_power_on(self.service, self.state)
            self.state.power = wanted
            note(self.service.inventory.root, f"{wanted} {self.moref}")
            if wanted == "poweredOn":
                snapshots.apply_change_tracking(self.service, self.state)
            if self.state.created:
                _turn(self.service, self.state)
            self.service.vm_changed(self.state)

    def _power_fault(self, wanted: str) -> vim.fault.InvalidPowerState:
        return vim.fault.InvalidPowerState(
            requestedState=wanted,
            existingState=self.state.power,
            msg="The attempted operation cannot be performed in the current state "
            f"({'Powered on' if self.state.power == 'poweredOn' else 'Powered off'}).",
        )


def need_host(host: HostTraits) -> None:
    """Raises the fault of the API for a host that takes no new work."""
    if host.connection != "connected":
        raise vmodl.fault.HostNotConnected(msg=f"The host {host.name} is not connected.")
    if host.maintenance:
        raise vim.fault.InvalidState(msg=f"The host {host.name} is in maintenance mode.")


def check_power_on(service: Service, vm: VmState) -> None:
    """Raises the fault of the API for what keeps the VM from being powered on."""
    host = service.inventory.hosts[vm.host]
    need_host(host)
    if vm.traits.template:
        raise vim.fault.InvalidState(msg="A template cannot be powered on.")
    if vm.traits.hardware_version > configuration.newest_version(host.version):
        raise vim.fault.VirtualHardwareVersionNotSupported(
            hostName=host.name,
            host=vim.HostSystem(vm.host),
            msg=f"Hardware version {vm.traits.hardware_version} is not supported by the host {host.name}.",
        )
    for disk in service.inventory.disks_of(vm).values():
        for path in disk.chain:
            if not path.is_file():
                name = service.inventory.datastore_path(path)
                raise vim.fault.FileNotFound(file=name, msg=f"File {name} was not found")
        vm_disks.need_unlocked(service, disk)
    _check_memory(service, vm)


def _check_memory(service: Service, vm: VmState) -> None:
    """Raises InsufficientMemoryResourcesFault where the host has less memory than the VM must have."""
    host, settings = service.inventory.hosts[vm.host], vm.settings
    allocation = (
        configuration.from_text(settings["memoryAllocation"]) if "memoryAllocation" in settings else None
    )
    reserved = int(getattr(allocation, "reservation", None) or 0)
    if reserved > host.memory_mb:
        raise vim.fault.InsufficientMemoryResourcesFault(
            unreserved=host.memory_mb << 20,
            requested=reserved << 20,
            msg="The host does not have sufficient memory resources to satisfy the reservation.",
        )


def _turn(service: Service, vm: VmState) -> None:
    """What a created VM does besides when its power changes."""
    on = vm.power == "poweredOn"
    for key, text in (vm.devices or {}).items():
        device = configuration.from_text(text)
        if isinstance(device, hardware.Device) and device.connectable is not None:
            device.connectable.connected = bool(on and device.connectable.startConnected)
            device.connectable.status = "ok" if on else "untried"
            assert vm.devices is not None
            vm.devices[key] = configuration.to_text(device)
    vm.heartbeat = "gray"
    if on:
        firmware = str(configuration.from_text(vm.settings["firmware"]))
        nvram = service.inventory.directory_of(vm) / f"{vm.files_name}.nvram"
        if not nvram.exists():
            nvram.write_bytes(_NVRAM_MAGIC.ljust(_NVRAM_SIZES[firmware], b"\0"))
        service.boots.start(vm)
