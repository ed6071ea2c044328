"""Fields and settings of a restored VM: carried, changed, left out, in both modes and for older targets."""

import json
from dataclasses import replace

import pytest
from pyVmomi import vim

from tests.vadpipe.vsphere.plan.plan_kit import SITE, config, plan, saved, written
from vadpipe.vmdk.vmx import REDACTED
from vadpipe.vsphere.plan.policy import FIELDS
from vadpipe.vsphere.plan.values import Wanted


def _decided(made, subject="VM"):
    return {one.field: one for one in made.decisions if one.subject == subject}


@pytest.mark.parametrize("mode", ["copy", "replace"])
def test_the_specification_is_valid_in_the_schema_and_names_no_disk(mode):
    made = plan(wanted=Wanted(mode=mode))
    text = written(made.spec)
    assert "VirtualDisk" not in text
    assert "<vmPathName>[datastore1]</vmPathName>" in text
    assert made.problems == ()
    json.dumps(made.as_dict())


def test_a_copy_has_identities_of_its_own():
    spec = plan(wanted=Wanted(name="web02")).spec
    assert (spec.name, spec.uuid, spec.instanceUuid) == ("web02", None, None)
    assert spec.cpuAllocation is None
    assert spec.memoryAllocation is None


def test_a_lost_vm_keeps_its_identities_unless_another_has_them():
    config_of = saved().config
    spec = plan(wanted=Wanted(mode="replace")).spec
    assert (spec.uuid, spec.instanceUuid) == (config_of.uuid, config_of.instanceUuid)
    assert spec.cpuAllocation.reservation == 4096
    taken = replace(SITE, uuids={str(config_of.instanceUuid): "web01-old"})
    made = plan(wanted=Wanted(mode="replace"), site=taken)
    assert made.spec.instanceUuid is None
    assert made.spec.uuid == config_of.uuid
    assert "web01-old has" in " ".join(made.warnings)


def test_renamed_and_converted_fields_arrive():
    spec = plan().spec
    assert spec.powerOpInfo.powerOffType == "soft"
    assert spec.virtualNuma.coresPerNumaNode == 2
    assert [one.operation for one in spec.cpuFeatureMask] == ["add"]
    assert spec.vAppConfig.property[0].info.value == "10.0.0.1"
    assert spec.numCPUs == 4
    assert spec.numCoresPerSocket == 2
    assert spec.memoryMB == 8192
    assert spec.changeTrackingEnabled is False
    assert spec.bootOptions.bootOrder == []
    assert spec.bootOptions.efiSecureBootEnabled is True
    assert spec.tools.toolsVersion is None
    assert spec.annotation.startswith("The shop.\nDisks restored by vadpipe from point p1")


def test_an_older_target_gets_no_field_that_it_does_not_know():
    older = replace(SITE, api_version="7.0.3.0")
    made = plan(site=older)
    assert made.spec.virtualNuma is None
    assert made.spec.vmOpNotificationTimeout is None
    assert _decided(made)["vmOpNotificationTimeout"].outcome == "left out"
    written(made.spec, "7.0.3.0")


def test_fields_of_9_are_carried_to_a_target_of_9():
    newer = {"guestArchitecture": "x86"} if hasattr(vim.vm.ConfigInfo(), "guestArchitecture") else {}
    vm = saved(config(tdxEnabled=True, **newer))
    assert plan(vm).spec.tdxEnabled is None
    made = plan(vm, site=replace(SITE, api_version="9.0.0.0"))
    assert made.spec.tdxEnabled is True
    assert "<tdxEnabled>true" in written(made.spec, "9.0.0.0")


def test_settings_go_by_the_table_and_by_what_is_asked():
    keys = {one.key for one in plan().spec.extraConfig}
    assert keys == {"disk.EnableUUID", "svga.present", "hpet0.present"}
    asked = Wanted(keep=("my.*",), drop=("svga.*",))
    assert {one.key for one in plan(wanted=asked).spec.extraConfig} == {
        "disk.EnableUUID",
        "hpet0.present",
        "my.own",
    }
    lost = {one.key for one in plan(wanted=Wanted(mode="replace")).spec.extraConfig}
    assert {"scsi0.pciSlotNumber", "pciBridge0.present", "my.own"} <= lost
    assert not {"nvram", "ctkEnabled", "scsi0:0.redo", "encryption.bundle", "migrate.hostLog"} & lost


