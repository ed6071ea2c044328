"""VirtualMachine and VirtualMachineSnapshot as managed objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vim, vmodl

from ...vmdk_files import LabDiskError
from ..api.managed import Call, Managed, moref_of, vim_property
from ..state import snapshots, vm_properties
from ..state.inventory import SnapshotState, VmState
from ..state.quiescing import QuiesceSpec
from .creation import Mortal
from .custom_fields import Attributed
from .power import Powered
from .reconfiguration import Reconfigurable
from .relocation import Relocatable, disabled_methods

if TYPE_CHECKING:
    from ..service import Service

_TIMEOUT_MIN = range(5, 241)  # documented range of VirtualMachineGuestQuiesceSpec.timeout


class VirtualMachine(Reconfigurable, Powered, Mortal, Attributed, Relocatable):
    vim_type = vim.VirtualMachine

    def __init__(self, service: Service, state: VmState) -> None:
        super().__init__(service, state.moref)
        self.state = state

    @property
    def display_name(self) -> str:
        return self.state.name

    @vim_property
    def config(self) -> vim.vm.ConfigInfo:
        return vm_properties.config(self.service.inventory, self.state)

    @vim_property
    def runtime(self) -> vim.vm.RuntimeInfo:
        return vm_properties.runtime(self.service.inventory, self.state)

    @vim_property
    def capability(self) -> vim.vm.Capability:
        return vm_properties.capability()

    @vim_property
    def guest(self) -> vim.vm.GuestInfo:
        return vm_properties.guest(self.state)

    @vim_property
    def summary(self) -> vim.vm.Summary:
        return vm_properties.summary(self.service.inventory, self.state)

    @vim_property
    def snapshot(self) -> vim.vm.SnapshotInfo | None:
        return self.service.manifests.told(vm_properties.snapshot_info(self.state))

    @vim_property
    def rootSnapshot(self) -> list[vim.vm.Snapshot]:
        tree = vm_properties.snapshot_info(self.state)
        return [entry.snapshot for entry in tree.rootSnapshotList] if tree else []

    @vim_property
    def layoutEx(self) -> vim.vm.FileLayoutEx:
        return vm_properties.layout(self.service.inventory, self.state)

    @vim_property
    def datastore(self) -> list[vim.Datastore]:
        names = self.service.inventory.datastores_of(self.state)
        return [vim.Datastore(self.service.datastore(name).moref) for name in names]

    @vim_property
    def parent(self) -> VmomiSupport.ManagedObject | None:
        return None if self.state.traits.vapp else super().parent

    @vim_property
    def parentVApp(self) -> vim.VirtualApp | None:
        in_vapp = self.state.traits.vapp and self.parent_entity
        return vim.VirtualApp(in_vapp.moref) if in_vapp else None

    @vim_property
    def network(self) -> list[vim.Network]:
        return [vim.Network(moref) for moref in self.service.networks_of(self.state)]

    @vim_property
    def resourcePool(self) -> vim.ResourcePool:
        return self.service.pool_of(self.state.host)

    @vim_property
    def environmentBrowser(self) -> vim.EnvironmentBrowser:
        return vim.EnvironmentBrowser(self.service.browser_of(self.state.host).moref)

    @vim_property
    def guestHeartbeatStatus(self) -> str:
        return vm_properties.heartbeat(self.state)

    @vim_property
    def disabledMethod(self) -> list[str]:
        return disabled_methods(self.service, self.state)

    # Snapshots

    def CreateSnapshotEx_Task(
        self,
        call: Call,
        name: str,
        description: str | None,
        memory: bool,
        quiesce_spec: vim.vm.GuestQuiesceSpec | None,
    ) -> vim.Task:
        spec = _quiesce_spec(quiesce_spec) if quiesce_spec is not None else None
        return self._create_snapshot(call, name, description, memory, spec)

    def CreateSnapshot_Task(
        self, call: Call, name: str, description: str | None, memory: bool, quiesce: bool
    ) -> vim.Task:
        return self._create_snapshot(
            call, name, description, memory, QuiesceSpec(older_call=True) if quiesce else None
        )

    def _create_snapshot(
        self, call: Call, name: str, description: str | None, memory: bool, spec: QuiesceSpec | None
    ) -> vim.Task:
        if not name:
            raise vim.fault.InvalidName(name=name, msg="The name of a snapshot must not be empty.")

        def work() -> vim.vm.Snapshot:
            made = snapshots.create(self.service, self.state, name, description or "", spec, memory)
            return vim.vm.Snapshot(made.moref)

        return self._start(call, work)

    def RemoveAllSnapshots_Task(
        self, call: Call, consolidate: bool | None, spec: vim.vm.SnapshotSelectionSpec | None
    ) -> vim.Task:
        def work() -> None:
            gone = list(self.state.snapshots)
            snapshots.remove(self.service, self.state, gone, consolidate=consolidate is not False)

        return self._start(call, work)

    def ConsolidateVMDisks_Task(self, call: Call) -> vim.Task:
        return self._start(call, lambda: snapshots.remove(self.service, self.state, [], consolidate=True))

    def remove_snapshot(self, call: Call, number: int, *, with_children: bool, consolidate: bool) -> vim.Task:
        def work() -> None:
            numbers = [snapshot.number for snapshot in self.state.snapshots]
            at = numbers.index(number)
            gone = self.state.snapshots[at : None if with_children else at + 1]
            snapshots.remove(self.service, self.state, gone, consolidate=consolidate)

        return self._start(call, work)

    def QueryChangedDiskAreas(
        self,
        call: Call,
        snapshot: vim.vm.Snapshot | None,
        device_key: int,
        start_offset: int,
        change_id: str,
    ) -> vim.VirtualMachine.DiskChangeInfo:
        disk = self.service.inventory.disks_of(self.state).get(device_key)
        if disk is None:
            raise _invalid("deviceKey", f"The virtual machine has no disk with key {device_key}.")
        if not 0 <= start_offset < disk.capacity:
            raise _invalid("startOffset", f"Offset {start_offset} is not inside the disk.")
        state = self._snapshot_state(snapshot)
        frozen = self.service.inventory.fork_of(self.state, state, device_key).frozen
        try:
            areas = disk.changed_areas(change_id, frozen)
        except LabDiskError:
            raise _change_id_fault(self.state.datastore_path(frozen.name), change_id) from None
        return _page_of_areas(areas, start_offset, disk.capacity, self.service.settings.changed_areas_page)

    def _snapshot_state(self, snapshot: vim.vm.Snapshot | None) -> SnapshotState:
        for state in self.state.snapshots:
            if snapshot is not None and state.moref == moref_of(snapshot):
                return state
        raise _invalid("snapshot", "The snapshot is not one of this virtual machine.")


class VirtualMachineSnapshot(Managed):
    vim_type = vim.vm.Snapshot

    def __init__(self, owner: VirtualMachine, state: SnapshotState) -> None:
        super().__init__(owner.service, state.moref)
        self._owner = owner
        self._state = state

    @vim_property
    def config(self) -> vim.vm.ConfigInfo:
        return vm_properties.config(self.service.inventory, self._owner.state, self._state)

    @vim_property
    def childSnapshot(self) -> list[vim.vm.Snapshot]:
        if self._state.side == "writable":
            return []
        chain = [one for one in self._owner.state.snapshots if one.side != "writable"]
        after = chain.index(self._state) + 1
        return [vim.vm.Snapshot(child.moref) for child in chain[after : after + 1]]

    @vim_property
    def vm(self) -> vim.VirtualMachine:
        return vim.VirtualMachine(self._owner.moref)

    def RemoveSnapshot_Task(self, call: Call, remove_children: bool, consolidate: bool | None) -> vim.Task:
        return self._owner.remove_snapshot(
            call, self._state.number, with_children=remove_children, consolidate=consolidate is not False
        )


def _quiesce_spec(asked: vim.vm.GuestQuiesceSpec) -> QuiesceSpec:
    names = {
        "timeout_min": "timeout",
        "context": "vssBackupContext",
        "backup_type": "vssBackupType",
        "bootable_system_state": "vssBootableSystemState",
        "partial_file_support": "vssPartialFileSupport",
    }
    values = {ours: getattr(asked, theirs, None) for ours, theirs in names.items()}
    spec = QuiesceSpec(**{name: value for name, value in values.items() if value is not None})
    if spec.timeout_min not in _TIMEOUT_MIN:
        raise _invalid("quiesceSpec.timeout", f"A timeout of {spec.timeout_min} minutes is not in 5 to 240.")
    if spec.context not in ("ctx_auto", "ctx_backup", "ctx_file_share_backup"):
        raise _invalid("quiesceSpec.vssBackupContext", f"There is no VSS context {spec.context!r}.")
    return spec


def _page_of_areas(
    areas: list[tuple[int, int]], start: int, capacity: int, page: int
) -> vim.VirtualMachine.DiskChangeInfo:
    """The first `page` areas from `start` on; `length` says how far they speak for the disk."""
    ahead = [(max(offset, start), offset + length) for offset, length in areas if offset + length > start]
    end = capacity if len(ahead) <= page else ahead[page - 1][1]
    return vim.VirtualMachine.DiskChangeInfo(
        startOffset=start,
        length=end - start,
        changedArea=[
            vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=first, length=last - first)
            for first, last in ahead[:page]
        ],
    )


def _change_id_fault(file: str, change_id: str) -> vmodl.MethodFault:
    """As vCenter: a change id in the wrong form is an argument's fault, one of other tracking a file's."""
    if change_id.count("/") != 1:
        return _invalid("changeId", "A specified parameter was not correct: changeId")
    return vim.fault.FileFault(file=file, msg=f"Error caused by file {file}")


def _invalid(name: str, message: str) -> vmodl.fault.InvalidArgument:
    return vmodl.fault.InvalidArgument(invalidProperty=name, msg=message)
