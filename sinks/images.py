"""Images of disks in a directory: one directory for each VM and point, nothing replaced, nothing mixed.

    DIRECTORY/web01/bd4c945094bc600a/scsi0-0.raw

The point's id keeps VMs apart that have one name, and points of one VM. A directory is locked as long as its
restore runs; what remains empty is removed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import trio

from pipeline import BufferPool, ConfigError, MoverError, Pipeline, SinkError
from vadpipe.files import TEMPORARY, flush_directory, write_durably
from vadpipe.repository.format.restore_point import StoredDisk

from .restoring import Contents, OpenTarget

log = logging.getLogger("vadpipe." + __name__)

_LOCK_ATTEMPTS, _LOCK_PAUSE_S = 10, 0.1

_SIMPLE = re.compile(r"[a-z]+[0-9]+:[0-9]+")
SHEET = "restore-sheet"  # the directory with what the applications need; no image has this name
_LONGEST = 200  # bytes of a file name; file systems take 255, and the suffix needs some

# The pipeline that writes a disk's image to a path.
WriteImage: TypeAlias = Callable[
    [StoredDisk, Path, BufferPool], AbstractAsyncContextManager[Pipeline[object]]
]


@asynccontextmanager
async def open_images(
    directory: Path, contents: Contents, files: Callable[[StoredDisk], Sequence[str]], write: WriteImage
) -> AsyncIterator[OpenTarget]:
    """The directory of a point below `directory`, ready to take images.

    Args:
        files: The names of the files of a disk's image; the first is the one that a reader opens.
        write: Gives the pipeline that writes an image under its first name.

    Raises:
        SinkError: A file is there already, two disks have one name, or the directory cannot be used.
    """
    opened = _OpenImages(point_directory(directory, contents), contents, files, write)
    with ExitStack() as stack:
        await trio.to_thread.run_sync(opened.prepare, stack)
        yield opened


def point_directory(directory: Path, contents: Contents) -> Path:
    """The directory of a VM and a point below `directory`."""
    point = contents.point
    return directory / image_name(point.machine.name) / image_name(point.id)


@dataclass(frozen=True)
class _OpenImages:
    directory: Path
    contents: Contents
    files: Callable[[StoredDisk], Sequence[str]]
    write: WriteImage
    attention: list[str] = field(default_factory=list)

    def path(self, disk: StoredDisk) -> Path:
        return self.directory / self.files(disk)[0]

    def place(self, disk: StoredDisk) -> str:
        return str(self.path(disk))

    def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AbstractAsyncContextManager[Pipeline[object]]:
        return self.write(disk, self.path(disk), pool)

    async def finish(self) -> Sequence[str]:
        """Lay the restore sheet beside the images; one that is there stays, as it is of the same point."""
        if not self.contents.has_sheet:
            return ()
        place = self.directory / SHEET
        try:
            files = await self.contents.sheet()
            publish = partial(publish_directory, place, files, replace=self.contents.force)
            written = await trio.to_thread.run_sync(publish)
        except (MoverError, OSError) as exc:
            self.attention.append(f"What its applications need was not written to {place}: {exc}")
            return ()
        return [f"What its applications need is in {place}{'' if written else ', which was there already'}."]

    def prepare(self, stack: ExitStack) -> None:
        """Make and lock the directory until the stack is closed. Raises SinkError."""
        force = self.contents.force
        places = [self.directory / name for disk in self.contents.disks for name in self.files(disk)]
        if len({place.name.casefold() for place in places}) < len(places):
            keys = ", ".join(disk.key for disk in self.contents.disks)
            raise SinkError(
                f"The images of the disks of this point have names that are equal or differ in case only: {keys}.",
                remedy="Restore them one by one into different directories, with --disk.",
            )
        try:
            stack.enter_context(_made(self.directory))
            is_locked = stack.enter_context(locked(self.directory))
            there = [
                place
                for place in places
                if os.path.lexists(place) and not (force and (place.is_file() or place.is_symlink()))
            ]
            if there:
                raise SinkError(
                    f"{', '.join(map(str, there))} {'exists' if len(there) == 1 else 'exist'} already.",
                    remedy="Choose another directory, or replace images with --force; nothing was written.",
                )
            if is_locked:
                _remove_unfinished(self.directory)
        except OSError as exc:
            raise SinkError(
                f"{self.directory} cannot be used: {exc.strerror}.",
                remedy="Name a directory that this user may write.",
                path=str(self.directory),
            ) from exc


def _remove_unfinished(directory: Path) -> None:
    """Remove what killed restores left behind. The lock of the directory is held. Raises OSError."""
    for path in directory.iterdir():
        if TEMPORARY.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
            log.info("%s is removed: a restore that was killed left it behind.", path)
            path.unlink()


def publish_directory(place: Path, files: Mapping[str, bytes], *, replace: bool) -> bool:
    """Write a directory of small files, whole or not at all, while the directory above is locked. Blocks.

    Args:
        replace: Whether what is there already may be replaced, as a whole.

    Returns:
        False when something is there already, and stays.

    Raises:
        OSError: It cannot be written.
    """
    if os.path.lexists(place) and not replace:
        return False
    for left in place.parent.glob(f".{place.name}.*"):  # by a killed restore
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            write_durably(new / name, content)
        if os.path.lexists(place):
            os.rename(place, old)
        try:
            os.rename(new, place)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, place)
            raise
        flush_directory(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Make a directory and what is above it; what was made and is empty at the end is removed."""
    new = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for each in new:
                each.rmdir()


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError when another restore has it; a tool of a killed one may hold it for a moment."""
    for left in reversed(range(_LOCK_ATTEMPTS)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_LOCK_PAUSE_S)


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory; false where the file system has none.

    Raises SinkError when another restore has it, OSError.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            _lock(descriptor)
            if not os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):  # in use, or just removed by the restore that had it
            raise _in_use(directory) from None
        except OSError as exc:  # NFS: the images still replace nothing, and are whole
            log.info("%s cannot be locked: %s", directory, exc.strerror)
            is_locked = False
        else:
            is_locked = True
        yield is_locked
    finally:
        os.close(descriptor)


def _in_use(directory: Path) -> SinkError:
    return SinkError(
        f"Another restore is writing into {directory}.",
        remedy="Choose another directory, or wait until it has ended.",
        path=str(directory),
    )


def only_disk(contents: Contents, target: str) -> StoredDisk:
    """The disk of a target that takes one. Raises ConfigError when the restore has several."""
    if len(contents.disks) != 1:
        keys = ", ".join(disk.key for disk in contents.disks)
        raise ConfigError(
            f"{target} takes one disk, and {len(contents.disks)} are restored: {keys}.",
            remedy="Name one with --disk.",
        )
    return contents.disks[0]


def image_name(key: str) -> str:
    """A disk's key, or the name of a VM, as a file name; another one for each.

    A simple key like 'scsi0:0' becomes 'scsi0-0'; of others, every byte that is no ASCII letter, digit, '_', '.' or
    '-' is percent-encoded, as is the hyphen of what looks like the name of a simple key, and the dot that begins a
    name. What is too long for a file name ends in its digest.
    """
    if _SIMPLE.fullmatch(key):
        return key.replace(":", "-")
    name = quote(key, safe="", errors="surrogatepass").replace("~", "%7E") or "%"
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if _SIMPLE.fullmatch(name.replace("-", ":")):
        name = name.replace("-", "%2D")
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 33]}~{blake2b(name.encode(), digest_size=16).hexdigest()}"
    return name
