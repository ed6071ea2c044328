"""Selections against govmomi's simulator: a second opinion on what an inventory looks like."""

from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, vcsim
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.inventory.selection import SelectVms, select_vms

__all__ = ["vcsim"]

pytestmark = NEEDS_VCSIM


async def names(session: VcenterSession, selection: SelectVms) -> list[str]:
    return [vm.name for vm in await select_vms(session, [selection])]


async def test_vms_are_selected_by_pattern_and_place(vcsim):
    async with vcsim.connect() as session:
        every = await select_vms(session, [SelectVms("*")])
        assert await find_vms(session, every) == every
        for place in ("/DC0", "/DC0/vm", "/DC0/host"):
            assert await names(session, SelectVms(inside=place)) == [vm.name for vm in every]
        clustered = await names(session, SelectVms(inside="/DC0/host/DC0_C0"))
        alone = await names(session, SelectVms(inside="/DC0/host/DC0_H0/DC0_H0"))
        assert clustered == await names(session, SelectVms("DC0_C0_*"))
        assert alone == await names(session, SelectVms("DC0_H0_*"))
        assert sorted(clustered + alone) == [vm.name for vm in every]
        assert await names(session, SelectVms("*VM0", exclude=["/DC0/vm/DC0_C*"])) == ["DC0_H0_VM0"]
