"""Devices and disks of a restored VM."""

from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.units import GiB
from tests.vadpipe.vsphere.plan.plan_kit import (
    SITE,
    config,
    device,
    disk,
    nic,
    plan,
    point_disks,
    saved,
    with_devices,
    written,
)
from vadpipe.vsphere.plan.values import BootEntry, PointDisk, Wanted


def _made(plan_):
    return [change.device for change in plan_.spec.deviceChange]


def _of(plan_, kind):
    return [one for one in _made(plan_) if isinstance(one, kind)]


def test_devices_have_negative_keys_and_refer_to_each_other_by_them():
    made = _made(plan())
    keys = [one.key for one in made]
    assert all(key < 0 for key in keys)
    assert len(set(keys)) == len(keys)
    server = {100, 200, 201, 300, 400}
    assert all(one.controllerKey in {None, *keys, *server} for one in made)


def test_controllers_come_in_ascending_order_of_their_numbers_and_keep_their_types():
    scsi = _of(plan(), device.VirtualSCSIController)
    assert [(type(one), one.busNumber) for one in scsi] == [
        (device.ParaVirtualSCSIController, 0),
        (device.VirtualLsiLogicSASController, 1),
    ]
    assert all(one.device == [] and one.scsiCtlrUnitNumber is None for one in scsi)


def test_what_the_server_makes_is_not_made_again():
    kinds = {type(one).__name__.rpartition(".")[2] for one in _made(plan())}
    assert not kinds & {"VirtualIDEController", "VirtualPCIController", "VirtualVideoCard", "VirtualKeyboard"}


def test_a_cdrom_comes_back_as_a_client_device_that_is_not_connected():
    [drive] = _of(plan(), device.VirtualCdrom)
    assert isinstance(drive.backing, device.VirtualCdrom.RemoteAtapiBackingInfo)
    assert drive.connectable.startConnected is False


def test_nics_of_a_copy_are_not_connected_and_get_new_addresses():
    for one in _of(plan(), device.VirtualEthernetCard):
        assert (one.addressType, one.macAddress) == ("generated", None)
        assert one.connectable.startConnected is False
        assert (one.externalId, one.subnetId) == (None, None)
    connected = plan(wanted=Wanted(connect_nics=True))
    assert all(one.connectable.startConnected for one in _of(connected, device.VirtualEthernetCard))


def test_nics_of_a_lost_vm_keep_their_addresses_unless_another_vm_has_them():
    first, second = _of(
        plan(wanted=Wanted(mode="replace"), site=replace(SITE, macs={"00:50:56:aa:bb:01": "other"})),
        device.VirtualEthernetCard,
    )
    assert (first.addressType, first.macAddress) == ("manual", "00:50:56:aa:bb:00")
    assert (second.addressType, second.macAddress) == ("generated", None)
    assert first.connectable.startConnected is True


def test_a_nic_is_connected_by_the_kind_of_its_new_network():
    mapped = Wanted(networks={"VM Network": "dv-web", "dv-web": "segment"})
    first, second = _of(plan(wanted=mapped), device.VirtualEthernetCard)
    assert first.backing.port.portgroupKey == "dvportgroup-9"
    assert first.backing.port.portKey is None
    assert second.backing.opaqueNetworkId == "o-1"
    standard = _of(plan(wanted=Wanted(networks={"dv-web": "VM Network"})), device.VirtualEthernetCard)[1]
    assert (standard.backing.deviceName, standard.backing.network._moId) == ("VM Network", "network-1")


def test_a_nic_that_is_mapped_to_nothing_is_left_out_by_name():
    made = plan(wanted=Wanted(networks={"Network adapter 2": ""}))
    assert len(_of(made, device.VirtualEthernetCard)) == 1
    assert made.problems == ()
    [decision] = [one for one in made.decisions if one.subject == "Network adapter 2"]
    assert decision.outcome == "left out"


