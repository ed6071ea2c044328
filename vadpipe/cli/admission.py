"""Which jobs of a configuration run at the same time: what each needs, and the scheduler that admits them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from pipeline.errors import MoverError
from pipeline.events import emit, within
from pipeline.job import Job
from vadpipe.fleet.limits import Limits, needs_of_vm
from vadpipe.fleet.scheduler import Scheduler
from vadpipe.fleet.values import (
    Ended,
    Hold,
    Proxy,
    Request,
    Start,
    Submitted,
    Way,
    connections,
    nfc_bytes,
    sessions,
    snapshots,
    streams,
)
from vadpipe.repository.store import Repository

if TYPE_CHECKING:
    from sinks.restore_job import Restore
    from vadpipe.vsphere.inventory.placement import Placement
    from vadpipe.vsphere.vm.vm import VsphereVm

log = logging.getLogger(__name__)

HERE = "this machine"
_TRANSPORT = "any"

_PAST_THE_HOST = {"hotadd", "san", "file"}
"""Transports of VDDK that need nothing of the ESXi host's disk service."""

_BYTES_PER_SECOND = 100_000_000
"""What a job reads, to rank jobs by how long they will take. Any rate gives the same order."""


@dataclass
class Admission:
    """The scheduler of a run, with the jobs by their titles."""

    jobs: Mapping[str, Job[Any, Any] | Restore]
    scheduler: Scheduler
    requests: Sequence[Request]

    def begin(self) -> list[Job[Any, Any] | Restore]:
        """The jobs to start first."""
        return self._take(Submitted(trio.current_time(), self.requests))

    def ended(self, job: Job[Any, Any] | Restore) -> list[Job[Any, Any] | Restore]:
        """The jobs to start now that this one ended."""
        return self._take(Ended(trio.current_time(), job.title))

    def _take(self, event: Submitted | Ended) -> list[Job[Any, Any] | Restore]:
        started = []
        for decision in self.scheduler.take(event):
            if isinstance(decision, Start):
                started.append(self.jobs[decision.job])
            elif isinstance(decision, Hold) and ":" in decision.resource:  # not for its turn among N
                log.info("%s waits for %s", decision.job, decision.resource)
                with within(job=decision.job):
                    emit("job waiting", resource=decision.resource)
        return started


@dataclass
class _Needs:
    """What a job needs, as far as it is known."""

    tokens: dict[str, float] = field(default_factory=dict)
    bytes: int = 0


async def admission(
    jobs: Sequence[Job[Any, Any] | Restore],
    at_once: int,
    limits: Limits,
    most_at: Mapping[str, int],
) -> Admission:
    """Find out what each job needs.

    Servers are asked where their VMs are, and repositories how much was read for the last point of each. What
    cannot be found out limits nothing: such a job reports why when it runs.

    Args:
        jobs: All jobs of the run.
        at_once: Jobs at the same time.
        limits: Of hosts, datastores and servers.
        most_at: Jobs at the same time on each 'server', 'host' or 'datastore'.
    """
    capacity: dict[str, float | None] = {}
    needs = [_of_server(job, limits, most_at, capacity) for job in jobs]
    await _add_placements(jobs, needs, limits, most_at, capacity)
    await _add_histories(jobs, needs)
    known = {name: most for name, most in capacity.items() if most is not None}
    requests = []
    for job, one in zip(jobs, needs, strict=True):
        for name, amount in one.tokens.items():
            if amount > known.get(name, amount):
                log.info(
                    "%s needs %g of %s, of which there is %g: it has that alone",
                    job.title,
                    amount,
                    name,
                    known[name],
                )
        tokens = {name: min(amount, known.get(name, amount)) for name, amount in one.tokens.items()}
        requests.append(
            Request(job.title, [Way(_TRANSPORT, tokens)], expected_s=one.bytes / _BYTES_PER_SECOND)
        )
    scheduler = Scheduler(known, [Proxy(HERE, at_once, (_TRANSPORT,))])
    return Admission({job.title: job for job in jobs}, scheduler, requests)


