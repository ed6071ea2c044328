"""Change tracking of a snapshot's disk: asked page by page, believed only where its answer holds together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pyVmomi import vim

from pipeline.errors import ChangeTrackingInvalid, SourceError
from pipeline.extents import Extents, Offsets
from pipeline.protocols import ChangedAreas

from ..api.faults import (
    CertificateRefused,
    ConnectionLost,
    LoginRefused,
    SessionExpired,
)
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..inventory.hardware import DiskFacts
from ..inventory.lookup import Vm

# Change tracking is right when a snapshot is made after the one before it is gone and the disks are consolidated;
# the other order has corrupted restores, and changes made during a consolidation were not reported (KB 2136854).
OUT_OF_ORDER = (
    "The disks of {vm} needed consolidation when the snapshot was made, so change tracking is not believed: they "
    "are read in full, and so the next time."
)


async def changed_areas(
    session: VcenterSession, vm: Vm, snapshot: str, disk: DiskFacts, since: str, offset: int
) -> ChangedAreas:
    """One page of what changed on the disk between change id `since` and the snapshot, from `offset` on. Bytes.

    Raises ChangeTrackingInvalid when the whole disk must be read instead, ConnectionLost when only the
    server is away. Source: QueryChangedDiskAreas of the vSphere API.
    """
    if disk.change_id is None:
        raise _invalid(disk, "it is not tracked in this snapshot", "Enable change tracking for the VM.")
    if not same_tracking(since, disk.change_id):
        raise _invalid(disk, f"it was reset since then ({since} and {disk.change_id} are of two trackings)")
    if not 0 <= offset < disk.capacity:
        raise _invalid(disk, f"offset {offset} is not on the disk of {disk.capacity} bytes")
    subject, taken = vm.reference(session), vim.vm.Snapshot(snapshot, session.stub)
    try:
        page = await session.call(
            "QueryChangedDiskAreas",
            lambda: _page(subject.QueryChangedDiskAreas(taken, disk.device_key, offset, since)),
        )
    except (ConnectionLost, SessionExpired, LoginRefused, CertificateRefused):
        raise
    except SourceError as exc:
        raise _invalid(disk, f"the server refused to tell ({exc.problem.rstrip('.')})") from exc
    reason = flaw(page, offset, disk.capacity)
    if reason:
        raise _invalid(disk, reason)
    return ChangedAreas(page.offset, page.length, Extents.from_columns(page.start, page.size))


@dataclass(frozen=True, eq=False)
class Page:
    """An answer as it came: `start` and `size` are the columns of the areas, in bytes, unchecked."""

    offset: int
    length: int
    start: Offsets
    size: Offsets


def same_tracking(since: str, now: str) -> bool:
    """Whether two change ids, `<uuid>/<sequence>`, belong to one unbroken tracking."""
    (tracking, slash, _), (tracking_now, slash_now, _) = since.partition("/"), now.partition("/")
    return bool(slash and slash_now and tracking) and tracking.lower() == tracking_now.lower()


def flaw(page: Page, offset: int, capacity: int) -> str:
    """Why a page cannot be believed; empty when it can."""
    if page.offset != offset:
        return f"it was asked from byte {offset} and answered from {page.offset}"
    if page.length <= 0 or offset + page.length > capacity:
        return f"a page of {page.length} bytes from byte {offset} is not on the disk of {capacity} bytes"
    inside = (page.size > 0) & (page.start >= offset) & (page.start + page.size <= offset + page.length)
    if not inside.all():
        return f"an area lies outside its page of {page.length} bytes from byte {offset}"
    return ""


def untracked(disks: Sequence[DiskFacts]) -> list[DiskFacts]:
    """The disks without their change ids: what they were is neither asked for now nor remembered for later."""
    return [replace(facts, change_id=None) for facts in disks]


def _page(info: vim.VirtualMachine.DiskChangeInfo) -> Page:
    areas = np.array([(area.start, area.length) for area in info.changedArea], dtype=np.int64).reshape(-1, 2)
    return Page(info.startOffset, info.length, areas[:, 0], areas[:, 1])


def _invalid(disk: DiskFacts, reason: str, remedy: str = "") -> ChangeTrackingInvalid:
    return ChangeTrackingInvalid(
        f"Change tracking of {disk.label} ({disk.key}) cannot be used: {reason}.",
        remedy=remedy or "The disk has to be read in full this time.",
        disk=disk.key,
        reason=reason,
    )


async def enable_change_tracking(session: VcenterSession, vm: Vm) -> str:
    """Switch change tracking on for the VM; it takes effect with the next snapshot.

    Returns a sentence that says why it was not possible, or nothing. Begins with looking, so it can be repeated
    after a lost answer. Raises VsphereError.
    """
    subject = vm.reference(session)
    paths = ["config.changeTrackingEnabled", "snapshot"]
    row = await session.properties(subject, paths)
    if row.get("config.changeTrackingEnabled"):
        return ""
    if row.get("snapshot") is not None:
        return (
            f"Change tracking of {vm.name} stays off: it can be enabled only while the VM has no snapshots. "
            "Remove them and run again."
        )
    wanted = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(wanted), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")
    return ""
