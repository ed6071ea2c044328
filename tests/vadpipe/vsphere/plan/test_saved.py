"""What a point says of its VM: the raw answer, an older point's summary, a .vmx, or nothing."""

import json
from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import IntegrityError
from pipeline.protocols import DiskReceipt, MachineId
from pipeline.units import GiB
from stages import VcenterVm
from tests.vadpipe.vsphere.plan.plan_kit import ORIGIN, SITE, config, plan, written
from vadpipe.repository.format.restore_point import Document, Quiescing, RestorePoint, StoredDisk
from vadpipe.vmdk.vmx import Vmx, parse_vmx
from vadpipe.vsphere.inventory.hardware import configuration
from vadpipe.vsphere.inventory.origin import CONFIG_DOCUMENT
from vadpipe.vsphere.inventory.reduced_config import guest_id
from vadpipe.vsphere.plan.saved import saved_vm
from vadpipe.vsphere.plan.values import PointDisk, Wanted


def point(configuration_, documents=(), disks=("scsi0:0", "scsi1:1")) -> RestorePoint:
    zeros = dict.fromkeys(("read", "zero_read", "zero_unread", "unchanged", "known", "new", "stored"), 0)
    return RestorePoint(
        id="p1",
        machine=MachineId("u", "web01"),
        created="2026-01-02T03:04:05Z",
        previous=None,
        disks=tuple(StoredDisk(DiskReceipt(key, key, 8 * GiB, "00", **zeros), None, "00") for key in disks),
        quiescing=Quiescing("none", None, True, (), {}),
        configuration=configuration_,
        documents={name: Document(1, ()) for name in documents},
    )


def _stored(vm):
    return [PointDisk(one.key, one.capacity, 0) for one in vm.disks]


def test_an_older_point_gives_a_reduced_vm_that_can_be_planned():
    summary = json.loads(json.dumps(configuration(config(), [])))
    vm = saved_vm(point(summary), {})
    assert vm.source == "summary"
    assert (vm.name, vm.config.guestId, vm.config.version) == ("web01", "windows2019srv_64Guest", "vmx-19")
    assert [one.key for one in vm.disks] == ["scsi0:0", "scsi1:1"]
    assert vm.disks[0].datastore == "datastore1"
    assert {one.name for one in vm.networks.values()} == {"x"}
    wanted = Wanted(folder="Web", networks={"x": "VM Network"})
    made = plan(vm, wanted, SITE, _stored(vm))
    assert made.problems == ()
    assert made.spec.firmware == "efi"
    assert made.spec.memoryMB == 8192
    kinds = [type(one.device) for one in made.spec.deviceChange]
    assert vim.vm.device.ParaVirtualSCSIController in kinds
    assert vim.vm.device.VirtualLsiLogicSASController in kinds
    assert vim.vm.device.VirtualVmxnet3 in kinds
    assert "summary" in made.warnings[0]
    written(made.spec)


VMX = """
displayName = "shop"
guestOS = "ubuntu-64"
virtualHW.version = "14"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
memsize = "2048"
numvcpus = "2"
uuid.bios = "56 4d a1 b2 c3 d4 e5 f6-01 23 45 67 89 ab cd ef"
scsi0.present = "TRUE"
scsi0.virtualDev = "lsisas1068"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "a.vmdk"
sata0.present = "TRUE"
sata0:0.present = "TRUE"
sata0:0.fileName = "b.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "e1000e"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "generated"
ethernet0.generatedAddress = "00:0c:29:00:00:01"
"""


def test_a_vm_from_its_files_gives_a_reduced_vm_that_can_be_planned():
    settings = dict(parse_vmx(VMX.encode(), "shop.vmx").facts())
    vm = saved_vm(point({"vmx": settings}, ["vm.nvram", "vm.vmx"], ("scsi0:1", "sata0:0")), {})
    assert (vm.source, vm.name, vm.nvram) == ("vmx", "shop", True)
    assert (vm.config.guestId, vm.config.version) == ("ubuntu64Guest", "vmx-14")
    assert [(one.key, one.capacity) for one in vm.disks] == [("scsi0:1", 8 * GiB), ("sata0:0", 8 * GiB)]
    made = plan(vm, Wanted(folder="Web", datastore="datastore1"), SITE, _stored(vm))
    assert made.problems == ()
    kinds = {type(one.device).__name__.rpartition(".")[2] for one in made.spec.deviceChange}
    assert kinds == {"VirtualLsiLogicSASController", "VirtualAHCIController", "VirtualE1000e"}
    assert made.spec.bootOptions.efiSecureBootEnabled is True
    written(made.spec)


def test_the_text_of_a_vmx_is_parsed_to_the_same_settings():
    vmx = Vmx({"displayname": 'a "b" | c', "guestinfo.x": "secret"})
    again = parse_vmx(vmx.text().encode(), "x")
    assert again.settings == {**vmx.facts(), ".encoding": "UTF-8"}
    assert "secret" not in vmx.text().replace("may be a secret", "")


@pytest.mark.parametrize(
    ("guest_os", "identifier"),
    [
        ("windows2019srv-64", "windows2019srv_64Guest"),
        ("winNetStandard", "winNetStandardGuest"),
        ("other3xlinux-64", "other3xLinux64Guest"),
        ("nothing-known", ""),
    ],
)
def test_a_guest_is_found_by_its_spelling_in_a_vmx(guest_os, identifier):
    assert guest_id(guest_os) == identifier


def test_disks_without_a_vm_are_no_vm():
    vm = saved_vm(point({"exports": {}}, disks=("disk0",)), {})
    assert (vm.source, vm.disks) == ("nothing", [])


def test_a_stored_answer_that_is_none_is_an_error_with_the_point():
    with pytest.raises(IntegrityError, match=r"vm-config\.xml in point p1 of web01"):
        saved_vm(point({}, [CONFIG_DOCUMENT]), {CONFIG_DOCUMENT: b"<broken"})


async def test_the_labs_own_vm_makes_the_way_from_capture_to_plan(lab, vcenter, reader, journal, add_vm):
    add_vm(disks=2, change_tracking=True)
    machine = VcenterVm(vcenter, "web01", reader=reader, journal=journal, preflight=None)
    async with machine.capture() as capture:
        made_from = json.loads(json.dumps(dict(capture.configuration)))
        documents = dict(capture.documents)
    vm = saved_vm(point(made_from, documents, ("scsi0:0", "scsi0:1")), documents)
    assert vm.source == "configuration"
    assert vm.unknown == ()
    assert (vm.folder, vm.server) == ("/Datacenter/vm", lab.address)
    folders = (replace(SITE.folders[0], path="/Datacenter/vm"),)
    site = replace(SITE, folders=folders)
    networks = {one.name: "VM Network" for one in vm.networks.values()}
    made = plan(vm, Wanted(name="web02", networks=networks), site, _stored(vm))
    assert made.problems == ()
    assert [one.key for one in made.disks] == ["scsi0:0", "scsi0:1"]
    assert made.after.change_tracking is True
    written(made.spec)
    assert ORIGIN.keys() <= {*made_from["origin"], "cluster"}
