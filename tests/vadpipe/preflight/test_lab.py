"""Preflight against the lab: facts through the real API calls, VMs that each break a rule, nothing touched."""

from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline.units import GiB
from tests.vadpipe.vsphere.vsphere_kit import make_snapshot
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, GuestVolume, HostTraits, VmTraits
from vadpipe.preflight import gather
from vadpipe.preflight.facts import HostFacts, JobFacts
from vadpipe.preflight.reach import probe
from vadpipe.preflight.report import preflight, preflight_all
from vadpipe.vsphere.inventory.lookup import find_vm, find_vms
from vadpipe.vsphere.snapshot.tree import description_with

VOLUMES = [GuestVolume("C:\\", 90 * GiB, 40 * GiB, [2000]), GuestVolume("E:\\", 90 * GiB, 40 * GiB, [2001])]
JOB = JobFacts(enable_change_tracking=True)
SERVERS = {
    2012: "windows8Server64Guest",
    2016: "windows9Server64Guest",
    2019: "windows2019srv_64Guest",
    2022: "windows2019srvNext_64Guest",
}


async def reached(hosts):
    """In place of `probe`: every host has a name and open ports."""
    return [replace(host, unresolved="", closed_ports={443: "", 902: ""}) for host in hosts]


async def report_of(vcenter, name="web01", job=JOB):
    async with vcenter.connect() as session:
        return await preflight(session, await find_vm(session, name), job, probe_hosts=reached)


@pytest.mark.parametrize("year", SERVERS)
async def test_a_healthy_windows_server_raises_nothing(lab, vcenter, add_vm, year):
    add_vm(guest_id=SERVERS[year], traits=VmTraits(volumes=VOLUMES))
    report = await report_of(vcenter)
    assert report.findings == []
    assert report.exit_code == 0
    assert {one.rule for one in report.unknown} == {"vss-services", "disk-dynamic"}


# By rule: how a VM that breaks it is registered.
BREAKING = {
    "vm-template": {"traits": VmTraits(template=True, volumes=VOLUMES)},
    "vm-disconnected": {"traits": VmTraits(connection="inaccessible", volumes=VOLUMES)},
    "vm-powered-off": {"power": "poweredOff"},
    "vm-suspended": {"power": "suspended"},
    "vm-waits-for-answer": {"traits": VmTraits(question="Moved or copied?", volumes=VOLUMES)},
    "snapshots-disabled": {"traits": VmTraits(snapshots_disabled=True, volumes=VOLUMES)},
    "snapshots-locked": {"traits": VmTraits(snapshots_locked=True, volumes=VOLUMES)},
    "disk-independent": {"traits": VmTraits(disk_mode="independent_persistent", volumes=VOLUMES)},
    "disk-raw-physical": {"traits": VmTraits(raw="physicalMode", volumes=VOLUMES)},
    "disk-raw-virtual": {"traits": VmTraits(raw="virtualMode", volumes=VOLUMES)},
    "bus-sharing": {"traits": VmTraits(bus_sharing="virtualSharing", volumes=VOLUMES)},
    "disk-multi-writer": {"traits": VmTraits(multi_writer=True, volumes=VOLUMES)},
    "device-passthrough": {"traits": VmTraits(passthrough=True, volumes=VOLUMES)},
    "disk-on-ide": {"traits": VmTraits(controller="ide", volumes=VOLUMES)},
    "disk-on-sata": {"traits": VmTraits(controller="sata", volumes=VOLUMES)},
    "boot-from-nvme": {"traits": VmTraits(controller="nvme", volumes=VOLUMES)},
    "scsi-slots-short": {"traits": VmTraits(controller="lsi-sas", cdroms=12, volumes=VOLUMES)},
    "enable-uuid-off": {"enable_uuid": False, "traits": VmTraits(volumes=VOLUMES)},
    "hardware-version-of-4.0": {"traits": VmTraits(hardware_version=7, volumes=VOLUMES)},
    "vm-encrypted": {"traits": VmTraits(encrypted=True, volumes=VOLUMES)},
    "guest-client": {"guest_id": "windows9_64Guest"},
    "guest-crash-consistent": {"guest_id": "ubuntu64Guest"},
    "guest-unknown": {"guest_id": "windows12_64Guest"},
    "guest-mismatch": {"traits": VmTraits(reported_guest_id="windows8Server64Guest", volumes=VOLUMES)},
    "tools-missing": {"tools_version": 0},
    "tools-too-old-for-2016": {"tools_version": 10240, "traits": VmTraits(volumes=VOLUMES)},
    "tools-unsupported": {"traits": VmTraits(tools_status="guestToolsTooOld", volumes=VOLUMES)},
    "tools-unmanaged": {"tools_version": 0x7FFFFFFF, "traits": VmTraits(volumes=VOLUMES)},
    "disk-dynamic": {"traits": VmTraits(volumes=[GuestVolume("E:\\", 1 << 40, 1 << 39, [2000, 2001])])},
    "storage-spaces": {"traits": VmTraits(volumes=[*VOLUMES, GuestVolume("S:\\", 1 << 40, 1 << 39, None)])},
    "guest-volume-full": {"traits": VmTraits(volumes=[GuestVolume("C:\\", 1 << 40, 1 << 20, [2000])])},
}
# A VM whose disks are on none has no SCSI controller.
WITH = {rule: {"scsi-slots-short"} for rule in ("disk-on-ide", "disk-on-sata", "boot-from-nvme")}


