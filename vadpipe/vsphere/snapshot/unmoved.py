"""Whether a snapshot stayed where it was while its disks were read.

A vMotion or Storage vMotion during the read has lost data silently in the field: blocks that a datastore has freed
may read as anything. The removal of an older snapshot likewise rewrites files below ours. So the host is noted
before the disks are opened, and compared after the last read, together with the files of the snapshot. A difference
fails the run: what was read meanwhile cannot be proved, and another run costs less than a damaged point. A VM that
was moved away and back between the two looks is not noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pyVmomi import vim

from pipeline.errors import SourceError

from ..api.faults import ObjectGone
from ..api.retry import retry
from ..api.session import VcenterSession
from ..inventory.hardware import vm_disks
from ..inventory.lookup import Vm
from .snapshot import Snapshot


class Moved(SourceError):
    """The VM or the files of its snapshot were moved while they were read. Facts: `vm`, `snapshot`, `changes`."""

    transient = True


async def host_of(session: VcenterSession, vm: Vm) -> str:
    """The moref of the host that the VM is on; empty when the server does not show it."""
    host = (await session.properties(vm.reference(session), ["runtime.host"])).get("runtime.host")
    return "" if host is None else str(host._moId)


async def require_unmoved(session: VcenterSession, snapshot: Snapshot, host: str) -> None:
    """Compare host and files with those at the start.

    Args:
        host: The VM's host when its disks were opened.

    Raises:
        Moved: They differ.
        SourceError: The server cannot tell.
    """
    patience_s = session.settings.patience_s
    try:
        files = await retry(partial(_files_of, session, snapshot.moref), patience_s)
    except ObjectGone:
        raise _moved(snapshot, ["the snapshot is gone"]) from None
    now = await retry(partial(host_of, session, snapshot.vm), patience_s)
    changes = [f"its host was {host} and is {now}"] if now != host else []
    changes += [
        f"{disk.label} ({disk.key}) was {disk.path} and is {files.get(disk.device_key, 'gone')}"
        for disk in snapshot.disks
        if files.get(disk.device_key) != disk.path
    ]
    if changes:
        raise _moved(snapshot, changes)


async def _files_of(session: VcenterSession, moref: str) -> Mapping[int, str]:
    """The files that the snapshot names now, by device key."""
    subject = vim.vm.Snapshot(moref, session.stub)
    paths = ["config.hardware.device"]
    row = await session.properties(subject, paths)
    return {facts.device_key: facts.path for facts in vm_disks(row.get(paths[0]) or ())}


def _moved(snapshot: Snapshot, changes: list[str]) -> Moved:
    return Moved(
        f"{snapshot.vm.name} was moved while it was read: {'; '.join(changes)}.",
        remedy="Run again. Keep DRS and storage DRS from moving it meanwhile.",
        vm=snapshot.vm.name,
        snapshot=snapshot.moref,
        changes=changes,
    )
