"""Preflight: the rules over the facts of VMs, and the report for each job."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError
from vadpipe.rules import Finding, Judgement, Severity, Undecided, Violation, judge
from vadpipe.vddk.disk import Vddk
from vadpipe.vddk.library import find_library
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import Vm
from vadpipe.vsphere.vm.vm import VsphereVm

from .facts import Case, HostFacts, JobFacts, ProxyFacts, VddkFacts
from .gathering import Gathered, gather
from .reach import probe, this_machine
from .rules import RULES

log = logging.getLogger(__name__)

Probe = Callable[[Iterable[HostFacts]], Awaitable[Sequence[HostFacts]]]

_LIBRARY = "libvixDiskLib.so."


@dataclass(frozen=True)
class PreflightReport:
    """What the rules say about one job.

    Args:
        vm: Its VM.
        findings: Conditions that do not hold, the worst first.
        unknown: Conditions that could not be checked, and why.
    """

    vm: Vm
    findings: Sequence[Finding[Violation]]
    unknown: Sequence[Undecided]

    @property
    def exit_code(self) -> int:
        """0: neither errors nor warnings. 3: a warning.

        1: an error: the job would fail, or report a consistency that it did not reach.
        """
        severities = {finding.severity for finding in self.findings}
        if Severity.ERROR in severities:
            return EXIT_FAILED
        return EXIT_ATTENTION if Severity.WARNING in severities else EXIT_DONE

    def as_dict(self) -> dict[str, object]:
        return {
            "vm": self.vm.name,
            "path": self.vm.path,
            "moref": self.vm.moref,
            "exit_code": self.exit_code,
            "findings": self.findings,
            "unknown": self.unknown,
        }


async def preflight(
    session: VcenterSession, vm: Vm, job: JobFacts, *, probe_hosts: Probe | None = probe
) -> PreflightReport:
    """Check every condition of one job before its VM is touched. Changes nothing.

    Args:
        session: A session at the VM's server.
        vm: The VM.
        job: What the job wants.
        probe_hosts: Tries the names and ports of hosts; None: they are not tried.

    Raises:
        SourceError: The facts cannot be read.
    """
    [report] = await preflight_all(session, [(vm, job)], probe_hosts=probe_hosts)
    return report


async def preflight_all(
    session: VcenterSession, jobs: Sequence[tuple[Vm, JobFacts]], *, probe_hosts: Probe | None = probe
) -> list[PreflightReport]:
    """A report for each job; the facts of all VMs are gathered at once. Arguments as of `preflight`."""
    virtual, own_moref = await this_machine(session)
    wanted = dict.fromkeys(vm.moref for vm, _ in jobs)
    gathered = await gather(session, [*dict.fromkeys([*wanted, *([own_moref] if own_moref else [])])])
    if probe_hosts is not None:
        gathered = await _probed(gathered, wanted, probe_hosts)
    proxy = ProxyFacts(virtual, gathered.vms[own_moref] if own_moref else None)
    return [_report(vm, gathered.case(vm.moref, job, proxy)) for vm, job in jobs]


def judge_case(case: Case) -> Judgement[Violation]:
    """Run the rules over a case. What costs only quiescing is a warning where the job may degrade."""
    return judge(RULES, case, survivable=lambda rule: case.job.may_degrade and "quiescing" in rule.tags)


def _report(vm: Vm, case: Case) -> PreflightReport:
    judgement = judge_case(case)
    findings, unknown = judgement.worst_first, judgement.undecided
    log.info("preflight of %s: %d findings, %d not known", vm.title, len(findings), len(unknown))
    return PreflightReport(vm, findings, unknown)


async def job_facts(machine: VsphereVm) -> JobFacts:
    """What the job of this VM wants. The conditions of VDDK apply where `Vddk` opens its disks."""
    quiesce, reader = machine.quiesce, machine.reader
    chosen_by_tools = quiesce.kind == "auto"  # then VMware Tools fall back by themselves
    return JobFacts(
        quiescing="application" if chosen_by_tools else quiesce.kind,
        may_degrade=quiesce.policy == "try" or chosen_by_tools,
        backup_type=quiesce.backup_type,
        enable_change_tracking=machine.enable_change_tracking,
        exclude=machine.exclude,
        vddk=await trio.to_thread.run_sync(partial(vddk_facts, reader)) if isinstance(reader, Vddk) else None,
    )


def vddk_facts(settings: Vddk) -> VddkFacts:
    """The VDDK that a job reads with. Its version is in the name of the library's file."""
    transports = tuple(part for part in (settings.transports or "").split(":") if part)
    try:
        library = find_library(settings.libdir).resolve()
    except ConfigError as exc:
        return VddkFacts(None, exc.problem, transports)
    numbers = [int(part) for part in library.name.removeprefix(_LIBRARY).split(".") if part.isdigit()]
    return VddkFacts(tuple(numbers) or None, "", transports)


async def _probed(gathered: Gathered, vms: Iterable[str], probe_hosts: Probe) -> Gathered:
    wanted = dict.fromkeys(host for vm in vms for host in gathered.hosts_of(vm))
    found = await probe_hosts([gathered.hosts[moref] for moref in wanted])
    return replace(gathered, hosts={**gathered.hosts, **{host.moref: host for host in found}})
