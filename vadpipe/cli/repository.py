"""The commands of repositories: init, points, show, restore, verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import click

from pipeline.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    IntegrityError,
    SinkError,
)
from pipeline.units import MiB, format_size
from sinks.restoring import RestoredDisk, RestoreReceipt, parse_target
from sinks.restoring import restore as restore_point
from vadpipe.repository import verify as verify_repository
from vadpipe.repository.reader import RepositoryReader, open_repository
from vadpipe.repository.restore_point import RestorePoint
from vadpipe.repository.store import Repository
from vadpipe.repository.verify import VerifyReport

from .main import (
    error_lines,
    json_option,
    run_async,
    show,
)
from .manifest import MANIFEST_NAME, write_new
from .progress import show_progress
from .verdict import stored_verdict_lines

repository_argument = click.argument("repository", type=click.Path(path_type=Path))
point_argument = click.argument("point")
force_option = click.option("--force", is_flag=True, help="Replace files that exist already.")
vm_option = click.option("--vm", metavar="NAME", help="Only points of this VM (name or UUID).")


@click.command()
@repository_argument
@json_option
def init(repository: Path, as_json: bool) -> None:
    """Make a repository in an empty or new directory."""
    Repository(repository).init()
    show({"repository": str(repository)}, [f"{repository} is a repository now."], as_json)


@click.command()
@repository_argument
@vm_option
@json_option
def points(repository: Path, vm: str | None, as_json: bool) -> int:
    """List restore points, oldest first."""
    reader = run_async(_opened, repository)
    found = [point for point in reader.points if vm in (None, point.machine.name, point.machine.uuid)]
    document = {
        "points": [_summary(point) for point in found],
        "damaged": [str(error) for error in reader.damaged],
    }
    show(document, [_point_line(point) for point in found], as_json)
    for error in reader.damaged:
        click.echo(f"vadpipe: {error}", err=True)
    return EXIT_FAILED if reader.damaged else EXIT_DONE


@click.command("show")
@repository_argument
@point_argument
@vm_option
@click.option(
    "--extract", type=click.Path(path_type=Path), metavar="DIR", help="Write the point's documents there."
)
@click.option(
    "--extract-manifest",
    "manifest",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Write the VSS manifest there, as it came from the datastore.",
)
@force_option
@json_option
def show_point(
    repository: Path,
    point: str,
    vm: str | None,
    extract: Path | None,
    manifest: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show a restore point: its disks, how consistent it is and why, and what preflight said."""
    reader = run_async(_opened, repository)
    found = reader.resolve(point, machine=vm)
    if extract is not None:
        extract.mkdir(parents=True, exist_ok=True)
        for name in found.documents:
            if Path(name).name != name:
                raise IntegrityError(f"The document {name!r} of point {found.id} would leave {extract}.")
            write_new(extract / name, reader.read_document(found, name), replace=force)
    if manifest is not None:
        _extract_manifest(reader, found, manifest, force)
    show(found.as_dict(), _point_lines(found), as_json)


def _extract_manifest(reader: RepositoryReader, point: RestorePoint, place: Path, force: bool) -> None:
    if MANIFEST_NAME not in point.documents:
        raise SinkError(f"Point {point.id} holds no VSS manifest.", remedy="`vadpipe show` tells why.")
    target = place / f"{point.id}-{MANIFEST_NAME}" if place.is_dir() else place
    write_new(target, reader.read_document(point, MANIFEST_NAME), replace=force)


