"""The check that a machine runs before it takes its snapshot, as a protocol.

Its implementations are built on this package: `stages.Preflight` is the default of `stages.VcenterVm`.
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
    """The result of a check that does not forbid the snapshot.

    `document`: JSON values, stored in the restore point. `attention` and `remarks`: sentences for the report, see
    `pipeline.protocols.Capture`.
    """

    document: Mapping[str, object]
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()


class Check(Protocol):
    """Looks at a VM without changing anything."""

    async def check(self, session: VcenterSession, vm: Vm, machine: VsphereVm) -> Checked:
        """Raises a MoverError when no snapshot may be taken."""
        ...
