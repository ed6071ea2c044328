"""VMDKs in a VM's directory that no snapshot and no VM refers to: candidates for a person to look at.

They are left by reverts to writable snapshots, by failed consolidations and by people. Nothing here removes one: an
unregistered VM, or one that the account cannot see, may still need it.

References are read before and after the search, so that neither a redo log that was made nor one that was merged in
between looks like an orphan. The files of other VMs are those in `layoutEx` of every VM on the same datastores.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pyVmomi import vim

from ..api.properties import Row, read_each
from ..api.session import VcenterSession
from ..inventory.datastore import Browser, DatastorePath, search_directory
from ..inventory.hardware import chains
from ..inventory.lookup import Vm
from ..snapshot.tree import flat_tree

_VM_PATHS = (
    "config.files.vmPathName",
    "config.files.snapshotDirectory",
    "config.hardware.device",
    "snapshot",
    "datastore",
)
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
    rows = await _rows(session, vms)
    referenced = set(await _referenced(session, rows))
    files: dict[str, Browser.FileInfo] = {}
    details = Browser.FileInfo.Details(fileType=False, fileSize=True, modification=True, fileOwner=False)
    places = {directory: row.get("datastore") or () for row in rows for directory in _directories(row)}
    for directory, datastores in places.items():
        found = await search_directory(session, datastores, directory, ["*.vmdk"], details)
        files |= {str(directory.join(file.path)): file for file in found}
    if files:
        referenced.update(await _referenced(session, await _rows(session, vms)))
    orphans = unreferenced(files, referenced)
    return [_orphan(name, parts, files) for name, parts in sorted(orphans.items())]


async def _rows(session: VcenterSession, vms: Sequence[Vm]) -> list[Row]:
    subjects = [vim.VirtualMachine(moref, session.stub) for moref in dict.fromkeys(vm.moref for vm in vms)]
    return await session.call(
        "RetrieveProperties", lambda: read_each(session.content, subjects, _VM_PATHS, strict=True)
    )


async def _referenced(session: VcenterSession, rows: Sequence[Row]) -> Collection[str]:
    """The files of the VMs' disks, of their snapshots' disks, and of all VMs on their datastores."""

    def gathered() -> list[str]:
        content = session.content
        trees = [tree for row in rows if (tree := row.get("snapshot"))]
        nodes = [node for tree in trees for node in flat_tree(tree.rootSnapshotList)]
        snapshots = [vim.vm.Snapshot(node.moref, session.stub) for node in nodes]
        datastores = {str(one._moId): one for row in rows for one in row.get("datastore") or ()}
        stores = read_each(content, list(datastores.values()), ["vm"])
        others = {str(other._moId): other for store in stores for other in store.get("vm") or ()}
        shown = [*rows, *read_each(content, snapshots, ["config.hardware.device"])]
        found = [
            path
            for one in shown
            for chain in chains(one.get("config.hardware.device") or ()).values()
            for path in chain
        ]
        layouts = read_each(content, list(others.values()), ["layoutEx.file"])
        return [*found, *(file.name for other in layouts for file in other.get("layoutEx.file") or ())]

    return await session.call("RetrieveProperties", gathered)


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
