"""Rules about the guest: its operating system, its volumes, and VMware Tools, which run VSS on our behalf."""

from __future__ import annotations

from collections.abc import Iterator

from vadpipe.rules import Outcome, RuleTable, Severity, Unknown, Violation

from .facts import EX_SINCE, TOOLS_UNMANAGED, Case, Version
from .guests import GUESTS, OTHER, agree, guest_os

_HARDWARE_WITHOUT_UUIDS = 4
_HARDWARE_OF_4_1 = 8  # hardware version 7 came with 4.0 and 4.1 alike, 8 with 5.0
_BUILD_7_0_U3C = "19193900"
_VOLUME_ROOM = 50 << 20  # what VSS needs at least on a volume of its own
_SERVICES = ("VSS", "vmvss", "swprv", "EventSystem", "COMSysApp")
_TABLE = "VDDK programming guide, quiescing mechanisms; VMware's guest-OS tests for clients from 8 on"
_CONDITIONS = "VDDK programming guide, conditions of application quiescing"
_UUIDS = "VDDK programming guide, Enable Virtual Machine Application Consistent Quiescing"
_GOSV = "VMware's published guest-OS tests, quiesced snapshots"
_CHECKLIST = "public troubleshooting guides for VSS in VMware guests"
_LOWER = "Ask for Quiesce.file_system()"
_PREPARE = "Run: vadpipe prepare CONFIG.py --enable-uuid --allow-power-off (it restarts the guest)."
_WANTED: Version = (10, 1, 0)
_EX = "VDDK programming guide, VSS Support: CreateSnapshotEx_Task"
_SILENT = "vSphere API reference, CreateSnapshotEx_Task: the quiesce specification is ignored then"
_GUIDE = "VDDK programming guide, Working with Microsoft Shadow Copy"
_STATUS = "vSphere API reference, GuestInfo.toolsVersionStatus2"
_UPDATE = "Update VMware Tools in the guest."

RULES: RuleTable[Case, Violation] = RuleTable()