def test_disks_have_their_places_and_what_the_point_says_of_them():
    first, second = plan().disks
    assert (first.key, first.controller, first.unit, first.provisioning) == ("scsi0:0", "scsi0", 0, "thin")
    assert (second.key, second.controller, second.unit, second.provisioning) == (
        "scsi1:1",
        "scsi1",
        1,
        "eager",
    )
    assert (first.datastore_moref, first.capacity, first.data) == ("datastore-1", 8 * GiB, 2 * GiB)
    assert first.uuid is None
    assert plan(wanted=Wanted(mode="replace")).disks[0].uuid


def test_the_change_that_adds_a_disk_holds_nothing_of_the_old_one():
    [first, _] = plan(wanted=Wanted(mode="replace", datastores={"scsi0:0": "datastore2"})).disks
    change = first.spec(1000)
    text = written(vim.vm.ConfigSpec(deviceChange=[change]))
    assert "<fileName>[datastore2]</fileName>" in text
    assert "<capacityInBytes>8589934592</capacityInBytes>" in text
    assert "<thinProvisioned>true" in text
    for stripped in (
        "parent",
        "changeId",
        "contentId",
        "diskObjectId",
        "vDiskId",
        "iofilter",
        "000001",
        "keyId",
    ):
        assert stripped not in text


def test_provisioning_can_be_chosen_for_all_disks():
    assert {one.provisioning for one in plan(wanted=Wanted(provisioning="lazy")).disks} == {"lazy"}


def test_a_shared_disk_is_eager_in_place_of_the_lost_one_and_unshared_in_a_copy():
    shared = with_devices(disk(2002, 1000, 2, sharing="sharingMultiWriter"))
    copy, lost = plan(saved(shared)), plan(saved(shared), Wanted(mode="replace"))
    assert (copy.disks[1].sharing, copy.disks[1].provisioning) == ("", "thin")
    assert (lost.disks[1].sharing, lost.disks[1].provisioning) == ("sharingMultiWriter", "eager")


def test_a_raw_device_mapping_comes_back_as_a_file():
    raw = device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[datastore1] web01/rdm.vmdk",
        diskMode="persistent",
        compatibilityMode="virtualMode",
        lunUuid="x",
    )
    one = disk(2003, 1000, 3)
    one.backing = raw
    made = plan(saved(with_devices(one)))
    assert made.problems == ()
    assert [entry.key for entry in made.disks] == ["scsi0:0", "scsi0:3", "scsi1:1"]
    assert any(entry.field == "raw device mapping" for entry in made.decisions)


def test_a_disk_that_the_point_has_no_data_of_is_left_out_or_made_empty():
    vm = saved(with_devices(disk(2001, 1000, 1, diskMode="independent_persistent")))
    of_point = [one for one in point_disks(vm) if one.key != "scsi0:1"]
    made = plan(vm, disks=of_point)
    assert "scsi0:1" not in [one.key for one in made.disks]
    assert "scsi0:1" in made.warnings[0]
    [empty] = [one for one in plan(vm, Wanted(empty_disks=True), disks=of_point).disks if not one.write]
    assert (empty.key, empty.data, empty.mode) == ("scsi0:1", 0, "independent_persistent")


@pytest.mark.parametrize(
    ("key", "why"),
    [("scsi2:0", "scsi2 is not among"), ("scsi0:7", "unit 7"), ("nvme0:0", "nvme0 is not among")],
)
def test_a_disk_that_no_controller_can_hold_is_a_problem(key, why):
    vm = saved()
    unit = int(key.rpartition(":")[2])
    if key.startswith("scsi0"):
        vm = saved(with_devices(disk(2007, 1000, unit)))
    disks = [*point_disks(vm), *([] if key.startswith("scsi0") else [PointDisk(key, GiB, 0)])]
    [problem] = plan(vm, disks=disks).problems
    assert problem.what == "no controller"
    assert why in problem.sentence


