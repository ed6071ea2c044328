"""Disks, controllers and configuration from the API's devices."""

import json

import pytest
from pyVmomi import vim

from pipeline.units import GiB
from vadpipe.vmdk.vmx import REDACTED
from vadpipe.vsphere.inventory.hardware import (
    boot_bus,
    configuration,
    passed_through,
    vm_controllers,
    vm_disks,
)

device = vim.vm.device


def _controller(
    kind: type[vim.vm.device.VirtualController], key: int, bus: int
) -> vim.vm.device.VirtualDevice:
    return kind(key=key, busNumber=bus)


def _disk(
    key: int,
    controller: int,
    unit: int,
    backing: vim.vm.device.VirtualDevice.BackingInfo,
    label: str = "Hard disk",
) -> vim.vm.device.VirtualDisk:
    return device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        backing=backing,
        capacityInKB=8 << 20,
        deviceInfo=vim.Description(label=label, summary=""),
    )


def _flat(mode: str = "persistent", **fields: object) -> vim.vm.device.VirtualDisk.FlatVer2BackingInfo:
    return device.VirtualDisk.FlatVer2BackingInfo(
        fileName="[ds1] web01/web01-000002.vmdk", diskMode=mode, **fields
    )


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (device.ParaVirtualSCSIController, "scsi1:3"),
        (device.VirtualLsiLogicSASController, "scsi1:3"),
        (device.VirtualAHCIController, "sata1:3"),
        (device.VirtualIDEController, "ide1:3"),
        (device.VirtualNVMEController, "nvme1:3"),
    ],
)
def test_a_disk_is_named_by_its_place_on_the_bus(kind, key):
    (facts,) = vm_disks([_controller(kind, 1001, 1), _disk(2019, 1001, 3, _flat(uuid="u", changeId="c/1"))])
    assert (facts.key, facts.label, facts.device_key) == (key, "Hard disk", 2019)
    assert (facts.path, facts.capacity) == ("[ds1] web01/web01-000002.vmdk", 8 * GiB)
    assert (facts.change_id, facts.uuid, facts.mode, facts.left_out) == ("c/1", "u", "persistent", "")


def test_the_capacity_in_bytes_is_preferred():
    disk = _disk(2000, 1000, 0, _flat())
    disk.capacityInBytes = 8 * GiB + 512
    assert vm_disks([disk])[0].capacity == 8 * GiB + 512


@pytest.mark.parametrize("mode", ["independent_persistent", "independent_nonpersistent"])
def test_an_independent_disk_is_left_out(mode):
    (facts,) = vm_disks([_disk(2000, 1000, 0, _flat(mode))])
    assert mode in facts.left_out


def test_a_raw_device_is_left_out_in_physical_mode_only():
    kind = device.VirtualDisk.RawDiskMappingVer1BackingInfo
    physical = kind(fileName="[ds1] a/rdm.vmdk", compatibilityMode="physicalMode")
    virtual = kind(fileName="[ds1] a/rdm.vmdk", compatibilityMode="virtualMode", changeId="c/2")
    facts = vm_disks([_disk(2001, 1000, 1, physical), _disk(2000, 1000, 0, virtual)])
    assert [bool(one.left_out) for one in facts] == [False, True]
    assert [one.raw for one in facts] == ["virtual", "physical"]
    assert facts[0].change_id == "c/2"


