"""What VDDK clients hold of a VM, as the stand-in's `outside.c` keeps it in files below the lab directory."""

from __future__ import annotations

from pathlib import Path


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
