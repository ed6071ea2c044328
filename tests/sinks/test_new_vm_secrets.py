"""Secrets in the settings of a VM are nowhere in what its backup and its restore write, print or report."""

import json
import logging

import pytest
from pyVmomi import vim

from pipeline import observed
from sinks import open_repository
from sinks.restoring import Contents
from vadpipe.vsphere.api.tasks import wait_for_task

pytestmark = pytest.mark.slow

MARK = "zq7planted"
PLANTED = {
    "guestinfo.userdata": f"{MARK}-1",
    "RemoteDisplay.vnc.password": f"{MARK}-2",
    "encryption.bundle": f"{MARK}-3",
    "my.proxy": f"http://user:{MARK}-4@proxy/",
    "agent.token": f"{MARK}-5",
}


@pytest.mark.parametrize("mode", ["copy", "replace"])
async def test_a_secret_in_a_setting_is_nowhere_in_a_run(backed, caplog, mode):
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    def observe(event) -> None:
        told.append(f"{event.kind} {dict(event.facts)}")
        told.extend(path.read_text() for path in backed.journal.directory.glob("*.json"))

    async with backed.vcenter.connect() as session:
        subject = vim.VirtualMachine(backed.moref, session.stub)
        options = [vim.option.OptionValue(key=key, value=value) for key, value in PLANTED.items()]
        spec = vim.vm.ConfigSpec(extraConfig=options)
        task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
    with observed(observe):
        await backed.back_up()
        if mode == "replace":
            backed.lab.unregister_vm(backed.moref)
        async with open_repository(backed.repository.path) as reader:
            point = reader.points[-1]
            plan = await backed.target(mode=mode).plan(Contents(reader, point, point.disks))
            told += [json.dumps(plan.as_dict()), str(plan.table()), json.dumps(point.configuration)]
            told += [(await reader.document(point, name)).decode("latin-1") for name in point.documents]
        receipt = await backed.restore(mode=mode, keep=["*"])
    assert receipt.failures == []
    assert any("guestinfo.userdata" in text for text in told)
    stored = [path for path in backed.repository.path.rglob("*") if path.is_file()]
    assert [path for path in stored if MARK.encode() in path.read_bytes()] == []
    assert MARK not in "".join(told)
    assert MARK not in str(receipt)
    assert MARK not in caplog.text
