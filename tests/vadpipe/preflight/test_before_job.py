"""Preflight before a job: errors stop it while nothing is touched; what is said travels with the capture."""

from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim

from pipeline.errors import EXIT_FAILED
from stages.preflight import NotReady, Preflight
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.preflight.test_lab import VOLUMES
from vadpipe.lab.campaigns.disks import LabReader
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, VmTraits
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.api.faults import ConnectionLost
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.check import Checked

CHANGING = ("Create", "Remove", "Reconfig", "Power")


@pytest.fixture
def web01(lab, vcenter, tmp_path):
    return VcenterVm(
        replace(vcenter, patience_s=0.5),
        "web01",
        reader=LabReader(lab.root),
        journal=Journal(tmp_path / "journal"),
        enable_change_tracking=True,
    )


def changed(lab):
    return [
        method for method in lab.calls if method.startswith(CHANGING) and ("Vm" in method or "Snap" in method)
    ]


async def test_errors_stop_the_job_before_anything_is_touched(lab, web01, add_vm):
    add_vm(enable_uuid=False, traits=VmTraits(question="Moved or copied?", volumes=VOLUMES))
    with pytest.raises(NotReady) as caught:
        async with web01.capture():
            pass
    error: Any = caught.value
    assert error.exit_code == EXIT_FAILED
    assert not error.transient
    assert {one["rule"] for one in error.facts["findings"]} == {"enable-uuid-off", "vm-waits-for-answer"}
    for one in error.facts["findings"]:
        assert one["rule"] in str(error)
        assert one["remedy"] in str(error)
    assert "report_only" in error.remedy
    assert changed(lab) == []


async def test_with_report_only_the_job_goes_on_and_errors_need_attention(web01, add_vm):
    add_vm(enable_uuid=False, quiescing="application", traits=VmTraits(volumes=VOLUMES))
    async with replace(web01, preflight=Preflight(report_only=True)).capture() as capture:
        (sentence,) = [one for one in capture.attention if "enable-uuid-off" in one]
        assert "disk.EnableUUID is not TRUE" in sentence
        assert [one["rule"] for one in capture.preflight["findings"]] == ["enable-uuid-off"]


async def test_a_loss_of_quiescing_is_a_remark_of_a_job_that_may_degrade(web01, add_vm):
    add_vm(enable_uuid=False, traits=VmTraits(volumes=VOLUMES))
    degrading = replace(web01, quiesce=Quiesce.application(policy="try", retries=0))
    async with degrading.capture() as capture:
        assert any("enable-uuid-off" in one for one in capture.remarks)
        assert not any("enable-uuid-off" in one for one in capture.attention)


async def test_an_excluded_disk_is_in_the_document_as_excluded_and_is_no_remark_of_preflight(web01, add_vm):
    add_vm(disks=2, traits=VmTraits(disk_mode="independent_persistent", volumes=VOLUMES))
    async with replace(web01, exclude=["Hard disk 2"], quiesce=Quiesce.none()).capture() as capture:
        assert [one["rule"] for one in capture.preflight["findings"]] == ["disk-excluded"]
        assert not [one for one in capture.remarks if one.startswith("Preflight")]
        assert [disk.key for disk in capture.disks] == ["scsi0:0"]


async def test_warnings_are_remarks_and_a_snapshot_is_named_once(lab, web01, add_vm):
    moref = add_vm(change_tracking=True, traits=VmTraits(volumes=VOLUMES))
    lab.take_snapshot(moref, "before the update")
    lab._inventory.datastore_traits["datastore1"] = DatastoreTraits(maintenance="inMaintenance")
    async with web01.capture() as capture:
        told = " ".join(capture.remarks)
        assert "datastore-in-maintenance" in told
        assert told.count("before the update") == 1
        assert capture.attention == []
        rules = {one["rule"] for one in capture.preflight["findings"]}
        assert rules == {"datastore-in-maintenance", "snapshots-foreign", "disk-untracked"} & rules
        assert {"datastore-in-maintenance", "snapshots-foreign"} <= rules
        assert capture.preflight["unknown"]


async def test_preflight_can_be_switched_off(lab, web01, add_vm):
    add_vm(enable_uuid=False, quiescing="application", traits=VmTraits(volumes=VOLUMES))
    async with replace(web01, preflight=None).capture() as capture:
        assert capture.preflight is None
    assert "HasPrivilegeOnEntities" not in lab.calls


async def test_another_check_takes_its_place(web01, add_vm):
    class Own:
        async def check(self, session, vm, machine):
            return Checked({"mine": vm.name}, [f"{machine.vm} is mine"], ["a remark"])

    add_vm(traits=VmTraits(volumes=VOLUMES))
    async with replace(web01, preflight=Own()).capture() as capture:
        assert capture.preflight == {"mine": "web01"}
        assert capture.attention == ["web01 is mine"]
        assert "a remark" in capture.remarks


async def test_facts_that_may_not_be_read_do_not_stop_the_backup(lab, web01, add_vm):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    lab.inject("CurrentTime", lambda: vim.fault.NoPermission(privilegeId="System.View"))
    async with web01.capture() as capture:
        assert any(one.startswith("No preflight") and "System.View" in one for one in capture.remarks)
        assert "System.View" in capture.preflight["problem"]
        assert capture.attention == []


async def test_a_lost_connection_does_not_stop_preflight(lab, web01, add_vm):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    lab.inject("HasPrivilegeOnEntities", Drop.AFTER)
    async with web01.capture() as capture:
        assert capture.preflight["findings"] == []


@pytest.mark.slow
async def test_a_server_that_stays_away_is_an_error(lab, web01, add_vm):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    lab.inject("HasPrivilegeOnEntities", Drop.BEFORE, chance=1.0)
    with pytest.raises(ConnectionLost):
        async with web01.capture():
            pass
    assert changed(lab) == []


async def test_hosts_are_tried_where_disks_are_read_over_the_network(lab, web01, add_vm, tmp_path):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libvixDiskLib.so.8.0.3").touch()
    (tmp_path / "lib64" / "libvixDiskLib.so.8").symlink_to("libvixDiskLib.so.8.0.3")
    with pytest.raises(NotReady) as caught:
        async with replace(web01, reader=Vddk(tmp_path)).capture():
            pass
    assert {one["rule"] for one in caught.value.facts["findings"]} == {"host-unresolved"}  # type: ignore[attr-defined]
    assert changed(lab) == []
