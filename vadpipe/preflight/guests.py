"""Which guest gets which quiescing: the table of the VDDK programming guide, and the Windows versions since.

The guide's table ends with Windows Server 2016; the rows after it come from the guide for vSphere 8.0 (2019, 2022)
and from VMware's published guest-OS tests (clients from 8 on). No source covers Server 2025 yet: it is
expected to behave like 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Driver = Literal["sync driver", "VMware VSS component", "not applicable"]
Reaches = Literal["application", "file-system", "crash"]


@dataclass(frozen=True)
class GuestOs:
    """One row. `reaches`: the best quiescing that the guest can have. `release`: orders Windows versions by age.

    Windows clients and servers of one age share a release, but no row.
    """

    name: str
    driver: Driver
    reaches: Reaches
    release: float = 0
    is_server: bool = False

    @property
    def is_windows(self) -> bool:
        return self.release > 0

    @property
    def needs_disk_uuids(self) -> bool:
        """From Windows Server 2008 on, VSS snapshots need disk UUIDs."""
        return self.reaches == "application" and self.release >= _LONGHORN

    @property
    def needs_new_tools(self) -> bool:
        """From Windows Server 2016 on, quiescing needs VMware Tools 10.1.0."""
        return self.is_server and self.release >= _TEN


_LONGHORN, _TEN = 6.0, 10.0  # Windows' own version numbers, as are the releases below

OTHER = GuestOs("another guest operating system", "not applicable", "crash")

_VSS: Driver = "VMware VSS component"
_ROWS: tuple[tuple[GuestOs, tuple[str, ...]], ...] = (
    (
        GuestOs("Windows 2000", "sync driver", "file-system", 5.0),
        ("win2000ProGuest", "win2000ServGuest", "win2000AdvServGuest"),
    ),
    (GuestOs("Windows XP", "sync driver", "file-system", 5.1), ("winXPHomeGuest", "winXPProGuest")),
    (
        GuestOs("Windows Server 2003", _VSS, "application", 5.2, True),
        (
            *(f"winNet{edition}Guest" for edition in ("Web", "Standard", "Enterprise", "Datacenter", "Business")),
            *(f"winNet{edition}64Guest" for edition in ("Standard", "Enterprise", "Datacenter")),
        ),
    ),
    (GuestOs("Windows Vista", _VSS, "file-system", 6.0), ("winVistaGuest", "winVista64Guest")),
    (
        GuestOs("Windows Server 2008", _VSS, "application", 6.0, True),
        ("winLonghornGuest", "winLonghorn64Guest"),
    ),
    (GuestOs("Windows 7", _VSS, "file-system", 6.1), ("windows7Guest", "windows7_64Guest")),
    (GuestOs("Windows Server 2008 R2", _VSS, "application", 6.1, True), ("windows7Server64Guest",)),
    (GuestOs("Windows 8", _VSS, "file-system", 6.2), ("windows8Guest", "windows8_64Guest")),
    (GuestOs("Windows Server 2012", _VSS, "application", 6.2, True), ("windows8Server64Guest",)),
    (GuestOs("Windows 10", _VSS, "file-system", 10.0), ("windows9Guest", "windows9_64Guest")),
    (GuestOs("Windows Server 2016", _VSS, "application", 10.0, True), ("windows9Server64Guest",)),
    (GuestOs("Windows Server 2019", _VSS, "application", 10.1, True), ("windows2019srv_64Guest",)),
    (GuestOs("Windows Server 2022", _VSS, "application", 10.2, True), ("windows2019srvNext_64Guest",)),
    (GuestOs("Windows 11", _VSS, "file-system", 10.2), ("windows11_64Guest",)),
    (GuestOs("Windows Server 2025", _VSS, "application", 10.3, True), ("windows2022srvNext_64Guest",)),
)  # fmt: skip

GUESTS: dict[str, GuestOs] = {guest_id: row for row, ids in _ROWS for guest_id in ids}


def guest_os(guest_id: str) -> GuestOs | None:
    """The row of a configured guest id (VirtualMachineGuestOsIdentifier of the vSphere API).

    OTHER for a guest that is not Windows; None for a Windows that is not in the table.
    """
    if guest_id in GUESTS:
        return GUESTS[guest_id]
    return None if not guest_id or guest_id.lower().startswith("win") else OTHER


def agree(configured: GuestOs, reported: GuestOs) -> bool:
    """Whether a guest that reports itself as `reported` may run with the setting `configured`.

    Hosts that are older than a Windows Server run it under the setting of Server 2016.
    """
    if configured == reported:
        return True
    newest_of_old_hosts = configured.is_server and configured.release == _TEN
    return newest_of_old_hosts and reported.is_server and reported.release > _TEN
