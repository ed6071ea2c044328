"""Judgements before the deed: CheckVmConfig, CheckPowerOn, and what virtual hardware a host offers."""

import pytest
from pyVmomi import vim, vmodl

from tests.vadpipe.lab.vcenter.restoring import card, config, controller, disk
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, HostTraits


def judged(site, client, spec, vm=None):
    checker = client.content.vmCompatibilityChecker
    (result,) = site.finish(checker.CheckVmConfig_Task(spec, vm, None, None if vm else site.pool, None))
    return [type(fault) for fault in result.error]


def test_a_good_spec_is_judged_and_makes_nothing(site, client, vcenter):
    assert judged(site, client, config("web", controller(), card(), disk(at=-1000))) == []
    assert site.folder.childEntity == []
    assert list(vcenter.datastore("datastore1").iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (lambda: config("a", guestId="ms-dos"), vmodl.fault.InvalidArgument),
        (lambda: config("a", version="vmx-22"), vim.fault.VirtualHardwareVersionNotSupported),
        (lambda: config("a", card(network="no such")), vim.fault.InvalidDeviceBacking),
        (
            lambda: config("a", controller(), disk(at=-1000, path="[small] ", thinProvisioned=False)),
            vim.fault.NoDiskSpace,
        ),
    ],
)
def test_a_bad_spec_is_judged(site, client, vcenter, spec, fault):
    vcenter.set_datastore("small", DatastoreTraits(free=1 << 20))
    assert judged(site, client, spec()) == [fault]


def test_a_change_of_a_vm_is_judged(site, client, vm):
    assert judged(site, client, vim.vm.ConfigSpec(deviceChange=[disk(unit=5)]), vm.api) == []
    assert judged(site, client, vim.vm.ConfigSpec(deviceChange=[disk(unit=7)]), vm.api) == [
        vim.fault.InvalidDeviceSpec
    ]


def test_powering_on_is_judged(site, client, vcenter):
    vm = site.create(config("web"))
    checker = client.content.vmCompatibilityChecker
    (result,) = site.finish(checker.CheckPowerOn_Task(vm, None, None, None))
    assert (list(result.error), result.vm) == ([], vm)
    vcenter._inventory.hosts["host-8"] = HostTraits(maintenance=True)
    (result,) = site.finish(checker.CheckPowerOn_Task(vm, None, None, None))
    assert [type(fault) for fault in result.error] == [vim.fault.InvalidState]


def test_a_server_may_lack_the_checkers(site, client, vcenter):
    checker = client.content.vmCompatibilityChecker
    vcenter.check_specs("unknown method")
    with pytest.raises(vmodl.fault.MethodNotFound):
        checker.CheckVmConfig_Task(config("a"), None, None, site.pool, None)
    vcenter.check_specs("missing")
    content = client.RetrieveContent()
    assert content.vmCompatibilityChecker is None
    assert content.vmProvisioningChecker is None


def test_a_host_tells_its_hardware_versions(site, vcenter):
    browser = site.pool.owner.environmentBrowser
    offered = {one.key: one for one in browser.QueryConfigOptionDescriptor()}
    assert {"vmx-21", "vmx-13"} <= set(offered)
    assert [key for key, one in offered.items() if one.defaultConfigOption] == ["vmx-21"]
    vcenter._inventory.hosts["host-8"] = HostTraits(version="7.0.1")
    assert max(one.key for one in browser.QueryConfigOptionDescriptor()) == "vmx-18"


def test_a_hardware_version_tells_its_guests(site):
    browser = site.pool.owner.environmentBrowser
    known = {
        key: {one.id for one in browser.QueryConfigOption(key, None).guestOSDescriptor}
        for key in (None, "vmx-13")
    }
    assert "windows2019srv_64Guest" in known[None]
    assert "windows2019srv_64Guest" not in known["vmx-13"]
    spec = vim.EnvironmentBrowser.ConfigOptionQuerySpec(key="vmx-21", guestId=["ubuntu64Guest"])
    assert [one.id for one in browser.QueryConfigOptionEx(spec).guestOSDescriptor] == ["ubuntu64Guest"]
    with pytest.raises(vmodl.fault.InvalidArgument):
        browser.QueryConfigOption("vmx-22", None)
    assert site.create(config()).environmentBrowser == browser


def test_hosts_may_know_few_guests(site, vcenter):
    vcenter.set_guest_ids("otherGuest64")
    known = site.pool.owner.environmentBrowser.QueryConfigOption(None, None).guestOSDescriptor
    assert [one.id for one in known] == ["otherGuest64"]
