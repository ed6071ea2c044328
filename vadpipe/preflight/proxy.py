"""Which machine this program runs on, as far as its firmware tells: for the conditions of SAN and hot-add."""

from __future__ import annotations

import uuid
from pathlib import Path

import trio
from pyVmomi import vim

from vadpipe.vsphere.api.session import VcenterSession

_FIRMWARE = Path("/sys/class/dmi/id")
_VMWARE = "vmware"
# Vendors' names that firmware shows on other hypervisors (their SMBIOS documentation).
_OTHER_HYPERVISORS = ("qemu", "microsoft corporation", "xen", "innotek", "amazon ec2", "google", "parallels")


async def this_machine(session: VcenterSession, firmware: Path = _FIRMWARE) -> tuple[bool | None, str | None]:
    """Whether it is virtual, None where that cannot be told, and its moref on this server, None: not a VM there."""
    vendor, own_uuid = await trio.to_thread.run_sync(_identity, firmware)
    if vendor is None:
        return None, None
    if _VMWARE not in vendor:
        return any(name in vendor for name in _OTHER_HYPERVISORS), None
    index = session.content.searchIndex
    if own_uuid is None or index is None:
        return True, None

    def find() -> vim.ManagedEntity | None:
        # Newer firmware gives the first three fields in the other byte order.
        forms = (str(own_uuid), str(uuid.UUID(bytes=own_uuid.bytes_le)))
        found = (index.FindByUuid(None, form, True, False) for form in forms)
        return next((one for one in found if one is not None), None)

    vm = await session.call("FindByUuid", find)
    return True, None if vm is None else str(vm._moId)


def _identity(firmware: Path) -> tuple[str | None, uuid.UUID | None]:
    """The vendor in lower case, and the machine's UUID, which only root may read."""
    vendor = _first_line(firmware / "sys_vendor")
    try:
        own_uuid = uuid.UUID(_first_line(firmware / "product_uuid") or "")
    except ValueError:
        own_uuid = None
    return vendor.lower() if vendor else None, own_uuid


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
