"""Files of the lab directory that the VDDK stand-in writes too: locks, hot-added disks, and the log of calls."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_CALLS_LOG = "calls.log"  # what happened, in order


def relocation_lock(root: Path, moref: str) -> str | None:
    """The identity that locked the VM against Storage vMotion; None: nobody did."""
    path = root / "locks" / moref
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def hot_added(root: Path, moref: str) -> list[str]:
    """The VM's disks that are attached to a proxy: the file names of their descriptors."""
    directory = root / "hotadd" / moref
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def has_writer(descriptor: Path) -> bool:
    """Whether a VDDK client has the disk open for writing: it holds a lock on the descriptor until its end."""
    try:
        file = os.open(descriptor, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def note(root: Path, line: str) -> None:
    """Append a line, at once, so that those of other processes do not mix with it."""
    descriptor = os.open(root / _CALLS_LOG, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def noted(root: Path) -> list[str]:
    """All lines until now."""
    path = root / _CALLS_LOG
    return path.read_text().splitlines() if path.exists() else []
