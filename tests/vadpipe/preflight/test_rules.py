"""Every rule: facts that break only it are found, and what is not known is said, never guessed."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.units import GiB
from tests.vadpipe.preflight.healthy import (
    CONTROLLER,
    DISKS,
    HEALTHY,
    HOST,
    SERVICES,
    VM,
    datastore,
    host,
    hotadd,
    job,
    last_disk,
    server,
    snapshot,
    transports,
    vm,
)
from vadpipe.preflight.facts import DatastoreFacts, ProxyFacts, VddkFacts, VmFacts, Volume
from vadpipe.preflight.report import judge_case
from vadpipe.preflight.rules import RULES
from vadpipe.rules import Severity
from vadpipe.vsphere.inventory.hardware import VmController

SLOTLESS = replace(CONTROLLER, kind="VirtualLsiLogicSASController", attached=14)
IDE = VmController("ide0", "VirtualIDEController", "", 1)
NVME_BOOT = (replace(DISKS[0], key="nvme0:0"), DISKS[1])
VDDK_6_7 = VddkFacts((6, 7))


def on_vsphere(*version):
    return server(host(version=version), version=version, api_version=version)


# By rule: a case that is healthy but for it.
BREAKING = {
    "vm-unreadable": vm(readable=False),
    "vm-template": vm(template=True),
    "vm-agent": vm(agent=True),
    "vm-disconnected": vm(connection="inaccessible"),
    "vm-powered-off": vm(power="poweredOff", tools_running=False),
    "vm-suspended": vm(power="suspended", tools_running=False),
    "vm-waits-for-answer": vm(question="Was it moved or copied?"),
    "vm-task-running": vm(tasks=("VirtualMachine.clone",)),
    "snapshot-method-disabled": vm(methods_disabled=frozenset({"CreateSnapshot_Task", "PowerOnVM_Task"})),
    "vm-relocation-disabled": vm(methods_disabled=frozenset({"RelocateVM_Task"})),
    "snapshots-unsupported": vm(snapshots_supported=False),
    "snapshots-disabled": vm(max_snapshots=0),
    "snapshots-locked": vm(snapshots_locked=True),
    "snapshot-limit-reached": vm(max_snapshots=1, own_snapshots=[snapshot("vadpipe 1")]),
    "snapshots-foreign": vm(foreign_snapshots=[snapshot("before the update")]),
    "snapshots-left": vm(own_snapshots=[snapshot("vadpipe 1")]),
    "chain-too-long": last_disk(chain=("x",) * 33),
    "chain-long": last_disk(chain=("x",) * 30),
    "consolidation-needed": vm(consolidation_needed=True),
    "guest-client": vm(guest_id="windows9_64Guest", reported_guest_id=None),
    "guest-crash-consistent": vm(guest_id="ubuntu64Guest", reported_guest_id=None),
    "guest-unknown": vm(guest_id="windows12_64Guest", reported_guest_id=None),
    "guest-sync-driver": job(vm(guest_id="winXPProGuest", reported_guest_id=None), quiescing="file-system"),
    "guest-mismatch": vm(reported_guest_id="windows8Server64Guest"),
    "enable-uuid-off": vm(enable_uuid=False),
    "enable-uuid-left-out": host(
        vm(guest_id="windows2019srvNext_64Guest", reported_guest_id=None), build="19193900"
    ),
    "hardware-version-4": vm(guest_id="winNetStandardGuest", reported_guest_id=None, hardware_version=4),
    "hardware-version-of-4.0": vm(hardware_version=7),
    "vm-encrypted": vm(encrypted=True),
    "disk-dynamic": vm(volumes=(Volume("D:\\", 9 * GiB, 4 * GiB, frozenset({2000, 2001})),)),
    "storage-spaces": vm(volumes=(*VM.volumes, Volume("S:\\", 9 * GiB, 4 * GiB, None))),
    "vss-services": vm(services={**SERVICES, "vmvss": "disabled"}),
    "guest-volume-full": vm(volumes=(*VM.volumes, Volume("S:\\", GiB, 1 << 20, frozenset({2000})))),
    "tools-missing": vm(tools_running=False, tools_version=0, tools_status="guestToolsNotInstalled"),
    "tools-not-running": vm(tools_running=False),
    "tools-too-old-for-ex": vm(tools_version=10240, guest_id="windows8Server64Guest", reported_guest_id=None),
    "tools-too-old-for-2016": vm(tools_version=10240),
    "tools-unsupported": vm(tools_status="guestToolsBlacklisted"),
    "tools-upgrade": vm(tools_status="guestToolsNeedUpgrade"),
    "tools-unmanaged": vm(tools_version=0x7FFFFFFF),
    "guest-heartbeat": vm(heartbeat="yellow"),
    "disk-none": vm(disks=()),
    "disk-none-in-snapshot": vm(disks=(replace(DISKS[0], left_out="it has no file on a datastore"),)),
    "disk-excluded": job(exclude=["scsi0:1"]),
    "exclude-wrong": job(exclude=["scsi0:7"]),
    "disk-independent": last_disk(left_out="it is independent (independent_persistent)"),
    "disk-raw-physical": last_disk(raw="physical", left_out="it is a raw device mapping in physical mode"),
    "disk-raw-virtual": last_disk(raw="virtual"),
    "disk-without-file": last_disk(left_out="it has no file on a datastore"),
    "bus-sharing": vm(controllers=(replace(CONTROLLER, sharing="physicalSharing"),)),
    "disk-multi-writer": last_disk(multi_writer=True),
    "device-passthrough": vm(passthrough=("PCI device 0",)),
    "disk-on-ide": last_disk(vm(controllers=(CONTROLLER, IDE)), key="ide0:0"),
    "disk-on-sata": last_disk(key="sata0:0"),
    "boot-from-nvme": vm(disks=NVME_BOOT, boot_bus="nvme"),
    "disk-on-nvme": last_disk(key="nvme0:0"),
    "scsi-slots-short": vm(controllers=(SLOTLESS,)),
    "datastore-inaccessible": datastore(accessible=False),
    "datastore-in-maintenance": datastore(maintenance="enteringMaintenance"),
    "datastore-full": datastore(free=GiB // 2),
    "datastore-low": datastore(free=20 * GiB),
    "change-tracking-unsupported": vm(change_tracking_supported=False),
    "change-tracking-off": vm(change_tracking=False),
    "change-tracking-blocked": job(
        vm(change_tracking=False, own_snapshots=[snapshot("vadpipe 1")]), enable_change_tracking=True
    ),
    "disk-untracked": last_disk(change_id=None),
    "api-without-ex": job(on_vsphere(6, 0), vddk=VDDK_6_7),
    "backup-type-needs-ex": job(on_vsphere(6, 0), vddk=VDDK_6_7, backup_type="full"),
    "api-untested": server(api_version=(9, 1, 0, 0)),
    "licence-free": server(is_vcenter=False, editions=("esxBasic",)),
    "clock-differs": server(clock_ahead_s=-3600.0),
    "host-disconnected": host(connection="notResponding"),
    "host-in-maintenance": host(maintenance=True),
    "host-older-than-4.1": host(version=(4, 0, 0)),
    "host-unresolved": host(unresolved="its name has no address"),
    "host-port-443": host(closed_ports={443: "refused", 902: ""}),
    "host-port-902": host(closed_ports={443: "", 902: "refused"}),
    "privilege-snapshot": vm(missing_privileges=frozenset({"VirtualMachine.State.CreateSnapshot"})),
    "privilege-read": vm(missing_privileges=frozenset({"VirtualMachine.Provisioning.DiskRandomRead"})),
    "privilege-tracking": job(
        vm(change_tracking=False, missing_privileges=frozenset({"VirtualMachine.Config.ChangeTracking"})),
        enable_change_tracking=True,
    ),
    "privilege-manifest": vm(missing_privileges=frozenset({"Datastore.FileManagement"})),
    "privilege-lock": vm(missing_privileges=frozenset({"Global.DisableMethods"})),
    "privilege-hotadd": replace(
        hotadd(),
        proxy=ProxyFacts(
            True, replace(VM, missing_privileges=frozenset({"VirtualMachine.Config.AddExistingDisk"}))
        ),
    ),
    "vddk-missing": job(vddk=VddkFacts(None, "There is no library.")),
    "vddk-older-than-1.2": job(vddk=VddkFacts((1, 1))),
    "vddk-too-new": job(on_vsphere(6, 7), vddk=VddkFacts((9, 0))),
    "vddk-too-old": job(vddk=VDDK_6_7),
    "san-virtual-proxy": replace(transports("san"), proxy=ProxyFacts(True)),
    "san-datastore": datastore(transports("san"), kind="vsan"),
    "san-encrypted": job(vm(transports("san"), encrypted=True), quiescing="file-system"),
    "hotadd-physical-proxy": replace(hotadd(), proxy=ProxyFacts(False)),
    "hotadd-datastore-unseen": hotadd(host="host-7"),
    "hotadd-ide": job(last_disk(hotadd(), key="ide0:0"), quiescing="none"),
    "hotadd-encrypted": job(vm(hotadd(), encrypted=True), quiescing="none"),
    "hotadd-slots": replace(hotadd(), proxy=ProxyFacts(True, replace(VM, controllers=(SLOTLESS,)))),
}

# What necessarily comes with a breach of the rule.
WITH = {
    "disk-none-in-snapshot": {"disk-without-file"},
    "change-tracking-blocked": {"snapshots-left"},
    "snapshot-limit-reached": {"snapshots-left"},
    "host-older-than-4.1": {"vddk-too-new"},
}


def findings(case):
    return judge_case(case).worst_first


def test_a_healthy_case_has_no_findings():
    assert findings(HEALTHY) == []


def test_there_are_enough_rules_and_each_is_complete():
    assert len(RULES) >= 45
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.wanted, rule.id
        assert rule.remedy.endswith("."), rule.id
        assert rule.source, rule.id


def test_every_rule_has_a_case():
    assert set(BREAKING) == {rule.id for rule in RULES}


@pytest.mark.parametrize("rule", [rule.id for rule in RULES])
def test_a_broken_condition_is_found_by_its_rule_alone(rule):
    found = findings(BREAKING[rule])
    assert {one.rule for one in found} == {rule} | WITH.get(rule, set())
    by_id = {one.id: one for one in RULES}
    for one in found:
        assert one.severity is by_id[one.rule].severity
        assert (one.remedy, one.source) == (by_id[one.rule].remedy, by_id[one.rule].source)
        assert one.found


def test_the_worst_comes_first():
    severities = [
        one.severity
        for one in findings(
            vm(foreign_snapshots=[snapshot("x")], enable_uuid=False, tools_status="guestToolsNeedUpgrade")
        )
    ]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.INFO]


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if "quiescing" in rule.tags], ids=lambda rule: rule.id
)
def test_for_a_job_that_may_degrade_a_loss_of_quiescing_is_a_warning(rule):
    [found] = [one for one in findings(job(BREAKING[rule.id], may_degrade=True)) if one.rule == rule.id]
    assert found.severity is Severity.WARNING


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if "quiescing" in rule.tags], ids=lambda rule: rule.id
)
def test_a_job_that_does_not_quiesce_has_no_conditions_of_quiescing(rule):
    assert rule.id not in {one.rule for one in findings(job(BREAKING[rule.id], quiescing="none"))}


# What is unknown


def unknown(case):
    judgement = judge_case(case)
    assert judgement.findings == [], "unknown is no finding"
    return {one.rule for one in judgement.undecided}


UNKNOWN = {
    "snapshots-unsupported": vm(snapshots_supported=None),
    "guest-unknown": vm(guest_id="", reported_guest_id=None),
    "enable-uuid-off": vm(enable_uuid=None),
    "vm-encrypted": vm(encrypted=None),
    "tools-not-running": vm(tools_running=None),
    "tools-too-old-for-2016": vm(tools_version=None),
    "tools-too-old-for-ex": vm(tools_version=None, guest_id="windows8Server64Guest", reported_guest_id=None),
    "disk-dynamic": vm(volumes=None),
    "storage-spaces": vm(volumes=None),
    "vss-services": vm(services=None),
    "boot-from-nvme": vm(disks=NVME_BOOT, boot_bus=None),
    "datastore-full": datastore(free=None),
    "change-tracking-off": vm(change_tracking=None),
    "licence-free": server(is_vcenter=False),
    "clock-differs": server(clock_ahead_s=None),
    "host-older-than-4.1": host(version=None),
    "host-unresolved": host(unresolved=None),
    "host-port-443": host(closed_ports={902: ""}),
    "host-port-902": host(closed_ports={443: ""}),
    "privilege-snapshot": vm(missing_privileges=None),
    "vddk-too-new": job(vddk=VddkFacts(None)),
    "san-virtual-proxy": replace(transports("san"), proxy=None),
    "hotadd-physical-proxy": replace(transports("hotadd"), proxy=ProxyFacts(True, None)),
}


@pytest.mark.parametrize("rule", UNKNOWN)
def test_a_fact_that_is_not_known_makes_the_rule_undecided(rule):
    assert rule in unknown(UNKNOWN[rule])


def test_no_rule_fails_on_a_vm_of_which_nothing_is_known():
    plain = VmFacts("vm-1", "web01", readable=False)
    nothing = replace(plain, **{one.name: None for one in fields(VmFacts) if one.default is None})
    judgement = judge_case(replace(HEALTHY, vm=nothing, host=None, hosts=(), datastores=(), proxy=None))
    assert "vm-unreadable" in {one.rule for one in judgement.findings}
    assert judgement.undecided


# Edges


def test_slots_above_the_fifteenth_are_not_promised():
    many = [replace(DISKS[0], key=f"scsi0:{unit}", device_key=2000 + unit) for unit in range(9)]
    paravirtual = vm(disks=many, controllers=(replace(CONTROLLER, attached=9),))
    assert "scsi-slots-short" in unknown(paravirtual)
    assert {one.rule for one in findings(vm(paravirtual, hardware_version=13))} == {"scsi-slots-short"}


@pytest.mark.parametrize(
    "rule",
    ["disk-independent", "disk-raw-physical", "disk-raw-virtual", "disk-without-file", "disk-untracked"],
)
@pytest.mark.parametrize("pattern", ["scsi0:1", "Hard disk 2", "*:1"])
def test_a_disk_that_is_left_out_on_purpose_is_only_named(rule, pattern):
    [found] = findings(job(BREAKING[rule], exclude=[pattern]))
    assert (found.rule, found.severity, found.subject) == ("disk-excluded", Severity.INFO, "Hard disk 2")


@pytest.mark.parametrize("rule", ["disk-multi-writer", "disk-on-ide", "chain-too-long"])
def test_what_forbids_the_snapshot_of_the_vm_is_found_on_an_excluded_disk_too(rule):
    key = BREAKING[rule].vm.disks[-1].key
    assert {one.rule for one in findings(job(BREAKING[rule], exclude=[key]))} == {rule, "disk-excluded"}


def test_a_job_cannot_exclude_every_disk():
    found = findings(job(exclude=["*"]))
    assert [one.found for one in found if one.rule == "exclude-wrong"] == ["the job excludes every disk"]


def test_independent_disks_need_no_slot():
    out = [replace(DISKS[0], left_out="it is independent") for _ in range(9)]
    case = vm(
        disks=[*DISKS, *out],
        controllers=(replace(CONTROLLER, kind="VirtualLsiLogicController", attached=12),),
    )
    assert "scsi-slots-short" not in {one.rule for one in findings(case)}


@pytest.mark.parametrize(("build", "found"), [((20348, 2582), set()), ((20348, 2581), {"boot-from-nvme"})])
def test_windows_server_2022_learned_to_boot_from_nvme(build, found):
    guest = "windows2019srvNext_64Guest"
    case = vm(disks=NVME_BOOT, boot_bus="nvme", guest_id=guest, reported_guest_id=guest, guest_build=build)
    assert {one.rule for one in findings(case)} == found


def test_a_transport_that_may_be_left_out_has_no_conditions():
    case = replace(transports("san", "hotadd", "nbdssl"), proxy=ProxyFacts(True))
    assert findings(datastore(case, kind="vsan")) == []


def test_every_host_that_sees_the_datastore_counts():
    other = replace(HOST, moref="host-2", name="esxi02", closed_ports={443: "", 902: "refused"})
    [found] = findings(replace(HEALTHY, hosts=(HOST, other)))
    assert (found.rule, found.subject) == ("host-port-902", "esxi02:902")
    assert found.severity is Severity.WARNING, "the vCenter may serve the disks from the VM's own host"
    [found] = findings(replace(HEALTHY, host=other, hosts=(HOST, other)))
    assert found.severity is Severity.ERROR


def test_a_datastore_is_measured_against_the_disks_on_it():
    small = DatastoreFacts("datastore-2", "silver", free=2 * GiB)
    assert findings(replace(HEALTHY, datastores=(*HEALTHY.datastores, small))) == []


def test_a_snapshot_that_an_earlier_run_left_is_named_with_its_age():
    left = snapshot("vadpipe 1", datetime.now(UTC) - timedelta(days=9, hours=1))
    [found] = findings(vm(own_snapshots=[left]))
    assert (found.rule, found.found) == ("snapshots-left", "it has 'vadpipe 1' (snapshot-1, 9 days old)")
