"""The VM around the disks: its .vmx, the leaves of a directory, the manifest, memory."""

import json
import os
import re
import subprocess
import sys
import time
import uuid

import pytest

from pipeline.errors import ChangeTrackingInvalid, ConfigError, SourceError
from pipeline.protocols import Machine
from pipeline.units import MiB, TiB
from stages import LocalVm
from vadpipe.vmdk.local import LocalCapture
from vadpipe.vmdk.vmx import REDACTED, parse_vmx, redacted

VMX = """#!/usr/bin/vmware
.encoding = "windows-1252"
displayName = "Büro |22Köln|22"
guestOS = "windows2019srv-64"
uuid.bios = "56 4d a1 b2 c3 d4 e5 f6-01 23 45 67 89 ab cd ef"
scsi0.present = "TRUE"
scsi0:10.present = "TRUE"
scsi0:10.fileName = "data.vmdk"
scsi0:2.present = "true"
SCSI0:2.FILENAME = "system.vmdk"
scsi0:2.deviceType = "scsi-hardDisk"
scsi0:3.present = "FALSE"
scsi0:3.fileName = "gone.vmdk"
ide1:0.present = "TRUE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "tools.iso"
RemoteDisplay.vnc.password = "hunter2!"
guestinfo.userdata = "hunter2! in cloud-init"
encryption.keySafe = "vmware:key/hunter2!"
"""


@pytest.fixture
def directory(tmp_path, write_descriptor):
    """A VM with three flat disks of 1 MiB, of which its .vmx names two."""
    for name in ("system", "data", "left-over"):
        (tmp_path / f"{name}-flat.vmdk").write_bytes(b"\1" * MiB)
        write_descriptor(tmp_path / f"{name}.vmdk", f'RW {MiB // 512} VMFS "{name}-flat.vmdk"')
    return tmp_path


async def test_the_vmx_names_the_machine_and_its_disks(directory):
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252"))
    machine: Machine[LocalCapture] = LocalVm(directory)
    assert machine.effects() == ()
    async with machine.capture() as capture:
        assert capture.machine.uuid == "564da1b2-c3d4-e5f6-0123-456789abcdef"
        assert capture.machine.name == 'Büro "Köln"'
        assert [(disk.key, disk.label) for disk in capture.disks] == [
            ("scsi0:2", "system.vmdk"),
            ("scsi0:10", "data.vmdk"),
        ]
        assert capture.quiescing_asked == "none"
        configuration = json.loads(json.dumps(capture.configuration))
        assert configuration["vmx"]["guestos"] == "windows2019srv-64"
        assert "hunter2!" not in str(configuration)
        assert configuration["vmx"]["guestinfo.userdata"] == REDACTED
        assert configuration["disks"]["scsi0:2"][0]["capacity"] == MiB
        assert capture.disks[0].change_id is None
        with pytest.raises(ChangeTrackingInvalid):
            await capture.disks[0].changed("*", 0)


@pytest.mark.parametrize(
    "key",
    [
        "guestinfo.userdata", "guestinfo.ovfEnv", "machine.id", "encryption.bundle", "encryptedVM.guid",
        "RemoteDisplay.vnc.password", "RemoteDisplay.vnc.key", "vtpm.ekCRT", "dataFileKey", "crypto.profile",
        "cloud-init.user-data", "user-data", "backup.dbPwd", "agent.api_key", "join.token", "wifi.psk",
        "proxy.Authorization", "vmx.passphrase", "pxe.accessKey",
    ],
)  # fmt: skip
def test_the_value_of_a_setting_that_may_be_a_secret_is_left_out(key):
    assert redacted(key, "hunter2!") == REDACTED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("displayName", "Passau"), ("keyboard.typematicMinDelay", "2000000"), ("tools.syncTime", "TRUE"),
        ("serial0.fileName", "telnet://console:23"), ("monitor_control.restrict_backdoor", "TRUE"),
    ],
)  # fmt: skip
def test_other_settings_are_kept(key, value):
    assert redacted(key, value) == value


def test_a_value_that_is_a_secret_by_itself_is_left_out():
    for value in ("https://proxy:hunter2!@host/", "-----BEGIN RSA PRIVATE KEY----- hunter2!"):
        assert redacted("serial0.fileName", value) == REDACTED


