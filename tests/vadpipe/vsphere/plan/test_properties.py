"""Properties of every plan: nothing that is stripped survives, every drop is told, and the schema holds."""

import json
import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim

from pipeline.units import GiB
from tests.vadpipe.vsphere.plan.plan_kit import (
    SETTINGS,
    SITE,
    config,
    device,
    disk,
    nic,
    plan,
    saved,
    server_made,
    written,
)
from vadpipe.vsphere.plan.policy import FIELDS, RENAMED, TAKEN_OUT, rule_of_setting
from vadpipe.vsphere.plan.values import Wanted

MODES = st.sampled_from(["copy", "replace"])
PREFIXES = (
    "",
    "scsi0:0.",
    "ethernet1.",
    "guestinfo.",
    "sched.swap.",
    "migrate.",
    "nvram",
    "vmware.tools.",
    "my.",
)
KEYS = st.one_of(
    st.sampled_from(sorted(SETTINGS)),
    st.builds(
        lambda prefix, rest: prefix + rest,
        st.sampled_from(PREFIXES),
        st.text("abcXYZ.:01", min_size=1, max_size=12),
    ),
    st.sampled_from(["ctkEnabled", "redo"]).map(lambda end: f"scsi1:3.{end}"),
)

# A value for each field of a configuration that has a simple type.
_OF_TYPE = {
    str: "vmx-19",
    bool: True,
    int: 1,
    vim.vm.ConfigInfo._GetPropertyInfo("hotPlugMemoryLimit").type: 1,
}
SIMPLE = {
    one.name: _OF_TYPE[one.type]
    for one in vim.vm.ConfigInfo._GetPropertyList()
    if one.type in _OF_TYPE and one.name not in ("name", "dynamicType", "template")
}
FIELD_SETS = st.sets(st.sampled_from(sorted(SIMPLE)))

_KINDS = [
    device.ParaVirtualSCSIController,
    device.VirtualLsiLogicController,
    device.VirtualLsiLogicSASController,
    device.VirtualBusLogicController,
]
_OTHERS = [
    device.VirtualUSB,
    device.VirtualPCIPassthrough,
    device.VirtualTPM,
    device.VirtualWDT,
    device.VirtualPrecisionClock,
    device.VirtualSoundBlaster16,
    device.VirtualSerialPort,
    device.VirtualNVDIMM,
    device.VirtualDevice,
    device.VirtualSCSIPassthrough,
    device.VirtualVMIROM,
]


@st.composite
def hardware(draw: st.DrawFn) -> list[vim.vm.device.VirtualDevice]:
    """Server-made devices, up to four SCSI controllers in any order, disks on them, NICs, and strange devices."""
    found = server_made()
    buses = draw(st.lists(st.integers(0, 3), unique=True, max_size=4))
    for bus in buses:
        kind = draw(st.sampled_from(_KINDS))
        found.append(kind(key=1000 + bus, busNumber=bus, sharedBus="noSharing", controllerKey=100))
        for unit in draw(st.lists(st.integers(0, 15).filter(lambda one: one != 7), unique=True, max_size=3)):
            found.append(disk(2000 + 16 * bus + unit, 1000 + bus, unit, size=GiB))
    backing = device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    kinds = [device.VirtualE1000, device.VirtualVmxnet3, device.VirtualE1000e]
    for number in range(draw(st.integers(0, 3))):
        found.append(nic(4000 + number, backing, draw(st.sampled_from(kinds))))
    for number, kind in enumerate(draw(st.lists(st.sampled_from(_OTHERS), max_size=4))):
        label = vim.Description(label=f"strange {number}", summary="")
        found.append(kind(key=20000 + number, deviceInfo=label))
    return draw(st.permutations(found))


@settings(deadline=None, max_examples=60)
@given(mode=MODES, keys=st.lists(KEYS, unique=True, max_size=12), fields=FIELD_SETS)
def test_no_stripped_field_or_setting_survives_and_each_is_told(mode, keys, fields):
    options = [vim.option.OptionValue(key=key, value=f"value of {key}") for key in keys]
    made = plan(
        saved(config(extraConfig=options, **{name: SIMPLE[name] for name in fields})), Wanted(mode=mode)
    )
    decided = {(one.subject, one.field): one for one in made.decisions}
    for name in fields:
        rule, told = FIELDS[name], decided[("VM", name)]
        if rule.outcome(mode) == "left out":
            assert told.outcome == "left out"
            target = RENAMED.get(name, name)
            assert getattr(made.spec, target, None) in (None, []), name
        elif told.outcome == "carried":
            assert getattr(made.spec, RENAMED.get(name, name)) == SIMPLE[name]
    carried = {one.key for one in made.spec.extraConfig}
    for key in keys:
        assert decided[("extraConfig", key)].outcome == rule_of_setting(key).outcome(mode)
        assert (key in carried) == (rule_of_setting(key).outcome(mode) == "carried")
    for field, parts in TAKEN_OUT.items():
        value = getattr(made.spec, field, None)
        assert value is None or all(getattr(value, part) in (None, []) for part in parts)


@settings(deadline=None, max_examples=60)
@given(mode=MODES, devices=hardware())
def test_every_device_is_told_of_and_every_specification_fits_the_schema(mode, devices):
    made = config()
    made.hardware.device = devices
    plan_ = plan(saved(made), Wanted(mode=mode, drop_encryption=True))
    subjects = {one.subject for one in plan_.decisions}
    for one in devices:
        label = (
            one.deviceInfo.label if one.deviceInfo else f"{type(one).__name__.rpartition('.')[2]} {one.key}"
        )
        assert label in subjects
    added = [change.device for change in plan_.spec.deviceChange]
    assert len({one.key for one in added}) == len(added)
    assert all(one.key < 0 for one in added)
    buses = [one.busNumber for one in added if isinstance(one, device.VirtualSCSIController)]
    assert buses == sorted(buses)
    assert not any(isinstance(one, device.VirtualDisk) for one in added)
    assert len(plan_.disks) == sum(isinstance(one, device.VirtualDisk) for one in devices)
    text = written(plan_.spec)
    for stripped in (
        "connectionCookie",
        "portKey",
        "externalId",
        "subnetId",
        "scsiCtlrUnitNumber",
        "changeVersion",
    ):
        assert stripped not in text
    assert not re.search(r"<key>(100|200|201|300|400|1000|2000|4000)</key>", text)
    json.dumps(plan_.as_dict())
    assert plan_.problems == ()


@settings(deadline=None, max_examples=40)
@given(mode=MODES, free=st.integers(0, 40), taken=st.sets(st.sampled_from(["web01", "x"])))
def test_a_plan_without_problems_has_a_place_a_name_and_room(mode, free, taken):
    stores = tuple(replace(one, free=free * GiB) for one in SITE.datastores)
    folders = tuple(replace(one, taken=frozenset(taken)) for one in SITE.folders)
    made = plan(wanted=Wanted(mode=mode), site=replace(SITE, datastores=stores, folders=folders))
    if not made.problems:
        assert None not in (made.folder, made.pool, made.datastore)
        assert made.name not in taken
        assert free >= 10  # thin 2 GiB of data, eager 8 GiB
    else:
        assert all(one.sentence.endswith(".") and one.remedy for one in made.problems)
