"""The mark of a VM that is being restored in place: a line of its notes, which goes again without a trace."""

import pytest
from pyVmomi import vim

from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.vm.mark import SETTING, mark, unmark


@pytest.mark.parametrize("notes", ["", "The shop.", "The shop.\nAsk Eve.\n", "\n\nlast line\n"])
async def test_the_notes_of_a_vm_are_the_same_after_the_mark(lab, vcenter, add_vm, notes):
    moref = add_vm()
    async with vcenter.connect() as session:
        subject = vim.VirtualMachine(moref, session.stub)

        async def read():
            row = await session.properties(subject, ["config.annotation", "config.extraConfig"])
            settings = {one.key: one.value for one in row.get("config.extraConfig") or ()}
            return row.get("config.annotation") or "", settings.get(SETTING)

        spec = vim.vm.ConfigSpec(annotation=notes)
        task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
        await mark(session, moref, "p1")
        await mark(session, moref, "p2")  # as after a lost answer
        marked, setting = await read()
        assert marked.startswith("[vadpipe] This VM is being restored in place to point p2.")
        assert marked.endswith(notes)
        assert (marked.count("[vadpipe]"), setting) == (1, "to point p2")
        await unmark(session, moref)
        assert await read() == (notes, None)
