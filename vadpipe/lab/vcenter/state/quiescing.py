"""What quiescing a guest can reach, by the rules of the VDDK programming guide and VMware's guest-OS tests.

Application quiescing runs VSS with its writers and leaves a manifest zip with several documents; file-system
quiescing leaves one with `backup.xml` alone; without VSS there is no zip, whatever the task says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Quiescing = Literal["application", "file-system", "crash", "fault"]
"""What a guest does when asked: VSS with writers, VSS without, nothing (no zip), or fail the snapshot."""

_SERVERS = {
    "windows7Server64Guest",  # 2008 R2
    "windows8Server64Guest",  # 2012, 2012 R2
}
_SERVERS_2016_ON = {
    "windows9Server64Guest",
    "windows2019srv_64Guest",
    "windows2019srvNext_64Guest",
    "windows2022srvNext_64Guest",
}
_SERVER_PREFIXES = ("winNet", "winLonghorn")  # 2003, 2008
_CLIENT_PREFIXES = ("winVista", "windows7", "windows8", "windows9", "windows11", "windows12")
_TOOLS_10_1_0 = 10272  # (major << 10) + (minor << 5) + base
_SCSI_SLOTS = 15  # per controller; its sixteenth unit is the controller itself
_DEFAULT_TIMEOUT_MIN = 15
_NOTHING_SET: Mapping[str, str] = MappingProxyType({})
_COPY = 5  # VSS_BT_COPY, the only backup type before vSphere 6.5


@dataclass(frozen=True)
class QuiesceSpec:
    """What the caller asked for. context: vSphere's `vssBackupContext`; older_call: by CreateSnapshot_Task."""

    context: str = "ctx_auto"
    backup_type: int = _COPY
    bootable_system_state: bool = True
    partial_file_support: bool = False
    timeout_min: int = _DEFAULT_TIMEOUT_MIN
    older_call: bool = False


@dataclass(frozen=True)
class QuiesceRequest:
    """What VSS is run with: the context that is really used, and the caller's options."""

    context: Literal["application", "file-system"]
    backup_type: int
    bootable_system_state: bool
    partial_file_support: bool
    timeout_min: int
    vm_name: str

    @classmethod
    def of(
        cls, spec: QuiesceSpec, context: Literal["application", "file-system"], vm_name: str
    ) -> QuiesceRequest:
        """What `spec` amounts to on a guest that reaches `context`."""
        return cls(
            context,
            spec.backup_type,
            spec.bootable_system_state,
            spec.partial_file_support,
            spec.timeout_min,
            vm_name,
        )


Manifest = Callable[[QuiesceRequest], bytes | None]
"""Makes the manifest zip of one quiesced snapshot; None when VSS left none."""


def guest_quiescing(guest_id: str, tools_version: int, enable_uuid: bool, disk_count: int) -> Quiescing:
    """What a running guest of this configuration can do.

    The sync driver of Windows 2000 and XP counts as "crash": it leaves no evidence either.
    """
    needs_new_tools = guest_id in _SERVERS_2016_ON
    if needs_new_tools or guest_id in _SERVERS or guest_id.startswith(_SERVER_PREFIXES):
        free_slots = -disk_count % _SCSI_SLOTS
        able = enable_uuid and free_slots >= disk_count
        able &= not needs_new_tools or tools_version >= _TOOLS_10_1_0
        return "application" if able else "file-system"
    if guest_id.startswith(_CLIENT_PREFIXES):
        return "file-system"
    return "crash"


def reached(spec: QuiesceSpec, ability: Quiescing, vmbackup: Mapping[str, str] = _NOTHING_SET) -> Quiescing:
    """What `spec` gets from a guest with `ability`; "fault" where the snapshot fails.

    `ctx_backup` cannot degrade, `ctx_auto` takes the best there is. vmbackup: that group of the guest's tools.conf;
    `vss.disableAppQuiescing` forces file-system quiescing, without VSS the new call fails, the older does nothing.
    """
    if ability in ("crash", "fault"):
        return ability
    if vmbackup.get("enableVSS") == "false":
        return "crash" if spec.older_call else "fault"
    if spec.context == "ctx_file_share_backup" or vmbackup.get("vss.disableAppQuiescing") == "true":
        return "file-system"
    if spec.context == "ctx_backup" and ability == "file-system":
        return "fault"
    return ability
