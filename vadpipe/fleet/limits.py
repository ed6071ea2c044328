"""How much of vSphere backups may use at once: a setting of a configuration and of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MB = 1_000_000

NFC_BYTES = {5: 32 * MB, 6: 48 * MB, 7: 48 * MB, 8: 96 * MB}
"""Sum of all NFC buffers of an ESXi host, by its major version.

Source: release notes of VDDK 7.0.3 and 8.0; KB 313937.
"""

SESSION_BYTES = 4 << 20
"""NFC buffers of one open disk: 4 of 1 MiB, which is what vadpipe asks VDDK for (vadpipe/vddk/library.py)."""


@dataclass(frozen=True)
class Limits:
    """Limits of each host, datastore, server and repository. None: no limit.

    Args:
        connections: Open disks per ESXi host. 50: what the Virtual Disk Development Kit Programming Guide advises.
        nfc_bytes: Bytes of NFC buffers per ESXi host; 'version': what its version has.
        nfc_share: The share of these that backups may have; others (vMotion of powered-off VMs, the datastore
            browser) need some. With 0.85, 9 disks fit into a host of 6.x or 7.0, and 19 into one of 8.0.
        streams: Disks that are read from one datastore at a time. 8: two disks of each of `snapshots` VMs.
        snapshots: VMs with a snapshot of ours on one datastore at a time. None: as many as its streams allow.
        removals: Snapshots that are removed on one datastore at a time. 4: Veeam's default for the snapshots that
            stand on a datastore, of which each is removed at its end.
        sessions: Logins at one vCenter. 100: a twentieth of the 2,000 that one accepts.
        bandwidth: Bytes per second into one repository.
        latency_s: Mean latency of reads from a datastore at which it gets no further streams.
        hosts: Other limits of single resources, by their names in `vadpipe.fleet.values`.

    Source: VMware KB 313937; bp.veeam.com, Tuning vSphere (MaxSnapshotsPerDatastore); blogs.vmware.com, Endpoint
        limits for concurrent REST requests (2,000 SOAP sessions).
    """

    connections: int | None = 50
    nfc_bytes: int | str | None = "version"
    nfc_share: float = 0.85
    streams: int | None = 8
    snapshots: int | None = None
    removals: int | None = 4
    sessions: int | None = 100
    bandwidth: float | None = None
    latency_s: float | None = None
    hosts: Mapping[str, float] = field(default_factory=dict)
