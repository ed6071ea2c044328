"""Files that the texts of a VM name: they lie in the VM's directory, whatever the texts and links say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.extents import Extents
from stages import LocalVm

SIZE = 4096
FLAT = "vm-flat.vmdk"


def descriptor(*extents: str, parent: str = "") -> str:
    lines = ["# Disk DescriptorFile", "version=1", "CID=12345678"]
    lines += ["parentCID=12345678", f'parentFileNameHint="{parent}"'] if parent else ["parentCID=ffffffff"]
    return "\n".join([*lines, 'createType="custom"', *extents, "#DDB", 'ddb.adapterType = "ide"', ""])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "vm"
    directory.mkdir()
    (directory / FLAT).write_bytes(b"A" * SIZE)
    return directory


async def content(vm: LocalVm) -> bytes:
    async with vm.capture() as capture:
        (disk,) = capture.disks
        buffer = await disk.pool.acquire()
        await disk.read(buffer, 0, Extents.whole(disk.capacity))
        image = bytes(buffer.array[: disk.capacity])
        buffer.release()
    return image


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "shadow").write_bytes(b"S" * SIZE)
    return place / "shadow"


@pytest.mark.parametrize(
    "named", ["{secret}", "../elsewhere/shadow", "link.img", "sub/../../elsewhere/shadow"]
)
@pytest.mark.parametrize("with_vmx", [True, False])
async def test_an_extent_outside_of_the_directory_is_refused(directory, secret, named, with_vmx):
    (directory / "link.img").symlink_to(secret)
    (directory / "sub").mkdir()
    (directory / "vm.vmdk").write_text(descriptor(f'RW 8 FLAT "{named.format(secret=secret)}" 0'))
    (directory / FLAT).unlink()
    if with_vmx:
        (directory / "vm.vmx").write_text('scsi0:0.present = "TRUE"\nscsi0:0.fileName = "vm.vmdk"\n')
    with pytest.raises(SourceError, match=r"outside of .*outside=\[") as caught:
        await content(LocalVm(directory))
    assert "SSSS" not in str(caught.value)
    assert await content(LocalVm(directory, outside=[secret.parent])) == b"S" * SIZE


@pytest.mark.parametrize("kind", ["parent", "vmx", "disk"])
async def test_a_parent_a_vmx_and_a_disk_outside_of_the_directory_are_refused(directory, secret, kind):
    (secret.parent / "base-flat.vmdk").write_bytes(b"B" * SIZE)
    (secret.parent / "base.vmdk").write_text(descriptor('RW 8 FLAT "base-flat.vmdk" 0'))
    (secret.parent / "far.vmx").write_text("")
    (directory / FLAT).unlink()
    if kind == "parent":
        (directory / "vm.vmdk").write_text(descriptor("RW 8 ZERO", parent="../elsewhere/base.vmdk"))
    elif kind == "vmx":
        (directory / "vm.vmx").symlink_to(secret.parent / "far.vmx")
    else:
        (directory / "vm.vmx").write_text(
            'ide0:0.present = "TRUE"\nide0:0.fileName = "../elsewhere/base.vmdk"\n'
        )
    with pytest.raises(SourceError, match="outside of"):
        await content(LocalVm(directory))
    if kind != "vmx":
        image = await content(LocalVm(directory, outside=[secret.parent]))
        assert image == (b"\0" if kind == "parent" else b"B") * SIZE


async def test_a_linked_directory_of_a_vm_is_read(directory, tmp_path):
    (directory / "vm.vmdk").write_text(descriptor(f'RW 8 FLAT "{FLAT}" 0'))
    (tmp_path / "link").symlink_to(directory)
    assert await content(LocalVm(tmp_path / "link")) == b"A" * SIZE


async def test_a_file_whose_name_differs_in_case_only_is_found(directory):
    (directory / "vm.vmdk").write_text(descriptor('RW 8 FLAT "VM-Flat.VMDK" 0'))
    assert await content(LocalVm(directory)) == b"A" * SIZE
    (directory / "Vm-flat.vmdk").write_bytes(b"C" * SIZE)
    with pytest.raises(SourceError, match=r"'VM-Flat\.VMDK', is missing"):
        await content(LocalVm(directory))


async def test_a_zero_extent_may_carry_a_name(directory):
    (directory / "vm.vmdk").write_text(descriptor(f'RW 8 FLAT "{FLAT}" 0', 'RW 8 ZERO "/dev/sdc2" 0'))
    assert await content(LocalVm(directory)) == b"A" * SIZE + b"\0" * SIZE


@pytest.mark.parametrize("first", ["# Disk Descriptor File", "# createvmdk.sh", "#\n\n# a disk"])
async def test_a_descriptor_with_any_first_comment_is_read(directory, first):
    text = descriptor(f'RW 8 FLAT "{FLAT}" 0').replace("# Disk DescriptorFile", first)
    (directory / "vm.vmdk").write_text(text)
    assert await content(LocalVm(directory)) == b"A" * SIZE


async def test_an_ascii_descriptor_of_korean_windows_is_read(directory):
    text = descriptor(f'RW 8 FLAT "{FLAT}" 0').replace("CID=", 'encoding="windows-949-2000"\nCID=', 1)
    (directory / "vm.vmdk").write_text(text)
    assert os.fspath(directory) in repr(LocalVm(directory))
    assert await content(LocalVm(directory)) == b"A" * SIZE
