"""How much of vSphere the backups of one configuration may use at once, and what a job takes of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from pipeline.errors import ConfigError

from .values import connections, nfc_bytes, sessions, snapshots, streams

MB = 1_000_000

NFC_BYTES = {5: 32 * MB, 6: 48 * MB, 7: 48 * MB, 8: 96 * MB}
"""Sum of all NFC buffers of an ESXi host, by its major version.

Source: release notes of VDDK 7.0.3 and 8.0; KB 313937.
"""

NFC_SHARE = 0.85
"""The share of them that backups take by default: the datastore browser and copies of VMs that are off need some.
It makes 9 disks on a host of 6.x or 7.0, and 19 on one of 8.0."""

SESSION_BYTES = 4 << 20
"""NFC buffers of one open disk: 4 of 1 MiB, which is what vadpipe asks VDDK for (vadpipe/vddk/library.py)."""


@dataclass(frozen=True)
class Limits:
    """What the jobs of a configuration that run at the same time may use together. None: no limit.

    Args:
        connections: Open disks per ESXi host, but for hot-added ones. 50: advice of the Virtual Disk Development
            Kit Programming Guide.
        nfc_bytes: Bytes of NFC buffers per ESXi host, 4 MiB for each such disk; 0: by the version of the host, 85 %
            of what it has.
        streams: Disks that are read from one datastore at a time. 8: two of each of 4 VMs.
        snapshots: VMs that have a snapshot of ours on one datastore, or are losing it. 4: as Veeam's default
            MaxSnapshotsPerDatastore.
        sessions: Logins at one server. 100: a twentieth of what a vCenter accepts.

    Raises:
        ConfigError: A limit is no number above 0.

    Source: VMware KB 313937; bp.veeam.com, Tuning vSphere; blogs.vmware.com, Endpoint limits for concurrent REST
        requests from vCenter APIs (2,000 SOAP sessions).
    """

    connections: int | None = 50
    nfc_bytes: int | None = 0
    streams: int | None = 8
    snapshots: int | None = 4
    sessions: int | None = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "nfc_bytes" else 1
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(
                    f"Limits({field.name}={value!r}) is impossible.",
                    remedy="Give a whole number above 0, or None for no limit.",
                )

    def nfc_bytes_of(self, version: str) -> float | None:
        """The NFC buffers that a host of this version may give; None for no limit."""
        if self.nfc_bytes != 0:
            return self.nfc_bytes
        major = version.partition(".")[0]
        known = (
            int(major) if major.isdigit() else 6
        )  # a version that is not known: the smallest that is in use
        return NFC_SHARE * NFC_BYTES[min(max(known, min(NFC_BYTES)), max(NFC_BYTES))]


def needs_of_vm(
    server: str, host: str, datastores: Sequence[str], *, disks_at_once: int, over_network: bool
) -> dict[str, float]:
    """What the backup of a VM holds from its start to its end.

    Args:
        server: The vCenter or ESXi host that is logged in at.
        host: Where the VM is, so that its disks are opened there; empty when that is not known.
        datastores: That of each disk.
        disks_at_once: Disks that are read at the same time; all of them are open.
        over_network: The disks are read through the host, not by hot-add or from the SAN.
    """
    needs = {sessions(server): 1.0}
    if over_network and host:
        needs[connections(f"{server}/{host}")] = len(datastores)
        needs[nfc_bytes(f"{server}/{host}")] = len(datastores) * SESSION_BYTES
    for name, count in Counter(datastores).items():
        needs[streams(f"{server}/{name}")] = min(count, disks_at_once)
        needs[snapshots(f"{server}/{name}")] = 1
    return needs
