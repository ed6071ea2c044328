"""What happened outside, in order: `calls.log` in the lab directory, which the VDDK stand-in also writes to."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "calls.log"


def note(root: Path, line: str) -> None:
    """Append a line, at once, so that those of other processes do not mix with it."""
    descriptor = os.open(root / _NAME, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def noted(root: Path) -> list[str]:
    """All lines until now."""
    path = root / _NAME
    return path.read_text().splitlines() if path.exists() else []
