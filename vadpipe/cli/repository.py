"""The commands of repositories: init, points, show, verify."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import click
import trio

from pipeline.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    ConfigError,
    IntegrityError,
    SinkError,
)
from pipeline.units import format_size
from sinks.restore_job import resolve_point
from vadpipe.files import state_directory, write_durably
from vadpipe.repository import verify as verify_repository
from vadpipe.repository.backends.cached import drop_copies
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.format.ways import NewWay
from vadpipe.repository.maintenance.checksums import ChecksumReport, check_without_key
from vadpipe.repository.maintenance.verify import Budget, Finding, VerifyReport
from vadpipe.repository.reader import RepositoryReader, open_repository
from vadpipe.repository.store import Repository
from vadpipe.vss.fetched import DOCUMENT_NAMES, ManifestKind
from vadpipe.words import counted

from .commands import OnRepository, json_option, point_argument, repository_argument, vm_option
from .findings import quiescing_lines, stored_preflight_lines
from .keys import asked, new_way_options
from .manifest import write_new, write_sheet
from .output import report, show, table
from .process import run_async
from .progress import RunningVerification, show_progress

_NAMED = 5  # VMs or disks that a line names
_DAMAGED = 20  # lines of damaged files
force_option = click.option("--force", is_flag=True, help="Replace files that exist already.")


@click.command(cls=OnRepository)
@repository_argument
@click.option("--seal", is_flag=True, help="Encrypt it. Without a key option, a passphrase is asked for.")
@click.option("--label", default="first", show_default=True, help="What the first key slot is called.")
@new_way_options
@json_option
def init(repository: str, seal: bool, label: str, new_way: NewWay | None, as_json: bool) -> None:
    """Make a repository in an empty or new directory, or below a prefix of a bucket.

    Give the options of a key, and it is sealed: encrypted, and opened by this key. Keep a copy of the key
    elsewhere: nothing else opens the repository.
    """
    opens = asked(new_way) if seal or new_way is not None else None
    Repository(repository).init(opens, label)
    sealed = " It is sealed: without its keys nobody reads it." if opens is not None else ""
    document = {"repository": repository, "sealed": opens is not None}
    show(document, [f"{repository} is a repository now.{sealed}"], as_json)


@click.command(cls=OnRepository)
@repository_argument
@vm_option
@json_option
def points(repository: str, vm: str | None, as_json: bool) -> int:
    """List restore points, oldest first, in local time; --json has UTC."""
    reader = run_async(_opened, repository)
    found = points_of(reader, vm)
    document = {
        "points": [_summary(point) for point in found],
        "damaged": [str(error) for error in reader.damaged],
    }
    show(document, _point_table(found) or ["The repository has no restore points."], as_json)
    for error in reader.damaged:
        report(str(error))
    return EXIT_FAILED if reader.damaged else EXIT_DONE


@click.command("show", cls=OnRepository)
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
@click.option(
    "--restore-sheet",
    "sheet",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.iso",
    help="Write what a restore of applications needs there: a sheet per VSS writer, and the VSS documents.",
)
@force_option
@json_option
def show_point(
    repository: str,
    point: str,
    vm: str | None,
    extract: Path | None,
    manifest: Path | None,
    sheet: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show a restore point: its disks, its consistency and the reasons, and what preflight found."""
    reader = run_async(_opened, repository)
    found = named_point(reader, point, vm)
    if extract is not None:
        extract.mkdir(parents=True, exist_ok=True)
        for name in found.documents:
            if Path(name).name != name:
                raise IntegrityError(f"The document {name!r} of point {found.id} would leave {extract}.")
            write_new(extract / name, reader.read_document(found, name), replace=force)
    if manifest is not None:
        _extract_manifest(reader, found, manifest, force)
    if sheet is not None:
        write_sheet(reader, found, sheet, force=force)
    show(found, _point_lines(found), as_json)


def _extract_manifest(reader: RepositoryReader, point: RestorePoint, place: Path, force: bool) -> None:
    name = DOCUMENT_NAMES[ManifestKind.VSS_ZIP]
    if name not in point.documents:
        raise SinkError(f"Point {point.id} holds no VSS manifest.", remedy="`vadpipe show` tells why.")
    target = place / f"{point.id}-{name}" if place.is_dir() else place
    write_new(target, reader.read_document(point, name), replace=force)


