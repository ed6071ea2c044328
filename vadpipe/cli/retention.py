"""The commands about which points there are and what they take: forget, hold, release, head, stats, diff."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError
from pipeline.units import format_size
from vadpipe.repository.format.config import Origin
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.maintenance.changes import DiskChanges, PointChanges
from vadpipe.repository.maintenance.changes import diff as changes_between
from vadpipe.repository.maintenance.forgetting import (
    Heads,
    compare_heads,
    dated,
    holds,
    read_heads,
)
from vadpipe.repository.maintenance.forgetting import (
    forget as forget_points,
)
from vadpipe.repository.maintenance.forgetting import (
    heads as heads_of,
)
from vadpipe.repository.maintenance.forgetting import (
    hold as hold_point,
)
from vadpipe.repository.maintenance.forgetting import (
    release as release_point,
)
from vadpipe.repository.maintenance.retention import Age, Decision, Keep, decide
from vadpipe.repository.maintenance.statistics import (
    PointStatistics,
    RepositoryStatistics,
    VmStatistics,
    statistics,
)
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.store import Repository
from vadpipe.words import counted

from .commands import OnRepository, json_option, point_argument, repository_argument, vm_option
from .output import report, show, table
from .process import run_async
from .repository import local_time, named_point, points_of

T = TypeVar("T")

_RULES = {
    "last": "the N newest points",
    "hourly": "the newest point of each of the N newest hours with points",
    "daily": "likewise for days",
    "weekly": "likewise for ISO weeks",
    "monthly": "likewise for months",
    "yearly": "likewise for years",
}


def _keep_options(command: Callable[..., T]) -> Callable[..., T]:
    """--keep-last to --keep-yearly."""
    for name, what in reversed(_RULES.items()):
        command = click.option(
            f"--keep-{name}", name, type=int, default=0, metavar="N", help=f"Keep {what}, per VM."
        )(command)
    return command


@click.command(cls=OnRepository)
@repository_argument
@click.argument("points", nargs=-1, metavar="[POINT]...")
@vm_option
@_keep_options
@click.option(
    "--keep-within",
    "within",
    metavar="AGE",
    help="Keep all points that are at most this much older than the newest one of the VM: 30d, 12h, 1y6m.",
)
@click.option("--keep-tag", "tags", multiple=True, metavar="TAG", help="Keep all points with this tag.")
@click.option(
    "--timezone",
    "zone_name",
    metavar="NAME",
    help="Hours and days are those of this zone, not of this machine.",
)
@click.option("--dry-run", is_flag=True, help="Show what would stay and go, and remove nothing.")
@json_option
def forget(
    repository: str,
    points: tuple[str, ...],
    vm: str | None,
    within: str | None,
    tags: tuple[str, ...],
    zone_name: str | None,
    dry_run: bool,
    as_json: bool,
    **rules: int,
) -> int:
    """Remove restore points by rules, per VM, or by their ids.

    A point stays where any rule keeps it. Held points and the newest point of each VM always stay, but for a newest
    point that is named by its id. `vadpipe prune` then gives the space back.
    """
    by_rules = any(rules.values()) or within or tags
    if points and by_rules:
        raise ConfigError(
            "Points and rules were given.", remedy="Name the points that go, or give --keep rules, not both."
        )
    zone = _zone(zone_name)
    keep = None
    if not points:
        keep = Keep(**rules, within=Age.parse(within) if within else None, tags=tags)

    async def work() -> tuple[RepositoryReader, list[list[Decision]], list[RestorePoint], str | None]:
        async with Repository(repository).read() as reader:
            decided, going = await _reading(_choose, reader, points, vm, keep, zone)
            record = None
            if going and not dry_run:
                record = await trio.to_thread.run_sync(
                    forget_points, reader.objects, reader.config, Origin(), going
                )
            return reader, decided, going, record

    reader, decided, going, record = run_async(work)
    document = {
        "repository": reader.objects.place(),
        "rules": None if keep is None else str(keep),
        "dry_run": dry_run,
        "vms": [_decided(group) for group in decided],
        "removed": [point.id for point in going],
        "record": record,
        "damaged": [str(error) for error in reader.damaged],
    }
    lines = [line for group in decided for line in decision_lines(group)]
    lines += _emptied(reader.points, going)
    lines.append(_summary(reader, going, dry_run, keep))
    show(document, lines, as_json)
    return _report_damaged(reader)


def _choose(
    reader: RepositoryReader, names: Sequence[str], vm: str | None, keep: Keep | None, zone: tzinfo | None
) -> tuple[list[list[Decision]], list[RestorePoint]]:
    """The decisions by rules, per VM; and the points that go."""
    if keep is None:
        named = {point.id: point for point in (_named(reader, name, vm) for name in names)}
        return [], list(named.values())
    points = points_of(reader, vm)
    decided = decide(
        dated(points),
        keep,
        now=datetime.now(UTC),
        held=holds(reader.objects, reader.config, points),
        zone=zone,
    )
    gone = {each.point.id for group in decided.values() for each in group if not each.kept}
    return list(decided.values()), [point for point in points if point.id in gone]


def _named(reader: RepositoryReader, name: str, vm: str | None) -> RestorePoint:
    if name == "latest":
        raise ConfigError("`latest` is another point after each backup.", remedy="Name the point by its id.")
    return named_point(reader, name, vm)


def _emptied(points: Iterable[RestorePoint], going: Sequence[RestorePoint]) -> list[str]:
    """A line for each VM that keeps no point."""
    gone = {point.id for point in going}
    left = {point.machine.uuid for point in points if point.id not in gone}
    emptied = {point.machine.uuid: point.machine.name for point in going if point.machine.uuid not in left}
    return [f"VM {name} has no point left; its next backup reads everything." for name in emptied.values()]


def _decided(group: Sequence[Decision]) -> dict[str, object]:
    first = group[0].point
    return {
        "vm": first.vm,
        "uuid": first.machine,
        "points": [
            {"id": each.point.id, "created": each.point.created, "kept": each.kept, "reasons": each.reasons}
            for each in group
        ],
    }


def decision_lines(group: Sequence[Decision]) -> list[str]:
    """The table of one VM: which points stay and why, and which go; the newest first."""
    kept = sum(each.kept for each in group)
    rows = [
        (
            each.point.id,
            local_time(each.point.created.isoformat()),
            "stays" if each.kept else "goes",
            ", ".join(each.reasons),
        )
        for each in group
    ]
    title = (
        f"VM {group[0].point.vm}: {counted(kept, 'point')} stay{'s' * (kept == 1)}, {len(group) - kept} go"
    )
    if len(group) - kept == 1:
        title += "es"
    return [title, *(f"  {line}" for line in table(("POINT", "CREATED", "", "WHY"), rows)), ""]


def _summary(
    reader: RepositoryReader, going: Sequence[RestorePoint], dry_run: bool, keep: Keep | None
) -> str:
    rules = f" by the rules {keep}" if keep else ""
    if not going:
        return f"Nothing goes{rules}."
    if dry_run:
        return f"{counted(len(going), 'point')} would go{rules}; nothing was removed."
    return (
        f"{counted(len(going), 'point')} removed{rules}. What only they needed stays on disk until: "
        f"vadpipe prune {reader.objects.place()}"
    )


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError) as exc:
        raise ConfigError(
            f"There is no time zone {name!r}.", remedy="Write it like Europe/Berlin, or leave --timezone out."
        ) from exc


@click.command(cls=OnRepository)
@repository_argument
@point_argument
@vm_option
@click.option("--reason", required=True, metavar="TEXT", help="Who needs the point, and why.")
@json_option
def hold(repository: str, point: str, vm: str | None, reason: str, as_json: bool) -> int:
    """Keep a restore point from being removed, until it is released."""

    async def work() -> tuple[RestorePoint, str | None]:
        async with Repository(repository).read() as reader:
            found = named_point(reader, point, vm)
            place = reader.objects, reader.config, Origin()
            return found, await trio.to_thread.run_sync(hold_point, *place, found, reason)

    found, remark = run_async(work)
    lines = [f"Point {found.id} of VM {found.machine.name} is held: {reason}."]
    show({"point": found.id, "reason": reason, "remark": remark}, lines, as_json)
    if remark:
        report(remark)
    return EXIT_ATTENTION if remark else EXIT_DONE


@click.command(cls=OnRepository)
@repository_argument
@point_argument
@vm_option
@json_option
def release(repository: str, point: str, vm: str | None, as_json: bool) -> None:
    """End the hold of a restore point."""

    async def work() -> tuple[RestorePoint, str]:
        async with Repository(repository).read() as reader:
            found = named_point(reader, point, vm)
            return found, await trio.to_thread.run_sync(release_point, reader.objects, reader.config, found)

    found, reason = run_async(work)
    lines = [f"Point {found.id} of VM {found.machine.name} is not held any more; it was: {reason}."]
    show({"point": found.id, "reason": reason}, lines, as_json)


@click.command(cls=OnRepository)
@repository_argument
@vm_option
@click.option(
    "--compare",
    "remembered",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with heads that `vadpipe head --json` wrote before.",
)
@json_option
def head(repository: str, vm: str | None, remembered: Path | None, as_json: bool) -> int:
    """Print the newest point of each VM with its seal, for keeping elsewhere.

    Whoever keeps the output can tell later whether points were deleted or rolled back without `vadpipe forget`.
    """
    before = read_heads(remembered) if remembered else None

    async def work() -> tuple[RepositoryReader, Heads, list[str]]:
        async with Repository(repository).read() as reader:
            found = heads_of(reader.config, points_of(reader, vm))
            if before is None:
                return reader, found, []
            place = reader.objects, reader.config
            return reader, found, await _reading(compare_heads, *place, reader.points, before)

    reader, found, problems = run_async(work)
    rows = [
        (each.vm, str(each.number), each.point, local_time(each.created), each.seal) for each in found.heads
    ]
    lines = table(("VM", "NUMBER", "POINT", "CREATED", "SEAL"), rows, right=("NUMBER",))
    if before is not None:
        lines += problems or [
            f"{counted(len(before.heads), 'remembered head')} compared: nothing is missing."
        ]
    document = found.as_dict() if before is None else {**found.as_dict(), "problems": problems}
    show(document, lines or ["The repository has no restore points."], as_json)
    damaged = _report_damaged(reader)
    return EXIT_FAILED if problems else damaged


@click.command(cls=OnRepository)
@repository_argument
@vm_option
@click.option("--points", "each_point", is_flag=True, help="Show a line per point, too; --json has all.")
@json_option
def stats(repository: str, vm: str | None, each_point: bool, as_json: bool) -> int:
    """Show what the points of a repository take, per VM, and what only one of them holds."""

    async def work() -> tuple[RepositoryReader, RepositoryStatistics]:
        async with Repository(repository).read() as reader:
            points_of(reader, vm)  # an unknown VM is named with its likes
            return reader, await _reading(statistics, reader)

    reader, found = run_async(work)
    document = dict(found.as_dict())
    vms = [each for each in found.vms if vm in (None, each.vm, each.uuid)]
    uuids = {each.uuid for each in vms}
    rows = [each for each in found.points if each.uuid in uuids]
    document.update(vms=vms, points=rows)
    lines = _statistics_lines(found, vms, rows if each_point else ())
    show(document, lines, as_json)
    return _report_damaged(reader)


def _statistics_lines(
    found: RepositoryStatistics, vms: Sequence[VmStatistics], points: Sequence[PointStatistics]
) -> list[str]:
    columns = ("SIZE", "ALLOCATED", "UNIQUE", "STORED", "ONLY HERE")
    lines = table(
        ("VM", "POINTS", *columns),
        [(each.vm, str(each.points), *_sizes(each)) for each in vms],
        right=("POINTS", *columns),
    )
    lines += table(
        ("POINT", "CREATED", "VM", *columns),
        [(each.point, local_time(each.created), each.vm, *_sizes(each)) for each in points],
        right=columns,
    )
    ratios = ""
    if found.deduplication is not None and found.compression is not None:
        ratios = f" (deduplication {found.deduplication:.1f}, compression {found.compression:.1f})"
    lines += [
        f"{counted(len(found.points), 'point')} of {counted(len(found.vms), 'VM')} hold "
        f"{format_size(found.allocated)} in disks of {format_size(found.logical)}; "
        f"{format_size(found.stored)} are stored{ratios}.",
        f"Of these, maps are {format_size(found.maps)} and documents {format_size(found.documents)}. "
        f"The index has {format_size(found.index)}.",
        f"The packs have {format_size(found.packs)}; no point needs {format_size(found.unneeded)} of that.",
    ]
    if found.missing:
        lines.append(
            f"Not in the index: {counted(found.missing, 'frame')} that points need. Run vadpipe verify."
        )
    return lines


def _sizes(each: VmStatistics | PointStatistics) -> list[str]:
    return [format_size(size) for size in (each.logical, each.allocated, each.unique, each.stored, each.only)]


@click.command(cls=OnRepository)
@repository_argument
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@vm_option
@click.option("--ranges", is_flag=True, help="Print every changed range: offset and length in bytes.")
@json_option
def diff(repository: str, before: str, after: str, vm: str | None, ranges: bool, as_json: bool) -> None:
    """Show what changed on the disks from restore point A to restore point B.

    Only maps are compared, no data is read. What they cannot decide counts as changed, and is told.
    """

    async def work() -> tuple[RestorePoint, RestorePoint, PointChanges]:
        async with Repository(repository).read() as reader:
            one, other = named_point(reader, before, vm), named_point(reader, after, vm)
            return one, other, await _reading(changes_between, reader, one, other)

    one, other, found = run_async(work)
    lines = [f"{_titled(one)} to {_titled(other)}: {format_size(found.total)} changed"]
    for disk in found.disks:
        lines += _disk_lines(disk, ranges)
    document = {"before": one.id, "after": other.id, "changed": found.total, "disks": found.disks}
    show(document, lines, as_json)


def _titled(point: RestorePoint) -> str:
    return f"{point.id} ({point.machine.name}, {local_time(point.created)})"


def _disk_lines(disk: DiskChanges, ranges: bool) -> list[str]:
    capacity = format_size(disk.after if disk.after is not None else disk.before or 0)
    if disk.before is None or disk.after is None:
        capacity += f", only in {'B' if disk.before is None else 'A'}"
    elif disk.before != disk.after:
        capacity = f"{format_size(disk.before)}, now {capacity}"
    doubt = f"; up to {format_size(disk.unknown)} of that may be equal" if disk.unknown else ""
    changed = f"{format_size(disk.changed.total)} changed in {counted(len(disk.changed), 'range')}{doubt}"
    lines = [f"  disk {disk.key} ({disk.label}), {capacity}: {changed if len(disk.changed) else 'equal'}"]
    if ranges:
        lines += [f"    {offset} {length}" for offset, length in disk.changed]
    return lines


async def _reading(function: Callable[..., T], *args: object) -> T:
    """Run what only reads on a thread; a signal does not wait for it."""
    return await trio.to_thread.run_sync(partial(function, *args), abandon_on_cancel=True)


def _report_damaged(reader: RepositoryReader) -> int:
    """Name damaged points and index segments, which the command could not consider."""
    for error in reader.damaged:
        report(str(error))
    return EXIT_ATTENTION if reader.damaged else EXIT_DONE
