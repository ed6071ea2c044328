"""New VMs that a restore makes: how they are found again, and when and how one is taken away.

A new VM is ours when two witnesses agree: an intent of the journal, and its token in a setting of the VM. It is
destroyed only while it is as the restore left it. One that somebody switched on, renamed, took a snapshot of or
gave another disk is kept and reported: whoever did that counts on it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial

from pyVmomi import vim

from pipeline.errors import MoverError

from ..api.faults import ObjectGone
from ..api.properties import Row, read_all, read_each
from ..api.retry import retry
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.datastore import DatastorePath, delete_file
from ..inventory.hardware import vm_disks
from ..inventory.lookup import find_vm, find_vm_by_uuid, name_of
from ..journal.intents import SHEET, WHOLE, Intent
from .power import POWER_STATE

log = logging.getLogger(__name__)

TOKEN = "vadpipe.restore"  # the setting of the new VM that holds the token of its intent
_SETTINGS = "config.extraConfig"
_DEVICES = "config.hardware.device"
_VMX = "config.files.vmPathName"
NEW_VM_PATHS = ("name", _SETTINGS, _DEVICES, POWER_STATE, "snapshot", _VMX)


def token_in(row: Row) -> str:
    """The token of a restore in the settings of a VM; empty without one."""
    return next((str(one.value) for one in row.get(_SETTINGS) or () if one.key == TOKEN), "")


def ours(rows: Iterable[Row], intent: Intent) -> Row | None:
    """The VM among these that carries the token of the intent."""
    return next((row for row in rows if token_in(row) == intent.token), None)


async def find_new_vm(session: VcenterSession, intent: Intent) -> Row | None:
    """The new VM of an intent, with NEW_VM_PATHS; None when there is none.

    It is looked for by its UUID and its reference, and by its name where these lead nowhere: a server may have
    given it another UUID.

    Raises:
        MoverError: The server cannot tell.
    """
    by_uuid = await find_vm_by_uuid(session, intent.vm_uuid)
    if found := await _with_token(session, {by_uuid, intent.vm_moref} - {None, ""}, intent):
        return found
    names: dict[type, Sequence[str]] = {vim.VirtualMachine: ["name"]}
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, names))
    return await _with_token(
        session, {row.moref for row in rows if name_of(row) == intent.vm_name} - {by_uuid}, intent
    )


async def _with_token(session: VcenterSession, morefs: Iterable[str | None], intent: Intent) -> Row | None:
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in morefs]
    for subject in subjects:  # one by one: a reference of a VM that is gone fails the whole call
        try:
            look = partial(read_each, session.content, [subject], NEW_VM_PATHS)
            rows = await session.call("RetrieveProperties", look)
        except ObjectGone:
            continue
        if found := ours(rows, intent):
            return found
    return None


def reason_to_keep(row: Row, intent: Intent) -> str:
    """Why the new VM must not be destroyed, as a clause; empty when it may be."""
    if intent.phase == WHOLE:
        return "it is complete and proved"
    if (power := row.get(POWER_STATE)) != "poweredOff":
        return f"somebody switched it on ({power}) before it was complete; its disks may lack data"
    if (name := name_of(row)) != intent.vm_name:
        return f"somebody renamed it to {name!r}; its disks may lack data"
    if row.get("snapshot") is not None:
        return "somebody took a snapshot of it; its disks may lack data"
    others = [
        disk.label
        for disk in vm_disks(row.get(_DEVICES) or ())
        if intent.disks.get(disk.key) != disk.capacity
    ]
    return f"somebody attached other disks to it: {', '.join(others)}" if others else ""


async def destroy_new_vm(session: VcenterSession, intent: Intent) -> bool:
    """Destroy the new VM of an intent with its disks; returns whether there was one. May be repeated.

    Raises:
        NewVmKept: Somebody uses it.
        MoverError: The server refuses, or is away.
    """
    was_there = False

    async def destroy() -> None:
        nonlocal was_there
        row = await find_new_vm(session, intent)
        if row is None:
            return
        was_there = True
        if reason := reason_to_keep(row, intent):
            raise NewVmKept(f"The new VM {intent.vm_name} is kept: {reason}.", vm=intent.vm_name)
        if intent.phase == SHEET:
            await _delete_sheet(session, row)
        subject = vim.VirtualMachine(row.moref, session.stub)
        log.info("%s: destroying the new VM %s (%s)", session.server, intent.vm_name, row.moref)
        try:
            task = await session.call("Destroy_Task", subject.Destroy, changes=True)
            await wait_for_task(session, task, "Destroy_Task")
        except ObjectGone as exc:
            if exc.transient:  # the task was forgotten: look again
                raise

    await retry(destroy, session.settings.patience_s)
    return was_there


def sheet_beside(vmx: str) -> DatastorePath:
    """Where the restore sheet of a VM is, by its configuration file. Raises ValueError for no datastore path."""
    place = DatastorePath.parse(vmx)
    return place.parent.join(f"{place.name.removesuffix('.vmx')}-restore-sheet.iso")


async def _delete_sheet(session: VcenterSession, row: Row) -> None:
    """Delete the sheet that may lie beside the VM: its destruction takes away its own files alone."""
    try:
        place = sheet_beside(str(row.get(_VMX)))
        await delete_file(session, place, (await find_vm(session, row.moref)).datacenter)
    except (MoverError, ValueError) as exc:
        if isinstance(exc, MoverError) and exc.transient:
            raise
        log.warning("%s: the restore sheet of %s may be left: %s", session.server, name_of(row), exc)


class NewVmKept(MoverError):
    """A new VM is used by somebody and is not destroyed. Fact: `vm`."""
