"""A VM on a vCenter or an ESXi host as a source of backups."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import get_args

from pipeline.buffers import DEFAULT_POOL
from pipeline.errors import ConfigError, MoverError
from vadpipe.exclude import expect_patterns, matching_keys

from ..api.session import Vcenter
from ..guest.expectations import GuestControl
from ..inventory.lookup import Vm, find_vm
from ..inventory.placement import Placement, placements_of
from ..journal.access import AccessReader
from ..journal.intents import Journal
from ..manifest.fetch import LATE_S, ManifestFetcher
from ..manifest.https import OverHttps
from ..snapshot.quiesce import Quiesce
from ..snapshot.remove import Consolidate
from ..snapshot.snapshot import REMOVE_WITHIN_S
from .capture import VsphereCapture, captured
from .check import Check
from .disk import DiskReader
from .power import HeldOff, held_off, power_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VsphereVm:
    """A VM to capture: a `pipeline.protocols.Machine`. Settings only, no I/O.

    Args:
        vm: Name, inventory path, moref or UUID; or a VM that was found before.
        reader: Opens the disks, e.g. `vadpipe.vddk.Vddk`.
        exclude: Keys ('scsi0:1'), labels ('Hard disk 2') or glob patterns of disks to leave out; each must match.
        quiesce: How the guest is quiesced.
        pool_size: Bytes of buffers that all disks share.
        journal: Where intents are kept; None for the user's state directory.
        enable_change_tracking: Switch it on where it is off; possible only without snapshots.
        remove_within_s: Seconds for the removal of the snapshot.
        consolidate: What may be done for disks that need consolidation after the removal: 'never' only reports it,
            'ask' asks vSphere, 'escalate' also makes and removes further snapshots when the VM has no others.
        lock_relocation: Keep Storage vMotion from moving the disks while they are read, where that is possible.
        guest: An account of the guest, to look at what governs quiescing there; nothing in the guest is changed.
        preflight: What is checked before the snapshot; None for nothing.
        manifest: Ways to fetch the VSS manifest, tried in this order.
        manifest_late_s: Seconds after the snapshot in which the manifest may still appear.
    """

    vcenter: Vcenter
    vm: str | Vm
    _: KW_ONLY
    reader: DiskReader
    exclude: Sequence[str] = ()
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
        expect_patterns(self.exclude)
        if self.consolidate not in get_args(Consolidate):
            raise ConfigError(
                f"consolidate={self.consolidate!r} is not a known value.",
                remedy=f"Choose one of {', '.join(map(repr, get_args(Consolidate)))}.",
            )

    @property
    def name(self) -> str:
        return self.vm.title if isinstance(self.vm, Vm) else self.vm

    def capture(self) -> AbstractAsyncContextManager[VsphereCapture]:
        """A snapshot with its disks open. At the end the disks are closed and the snapshot is removed.

        What killed runs left behind is removed first, and again at the end.

        Raises:
            SourceError: The VM cannot be captured. Notes on it say what else needs attention.
            LeftBehind: Something could not be undone, e.g. SnapshotLeaked; in a group with the error of the body
                when both failed.
        """
        return captured(self)

    @asynccontextmanager
    async def stopped(self, *, power_off: bool, within_s: float) -> AsyncIterator[HeldOff]:
        """The VM is off inside, for a cut-over. One that was on is powered on at the end, unless it is to stay off.

        The order is in the journal: the next run powers the VM on for one that was killed.

        Args:
            power_off: Its guest may be shut down, through VMware Tools, never by force.
            within_s: How long the guest may take for that.

        Raises:
            ConfigError: It is on, and may not be shut down.
            SourceError: It did not shut down in time; or it could not be powered on again.
        """
        async with self.vcenter.connect() as session:
            vm = await find_vm(session, self.vm)
            if not power_off and await power_state(session, vm.moref) != "poweredOff":
                raise ConfigError(
                    f"{vm.name} runs, and the cut-over needs it off.",
                    remedy="Shut it down and cut over then, or allow it with Migrate(power_off=True).",
                    vm=vm.name,
                )
            journal = self.journal or Journal()
            async with held_off(session, vm, journal, shutdown_within_s=within_s) as held:
                yield held

    def effects(self) -> Sequence[str]:
        where = f"{self.name} on {self.vcenter.server}"
        quiesced = {"none": "without quiescing"}.get(self.quiesce.kind, f"with {self.quiesce.kind} quiescing")
        sentences = [f"Takes a snapshot of {where} {quiesced}, and removes it at the end."]
        if self.exclude:
            sentences.append(f"Leaves out its disks {', '.join(self.exclude)}.")
        if self.lock_relocation and isinstance(self.reader, AccessReader):
            sentences.append(f"Locks {where} against Storage vMotion meanwhile, if that is a vCenter.")
        sentences += [
            f"Removes on {self.vcenter.server} what killed runs of this machine left behind.",
            f"Keeps a recovery journal in {(self.journal or Journal()).directory}.",
        ]
        if self.consolidate == "escalate":
            sentences.append("Makes and removes further snapshots if its disks still need consolidation.")
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


async def placements_of_machines(machines: Sequence[VsphereVm]) -> list[Placement | None]:
    """Where each machine is now, without the disks that it leaves out; None where its server cannot tell."""
    found: dict[int, Placement | None] = {}
    for server, there in by_server(machines):
        try:
            async with server.connect() as session:
                placements = await placements_of(session, [machine.vm for machine in there])
        except MoverError as exc:
            log.info("%s: where its VMs are is not known: %s", server.server, exc)
            continue
        for machine, placement in zip(there, placements, strict=True):
            found[id(machine)] = placement and _without_excluded(machine, placement)
    return [found.get(id(machine)) for machine in machines]


def _without_excluded(machine: VsphereVm, placement: Placement) -> Placement:
    out = {key for pattern in machine.exclude for key in matching_keys(placement.disks, pattern)}
    return replace(placement, disks=[disk for disk in placement.disks if disk.key not in out])


def by_server(machines: Sequence[VsphereVm]) -> list[tuple[Vcenter, list[VsphereVm]]]:
    """The machines grouped by server, so that one session serves all of a server."""
    servers = dict.fromkeys(machine.vcenter for machine in machines)
    return [(server, [one for one in machines if one.vcenter == server]) for server in servers]
