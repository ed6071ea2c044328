"""A restore into a new VM of a vCenter or an ESXi host."""

from __future__ import annotations

import json
import logging
import secrets
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import trio

from pipeline import (
    CLUSTER,
    BufferPool,
    ConfigError,
    Flow,
    Pipeline,
    Span,
    WritableDisk,
    Zeros,
    format_size,
)
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.maintenance.verify import Budget
from vadpipe.repository.reader import RepositoryReader
from vadpipe.vmdk.vmx import NVRAM_DOCUMENT
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.plan.saved import DOCUMENTS, SavedVm, saved_vm
from vadpipe.vsphere.plan.values import Mode, PointDisk, Provisioning, RestorePlan, Wanted
from vadpipe.vsphere.restore.finishing import HEARTBEAT_WITHIN_S
from vadpipe.vsphere.restore.target import DiskWriter, VmBeingRestored, plan_on, restored_vm

from .lease import SheetPlace, open_lease, wanted_sheet
from .proving import DiskProof, prove_disk
from .restoring import Contents, OpenTarget
from .vddk_disk import IntoVddkDisk

log = logging.getLogger("vadpipe." + __name__)

# What a thin disk may take beyond the data of its point before the report says so: it is allocated in blocks.
_THIN_SHARE, _THIN_SLACK = 0.02, 64 << 20

DiskPath = Callable[[Flow[Span | Zeros], WritableDisk], Pipeline[Any]]


