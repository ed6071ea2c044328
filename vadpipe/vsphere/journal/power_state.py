"""The power of a VM: how it is, and switching it on."""

from __future__ import annotations

from pyVmomi import vim

from ..api.session import VcenterSession
from ..api.tasks import wait_for_task


async def power_state(session: VcenterSession, vm_moref: str) -> str:
    """The API's word for it: poweredOn, poweredOff or suspended."""
    subject = vim.VirtualMachine(vm_moref, session.stub)
    paths = ["runtime.powerState"]
    row = await session.properties(subject, paths)
    return str(row.get("runtime.powerState"))


async def power_on(session: VcenterSession, vm_moref: str) -> bool:
    """Power a VM on that is off; returns whether it was. May be repeated after a lost answer."""
    if await power_state(session, vm_moref) != "poweredOff":
        return False
    subject = vim.VirtualMachine(vm_moref, session.stub)
    task = await session.call("PowerOnVM_Task", lambda: subject.PowerOn(None), changes=True)
    await wait_for_task(session, task, "PowerOnVM_Task")
    return True
