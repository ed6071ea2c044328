"""A VM read from its own files: no vCenter, no snapshot, no VDDK.

For exported VMs, VMs of Workstation and Fusion, and mounted datastores. The VM must be powered off, or the
directory must be a snapshot of it: a file that changes while it is read ends the capture with an error.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from pipeline.buffers import DEFAULT_POOL, Buffer, BufferPool
from pipeline.errors import ChangeTrackingInvalid, SourceError
from pipeline.extents import Extents
from pipeline.protocols import ChangedAreas, MachineId
from pipeline.units import MiB
from vadpipe.exclude import excluded_keys, left_out_on_purpose
from vadpipe.vss.fetched import FetchedManifest

from .chain import open_layout
from .descriptor import MAX_DESCRIPTOR
from .directory import find_disks, find_vmx, newest_manifest
from .files import OpenFiles
from .layout import Layout
from .reading import read_plan
from .vmx import NVRAM_DOCUMENT, VMX_DOCUMENT, Vmx, parse_vmx

log = logging.getLogger(__name__)

# The documents of a guest with a hundred VSS writers have a few MiB.
_MAX_MANIFEST: Final = 64 * MiB

# EFI variable stores have some 270 KB.
_MAX_NVRAM: Final = 4 * MiB

# VSS writers still change the quiesced image while and shortly after the manifest is written.
_SETTLING_S: Final = 60.0

# Closing waits for nothing but a server of network files.
_CLOSING_S: Final = 30


@dataclass(frozen=True)
class LocalDisk:
    """An open VMDK chain. Each method is one trip to a worker thread."""

    key: str
    label: str
    layout: Layout
    pool: BufferPool

    @property
    def capacity(self) -> int:
        return self.layout.capacity

    @property
    def change_id(self) -> str | None:
        return None

    async def allocated(self, offset: int, length: int) -> Extents:
        """From the grain tables, and of flat files from the holes that the file system knows."""
        try:
            return await trio.to_thread.run_sync(self.layout.allocated, offset, length)
        except SourceError as error:
            raise self._named("The allocated areas of", offset, length, error) from error

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid(
            f"Disk {self.key} is read from its files, which record no changes.",
            remedy="It is read in full; what did not change is not stored again.",
            disk=self.key,
        )

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Read the `wanted` extents into `buffer`; what is not allocated is filled with zeros."""
        try:
            await trio.to_thread.run_sync(self._read, buffer, offset, wanted)
        except SourceError as error:
            start = int(wanted.start[0])
            raise self._named("Data of", start, int(wanted.end[-1]) - start, error) from error

    def _read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        read_plan(self.layout.plan(wanted), self.layout.sources, buffer.array, offset)

    def _named(self, what: str, offset: int, length: int, error: SourceError) -> SourceError:
        return SourceError(
            f"{what} disk {self.key} could not be read at offset {offset}, length {length}: {error.problem}",
            remedy=error.remedy,
            **{**error.facts, "disk": self.key, "offset": offset, "length": length},
        )


@dataclass(frozen=True)
class LocalCapture:
    """A VM's files, open."""

    machine: MachineId
    disks: Sequence[LocalDisk]
    configuration: Mapping[str, object]
    directory: Path
    documents: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    quiescing_asked: str = "none"
    quiescing_sent: None = None  # vadpipe did not take the snapshot
    left_out: Sequence[str] = ()
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    preflight: None = None
    snapshots_left: None = None

    async def confirm(self) -> None:
        """Nothing to do: every read checks that its files are unchanged."""

    async def fetch_vss_manifest(self) -> FetchedManifest:
        """The newest VSS manifest archive of the directory. An unreadable one is a reason, not an error.

        An archive that is older than the data was made for another snapshot, and is not used.
        """
        return await trio.to_thread.run_sync(_read_manifest, self.directory, self.disks)


