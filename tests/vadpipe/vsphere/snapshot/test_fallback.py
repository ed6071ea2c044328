"""Quiescing as the policy wants it: required, tried, or not asked; and found out when it was ignored."""

import pytest
from pyVmomi import vim

from pipeline.errors import ConfigError
from vadpipe.vsphere.api.faults import QuiesceFailed
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.fallback import fallbacks
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import Snapshot, open_snapshot

CREATE = "CreateSnapshotEx_Task"


async def _taken(vcenter: Vcenter, journal: Journal, quiesce: Quiesce) -> Snapshot:
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, quiesce, journal, run="r") as snapshot:
            return snapshot


async def test_a_failure_that_may_pass_is_tried_again(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject(CREATE, vim.fault.ApplicationQuiesceFault, in_task=True)
    snapshot = await _taken(vcenter, journal, Quiesce.application(retry_after_s=0))
    assert snapshot.quiesce.kind == "application"
    assert "tried again" in snapshot.remarks[0]
    assert lab.calls[CREATE] == 2


async def test_quiescing_is_tried_no_more_often_than_allowed(lab, vcenter, journal, add_vm):
    add_vm(quiescing="fault")
    with pytest.raises(QuiesceFailed, match="VSS_E_BAD_STATE"):
        await _taken(vcenter, journal, Quiesce.application(retries=2, retry_after_s=0))
    assert lab.calls[CREATE] == 3
    assert journal.intents() == []


async def test_a_general_fault_that_speaks_of_quiescing_is_one_of_quiescing(lab, vcenter, journal, add_vm):
    add_vm()
    said = "An error occurred while saving the snapshot: Failed to quiesce the virtual machine."
    lab.inject(CREATE, lambda: vim.fault.SnapshotFault(msg=said), in_task=True)
    snapshot = await _taken(vcenter, journal, Quiesce.application(retry_after_s=0))
    assert snapshot.quiesce.kind == "application"
    assert lab.calls[CREATE] == 2


async def test_a_failure_for_good_is_not_tried_again(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject(CREATE, vim.fault.ToolsUnavailable, in_task=True)
    with pytest.raises(QuiesceFailed, match="do not answer"):
        await _taken(vcenter, journal, Quiesce.application(retries=5, retry_after_s=0))
    assert lab.calls[CREATE] == 1


async def test_what_a_failed_attempt_left_is_removed_before_the_next(lab, vcenter, journal, add_vm):
    moref = add_vm()
    lab.inject(CREATE, vim.fault.FilesystemQuiesceFault, in_task=True, after=True)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(
            session, vm, Quiesce.application(retry_after_s=0), journal, run="r"
        ) as snapshot:
            assert list(lab.snapshots(moref)) == [snapshot.moref]
    assert lab.snapshots(moref) == {}


async def test_try_falls_back_kind_by_kind_and_reports_each(lab, vcenter, journal, add_vm):
    add_vm()
    for nth in (1, 2):
        lab.inject(CREATE, vim.fault.ToolsUnavailable, nth, in_task=True)
    snapshot = await _taken(vcenter, journal, Quiesce.application(policy="try", retries=0))
    assert snapshot.quiesce.kind == "none"
    assert [remark.partition(" ")[0] for remark in snapshot.remarks] == ["application", "file-system"]
    assert lab.calls[CREATE] == 3


async def test_try_falls_back_to_file_systems_when_applications_fail(vcenter, journal, add_vm):
    add_vm(quiescing="file-system")
    snapshot = await _taken(vcenter, journal, Quiesce.application(policy="try", retries=0))
    assert snapshot.quiesce.kind == "file-system"


async def test_a_vm_that_is_off_is_not_quiesced_and_the_report_says_so(lab, vcenter, journal, add_vm):
    add_vm(power="poweredOff")
    snapshot = await _taken(vcenter, journal, Quiesce.application())
    assert snapshot.quiesce.kind == "none"
    assert snapshot.remarks == [
        "web01 was not quiesced: the VM is not running, so vSphere would ignore the request."
    ]


async def test_without_tools_required_quiescing_fails_before_the_snapshot(lab, vcenter, journal, add_vm):
    add_vm(tools_version=0)
    with pytest.raises(QuiesceFailed, match="VMware Tools do not run"):
        await _taken(vcenter, journal, Quiesce.application())
    assert CREATE not in lab.calls
    tried = await _taken(vcenter, journal, Quiesce.application(policy="try"))
    assert tried.quiesce.kind == "none"
    assert "VMware Tools do not run" in tried.remarks[0]


async def test_a_guest_that_leaves_no_manifest_is_found_out(vcenter, journal, add_vm):
    add_vm(quiescing="crash")
    snapshot = await _taken(vcenter, journal, Quiesce.application())
    assert any("names no VSS manifest" in remark for remark in snapshot.remarks)


async def test_backup_types_that_touch_logs_come_with_a_warning(vcenter, journal, add_vm):
    add_vm()
    snapshot = await _taken(vcenter, journal, Quiesce.application(backup_type="full"))
    assert "truncate their logs" in snapshot.remarks[0]
    assert Quiesce.application().warning == ""
    for backup_type in ("incremental", "differential", "log"):
        assert backup_type in Quiesce.application(backup_type=backup_type).warning


@pytest.mark.parametrize(
    "settings", [{"policy": "never"}, {"policy": "maybe"}, {"retries": -1}, {"retry_after_s": -1}]
)
def test_invalid_quiescing_settings_are_config_errors(settings):
    with pytest.raises(ConfigError):
        Quiesce.application(**settings)  # type: ignore[arg-type]


def test_fallbacks_go_from_applications_to_file_systems_to_none():
    windows, linux = "windows2019srv_64Guest", "ubuntu64Guest"
    tried = Quiesce.application(policy="try", backup_type="full")
    assert [kind.kind for kind in fallbacks(tried, windows)] == ["application", "file-system", "none"]
    assert [kind.kind for kind in fallbacks(tried, linux)] == ["application", "none"]
    assert fallbacks(Quiesce.application(), windows) == [Quiesce.application()]
    assert fallbacks(Quiesce.none(), windows) == [Quiesce.none()]