@click.command(cls=OnRepository)
@repository_argument
@click.option("--point", metavar="POINT", help="Only what this restore point needs.")
@vm_option
@click.option(
    "--budget",
    metavar="SHARE|SIZE",
    help="Read up to e.g. 10% or 5GiB of the packs, from where the last --budget on this machine stopped.",
)
@click.option("--seed", type=int, help="Draw the packs of --budget at random, by this seed.")
@click.option(
    "--without-key", is_flag=True, help="Check checksums only; needs no key of a sealed repository."
)
@json_option
def verify(
    repository: str,
    point: str | None,
    vm: str | None,
    budget: str | None,
    seed: int | None,
    without_key: bool,
    as_json: bool,
) -> int:
    """Read everything in a repository back, and prove that it can be restored.

    --point and --budget read less of the packs. The index and the maps are read in any case.
    """
    if without_key:
        if point is not None or vm is not None or budget is not None:
            raise ConfigError(
                "--without-key checks everything.", remedy="Leave --point, --vm and --budget out."
            )
        return _check_without_key(repository, as_json)
    if seed is not None and budget is None:
        raise ConfigError(
            "--seed means nothing without --budget.", remedy="Add --budget, or leave --seed out."
        )
    limit = None if budget is None else Budget(budget, seed or 0)

    async def work() -> VerifyReport:
        backend = backend_at(repository)
        drop_copies(backend)
        async with open_repository(backend) as reader, show_progress(as_json) as progress:
            points = None
            if point is not None:
                points = [named_point(reader, point, vm)]
            elif vm is not None:
                points = points_of(reader, vm)
            running = RunningVerification()
            progress.running.append(running)
            after = None
            if limit is not None and seed is None and points is None:
                after = last_verified(reader.config.id)
            found = await verify_repository(
                reader, points=points, budget=limit, after=after, progress=running.reached
            )
            if after is not None:
                note_verified(reader.config.id, "" if found.covered >= 1 else found.reached)
            return found

    report = run_async(work)
    show(report, [report.summary(), *_damage_lines(report)], as_json)
    return EXIT_FAILED if report.damages else EXIT_DONE


def _check_without_key(repository: str, as_json: bool) -> int:
    async def work() -> ChecksumReport:
        async with show_progress(as_json) as progress:
            running = RunningVerification()
            progress.running.append(running)
            backend = backend_at(repository)
            drop_copies(backend)
            try:
                return await trio.to_thread.run_sync(check_without_key, backend, running.reached)
            finally:
                backend.close()

    found = run_async(work)
    show(found, found.lines(), as_json)
    return EXIT_FAILED if found.damages else EXIT_DONE


def last_verified(repository_id: bytes) -> str:
    """The pack that the last `--budget` on this machine came to; empty at the begin of a round."""
    try:
        fields = json.loads(_verified(repository_id).read_text())
    except (OSError, ValueError):
        return ""
    reached = fields.get("reached") if isinstance(fields, dict) else None
    return reached if isinstance(reached, str) else ""


def note_verified(repository_id: bytes, reached: str) -> None:
    """Remember it. Without a place for that, the next one begins anew."""
    path = _verified(repository_id)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, json.dumps({"reached": reached}).encode(), replace=True)


def _verified(repository_id: bytes) -> Path:
    return state_directory() / "verified" / f"{repository_id.hex()}.json"


def _damage_lines(report: VerifyReport) -> list[str]:
    """One line per damaged file; --json lists every place in it."""
    by_file: dict[str, list[Finding]] = {}
    for found in report.damages:
        by_file.setdefault(found.file, []).append(found)
    lines = []
    for file, damages in list(by_file.items())[:_DAMAGED]:
        hits = sorted({f"{hit.what} of point {hit.point}" for damage in damages for hit in damage.hits})
        size = sum(hit.length for damage in damages for hit in damage.hits)
        more = f" and {len(hits) - _NAMED} more" if len(hits) > _NAMED else ""
        lost = (
            f"; hits {format_size(size)} of {', '.join(hits[:_NAMED])}{more}" if hits else "; hits no point"
        )
        places = "" if len(damages) == 1 else f"{counted(len(damages), 'damaged place')}, the first at "
        lines.append(f"{file}: {places}byte {damages[0].position}: {damages[0].problem}{lost}")
    if len(by_file) > _DAMAGED:
        lines.append(f"{counted(len(by_file) - _DAMAGED, 'more damaged file')}; --json lists all.")
    return lines