@dataclass(frozen=True)
class NewVm:
    """A new VM as the target of a restore. Settings only, no I/O.

    A place is named by name, inventory path or managed object reference; without a name it is where the VM was.

    Args:
        vcenter: The vCenter or the ESXi host.
        writer: Opens the disks for writing, e.g. `Vddk(libdir)`. With via='lease' it reads them back; None: nothing
            does.
        via: 'vddk' writes the disks through `writer`; 'lease' sends them over HTTPS (HttpNfcLease), without VDDK.
        path: How each disk travels: a function of the source and the open disk; None: into it by IntoVddkDisk.
        mode: 'copy' makes another VM beside the original: new UUIDs, generated MAC addresses, NICs not connected.
            'replace' makes the lost VM again, with its identities where nobody else has them.
        name: Of the new VM; None: that of the saved VM.
        folder: The folder of VMs.
        pool: A resource pool, or the cluster or host whose root pool is meant.
        host: The ESXi host; None: any of its pool.
        datastore: Of the configuration, and of the disks that `datastores` does not name.
        datastores: The datastore of a disk, by its key.
        networks: The new network for an old one, by name; an empty name connects the NIC to nothing.
        mapping: A TOML or JSON file with any of the settings from `name` to `attributes`; what is given here goes
            before.
        power_on: Switch it on at the end, and wait for the heartbeat of its VMware Tools.
        connect: Whether its NICs are connected when it is switched on; None: only in mode 'replace'.
        nvram: 'restore' uploads the saved firmware variables, 'fresh' lets the server make new ones.
        provisioning: 'thin', 'lazy' or 'eager' for all disks; None: as they were.
        reservations: Keep reservations, limits and shares; None: only in mode 'replace'.
        lower_hardware: Permits an older hardware version where the target has no newer.
        drop_encryption: Permits restoring an encrypted VM without encryption and without its virtual TPM.
        empty_disks: Make the disks that the backup does not hold, empty.
        keep: Patterns of extraConfig keys to carry that would be left out.
        drop: Patterns of extraConfig keys, and labels of devices, to leave out.
        change_tracking: Switch it on at the end; None: as it was.
        tags: Attach the saved tags.
        attributes: Set the saved custom attributes.
        sheet: Where the VSS documents go, with a sheet for each writer, on a CD image: 'folder' lays it beside the
            configuration file, 'drive' also puts it into a CD drive of the VM, 'none' leaves it out. A point that
            says nothing of applications has none.
        prove: 'all' reads every disk back; a share or a size ('10%', '5GiB') a sample of each.
        heartbeat_within_s: Seconds to wait for the heartbeat.
        journal: Where intents are kept; None for the user's state directory.

    Raises:
        ConfigError: A setting is impossible, or `mapping` cannot be read.
    """

    vcenter: Vcenter
    _: KW_ONLY
    writer: DiskWriter | None = None
    via: Literal["vddk", "lease"] = "vddk"
    path: DiskPath | None = None
    mode: Mode = "copy"
    name: str | None = None
    folder: str | None = None
    pool: str | None = None
    host: str | None = None
    datastore: str | None = None
    datastores: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    mapping: str | Path | None = None
    power_on: bool = False
    connect: bool | None = None
    nvram: Literal["restore", "fresh"] = "restore"
    provisioning: Provisioning | None = None
    reservations: bool | None = None
    lower_hardware: bool = False
    drop_encryption: bool = False
    empty_disks: bool = False
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    change_tracking: bool | None = None
    tags: bool = True
    attributes: bool = True
    sheet: SheetPlace = "folder"
    prove: str = "all"
    heartbeat_within_s: float = HEARTBEAT_WITHIN_S
    journal: Journal | None = None

    def __post_init__(self) -> None:
        for setting, known in (
            ("mode", get_args(Mode)),
            ("nvram", ("restore", "fresh")),
            ("via", ("vddk", "lease")),
            ("sheet", get_args(SheetPlace)),
            ("provisioning", (None, *get_args(Provisioning))),
        ):
            if getattr(self, setting) not in known:
                raise ConfigError(
                    f"{setting}={getattr(self, setting)!r} is not a known value.",
                    remedy=f"Choose one of {', '.join(map(repr, known))}.",
                )
        if self.via == "vddk" and self.writer is None:
            raise ConfigError(
                "NewVm has no writer for its disks.",
                remedy="Give writer=Vddk(libdir), or via='lease' to do without VDDK.",
            )
        if self.via == "lease" and self.path is not None:
            raise ConfigError("path= means nothing with via='lease'.", remedy="Leave it out.")
        self.budget()

    def budget(self) -> Budget | None:
        """How much of each disk is read back; None: all. Raises ConfigError."""
        return None if self.prove == "all" else Budget(self.prove, secrets.randbelow(1 << 32))

    def wanted(self) -> Wanted:
        """The settings for a plan, those of the mapping file included. Raises ConfigError."""
        given = {
            item.name: value
            for item in fields(self)
            if item.name in _WANTED and (value := getattr(self, item.name)) not in (None, item.default)
        }
        read = {} if self.mapping is None else read_mapping(Path(self.mapping))
        for name in ("datastores", "networks"):
            given[name] = {**read.get(name, {}), **getattr(self, name)}
        settings = {**read, **given}
        if "connect" in settings:
            settings["connect_nics"] = settings.pop("connect")
        return Wanted(**settings)

    async def plan(self, contents: Contents) -> RestorePlan:
        """What would be made, and what forbids it, without changing anything. Raises MoverError."""
        saved, disks = await _saved(contents)
        return await plan_on(self.vcenter, saved, self.wanted(), disks)

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """See `restoring.RestoreTarget`. Until every disk is proved there is no VM that stays."""
        wanted = self.wanted()
        saved, disks = await _saved(contents)
        nvram = await contents.document(NVRAM_DOCUMENT) if wanted.nvram == "restore" else None
        if self.via == "lease":
            async with open_lease(self, contents, saved, wanted, disks, nvram) as leased:
                yield leased
            return
        assert self.writer is not None  # checked when this was made
        async with restored_vm(
            self.vcenter,
            saved,
            wanted,
            disks,
            point=contents.point.id,
            writer=self.writer,
            journal=self.journal,
        ) as vm:
            yield _OpenVm(self, contents, vm, nvram)

    def effects(self) -> Sequence[str]:
        """What a restore would change outside, one sentence each."""
        name = f"the VM {self.name}" if self.name else "a VM of the saved name"
        sentences = [f"Makes {name} on {self.vcenter.server} and writes its disks."]
        if self.power_on:
            sentences.append("Switches it on at the end.")
        return [
            *sentences,
            f"Removes on {self.vcenter.server} what killed runs of this machine left behind.",
            f"Keeps a recovery journal in {(self.journal or Journal()).directory}.",
        ]


