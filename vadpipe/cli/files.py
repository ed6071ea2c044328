"""The command files: what is on the disks of a point, and single files and trees of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError, MoverError
from pipeline.units import format_size
from sinks.restoring import disks_of
from vadpipe.filesystems.contract import Entry, FileSystem, Kind
from vadpipe.filesystems.copying import Copied, copy
from vadpipe.filesystems.point import CountedReads, PointVolumes, open_volumes
from vadpipe.filesystems.readers import Readers, volume_readers
from vadpipe.filesystems.volumes import Place, Volume, find_place
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.words import counted

from .commands import (
    REPOSITORY,
    OnRepository,
    disk_option,
    json_option,
    point_argument,
    repository_argument,
    vm_option,
)
from .output import report, show, table
from .process import run_async
from .repository import opened_point

_TOLD = 20  # lines of what was not copied
_SIGNS = {Kind.FILE: "-", Kind.DIRECTORY: "d", Kind.LINK: "l", Kind.SPECIAL: "s"}


class _WithAction(OnRepository):
    """Without a repository on the line, what stands for it shifts the action, which then is no choice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = os.environ.get(REPOSITORY)
        try:
            return super().parse_args(ctx, list(args))
        except click.BadParameter:
            if not place:
                raise
        ctx.params.clear()
        return super().parse_args(ctx, [place, *args])


@click.command(cls=_WithAction)
@repository_argument
@point_argument
@click.argument("action", type=click.Choice(["list", "get"]))
@click.argument("path", required=False)
@click.argument("target", required=False, type=click.Path(path_type=Path))
@vm_option
@disk_option
@click.option(
    "--reader",
    "wanted",
    type=click.Choice(["auto", "libraries", "libguestfs"]),
    default="auto",
    show_default=True,
    help="What reads file systems: the extra `files`, or guestfish. auto: the first of them that can.",
)
@click.option("--no-streams", is_flag=True, help="get: leave out the alternate streams of NTFS.")
@click.option("--force", is_flag=True, help="get: replace files that exist already.")
@json_option
def files(
    repository: str,
    point: str,
    action: str,
    path: str | None,
    target: Path | None,
    vm: str | None,
    keys: tuple[str, ...],
    wanted: str,
    no_streams: bool,
    force: bool,
    as_json: bool,
) -> int:
    """List and fetch single files and trees out of the disks of a restore point.

    POINT is an id, a unique prefix of one, or `latest`. PATH is [VOLUME:]/path; without VOLUME it is looked for on
    every volume. VOLUME is a name as `list` prints it, the number of a partition, or a label.

    \b
    vadpipe files /srv/backup latest list                          the volumes
    vadpipe files /srv/backup latest list /Users/alice             a directory
    vadpipe files /srv/backup latest get scsi0:0/2:/etc/hosts .    a file
    vadpipe files /srv/backup latest get data:/projects /restore   a tree

    Every byte is proved as in a restore. Nothing is written outside TARGET, which is `.` by default. Alternate
    streams become files `name:stream`. Exit code 3: all is there but what no directory can take; 1: something could
    not be read, and is named.
    """
    if action == "list" and target is not None:
        raise ConfigError("`list` takes no target.", remedy="Leave it out, or use `get`.")
    if action == "get" and path is None:
        raise ConfigError("`get` needs a path.", remedy="Name what to fetch, as [VOLUME:]/path.")
    backend = CountedReads(backend_at(repository))

    async def work() -> int:
        async with opened_point(backend, point, vm) as (reader, found):
            disks = disks_of(found, keys)
            async with (
                open_volumes(reader, found, disks) as opened,
                volume_readers(reader, found, disks, wanted) as chosen,
            ):
                if path is None:
                    volumes = await opened.run(_labels, opened.volumes, chosen)
                    return _show_volumes(found, volumes, backend.count, as_json)
                place = await opened.run(_place, opened, path, chosen)
                if action == "list":
                    entries = await opened.run(_entries, place)
                    return _show_entries(place, entries, backend.count, as_json)
                got = partial(
                    copy,
                    place.files,
                    place.entry,
                    place.path,
                    target or Path(),
                    force=force,
                    streams=not no_streams,
                    check=trio.from_thread.check_cancelled,
                )
                copied = await opened.run(got)
                return _show_copied(place, copied, backend.count, as_json)

    return run_async(work)


def _place(opened: PointVolumes, path: str, chosen: Readers) -> Place:
    return find_place(opened.volumes, path, chosen.open)


def _entries(place: Place) -> list[tuple[Entry, str]]:
    """What is in a directory, or the entry itself, each with where it leads if it is a link."""
    files = place.files
    entries = files.entries(place.entry) if place.entry.kind is Kind.DIRECTORY else [place.entry]
    return [
        (each, files.link(each) if each.kind is Kind.LINK else "")
        for each in sorted(entries, key=lambda each: each.name.casefold())
    ]


def _labels(volumes: Sequence[Volume], chosen: Readers) -> list[tuple[Volume, FileSystem | None, str]]:
    """Each volume with its file system, or why it has none."""
    found: list[tuple[Volume, FileSystem | None, str]] = []
    for volume in volumes:
        try:
            found.append(
                (volume, None, volume.why_not) if volume.why_not else (volume, chosen.open(volume), "")
            )
        except MoverError as exc:
            found.append((volume, None, str(exc)))
    return found


