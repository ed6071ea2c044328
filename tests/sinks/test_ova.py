"""OVA packages: tar, sha256sum, xmllint and qemu-img are the witnesses."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import trio

from pipeline import BufferPool, ConfigError, MiB, SinkError
from sinks.ova import Ova
from sinks.restoring import Contents, restore
from sinks.targets import parse_target
from tests.sinks.target_kit import files, restored, tool
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes
from vadpipe.cli.output import error_lines
from vadpipe.ovf import DiskImage, PackedFile, descriptor, hardware
from vadpipe.repository import open_repository

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
VMW = "{http://www.vmware.com/schema/ovf}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"

CONFIGURATION = {
    "guest_id": "ubuntu64Guest",
    "guest_name": "Ubuntu Linux (64-bit)",
    "hardware_version": "vmx-19",
    "firmware": "efi",
    "secure_boot": True,
    "memory": 4096 * MiB,
    "cpus": 4,
    "cores_per_socket": 2,
    "annotation": "web & <db>\x07",
    "controllers": [
        {"key": "scsi0", "type": "ParaVirtualSCSIController", "sharing": "noSharing"},
        {"key": "nvme0", "type": "VirtualNVMEController", "sharing": "noSharing"},
    ],
    "disks": [{"key": "scsi0:0", "uuid": "6000c29e-0102-0304-0506-0708090a0b0c"}],
    "nics": [
        {"type": "VirtualVmxnet3", "network": "VM Network"},
        {"type": "VirtualE1000e", "network": "dmz"},
    ],
}


@pytest.fixture
def disks(repository):
    disks = []
    for seed, (key, size) in enumerate((("scsi0:0", 9 * MiB + 512), ("nvme0:3", 40 * MiB))):
        content = random_bytes(seed, size)
        content[MiB : 8 * MiB] = 0
        disks.append(MemoryDisk(content, key=key, pool=BufferPool()))
    trio.run(lambda: backup(repository, disks, name="web 01", configuration=CONFIGURATION))
    return disks


@pytest.mark.slow
def test_the_package_holds_the_disks_and_proves_them(repository, disks, tmp_path):
    path = tmp_path / "out" / "web.ova"
    receipt = restored(repository, parse_target(f"ova:{path}?level=1"))
    assert [line for failed in receipt.failures for line in error_lines(failed)] == []
    assert list(files(tmp_path / "out")) == ["web.ova"]
    listed = subprocess.run(
        [tool("tar"), "tf", path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed[:2] == ["web%2001.ovf", "web%2001.mf"]
    assert sorted(listed[2:]) == ["web%2001-disk1.vmdk", "web%2001-disk2.vmdk"]

    place = tmp_path / "unpacked"
    place.mkdir()
    subprocess.run([tool("tar"), "xf", path, "-C", place], check=True)
    for line in (place / "web%2001.mf").read_text().splitlines():
        name, digest = line.removeprefix("SHA256(").split(")= ")
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest
        listed.remove(name)
    assert listed == ["web%2001.mf"]
    subprocess.run([tool("xmllint"), "--noout", place / "web%2001.ovf"], check=True)
    for number, disk in enumerate(disks, 1):
        raw = tmp_path / "raw"
        image = place / f"web%2001-disk{number}.vmdk"
        subprocess.run([tool("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", image, raw], check=True)
        assert np.array_equal(np.fromfile(raw, np.uint8), disk.content)

    root = ET.parse(place / "web%2001.ovf").getroot()
    for file in root.iter(f"{OVF}File"):
        assert int(file.attrib[f"{OVF}size"]) == (place / file.attrib[f"{OVF}href"]).stat().st_size
    order = [file.attrib[f"{OVF}href"] for file in root.iter(f"{OVF}File")]
    with tarfile.open(path) as package:
        assert order == [member for member in package.getnames() if member.endswith(".vmdk")]
    assert [disk.attrib[f"{OVF}capacity"] for disk in root.iter(f"{OVF}Disk")] == [
        str(disk.capacity) for disk in disks
    ]


def items(root, kind):
    found = [item for item in root.iter(f"{OVF}Item") if item.findtext(f"{RASD}ResourceType") == str(kind)]
    return [{child.tag.partition("}")[2]: child.text for child in item} for item in found]


def described(configuration, *keys, nvram=""):
    disks = [DiskImage(key, f"disk{number}.vmdk", MiB) for number, key in enumerate(keys)]
    packed = [PackedFile(disk.file, 1) for disk in disks] + ([PackedFile(nvram, 1)] if nvram else [])
    return ET.fromstring(descriptor(hardware("web", configuration), disks, packed, nvram))


def test_the_descriptor_says_what_the_point_knows():
    root = described(CONFIGURATION, "scsi0:0", "nvme0:3", nvram="web.nvram")
    assert items(root, 3)[0]["VirtualQuantity"] == "4"
    assert items(root, 3)[0]["CoresPerSocket"] == "2"
    assert items(root, 4)[0]["VirtualQuantity"] == "4096"
    [scsi], [nvme] = items(root, 6), items(root, 20)
    assert (scsi["ResourceSubType"], nvme["ResourceSubType"]) == ("VirtualSCSI", "vmware.nvme.controller")
    first, second = items(root, 17)
    assert (first["Parent"], first["AddressOnParent"]) == (scsi["InstanceID"], "0")
    assert (second["Parent"], second["AddressOnParent"]) == (nvme["InstanceID"], "3")
    assert [(nic["ResourceSubType"], nic["Connection"]) for nic in items(root, 10)] == [
        ("VmxNet3", "VM Network"),
        ("E1000e", "dmz"),
    ]
    instances = [item.findtext(f"{RASD}InstanceID") for item in root.iter(f"{OVF}Item")]
    assert len(set(instances)) == len(instances)
    settings = {each.attrib[f"{VMW}key"]: each.attrib[f"{VMW}value"] for each in root.iter(f"{VMW}Config")}
    assert settings == {"firmware": "efi", "bootOptions.efiSecureBootEnabled": "true"}
    [extra] = root.iter(f"{VMW}ExtraConfig")
    assert extra.attrib[f"{VMW}value"] == "ovf:/file/file3"
    [system] = root.iter(f"{OVF}OperatingSystemSection")
    assert (system.attrib[f"{OVF}id"], system.attrib[f"{VMW}osType"]) == ("101", "ubuntu64Guest")
    assert root.findtext(f".//{OVF}Annotation") == "web & <db>"


def test_a_local_vm_is_described_by_its_vmx():
    vmx = {
        "memsize": "2048",
        "numvcpus": "2",
        "firmware": "efi",
        "virtualhw.version": "13",
        "guestos": "ubuntu-64",
        "scsi0.present": "TRUE",
        "scsi0.virtualdev": "lsisas1068",
        "ethernet0.present": "TRUE",
        "ethernet0.virtualdev": "vmxnet3",
        "ethernet0.networkname": "lan",
    }
    root = described({"vmx": vmx, "disks": {}}, "scsi0:0")
    assert items(root, 4)[0]["VirtualQuantity"] == "2048"
    assert items(root, 6)[0]["ResourceSubType"] == "lsilogicsas"
    assert (items(root, 10)[0]["ResourceSubType"], items(root, 10)[0]["Connection"]) == ("VmxNet3", "lan")


def test_a_controller_without_disks_of_another_kind_is_left_out():
    root = described({"controllers": [{"key": "usb0", "type": "VirtualUSBController"}]}, "scsi0:0")
    assert [one["ElementName"] for one in items(root, 6)] == ["Controller scsi0"]


def test_letters_that_xml_does_not_have_are_left_out_everywhere():
    nics = [{"type": "VirtualE1000", "network": "lan\x07"}]
    root = described({"guest_id": "other\x00Guest", "firmware": "efi\x01", "nics": nics}, "scsi0:0")
    [network] = root.iter(f"{OVF}Network")
    assert network.attrib[f"{OVF}name"] == items(root, 10)[0]["Connection"] == "lan"


def test_disks_without_a_place_get_free_units_and_never_unit_7():
    keys = ["web", "scsi0:1", *(f"other {number}" for number in range(8))]
    root = described({}, *keys)
    assert [disk["AddressOnParent"] for disk in items(root, 17)] == [
        "0", "1", "2", "3", "4", "5", "6", "8", "9", "10",
    ]  # fmt: skip


def test_what_the_point_does_not_say_is_assumed_and_told():
    assert hardware("web", {}).assumed == [
        "The point does not say the memory: 1 GiB is assumed.",
        "The point does not say the number of processors: 1 is assumed.",
    ]
    assert hardware("web", CONFIGURATION).assumed == []


@pytest.mark.slow
def test_a_package_is_replaced_by_force_only(repository, disks, tmp_path):
    path = tmp_path / "web.ova"
    path.write_bytes(b"dear")
    with pytest.raises(SinkError, match=r"web.ova exists already"):
        restored(repository, Ova(path))
    assert path.read_bytes() == b"dear"
    receipt = restored(repository, Ova(path), force=True)
    assert len(receipt.disks) == 2
    assert tarfile.is_tarfile(path)
    assert receipt.remarks == ["An OVA holds no MAC addresses: the import makes new ones."]
    with pytest.raises(SinkError, match="is a directory"):
        restored(repository, Ova(tmp_path), force=True)


@pytest.mark.slow
def test_a_package_that_lacks_a_disk_does_not_appear(repository, disks, tmp_path):
    for pack in repository.path.rglob("*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"gone")
    receipt = restored(repository, Ova(tmp_path / "out" / "web.ova"))
    assert receipt.failures
    assert files(tmp_path / "out") == {}


async def test_two_restores_into_one_file_never_mix(repository, tmp_path):
    disk = MemoryDisk(random_bytes(1, 4 * MiB), pool=BufferPool())
    await backup(repository, [disk])
    path = tmp_path / "web.ova"
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        async with Ova(path).open(Contents(reader, point, point.disks)) as opened:
            await restore(reader, point, Ova(path))
            first = await trio.Path(path).read_bytes()
            async with opened.pipeline(point.disks[0], BufferPool()) as pipeline:
                await pipeline.run()
            with pytest.raises(SinkError, match="exists already"):
                await opened.finish()
    assert await trio.Path(path).read_bytes() == first
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.slow
async def test_a_cancelled_package_leaves_nothing(repository, tmp_path):
    await backup(repository, [MemoryDisk(random_bytes(1, 24 * MiB), pool=BufferPool())])
    async with open_repository(repository.path) as reader:
        point = reader.points[-1]
        with trio.CancelScope() as scope:
            target = Ova(tmp_path / "out" / "web.ova")
            async with (
                target.open(Contents(reader, point, point.disks)) as opened,
                opened.pipeline(point.disks[0], BufferPool()) as pipeline,
            ):
                await pipeline.measure(lambda report: scope.cancel())
    assert scope.cancelled_caught
    assert files(tmp_path / "out") == {}


def test_an_rbd_image_is_refused_with_the_way_that_works():
    with pytest.raises(ConfigError, match=r"not written directly.*rbd map.*device:/dev/rbd0"):
        parse_target("rbd:pool/image")