@dataclass
class _OpenVm:
    """A new VM that takes its disks. `attention`: sentences on what is not as planned."""

    needs_all = True
    attempts = 2  # a host may be away for longer than its writer waits

    settings: NewVm
    contents: Contents
    vm: VmBeingRestored
    nvram: bytes | None
    proofs: dict[str, DiskProof] = field(default_factory=dict)

    @property
    def attention(self) -> Sequence[str]:
        return self.vm.attention

    def place(self, disk: StoredDisk) -> str:
        return f"{self.vm.plan.name} {self.vm.path_of(disk.key)}"

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        contents, path = self.contents, self.settings.path or _default_path
        async with self.vm.writable(disk.key, pool) as opened:
            yield path(contents.read(disk, pool), opened)
        # The disk was closed without an error, so everything is written.
        self.vm.step(f"proving disk {disk.key}")
        async with self.vm.readable(disk.key, pool) as opened:
            self.proofs[disk.key] = await prove_disk(
                contents.reader, contents.point, disk, opened, budget=self.settings.budget()
            )

    async def finish(self) -> Sequence[str]:
        """Complete the VM, and switch it on when asked to."""
        for planned in self.vm.plan.disks:
            if (proof := self.proofs.get(planned.key)) is not None:
                self._note(planned.key, planned.provisioning, planned.data, proof)
        await self.vm.complete(self.nvram, wanted_sheet(self.settings.sheet, self.contents))
        await self.vm.switch_on(self.settings.heartbeat_within_s)
        sampled = any(proof.seed is not None for proof in self.proofs.values())
        done = "restored; a sample of each was proven" if sampled else "restored and proven"
        return [f"{self.vm.plan.name}: disks {done}.", *self.vm.remarks]

    def _note(self, key: str, provisioning: str, data: int, proof: DiskProof) -> None:
        taken = f"{format_size(proof.allocated)} allocated, {format_size(data)} in the point"
        self.vm.remarks.append(f"Disk {key}: {proof}; {taken}.")
        if provisioning == "thin" and proof.allocated > data * (1 + _THIN_SHARE) + _THIN_SLACK:
            self.vm.attention.append(
                f"Disk {key} is no longer thin: {format_size(proof.allocated)} are allocated."
            )


_WANTED = frozenset(item.name for item in fields(Wanted)) | {"connect"}


def read_mapping(path: Path) -> dict[str, Any]:
    """The settings of a mapping file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        read = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"The mapping file {path} cannot be read: {exc}.", remedy="Give a TOML file, or JSON as *.json."
        ) from exc
    unknown = [name for name in read if name not in _WANTED] if isinstance(read, dict) else ["no table"]
    if unknown:
        raise ConfigError(
            f"The mapping file {path} has unknown settings: {', '.join(unknown)}.",
            remedy=f"Known are {', '.join(sorted(_WANTED - {'connect_nics'}))}.",
        )
    for name, value in read.items():
        if not _SHAPES.get(name, _is_text)(value):
            raise ConfigError(
                f"The mapping file {path} has a value of the wrong kind: {name} = {value!r}.",
                remedy="The documentation of NewVm says what each setting takes.",
            )
    return read


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


_SHAPES: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("datastores", "networks"), _is_table),
    **dict.fromkeys(("keep", "drop"), _is_list),
    **dict.fromkeys(
        (
            "attributes", "change_tracking", "connect", "connect_nics", "drop_encryption", "empty_disks",
            "lower_hardware", "power_on", "reservations", "tags",
        ),
        _is_switch,
    ),
}  # fmt: skip


def _default_path(source: Flow[Span | Zeros], disk: WritableDisk) -> Pipeline[Any]:
    return source | IntoVddkDisk(disk)


async def _saved(contents: Contents) -> tuple[SavedVm, list[PointDisk]]:
    """What the point says of its VM, and of its disks. Raises IntegrityError."""
    found = {name: await contents.document(name) for name in DOCUMENTS}
    documents = {name: content for name, content in found.items() if content is not None}
    saved = saved_vm(contents.point, documents)
    disks = [
        PointDisk(
            disk.key,
            disk.capacity,
            await trio.to_thread.run_sync(data_of, contents.reader, contents.point, disk),
        )
        for disk in contents.disks
    ]
    return saved, disks


def data_of(reader: RepositoryReader, point: RestorePoint, disk: StoredDisk) -> int:
    """The bytes of a disk that its map has data for. Blocks."""
    digests = reader.page_digests(point, disk)
    total = 0
    for number in np.flatnonzero(digests.any(axis=1)).tolist():
        total += int(reader.page(point, disk, number, digests[number].tobytes()).count.sum()) * CLUSTER
    return min(total, disk.capacity)