def _of_server(
    job: Job[Any, Any] | Restore,
    limits: Limits,
    most_at: Mapping[str, int],
    capacity: dict[str, float | None],
) -> _Needs:
    """The server that the VM of a job is on, or will be on, is known from the settings."""
    vcenter = getattr(job.machine if isinstance(job, Job) else job.into, "vcenter", None)
    if vcenter is None:
        return _Needs()
    capacity[sessions(vcenter.server)] = limits.sessions
    capacity[jobs_at("vcenter", vcenter.server)] = most_at.get("server")
    return _Needs({sessions(vcenter.server): 1, jobs_at("vcenter", vcenter.server): 1})


def jobs_at(kind: str, name: str) -> str:
    """Jobs of VMs at one place: a server, a host or a datastore."""
    return f"{kind}:{name}/jobs"


async def _add_placements(
    jobs: Sequence[Job[Any, Any] | Restore],
    needs: Sequence[_Needs],
    limits: Limits,
    most_at: Mapping[str, int],
    capacity: dict[str, float | None],
) -> None:
    """What the backups of VMs on servers need of hosts and datastores, as the VMs are placed now."""
    if not any(isinstance(job, Job) and hasattr(job.machine, "vcenter") for job in jobs):
        return
    from vadpipe.vsphere.vm.vm import VsphereVm, placements_of_machines

    there = [
        (job.machine, job, one)
        for job, one in zip(jobs, needs, strict=True)
        if isinstance(job, Job) and isinstance(job.machine, VsphereVm)
    ]
    found = await placements_of_machines([machine for machine, _, _ in there])
    for (machine, job, one), placement in zip(there, found, strict=True):
        if placement is not None:
            one.tokens |= _tokens(machine, job.disks_at_once, placement)
            capacity |= _capacity(machine.vcenter.server, placement, limits, most_at)


def _tokens(machine: VsphereVm, disks_at_once: int, placement: Placement) -> dict[str, float]:
    server = machine.vcenter.server
    transports = getattr(machine.reader, "transports", None)
    over_network = not transports or not set(str(transports).split(":")) <= _PAST_THE_HOST
    datastores = [disk.datastore for disk in placement.disks]
    tokens = needs_of_vm(
        server, placement.host, datastores, disks_at_once=disks_at_once, over_network=over_network
    )
    if placement.host:
        tokens[jobs_at("host", f"{server}/{placement.host}")] = 1
    return tokens | {jobs_at("datastore", f"{server}/{name}"): 1 for name in datastores}


def _capacity(
    server: str, placement: Placement, limits: Limits, most_at: Mapping[str, int]
) -> dict[str, float | None]:
    host = f"{server}/{placement.host}"
    found: dict[str, float | None] = {
        connections(host): limits.connections,
        nfc_bytes(host): limits.nfc_bytes_of(placement.version),
        jobs_at("host", host): most_at.get("host"),
    }
    for disk in placement.disks:
        datastore = f"{server}/{disk.datastore}"
        found[streams(datastore)] = limits.streams
        found[snapshots(datastore)] = limits.snapshots
        found[jobs_at("datastore", datastore)] = most_at.get("datastore")
    return found


async def _add_histories(jobs: Sequence[Job[Any, Any] | Restore], needs: Sequence[_Needs]) -> None:
    """How much was read for the newest point of each VM: what reads the most starts first."""
    repositories = {
        job.into: None for job in jobs if isinstance(job, Job) and isinstance(job.into, Repository)
    }
    for repository in repositories:
        try:
            async with repository.read() as reader:
                points = {
                    point.machine.name: point for point in reader.points
                }  # oldest first: the newest stays
        except MoverError as exc:
            log.info("%s: what was read for earlier points is not known: %s", repository.name, exc)
            continue
        for job, one in zip(jobs, needs, strict=True):
            if isinstance(job, Job) and job.into == repository and job.machine.name in points:
                one.bytes = sum(disk.receipt.read for disk in points[job.machine.name].disks)
