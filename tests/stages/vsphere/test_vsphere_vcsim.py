"""The same client code against govmomi's simulator: a second opinion from a codec that is not pyVmomi's.

Needs the environment variable VCSIM to name a `vcsim` binary.
"""

import hashlib
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import SourceError
from pipeline.secrets import Secret
from stages.vsphere import (
    Journal,
    LoginRefused,
    Outcome,
    Quiesce,
    Vcenter,
    VcenterVm,
    find_vm,
    open_snapshot,
    snapshots_left,
    sweep,
)
from stages.vsphere.journal import new_intent
from stages.vsphere.snapshot_tree import description_with
from stages.vsphere.tasks import wait_for_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("VCSIM"), reason="the environment variable VCSIM names no vcsim binary"
    ),
]

WEB01 = "DC0_H0_VM0"


@pytest.fixture
def vcsim() -> Iterator[Vcenter]:
    command = [
        os.environ["VCSIM"],
        "-l",
        "127.0.0.1:0",
        "-stdinexit",
        "-username",
        "user",
        "-password",
        "pass",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, line
        port = int(found[1])
        pem = ssl.get_server_certificate(("127.0.0.1", port))
        thumbprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        yield Vcenter("127.0.0.1", "user", Secret.from_text("pass"), thumbprint=thumbprint, port=port)
        process.communicate()  # the end of its input ends it


async def test_login_and_lookup(vcsim: Vcenter) -> None:
    async with vcsim.connect() as session:
        assert session.is_vcenter
        vm = await find_vm(session, WEB01)
        assert (vm.name, vm.datacenter) == (WEB01, "DC0")
        assert (await find_vm(session, vm.path)) == vm
        with pytest.raises(SourceError, match=WEB01):
            await find_vm(session, "DC0_H0_VM")


async def test_a_wrong_password(vcsim: Vcenter) -> None:
    with pytest.raises(LoginRefused):
        async with replace(vcsim, password=Secret.from_text("wrong")).connect():
            pass


async def test_a_session_that_was_ended_is_renewed(vcsim: Vcenter) -> None:
    async with vcsim.connect() as session, vcsim.connect() as other:

        def end_the_first() -> None:
            manager = session.content.sessionManager
            assert manager is not None
            key = manager.currentSession.key
            vim.SessionManager("SessionManager", other.stub).TerminateSession([key])

        await session.call("TerminateSession", end_the_first)
        assert (await find_vm(session, WEB01)).name == WEB01


async def test_a_snapshot_comes_and_goes(vcsim: Vcenter, journal: Journal) -> None:
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        async with open_snapshot(
            session, vm, Quiesce.application(policy="try"), journal, run="r"
        ) as snapshot:
            assert await snapshots_left(session, vm) == 1
            assert snapshot.disks
            assert snapshot.configuration["name"] == WEB01
        assert await snapshots_left(session, vm) == 0
    assert journal.intents() == []


async def test_the_sweep_takes_ours_and_leaves_theirs(vcsim: Vcenter, journal: Journal) -> None:
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        intent = new_intent(
            server=session.server,
            server_id=session.server_id,
            vm_moref=vm.moref,
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            run="dead",
        )
        journal.write(replace(intent, process_start="an earlier boot/1"))
        subject = vm.reference(session)
        for description in ("theirs", description_with(intent.token)):
            task = await session.call(
                "CreateSnapshot_Task",
                lambda text=description: subject.CreateSnapshot("x", text, False, False),
                changes=True,
            )
            await wait_for_task(session, task, "CreateSnapshot_Task")
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert await snapshots_left(session, vm) == 1
    assert journal.intents() == []


async def test_a_capture_ends_clean_where_no_disk_can_be_read(vcsim: Vcenter, journal: Journal) -> None:
    """The simulator has no disk content: opening fails, and everything else is undone."""

    class Reader:
        def open(self, access: object, pool: object) -> None:
            raise SourceError("no disk content here")

    with pytest.raises(SourceError, match="no disk content"):
        async with VcenterVm(vcsim, WEB01, reader=Reader(), journal=journal, preflight=None).capture():
            pass
    async with vcsim.connect() as session:
        assert await snapshots_left(session, await find_vm(session, WEB01)) == 0
