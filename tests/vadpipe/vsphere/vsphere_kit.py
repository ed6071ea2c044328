"""What tests against the lab's vCenter share: its settings, snapshots in it, and intents of dead runs."""

from dataclasses import replace

from pyVmomi import vim

from pipeline.secrets import Secret
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import Vm, find_vm
from vadpipe.vsphere.journal.intents import Intent, Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.remove import Consolidate
from vadpipe.vsphere.snapshot.snapshot import open_snapshot


def settings_of(lab: LabVcenter, **changes) -> Vcenter:
    account = "backup", Secret.from_text("lab")
    return replace(Vcenter(lab.address, *account, thumbprint=lab.thumbprint_sha256, port=lab.port), **changes)


def intent_of(session: VcenterSession, vm: Vm, run: str = "dead") -> Intent:
    return Intent(
        server=session.server,
        server_id=session.server_id,
        vm_moref=vm.moref,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        run=run,
    )


async def dead_intent(session: VcenterSession, journal: Journal, vm: str = "web01") -> Intent:
    """Write an intent of a process that no longer exists."""
    intent = replace(intent_of(session, await find_vm(session, vm)), process_start="an earlier boot/1")
    journal.write(intent)
    return intent


async def begin_snapshot(session: VcenterSession, name: str, description: str, vm: str = "web01") -> vim.Task:
    """Start a snapshot that is not a run's; its task."""
    subject = (await find_vm(session, vm)).reference(session)
    return await session.call(
        "CreateSnapshot_Task", lambda: subject.CreateSnapshot(name, description, False, False), changes=True
    )


async def make_snapshot(session: VcenterSession, name: str, description: str, vm: str = "web01") -> str:
    """The same, finished; the snapshot's moref."""
    task = await begin_snapshot(session, name, description, vm)
    taken = await wait_for_task(session, task, "CreateSnapshot_Task")
    assert isinstance(taken, vim.vm.Snapshot)
    return str(taken._moId)


async def take_and_remove(vcenter: Vcenter, journal: Journal, consolidate: Consolidate = "ask") -> None:
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r", consolidate=consolidate):
            pass
