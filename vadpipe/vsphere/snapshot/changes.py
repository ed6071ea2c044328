"""Change tracking of a snapshot's disk: queried page by page, and used only where the answers are consistent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pyVmomi import vim
from pyVmomi.VmomiSupport import long

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
from ..inventory.hardware import VmDisk
from ..inventory.lookup import Vm

# Change tracking is right when a snapshot is made after the one before it is gone and the disks are consolidated;
# the other order has corrupted restores, and changes made during a consolidation were not reported (KB 2136854).
OUT_OF_ORDER = (
    "The disks of {vm} needed consolidation when the snapshot was made, so change tracking is not used: they are "
    "read in full, this time and the next."
)


async def changed_areas(
    session: VcenterSession, vm: Vm, snapshot: str, disk: VmDisk, since: str, offset: int
) -> ChangedAreas:
    """One page of the areas that changed between change id `since` and the snapshot.

    Args:
        offset: Where the page starts, in bytes.

    Raises:
        ChangeTrackingInvalid: The whole disk must be read instead.
        ConnectionLost: Only the server is away.

    Source: QueryChangedDiskAreas of the vSphere API.
    """
    if disk.change_id is None:
        raise _invalid(disk, "the snapshot has no change id for it", "Enable change tracking for the VM.")
    if not same_tracking(since, disk.change_id):
        raise _invalid(
            disk, f"tracking was reset since then ({since} and {disk.change_id} do not belong together)"
        )
    if not 0 <= offset < disk.capacity:
        raise _invalid(disk, f"offset {offset} is not on the disk of {disk.capacity} bytes")
    subject, taken = vm.reference(session), vim.vm.Snapshot(snapshot, session.stub)
    try:
        page = await session.call(
            "QueryChangedDiskAreas",
            lambda: _page(subject.QueryChangedDiskAreas(taken, disk.device_key, long(offset), since)),
        )
    except (ConnectionLost, SessionExpired, LoginRefused, CertificateRefused):
        raise
    except SourceError as exc:
        raise _invalid(disk, f"the server refused the query ({exc.problem.rstrip('.')})") from exc
    reason = flaw(page, offset, disk.capacity)
    if reason:
        raise _invalid(disk, reason)
    return ChangedAreas(page.offset, page.length, Extents.from_columns(page.start, page.size))


@dataclass(frozen=True, eq=False)
class Page:
    """An answer of the server, unchecked. Bytes; `start` and `size` are columns with one entry per area."""

    offset: int
    length: int
    start: Offsets
    size: Offsets


def same_tracking(since: str, now: str) -> bool:
    """Whether two change ids, `<uuid>/<sequence>`, belong to one unbroken tracking."""
    (tracking, slash, _), (tracking_now, slash_now, _) = since.partition("/"), now.partition("/")
    return bool(slash and slash_now and tracking) and tracking.lower() == tracking_now.lower()


def flaw(page: Page, offset: int, capacity: int) -> str:
    """Why a page is inconsistent; empty when it is not."""
    if page.offset != offset:
        return f"the query started at byte {offset}, but the answer at {page.offset}"
    if page.length <= 0 or offset + page.length > capacity:
        return f"a page of {page.length} bytes from byte {offset} is not on the disk of {capacity} bytes"
    inside = (page.size > 0) & (page.start >= offset) & (page.start + page.size <= offset + page.length)
    if not inside.all():
        return f"an area lies outside its page of {page.length} bytes from byte {offset}"
    return ""


def untracked(disks: Sequence[VmDisk]) -> list[VmDisk]:
    """The disks without their change ids, which are then neither used now nor stored for the next run."""
    return [replace(facts, change_id=None) for facts in disks]


def _page(info: vim.VirtualMachine.DiskChangeInfo) -> Page:
    areas = np.array([(area.start, area.length) for area in info.changedArea], dtype=np.int64).reshape(-1, 2)
    return Page(info.startOffset, info.length, areas[:, 0], areas[:, 1])


def _invalid(disk: VmDisk, reason: str, remedy: str = "") -> ChangeTrackingInvalid:
    return ChangeTrackingInvalid(
        f"Change tracking of {disk.label} ({disk.key}) cannot be used: {reason}.",
        remedy=remedy or "The disk has to be read in full this time.",
        disk=disk.key,
        reason=reason,
    )


async def enable_change_tracking(session: VcenterSession, vm: Vm) -> str:
    """Switch change tracking on for the VM; it takes effect with the next snapshot. May be repeated.

    Returns:
        Empty, or a sentence that says why it was not possible.
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
