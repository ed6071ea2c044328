"""A VM on a vCenter or an ESXi host as a source of backups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass, field
from typing import get_args

from pipeline.buffers import DEFAULT_POOL
from pipeline.errors import ConfigError

from ..api.session import Vcenter
from ..guest.expectations import GuestControl
from ..inventory.lookup import Vm
from ..journal.access import AccessReader
from ..journal.intents import Journal
from ..manifest.fetch import LATE_S, ManifestFetcher
from ..manifest.https import OverHttps
from ..snapshot.consolidate import Consolidate
from ..snapshot.quiesce import Quiesce
from ..snapshot.snapshot import REMOVE_WITHIN_S
from .capture import VsphereCapture, captured
from .check import Check
from .disk import DiskReader


@dataclass(frozen=True)
class VsphereVm:
    """A VM to capture: a `pipeline.protocols.Machine`. Settings only, no I/O.

    `vm`: name, inventory path, moref or UUID, or a VM that was found before. `reader` opens the disks, e.g.
    `vadpipe.vddk.Vddk`. `pool_size`: bytes of buffers that all its disks share. `journal`: where intents are kept,
    None for the user's state directory. `enable_change_tracking`: switch it on where it is off, which needs a VM
    without snapshots. `remove_within_s`: how long to wait at the end for the snapshot to be gone. `consolidate`:
    what may be done for disks that vSphere leaves in need of it after a removal: 'never' names it only, 'ask' asks
    vSphere, 'ladder' also makes and removes further snapshots, where the VM has none of others. `lock_relocation`:
    keep Storage vMotion from moving the disks while they are read, where the reader and the server can. `guest`: an
    account of the guest, by which the run looks at what governs quiescing in there; nothing in it is changed.
    `preflight`: what is checked before the snapshot, None for nothing. `manifest`: ways to fetch the VSS manifest,
    tried in this order; `manifest_late_s`: how long after the snapshot it may still come.
    """

    vcenter: Vcenter
    vm: str | Vm
    _: KW_ONLY
    reader: DiskReader
    quiesce: Quiesce = field(default_factory=Quiesce.application)
    pool_size: int = DEFAULT_POOL
    journal: Journal | None = None
    enable_change_tracking: bool = False
    remove_within_s: float = REMOVE_WITHIN_S
    consolidate: Consolidate = "ask"
    lock_relocation: bool = True
    guest: GuestControl | None = None
    preflight: Check | None = None
    manifest: Sequence[ManifestFetcher] = (OverHttps(),)
    manifest_late_s: float = LATE_S

    def __post_init__(self) -> None:
        if self.consolidate not in get_args(Consolidate):
            raise ConfigError(
                f"consolidate={self.consolidate!r} is not known.",
                remedy=f"Choose one of {', '.join(map(repr, get_args(Consolidate)))}.",
            )

    @property
    def name(self) -> str:
        return self.vm.title if isinstance(self.vm, Vm) else self.vm

    def capture(self) -> AbstractAsyncContextManager[VsphereCapture]:
        """A snapshot with its disks open. At the end the disks are closed and the snapshot is removed.

        What killed runs left is swept first, and once more at the end. Raises SourceError and its kinds; LeftBehind
        and its kind SnapshotLeaked, in a group with the body's error when both failed.
        """
        return captured(self)

    def effects(self) -> Sequence[str]:
        where = f"{self.name} on {self.vcenter.server}"
        quiesced = {"none": "without quiescing"}.get(self.quiesce.kind, f"with {self.quiesce.kind} quiescing")
        sentences = [f"Takes a snapshot of {where} {quiesced}, and removes it at the end."]
        if self.lock_relocation and isinstance(self.reader, AccessReader):
            sentences.append(f"Locks {where} against Storage vMotion meanwhile, if that is a vCenter.")
        sentences += [
            f"Undoes on {self.vcenter.server} what killed runs of this machine left behind.",
            f"Notes all of that in {(self.journal or Journal()).directory}.",
        ]
        if self.consolidate == "ladder":
            sentences.append("Makes and removes further snapshots of it if its disks stay unconsolidated.")
        if self.quiesce.warning:
            sentences.append(self.quiesce.warning)
        if self.guest is not None and self.quiesce.kind != "none":
            sentences.append(
                f"Reads tools.conf and lists scripts in the guest of {where}, as {self.guest.user}."
            )
        if self.enable_change_tracking:
            sentences.append(f"Enables change tracking of {where} if it is off and the VM has no snapshots.")
        if self.quiesce.kind != "none":
            sentences += [sentence for fetcher in self.manifest for sentence in fetcher.effects()]
        return sentences


def by_server(machines: Sequence[VsphereVm]) -> list[tuple[Vcenter, list[VsphereVm]]]:
    """The machines of each server, so that one session serves them all."""
    servers = dict.fromkeys(machine.vcenter for machine in machines)
    return [(server, [one for one in machines if one.vcenter == server]) for server in servers]
