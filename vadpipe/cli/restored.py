"""A restore for people: its plan, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.units import MiB, format_size
from sinks.restoring import RestoredDisk, RestoreReceipt

from .output import table

if TYPE_CHECKING:
    from vadpipe.vsphere.restore.plan_values import RestorePlan


def restore_lines(receipt: RestoreReceipt) -> list[str]:
    """The disks that were restored, and what else is to be said."""
    lines = [*map(restored_line, receipt.disks), *receipt.remarks]
    return lines + [f"ATTENTION: {sentence}" for sentence in receipt.attention]


def restored_line(disk: RestoredDisk) -> str:
    rate = disk.data / MiB / disk.wall_s if disk.wall_s else 0.0
    where = disk.place or "nowhere"
    return (
        f"disk {disk.key}: {format_size(disk.capacity)} to {where}, {format_size(disk.data)} of data "
        f"in {disk.wall_s:.2f} s ({rate:.0f} MiB/s), proved up to root {disk.root[:16]}..."
    )


def restore_plan_lines(plan: RestorePlan) -> list[str]:
    """What becomes of every field, setting and device, what is made, and what forbids it."""
    places = (
        ("folder", plan.folder.path if plan.folder else "?"),
        ("resource pool", plan.pool.path if plan.pool else "?"),
        ("host", plan.host.name if plan.host else "as the server chooses"),
        ("datastore", plan.datastore.name if plan.datastore else "?"),
    )
    lines = [f"New VM {plan.name} (mode {plan.mode}):", *(f"  {what}: {where}" for what, where in places)]
    lines += [
        f"  disk {disk.key} at {disk.controller}:{disk.unit}: {format_size(disk.capacity)}, "
        f"{format_size(disk.data)} of data, {disk.provisioning}, on {disk.datastore}"
        for disk in plan.disks
    ]
    header = ("SUBJECT", "FIELD", "OUTCOME", "OLD", "NEW", "WHY")
    lines += table(header, [tuple(map(str, row)) for row in plan.table()])
    lines += [f"ATTENTION: {sentence}" for sentence in plan.warnings]
    lines += [f"PROBLEM: {one.sentence} {one.remedy}".rstrip() for one in plan.problems]
    return lines