def _show_volumes(
    point: RestorePoint, volumes: Sequence[tuple[Volume, FileSystem | None, str]], read: int, as_json: bool
) -> int:
    document = {
        "point": point.id,
        "volumes": [
            {
                "name": volume.name,
                "disk": volume.disk,
                "number": volume.number,
                "type": volume.type,
                "size": volume.size,
                "label": files.label if files else "",
                "title": volume.title,
                "reader": files.reader if files else None,
                "not_readable": why or None,
            }
            for volume, files, why in volumes
        ],
        "bytes_read": read,
    }
    rows = [
        [
            volume.name,
            volume.disk,
            "" if volume.number is None else str(volume.number),
            volume.type,
            format_size(volume.size),
            files.label if files else volume.title,
            f"by {files.reader}" if files else f"not readable: {why}",
        ]
        for volume, files, why in volumes
    ]
    header = ["volume", "disk", "number", "type", "size", "label", "files"]
    notes = [f"{volume.name}: {note}" for volume, files, _ in volumes if files for note in files.notes]
    show(document, [*table(header, rows, right=["number", "size"]), *notes], as_json)
    return EXIT_DONE


def _show_entries(place: Place, entries: Sequence[tuple[Entry, str]], read: int, as_json: bool) -> int:
    document = {
        "volume": place.volume.name,
        "path": place.path,
        "reader": place.files.reader,
        "notes": list(place.files.notes),
        "entries": [
            {
                "name": entry.name,
                "kind": entry.kind.value,
                "size": entry.size,
                "modified": _time(entry.modified_ns),
                "link": link or None,
                "streams": {stream.name: stream.size for stream in entry.streams},
                "not_readable": entry.unreadable or None,
            }
            for entry, link in entries
        ],
        "bytes_read": read,
    }
    rows = []
    for entry, link in entries:
        more = f" -> {link}" if link else f"  ({entry.unreadable})" if entry.unreadable else ""
        size = "" if entry.kind is Kind.DIRECTORY else f"{entry.size:,}"
        rows.append([_SIGNS[entry.kind], size, _shown_time(entry.modified_ns), entry.name + more])
        rows += [["", f"{each.size:,}", "", f"{entry.name}:{each.name}"] for each in entry.streams]
    lines = table(["kind", "bytes", "modified (UTC)", "name"], rows, right=["bytes"])
    last = (
        f"{place.volume.name}:{place.path}: {counted(len(entries), 'entry', 'entries')}, {_by(place, read)}"
    )
    show(document, [*lines, *place.files.notes, last], as_json)
    return EXIT_DONE


def _show_copied(place: Place, copied: Copied, read: int, as_json: bool) -> int:
    code = EXIT_FAILED if copied.failed else EXIT_ATTENTION if copied.skipped or copied.renamed else EXIT_DONE
    document = {
        "ok": not copied.failed,
        "volume": place.volume.name,
        "path": place.path,
        "reader": place.files.reader,
        "notes": list(place.files.notes),
        "target": str(copied.target),
        "files": copied.files,
        "directories": copied.directories,
        "links": copied.links,
        "links_leading_out": copied.leading_out,
        "streams": copied.streams,
        "bytes": copied.size,
        "bytes_read": read,
        "renamed": dict(copied.renamed),
        "skipped": dict(copied.skipped),
        "failed": dict(copied.failed),
    }
    what = [
        counted(count, noun, plural)
        for count, noun, plural in (
            (copied.files, "file", ""),
            (copied.directories, "directory", "directories"),
            (copied.links, "link", ""),
            (copied.streams, "stream", ""),
        )
        if count
    ]
    lines = [
        f"{place.volume.name}:{place.path} to {copied.target}: {', '.join(what) or 'nothing'}, "
        f"{format_size(copied.size)}, {_by(place, read)}",
        *place.files.notes,
    ]
    if copied.leading_out:
        lines.append(
            f"{counted(copied.leading_out, 'link')} lead out of what was copied; here they lead elsewhere."
        )
    lines += _named("Under another name", copied.renamed) + _named("Left out", copied.skipped)
    show(document, lines, as_json)
    for line in _named("Not readable", copied.failed):
        report(line)
    return code


def _named(what: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"{what}: {path}: {text}" for path, text in pairs[:_TOLD]]
    if len(pairs) > _TOLD:
        lines.append(f"{what}: {len(pairs) - _TOLD} more; --json names all.")
    return lines


def _by(place: Place, read: int) -> str:
    return f"by {place.files.reader}, {format_size(read)} read from the repository"


def _time(modified_ns: int | None) -> str | None:
    """ISO 8601 in UTC; None for what no calendar has."""
    if modified_ns is None:
        return None
    try:
        return datetime.fromtimestamp(modified_ns / 1e9, UTC).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return None


def _shown_time(modified_ns: int | None) -> str:
    return (_time(modified_ns) or "")[:19].replace("T", " ")
