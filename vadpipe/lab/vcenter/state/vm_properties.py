"""The state of a VM in the API's words: configuration, files, snapshots, guest. Devices: `vm_devices`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from pyVmomi import VmomiSupport, vim

from . import vm_devices
from .configuration import from_text, show
from .inventory import GuestVolume, Inventory, SnapshotState, VmState

_UNMANAGED = 0x7FFFFFFF  # toolsVersion of open-vm-tools
_MEMORY_MB = 4096
_KEY = vim.encryption.CryptoKeyId(keyId="lab", providerId=vim.encryption.KeyProviderId(id="lab"))
_FULL_NAMES = {
    "windows7Server64Guest": "Microsoft Windows Server 2008 R2 (64-bit)",
    "windows8Server64Guest": "Microsoft Windows Server 2012 (64-bit)",
    "windows9Server64Guest": "Microsoft Windows Server 2016 (64-bit)",
    "windows2019srv_64Guest": "Microsoft Windows Server 2019 (64-bit)",
    "windows2019srvNext_64Guest": "Microsoft Windows Server 2022 (64-bit)",
    "windows2022srvNext_64Guest": "Microsoft Windows Server 2025 (64-bit)",
    "windows9_64Guest": "Microsoft Windows 10 (64-bit)",
    "ubuntu64Guest": "Ubuntu Linux (64-bit)",
}
_DESCRIPTORLESS_SUFFIXES = ("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk")
_EXTENT = re.compile(r"-(flat|delta|sesparse)\.vmdk$")
_FILE_TYPES = {
    ".vmx": "config",
    ".vmdk": "diskDescriptor",
    ".vmsd": "snapshotList",
    ".nvram": "nvram",
    ".log": "log",
    ".zip": "snapshotManifestList",
}


def config(inventory: Inventory, vm: VmState, snapshot: SnapshotState | None = None) -> vim.vm.ConfigInfo:
    """The VM's configuration, with the disks as they run, or as `snapshot` froze them."""
    info = vim.vm.ConfigInfo(
        changeVersion=datetime.now(UTC).isoformat(),
        modified=datetime.now(UTC),
        name=vm.name,
        guestFullName=guest_full_name(vm),
        version=f"vmx-{vm.traits.hardware_version:02}",
        uuid=vm.uuid,
        instanceUuid=vm.instance_uuid,
        template=vm.traits.template,
        guestId=vm.guest_id,
        alternateGuestName="",
        files=vim.vm.FileInfo(
            vmPathName=vm.datastore_path(f"{vm.files_name}.vmx"),
            snapshotDirectory=_directory(vm),
            suspendDirectory=_directory(vm),
            logDirectory=_directory(vm),
        ),
        tools=vim.vm.ToolsConfigInfo(toolsVersion=vm.tools_version),
        flags=vim.vm.FlagInfo(
            diskUuidEnabled=enable_uuid(vm),
            snapshotDisabled=vm.traits.snapshots_disabled,
            snapshotLocked=vm.traits.snapshots_locked,
        ),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
        hardware=vim.vm.VirtualHardware(
            numCPU=2,
            numCoresPerSocket=1,
            memoryMB=_MEMORY_MB,
            device=vm_devices.devices(inventory, vm, snapshot),
        ),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in vm.extra_config.items()],
        changeTrackingEnabled=vm.change_tracking,
        firmware="efi",
        keyId=_KEY if vm.traits.encrypted else None,
    )
    return show(info, vm.settings)


def _directory(vm: VmState) -> str:
    path = vm.datastore_path()
    return path if vm.traits.directory_slash else path.rstrip("/")


def guest_full_name(vm: VmState) -> str:
    return _FULL_NAMES.get(vm.guest_id, vm.guest_id)


def enable_uuid(vm: VmState) -> bool:
    return vm.extra_config.get("disk.EnableUUID", "").upper() == "TRUE"


def capability() -> vim.vm.Capability:
    """Everything that the schema wants to be told of, and a VM of today can do."""
    required = [
        one.name for one in vim.vm.Capability._GetPropertyList() if not one.flags & VmomiSupport.F_OPTIONAL
    ]
    return vim.vm.Capability(**dict.fromkeys(required, True))


def runtime(inventory: Inventory, vm: VmState) -> vim.vm.RuntimeInfo:
    return vim.vm.RuntimeInfo(
        host=vim.HostSystem(vm.host),
        connectionState=vm.traits.connection,
        powerState=vm.power,
        question=_question(vm),
        faultToleranceState="notConfigured",
        toolsInstallerMounted=False,
        numMksConnections=0,
        recordReplayState="inactive",
        onlineStandby=False,
        consolidationNeeded=inventory.consolidation_needed(vm),
    )


def _question(vm: VmState) -> vim.vm.QuestionInfo | None:
    if not vm.traits.question:
        return None
    choices = vim.option.ChoiceOption(choiceInfo=[vim.ElementDescription(key="0", label="OK", summary="OK")])
    return vim.vm.QuestionInfo(id="1", text=vm.traits.question, choice=choices)


def _version_status(vm: VmState) -> str:
    if vm.traits.tools_status:
        return vm.traits.tools_status
    if vm.tools_version == 0:
        return "guestToolsNotInstalled"
    return "guestToolsUnmanaged" if vm.tools_version == _UNMANAGED else "guestToolsCurrent"


