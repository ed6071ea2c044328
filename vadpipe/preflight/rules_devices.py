"""Rules about the VM's devices: which disks a snapshot holds, and which devices stand in the way of quiescing.

Free SCSI slots: a controller has 16 unit numbers and is itself one of them. A paravirtual controller of hardware
version 14 or later has 64 targets; whether VMware Tools use those above 15 is documented nowhere, so a VM that has
enough slots only with them is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from .facts import (
    Case,
    Version,
    VmController,
    VmDisk,
)
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)

_SLOTS = 15
_SLOTS_PARAVIRTUAL = 63
_PARAVIRTUAL_SINCE = 14  # hardware version
_PARAVIRTUAL = "ParaVirtualSCSIController"
# Windows Server 2022 quiesces applications behind an NVMe boot controller from this build on.
_NVME_BUILD: Version = (20348, 2582)
_SERVER_2022 = "Windows Server 2022"


def _no_disk(case: Case) -> Iterator[Outcome]:
    if case.vm.readable and not case.vm.disks:
        yield Breach("it has no disk")


def _no_disk_in_snapshot(case: Case) -> Iterator[Outcome]:
    if case.vm.disks and all(disk.left_out for disk in case.vm.disks):
        yield Breach(f"a snapshot holds none of its {len(case.vm.disks)} disks")


def _independent(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if "independent" in disk.left_out:
            yield Breach(disk.left_out, disk.label)


def _raw_physical(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.raw == "physical":
            yield Breach(
                "it is a raw device mapping in physical mode, which snapshots do not hold", disk.label
            )


def _raw_virtual(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.raw == "virtual":
            yield Breach("it is a raw device mapping in virtual mode", disk.label)


def _without_file(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.left_out and not disk.raw and "independent" not in disk.left_out:
            yield Breach(disk.left_out, disk.label)


def _bus_sharing(case: Case) -> Iterator[Outcome]:
    for controller in case.vm.controllers:
        if controller.sharing not in ("", "noSharing"):
            yield Breach(f"its bus sharing is {controller.sharing}", controller.key)


def _multi_writer(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.multi_writer:
            yield Breach("other VMs may write to it (multi-writer)", disk.label)


def _passthrough(case: Case) -> Iterator[Outcome]:
    for label in case.vm.passthrough:
        yield Breach("it is passed through from the host", label)


def _on(case: Case, bus: str) -> Iterator[VmDisk]:
    for disk in case.vm.disks if case.application else ():
        if disk.bus == bus and not disk.left_out:
            yield disk


def _ide(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "ide"):
        yield Breach(f"it is an IDE disk ({disk.key})", disk.label)


def _sata(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "sata"):
        yield Breach(f"it is a SATA disk ({disk.key})", disk.label)


def _nvme_boot(case: Case) -> Iterator[Outcome]:
    if not any(_on(case, "nvme")):
        return
    build, guest = case.vm.guest_build, case.vm.guest
    is_2022 = guest is not None and guest.name == _SERVER_2022
    if is_2022 and build is not None and build >= _NVME_BUILD:
        return
    if case.vm.boot_bus is None:
        yield Unknown("it has NVMe disks, and its configuration does not tell which disk it boots from")
    elif case.vm.boot_bus == "nvme" and is_2022 and build is None:
        yield Unknown("it boots from NVMe, and VMware Tools do not tell the build of Windows")
    elif case.vm.boot_bus == "nvme":
        yield Breach("it boots from an NVMe disk")


def _nvme_data(case: Case) -> Iterator[Outcome]:
    for disk in _on(case, "nvme") if case.vm.boot_bus not in (None, "nvme") else ():
        yield Breach(f"it is an NVMe disk ({disk.key})", disk.label)


def _slots(case: Case) -> Iterator[Outcome]:
    disks = [disk for disk in case.vm.disks if not disk.left_out]
    if not case.application or not disks:
        return
    scsi = [controller for controller in case.vm.controllers if controller.is_scsi]
    certain = sum(max(_SLOTS - controller.attached, 0) for controller in scsi)
    at_most = sum(_slots_at_most(case, controller) - controller.attached for controller in scsi)
    if at_most < len(disks):
        yield Breach(f"{at_most} SCSI slots are free, and it has {len(disks)} disks")
    elif certain < len(disks):
        yield Unknown(
            f"{certain} of the first {_SLOTS} slots of its SCSI controllers are free, and it has {len(disks)} "
            "disks: whether VMware Tools use the targets above them is not documented"
        )


def _slots_at_most(case: Case, controller: VmController) -> int:
    modern = (case.vm.hardware_version or 0) >= _PARAVIRTUAL_SINCE
    return _SLOTS_PARAVIRTUAL if modern and controller.kind == _PARAVIRTUAL else _SLOTS


_GUIDE = "VDDK programming guide, The VMware VSS Implementation"
_ADMIN = "vSphere administration guide, snapshot limitations"
_GOSV = "VMware's published guest-OS tests, quiesced snapshots"
_INSIDE = "Back it up from inside the guest, or make it a dependent disk; the point will name it as left out."

RULES: tuple[Rule, ...] = (
    Rule(
        "disk-none", Severity.ERROR, "the VM has a disk", "Add its disks, or leave it out of the jobs.",
        "own: there is nothing to read", _no_disk,
    ),
    Rule(
        "disk-none-in-snapshot", Severity.ERROR, "a snapshot holds a disk of the VM",
        "Back the VM up from inside the guest.", _ADMIN, _no_disk_in_snapshot,
    ),
    Rule("disk-independent", Severity.WARNING, "no disk is independent", _INSIDE, _ADMIN, _independent),
    Rule(
        "disk-raw-physical", Severity.WARNING, "no raw device mapping in physical mode",
        _INSIDE, _ADMIN, _raw_physical,
    ),
    Rule(
        "disk-raw-virtual", Severity.INFO, "disks are files on a datastore",
        "Nothing to do: it is backed up like a file, and restored as one.", _ADMIN, _raw_virtual,
    ),
    Rule(
        "disk-without-file", Severity.WARNING, "every disk has a file on a datastore",
        _INSIDE, _ADMIN, _without_file,
    ),
    Rule(
        "bus-sharing", Severity.ERROR, "no controller shares its bus",
        "Such a cluster is backed up from inside its guests: bus sharing prevents snapshots.", _ADMIN, _bus_sharing,
    ),
    Rule(
        "disk-multi-writer", Severity.ERROR, "no disk is shared by several VMs",
        "Back it up from inside one of the guests: shared disks cannot have snapshots.",
        f"{_ADMIN}; VMware KB 1034165", _multi_writer,
    ),
    Rule(
        "device-passthrough", Severity.ERROR, "no device is passed through",
        "Remove the device, or back the VM up from inside the guest.", _ADMIN, _passthrough,
    ),
    Rule(
        "disk-on-ide", Severity.ERROR, "application quiescing: no IDE disks",
        "Move the disk to a SCSI controller, or ask for Quiesce.file_system().", _GUIDE, _ide,
        about_quiescing=True,
    ),
    Rule(
        "disk-on-sata", Severity.ERROR, "application quiescing: SCSI disks only",
        "Move the disk to a SCSI controller, or ask for Quiesce.file_system().",
        "VDDK programming guide, conditions of application quiescing", _sata, about_quiescing=True,
    ),
    Rule(
        "boot-from-nvme", Severity.ERROR, "application quiescing: the system does not boot from NVMe",
        "Move the boot disk to a SCSI controller, or update Windows Server 2022 to build 20348.2582 or later.",
        _GOSV, _nvme_boot, about_quiescing=True,
    ),
    Rule(
        "disk-on-nvme", Severity.WARNING, "application quiescing: SCSI disks only",
        "Move the disk to a SCSI controller, or look at what the manifest proves.",
        "VDDK programming guide, conditions of application quiescing", _nvme_data, about_quiescing=True,
    ),
    Rule(
        "scsi-slots-short", Severity.ERROR, "application quiescing: as many free SCSI slots as disks",
        "Add a SCSI controller, or take unused devices off the existing ones.", _GUIDE, _slots,
        about_quiescing=True,
    ),
)  # fmt: skip
