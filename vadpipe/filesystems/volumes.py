"""The volumes of the disks of a point: partitions, logical volumes, and disks without a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import ConfigError, MoverError

from . import lvm
from .contract import Entry, FileSystem, NotThere, Unreadable, resolve
from .partitions import partitions
from .signatures import EXT, FAT, IN_FIRST_SECTOR, LOOKED_AT, LVM, NTFS, XFS, Signature, identify
from .sources import Part, Source

log = logging.getLogger(__name__)

Open = Callable[["Volume"], FileSystem]

EXTRA: Final = "pip install 'vadpipe[files]'"


@dataclass(frozen=True)
class Volume:
    """A volume: its name is the key of its disk and the number of its partition, or group and name of LVM.

    `number` is None for what is no partition. `why_not`: why nothing reads it; empty: a reader may.
    """

    name: str
    disk: str
    number: int | None
    size: int
    type: str
    why_not: str = ""
    title: str = ""
    source: Source | None = field(default=None, repr=False, compare=False)


def volumes_of(disks: Mapping[str, Source]) -> list[Volume]:
    """The volumes of some disks, by key. Blocks. Raises MoverError."""
    found: list[Volume] = []
    physical: list[lvm.PhysicalVolume] = []
    for key, disk in disks.items():
        for volume in _of_disk(key, disk):
            found.append(volume)
            if volume.type == LVM and volume.source is not None:
                try:
                    physical.append(lvm.physical_volume(volume.source))
                except lvm.Damaged as exc:
                    log.warning("The LVM label of %s is damaged: %s.", volume.name, exc)
    if physical:
        try:
            found += [_logical(each) for each in lvm.logical_volumes(physical)]
        except (lvm.Damaged, KeyError, TypeError, AttributeError, RecursionError) as exc:
            log.warning("The metadata of LVM is damaged: %s.", exc)
    return found


def _of_disk(key: str, disk: Source) -> Iterable[Volume]:
    signature = identify(disk.read_at(0, LOOKED_AT))
    table = [] if signature.name in IN_FIRST_SECTOR else partitions(disk.read_at, disk.size)
    if not table:
        yield _volume(key, key, None, disk, signature, "")
    for each in table:
        part = Part(disk, each.offset, each.size)
        signature = identify(part.read_at(0, LOOKED_AT), each.type)
        yield _volume(f"{key}/{each.number}", key, each.number, part, signature, each.name)


def _volume(
    name: str, key: str, number: int | None, source: Source, signature: Signature, title: str
) -> Volume:
    why = signature.why_not
    if signature.name == LVM:
        why = "it is a physical volume of LVM: its logical volumes are listed by themselves"
    return Volume(name, key, number, source.size, signature.name, why, title, source)


def _logical(each: lvm.LogicalVolume) -> Volume:
    name = f"{each.group}/{each.name}"
    if each.source is None:
        return Volume(name, "LVM", None, each.size, "unknown", each.why_not)
    signature = identify(each.source.read_at(0, LOOKED_AT))
    return Volume(name, "LVM", None, each.size, signature.name, signature.why_not, "", each.source)


def open_volume(volume: Volume) -> FileSystem:
    """Read a volume with the libraries of the extra `files`. Raises ConfigError, Unreadable, MoverError."""
    if volume.why_not or volume.source is None:
        raise unreadable(volume)
    try:
        if volume.type in EXT:
            from .ext import Ext

            return Ext(volume.source, volume.name)
        if volume.type == NTFS:
            from .ntfs import Ntfs

            return Ntfs(volume.source, volume.name)
        if volume.type == XFS:
            from .xfs import Xfs

            return Xfs(volume.source, volume.name)
        if volume.type in FAT:
            from .fat import Fat

            return Fat(volume.source, volume.name)
    except ImportError as exc:
        raise ConfigError(
            f"Volume {volume.name} is {volume.type}, and no reader of it is installed.",
            remedy=f"Install one, {EXTRA} (AGPL-3.0-or-later), or libguestfs with guestfish.",
        ) from exc
    raise Unreadable(
        f"Volume {volume.name} is {volume.type}, which the libraries of the extra `files` do not read.",
        remedy="libguestfs may: install guestfish. Or serve the disk with `vadpipe serve`.",
        volume=volume.name,
        type=volume.type,
    )


def unreadable(volume: Volume) -> Unreadable:
    """Why a volume is not read, as an error."""
    return Unreadable(
        f"Volume {volume.name} is {volume.type}, and its files cannot be read: {volume.why_not}.",
        volume=volume.name,
        type=volume.type,
    )


@dataclass(frozen=True)
class Place:
    """Where a path leads: the volume, its file system and the entry. `path` begins with a slash."""

    volume: Volume
    files: FileSystem
    path: str
    entry: Entry


def split_path(text: str) -> tuple[str, str]:
    """A path of the command line as volume and path; the volume is empty where none is named."""
    if text.startswith("/"):
        return "", text
    volume, colon, path = text.partition(":/")
    if colon:
        return volume, f"/{path}"
    if text.endswith(":"):
        return text[:-1], "/"
    return "", f"/{text}"


def find_place(volumes: Sequence[Volume], text: str, open_one: Open = open_volume) -> Place:
    """Where a path of the command line leads: on the volume that it names, or on the only one that has it.

    Args:
        volumes: Those of the point.
        text: `[VOLUME:]/path`.
        open_one: Opens the file system of a volume.

    Raises:
        NotThere: No volume has it, several have it, or there is no such volume.
        Unreadable: The volume cannot be read.
    """
    name, path = split_path(text)
    if name:
        volume = _named(volumes, name, open_one)
        files = open_one(volume)
        return Place(volume, files, path, resolve(files, path))
    found: list[Place] = []
    problems: list[MoverError] = []
    missing: NotThere | None = None
    readable = [volume for volume in volumes if not volume.why_not]
    for volume in readable:
        try:
            files = open_one(volume)
            found.append(Place(volume, files, path, resolve(files, path)))
        except NotThere as exc:
            missing = exc
        except (Unreadable, ConfigError) as exc:
            problems.append(exc)
    if len(found) > 1:
        names = ", ".join(f"{place.volume.name}:{path}" for place in found)
        raise NotThere(f"{len(found)} volumes have {path}: {names}.", remedy="Name one of them so.")
    if found:
        return found[0]
    if len(readable) == 1 and (problems or missing):
        raise problems[0] if problems else missing or AssertionError
    if not readable:
        raise problems[0] if problems else _nothing(volumes)
    raise NotThere(
        f"No volume has {path}. {_list_of(readable)}{''.join(f' {each.problem}' for each in problems)}",
        remedy="Name the volume, as in VOLUME:/path.",
    )


def _named(volumes: Sequence[Volume], name: str, open_one: Open) -> Volume:
    """The volume with this name, number, or label."""
    found = [volume for volume in volumes if volume.name == name]
    found = found or [
        volume for volume in volumes if volume.number is not None and str(volume.number) == name
    ]
    problems: list[str] = []
    if not found:
        for volume in volumes:
            if not volume.why_not:
                try:
                    if open_one(volume).label == name:
                        found.append(volume)
                except (Unreadable, ConfigError) as exc:
                    problems.append(exc.problem)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotThere(f"{len(found)} volumes are called {name!r}. {_list_of(found)}")
    drive = (
        " Drive letters of Windows are not kept on its disks." if len(name) == 1 and name.isalpha() else ""
    )
    unknown = "".join(f" {problem}" for problem in problems)
    raise NotThere(f"There is no volume {name!r}.{drive} {_list_of(volumes)}{unknown}")


def _list_of(volumes: Sequence[Volume]) -> str:
    return f"There are: {', '.join(f'{volume.name} ({volume.type})' for volume in volumes)}."


def _nothing(volumes: Sequence[Volume]) -> Unreadable:
    """Why no volume can be read: of one it is said in full."""
    wanted = [volume for volume in volumes if volume.type not in ("empty", "swap", LVM)] or list(volumes)
    if len(wanted) == 1:
        return unreadable(wanted[0])
    each = "; ".join(f"{volume.name} is {volume.type}: {volume.why_not}" for volume in wanted)
    return Unreadable(f"No volume can be read: {each}.")
