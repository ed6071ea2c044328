"""From what the API, the firmware and the file system say to facts."""

import uuid

import pytest
from pyVmomi import vim

from stages import Quiesce, Vddk
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.preflight import gather
from vadpipe.preflight.reach import probe, this_machine
from vadpipe.preflight.report import job_facts, vddk_facts
from vadpipe.preflight.vm import (
    DETAILS,
    MAX_SNAPSHOTS,
    boot_bus,
    passed_through,
    vm_controllers,
    vm_disks,
    vm_facts,
)
from vadpipe.vsphere.api.properties import Row

device = vim.vm.device
disk = device.VirtualDisk


def row(**values):
    return Row("VirtualMachine", "vm-1", {"name": "web01", "config.version": "vmx-19", **values})


def scsi(key=1000, bus=0, **settings):
    return device.ParaVirtualSCSIController(key=key, busNumber=bus, sharedBus="noSharing", **settings)


def virtual_disk(key, controller, unit, backing):
    return disk(key=key, controllerKey=controller, unitNumber=unit, capacityInKB=1024, backing=backing)


def test_facts_tell_disks_and_their_chains():
    base = disk.FlatVer2BackingInfo(fileName="[gold one] web/web.vmdk", diskMode="persistent")
    leaf = disk.FlatVer2BackingInfo(
        fileName="[gold one] web/web-000001.vmdk", diskMode="persistent", parent=base, changeId="52 de/1"
    )
    raw = disk.RawDiskMappingVer1BackingInfo(
        fileName="[gold one] web/raw.vmdk", compatibilityMode="virtualMode", diskMode="persistent"
    )
    nvme = device.VirtualNVMEController(key=31000, busNumber=0)
    devices = [scsi(), nvme, virtual_disk(2000, 1000, 0, leaf), virtual_disk(2001, 31000, 1, raw)]
    first, second = vm_disks(devices)
    assert (first.key, first.bus, first.datastore) == ("scsi0:0", "scsi", "gold one")
    assert (first.files, first.tracked, first.capacity) == (2, True, 1 << 20)
    assert (second.key, second.bus, second.raw) == ("nvme0:1", "nvme", "virtual")
    assert (second.files, second.tracked) == (1, False)
    assert [(one.key, one.attached) for one in vm_controllers(devices)] == [("scsi0", 1), ("nvme0", 1)]


def test_the_boot_bus_is_known_from_the_boot_order_or_a_single_bus():
    backing = disk.FlatVer2BackingInfo(fileName="[a] b", diskMode="persistent")
    nvme = device.VirtualNVMEController(key=31000, busNumber=0)
    disks = vm_disks(
        [scsi(), nvme, virtual_disk(2000, 1000, 0, backing), virtual_disk(2001, 31000, 0, backing)]
    )
    order = [vim.vm.BootOptions.BootableCdromDevice(), vim.vm.BootOptions.BootableDiskDevice(deviceKey=2001)]
    assert boot_bus(disks, order) == "nvme"
    assert boot_bus(disks, []) is None
    assert boot_bus(disks[:1], []) == "scsi"


def test_a_shared_graphics_card_is_not_passed_through():
    shared = device.VirtualPCIPassthrough(
        key=1, backing=device.VirtualPCIPassthrough.VmiopBackingInfo(vgpu="x")
    )
    card = device.VirtualPCIPassthrough(key=2, deviceInfo=vim.Description(label="a card", summary=""))
    network = device.VirtualSriovEthernetCard(key=3)
    assert passed_through([shared, card, network]) == ["a card", "3"]


def test_settings_are_read_one_by_one():
    details = (
        "architecture='X86' bitness='64' buildNumber='20348' distroName='Windows' "
        "kernelVersion='20348.2582' prettyName='Windows Server 2022'"
    )
    found = vm_facts(
        row(
            **{
                MAX_SNAPSHOTS: vim.option.OptionValue(key="snapshot.maxSnapshots", value="0"),
                DETAILS: vim.option.OptionValue(key="guestInfo.detailed.data", value=details),
            }
        ),
        (8, 0),
        {},
    )
    assert found.max_snapshots == 0
    assert found.guest_build == (20348, 2582)
    plain = vm_facts(row(), (8, 0), {})
    assert (plain.max_snapshots, plain.guest_build) == (None, None)
    assert (plain.tools_running, plain.tools_version, plain.volumes) == (None, None, None)