async def test_without_a_vmx_every_leaf_is_a_disk(directory):
    (directory / "system-ctk.vmdk").write_bytes(b"tracking")
    (directory / "._system.vmdk").write_bytes(b"fork of a Mac")
    identities = set()
    for _ in range(2):
        async with LocalVm(directory, name="web01").capture() as capture:
            identities.add(capture.machine)
            assert [disk.key for disk in capture.disks] == ["data", "left-over", "system"]
            assert capture.disks[0].pool is capture.disks[1].pool
    (machine,) = identities
    assert machine.name == "web01"
    assert machine.uuid == str(uuid.uuid5(uuid.NAMESPACE_URL, directory.resolve().as_uri()))


async def test_disks_whose_names_differ_in_their_suffix_only_keep_apart(directory):
    (directory / "data.VMDK").write_bytes((directory / "data.vmdk").read_bytes())
    async with LocalVm(directory).capture() as capture:
        assert [disk.key for disk in capture.disks] == ["data.VMDK", "data.vmdk", "left-over", "system"]


def _several(directory):
    (directory / "a.vmx").write_text("")
    (directory / "b.vmx").write_text("")


def _no_disk(directory):
    (directory / "a.vmx").write_text('displayName = "a"')


def _bad_line(directory):
    (directory / "a.vmx").write_text('displayName = "a"\nscsi0:0.fileName "a.vmdk"')


def _missing(directory):
    (directory / "a.vmx").write_bytes(VMX.encode("windows-1252"))
    (directory / "data.vmdk").unlink()


def _orphan(directory):
    (directory / "data.vmdk").unlink()


def _device(directory):
    (directory / "data-flat.vmdk").unlink()
    os.mkfifo(directory / "data-flat.vmdk")


def _empty(directory):
    for path in directory.iterdir():
        path.unlink()


def _absent(directory):
    _empty(directory)
    directory.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_several, "has 2 VMs: a.vmx, b.vmx"),
        (_no_disk, "a.vmx names no disk"),
        (_bad_line, "Line 2 of .*a.vmx cannot be parsed"),
        (_missing, "The disk scsi0:10 of .*a.vmx, 'data.vmdk', is missing"),
        (_orphan, "data-flat.vmdk is a data file that no descriptor names"),
        (_device, "data-flat.vmdk is not a regular file|is missing"),
        (_empty, "has no VMDK"),
        (_absent, "No such file or directory"),
    ],
)
async def test_a_directory_that_is_not_one_whole_vm_is_refused(directory, spoil, message):
    spoil(directory)
    with pytest.raises(SourceError, match=message) as caught:
        async with LocalVm(directory).capture():
            pass
    assert caught.value.remedy


async def test_the_files_are_closed(directory):
    before = len(os.listdir("/proc/self/fd"))
    async with LocalVm(directory).capture():
        assert len(os.listdir("/proc/self/fd")) > before
    (directory / "system-flat.vmdk").unlink()
    with pytest.raises(SourceError):
        async with LocalVm(directory).capture():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_newest_manifest_archive_is_fetched(directory):
    async with LocalVm(directory).capture() as capture:
        missing = await capture.fetch_vss_manifest()
        assert missing.content is None
        assert missing.absent
        assert "no VSS manifest" in missing.reason
        for number, name in enumerate(("vm-vss_manifests2.zip", "vm-vss_manifests1.zip", "other.zip"), 1):
            (directory / name).write_bytes(name.encode())
            later_s = time.time() + number
            os.utime(directory / name, (later_s, later_s))
        fetched = await capture.fetch_vss_manifest()
        assert fetched.content == b"vm-vss_manifests1.zip"
        assert fetched.path == str(directory / "vm-vss_manifests1.zip")
        (directory / "vss-manifest9.zip").mkdir()
        os.utime(directory / "vss-manifest9.zip", (later_s + 1, later_s + 1))
        unreadable = await capture.fetch_vss_manifest()
        assert unreadable.content is None
        assert not unreadable.absent
        assert "not a regular file" in unreadable.reason


