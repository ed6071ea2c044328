"""The contents of a VM's directory: its .vmx, the leaves among its VMDKs, its VSS manifest archives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError

from .chain import find_beside, read_descriptor
from .files import OpenFiles
from .vmx import Vmx

# The names under which vSphere stores the archive of a quiesced snapshot.
_MANIFESTS = ("*vss_manifests*.zip", "vss-manifest*.zip")

# The change tracking file of ESXi: no part of the disk's content.
_TRACKING = "-ctk.vmdk"


@dataclass(frozen=True)
class NamedDisk:
    """A disk of a VM: its key within the VM, and the VMDK to open."""

    key: str
    path: Path

    @property
    def label(self) -> str:
        return self.path.name


def find_vmx(directory: Path) -> Path | None:
    """The .vmx of a directory, or None. Raises SourceError if there are several or no directory."""
    found = _with_suffix(directory, ".vmx")
    if len(found) > 1:
        raise SourceError(
            f"{directory} has {len(found)} VMs: {', '.join(path.name for path in found)}.",
            remedy="Give each VM a directory of its own.",
            directory=str(directory),
        )
    return found[0] if found else None


def find_disks(directory: Path, vmx_path: Path | None, vmx: Vmx, files: OpenFiles) -> list[NamedDisk]:
    """The disks that the .vmx names, or else the leaves of the directory. Raises SourceError if there are none."""
    if vmx_path is not None:
        disks = [NamedDisk(key, find_beside(vmx_path, name, f"disk {key}")) for key, name in vmx.disks()]
    else:
        disks = _leaves(directory, files)
    if not disks:
        raise SourceError(
            f"{vmx_path} names no disk." if vmx_path else f"{directory} has no VMDK.",
            remedy="Name the directory of the VM's .vmx and .vmdk files; an encrypted VM must be decrypted first.",
            directory=str(directory),
        )
    return disks


def newest_manifest(directory: Path) -> Path | None:
    """The VSS manifest archive that was written last, or None."""
    found = {path for pattern in _MANIFESTS for path in directory.glob(pattern)}
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def _leaves(directory: Path, files: OpenFiles) -> list[NamedDisk]:
    """Every VMDK with a descriptor that is no other's parent.

    A data file that no descriptor names is an error: it may be the disk that matters.
    """
    described: list[Path] = []
    bare: list[Path] = []
    parts: set[Path] = set()
    for path in _with_suffix(directory, ".vmdk"):
        found = read_descriptor(path, files)
        if found is None:
            bare.append(path)
            continue
        described.append(path)
        descriptor, header = found
        names = [] if header else [line.file_name for line in descriptor.extents if line.file_name]
        parts.update(find_beside(path, name, "extent").resolve() for name in names)
        if descriptor.has_parent:
            parts.add(find_beside(path, descriptor.parent_hint, "parent").resolve())
    lost = [
        path for path in bare if path.resolve() not in parts and not path.name.lower().endswith(_TRACKING)
    ]
    if lost:
        raise SourceError(
            f"{lost[0]} is a data file that no descriptor names.",
            remedy="Restore its descriptor, or move the file out of the directory if it is left over.",
            file=str(lost[0]),
        )
    leaves = [path for path in described if path.resolve() not in parts]
    if described and not leaves:
        raise SourceError(
            f"Every VMDK in {directory} is the parent of another one: their chain loops.",
            remedy="Correct the parentFileNameHint of one of the descriptors.",
            directory=str(directory),
        )
    times = Counter(path.stem for path in leaves)
    return [NamedDisk(path.stem if times[path.stem] == 1 else path.name, path) for path in leaves]


def _with_suffix(directory: Path, suffix: str) -> Sequence[Path]:
    """Files of a directory by name; hidden ones, such as the forks that macOS leaves, are not the VM's."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise SourceError(
            f"{directory}: {error.strerror}.",
            remedy="Name the directory that holds the VM's files.",
            directory=str(directory),
        ) from error
    return [directory / name for name in names if name.lower().endswith(suffix) and not name.startswith(".")]
