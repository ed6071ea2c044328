"""The command restore, and a restore for people: its plan, and what became of it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.composition import has_methods
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError
from pipeline.units import MiB, format_size
from sinks.restoring import Contents, RestoredDisk, RestoreReceipt, RestoreTarget, disks_of
from sinks.restoring import restore as restore_point
from sinks.targets import parse_target

from .commands import OnRepository, disk_option, json_option, point_argument, repository_argument, vm_option
from .config import read_target, read_target_in_place
from .output import error_lines, report, show, table
from .process import run_async
from .progress import show_progress
from .repository import force_option, opened_point

if TYPE_CHECKING:
    from vadpipe.vsphere.plan.values import RestorePlan

_PLACES = ("folder", "pool", "host", "datastore")


@click.command(cls=OnRepository)
@repository_argument
@point_argument
@click.argument("target")
@vm_option
@disk_option
@force_option
@click.option("--name", metavar="NAME", help="vsphere: the name of the new VM.")
@click.option(
    "--map",
    "mapped",
    multiple=True,
    metavar="OLD=NEW",
    help="vsphere: a network by its old name; or folder=, pool=, host=, datastore=; or the datastore of a disk by "
    "its key, as in scsi0:1=fast. May be repeated.",
)
@click.option(
    "--mapping",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="vsphere: more of them, in TOML or JSON.",
)
@click.option(
    "--via",
    type=click.Choice(["vddk", "lease"]),
    help="vsphere: how a new VM gets its disks: written through VDDK, or sent over HTTPS without it.",
)
@click.option(
    "--sheet",
    type=click.Choice(["folder", "drive", "none"]),
    help="vsphere: a CD image with what the applications of a new VM need: beside its configuration file (the "
    "default), in a CD drive as well, or nowhere.",
)
@click.option("--power-on", is_flag=True, help="vsphere: switch the new VM on at the end.")
@click.option("--prove", metavar="all|SHARE|SIZE", help="vsphere: how much of each disk is read back.")
@click.option(
    "--in-place", is_flag=True, help="vsphere: write over the VM itself, which must be off; see OverVm."
)
@click.option(
    "--plan", "plan_only", is_flag=True, help="vsphere: print what would be made, and make nothing."
)
@json_option
def restore(
    repository: str,
    point: str,
    target: str,
    vm: str | None,
    keys: tuple[str, ...],
    force: bool,
    name: str | None,
    mapped: tuple[str, ...],
    mapping: Path | None,
    via: str | None,
    sheet: str | None,
    power_on: bool,
    prove: str | None,
    in_place: bool,
    plan_only: bool,
    as_json: bool,
) -> int:
    """Restore a restore point into files or into a new VM, or prove that it can be restored.

    POINT is an id, a unique prefix of one, or `latest`. TARGET is one of

    \b
    raw:DIR          one sparse image per disk: DIR/VM/POINT/scsi0-0.raw
    raw:-            the bytes of one disk to standard output
    vmdk:DIR         one VMDK per disk; ?format= is one of monolithicSparse (the default),
                     monolithicFlat, twoGbMaxExtentSparse and streamOptimized
    ova:FILE         the VM's description and its disks in one file, to carry by hand
    qcow2:DIR        one qcow2 image per disk
    device:/dev/...  one disk onto a block device; overwrites it with --force only
    nbd://HOST/NAME  one disk onto an export of an NBD server, with --force; also nbds://
                     (TLS) and nbd+unix:///NAME?socket=PATH
    vsphere:CONFIG   a new VM, as the `target` of the configuration says; with --in-place
                     the VM itself, as its `in_place` permits
    null:            nothing is written: a proof that the point can be restored

    Exit code 3: everything is restored, but something is not as planned.
    """
    options = {
        "name": name,
        "mapping": mapping,
        "via": via,
        "sheet": sheet,
        "power_on": power_on or None,
        "prove": prove,
    }
    changes = {**mappings(mapped), **{key: value for key, value in options.items() if value}}
    place = target_of(target, changes, in_place=in_place)
    if plan_only:
        return _show_plan(repository, point, vm, keys, place, as_json)
    to_output = getattr(place, "uses_standard_output", False)
    if to_output and as_json:
        raise ConfigError(f"{target} and --json both write to standard output.", remedy="Leave --json out.")

    async def work() -> RestoreReceipt:
        async with (
            opened_point(repository, point, vm) as (reader, found),
            show_progress(as_json) as progress,
        ):
            return await restore_point(reader, found, place, keys=keys, force=force, watch=progress.of())

    receipt = run_async(work)
    errors = [line for failure in receipt.failures for line in error_lines(failure)]
    document = {"ok": not errors, **receipt.as_dict(), "errors": errors}
    lines = restore_lines(receipt)
    if to_output:
        for line in lines:
            report(line)
    else:
        show(document, lines, as_json)
    for line in errors:
        report(line)
    if errors:
        return EXIT_FAILED
    return EXIT_ATTENTION if receipt.attention else EXIT_DONE


def target_of(text: str, changes: dict[str, Any], *, in_place: bool = False) -> RestoreTarget:
    """The target that a command names, with these settings changed. Raises ConfigError."""
    kind, _, place = text.partition(":")
    is_config = kind == "vsphere" and place
    if in_place and not is_config:
        raise ConfigError("--in-place is for vsphere:CONFIG.py alone.", remedy="Leave it out.")
    found: RestoreTarget
    if in_place:
        found = read_target_in_place(Path(place))
    else:
        found = read_target(Path(place)) if is_config else parse_target(text)
        loaded = sys.modules.get("sinks.in_place")  # what a configuration makes of it has loaded it
        if loaded is not None and isinstance(found, loaded.OverVm):
            raise ConfigError(
                f"The target of {place} writes over the VM itself.", remedy="Add --in-place if that is meant."
            )
    if not changes:
        return found
    known: set[str] = (
        {item.name for item in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
    )
    if unknown := sorted(changes.keys() - known):
        raise ConfigError(
            f"{text} has no setting {', '.join(unknown)}.",
            remedy="Leave these options out, or name a target vsphere:CONFIG.py.",
        )
    for setting in ("networks", "datastores"):
        if setting in changes:
            changes[setting] = {**getattr(found, setting), **changes[setting]}
    changed: RestoreTarget = dataclasses.replace(found, **changes)  # type: ignore[type-var]
    return changed


def mappings(texts: Sequence[str]) -> dict[str, Any]:
    """The settings that OLD=NEW texts mean. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not old or not equals:
            raise ConfigError(f"--map {text!r} is no mapping.", remedy="Write OLD=NEW.")
        if old in _PLACES:
            settings[old] = new
        else:
            kind = "datastores" if ":" in old and old.partition(":")[2].isdigit() else "networks"
            settings.setdefault(kind, {})[old] = new
    return settings


def _show_plan(
    repository: str, point: str, vm: str | None, keys: Sequence[str], place: RestoreTarget, as_json: bool
) -> int:
    if not has_methods(place, "plan"):
        raise ConfigError("--plan is for vsphere:CONFIG.py alone.", remedy="Leave it out.")
    planning: Any = place

    async def work() -> RestorePlan:
        async with opened_point(repository, point, vm) as (reader, found):
            plan: RestorePlan = await planning.plan(Contents(reader, found, disks_of(found, keys)))
            return plan

    plan = run_async(work)
    show(plan.as_dict(), restore_plan_lines(plan), as_json)
    return EXIT_FAILED if plan.problems else EXIT_DONE


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
    lines += [f"REMARK: {sentence}" for sentence in plan.warnings]
    lines += [f"PROBLEM: {one.sentence} {one.remedy}".rstrip() for one in plan.problems]
    return lines
