"""A VM on a vCenter or an ESXi host, with preflight before its snapshot."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from vadpipe.vsphere.vm.check import Check
from vadpipe.vsphere.vm.vm import VsphereVm

from .preflight import Preflight


@dataclass(frozen=True)
class VcenterVm(VsphereVm):
    """A VM to capture, as the `machine` of a job. `vadpipe.vsphere.VsphereVm` describes every setting.

    `preflight`: what is checked before each snapshot; None for nothing.
    """

    _: KW_ONLY
    preflight: Check | None = field(default_factory=Preflight)
