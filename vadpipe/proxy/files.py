"""Files that are replaced whole, and are the old or the new one whenever the machine stops."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vadpipe.files import flush_directory


def replace_durably(path: Path, text: str, *, mode: int) -> None:
    """Write the text; on disk when this returns. An existing file's mode, owner and attributes are kept.

    Bytes that are no UTF-8 survive reading and writing back (surrogateescape). Raises OSError.
    """
    target = path.resolve()  # through a link, the file it names
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        if target.exists():
            _look_alike(target, temporary)
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_directory(target.parent)


def remove_durably(path: Path) -> None:
    """Remove the file, if it is there. Raises OSError."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        flush_directory(path.parent)


def read_whole(path: Path) -> str | None:
    """The text, bytes that are no UTF-8 kept; None: no such file. Raises OSError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _look_alike(old: Path, new: Path) -> None:
    shutil.copystat(old, new)  # extended attributes as well: SELinux keeps its label in one
    if hasattr(os, "chown"):
        status = old.stat()
        os.chown(new, status.st_uid, status.st_gid)