@RULES.rule(
    "guest-client", Severity.ERROR, wanted="application quiescing: a Windows Server", remedy=f"{_LOWER}.",
    source=_TABLE, tags={"quiescing"},
)  # fmt: skip
def _client(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.job.quiescing == "application" and guest and guest.reaches == "file-system":
        yield Violation(f"{guest.name} ({case.vm.guest_id}) reaches file-system quiescing at most")


@RULES.rule(
    "guest-crash-consistent", Severity.WARNING, wanted="quiescing: a Windows guest",
    remedy="Ask for Quiesce.none(), or quiesce applications by scripts in the guest.", source=_TABLE,
    tags={"quiescing"},
)  # fmt: skip
def _crash_only(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.guest is OTHER:
        yield Violation(f"{case.vm.guest_id} is crash-consistent at best, whatever is requested")


@RULES.rule(
    "guest-unknown", Severity.WARNING, wanted="a guest whose quiescing is documented",
    remedy="Look at what the manifest proves after the run.", source=_TABLE, tags={"quiescing"},
)  # fmt: skip
def _not_in_table(case: Case) -> Iterator[Outcome]:
    if not case.quiesces or case.vm.guest is not None:
        return
    if case.vm.guest_id:
        yield Violation(f"no source says what quiescing {case.vm.guest_id} reaches")
    else:
        yield Unknown("the VM's configured guest operating system cannot be read")


@RULES.rule(
    "guest-sync-driver", Severity.WARNING, wanted="quiescing that leaves a manifest",
    remedy="There is none for this version of Windows: its points count as crash-consistent.", source=_TABLE,
    tags={"quiescing"},
)  # fmt: skip
def _sync_driver(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.quiesces and guest and guest.driver == "sync driver":
        yield Violation(f"{guest.name} is quiesced by the sync driver, which leaves no manifest as evidence")


@RULES.rule(
    "guest-mismatch", Severity.WARNING, wanted="the configured guest is the one that runs",
    remedy="Power the VM off and set the guest operating system in its options.", source=_GOSV, tags={"quiescing"},
)  # fmt: skip
def _mismatch(case: Case) -> Iterator[Outcome]:
    reported = case.vm.reported_guest_id
    if not case.application or reported is None:
        return
    configured, running = case.vm.guest, guest_os(reported)
    if configured and running and not agree(configured, running):
        yield Violation(f"it is configured as {configured.name}, but {running.name} ({reported}) runs")


@RULES.rule(
    "enable-uuid-off", Severity.ERROR, wanted="disk.EnableUUID is TRUE for Windows Server 2008 and later",
    remedy=_PREPARE, source=_UUIDS, tags={"quiescing"},
)  # fmt: skip
def _uuid_off(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if not case.application or guest is None or not guest.needs_disk_uuids:
        return
    if case.vm.enable_uuid is None:
        yield Unknown("the VM's flag diskUuidEnabled cannot be read")
    elif not case.vm.enable_uuid:
        yield Violation(f"disk.EnableUUID is not TRUE, and the guest is {guest.name}")


@RULES.rule(
    "enable-uuid-left-out", Severity.INFO, wanted="the host makes VMs with disk.EnableUUID",
    remedy="Update the host to 7.0 Update 3d, and set disk.EnableUUID on the VMs that it made.", source=_GOSV,
)  # fmt: skip
def _uuid_left_out(case: Case) -> Iterator[Outcome]:
    build = case.host.build if case.host else ""
    is_2022 = case.vm.guest is GUESTS["windows2019srvNext_64Guest"]
    if case.application and is_2022 and build == _BUILD_7_0_U3C:
        yield Violation("ESXi 7.0 Update 3c makes VMs of this guest without disk.EnableUUID")


@RULES.rule(
    "hardware-version-4", Severity.ERROR, wanted="a hardware version later than 4",
    remedy="Upgrade the virtual hardware, then run vadpipe prepare CONFIG.py --enable-uuid --allow-power-off.",
    source="VDDK programming guide, The VMware VSS Implementation", tags={"quiescing"},
)  # fmt: skip
def _hardware_4(case: Case) -> Iterator[Outcome]:
    version = case.vm.hardware_version
    if case.application and version is not None and version <= _HARDWARE_WITHOUT_UUIDS:
        yield Violation(f"its hardware version is {version}")


@RULES.rule(
    "hardware-version-of-4.0", Severity.WARNING, wanted="a VM created on vSphere 4.1 or later",
    remedy="Upgrade the virtual hardware, and see that disk.EnableUUID is TRUE.", source=_UUIDS,
    tags={"quiescing"},
)  # fmt: skip
def _created_before_4_1(case: Case) -> Iterator[Outcome]:
    version, guest = case.vm.hardware_version, case.vm.guest
    if not case.application or guest is None or not guest.needs_disk_uuids or version is None:
        return
    if _HARDWARE_WITHOUT_UUIDS < version < _HARDWARE_OF_4_1:
        yield Violation(f"its hardware version {version} may stem from vSphere 4.0")


@RULES.rule(
    "vm-encrypted", Severity.ERROR, wanted="application quiescing: the VM is not encrypted", remedy=f"{_LOWER}.",
    source="VDDK programming guide for vSphere 8.0, quiescing mechanisms", tags={"quiescing"},
)  # fmt: skip
def _encrypted(case: Case) -> Iterator[Outcome]:
    if not case.application:
        return
    if case.vm.encrypted is None:
        yield Unknown("whether the VM is encrypted cannot be read")
    elif case.vm.encrypted or any(disk.encrypted for disk in case.vm.disks):
        yield Violation("it is encrypted")


@RULES.rule(
    "disk-dynamic", Severity.ERROR, wanted="application quiescing: no dynamic disks",
    remedy=f"{_LOWER}, or move the data to basic disks.", source=_CONDITIONS, tags={"quiescing"},
)  # fmt: skip
def _dynamic_disks(case: Case) -> Iterator[Outcome]:
    """A volume over several disks is dynamic or of Storage Spaces; a dynamic one on one disk shows nowhere."""
    if not case.application:
        return
    spanning = [volume for volume in case.vm.volumes or () if volume.disks and len(volume.disks) > 1]
    for volume in spanning:
        yield Violation(f"it lies on {len(volume.disks or ())} virtual disks", volume.path)
    if not spanning:
        yield Unknown("VMware Tools do not report whether a disk is dynamic")


@RULES.rule(
    "storage-spaces", Severity.ERROR, wanted="application quiescing: no disks managed by Storage Spaces",
    remedy=f"{_LOWER}.", source=_TABLE, tags={"quiescing"},
)  # fmt: skip
def _storage_spaces(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if not case.application or guest is None or not guest.needs_new_tools:
        return
    mapped = [volume for volume in case.vm.volumes or () if volume.disks]
    if not mapped:
        yield Unknown("VMware Tools do not report on which virtual disks the guest's volumes lie")
        return
    for volume in case.vm.volumes or ():
        if not volume.disks:
            yield Violation(
                "it lies on no virtual disk: on a storage space, or on a disk that the guest itself attached",
                volume.path,
            )


@RULES.rule(
    "vss-services", Severity.ERROR, wanted="the services of VSS are installed and not disabled",
    remedy="Repair VMware Tools with its VSS component, and set the service to manual.", source=_CHECKLIST,
    tags={"quiescing"},
)  # fmt: skip
def _services(case: Case) -> Iterator[Outcome]:
    if not case.application:
        return
    if case.vm.services is None:
        yield Unknown("vSphere does not report the services of a guest")
        return
    for name in _SERVICES:
        mode = case.vm.services.get(name, "missing")
        if mode in ("missing", "disabled"):
            yield Violation(f"the service is {mode}", name)


@RULES.rule(
    "guest-volume-full", Severity.WARNING, wanted=f"every volume of the guest has {_VOLUME_ROOM >> 20} MiB free",
    remedy="Free space on it, or make it larger.", source=_CHECKLIST,
)  # fmt: skip
def _volume_full(case: Case) -> Iterator[Outcome]:
    for volume in (case.vm.volumes or ()) if case.application else ():
        if volume.free < _VOLUME_ROOM:
            yield Violation(f"it has {volume.free >> 20} MiB free", volume.path)


def _running(case: Case) -> bool:
    return case.quiesces and case.vm.power == "poweredOn" and case.vm.guest is not OTHER


@RULES.rule(
    "tools-missing", Severity.ERROR, wanted="VMware Tools are installed",
    remedy="Install VMware Tools in the guest.", source=_GUIDE, tags={"quiescing"},
)  # fmt: skip
def _tools_absent(case: Case) -> Iterator[Outcome]:
    absent = case.vm.tools_version == 0 or case.vm.tools_status == "guestToolsNotInstalled"
    if _running(case) and not case.vm.tools_running and absent:
        yield Violation("VMware Tools are not installed")


@RULES.rule(
    "tools-not-running", Severity.ERROR, wanted="VMware Tools run",
    remedy="Start the service VMware Tools in the guest; without it the snapshot is taken without quiescing.",
    source=_SILENT, tags={"quiescing"},
)  # fmt: skip
def _tools_silent(case: Case) -> Iterator[Outcome]:
    if not _running(case) or case.vm.tools_version == 0 or case.vm.tools_status == "guestToolsNotInstalled":
        return
    if case.vm.tools_running is None:
        yield Unknown("the server does not tell whether VMware Tools run")
    elif not case.vm.tools_running:
        yield Violation("VMware Tools do not run")


def _older_tools(case: Case) -> Iterator[Outcome]:
    """VMware Tools that run, and are too old or of an unknown version."""
    if not _running(case) or not case.vm.tools_running:
        return
    release = case.vm.tools_release
    if release is None:
        unmanaged = case.vm.tools_version == TOOLS_UNMANAGED
        yield Unknown(f"the version of VMware Tools is not known{' (unmanaged)' if unmanaged else ''}")
    elif release < _WANTED:
        yield Violation(f"VMware Tools are version {'.'.join(map(str, release))}")


@RULES.rule(
    "tools-too-old-for-ex", Severity.ERROR, wanted="VMware Tools 10.1.0 or later for CreateSnapshotEx_Task",
    remedy=_UPDATE, source=_EX, tags={"quiescing"},
)  # fmt: skip
def _tools_for_ex(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.server.api_version >= EX_SINCE and not (guest and guest.needs_new_tools):
        yield from _older_tools(case)


@RULES.rule(
    "tools-too-old-for-2016", Severity.ERROR,
    wanted="VMware Tools 10.1.0 or later in Windows Server 2016 and later", remedy=_UPDATE, source=_GUIDE,
    tags={"quiescing"},
)  # fmt: skip
def _tools_for_2016(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if guest and guest.needs_new_tools:
        yield from _older_tools(case)


@RULES.rule(
    "tools-unsupported", Severity.WARNING, wanted="a version of VMware Tools that the host supports",
    remedy=_UPDATE, source=_STATUS,
)  # fmt: skip
def _tools_status(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_status in (
        "guestToolsBlacklisted",
        "guestToolsTooOld",
        "guestToolsTooNew",
    ):
        yield Violation(f"the host says of VMware Tools: {case.vm.tools_status}")


@RULES.rule("tools-upgrade", Severity.INFO, wanted="VMware Tools are current", remedy=_UPDATE, source=_STATUS)
def _tools_upgrade(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_status == "guestToolsNeedUpgrade":
        yield Violation("the host has a newer version of VMware Tools")


@RULES.rule(
    "tools-unmanaged", Severity.INFO, wanted="a version of VMware Tools that the host knows",
    remedy="See in the guest that it is 10.1.0 or later.",
    source="vSphere API reference, ToolsConfigInfo.toolsVersion",
)  # fmt: skip
def _tools_unmanaged(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if _running(case) and guest and guest.is_windows and case.vm.tools_version == TOOLS_UNMANAGED:
        yield Violation("VMware Tools in Windows are of no version that the host knows")


@RULES.rule(
    "guest-heartbeat", Severity.WARNING, wanted="the guest's heartbeat is green",
    remedy="See whether the guest is overloaded: VSS holds writes for seconds only.",
    source="vSphere API reference, VirtualMachine.guestHeartbeatStatus",
)  # fmt: skip
def _heartbeat(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_running and case.vm.heartbeat in ("red", "yellow"):
        yield Violation(f"the guest's heartbeat is {case.vm.heartbeat}")
