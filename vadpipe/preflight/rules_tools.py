"""Rules about VMware Tools: who runs VSS in the guest on our behalf."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import TOOLS_UNMANAGED, Case, Version
from .guests import OTHER
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)

EX_SINCE: Version = (6, 5)  # the API version that has CreateSnapshotEx_Task
_WANTED: Version = (10, 1, 0)


def _running(case: Case) -> bool:
    return case.quiesces and case.vm.power == "poweredOn" and case.vm.guest is not OTHER


def _tools_absent(case: Case) -> Iterator[Outcome]:
    absent = case.vm.tools_version == 0 or case.vm.tools_status == "guestToolsNotInstalled"
    if _running(case) and not case.vm.tools_running and absent:
        yield Breach("VMware Tools are not installed")


def _tools_silent(case: Case) -> Iterator[Outcome]:
    if not _running(case) or case.vm.tools_version == 0 or case.vm.tools_status == "guestToolsNotInstalled":
        return
    if case.vm.tools_running is None:
        yield Unknown("the server does not tell whether VMware Tools run")
    elif not case.vm.tools_running:
        yield Breach("VMware Tools do not run")


def _older_tools(case: Case) -> Iterator[Outcome]:
    """VMware Tools that run, and are older than wanted or of a version that nobody tells."""
    if not _running(case) or not case.vm.tools_running:
        return
    release = case.vm.tools_release
    if release is None:
        unmanaged = case.vm.tools_version == TOOLS_UNMANAGED
        yield Unknown(f"the version of VMware Tools is not known{' (unmanaged)' if unmanaged else ''}")
    elif release < _WANTED:
        yield Breach(f"VMware Tools are version {'.'.join(map(str, release))}")


def _tools_for_ex(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if case.server.api_version >= EX_SINCE and not (guest and guest.needs_new_tools):
        yield from _older_tools(case)


def _tools_for_2016(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if guest and guest.needs_new_tools:
        yield from _older_tools(case)


def _tools_status(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_status in (
        "guestToolsBlacklisted",
        "guestToolsTooOld",
        "guestToolsTooNew",
    ):
        yield Breach(f"the host says of VMware Tools: {case.vm.tools_status}")


def _tools_upgrade(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_status == "guestToolsNeedUpgrade":
        yield Breach("the host has a newer version of VMware Tools")


def _tools_unmanaged(case: Case) -> Iterator[Outcome]:
    guest = case.vm.guest
    if _running(case) and guest and guest.is_windows and case.vm.tools_version == TOOLS_UNMANAGED:
        yield Breach("VMware Tools in Windows are of no version that the host knows")


def _heartbeat(case: Case) -> Iterator[Outcome]:
    if _running(case) and case.vm.tools_running and case.vm.heartbeat in ("red", "yellow"):
        yield Breach(f"the guest's heartbeat is {case.vm.heartbeat}")


_EX = "VDDK programming guide, VSS Support: CreateSnapshotEx_Task"
_SILENT = "vSphere API reference, CreateSnapshotEx_Task: the quiesce specification is ignored then"
_GUIDE = "VDDK programming guide, Working with Microsoft Shadow Copy"
_STATUS = "vSphere API reference, GuestInfo.toolsVersionStatus2"
_UPDATE = "Update VMware Tools in the guest."

RULES: tuple[Rule, ...] = (
    Rule(
        "tools-missing", Severity.ERROR, "VMware Tools are installed", "Install VMware Tools in the guest.", _GUIDE,
        _tools_absent, about_quiescing=True,
    ),
    Rule(
        "tools-not-running", Severity.ERROR, "VMware Tools run",
        "Start the service VMware Tools in the guest; without it the snapshot is taken without quiescing.",
        _SILENT, _tools_silent,
        about_quiescing=True,
    ),
    Rule(
        "tools-too-old-for-ex", Severity.ERROR, "VMware Tools 10.1.0 or later for CreateSnapshotEx_Task", _UPDATE,
        _EX, _tools_for_ex, about_quiescing=True,
    ),
    Rule(
        "tools-too-old-for-2016", Severity.ERROR, "VMware Tools 10.1.0 or later in Windows Server 2016 and later",
        _UPDATE, _GUIDE, _tools_for_2016, about_quiescing=True,
    ),
    Rule(
        "tools-unsupported", Severity.WARNING, "a version of VMware Tools that the host supports", _UPDATE,
        _STATUS, _tools_status,
    ),
    Rule(
        "tools-upgrade", Severity.INFO, "VMware Tools are current", _UPDATE,
        _STATUS, _tools_upgrade,
    ),
    Rule(
        "tools-unmanaged", Severity.INFO, "a version of VMware Tools that the host knows",
        "See in the guest that it is 10.1.0 or later.", "vSphere API reference, ToolsConfigInfo.toolsVersion",
        _tools_unmanaged,
    ),
    Rule(
        "guest-heartbeat", Severity.WARNING, "the guest's heartbeat is green",
        "See whether the guest is overloaded: VSS holds writes for seconds only.",
        "vSphere API reference, VirtualMachine.guestHeartbeatStatus", _heartbeat,
    ),
)  # fmt: skip