def test_encryption_is_a_matter_of_the_version():
    key = vim.encryption.CryptoKeyId(keyId="k")
    assert vm_facts(row(**{"config.keyId": key}), (6, 7), {}).encrypted is True
    assert vm_facts(row(), (6, 7), {}).encrypted is False
    assert vm_facts(row(), (6, 0), {}).encrypted is False
    assert vm_facts(Row("VirtualMachine", "vm-1", {}), (8, 0), {}).encrypted is None


@pytest.mark.parametrize(
    ("file", "version"),
    [("libvixDiskLib.so.8.0.3", (8, 0, 3)), ("libvixDiskLib.so.7.0.3.2", (7, 0, 3, 2)), (None, (8,))],
)
def test_the_version_of_vddk_is_in_the_name_of_its_file(tmp_path, file, version):
    directory = tmp_path / "lib64"
    directory.mkdir()
    link = directory / f"libvixDiskLib.so.{version[0]}"
    if file:
        (directory / file).touch()
        link.symlink_to(file)
    else:
        link.touch()
    found = vddk_facts(Vddk(tmp_path, transports="hotadd:nbdssl"))
    assert (found.version, found.problem, found.transports) == (version, "", ("hotadd", "nbdssl"))


async def test_the_facts_of_a_job_come_from_its_settings(tmp_path):
    facts = await job_facts(
        Quiesce.application(policy="try", backup_type="full"), Vddk(tmp_path), enable_change_tracking=True
    )
    assert (facts.quiescing, facts.may_degrade, facts.backup_type) == ("application", True, "full")
    assert facts.enable_change_tracking
    assert "no VDDK library" in facts.vddk.problem
    assert (await job_facts(Quiesce.none(), None, enable_change_tracking=False)).vddk is None


async def test_this_machine_is_found_by_its_firmware(tmp_path, lab, vcenter, add_vm):
    moref = add_vm()
    own = uuid.UUID(lab._inventory.vms[moref].uuid)

    async def told(vendor, text=""):
        (tmp_path / "sys_vendor").write_text(vendor)
        (tmp_path / "product_uuid").write_text(text)
        async with vcenter.connect() as session:
            return await this_machine(session, tmp_path)

    assert await told("VMware, Inc.\n", f"{own}\n".upper()) == (True, moref)
    assert await told("VMware, Inc.\n", str(uuid.UUID(bytes=own.bytes_le))) == (True, moref)
    assert await told("VMware, Inc.\n", str(uuid.uuid4())) == (True, None)
    assert await told("VMware, Inc.\n", "") == (True, None)  # only root may read it
    assert await told("QEMU\n") == (True, None)
    assert await told("Dell Inc.\n") == (False, None)
    (tmp_path / "sys_vendor").unlink()
    async with vcenter.connect() as session:
        assert await this_machine(session, tmp_path) == (None, None)


async def test_an_esxi_host_tells_its_licence(tmp_path):
    with LabVcenter(tmp_path / "host", api_type="HostAgent", task_s=0.02) as host:
        directory = host.datastore("datastore1") / "web01"
        moref = host.register_vm(directory, "web01", [], traits=VmTraits())
        settings = settings_of(host)
        host.license("esxBasic")
        async with settings.connect() as session:
            gathered = await gather(session, [moref])
            assert not gathered.server.is_vcenter
            assert list(gathered.server.editions) == ["esxBasic"]
            host.inject("RetrievePropertiesEx", lambda: vim.fault.NoPermission(privilegeId="Global.Licenses"))
            assert (await gather(session, [moref])).server.editions is None


async def test_the_ports_of_an_esxi_host_are_tried_at_the_configured_address(tmp_path):
    with LabVcenter(tmp_path / "host", api_type="HostAgent", task_s=0.02) as host:
        moref = host.register_vm(host.datastore("datastore1") / "web01", "web01", [], traits=VmTraits())
        settings = settings_of(host)
        async with settings.connect() as session:
            gathered = await gather(session, [moref])
            [esxi] = [gathered.hosts[one] for one in gathered.hosts_of(moref)]
            assert esxi.name == "esxi01.lab.local"  # which resolves nowhere
            [probed] = await probe([esxi], ports=(host.port,))
    assert (probed.reached_at, probed.unresolved, probed.closed_ports) == (host.address, "", {host.port: ""})
