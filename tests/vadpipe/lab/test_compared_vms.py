"""A restored VM beside its original: what the demo compares of files and configurations."""

from __future__ import annotations

import shutil

import pytest
from pyVmomi import vim

from pipeline.units import MiB
from vadpipe.lab import guest as guest_room
from vadpipe.lab import guest_volumes
from vadpipe.lab.compared_vms import compared, configurations, table
from vadpipe.lab.demo import DemoFailed, Lab, _compare_files, _datastore_file
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.guest import build_windows_guest
from vadpipe.lab.guest_volumes import names_in
from vadpipe.lab.vcenter.server import LabVcenter


def machine(name, **changed):
    """A configuration as a server answers it; `changed`: of its disk and its adapter."""
    disk = vim.vm.device.VirtualDisk(
        key=2000,
        controllerKey=1000,
        unitNumber=0,
        capacityInBytes=changed.get("capacity", 8 << 30),
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[ds] {name}/{name}.vmdk",
            diskMode="persistent",
            thinProvisioned=changed.get("thin", True),
            uuid=f"uuid of {name}",
        ),
    )
    adapter = vim.vm.device.VirtualVmxnet3(
        key=4000,
        macAddress=changed.get("mac", f"mac of {name}"),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=name == "web01", allowGuestControl=True, connected=False
        ),
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
    )
    controller = vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing")
    return vim.vm.ConfigInfo(
        name=name,
        uuid=f"bios of {name}",
        instanceUuid=f"instance of {name}",
        guestId="windows2019srv_64Guest",
        version="vmx-19",
        firmware="efi",
        files=vim.vm.FileInfo(vmPathName=f"[ds] {name}/{name}.vmx"),
        hardware=vim.vm.VirtualHardware(
            numCPU=2,
            numCoresPerSocket=1,
            memoryMB=changed.get("memory", 4096),
            device=[controller, disk, adapter],
        ),
        extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value=changed.get("uuids", "TRUE"))],
    )


def wrong(*machines):
    return [row.field for row in compared(*machines) if row.wrong]


def test_a_good_copy_has_nothing_wrong_and_every_field_in_the_table():
    rows = compared(machine("web01"), machine("web02", uuids="true"))
    assert [row for row in rows if row.wrong] == []
    lines = list(table(rows))
    assert len(lines) == len(rows) + 1
    (mac,) = [line for line in lines if line.startswith("adapter 0 address")]
    assert mac.split()[-1] == "new"
    assert {"disk scsi0:0 capacity", "disk scsi0:0 provisioning", "hardware.memoryMB", "disk.EnableUUID"} <= {
        row.field for row in rows
    }


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"memory": 2048}, ["hardware.memoryMB"]),
        ({"thin": False}, ["disk scsi0:0 provisioning"]),
        ({"capacity": 1 << 30}, ["disk scsi0:0 capacity"]),
        ({"mac": "mac of web01"}, ["adapter 0 address"]),
        ({"uuids": "FALSE"}, ["disk.EnableUUID"]),
    ],
)
def test_what_a_copy_must_not_change_or_keep_is_found(changed, fields):
    assert wrong(machine("web01"), machine("web02", **changed)) == fields


def test_a_machine_is_no_copy_of_itself():
    found = wrong(machine("web01"), machine("web01"))
    assert {"name", "uuid", "instanceUuid", "files.vmPathName", "disk scsi0:0 file", "adapter 0 address"} == {
        *found
    } - {"disk scsi0:0 uuid"}


@pytest.mark.slow
def test_configurations_are_read_from_the_labs_vcenter(tmp_path):
    with LabVcenter(tmp_path, password="p") as vcenter:
        for name in ("web01", "web02"):
            directory = vcenter.datastore("datastore1") / name
            vcenter.register_vm(directory, name, [LabDisk.create(directory, name, 4 * MiB)])
        place = (vcenter.address, vcenter.port, "backup", "p")
        original, other = configurations(*place, "web01", "web02")
        assert (original.name, other.name) == ("web01", "web02")
        assert wrong(original, other) == []
        with pytest.raises(LookupError, match="has no VM db01; it has web01, web02"):
            configurations(*place, "db01")


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool, path=guest_volumes._TOOL_PATH) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(
    params=[
        pytest.param("ntfs", marks=needs("mkntfs", "ntfscp", "ntfsls")),
        pytest.param("ext4", marks=needs("mke2fs", "debugfs")),
        "none",
    ]
)
def guest(request, tmp_path, monkeypatch):
    monkeypatch.setattr(guest_room, "best_file_system", lambda: request.param)
    place = tmp_path / "datastores" / "ds" / "web01"
    return build_windows_guest(place, system_capacity=64 * MiB, data_capacity=16 * MiB, fill=2 * MiB)


@pytest.mark.slow
def test_the_files_of_a_quiesced_image_are_the_guests_and_the_one_of_its_writers(guest, tmp_path, capsys):
    lab = Lab(tmp_path, guest, tmp_path / "nightly.py", {}, [])
    listed = names_in(guest.image_of(guest.disks[0]), guest.filesystem)
    assert listed == (None if guest.filesystem == "none" else set(guest.files))
    running = _datastore_file(lab, "[ds] web01/web01.vmdk")
    forks = [disk.fork(quiesced_second=True) for disk in guest.disks]
    guest.vss_writers(forks)
    _compare_files(lab, forks[0].frozen)
    said = capsys.readouterr().out
    if guest.filesystem == "none":
        assert "Left out: the files" in said
        return
    assert f"with the same {len(guest.files) + 1} files" in said
    with pytest.raises(DemoFailed, match=r"has other files: vss-writers\.log"):
        _compare_files(lab, running)