def test_the_configuration_is_json_and_holds_what_a_new_vm_needs():
    nic = device.VirtualVmxnet3(
        key=4000,
        deviceInfo=vim.Description(label="Network adapter 1", summary="VLAN 7"),
        macAddress="00:50:56:00:00:01",
    )
    config = vim.vm.ConfigInfo(
        name="web01",
        uuid="bios",
        instanceUuid="instance",
        guestId="windows2019srv_64Guest",
        guestFullName="Microsoft Windows Server 2019 (64-bit)",
        version="vmx-19",
        firmware="efi",
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=True),
        files=vim.vm.FileInfo(vmPathName="[ds1] web01/web01.vmx"),
        hardware=vim.vm.VirtualHardware(
            numCPU=4,
            numCoresPerSocket=2,
            memoryMB=8192,
            device=[
                _controller(device.ParaVirtualSCSIController, 1000, 0),
                _disk(2000, 1000, 0, _flat()),
                nic,
            ],
        ),
        extraConfig=[
            vim.option.OptionValue(key="disk.EnableUUID", value="TRUE"),
            vim.option.OptionValue(key="sched.swap.derivedName", value="/vmfs/x"),
            vim.option.OptionValue(key="guestinfo.userdata", value="password: hunter2!"),
        ],
    )
    document = json.loads(json.dumps(configuration(config, ["Hard disk 2 is left out."])))
    assert (document["cpus"], document["cores_per_socket"], document["memory"]) == (4, 2, 8 * GiB)
    assert (document["firmware"], document["secure_boot"]) == ("efi", True)
    assert document["controllers"] == [
        {"key": "scsi0", "type": "ParaVirtualSCSIController", "sharing": "noSharing"}
    ]
    assert [disk["key"] for disk in document["disks"]] == ["scsi0:0"]
    assert document["nics"][0]["network"] == "VLAN 7"
    assert document["settings"] == {"disk.EnableUUID": "TRUE", "guestinfo.userdata": REDACTED}
    assert document["left_out"] == ["Hard disk 2 is left out."]


def test_a_disk_knows_its_bus_datastore_and_chain():
    base = device.VirtualDisk.FlatVer2BackingInfo(fileName="[ds1] web01/web01.vmdk", diskMode="persistent")
    backing = _flat(parent=base, changeId="c/1", sharing="sharingMultiWriter")
    (disk,) = vm_disks([_controller(device.VirtualNVMEController, 1001, 1), _disk(2019, 1001, 3, backing)])
    assert (disk.bus, disk.datastore, disk.tracked, disk.multi_writer) == ("nvme", "ds1", True, True)
    assert (disk.files, disk.chain) == (2, ("[ds1] web01/web01-000002.vmdk", "[ds1] web01/web01.vmdk"))
    assert (disk.encrypted, disk.raw) == (False, "")
    (bare,) = vm_disks([_disk(2000, 1000, 0, device.VirtualDisk.FlatVer2BackingInfo(fileName=""))])
    assert (bare.bus, bare.datastore, bare.tracked, bare.files) == ("", "", False, 1)


def test_controllers_count_every_device_on_them_and_passed_through_devices_are_named():
    card = device.VirtualPCIPassthrough(
        key=13000, deviceInfo=vim.Description(label="PCI device 0", summary="")
    )
    devices = [
        _controller(device.ParaVirtualSCSIController, 1000, 0),
        _disk(2000, 1000, 0, _flat()),
        device.VirtualCdrom(key=3000, controllerKey=1000),
        card,
    ]
    (controller,) = vm_controllers(devices)
    assert (controller.key, controller.kind, controller.attached) == ("scsi0", "ParaVirtualSCSIController", 2)
    assert passed_through(devices) == ["PCI device 0"]


def test_the_boot_bus_is_known_from_the_boot_order_or_a_single_bus():
    controllers = [
        _controller(device.ParaVirtualSCSIController, 1000, 0),
        _controller(device.VirtualNVMEController, 31000, 0),
    ]
    disks = vm_disks([*controllers, _disk(2000, 1000, 0, _flat()), _disk(2001, 31000, 0, _flat())])
    order = [vim.vm.BootOptions.BootableCdromDevice(), vim.vm.BootOptions.BootableDiskDevice(deviceKey=2001)]
    assert boot_bus(disks, order) == "nvme"
    assert boot_bus(disks, []) is None
    assert boot_bus(disks[:1], []) == "scsi"


def test_a_shared_graphics_card_is_not_passed_through():
    shared = device.VirtualPCIPassthrough(
        key=1, backing=device.VirtualPCIPassthrough.VmiopBackingInfo(vgpu="x")
    )
    network = device.VirtualSriovEthernetCard(key=3)
    assert passed_through([shared, network]) == ["3"]