def guest(vm: VmState) -> vim.vm.GuestInfo:
    running = vm.tools_running
    status = "toolsNotRunning" if vm.tools_version else "toolsNotInstalled"
    windows = vm.guest_id.startswith("win")
    return vim.vm.GuestInfo(
        toolsStatus="toolsOk" if running else status,
        toolsVersionStatus2=_version_status(vm),
        toolsRunningStatus="guestToolsRunning" if running else "guestToolsNotRunning",
        toolsVersion=str(vm.tools_version),
        guestId=(vm.traits.reported_guest_id or vm.guest_id) if running else None,
        guestFamily=("windowsGuest" if windows else "linuxGuest") if running else None,
        guestFullName=guest_full_name(vm) if running else None,
        hostName=vm.name if running else None,
        guestState="running" if running else "notRunning",
        disk=[_volume(volume) for volume in vm.traits.volumes] if running else [],
    )


def _volume(volume: GuestVolume) -> vim.vm.GuestInfo.DiskInfo:
    return vim.vm.GuestInfo.DiskInfo(
        diskPath=volume.path,
        capacity=volume.capacity,
        freeSpace=volume.free,
        mappings=[vim.vm.GuestInfo.VirtualDiskMapping(key=key) for key in volume.disks or ()],
    )


def summary(inventory: Inventory, vm: VmState) -> vim.vm.Summary:
    full_guest = guest(vm)
    return vim.vm.Summary(
        vm=vim.VirtualMachine(vm.moref),
        runtime=runtime(inventory, vm),
        guest=vim.vm.Summary.GuestSummary(
            guestId=full_guest.guestId,
            guestFullName=full_guest.guestFullName,
            toolsVersionStatus2=full_guest.toolsVersionStatus2,
            toolsRunningStatus=full_guest.toolsRunningStatus,
            hostName=full_guest.hostName,
        ),
        config=vim.vm.Summary.ConfigSummary(
            name=vm.name,
            template=vm.traits.template,
            vmPathName=vm.datastore_path(f"{vm.files_name}.vmx"),
            memorySizeMB=_setting(vm, "hardware.memoryMB", _MEMORY_MB),
            numCpu=_setting(vm, "hardware.numCPU", 2),
            annotation=_setting(vm, "annotation", None),
            numVirtualDisks=len(vm.disks),
            uuid=vm.uuid,
            instanceUuid=vm.instance_uuid,
            guestId=vm.guest_id,
            guestFullName=guest_full_name(vm),
        ),
        quickStats=vim.vm.Summary.QuickStats(guestHeartbeatStatus=heartbeat(vm)),
        overallStatus="green",
    )


def _setting(vm: VmState, path: str, otherwise: object) -> object:
    return from_text(vm.settings[path]) if path in vm.settings else otherwise


def heartbeat(vm: VmState) -> str:
    return vm.heartbeat if vm.tools_running else "gray"


def snapshot_info(vm: VmState) -> vim.vm.SnapshotInfo | None:
    """The snapshot tree: a chain, with writable siblings beside it. None without snapshots."""
    tree: list[vim.vm.SnapshotTree] = []
    siblings: list[vim.vm.SnapshotTree] = []
    for snapshot in reversed(vm.snapshots):
        if snapshot.side == "writable":
            siblings = [_tree_entry(vm, snapshot, [])]
        else:
            tree, siblings = [_tree_entry(vm, snapshot, tree), *siblings], []
    tree += siblings  # of one that was removed
    if not tree:
        return None
    current = [snapshot for snapshot in vm.snapshots if snapshot.side != "writable"] or vm.snapshots
    return vim.vm.SnapshotInfo(currentSnapshot=vim.vm.Snapshot(current[-1].moref), rootSnapshotList=tree)


def _tree_entry(
    vm: VmState, snapshot: SnapshotState, children: list[vim.vm.SnapshotTree]
) -> vim.vm.SnapshotTree:
    return vim.vm.SnapshotTree(
        snapshot=vim.vm.Snapshot(snapshot.moref),
        vm=vim.VirtualMachine(vm.moref),
        name=snapshot.name,
        description=snapshot.description,
        id=snapshot.number,
        createTime=datetime.fromisoformat(snapshot.created),
        state=snapshot.power,
        quiesced=snapshot.quiesced,
        backupManifest=_manifest(vm, snapshot.manifest),
        childSnapshotList=children,
        replaySupported=False,
    )


def _manifest(vm: VmState, name: str | None) -> str | None:
    return vm.datastore_path(name) if name and not vm.traits.relative_manifest else name


def layout(inventory: Inventory, vm: VmState) -> vim.vm.FileLayoutEx:
    return vim.vm.FileLayoutEx(file=list(_files(inventory, vm)), timestamp=datetime.now(UTC))


def _descriptors(inventory: Inventory, vm: VmState) -> set[str]:
    """Names of the VMDKs that the running disks and the snapshots hang on."""
    disks = inventory.disks_of(vm).values()
    frozen = [path for disk in disks for fork in disk.forks for path in disk.frozen_chain(fork.frozen)]
    return {path.name for path in [*frozen, *(path for disk in disks for path in disk.chain)]}


def _files(inventory: Inventory, vm: VmState) -> Iterator[vim.vm.FileLayoutEx.FileInfo]:
    named = _descriptors(inventory, vm)
    own, *elsewhere = inventory.directories_of(vm)
    disks = [path for place in elsewhere for path in sorted(place.glob("*.vmdk"))]
    for key, path in enumerate([*sorted(own.iterdir()), *disks]):
        if path.suffix == ".vmdk" and _EXTENT.sub(".vmdk", path.name) not in named:
            continue  # it lies here, but the VM does not know of it
        kind = "diskExtent" if path.name.endswith(_DESCRIPTORLESS_SUFFIXES) else _FILE_TYPES.get(path.suffix)
        if kind is not None:
            size = path.stat().st_size
            yield vim.vm.FileLayoutEx.FileInfo(
                key=key, name=inventory.datastore_path(path), type=kind, size=size, uniqueSize=size
            )
