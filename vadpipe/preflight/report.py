"""Preflight: the rules over the facts of VMs, and what people and machines are told of it."""

from __future__ import annotations

import textwrap
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from pipeline.errors import (
    EXIT_ATTENTION,
    EXIT_DONE,
    EXIT_FAILED,
    ConfigError,
)
from vadpipe.vddk.disk import Vddk
from vadpipe.vddk.library import find_library
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import Vm
from vadpipe.vsphere.snapshot.quiesce import Quiesce

from .facts import (
    HostFacts,
    JobFacts,
    ProxyFacts,
    VddkFacts,
)
from .gathering import Gathered, gather
from .proxy import this_machine
from .reach import probe
from .rule import (
    Finding,
    Severity,
    Unjudged,
    judge,
)
from .rules import RULES

Probe = Callable[[Iterable[HostFacts]], Awaitable[Sequence[HostFacts]]]

_WIDTH = 110
_LIBRARY = "libvixDiskLib.so."


@dataclass(frozen=True)
class PreflightReport:
    """What the rules said of one VM. `unjudged`: conditions of which nobody could tell whether they hold."""

    vm: str
    findings: Sequence[Finding]
    unjudged: Sequence[Unjudged]

    @property
    def exit_code(self) -> int:
        """1: an error, the job would fail or claim what is not so; 3: a warning; 0: neither, or unknowns only."""
        severities = {finding.severity for finding in self.findings}
        if Severity.ERROR in severities:
            return EXIT_FAILED
        return EXIT_ATTENTION if Severity.WARNING in severities else EXIT_DONE

    def as_dict(self) -> dict[str, object]:
        return {
            "vm": self.vm,
            "exit_code": self.exit_code,
            "findings": [finding.as_dict() for finding in self.findings],
            "unknown": [unjudged.as_dict() for unjudged in self.unjudged],
        }

    def lines(self) -> list[str]:
        """For people: one line per finding with its remedy below, then what is not known."""
        counts = [
            (sum(1 for one in self.findings if one.severity is level), level.value) for level in Severity
        ]
        told = (
            ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count)
            or "nothing found"
        )
        lines = [f"{self.vm}: {told}, {len(self.unjudged)} not known"]
        for finding in self.findings:
            subject = f"{finding.subject}: " if finding.subject else ""
            lines.append(f"  {finding.severity.value:8}{finding.rule:28}{subject}{finding.found}")
            lines += textwrap.wrap(
                finding.remedy, _WIDTH, initial_indent=" " * 38, subsequent_indent=" " * 38
            )
        lines += [f"  {'unknown':8}{unjudged.rule:28}{unjudged.why}" for unjudged in self.unjudged]
        return lines


async def preflight(
    session: VcenterSession, vm: Vm, job: JobFacts, *, probe_hosts: Probe | None = probe
) -> PreflightReport:
    """Every condition of one job, before its VM is touched. `probe_hosts` None: names and ports are not tried.

    Raises SourceError where the facts cannot be had. Changes nothing.
    """
    [report] = await preflight_all(session, [(vm.moref, job)], probe_hosts=probe_hosts)
    return report


async def preflight_all(
    session: VcenterSession, jobs: Sequence[tuple[str, JobFacts]], *, probe_hosts: Probe | None = probe
) -> list[PreflightReport]:
    """A report for each job, given with the moref of its VM; the facts of all VMs are gathered at once."""
    virtual, own_moref = await this_machine(session)
    wanted = dict.fromkeys(moref for moref, _ in jobs)
    gathered = await gather(session, [*dict.fromkeys([*wanted, *([own_moref] if own_moref else [])])])
    if probe_hosts is not None:
        gathered = await _probed(gathered, wanted, probe_hosts)
    proxy = ProxyFacts(virtual, gathered.vms[own_moref] if own_moref else None)
    return [
        PreflightReport(gathered.vms[moref].name, *judge(RULES, gathered.case(moref, job, proxy)))
        for moref, job in jobs
    ]


async def job_facts(quiesce: Quiesce, reader: object, *, enable_change_tracking: bool) -> JobFacts:
    """What a job wants, from its settings. `reader`: what opens its disks; conditions of VDDK hold for `Vddk`."""
    chosen_by_tools = quiesce.kind == "auto"  # what stands against applications costs them, not the snapshot
    return JobFacts(
        quiescing="application" if chosen_by_tools else quiesce.kind,
        may_degrade=quiesce.policy == "try" or chosen_by_tools,
        backup_type=quiesce.backup_type,
        enable_change_tracking=enable_change_tracking,
        vddk=await trio.to_thread.run_sync(partial(vddk_facts, reader)) if isinstance(reader, Vddk) else None,
    )


def vddk_facts(settings: Vddk) -> VddkFacts:
    """The VDDK that a job reads with; its version is in the name of the library's file."""
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
