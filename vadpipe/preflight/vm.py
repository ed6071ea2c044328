"""The properties and the devices of one VM as facts. Kernels over values of the API."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyVmomi import vim

from vadpipe.vsphere.api.properties import Row
from vadpipe.vsphere.inventory.hardware import boot_bus, passed_through, vm_controllers, vm_disks
from vadpipe.vsphere.inventory.selection import is_agent
from vadpipe.vsphere.snapshot.tree import SnapshotNode, flat_tree

from .facts import Version, VmFacts, Volume

# Settings of extraConfig, one by one: a whole extraConfig has hundreds.
MAX_SNAPSHOTS = 'config.extraConfig["snapshot.maxSnapshots"]'
DETAILS = 'config.extraConfig["guestInfo.detailed.data"]'  # what VMware Tools tell of the system, from 11 on

_ENCRYPTION_SINCE: Version = (6, 5)
_BUILD = re.compile(r"kernelVersion='(?P<build>\d+)\.(?P<revision>\d+)'")
_HARDWARE = re.compile(r"vmx-(?P<number>\d+)")


def vm_facts(row: Row, api_version: Version, running_tasks: Mapping[str, str]) -> VmFacts:
    """The facts of a VM. `running_tasks`: names of unfinished tasks by moref, of whatever VM."""
    devices = row.get("config.hardware.device") or ()
    disks = vm_disks(devices)
    own, foreign = _snapshots(row.get("snapshot"))
    host, question = row.get("runtime.host"), row.get("runtime.question")
    readable = row.get("config.version") is not None
    return VmFacts(
        moref=row.moref,
        name=str(row.get("name")),
        readable=readable,
        template=bool(row.get("config.template")),
        agent=is_agent(row),
        guest_id=str(row.get("config.guestId") or ""),
        reported_guest_id=row.get("guest.guestId") or None,
        guest_build=_guest_build(row.get(DETAILS)),
        hardware_version=_hardware_version(row.get("config.version")),
        enable_uuid=row.get("config.flags.diskUuidEnabled"),
        encrypted=_encrypted(row, api_version) if readable else None,
        power=str(row.get("runtime.powerState") or ""),
        connection=str(row.get("runtime.connectionState") or ""),
        host=str(host._moId) if host is not None else None,
        question=question.text if question is not None else "",
        methods_disabled=frozenset(row.get("disabledMethod") or ()),
        tasks=[name for one in row.get("recentTask") or () if (name := running_tasks.get(str(one._moId)))],
        snapshots_supported=row.get("capability.snapshotOperationsSupported"),
        # Flags that are unset are not set.
        snapshots_disabled=bool(row.get("config.flags.snapshotDisabled")),
        snapshots_locked=bool(row.get("config.flags.snapshotLocked")),
        max_snapshots=_number(getattr(row.get(MAX_SNAPSHOTS), "value", None)),
        own_snapshots=own,
        foreign_snapshots=foreign,
        consolidation_needed=bool(row.get("runtime.consolidationNeeded")),
        change_tracking=row.get("config.changeTrackingEnabled"),
        change_tracking_supported=row.get("capability.changeTrackingSupported"),
        disks=disks,
        controllers=vm_controllers(devices),
        passthrough=passed_through(devices),
        boot_bus=boot_bus(disks, row.get("config.bootOptions.bootOrder") or ()),
        tools_running=_tools_running(row.get("guest.toolsRunningStatus")),
        tools_version=_number(row.get("guest.toolsVersion")),
        tools_status=row.get("guest.toolsVersionStatus2"),
        heartbeat=row.get("guestHeartbeatStatus"),
        volumes=_volumes(row.get("guest.disk")),
    )


def _encrypted(row: Row, api_version: Version) -> bool:
    return api_version >= _ENCRYPTION_SINCE and row.get("config.keyId") is not None


def _tools_running(status: str | None) -> bool | None:
    return None if status is None else status != "guestToolsNotRunning"


def _snapshots(info: vim.vm.SnapshotInfo | None) -> tuple[list[SnapshotNode], list[SnapshotNode]]:
    """Our own snapshots, and the others."""
    nodes = list(flat_tree(info.rootSnapshotList)) if info is not None else []
    return [node for node in nodes if node.token], [node for node in nodes if not node.token]


def _volumes(disks: Iterable[vim.vm.GuestInfo.DiskInfo] | None) -> list[Volume] | None:
    if not disks:
        return None
    return [
        Volume(
            path=disk.diskPath or "",
            capacity=disk.capacity or 0,
            free=disk.freeSpace or 0,
            disks=frozenset(mapping.key for mapping in disk.mappings) if disk.mappings else None,
        )
        for disk in disks
    ]


def _guest_build(details: vim.option.OptionValue | None) -> Version | None:
    """Build and revision of Windows, as in (20348, 2582)."""
    found = _BUILD.search(str(details.value)) if details is not None else None
    return (int(found["build"]), int(found["revision"])) if found else None


def _hardware_version(text: object) -> int | None:
    found = _HARDWARE.fullmatch(str(text))
    return int(found["number"]) if found else None


def _number(text: object) -> int | None:
    digits = str(text).strip()
    return int(digits) if digits.isdigit() else None
