"""Runs: who is writing, and sweeping up after who died.

A run holds a lock on its file in `runs/` as long as it lives; the kernel lets go of it when the process dies. A
lock file that nobody holds is a dead run's. Its temporary files go, and its packs that no published segment
names. What a published segment names stays, even without a point: another run may refer to it already.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vadpipe.files import create, flush_directory

from .files import sink_errors
from .layout import Layout, run_of
from .segments import Segment


class RunLock:
    """The lock of a living run."""

    def __init__(self, layout: Layout, run_id: str) -> None:
        """Take it. Raises SinkError."""
        self._layout = layout
        self.run_id = run_id
        path, temporary = layout.lock(run_id), layout.tmp / f"{run_id}.lock"
        with sink_errors(path, "create"):
            while True:
                self._file = create(temporary)
                fcntl.flock(self._file, fcntl.LOCK_EX)
                try:
                    os.rename(temporary, path)  # only now it counts, and it was never there unlocked
                    break
                except FileNotFoundError:  # swept before it was locked
                    os.close(self._file)
            flush_directory(layout.runs)

    def release(self) -> None:
        """End a run that published everything. Raises SinkError."""
        with sink_errors(self._layout.lock(self.run_id), "remove"):
            self._layout.lock(self.run_id).unlink(missing_ok=True)
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


def sweep(layout: Layout, repository_id: bytes) -> list[str]:
    """Remove what dead runs left. Returns their ids. Raises SinkError."""
    dead: list[str] = []
    with sink_errors(layout.runs, "sweep"):
        # A run that died before its lock got its name left nothing but that file.
        for path in [*layout.runs.glob("*.lock"), *layout.tmp.glob("*.lock")]:
            run_id = run_of(path)
            if run_id is not None and _sweep_run(layout, repository_id, run_id, path):
                dead.append(run_id)
    return dead


def _sweep_run(layout: Layout, repository_id: bytes, run_id: str, lock: Path) -> bool:
    """Sweep one run, if it is dead."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # it ended, or another sweep was faster
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_leftovers(layout, repository_id, run_id)
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _remove_leftovers(layout: Layout, repository_id: bytes, run_id: str) -> None:
    """Temporary files, and packs that no published segment of the run names."""
    named = {pack for path in layout.segments_of(run_id) for pack in Segment(path, repository_id).packs()}
    for path in layout.packs_of(run_id):
        if path.stem not in named:
            path.unlink(missing_ok=True)
    for path in layout.temporary_of(run_id):
        path.unlink(missing_ok=True)
