"""Preflight and prepare against govmomi's simulator: a second opinion from a codec that is not pyVmomi's."""

from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, vcsim
from vadpipe.preflight import gather
from vadpipe.preflight.facts import JobFacts
from vadpipe.preflight.report import preflight_all
from vadpipe.vsphere.inventory.lookup import find_vm, find_vms
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.vm.power import power_state
from vadpipe.vsphere.vm.prepare import enable_uuid, uuid_enabled

__all__ = ["vcsim"]

pytestmark = NEEDS_VCSIM
NAMES = ("DC0_H0_VM0", "DC0_H0_VM1", "DC0_C0_RP0_VM0")


async def test_the_facts_of_several_vms_in_one_pass(vcsim):
    async with vcsim.connect() as session:
        morefs = [(await find_vm(session, name)).moref for name in NAMES]
        gathered = await gather(session, morefs)
    assert [gathered.vms[moref].name for moref in morefs] == list(NAMES)
    for moref in morefs:
        vm = gathered.vms[moref]
        assert vm.readable
        assert vm.power == "poweredOn"
        assert vm.disks[0].datastore == "LocalDS_0"
        assert vm.missing_privileges == frozenset()
        case = gathered.case(moref, JobFacts())
        assert case.host in case.hosts
        assert [datastore.name for datastore in case.datastores] == ["LocalDS_0"]


async def test_every_vm_has_a_report(vcsim):
    async with vcsim.connect() as session:
        vms = await find_vms(session, NAMES)
        reports = await preflight_all(session, [(vm, JobFacts()) for vm in vms], probe_hosts=None)
    assert [report.vm.name for report in reports] == list(NAMES)
    for report in reports:
        assert "guest-crash-consistent" in {one.rule for one in report.findings}  # "otherGuest"
        assert "clock-differs" not in {one.rule for one in report.unknown}


async def test_a_vm_is_restarted_for_disk_uuids(vcsim):
    async with vcsim.connect() as session:
        vm = await find_vm(session, NAMES[0])
        assert not await uuid_enabled(session, vm)
        report = await enable_uuid(session, vm, Journal(), allow_power_off=True, tools_within_s=1)
        assert report.done
        assert await uuid_enabled(session, vm)
        assert await power_state(session, vm.moref) == "poweredOn"
