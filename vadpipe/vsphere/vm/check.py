"""What a machine has checked before it takes its snapshot.

Only the protocol is here, because a check is built on this package: `stages.Preflight` is the one that
`stages.VcenterVm` has by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..api.session import VcenterSession
from ..inventory.lookup import Vm

if TYPE_CHECKING:
    from .vm import VsphereVm


@dataclass(frozen=True)
class Checked:
    """What a check says of a VM whose snapshot may be taken.

    `document`: JSON values, filed in the restore point. `attention` and `remarks`: sentences for the report, as
    those of `pipeline.protocols.Capture`.
    """

    document: Mapping[str, object]
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()


class Check(Protocol):
    """Looks at a VM, and changes nothing."""

    async def check(self, session: VcenterSession, vm: Vm, machine: VsphereVm) -> Checked:
        """Raises a MoverError that says why no snapshot must be taken."""
        ...
