"""Saved VMs as servers of 7.0 to 9.x describe them, and a target, for tests of restore plans."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyVmomi import SoapAdapter, VmomiSupport, vim

from pipeline.units import GiB
from vadpipe.vsphere.plan.plan import plan_restore
from vadpipe.vsphere.plan.saved import SavedVm, saved_from
from vadpipe.vsphere.plan.values import Net, Place, PointDisk, RestorePlan, Site, Store, Wanted

device = vim.vm.device
Device = vim.vm.device.VirtualDevice

ORIGIN: Mapping[str, object] = {
    "api_version": "8.0.3.0",
    "server": "vc01.example.com",
    "folder": "/DC/vm/Web",
    "pool": "/DC/host/Cluster/Resources",
    "host": "esxi01.example.com",
    "cluster": "Cluster",
    "disks": {"scsi0:0": {"datastore": "datastore1", "provisioning": "thin", "allocated": GiB}},
    "networks": {
        "4000": {"name": "VM Network", "kind": "standard", "ids": {}},
        "4001": {
            "name": "dv-web",
            "kind": "distributed",
            "ids": {"switch_uuid": "50 0a", "portgroup_key": "dvportgroup-9"},
        },
    },
    "tags": [{"category": "env", "name": "prod"}, {"category": "env", "name": "gone"}],
    "attributes": {"owner": "web team", "unknown": "x"},
}

SITE = Site(
    server="vc02.example.com",
    api_version="8.0.3.0",
    hardware_versions=("vmx-13", "vmx-19", "vmx-21"),
    guest_ids=frozenset({"otherGuest64", "windows2019srv_64Guest", "ubuntu64Guest"}),
    folders=(
        Place("group-v3", "vm", "/DC/vm", "DC"),
        Place("group-v4", "Web", "/DC/vm/Web", "DC", taken=frozenset({"db01"})),
    ),
    pools=(
        Place(
            "resgroup-8",
            "Resources",
            "/DC/host/Cluster/Resources",
            "DC",
            "domain-c7",
            root=True,
            owner_name="Cluster",
        ),
    ),
    hosts=(
        Place("host-8", "esxi01.example.com", "/DC/host/Cluster/esxi01.example.com", "DC", "domain-c7"),
        Place("host-9", "esxi02.example.com", "/DC/host/Cluster/esxi02.example.com", "DC", "domain-c7"),
    ),
    datastores=(
        Store("datastore-1", "datastore1", "DC", "VMFS", 500 * GiB, hosts=frozenset({"host-8", "host-9"})),
        Store("datastore-2", "datastore2", "DC", "NFS", 500 * GiB, hosts=frozenset({"host-8"})),
    ),
    networks=(
        Net("network-1", "VM Network", "standard", {}, "DC"),
        Net(
            "dvportgroup-9",
            "dv-web",
            "distributed",
            {"switch_uuid": "50 0a", "portgroup_key": "dvportgroup-9"},
            "DC",
        ),
        Net("network-o", "segment", "opaque", {"opaque_id": "o-1", "opaque_type": "nsx.LogicalSwitch"}, "DC"),
    ),
    attributes=frozenset({"owner"}),
    tags=frozenset({("env", "prod")}),
)


def disk(key: int, controller: int, unit: int, *, size: int = 8 * GiB, **backing: object) -> Device:
    fields: dict[str, object] = {
        "fileName": f"[datastore1] web01/web01_{unit}-000001.vmdk",
        "datastore": vim.Datastore("datastore-55"),
        "diskMode": "persistent",
        "thinProvisioned": True,
        "uuid": f"6000C29{key}-0000-0000-0000-000000000000",
        "changeId": "52 de/4",
        "contentId": "abc",
        "parent": device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[datastore1] web01/web01.vmdk", diskMode="persistent", thinProvisioned=True
        ),
    }
    return device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=size >> 10,
        capacityInBytes=size,
        deviceInfo=vim.Description(label=f"Hard disk {key - 1999}", summary=""),
        backing=device.VirtualDisk.FlatVer2BackingInfo(**{**fields, **backing}),
        diskObjectId="1-2000",
        vDiskId=vim.vslm.ID(id="v"),
        iofilter=["some"],
    )


def nic(
    key: int, backing: Device.BackingInfo, kind: type[Device] = device.VirtualVmxnet3, **fields: object
) -> Device:
    return kind(
        key=key,
        controllerKey=100,
        unitNumber=key - 3993,
        deviceInfo=vim.Description(label=f"Network adapter {key - 3999}", summary="x"),
        backing=backing,
        connectable=device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=True
        ),
        addressType="assigned",
        macAddress=f"00:50:56:aa:bb:{key - 4000:02x}",
        externalId="nsx-port",
        subnetId="subnet",
        **fields,
    )


def server_made() -> list[Device]:
    return [
        device.VirtualIDEController(key=200, busNumber=0),
        device.VirtualIDEController(key=201, busNumber=1),
        device.VirtualPS2Controller(key=300, busNumber=0),
        device.VirtualPCIController(key=100, busNumber=0),
        device.VirtualSIOController(key=400, busNumber=0),
        device.VirtualKeyboard(key=600, controllerKey=300, unitNumber=0),
        device.VirtualPointingDevice(key=700, controllerKey=300, unitNumber=1),
        device.VirtualVideoCard(key=500, controllerKey=100, unitNumber=0, videoRamSizeInKB=4096),
        device.VirtualVMCIDevice(key=12000, controllerKey=100, unitNumber=17, id=5),
    ]


def devices() -> list[Device]:
    """What a usual VM of 8.0 has, in the order in which servers list it."""
    card = device.VirtualEthernetCard
    port = vim.dvs.PortConnection(
        switchUuid="50 0a", portgroupKey="dvportgroup-9", portKey="12", connectionCookie=77
    )
    return [
        *server_made(),
        device.VirtualLsiLogicSASController(
            key=1001,
            busNumber=1,
            sharedBus="noSharing",
            hotAddRemove=True,
            scsiCtlrUnitNumber=7,
            controllerKey=100,
        ),
        device.ParaVirtualSCSIController(
            key=1000,
            busNumber=0,
            sharedBus="noSharing",
            hotAddRemove=True,
            scsiCtlrUnitNumber=7,
            device=[2000],
        ),
        device.VirtualAHCIController(key=15000, busNumber=0, device=[16000]),
        device.VirtualUSBXHCIController(key=14000, busNumber=0, autoConnectDevices=False),
        disk(2000, 1000, 0),
        disk(2017, 1001, 1, thinProvisioned=False, parent=None, eagerlyScrub=True),
        device.VirtualCdrom(
            key=16000,
            controllerKey=15000,
            unitNumber=0,
            deviceInfo=vim.Description(label="CD/DVD drive 1", summary="ISO"),
            backing=device.VirtualCdrom.IsoBackingInfo(
                fileName="[iso] win.iso", datastore=vim.Datastore("datastore-9")
            ),
            connectable=device.VirtualDevice.ConnectInfo(
                startConnected=True, allowGuestControl=True, connected=True
            ),
        ),
        nic(4000, card.NetworkBackingInfo(deviceName="VM Network", network=vim.Network("network-77"))),
        nic(4001, card.DistributedVirtualPortBackingInfo(port=port)),
    ]


SETTINGS = {
    "nvram": "web01.nvram",
    "disk.EnableUUID": "TRUE",
    "svga.present": "TRUE",
    "hpet0.present": "TRUE",
    "pciBridge0.present": "TRUE",
    "scsi0.pciSlotNumber": "160",
    "migrate.hostLog": "./web01.hlog",
    "sched.swap.derivedName": "/vmfs/volumes/1/web01/web01.vswp",
    "ctkEnabled": "TRUE",
    "scsi0:0.ctkEnabled": "TRUE",
    "scsi0:0.redo": "",
    "vmware.tools.internalVersion": "12352",
    "RemoteDisplay.vnc.password": "hunter2",
    "encryption.bundle": "vmware:key/list/(pair/(fqid/secret",
    "guestinfo.userdata": "password: hunter2",
    "my.own": "1",
    "numa.autosize.cookie": "20042",
}


def config(**fields: object) -> vim.vm.ConfigInfo:
    """A ConfigInfo as 8.0 gives it."""
    allocation = vim.ResourceAllocationInfo(
        reservation=4096,
        expandableReservation=False,
        limit=-1,
        shares=vim.SharesInfo(shares=10, level="normal"),
    )
    usual: dict[str, object] = {
        "changeVersion": "2026-01-01T00:00:00Z",
        "name": "web01",
        "guestFullName": "Microsoft Windows Server 2019 (64-bit)",
        "version": "vmx-19",
        "uuid": "420a1111-2222-3333-4444-555566667777",
        "instanceUuid": "500a1111-2222-3333-4444-555566667777",
        "npivTemporaryDisabled": True,
        "locationId": "564d",
        "template": False,
        "guestId": "windows2019srv_64Guest",
        "alternateGuestName": "",
        "annotation": "The shop.",
        "files": vim.vm.FileInfo(
            vmPathName="[datastore1] web01/web01.vmx",
            snapshotDirectory="[datastore1] web01/",
            logDirectory="x",
        ),
        "tools": vim.vm.ToolsConfigInfo(
            toolsVersion=12352, toolsUpgradePolicy="manual", syncTimeWithHost=False
        ),
        "flags": vim.vm.FlagInfo(
            enableLogging=True, diskUuidEnabled=True, recordReplayEnabled=False, vbsEnabled=True
        ),
        "defaultPowerOps": vim.vm.DefaultPowerOpInfo(powerOffType="soft", standbyAction="checkpoint"),
        "hardware": vim.vm.VirtualHardware(
            numCPU=4, numCoresPerSocket=2, memoryMB=8192, device=devices(), virtualSMCPresent=False
        ),
        "cpuAllocation": allocation,
        "memoryAllocation": allocation,
        "latencySensitivity": vim.LatencySensitivity(level="normal", sensitivity=0),
        "cpuHotAddEnabled": True,
        "hotPlugMemoryLimit": 65536,
        "cpuAffinity": vim.vm.AffinityInfo(affinitySet=[1, 2]),
        "cpuFeatureMask": [vim.host.CpuIdInfo(level=1, ecx="----:----:----:----:----:----:--h-:----")],
        "extraConfig": [vim.option.OptionValue(key=key, value=value) for key, value in SETTINGS.items()],
        "datastoreUrl": [vim.vm.ConfigInfo.DatastoreUrlPair(name="datastore1", url="/vmfs/volumes/1")],
        "swapPlacement": "inherit",
        "bootOptions": vim.vm.BootOptions(
            bootDelay=0,
            enterBIOSSetup=False,
            efiSecureBootEnabled=True,
            bootOrder=[
                vim.vm.BootOptions.BootableDiskDevice(deviceKey=2000),
                vim.vm.BootOptions.BootableEthernetDevice(deviceKey=4001),
                vim.vm.BootOptions.BootableCdromDevice(),
            ],
        ),
        "vAppConfig": vim.vApp.VmConfigInfo(
            product=[vim.vApp.ProductInfo(key=0, name="shop")],
            property=[vim.vApp.PropertyInfo(key=0, id="ip", type="string", value="10.0.0.1")],
            installBootRequired=False,
            installBootStopDelay=0,
            eula=["yes"],
            ipAssignment=vim.vApp.IPAssignmentInfo(ipAllocationPolicy="fixedPolicy"),
        ),
        "changeTrackingEnabled": True,
        "firmware": "efi",
        "managedBy": vim.ext.ManagedByInfo(extensionKey="com.x", type="y"),
        "memoryReservationLockedToMax": False,
        "nestedHVEnabled": False,
        "vmxConfigChecksum": b"1",
        "migrateEncryption": "opportunistic",
        "numaInfo": vim.vm.VirtualNumaInfo(
            coresPerNumaNode=2, autoCoresPerNumaNode=False, vnumaOnCpuHotaddExposed=False
        ),
        "vmOpNotificationTimeout": 5,
        "deviceSwap": vim.vm.VirtualDeviceSwap(),
    }
    return vim.vm.ConfigInfo(**{**usual, **fields})


def with_devices(*more: Device, without: Sequence[int] = (), **fields: object) -> vim.vm.ConfigInfo:
    made = config(**fields)
    made.hardware.device = [one for one in made.hardware.device if one.key not in without] + list(more)
    return made


def saved(made: vim.vm.ConfigInfo | None = None, **changes: object) -> SavedVm:
    usual = replace(
        saved_from("web01", made or config(), origin=ORIGIN),
        created="2026-01-02T03:04:05Z",
        point="p1",
        nvram=True,
    )
    return replace(usual, **changes)


def point_disks(vm: SavedVm) -> list[PointDisk]:
    return [PointDisk(one.key, one.capacity, one.capacity // 4) for one in vm.disks]


def plan(
    vm: SavedVm | None = None,
    wanted: Wanted | None = None,
    site: Site = SITE,
    disks: Sequence[PointDisk] | None = None,
) -> RestorePlan:
    vm = vm or saved()
    return plan_restore(vm, wanted or Wanted(), site, point_disks(vm) if disks is None else disks)


def written(spec: vim.vm.ConfigSpec, api_version: str = "8.0.3.0") -> str:
    """The specification as it would be sent; raises where the schema does not allow it."""
    version = VmomiSupport.versionMap[f"vim25/{api_version}"]
    kind = VmomiSupport.Object(name="config", type=vim.vm.ConfigSpec, version=version, flags=0)
    text = SoapAdapter.SerializeToStr(spec, kind, version, {**SoapAdapter.SOAP_NSMAP})
    return text if isinstance(text, str) else text.decode()