@pytest.mark.slow
async def test_vms_that_each_break_a_rule_are_found_before_any_snapshot(lab, vcenter, add_vm):
    morefs = {rule: add_vm(rule, **settings) for rule, settings in BREAKING.items()}
    async with vcenter.connect() as session:
        vms = await find_vms(session, list(morefs))
        reports = await preflight_all(session, [(vm, JOB) for vm in vms], probe_hosts=reached)
    found = {report.vm.name: {one.rule for one in report.findings} for report in reports}
    assert found == {rule: {rule} | WITH.get(rule, set()) for rule in BREAKING}
    assert not [method for method in lab.calls if "Snapshot" in method or "Reconfig" in method]


async def test_our_snapshots_and_foreign_ones_are_counted_separately(lab, vcenter, add_vm):
    moref = add_vm(traits=VmTraits(volumes=VOLUMES))
    async with vcenter.connect() as session:
        for description in ("theirs", description_with("0" * 32)):
            await make_snapshot(session, "a name", description)
        facts = (await gather(session, [moref])).vms[moref]
    assert [node.token for node in facts.own_snapshots] == ["0" * 32]
    assert [node.description for node in facts.foreign_snapshots] == ["theirs"]
    assert {disk.files for disk in facts.disks} == {3}
    report = await report_of(vcenter)
    assert {one.rule for one in report.findings} >= {"snapshots-left", "snapshots-foreign"}


@pytest.mark.parametrize(
    ("rule", "host", "datastore"),
    [
        ("host-in-maintenance", HostTraits(maintenance=True), DatastoreTraits()),
        ("host-disconnected", HostTraits(connection="disconnected"), DatastoreTraits()),
        ("enable-uuid-left-out", HostTraits(version="7.0.3", build="19193900"), DatastoreTraits()),
        ("datastore-full", HostTraits(), DatastoreTraits(free=1 << 20)),
        ("datastore-in-maintenance", HostTraits(), DatastoreTraits(maintenance="inMaintenance")),
        ("datastore-inaccessible", HostTraits(), DatastoreTraits(accessible=False)),
    ],
)
async def test_conditions_of_hosts_and_datastores_are_found_by_their_rules(
    lab, vcenter, add_vm, rule, host, datastore
):
    add_vm(guest_id=SERVERS[2022], traits=VmTraits(volumes=VOLUMES))
    lab._inventory.hosts["host-8"] = host
    lab._inventory.datastore_traits["datastore1"] = datastore
    report = await report_of(vcenter)
    assert [one.rule for one in report.findings] == [rule]


@pytest.mark.parametrize(
    ("rule", "privilege"),
    [
        ("privilege-snapshot", "VirtualMachine.State.RemoveSnapshot"),
        ("privilege-manifest", "Datastore.Browse"),
        ("privilege-tracking", "VirtualMachine.Config.ChangeTracking"),
    ],
)
async def test_a_missing_privilege_is_named(lab, vcenter, add_vm, rule, privilege):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    lab.denied_privileges.add(privilege)
    [found] = (await report_of(vcenter)).findings
    assert found.rule == rule
    assert privilege in found.found


async def test_a_server_without_an_authorization_manager_leaves_privileges_unknown(vcenter, add_vm):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    async with vcenter.connect() as session:
        session.content.authorizationManager = None
        report = await preflight(session, await find_vm(session, "web01"), JOB, probe_hosts=reached)
    assert report.findings == []
    assert {"privilege-snapshot", "privilege-manifest"} <= {one.rule for one in report.unknown}


async def test_privileges_that_may_not_be_read_are_unknown(lab, vcenter, add_vm):
    add_vm(traits=VmTraits(volumes=VOLUMES))
    lab.inject("HasPrivilegeOnEntities", lambda: vim.fault.NoPermission(privilegeId="System.View"))
    assert "privilege-snapshot" in {one.rule for one in (await report_of(vcenter)).unknown}


async def test_a_running_task_is_seen(lab, vcenter, add_vm, monkeypatch):
    moref = add_vm(traits=VmTraits(volumes=VOLUMES))
    monkeypatch.setattr(lab._service.tasks, "_task_s", 30)  # until the lab stops
    async with vcenter.connect() as session:
        subject = vim.VirtualMachine(moref, session.stub)
        await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(vim.vm.ConfigSpec()), changes=True)
        assert list((await gather(session, [moref])).vms[moref].tasks) == ["VirtualMachine.reconfigure"]


async def test_hosts_are_probed(nursery):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, lambda stream: stream.aclose(), [listener])
    port = listener.socket.getsockname()[1]
    closed = trio.socket.socket()
    await closed.bind(("127.0.0.1", 0))  # bound, and not listening
    refused = closed.getsockname()[1]
    hosts = [HostFacts("host-1", "127.0.0.1"), HostFacts("host-2", "no-such-host.invalid")]
    there, nowhere = await probe(hosts, ports=(port, refused))
    assert there.unresolved == ""
    assert there.closed_ports[port] == ""
    assert "refused" in there.closed_ports[refused].lower()
    assert nowhere.unresolved
    closed.close()
