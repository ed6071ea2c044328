"""Preflight before a job: errors stop it before the snapshot, warnings become remarks of its report.

A rule predicts; what was reached is measured later, by the manifest, by the disks that the snapshot holds, and
by the quiescing it was taken with. So a warning needs no attention. An error that is only reported does,
because the job went on although it was expected to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.errors import ConfigError, SourceError
from vadpipe.jsonable import json_object, jsonable
from vadpipe.preflight.reach import probe
from vadpipe.preflight.report import PreflightReport, job_facts, preflight
from vadpipe.rules import Finding, Severity, Violation
from vadpipe.vsphere.api.faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from vadpipe.vsphere.api.retry import retry
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import Vm
from vadpipe.vsphere.vm.check import Checked
from vadpipe.vsphere.vm.vm import VsphereVm

# The machine's own report names each of these snapshots.
_SAID_BY_THE_MACHINE = frozenset({"snapshots-foreign", "snapshots-left"})


class NotReady(SourceError):
    """Conditions of the job do not hold. Facts: `vm`, and `findings` as documents."""


@dataclass(frozen=True)
class Preflight:
    """Check every condition before the snapshot: a `vadpipe.vsphere.vm.check.Check`.

    Args:
        report_only: Errors do not stop the job; they make exit code 3.
        probe_hosts: Try the names and ports of the hosts, which takes seconds where a firewall drops packets.
    """

    report_only: bool = False
    probe_hosts: bool = True

    async def check(self, session: VcenterSession, vm: Vm, machine: VsphereVm) -> Checked:
        """Check the job.

        Raises:
            NotReady: With every error found.
            SourceError: The server is away for too long.
            ConfigError: The VDDK is not where the job looks for it.
        """
        job = await job_facts(machine)
        if job.vddk is not None and job.vddk.problem:
            raise ConfigError(
                job.vddk.problem, remedy="Name the root of an unpacked VDDK, or install it there."
            )
        work = partial(preflight, session, vm, job, probe_hosts=probe if self.probe_hosts else None)
        try:
            report = await retry(work, session.settings.patience_s)
        except (ConnectionLost, LoginRefused, CertificateRefused):
            raise
        except VsphereError as exc:  # facts that may not be read are no reason to have no backup
            return Checked({"vm": vm.name, "problem": exc.problem}, (), (f"No preflight: {exc.problem}",))
        errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
        if errors and not self.report_only:
            raise _not_ready(report, errors)
        return Checked(json_object(report), [_sentence(finding) for finding in errors], _remarks(report))


def _remarks(report: PreflightReport) -> list[str]:
    return [
        _sentence(finding)
        for finding in report.findings
        if finding.severity is Severity.WARNING and finding.rule not in _SAID_BY_THE_MACHINE
    ]


def _sentence(finding: Finding[Violation]) -> str:
    return f"Preflight, {finding.rule}: {finding.sentence.rstrip('.')}. {finding.remedy}"


def _not_ready(report: PreflightReport, errors: Sequence[Finding[Violation]]) -> NotReady:
    conditions = " ".join(_sentence(finding).removeprefix("Preflight, ") for finding in errors)
    return NotReady(
        f"{report.vm.title} is not ready for this job, so no snapshot was taken. {conditions}",
        remedy="To run all the same, set preflight=Preflight(report_only=True) for this VM.",
        vm=report.vm.name,
        findings=jsonable(errors),
    )