@asynccontextmanager
async def open_vm(
    directory: Path,
    *,
    name: str | None = None,
    pool_size: int = DEFAULT_POOL,
    outside: Sequence[Path] = (),
    exclude: Sequence[str] = (),
) -> AsyncIterator[LocalCapture]:
    """Open all files of the VM in a directory, and close them at the end.

    Args:
        directory: Holds the .vmx and the VMDKs.
        name: For people; the default is the .vmx's display name, or the directory's name.
        pool_size: Bytes of the buffers that its disks are read into.
        outside: Directories besides this one in which its files may lie.
        exclude: Disks to leave out, by key, label (the VMDK's name) or glob pattern. Their files are not opened.

    Raises:
        ConfigError: `exclude` names a disk that the VM does not have, or leaves out all.
        SourceError: A file is missing, damaged, or lies outside of these directories.
    """
    files = OpenFiles([directory, *outside])
    try:
        yield await trio.to_thread.run_sync(_open, directory, name, pool_size, files, exclude)
    finally:
        with trio.fail_after(_CLOSING_S, shield=True):
            await trio.to_thread.run_sync(files.close)


def _open(
    directory: Path, name: str | None, pool_size: int, files: OpenFiles, exclude: Sequence[str]
) -> LocalCapture:
    vmx_path = find_vmx(directory)
    vmx = _read_vmx(vmx_path, files) if vmx_path else Vmx({})
    named = find_disks(directory, vmx_path, vmx, files)
    title = name or vmx.display_name or directory.name or str(directory)
    excluded = excluded_keys(named, exclude, title)
    pool = BufferPool(pool_size)
    disks = [
        LocalDisk(disk.key, disk.label, open_layout(disk.path, files), pool)
        for disk in named
        if disk.key not in excluded
    ]
    left_out = [left_out_on_purpose(disk) for disk in named if disk.key in excluded]
    root = directory.resolve()
    for disk in disks:
        for link in disk.layout.links:
            log.debug("Disk %s: %s, %d bytes.", disk.key, link.path, link.capacity)
        if any(link.unclean_shutdown for link in disk.layout.links):
            log.warning(
                "Disk %s was not closed properly by its writer: %s.", disk.key, disk.layout.links[0].path
            )
    return LocalCapture(
        machine=MachineId(
            uuid=vmx.uuid or str(uuid.uuid5(uuid.NAMESPACE_URL, root.as_uri())),
            name=title,
        ),
        disks=disks,
        configuration={
            "directory": str(root),
            "vmx": dict(vmx.facts()),
            "disks": {disk.key: [link.facts() for link in disk.layout.links] for disk in disks},
            "left_out": left_out,
        },
        remarks=left_out,
        directory=directory,
        documents=_documents(vmx_path, vmx, files),
    )


def _documents(vmx_path: Path | None, vmx: Vmx, files: OpenFiles) -> dict[str, bytes]:
    """The .vmx without its secrets, and the firmware variables that lie beside it; the log says what is wrong."""
    if vmx_path is None:
        return {}
    documents = {VMX_DOCUMENT: vmx.text().encode()}
    path = vmx_path.parent / vmx.settings.get("nvram", f"{vmx_path.stem}.nvram")
    if path.parent != vmx_path.parent or not path.is_file():
        return documents
    try:
        file = files.open(path)
        if file.size <= _MAX_NVRAM:
            documents[NVRAM_DOCUMENT] = file.read(0, file.size, "content")
        else:
            log.warning("%s has %d bytes, too many for firmware variables: it is not kept.", path, file.size)
    except SourceError as error:
        log.warning("The firmware variables are not kept: %s", error)
    return documents


def _read_vmx(path: Path, files: OpenFiles) -> Vmx:
    file = files.open(path)
    return parse_vmx(file.read(0, min(file.size, MAX_DESCRIPTOR), "text"), file.name)


def _read_manifest(directory: Path, disks: Sequence[LocalDisk]) -> FetchedManifest:
    try:
        path = newest_manifest(directory)
    except OSError as error:
        return FetchedManifest(None, f"{directory} could not be searched: {error.strerror}.", None)
    if path is None:
        return FetchedManifest(None, f"{directory} has no VSS manifest archive.", None, absent=True)
    files = OpenFiles([directory])
    try:
        file = files.open(path)
        if file.size > _MAX_MANIFEST:
            return FetchedManifest(None, f"{path} has {file.size} bytes, too many for a manifest.", str(path))
        newest = max(
            (source.file for disk in disks for source in disk.layout.sources), key=lambda file: file.changed_s
        )
        if newest.changed_s > file.changed_s + _SETTLING_S:
            reason = f"{newest.name} was written after {path}, which was made for an earlier snapshot."
            return FetchedManifest(None, reason, str(path))
        return FetchedManifest(file.read(0, file.size, "content"), "", str(path))
    except SourceError as error:
        return FetchedManifest(None, str(error), str(path))
    finally:
        files.close()
