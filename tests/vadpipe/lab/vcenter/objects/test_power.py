"""Powering a created VM on: what it needs, and how its guest comes up."""

import fcntl
import time

import pytest
from pyVmomi import vim

from tests.vadpipe.lab.vcenter.restoring import card, config, controller, devices, disk
from vadpipe.lab.vcenter.state.inventory import HostTraits


@pytest.fixture
def created(site):
    return site.create(config("web", controller(), disk(at=-1000), card(), firmware="efi"))


def wait_for(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_guest_with_data_comes_up(created, site, vcenter):
    vcenter.disks(created._moId)[0].write(510, b"\x55\xaa")
    assert created.guestHeartbeatStatus == "gray"
    site.finish(created.PowerOnVM_Task(None))
    assert wait_for(lambda: created.guestHeartbeatStatus == "green")
    assert created.guest.toolsRunningStatus == "guestToolsRunning"
    assert created.summary.quickStats.guestHeartbeatStatus == "green"
    site.finish(created.PowerOffVM_Task())
    assert created.guestHeartbeatStatus == "gray"
    assert created.guest.toolsRunningStatus == "guestToolsNotRunning"


def test_a_heartbeat_is_gray_then_yellow_then_green(created, site, vcenter):
    vcenter.disks(created._moId)[0].write(0, b"data")
    vcenter.boot.delay_s = 0.3
    site.finish(created.PowerOnVM_Task(None))
    seen = []
    assert wait_for(lambda: seen.append(str(created.guestHeartbeatStatus)) or seen[-1] == "green")
    assert sorted(set(seen), key=seen.index) == ["gray", "yellow", "green"]


@pytest.mark.parametrize("reason", ["an empty disk", "no boot", "no tools"])
def test_a_guest_that_does_not_come_up_stays_gray(created, site, vcenter, reason):
    vcenter.boot.delay_s = 0
    if reason != "an empty disk":
        vcenter.disks(created._moId)[0].write(0, b"data")
    vcenter.boot.boots = reason != "no boot"
    vcenter.boot.tools_version = 0 if reason == "no tools" else 12448
    site.finish(created.PowerOnVM_Task(None))
    for thread in vcenter._service.boots._threads:
        thread.join()
    assert created.guestHeartbeatStatus == "gray"
    assert created.runtime.powerState == "poweredOn"


def test_powering_on_connects_adapters_and_writes_nvram(created, site, vcenter):
    assert not devices(created)[4000].connectable.connected
    site.finish(created.PowerOnVM_Task(None))
    assert devices(created)[4000].connectable.connected
    (nvram,) = [file for file in created.layoutEx.file if file.type == "nvram"]
    assert nvram.name == "[datastore1] web/web.nvram"


def test_nvram_that_is_there_is_kept(created, site, vcenter):
    file = vcenter.datastore("datastore1") / "web" / "web.nvram"
    file.write_bytes(b"restored")
    site.finish(created.PowerOnVM_Task(None))
    assert file.read_bytes() == b"restored"


def test_a_missing_disk_keeps_a_vm_off(created, site, vcenter):
    (vcenter.datastore("datastore1") / "web" / "web.vmdk").unlink()
    with pytest.raises(vim.fault.FileNotFound) as refused:
        site.finish(created.PowerOnVM_Task(None))
    assert refused.value.file == "[datastore1] web/web.vmdk"
    assert created.runtime.powerState == "poweredOff"


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        (HostTraits(maintenance=True), vim.fault.InvalidState),
        (HostTraits(version="6.5.0"), vim.fault.VirtualHardwareVersionNotSupported),
    ],
)
def test_a_host_that_cannot_run_it_keeps_a_vm_off(created, site, vcenter, host, fault):
    vcenter._inventory.hosts["host-8"] = host
    with pytest.raises(fault):
        site.finish(created.PowerOnVM_Task(None))


def test_change_tracking_begins_at_power_on(created, site):
    site.finish(created.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert devices(created)[2000].backing.changeId is None
    site.finish(created.PowerOnVM_Task(None))
    assert devices(created)[2000].backing.changeId


def test_a_disk_with_a_writer_keeps_a_vm_off_and_alive(created, site, vcenter):
    base = vcenter.datastore("datastore1") / "web" / "web.vmdk"
    with base.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(vim.fault.FileLocked):
            site.finish(created.PowerOnVM_Task(None))
        with pytest.raises(vim.fault.FileLocked):
            site.finish(created.Destroy_Task())
    assert base.exists()
    site.finish(created.PowerOnVM_Task(None))


def test_a_reservation_that_the_host_does_not_have_keeps_a_vm_off(site, vcenter):
    allocation = vim.ResourceAllocationInfo(reservation=4096)
    vm = site.create(config("big", memoryMB=4096, memoryAllocation=allocation))
    vcenter._inventory.hosts["host-8"] = HostTraits(memory_mb=2048)
    with pytest.raises(vim.fault.InsufficientMemoryResourcesFault):
        site.finish(vm.PowerOnVM_Task(None))