def test_no_secret_is_in_a_decision_and_a_value_that_was_not_stored_is_not_carried():
    settings = [vim.option.OptionValue(key="guestinfo.token", value=REDACTED)]
    vm = saved(config(extraConfig=settings))
    made = plan(vm, Wanted(mode="replace"))
    assert made.spec.extraConfig == []
    [decision] = [one for one in made.decisions if one.subject == "extraConfig"]
    assert (decision.outcome, decision.old, decision.new) == ("left out", "", "")
    shown = json.dumps(plan(wanted=Wanted(mode="replace")).as_dict())
    assert "hunter2" not in shown
    assert "fqid/secret" not in shown


def test_a_password_of_a_vapp_property_that_was_not_stored_is_left_out():
    info = vim.vApp.VmConfigInfo(
        property=[vim.vApp.PropertyInfo(key=1, id="root", type="password", value=REDACTED)],
        installBootRequired=False,
    )
    made = plan(saved(config(vAppConfig=info)))
    assert made.spec.vAppConfig.property[0].info.value is None
    assert _decided(made)["vAppConfig.property root.value"].outcome == "left out"


def test_hardware_newer_than_the_target_is_a_problem_or_lowered_by_order():
    vm = saved(config(version="vmx-22"))
    [problem] = plan(vm).problems
    assert problem.what == "hardware version"
    assert "vmx-22" in problem.sentence
    assert "vmx-21" in problem.sentence
    made = plan(vm, Wanted(lower_hardware=True))
    assert made.problems == ()
    assert made.spec.version == "vmx-21"
    assert "lowered" in made.warnings[0]
    assert plan(saved(config(version="vmx-11"))).spec.version == "vmx-11"  # never raised


def test_a_guest_that_the_target_does_not_know_is_changed_with_a_warning():
    made = plan(saved(config(guestId="windows2031srv_64Guest")))
    assert made.spec.guestId == "otherGuest64"
    assert "windows2031srv_64Guest" in made.warnings[0]


def test_latency_of_level_custom_is_left_out():
    custom = vim.LatencySensitivity(level="custom", sensitivity=5)
    assert plan(saved(config(latencySensitivity=custom))).spec.latencySensitivity is None
    high = vim.LatencySensitivity(level="high", sensitivity=0)
    assert str(plan(saved(config(latencySensitivity=high))).spec.latencySensitivity.level) == "high"


def test_a_name_with_a_slash_is_told_as_people_write_it_and_sent_as_the_inventory_keeps_it():
    vm = saved(config(name="web%2f01 100%25"))
    made = plan(vm)
    assert made.name == "web/01 100%"
    assert made.spec.name == "web%2f01 100%25"
    folders = [replace(one, taken=frozenset({"web/01 100%"})) for one in SITE.folders]
    [problem] = plan(vm, site=replace(SITE, folders=folders)).problems
    assert problem.what == "name taken"


def test_a_reservation_is_carried_without_what_only_the_server_sets():
    allocation = vim.ResourceAllocationInfo(
        reservation=4096, limit=-1, overheadLimit=77, expandableReservation=False
    )
    made = plan(saved(config(memoryAllocation=allocation)), Wanted(mode="replace"))
    kept = made.spec.memoryAllocation
    assert (kept.reservation, kept.limit) == (4096, -1)
    assert (kept.overheadLimit, kept.expandableReservation) == (None, None)
    assert _decided(made)["memoryAllocation.overheadLimit"].outcome == "left out"


def test_a_vm_without_an_enclave_asks_the_target_for_none():
    none = vim.vm.SgxInfo(epcSize=0, flcMode="unlocked", requireAttestation=False)
    made = plan(saved(config(sgxInfo=none)), Wanted(mode="replace"))
    assert made.spec.sgxInfo is None
    some = vim.vm.SgxInfo(epcSize=64, flcMode="unlocked")
    assert plan(saved(config(sgxInfo=some)), Wanted(mode="replace")).spec.sgxInfo.epcSize == 64


def test_a_field_of_a_newer_pyvmomi_is_left_out_by_name(monkeypatch):
    older = {name: rule for name, rule in FIELDS.items() if name != "swapPlacement"}
    monkeypatch.setattr("vadpipe.vsphere.plan.fields.FIELDS", older)
    made = plan(saved(config(swapPlacement="inherit")))
    assert made.spec.swapPlacement is None
    assert _decided(made)["swapPlacement"].outcome == "left out"
    assert "does not know" in _decided(made)["swapPlacement"].reason
