"""Whether a point may be written over the VM that it is of. All that is wrong is said at once, before anything is
touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError, SourceError
from pipeline.units import format_size
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk

from ..api.properties import Row
from ..api.session import VcenterSession
from ..inventory.hardware import VmDisk, vm_disks
from ..inventory.lookup import Vm, find_vm, find_vm_by_uuid, find_vms
from ..snapshot.remove import NEEDED
from ..snapshot.tree import SNAPSHOT_PATHS, snapshots_in

_POWER = "runtime.powerState"
_PATHS = (
    *SNAPSHOT_PATHS,
    NEEDED,
    _POWER,
    "config.hardware.device",
    "config.changeTrackingEnabled",
    "config.keyId",
    "config.template",
)


class NotInPlace(SourceError):
    """A point cannot be written over its VM; nothing was touched. `problems`: a sentence each."""


@dataclass(frozen=True)
class Original:
    """The VM that a point is of, fit to be written over.

    `disks`: by key in the point, as the VM has them now. `tracking`: change tracking is on, or still has state on a
    disk. `remarks`: sentences for the report.
    """

    vm: Vm
    disks: Mapping[str, VmDisk]
    tracking: bool
    remarks: Sequence[str] = ()


async def find_original(session: VcenterSession, point: RestorePoint) -> Vm:
    """The VM with the point's instance UUID, whatever it is called now.

    Raises:
        NotInPlace: There is none.
    """
    name, uuid = point.machine.name, point.machine.uuid
    moref = await find_vm_by_uuid(session, uuid)
    if moref is not None:
        return await find_vm(session, moref)
    try:
        others = await find_vms(session, [name])
    except SourceError:
        others = []
    other = "".join(
        f" The VM {vm.path} is called {name} too, but has the UUID {vm.uuid}: it is another one."
        for vm in others
    )
    raise NotInPlace(
        f"{session.server} has no VM with the UUID {uuid}, of which point {point.id} ({name}) is.{other}",
        remedy="Restore the point into a new VM.",
        vm=name,
        uuid=uuid,
    )


async def check_original(
    session: VcenterSession,
    vm: Vm,
    point: RestorePoint,
    wanted: Sequence[StoredDisk],
    *,
    onto: Mapping[str, str],
    keep: Sequence[str] = (),
) -> Original:
    """The VM and its disks, each found to be the one that the point holds.

    Args:
        wanted: The disks of the point that will be written.
        onto: By key of a disk in the point, the key of the VM's disk that it is written onto, where that is not the
            same, or has another UUID now.
        keep: Keys of disks of the VM that are not in the point, and may stay as they are.

    Raises:
        NotInPlace: It may not be written over.
        ConfigError: `onto` or `keep` name what there is not.
    """
    row = await session.properties(vm.reference(session), _PATHS)
    have = {disk.key: disk for disk in vm_disks(row.get("config.hardware.device") or ())}
    _check_names(vm, point, have, onto, keep)
    problems = _about_vm(session, row)
    disks: dict[str, VmDisk] = {}
    uuids = _uuids(point)
    for stored in wanted:
        disk = have.get(onto.get(stored.key, stored.key))
        if disk is None:
            problems.append(
                f"It has no disk {onto.get(stored.key, stored.key)}, and disk {stored.key} of the point has "
                f"{format_size(stored.capacity)}."
            )
            continue
        problems += _about_disk(stored, disk, "" if stored.key in onto else uuids.get(stored.key, ""))
        disks[stored.key] = disk
    targets = [disk.key for disk in disks.values()]
    problems += [f"Two disks of the point would be written onto {key}." for key in _repeated(targets)]
    known = {str(disk.get("key")) for disk in _documents(point)} | {disk.key for disk in point.disks}
    added = [disk for key, disk in have.items() if key not in {*targets, *known, *keep}]
    problems += [
        f"It has the disk {disk.key} ({disk.label}, {format_size(disk.capacity)}), which the point does not know."
        for disk in added
    ]
    if problems:
        raise NotInPlace(
            f"Point {point.id} cannot be written over {vm.title}: {' '.join(problems)}",
            remedy="Nothing was touched. Remove the cause and run again, or restore into a new VM. `onto` names "
            "the disk for a disk of the point, `keep` disks that may stay as they are.",
            vm=vm.name,
            problems=problems,
        )
    tracked = bool(row.get("config.changeTrackingEnabled")) or any(disk.tracked for disk in disks.values())
    stays = [disk for key, disk in have.items() if key not in targets]
    remarks = [f"{disk.label} ({disk.key}) of {vm.name} stays as it is." for disk in stays]
    return Original(vm, disks, tracked, remarks)


def _about_vm(session: VcenterSession, row: Row) -> list[str]:
    problems = []
    state = row.get(_POWER)
    if state != "poweredOff":
        words = {"poweredOn": "powered on", "suspended": "suspended"}.get(str(state), f"in state {state}")
        problems.append(f"It is {words}: shut it down first.")
    names = [node.name for node in snapshots_in(session, row)]
    if names:
        problems.append(
            f"It has snapshots ({', '.join(names[:4])}{', ...' * (len(names) > 4)}): remove them."
        )
    elif row.get(NEEDED):
        problems.append("Its disks need consolidation.")
    if row.get("config.template"):
        problems.append("It is a template: make it a VM first.")
    if row.get("config.keyId") is not None:
        problems.append("It is encrypted, and encrypted VMs are restored into a new VM only.")
    return problems


def _about_disk(stored: StoredDisk, disk: VmDisk, uuid: str) -> list[str]:
    name = f"{disk.label} ({disk.key})"
    problems = []
    if disk.capacity != stored.capacity:
        problems.append(
            f"{name} has {disk.capacity} bytes, and disk {stored.key} of the point {stored.capacity}."
        )
    if uuid and disk.uuid and disk.uuid.lower() != uuid.lower():
        problems.append(
            f"{name} is another disk: it has the UUID {disk.uuid}, and the point's {uuid} "
            f"(onto={{{stored.key!r}: {disk.key!r}}} takes it all the same)."
        )
    if disk.left_out:
        problems.append(f"{name} cannot be written: {disk.left_out}.")
    if disk.files > 1 and not disk.left_out:
        problems.append(f"{name} is a linked clone or has redo logs: {disk.path} hangs on {disk.chain[1]}.")
    if disk.multi_writer:
        problems.append(f"{name} is shared with other VMs (multi-writer).")
    if disk.encrypted:
        problems.append(f"{name} is encrypted.")
    return problems


def _check_names(
    vm: Vm, point: RestorePoint, have: Mapping[str, VmDisk], onto: Mapping[str, str], keep: Sequence[str]
) -> None:
    """What the settings name has to be there. Raises ConfigError."""
    for key in onto:
        if point.disk(key) is None:
            known = ", ".join(disk.key for disk in point.disks)
            raise ConfigError(
                f"`onto` names {key!r}, which point {point.id} lacks.", remedy=f"It has: {known}."
            )
    for key in (*onto.values(), *keep):
        if key not in have:
            raise ConfigError(
                f"{vm.name} has no disk {key!r}, which `onto` or `keep` names.",
                remedy=f"It has: {', '.join(have) or 'none'}.",
            )


def _documents(point: RestorePoint) -> list[Mapping[str, object]]:
    """What the point's configuration says of the disks that the VM had."""
    disks = point.configuration.get("disks")
    return [disk for disk in disks if isinstance(disk, Mapping)] if isinstance(disks, list) else []


def _uuids(point: RestorePoint) -> dict[str, str]:
    """The UUIDs of the disks when they were backed up, by key."""
    return {str(disk.get("key")): str(disk.get("uuid") or "") for disk in _documents(point)}


def _repeated(keys: Sequence[str]) -> list[str]:
    return sorted({key for key in keys if keys.count(key) > 1})