def test_unknown_devices_are_left_out_by_name_and_fail_nothing():
    strange = device.VirtualDevice(key=77, deviceInfo=vim.Description(label="Quantum 1", summary=""))
    vm = saved(
        with_devices(
            strange,
            device.VirtualPCIPassthrough(
                key=13000, deviceInfo=vim.Description(label="PCI device 0", summary="")
            ),
            device.VirtualUSB(
                key=7000, deviceInfo=vim.Description(label="USB 1", summary=""), connected=True
            ),
            device.VirtualSerialPort(key=9000, deviceInfo=vim.Description(label="Serial port 1", summary="")),
            device.VirtualFloppy(key=8000, controllerKey=400, unitNumber=0),
            nic(4002, None, device.VirtualSriovEthernetCard),
        ),
        unknown_devices={77: "VirtualQuantum"},
    )
    made = plan(vm)
    assert made.problems == ()
    outcomes = {one.subject: (one.outcome, one.old) for one in made.decisions if not one.field}
    assert outcomes["Quantum 1"] == ("left out", "VirtualQuantum")
    for label in ("PCI device 0", "USB 1", "Serial port 1", "Network adapter 3"):
        assert outcomes[label][0] == "left out"
    assert outcomes["VirtualFloppy 8000"][0] == "changed"
    written(made.spec)


def test_a_device_can_be_left_out_by_its_label():
    made = plan(wanted=Wanted(drop=("cd/dvd*",)))
    assert _of(made, device.VirtualCdrom) == []


def test_a_virtual_tpm_is_a_problem_until_it_is_given_up():
    vm = saved(with_devices(device.VirtualTPM(key=11000)))
    [problem] = plan(vm).problems
    assert problem.what == "virtual TPM"
    made = plan(vm, Wanted(drop_encryption=True))
    assert made.problems == ()
    assert "recovery keys" in made.warnings[0]


def test_the_boot_order_names_disks_by_key_and_nics_by_place():
    assert plan().after.boot_order == (
        BootEntry("disk", "scsi0:0"),
        BootEntry("network", number=1),
        BootEntry("cdrom"),
    )
    without = plan(wanted=Wanted(networks={"Network adapter 1": ""}))
    assert without.after.boot_order[1] == BootEntry("network", number=0)


def test_a_disk_on_the_ide_controller_of_the_server_needs_no_controller():
    vm = saved(with_devices(disk(3000, 200, 0)))
    assert plan(vm).problems == ()
    [one] = [entry for entry in plan(vm).disks if entry.key == "ide0:0"]
    assert (one.controller, one.unit) == ("ide0", 0)


def test_an_nvme_controller_keeps_its_sharing():
    vm = saved(
        with_devices(
            device.VirtualNVMEController(key=31000, busNumber=0, sharedBus="noSharing"), disk(31001, 31000, 0)
        )
    )
    [controller] = _of(plan(vm), device.VirtualNVMEController)
    assert (controller.busNumber, controller.sharedBus) == (0, "noSharing")


def test_storage_policies_are_found_by_name_or_asked_for():
    vm = saved(policy="gold")
    made = plan(vm, site=replace(SITE, storage_policies={"gold": "id-1"}))
    [profile] = made.spec.vmProfile
    assert isinstance(profile, vim.vm.DefinedProfileSpec)
    assert profile.profileId == "id-1"
    assert plan(vm).spec.vmProfile == []
    assert "'gold'" in plan(vm).warnings[0]
    assert plan(saved(config())).warnings == ()


@pytest.mark.parametrize(("mode", "sharing"), [("copy", "noSharing"), ("replace", "physicalSharing")])
def test_a_copy_shares_its_controllers_with_no_other_vm(mode, sharing):
    vm = saved(
        with_devices(
            device.ParaVirtualSCSIController(key=1003, busNumber=3, sharedBus="physicalSharing"),
            disk(2048, 1003, 0),
        )
    )
    [controller] = [
        one for one in _of(plan(vm, Wanted(mode=mode)), device.VirtualSCSIController) if one.busNumber == 3
    ]
    assert controller.sharedBus == sharing
