"""The tables of the restore policy are whole, and the page shows exactly them."""

from pathlib import Path

import pytest
from pyVmomi import VmomiSupport, vim

from vadpipe.vsphere.plan.policy import FIELDS, HARDWARE, RENAMED, SETTINGS, TAKEN_OUT, rule_of_setting
from vadpipe.vsphere.plan.policy_devices import DEVICES, rule_of_device, tables

PAGE = Path(__file__).parents[4] / "docs" / "restore.md"


def _names(kind) -> set[str]:
    return {one.name for one in kind._GetPropertyList()}


def _device_types() -> set[str]:
    known = {
        *VmomiSupport._dataDefMap,
        *(one for names in VmomiSupport._dependencyMap.values() for one in names),
    }
    kinds = [VmomiSupport.GetVmodlType(name) for name in known if name.startswith("vim.vm.device.")]
    devices = [kind for kind in kinds if issubclass(kind, vim.vm.device.VirtualDevice)]
    return {kind.__name__.rpartition(".")[2] for kind in devices}


# Fields that came with pyVmomi 9.1.
NEWER = {"guestArchitecture"}


def test_every_field_of_a_configuration_has_a_row():
    assert set(FIELDS) - NEWER == _names(vim.vm.ConfigInfo) - NEWER


def test_every_type_of_device_has_a_row():
    assert len(_device_types()) > 40
    assert set(DEVICES) == _device_types()


def test_every_field_that_is_carried_is_one_of_the_specification():
    carried = [name for name, rule in FIELDS.items() if {rule.copy, rule.replace} & {"carried", "asked"}]
    special = {"hardware"}
    assert {RENAMED.get(name, name) for name in carried} - special <= _names(vim.vm.ConfigSpec)
    assert set(HARDWARE) <= _names(vim.vm.VirtualHardware)
    assert set(HARDWARE.values()) <= _names(vim.vm.ConfigSpec)


def test_what_is_taken_out_of_a_field_exists():
    for name, parts in TAKEN_OUT.items():
        assert set(parts) <= _names(vim.vm.ConfigInfo._GetPropertyInfo(name).type)


def test_every_row_says_why_in_one_sentence_and_from_where():
    for rule in (*FIELDS.values(), *DEVICES.values(), *SETTINGS):
        assert rule.reason.endswith("."), rule
        assert rule.source, rule


@pytest.mark.parametrize(
    ("key", "copy", "replace"),
    [
        ("disk.EnableUUID", "carried", "carried"),
        ("DISK.ENABLEUUID", "carried", "carried"),
        ("scsi0:12.ctkEnabled", "left out", "left out"),
        ("ctkEnabled", "left out", "left out"),
        ("scsi0:0.redo", "left out", "left out"),
        ("sched.swap.derivedName", "left out", "left out"),
        ("nvram", "left out", "left out"),
        ("ethernet0.pciSlotNumber", "left out", "carried"),
        ("pciBridge4.functions", "left out", "carried"),
        ("guestinfo.vmtools.versionNumber", "left out", "left out"),
        ("guestinfo.metadata", "left out", "carried"),
        ("ethernet1.filter4.name", "left out", "left out"),
        ("pciPassthru0.id", "left out", "left out"),
        ("vm.genid", "left out", "left out"),
        ("vm.genidX", "left out", "left out"),
        ("vadpipe.restore", "left out", "left out"),
        ("somebody.else", "left out", "carried"),
    ],
)
def test_a_setting_is_judged_by_the_first_pattern_that_fits(key, copy, replace):
    rule = rule_of_setting(key)
    assert (rule.copy, rule.replace) == (copy, replace)


def test_a_type_without_a_row_is_left_out():
    assert rule_of_device("VirtualOfTomorrow").copy == "left out"


def test_the_page_shows_the_tables():
    text = PAGE.read_text()
    for title, table in tables().items():
        assert f"## {title}\n" in text
        assert table in text, f"run docs/refresh.py: the table {title!r} differs"
