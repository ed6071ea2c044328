"""Preflight before a job: the conditions that stop it before the snapshot, and what is told of the others.

A rule predicts; what was reached is measured later: by the manifest, by the disks that a snapshot holds, by the
quiescing it was taken with. So a warning becomes a remark and not a matter for attention. An error stops the job;
where it is only to be reported, it needs attention, because then the job went on against better knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.errors import ConfigError, SourceError
from vadpipe.preflight.reach import probe
from vadpipe.preflight.report import PreflightReport, job_facts, preflight
from vadpipe.preflight.rule import Finding, Severity
from vadpipe.vsphere.api.faults import (
    CertificateRefused,
    ConnectionLost,
    LoginRefused,
    VsphereError,
)
from vadpipe.vsphere.api.retry import retry
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import Vm
from vadpipe.vsphere.vm.check import Checked
from vadpipe.vsphere.vm.vm import VsphereVm

# The machine's own report names each of these snapshots.
_SAID_BY_THE_MACHINE = frozenset({"snapshots-foreign", "snapshots-left"})


class NotReady(SourceError):
    """Conditions of the job do not hold. Facts: `vm`, and `findings`, each as a document."""


@dataclass(frozen=True)
class Preflight:
    """Every rule before the snapshot: a `vadpipe.vsphere.vm.check.Check`.

    `report_only`: errors do not stop the job; they make exit code 3. `probe_hosts`: whether the names and ports of
    the hosts are tried, which takes seconds where a firewall drops packets.
    """

    report_only: bool = False
    probe_hosts: bool = True

    async def check(self, session: VcenterSession, vm: Vm, machine: VsphereVm) -> Checked:
        """Raises NotReady with every error found; SourceError when the server is away for too long; ConfigError for
        a VDDK that is not where the job looks for it."""
        job = await job_facts(
            machine.quiesce, machine.reader, enable_change_tracking=machine.enable_change_tracking
        )
        if job.vddk is not None and job.vddk.problem:
            raise ConfigError(
                job.vddk.problem, remedy="Name the root of an unpacked VDDK, or install it there."
            )
        work = partial(preflight, session, vm, job, probe_hosts=probe if self.probe_hosts else None)
        try:
            report = await retry(work, session.settings.patience_s)
        except (ConnectionLost, LoginRefused, CertificateRefused):
            raise
        except VsphereError as exc:  # what may not be asked is not known, and no reason to have no backup
            return Checked({"vm": vm.name, "problem": exc.problem}, (), (f"No preflight: {exc.problem}",))
        errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
        if errors and not self.report_only:
            raise _not_ready(report, errors)
        return Checked(report.as_dict(), [_sentence(finding) for finding in errors], _remarks(report))


def _remarks(report: PreflightReport) -> list[str]:
    return [
        _sentence(finding)
        for finding in report.findings
        if finding.severity is Severity.WARNING and finding.rule not in _SAID_BY_THE_MACHINE
    ]


def _sentence(finding: Finding) -> str:
    subject = f"{finding.subject}: " if finding.subject else ""
    return f"Preflight, {finding.rule}: {subject}{finding.found.rstrip('.')}. {finding.remedy}"


def _not_ready(report: PreflightReport, errors: Sequence[Finding]) -> NotReady:
    conditions = " ".join(_sentence(finding).removeprefix("Preflight, ") for finding in errors)
    return NotReady(
        f"{report.vm} is not ready for this job, so no snapshot was taken. {conditions}",
        remedy="To run all the same, set preflight=Preflight(report_only=True) for this VM.",
        vm=report.vm,
        findings=[finding.as_dict() for finding in errors],
    )
