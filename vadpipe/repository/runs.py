"""Runs: who is writing, and sweeping up after those that died.

A run holds a lock on its file in `runs/` as long as it lives; the kernel lets go of it when the process dies. A
lock file that nobody holds is a dead run's. Its temporary files are removed, and its packs that no published
segment names. What a published segment names stays, even without a point: another run may refer to it already.

The lock file says which host wrote it, and since which boot. Locks always work among the processes of one host.
Where they are not shared between hosts, a lock that can be taken proves nothing about another host's run. So such a
run counts as dead only when its lock file was not touched for FOREIGN_AGE_S; a living run touches it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline import SinkError
from vadpipe.files import create, flush_directory, write_all

from .files import Damage, Layout, read_whole, run_of, sink_errors
from .segments import Segment

log = logging.getLogger(__name__)

FOREIGN_AGE_S: Final = 7 * 24 * 3600
TOUCH_S: Final = 60.0

_LOCK_SIZE: Final = 4096  # what is longer is no lock file of ours


class RunLock:
    """The lock of a living run."""

    def __init__(self, layout: Layout, run_id: str) -> None:
        """Take it. Raises SinkError, also where locks do not work."""
        self._layout = layout
        self.run_id = run_id
        self._touched = time.monotonic()
        self._path, temporary = layout.lock(run_id), layout.tmp / f"{run_id}.lock"
        with sink_errors(self._path, "create and lock"):
            while True:
                self._file = create(temporary)
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX)
                    write_all(self._file, [json.dumps(_this_host()).encode()])
                    _test_lock(temporary)
                    os.rename(temporary, self._path)  # only now it counts, and it was never there unlocked
                    break
                except FileNotFoundError:  # swept before it was locked
                    os.close(self._file)
                except BaseException:
                    os.close(self._file)
                    temporary.unlink(missing_ok=True)
                    raise
            flush_directory(layout.runs)

    def touch(self) -> None:
        """Say that the run lives; at most once in TOUCH_S. For any thread."""
        if time.monotonic() - self._touched > TOUCH_S:
            self._touched = time.monotonic()
            with sink_errors(self._path, "touch"):
                os.utime(self._file)

    def time(self) -> float:
        """When it was touched last, by the clock of the file system."""
        return os.fstat(self._file).st_mtime

    def check(self) -> None:
        """Before publishing: nobody took this run for dead. Raises SinkError."""
        if not _is_at(self._file, self._path):
            raise SinkError(
                f"The lock {self._path} of this run was removed while it was writing; nothing was published.",
                remedy="Another host swept this repository. Write to it from one host, or from hosts whose locks "
                "are shared (NFS without `nolock` or `local_lock`).",
                path=str(self._path),
            )

    def release(self) -> None:
        """End a run that published everything. Raises SinkError."""
        with sink_errors(self._path, "remove"):
            self._path.unlink(missing_ok=True)
        self.abandon()

    def roll_back(self, repository_id: bytes) -> None:
        """Remove what the run did not publish, and end it. Raises SinkError."""
        with sink_errors(self._layout.tmp, "clean up"):
            _remove_leftovers(self._layout, repository_id, self.run_id)
        self.release()

    def abandon(self) -> None:
        """Let go of the lock and leave the rest to the next run's sweep."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sweep(layout: Layout, repository_id: bytes, now: float | None = None) -> list[str]:
    """Remove what dead runs left. Returns their ids.

    Args:
        now: the time of the file system, e.g. of a file that was just made; None: no run of another host is swept.

    Raises:
        SinkError
    """
    dead: list[str] = []
    with sink_errors(layout.runs, "sweep"):
        left_by_init = layout.tmp / layout.config.name  # a crash after config.json got its name
        if left_by_init.exists():
            left_by_init.unlink(missing_ok=True)
            flush_directory(layout.tmp)
        # A run that died before its lock got its name left nothing but that file.
        for path in [*layout.runs.glob("*.lock"), *layout.tmp.glob("*.lock")]:
            run_id = run_of(path)
            if run_id is not None and _sweep_run(layout, repository_id, run_id, path, now):
                dead.append(run_id)
    if dead:
        log.info("removed what the runs %s left in %s", ", ".join(dead), layout.root)
    return dead


def local_locks(root: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The mount option because of which locks on `root` are not shared between hosts, if there is one."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
        place = root.resolve()
    except OSError:
        return None
    over = [line for line in lines if len(line) > 3 and place.is_relative_to(_unescaped(line[1]))]
    if not over:
        return None
    _, _, kind, options, *_ = max(over, key=lambda line: len(line[1]))
    private = {"nolock", "local_lock=all", "local_lock=flock", "nobrl"}
    found = private.intersection(options.split(",")) if kind.startswith(("nfs", "cifs", "smb")) else set()
    return min(found, default=None)


def _sweep_run(layout: Layout, repository_id: bytes, run_id: str, lock: Path, now: float | None) -> bool:
    """Sweep one run, if it is dead."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False  # it ended, or another sweep was faster
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another sweep may have removed this file, and the run made it anew: then this lock means nothing.
        if not _is_at(file, lock) or not _may_be_swept(lock, file, now):
            return False
        _remove_leftovers(layout, repository_id, run_id)
        lock.unlink(missing_ok=True)
        flush_directory(lock.parent)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _may_be_swept(path: Path, file: int, now: float | None) -> bool:
    """Whether a lock that could be taken proves that its run is dead."""
    here, there = _this_host(), _host_of(path)
    if there is None or all(there.get(name) == here[name] for name in ("host", "name")):
        return True
    age = None if now is None else now - os.fstat(file).st_mtime
    if age is not None and age > FOREIGN_AGE_S:
        return True
    log.warning(
        "the run of %s belongs to host %s; it is left alone until it has been silent for %d days",
        path,
        there.get("name"),
        FOREIGN_AGE_S // 86400,
    )
    return False


def _remove_leftovers(layout: Layout, repository_id: bytes, run_id: str) -> None:
    """Temporary files, and packs that no published segment of the run names; gone for good when this returns."""
    named = {pack for path in layout.segments_of(run_id) for pack in Segment(path, repository_id).packs()}
    packs = [path for path in layout.packs_of(run_id) if path.stem not in named]
    temporary = [path for path in layout.temporary_of(run_id) if path != layout.tmp / f"{run_id}.lock"]
    for path in (*packs, *temporary):
        path.unlink(missing_ok=True)
    for directory in {path.parent for path in (*packs, *temporary)}:
        flush_directory(directory)
    (layout.tmp / f"{run_id}.lock").unlink(missing_ok=True)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one with this name."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _test_lock(path: Path) -> None:
    """Whoever else opens a locked file must be refused. Raises SinkError."""
    other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(other)
    raise SinkError(
        f"Locks have no effect on the file system of {path.parent}.",
        remedy="Put the repository on a file system with flock: a local one, or NFS 4 with its lock service.",
        path=str(path),
    )


def _this_host() -> dict[str, object]:
    """Which machine this is, and since which boot. Copies of a machine may have one id, so the name counts too."""
    name = socket.gethostname()
    return {
        "host": _first_line("/etc/machine-id") or name,
        "name": name,
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
    }


def _host_of(path: Path) -> Mapping[str, object] | None:
    """Who wrote a lock file; None for one that says nothing, as those of earlier versions."""
    try:
        fields = json.loads(read_whole(path, _LOCK_SIZE) or b"null")
    except (Damage, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _unescaped(name: str) -> str:
    """A path as /proc/mounts writes it."""
    return name.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
