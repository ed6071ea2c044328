"""VMDKs in a VM's directory that no snapshot and no VM refers to: candidates for a person to look at.

They are left by reverts to writable snapshots, by failed consolidations and by people. Nothing here removes one: an
unregistered VM, or one that the account cannot see, may still need it.

The directories are searched first, and the references are read afterwards. What looks like an orphan then is
searched for again: an orphan is unchanged, while a redo log that was made or merged meanwhile is not. The files of
a VM are those in its `layoutEx`, which the server may update late; so its devices and those of its snapshots count
too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from ..api.properties import Row, read_each
from ..api.session import VcenterSession
from ..inventory.datastore import Browser, DatastorePath, search_directories, vms_on
from ..inventory.hardware import chains
from ..inventory.lookup import Vm
from ..snapshot.tree import flat_tree

_HOME = ("config.files.vmPathName", "config.files.snapshotDirectory", "datastore")
_DEVICES = "config.hardware.device"
# Files that belong to a descriptor beside them: extents, redo log data, change tracking, raw device mappings.
_PART = re.compile(r"-(flat|delta|sesparse|ctk|rdmp?|[sf]\d{3})\.vmdk$")


@dataclass(frozen=True)
class Orphan:
    """A disk that nothing refers to.

    `path`: of its descriptor, or of a part whose descriptor is gone. `size`: bytes of all its files, None when the
    server does not report it. `modified`: the last change of any of them.
    """

    path: str
    size: int | None
    modified: datetime | None

    def __str__(self) -> str:
        size = "size unknown" if self.size is None else f"{self.size / (1 << 20):.1f} MiB"
        when = f", modified {self.modified:%Y-%m-%d}" if self.modified else ""
        return f"{self.path} ({size}{when}) belongs to no snapshot and to no VM that this account sees"


def unreferenced(found: Iterable[str], referenced: Iterable[str]) -> dict[str, list[str]]:
    """The VMDK files in `found` that belong to no disk in `referenced`, grouped by disk. All are datastore paths.

    A disk is named by its descriptor; extents and similar files belong to the descriptor beside them.
    """
    known = {_descriptor(path) for path in referenced}
    disks: dict[str, list[str]] = {}
    for path in found:
        if (descriptor := _descriptor(path)) not in known:
            disks.setdefault(descriptor, []).append(path)
    return disks


async def orphan_candidates(session: VcenterSession, vms: Sequence[Vm]) -> list[Orphan]:
    """Disks in the directories of these VMs that no visible VM refers to, sorted by name. Raises VsphereError."""
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in dict.fromkeys(vm.moref for vm in vms)]
    rows = await _read(session, subjects, _HOME, strict=True)
    datastores = list({str(one._moId): one for row in rows for one in row.get("datastore") or ()}.values())
    directories = list(dict.fromkeys(directory for row in rows for directory in _directories(row)))
    files = await _search(session, datastores, directories)
    unknown = unreferenced(files, await _laid_out(session, datastores))
    if not unknown:
        return []
    referenced = await _devices(session, subjects)
    unknown = unreferenced([path for parts in unknown.values() for path in parts], referenced)
    again = {DatastorePath.parse(name).parent for name in unknown}
    now = await _search(session, datastores, [place for place in directories if place in again])
    return [
        _orphan(name, parts, files)
        for name, parts in sorted(unknown.items())
        if all(part in now and now[part].modification == files[part].modification for part in parts)
    ]


async def _search(
    session: VcenterSession, datastores: Sequence[vim.Datastore], directories: Sequence[DatastorePath]
) -> dict[str, Browser.FileInfo]:
    """The VMDKs in these directories by datastore path."""
    details = Browser.FileInfo.Details(fileType=False, fileSize=True, modification=True, fileOwner=False)
    spec = Browser.SearchSpec(matchPattern=["*.vmdk"], details=details)
    found = await search_directories(session, datastores, directories, spec)
    return {
        str(place.join(file.path)): file
        for place, listed in zip(directories, found, strict=True)
        for file in listed
    }


async def _laid_out(session: VcenterSession, datastores: Sequence[vim.Datastore]) -> list[str]:
    """The files of all VMs on these datastores, as their `layoutEx` says."""
    there = await session.call("RetrieveProperties", lambda: vms_on(session.content, datastores))
    layouts = await _read(session, list(there.values()), ["layoutEx.file"])
    return [file.name for row in layouts for file in row.get("layoutEx.file") or ()]


async def _devices(session: VcenterSession, vms: Sequence[vim.VirtualMachine]) -> list[str]:
    """The files of the disks of these VMs and of their snapshots."""
    rows = await _read(session, vms, ["snapshot", _DEVICES], strict=True)
    trees = [tree for row in rows if (tree := row.get("snapshot"))]
    nodes = [node for tree in trees for node in flat_tree(tree.rootSnapshotList)]
    snapshots = [vim.vm.Snapshot(node.moref, session.stub) for node in nodes]
    shown = [*rows, *await _read(session, snapshots, [_DEVICES])]
    return [path for row in shown for chain in chains(row.get(_DEVICES) or ()).values() for path in chain]


async def _read(
    session: VcenterSession, subjects: Sequence[ManagedObject], paths: Sequence[str], *, strict: bool = False
) -> list[Row]:
    return await session.call(
        "RetrieveProperties", lambda: read_each(session.content, subjects, paths, strict=strict)
    )


def _directories(row: Row) -> Sequence[DatastorePath]:
    """The VM's directory, and that of its snapshots where it differs."""
    home = row.get("config.files.vmPathName")
    found = [DatastorePath.parse(home).parent] if home else []
    if snapshots := row.get("config.files.snapshotDirectory"):
        found.append(DatastorePath.parse(snapshots))
    return list(dict.fromkeys(found))


def _descriptor(path: str) -> str:
    try:
        path = str(DatastorePath.parse(path))
    except ValueError:  # an object id or a device, not a file in a directory
        return path
    return _PART.sub(".vmdk", path)


def _orphan(name: str, parts: Sequence[str], files: dict[str, Browser.FileInfo]) -> Orphan:
    sizes: list[int] = [
        size for part in parts if (size := getattr(files[part], "fileSize", None)) is not None
    ]
    times = [when for part in parts if (when := files[part].modification) is not None]
    return Orphan(
        path=name if name in parts else parts[0],
        size=sum(sizes) if len(sizes) == len(parts) else None,
        modified=max(times, default=None),
    )
