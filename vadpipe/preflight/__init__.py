"""What will go wrong with a VM's backup, known before the VM is touched, and how to mend it.

facts      what the rules look at: plain values            gather     the facts of any number of VMs, in one pass
guests     which guest gets which quiescing                vm, devices  the API's properties as facts
rule       what a rule is; judging                         reach      names and ports of hosts
rules      the table: machine, guest, tools, devices,      proxy      the machine we run on
           storage, site, transport                        report     preflight, for people and machines
vddk_versions  VDDK against vSphere                        power      powered off for a moment, as a resource
prepare    disk.EnableUUID and change tracking             commands   preflight, prepare
before_job     Preflight, before every snapshot
"""

from stages.preflight import NotReady, Preflight
from vadpipe.vsphere.vm.power import PowerNotRestored, powered_off
from vadpipe.vsphere.vm.prepare import Prepared, enable_uuid, track_changes

from .facts import JobFacts
from .gather import Gathered, gather
from .report import (
    PreflightReport,
    job_facts,
    preflight,
    preflight_all,
)
from .rule import Finding, Severity, Unjudged
from .rules import RULES

__all__ = [
    "RULES",
    "Finding",
    "Gathered",
    "JobFacts",
    "NotReady",
    "PowerNotRestored",
    "Preflight",
    "PreflightReport",
    "Prepared",
    "Severity",
    "Unjudged",
    "enable_uuid",
    "gather",
    "job_facts",
    "powered_off",
    "preflight",
    "preflight_all",
    "track_changes",
]