@click.command()
@repository_argument
@point_argument
@click.argument("target")
@vm_option
@click.option("--disk", "keys", multiple=True, metavar="KEY", help="Only this disk; may be repeated.")
@force_option
@json_option
def restore(
    repository: Path,
    point: str,
    target: str,
    vm: str | None,
    keys: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> int:
    """Restore POINT (an id, a unique prefix of one, or `latest`) to TARGET: raw:DIR, or null: for a proof."""
    place = parse_target(target)

    async def work() -> RestoreReceipt:
        async with open_repository(repository) as reader, show_progress(as_json) as watch:
            found = reader.resolve(point, machine=vm)
            return await restore_point(reader, found, place, keys=keys, force=force, watch=watch)

    receipt = run_async(work)
    errors = [line for failure in receipt.failures for line in error_lines(failure)]
    document = {
        "ok": not errors,
        "point": receipt.point.id,
        "disks": [_restored(disk) for disk in receipt.disks],
        "errors": errors,
    }
    show(document, [_restored_line(disk) for disk in receipt.disks], as_json)
    for line in errors:
        click.echo(f"vadpipe: {line}", err=True)
    return EXIT_FAILED if errors else EXIT_DONE


@click.command()
@repository_argument
@json_option
def verify(repository: Path, as_json: bool) -> int:
    """Read everything back: every frame of every pack, every map of every point."""

    async def work() -> VerifyReport:
        async with open_repository(repository) as reader:
            return await verify_repository(reader)

    report = run_async(work)
    show(report.as_dict(), report.lines(), as_json)
    return EXIT_FAILED if report.damages else EXIT_DONE


async def _opened(repository: Path) -> RepositoryReader:
    async with open_repository(repository) as reader:
        return reader


def _summary(point: RestorePoint) -> dict[str, object]:
    return {
        "id": point.id,
        "vm": point.machine.name,
        "uuid": point.machine.uuid,
        "created": point.created,
        "quiescing": point.quiescing.reached,
        "disks": [disk.key for disk in point.disks],
    }


def _point_line(point: RestorePoint) -> str:
    logical = sum(disk.capacity for disk in point.disks)
    stored = sum(disk.receipt.stored for disk in point.disks)
    return (
        f"{point.id}  {point.created}  {point.machine.name}  {len(point.disks)} disks, "
        f"{format_size(logical)}, {format_size(stored)} stored, {point.quiescing.reached or 'not verified'}"
    )


def _point_lines(point: RestorePoint) -> list[str]:
    quiescing = point.quiescing
    lines = [
        _point_line(point),
        f"  quiescing: asked {quiescing.asked}, reached {quiescing.reached or 'not verified'}",
        *(f"    {reason}" for reason in quiescing.reasons),
        *_preflight_lines(point.preflight),
        *stored_verdict_lines(quiescing.verdict),
    ]
    for disk in point.disks:
        tracked = f", change id {disk.change_id}" if disk.change_id else ""
        lines += [
            f"  disk {disk.key} ({disk.receipt.label}): {format_size(disk.capacity)}{tracked}",
            f"    root {disk.receipt.root}",
        ]
    return lines + [f"  document {name}: {each.length} bytes" for name, each in point.documents.items()]


def _preflight_lines(document: Mapping[str, object] | None) -> list[str]:
    """What was found before the snapshot; what nobody could tell is counted, and listed by --json."""
    if document is None:
        return ["  preflight: none"]
    if "problem" in document:
        return [f"  preflight: none, because {document['problem']}"]
    findings = cast("Sequence[Mapping[str, str]]", document.get("findings", ()))
    unknown = cast("Sequence[object]", document.get("unknown", ()))
    told = ["  preflight: " + (f"{len(findings)} found" if findings else "nothing found")]
    told[0] += f", {len(unknown)} not known" if unknown else ""
    for finding in findings:
        subject = f"{finding['subject']}: " if finding["subject"] else ""
        told.append(f"    {finding['severity']} {finding['rule']}: {subject}{finding['found']}")
    return told


def _restored(disk: RestoredDisk) -> dict[str, object]:
    return {
        "key": disk.key,
        "path": None if disk.path is None else str(disk.path),
        "capacity": disk.capacity,
        "data": disk.data,
        "root": disk.root,
        "wall_s": round(disk.wall_s, 3),
    }


def _restored_line(disk: RestoredDisk) -> str:
    rate = disk.data / MiB / disk.wall_s if disk.wall_s else 0.0
    where = disk.path or "nowhere"
    return (
        f"disk {disk.key}: {format_size(disk.capacity)} to {where}, {format_size(disk.data)} of data "
        f"in {disk.wall_s:.2f} s ({rate:.0f} MiB/s), proved up to root {disk.root[:16]}..."
    )