async def test_a_manifest_that_is_older_than_the_data_is_not_used(directory):
    path = directory / "vm-vss_manifests1.zip"
    path.write_bytes(b"of a snapshot long ago")
    os.utime(path, (1, 1))
    async with LocalVm(directory).capture() as capture:
        fetched = await capture.fetch_vss_manifest()
    assert fetched.content is None
    assert not fetched.absent
    assert re.search(
        r"was written after .*manifests1\.zip, which was made for an earlier snapshot", fetched.reason
    )


def test_a_vmx_without_uuid_gets_one_from_its_directory():
    assert parse_vmx(b'uuid.bios = "none"\n', "a.vmx").uuid is None
    assert parse_vmx(b"", "a.vmx").disks() == []


MEASURE = """
import resource, sys
from pathlib import Path
from vadpipe.vmdk.chain import open_layout
from vadpipe.vmdk.files import OpenFiles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layout = open_layout(Path(sys.argv[1]), OpenFiles())
opened = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = layout.allocated(0, layout.capacity)
print(layout.capacity, opened - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, list(held))
"""


@pytest.mark.slow
def test_a_thin_disk_of_8_tib_needs_no_memory_for_its_size(qemu, tmp_path):
    path = tmp_path / "big.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", path, 8 * TiB)
    qemu.io(path, f"write -P 1 {8 * TiB - 65536} 64k")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], check=True, capture_output=True, text=True, cwd=os.getcwd()
    )
    capacity, opening, asking, held = done.stdout.split(maxsplit=3)
    assert int(capacity) == 8 * TiB
    assert int(opening) < 64 * 1024
    assert int(asking) < 64 * 1024
    assert held.strip() == f"[({8 * TiB - 65536}, 65536)]"


async def test_an_excluded_disk_is_left_out_with_a_remark_in_the_report_and_the_point(directory):
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252"))
    (directory / "data.vmdk").write_text("damaged, but nobody reads it")
    machine = LocalVm(directory, exclude=["scsi0:1?"])
    assert machine.effects() == ("Leaves out its disks scsi0:1?.",)
    async with machine.capture() as capture:
        assert [disk.key for disk in capture.disks] == ["scsi0:2"]
        said = ["data.vmdk (scsi0:10) is left out: the configuration excludes it."]
        assert (capture.remarks, capture.left_out, capture.attention) == (said, (), ())
        assert capture.configuration["left_out"] == said


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (
            ["scsi0:9"],
            r"exclude names the disk 'scsi0:9', which Büro .* scsi0:2 \(system.vmdk\), scsi0:10 \(",
        ),
        (["scsi0:*"], r"exclude leaves out every disk of Büro"),
    ],
)
async def test_an_exclude_that_matches_no_disk_or_every_disk_is_refused(directory, exclude, message):
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252"))
    with pytest.raises(ConfigError, match=message):
        async with LocalVm(directory, exclude=exclude).capture():
            pass


def test_an_exclude_that_is_one_text_is_refused():
    with pytest.raises(ConfigError, match=r"exclude='scsi0:1' is not a list of disks"):
        LocalVm("/vms/web01", exclude="scsi0:1")


async def test_the_vmx_without_secrets_and_the_firmware_variables_go_into_the_point(directory):
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252"))
    async with LocalVm(directory).capture() as capture:
        assert set(capture.documents) == {"vm.vmx"}
        text = capture.documents["vm.vmx"].decode()
    assert "hunter2!" not in text
    assert parse_vmx(text.encode(), "vm.vmx").display_name == 'Büro "Köln"'
    (directory / "vm.nvram").write_bytes(b"variables")
    async with LocalVm(directory).capture() as capture:
        assert capture.documents["vm.nvram"] == b"variables"


async def test_firmware_variables_outside_of_the_directory_or_too_large_are_not_read(directory):
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252") + b'nvram = "../other.nvram"\n')
    (directory.parent / "other.nvram").write_bytes(b"not ours")
    async with LocalVm(directory).capture() as capture:
        assert set(capture.documents) == {"vm.vmx"}
    (directory / "vm.vmx").write_bytes(VMX.encode("windows-1252"))
    with (directory / "vm.nvram").open("wb") as file:
        file.truncate(5 * MiB)
    async with LocalVm(directory).capture() as capture:
        assert set(capture.documents) == {"vm.vmx"}