async def _opened(repository: str) -> RepositoryReader:
    async with open_repository(repository) as reader:
        return reader


def points_of(reader: RepositoryReader, vm: str | None) -> list[RestorePoint]:
    """The points, or those of one VM. Raises ConfigError when the repository has none of that VM."""
    found = [point for point in reader.points if vm in (None, point.machine.name, point.machine.uuid)]
    if vm is not None and not found:
        names = sorted({point.machine.name for point in reader.points})
        near = difflib.get_close_matches(vm, names, n=3) or names[:_NAMED]
        raise ConfigError(
            f"The repository {reader.objects.place()} has no restore points of VM {vm!r}.",
            remedy=f"It has points of {', '.join(near)}." if near else "It has none of any VM.",
        )
    return found


def named_point(reader: RepositoryReader, name: str, vm: str | None) -> RestorePoint:
    """The point of that name. `latest` needs a VM where there are several, or it would depend on who ran last."""
    points_of(reader, vm)  # an unknown VM is named with its likes
    return resolve_point(reader, name, vm)


@asynccontextmanager
async def opened_point(
    repository: str | Backend, name: str, vm: str | None
) -> AsyncIterator[tuple[RepositoryReader, RestorePoint]]:
    """A repository and the point of that name; other points are not read where it is known without them."""
    async with open_repository(repository, wanted=None if vm else name) as reader:
        yield reader, named_point(reader, name, vm)


def _summary(point: RestorePoint) -> dict[str, object]:
    return {
        "id": point.id,
        "vm": point.machine.name,
        "uuid": point.machine.uuid,
        "created": point.created,
        "quiescing": point.quiescing.reached,
        "capacity": _capacity(point),
        "stored": _stored(point),
        "disks": [disk.key for disk in point.disks],
    }


def _capacity(point: RestorePoint) -> int:
    return sum(disk.capacity for disk in point.disks)


def _stored(point: RestorePoint) -> int:
    return sum(disk.receipt.stored for disk in point.disks)


def _point_table(points: Sequence[RestorePoint]) -> list[str]:
    header = ("POINT", "CREATED", "VM", "DISKS", "SIZE", "STORED", "QUIESCING")
    rows = [
        (
            point.id,
            local_time(point.created),
            point.machine.name,
            str(len(point.disks)),
            format_size(_capacity(point)),
            format_size(_stored(point)),
            point.quiescing.reached or "not verified",
        )
        for point in points
    ]
    return table(header, rows, right=("DISKS", "SIZE", "STORED"))


def local_time(created: str) -> str:
    """A stored time, which is UTC, in local time to the second."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return created


def _point_line(point: RestorePoint) -> str:
    return (
        f"{point.id}  {local_time(point.created)}  {point.machine.name}  {counted(len(point.disks), 'disk')}, "
        f"{format_size(_capacity(point))}, {format_size(_stored(point))} stored, "
        f"{point.quiescing.reached or 'not verified'}"
    )


def _point_lines(point: RestorePoint) -> list[str]:
    quiescing = point.quiescing
    lines = [
        _point_line(point),
        *quiescing_lines(quiescing.asked, quiescing.reached, quiescing.reasons, quiescing.verdict),
        *stored_preflight_lines(point.preflight),
    ]
    for disk in point.disks:
        tracked = f", change id {disk.change_id}" if disk.change_id else ""
        lines += [
            f"  disk {disk.key} ({disk.receipt.label}): {format_size(disk.capacity)}{tracked}",
            f"    root {disk.receipt.root}",
        ]
    return lines + [f"  document {name}: {each.length} bytes" for name, each in point.documents.items()]
