"""The networks of a lab: standard ones, portgroups of distributed switches, and opaque ones of an NSX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NetworkKind = Literal["standard", "distributed", "opaque"]
NETWORK = "network-10"  # the one that every lab has


@dataclass
class NetworkTraits:
    """A network. id: of an opaque one; switch, switch_uuid: name and UUID of a portgroup's distributed switch.

    The key of a distributed portgroup is its moref.
    """

    name: str = "VM Network"
    kind: NetworkKind = "standard"
    switch: str = "DSwitch"
    switch_uuid: str = "50 11 5e 16 9b dc 49 d7-f1 71 53 c4 d7 f9 17 10"
    id: str = ""
    type: str = "nsx.LogicalSwitch"
    accessible: bool = True
