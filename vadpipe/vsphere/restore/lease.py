"""A new VM through HttpNfcLease, without VDDK: imported with all its disks, which are sent over HTTPS.

    ImportVApp -> initializing -> ready: one address per disk -> POST each -> Complete        -> the VM stays
                                                                           -> Abort, time-out -> the VM goes

The lease ends by itself, and the VM with it, when nobody reports progress for its time. It is told every second.
Devices are matched by their import keys, never by their order. The intent is durable before the import, and its
token is in the settings of the VM: a VM that is there although the lease is forgotten is found and destroyed.

Source: HttpNfcLease and ResourcePool.ImportVApp in the vSphere API reference.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio
from pyVmomi import vim

from pipeline.errors import IntegrityError, MoverError, SourceError

from ..api.faults import ObjectGone, translate
from ..api.session import VcenterSession
from ..inventory.hardware import vm_controllers, vm_disks
from ..journal.intents import Journal
from ..plan.values import PlannedDisk, RestorePlan
from .lease_upload import Upload, upload_to
from .made import DEVICES, MadeVm, Making, disk_key, making, step

log = logging.getLogger(__name__)

PROGRESS_S = 1.0  # the documents want it every two seconds at least
READY_WITHIN_S = 1800.0  # disks that are zeroed when they are made take long
_ABORTED_WITHIN_S = 20.0  # then the VM is destroyed all the same
_PLACE = re.compile(r"(?P<kind>[A-Za-z]+?)(?P<bus>[0-9]+):(?P<unit>[0-9]+)")
_FIRST_DISK = -9000  # temporary keys below those of the plan
_IDE = 200  # the server's own IDE controllers are 200 and 201


@dataclass
class LeasedVm:
    """A new VM whose lease is ready. `made`: the VM; its disks can be opened only when the lease is complete.

    `targets`: the addresses of the disks, by their keys in the point.
    """

    made: MadeVm
    plan: RestorePlan
    session: VcenterSession = field(repr=False)
    lease: vim.HttpNfcLease = field(repr=False)
    targets: Mapping[str, vim.HttpNfcLease.DeviceUrl] = field(repr=False)
    uploads: dict[str, Upload] = field(default_factory=dict, repr=False)
    positions: dict[str, int] = field(default_factory=dict)
    completed: bool = False

    def upload(self, key: str) -> Upload:
        """A new upload of a disk, by its key in the point. Raises MoverError."""
        upload = self.uploads[key] = upload_to(self.session, self.targets[key])
        return upload

    @property
    def percent(self) -> int:
        """How far the disks are, 0 to 99."""
        total = sum(disk.capacity for disk in self.plan.disks) or 1
        return min(99, 100 * sum(self.positions.values()) // total)

    async def keep(self) -> None:
        """Report progress, again and again, until it is cancelled."""
        while True:
            report = partial(self.lease.Progress, self.percent)
            try:
                await self.session.call("HttpNfcLeaseProgress", report, repeat=False)
            except MoverError as exc:  # an upload, or the end, will tell what became of the lease
                log.info("%s: the lease did not take the progress: %s", self.made.vm.name, exc.problem)
            await trio.sleep(PROGRESS_S)

    async def complete(self) -> Sequence[str]:
        """End the lease: all disks are sent, and the VM is a VM. Returns sentences for the report.

        Raises:
            IntegrityError: The server received something else than was sent.
            MoverError: The lease ended before.
        """
        remarks = await self._compare()
        await self.session.call("HttpNfcLeaseComplete", self.lease.Complete, changes=True)
        self.completed = True
        with suppress(ObjectGone):  # a server may forget a lease that is done
            await _until(self.session, self.lease, "done", READY_WITHIN_S)
        row = await self.session.properties(self.made.reference, [DEVICES])
        found = {disk.key: disk for disk in vm_disks(row.get(DEVICES) or ())}
        self.made.disks = {
            planned.key: found[disk_key(planned)] for planned in self.plan.disks if disk_key(planned) in found
        }
        return remarks

    async def _compare(self) -> list[str]:
        """Compare what was sent with what the server says that it received, where it tells."""
        try:
            entries = await self.session.call("HttpNfcLeaseGetManifest", self.lease.GetManifest)
        except MoverError as exc:
            log.info("%s: the server does not tell what it received: %s", self.made.vm.name, exc.problem)
            entries = []
        received = {entry.key: entry for entry in entries}
        remarks = []
        for key, upload in self.uploads.items():
            entry = received.get(self.targets[key].key)
            if entry is None or not entry.sha1:
                remarks.append(
                    f"Disk {key}: {self.session.server} does not tell the digest of what it received."
                )
                continue
            if entry.sha1.lower() != upload.sha1:
                raise IntegrityError(
                    f"Disk {key}: {upload.sent} bytes were sent with SHA-1 {upload.sha1}, and "
                    f"{self.session.server} received {entry.size} bytes with SHA-1 {entry.sha1}.",
                    remedy="Restore again.",
                    disk=key,
                )
            remarks.append(f"Disk {key}: the server received what was sent (SHA-1 {upload.sha1}).")
        return remarks


@asynccontextmanager
async def leased_vm(
    session: VcenterSession, plan: RestorePlan, journal: Journal, *, run: str, point: str
) -> AsyncIterator[LeasedVm]:
    """Import the VM of a plan; inside, its disks are sent. It is destroyed unless it was declared whole inside.

    Args:
        session: The session.
        plan: A plan without problems.
        journal: Where the intent is kept.
        run: Identity of the run.
        point: The id of the point, for the intent.

    Raises:
        SourceError: The VM cannot be imported.
        NewVmLeft: It is not whole and could not be destroyed; in a group with the error of the body.
    """
    begun = making(_Importing, session, plan, journal, run=run, point=point, phase="importing")
    async with begun as importing:
        leased = await importing.start()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leased.keep)
            try:
                yield leased
            except Exception as exc:  # raised below, as itself and not in a group
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


@dataclass
class _Importing(Making):
    lease: vim.HttpNfcLease | None = None
    leased: LeasedVm | None = None

    async def start(self) -> LeasedVm:
        """Import, and wait until the server is ready for the disks."""
        session, plan = self.session, self.plan
        assert plan.pool is not None
        assert plan.folder is not None
        step(plan.name, "importing the VM")
        pool = vim.ResourcePool(plan.pool.moref, session.stub)
        folder = vim.Folder(plan.folder.moref, session.stub)
        host = vim.HostSystem(plan.host.moref, session.stub) if plan.host else None
        spec = vim.vm.VmImportSpec(configSpec=self.spec())
        self.in_doubt = True
        try:
            lease = await session.call(
                "ImportVApp", lambda: pool.ImportVApp(spec, folder, host), changes=True
            )
        except MoverError as exc:
            self.in_doubt = exc.transient
            raise
        self.lease, self.in_doubt = lease, False
        await _until(session, lease, "ready", READY_WITHIN_S)
        row = await session.properties(lease, ["info"])
        info: vim.HttpNfcLease.Info | None = row.get("info")
        if info is None:  # it ended just now, e.g. because somebody deleted the VM
            raise SourceError(
                f"The lease of {plan.name} ended before its disks could be sent.",
                remedy="Look at the recent tasks: somebody may have deleted the VM.",
                vm=plan.name,
            )
        made = await self.exists(str(info.entity._moId), "sending disks")
        targets = matched(plan, [device for device in info.deviceUrl if device.disk is not False])
        self.leased = LeasedVm(made, plan, session, lease, targets)
        return self.leased

    def spec(self) -> vim.vm.ConfigSpec:
        """The planned specification with all disks."""
        spec = super().spec()
        changes = [
            one for one in spec.deviceChange or () if not isinstance(one.device, vim.vm.device.VirtualDisk)
        ]
        controllers = {
            controller.key: change.device.key
            for change in changes
            for controller in vm_controllers([change.device])
        }
        disks = [
            planned.spec(_controller(controllers, planned), device_key=_FIRST_DISK - number)
            for number, planned in enumerate(self.plan.disks)
        ]
        spec.deviceChange = [*changes, *disks]
        return spec

    async def settle(self) -> bool:
        """Abort the lease: the server then destroys the VM itself."""
        lease = self.lease
        if lease is None or (self.leased is not None and self.leased.completed):
            return False
        with suppress(MoverError):  # a lease that ended, or that a restarted server forgot
            await self.session.call("HttpNfcLeaseAbort", lambda: lease.Abort(None), changes=True)
            await _until(self.session, lease, "error", _ABORTED_WITHIN_S)
        return True


def matched(
    plan: RestorePlan, devices: Sequence[vim.HttpNfcLease.DeviceUrl]
) -> dict[str, vim.HttpNfcLease.DeviceUrl]:
    """The address of each planned disk, by its key in the point, found by the import keys of the lease.

    An import key ends in the type of the controller, its bus and the unit, as in
    '/web01/ParaVirtualSCSIController0:1'.

    Raises:
        SourceError: A disk has no address, or two.
    """
    found: dict[str, list[vim.HttpNfcLease.DeviceUrl]] = {}
    for device in devices:
        found.setdefault(_place_of(device.importKey), []).append(device)
    if len(plan.disks) == 1 and len(devices) == 1:  # nothing to confuse, whatever the key is like
        return {plan.disks[0].key: devices[0]}
    targets = {}
    for planned in plan.disks:
        ours = found.get(disk_key(planned), [])
        if len(ours) != 1:
            keys = ", ".join(device.importKey for device in devices)
            raise SourceError(
                f"The lease for {plan.name} names {len(ours) or 'no'} address{'es' * (len(ours) != 1)} for disk "
                f"{disk_key(planned)}; its import keys are {keys or 'none'}.",
                remedy="Restore through VDDK; the disks of this lease cannot be told apart.",
                vm=plan.name,
                disk=planned.key,
            )
        targets[planned.key] = ours[0]
    return targets


def _place_of(import_key: str) -> str:
    """The key of the disk that an import key means, e.g. 'scsi0:1'; empty when it has another form."""
    place = _PLACE.fullmatch(import_key.rpartition("/")[2])
    if place is None:
        return ""
    kind = getattr(vim.vm.device, place["kind"], None)
    if not isinstance(kind, type) or not issubclass(kind, vim.vm.device.VirtualController):
        return ""
    controllers = vm_controllers([kind(key=1, busNumber=int(place["bus"]))])
    return f"{controllers[0].key}:{place['unit']}" if controllers else ""


def _controller(controllers: Mapping[str, int], planned: PlannedDisk) -> int:
    """The temporary key of the controller of a disk. Raises SourceError."""
    if planned.controller in controllers:
        return controllers[planned.controller]
    bus = planned.controller.removeprefix("ide")
    if planned.controller.startswith("ide") and bus.isdigit():
        return _IDE + int(bus)
    raise SourceError(
        f"The plan has no controller {planned.controller} for disk {planned.key}.",
        remedy="Restore through VDDK.",
        disk=planned.key,
    )


async def _until(session: VcenterSession, lease: vim.HttpNfcLease, wanted: str, within_s: float) -> None:
    """Wait until the lease is in this state. Raises SourceError when it ends otherwise, or not in time."""
    pause_s = 0.05
    with trio.move_on_after(within_s):
        while True:
            state = str((await session.properties(lease, ["state"])).get("state"))
            if state == wanted:
                return
            if state == "error":
                error = (await session.properties(lease, ["error"])).get("error")
                raise translate(error, "ImportVApp", session.server)
            if state == "done":
                break
            await trio.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)
    raise SourceError(
        f"The lease of the new VM on {session.server} is not {wanted} after {within_s:g} s.",
        remedy="Look at the recent tasks.",
        server=session.server,
    )
