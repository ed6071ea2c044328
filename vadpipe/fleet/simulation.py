"""The jobs of a site, simulated: the scheduler decides, a model of the site says how long everything takes.

A job takes its time to begin, reads its disks, a few at once, and removes its snapshot. What a disk gets depends on
what else is read from its datastore at that moment (see `Datastore`). The simulation counts what the jobs hold by
itself and compares that with the limits, so that it does not believe the scheduler.

Two other ways of admission are there for comparison: 'fifo' observes the same limits and starts jobs in their
order; 'slots' knows only the slots of the proxies, as tools do that limit tasks per proxy.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Literal, TypeAlias

from .scheduler import Policy, Scheduler
from .site import Datastore, Site, SiteVm
from .values import (
    Ended,
    Event,
    LatencyObserved,
    Remove,
    Request,
    Start,
    Submitted,
    TimePassed,
    Tokens,
    Transferred,
    streams,
)

Scheme: TypeAlias = Literal["tokens", "fifo", "slots"]

OBSERVE_S = 20.0
"""Between two observations of latency: the interval of vSphere's real-time performance counters."""


@dataclass(frozen=True)
class Load:
    """How a resource was used. `share`: of its capacity, averaged over the time until the last job ended."""

    resource: str
    share: float
    peak: float
    capacity: float


@dataclass(frozen=True)
class Simulated:
    """What became of the jobs.

    Args:
        end_s: When the last job ended.
        bound_s: No schedule ends earlier: `bound_by` is busy as long, or takes as long.
        loads: Each resource with a limit, the busiest first.
        broken: Resources of which more was used than there is, with the largest factor.
        late: Jobs that ended after their deadline.
        never: Jobs that could not start at all.
        latency_s: The highest mean latency of a datastore over the time in which it was read.
        decisions: Starts, and other decisions; `events`: what the scheduler was told.
        mean_ms: CPU time that the scheduler took for an event, on this machine, but for the first, which has all
            jobs; `p99_ms`: all but a hundredth took less; `slowest_ms`: the slowest.
    """

    scheme: Scheme
    jobs: int
    end_s: float
    bound_s: float
    bound_by: str
    loads: list[Load]
    broken: dict[str, float]
    late: list[str]
    never: list[str]
    latency_s: float
    decisions: int
    events: int
    mean_ms: float
    p99_ms: float
    slowest_ms: float

    @property
    def bottleneck(self) -> str:
        return self.loads[0].resource if self.loads else ""

    def as_dict(self, *, loads: int = 10) -> dict[str, object]:
        document = {**asdict(self), "bottleneck": self.bottleneck}
        document["loads"] = [asdict(load) for load in self.loads[:loads]]
        return document


@dataclass(eq=False, slots=True)
class _Flow:
    """A disk that is being read: bytes left at the moment `since`, and its rate from then on."""

    job: _Job
    left: float
    most: float
    rate: float = 0.0
    since: float = 0.0
    version: int = 0


@dataclass(eq=False, slots=True)
class _Job:
    vm: SiteVm
    request: Request
    proxy: str = ""
    transport: str = ""
    held: dict[str, float] = field(default_factory=dict)
    to_read: list[tuple[float, str]] = field(default_factory=list)
    reading: int = 0


@dataclass(eq=False, slots=True)
class _Store:
    datastore: Datastore
    flows: list[_Flow] = field(default_factory=list)
    since: float = 0.0
    latency: float = 0.0
    read_s: float = 0.0  # seconds in which it was read
    latency_sum: float = 0.0  # latency times seconds
    observed: tuple[float, float] = (0.0, 0.0)  # the two sums at the last observation

    def advance(self, now: float) -> None:
        if self.flows:
            self.read_s += now - self.since
            self.latency_sum += self.latency * (now - self.since)
        self.since = now


class _Simulation:
    """One run of the jobs of a site."""

    def __init__(self, site: Site, policy: Policy, scheme: Scheme, clock: Callable[[], float]) -> None:
        self.site = site
        self.scheme: Scheme = scheme
        self.clock = clock
        self.policy = policy if scheme == "tokens" else replace(policy, order="fifo", latency_s=None)
        self.limits = site.limits()
        self.kernel = Scheduler(
            {} if scheme == "slots" else self.limits, site.proxies, tenants=site.tenants, policy=self.policy
        )
        for proxy in site.proxies:
            self.limits[f"proxy:{proxy.name}/slots"] = proxy.slots
        self.jobs = {vm.name: _Job(vm, site.request(vm)) for vm in site.vms}
        self.stores = {one.name: _Store(one) for one in site.datastores}
        self.now = 0.0
        self.numbers = count()
        self.happenings: list[tuple[float, int, Callable[[], None]]] = []
        self.used: dict[str, float] = defaultdict(float)
        self.used_since: dict[str, float] = {}
        self.used_s: dict[str, float] = defaultdict(float)
        self.peak: dict[str, float] = defaultdict(float)
        self.ended: dict[str, float] = {}
        self.running = 0
        self.decisions = 0
        self.took_s: list[float] = []

    def run(self) -> Simulated:
        batches: dict[float, list[Request]] = defaultdict(list)
        for job in self.jobs.values():
            batches[job.vm.begins_s].append(job.request)
        for at, requests in sorted(batches.items()):
            self.at(at, lambda requests=requests: self.tell(Submitted(self.now, requests)))  # type: ignore[misc]
        if self.policy.latency_s is not None:
            self.at(OBSERVE_S, self.observe)
        if any(vm.due_s is not None for vm in self.site.vms):
            self.at(60.0, self.pass_time)
        while self.happenings:
            self.now, _, happen = heapq.heappop(self.happenings)
            happen()
        end_s = max(self.ended.values(), default=0.0)
        for store in self.stores.values():
            store.advance(self.now)
        bound_s, bound_by = lower_bound(self.site)
        took_s = sorted(self.took_s) or [0.0]
        loads = [
            Load(name, self.used_s[name] / (capacity * end_s), self.peak[name], capacity)
            for name, capacity in self.limits.items()
            if capacity and end_s
        ]
        return Simulated(
            self.scheme,
            len(self.jobs),
            end_s,
            bound_s,
            bound_by,
            sorted(loads, key=lambda load: -load.share),
            {
                load.resource: load.peak / load.capacity
                for load in loads
                if load.peak > load.capacity * (1 + 1e-9)
            },
            [name for name, at in self.ended.items() if at > (self.jobs[name].vm.due_s or at)],
            [name for name in self.jobs if name not in self.ended],
            max((one.latency_sum / one.read_s for one in self.stores.values() if one.read_s), default=0.0),
            self.decisions,
            len(took_s),
            sum(took_s) * 1000 / len(took_s),
            took_s[len(took_s) * 99 // 100] * 1000,
            took_s[-1] * 1000,
        )

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.happenings, (moment, next(self.numbers), happen))

    def tell(self, event: Event) -> None:
        begun = self.clock()
        decisions = self.kernel.take(event)
        took_s = self.clock() - begun
        if not isinstance(event, Submitted):  # one for all jobs at once
            self.took_s.append(took_s)
        self.decisions += len(decisions)
        for decision in decisions:
            if isinstance(decision, Start):
                self.start(self.jobs[decision.job], decision)
            elif isinstance(decision, Remove):
                self.remove(self.jobs[decision.job])

    # A job.

    def start(self, job: _Job, decision: Start) -> None:
        self.running += 1
        job.proxy, job.transport = decision.proxy, decision.transport
        way = next(way for way in job.request.ways if way.transport == job.transport)
        self.hold(job, [*job.request.tokens.items(), *way.tokens.items(), (f"proxy:{job.proxy}/slots", 1.0)])
        self.at(self.now + self.site.begin_s, lambda: self.read(job))

    def read(self, job: _Job) -> None:
        job.to_read = sorted((disk.bytes, disk.datastore) for disk in job.vm.disks)
        for _ in range(self.site.disks_at_once):
            self.read_next(job)

    def read_next(self, job: _Job) -> None:
        if job.to_read:
            size, name = job.to_read.pop()
            job.reading += 1
            store = self.stores[name]
            store.advance(self.now)
            store.flows.append(
                _Flow(job, size, self.site.stream_bytes_per_second[job.transport], since=self.now)
            )
            self.share(store)
        elif not job.reading:
            job.reading = -1
            way = next(way for way in job.request.ways if way.transport == job.transport)
            self.give_back(job, way.tokens)
            self.tell(Transferred(self.now, job.vm.name))

    def was_read(self, store: _Store, flow: _Flow, version: int) -> None:
        if flow.version != version:
            return
        store.advance(self.now)
        store.flows.remove(flow)
        self.share(store)
        flow.job.reading -= 1
        self.read_next(flow.job)

    def share(self, store: _Store) -> None:
        """Give each stream of a datastore what it asks for, or an equal share of what there is."""
        left, streams = store.datastore.bytes_per_second, len(store.flows)
        asked = 0.0
        for flow in sorted(store.flows, key=lambda one: one.most):
            rate = min(flow.most, left / streams)
            left -= rate
            streams -= 1
            asked += flow.most
            if rate != flow.rate:
                flow.left = max(0.0, flow.left - flow.rate * (self.now - flow.since))
                flow.since, flow.rate = self.now, rate
                flow.version += 1
                self.at(
                    self.now + flow.left / rate,
                    lambda flow=flow, version=flow.version: self.was_read(store, flow, version),  # type: ignore[misc]
                )
        store.latency = store.datastore.latency_s * max(1.0, asked / store.datastore.bytes_per_second)

    def remove(self, job: _Job) -> None:
        self.hold(job, job.request.removal.items())
        self.at(self.now + self.site.remove_s, lambda: self.end(job))

    def end(self, job: _Job) -> None:
        self.give_back(job, dict(job.held))
        self.running -= 1
        self.ended[job.vm.name] = self.now
        self.tell(Ended(self.now, job.vm.name))

    # What is counted.

    def hold(self, job: _Job, tokens: Iterable[tuple[str, float]]) -> None:
        for name, amount in tokens:
            job.held[name] = job.held.get(name, 0.0) + amount
            self.count(name, amount)

    def give_back(self, job: _Job, tokens: Iterable[str]) -> None:
        for name in tokens:
            self.count(name, -job.held.pop(name))

    def count(self, name: str, amount: float) -> None:
        used = self.used[name]
        self.used_s[name] += used * (self.now - self.used_since.get(name, 0.0))
        self.used_since[name] = self.now
        self.used[name] = used + amount
        self.peak[name] = max(self.peak[name], used + amount)

    def busy(self) -> bool:
        return len(self.ended) < len(self.jobs) and bool(self.running or self.happenings)

    def observe(self) -> None:
        for name, store in self.stores.items():
            store.advance(self.now)
            read_s, latency = store.read_s - store.observed[0], store.latency_sum - store.observed[1]
            store.observed = store.read_s, store.latency_sum
            if read_s:
                self.tell(LatencyObserved(self.now, name, latency / read_s))
        if self.busy():
            self.at(self.now + OBSERVE_S, self.observe)

    def pass_time(self) -> None:
        self.tell(TimePassed(self.now))
        if self.busy():
            self.at(self.now + 60.0, self.pass_time)


def simulate(
    site: Site,
    *,
    scheme: Scheme = "tokens",
    policy: Policy | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> Simulated:
    """Run the jobs of a site, and say when they end and what held them up. `clock` times the scheduler."""
    return _Simulation(site, policy or Policy(), scheme, clock).run()


def with_one_more_proxy(site: Site, busiest: str) -> tuple[Site, str]:
    """The site with a further proxy like `busiest`, and that one's name."""
    like = next(proxy for proxy in site.proxies if proxy.name == busiest)
    name = f"{busiest}-2"
    return replace(site, proxies=[*site.proxies, replace(like, name=name)]), name


def busiest_proxy(found: Simulated) -> str:
    """The proxy whose slots were used the most."""
    slots = next(load.resource for load in found.loads if load.resource.startswith("proxy:"))
    return slots.removeprefix("proxy:").removesuffix("/slots")


def lower_bound(site: Site) -> tuple[float, str]:
    """Seconds before which no schedule can end all jobs, and why: the critical resource or the longest job.

    A resource is busy at least as long as all jobs together hold it, each by the way on which it holds it the
    shortest; a datastore as long as it takes to read from it what is to be read. Where the best way of jobs has few
    slots, both count together: see `_best_slots`.
    """
    held: dict[str, float] = defaultdict(float)
    slots: dict[frozenset[str], float] = defaultdict(float)
    stores: dict[str, float] = defaultdict(float)
    choices: dict[frozenset[str], dict[str, list[tuple[float, float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    longest = (0.0, "")
    first = min((vm.begins_s for vm in site.vms), default=0.0)
    slots_of = {proxy.name: proxy.slots for proxy in site.proxies}
    limits = site.limits()
    for vm in site.vms:
        request, seen = site.request(vm), {disk.datastore for disk in vm.disks}
        able = {
            way.transport: frozenset(one.name for one in site.proxies if site.can(one, way.transport, seen))
            for way in request.ways
        }
        ways = [way for way in request.ways if able[way.transport]]
        if not ways:
            continue
        alone_s = site.alone_s(vm)
        longest = max(longest, (vm.begins_s + alone_s, f"job {vm.name}"))
        read_s = {way.transport: site.begin_s + site.transfer_s(vm, way.transport) for way in ways}
        for name in {name for way in ways for name in way.tokens}:
            held[name] += min(way.tokens.get(name, 0.0) * read_s[way.transport] for way in ways)
        for name, amount in request.removal.items():
            held[name] += amount * site.remove_s
        for name, amount in request.tokens.items():
            held[name] += amount * alone_s
        slots[frozenset().union(*able.values())] += alone_s
        for disk in vm.disks:
            stores[disk.datastore] += disk.bytes
        best = min(ways, key=lambda way: read_s[way.transport])
        for name in seen:
            resource = streams(name)
            fast = best.tokens[resource] * read_s[best.transport]
            slow = min(
                (way.tokens[resource] * read_s[way.transport] for way in ways if way is not best),
                default=fast,
            )
            choices[able[best.transport]][resource].append((fast, slow, alone_s / len(seen)))
    bounds = [longest]
    bounds += [(first + work / limits[name], name) for name, work in held.items() if limits.get(name)]
    for proxies in slots:
        # All jobs that can run on none but these.
        work = sum(one for able, one in slots.items() if able <= proxies)
        bounds.append(
            (first + work / sum(slots_of[name] for name in proxies), f"slots of {len(proxies)} proxies")
        )
    for one in site.datastores:
        bounds.append(
            (first + stores[one.name] / one.bytes_per_second, f"datastore:{one.name}/bytes-per-second")
        )
    for proxies, by_resource in choices.items():
        there = sum(slots_of[name] for name in proxies)
        bounds.append(
            (first + _best_slots(by_resource, limits, there), f"slots of {len(proxies)} proxies and streams")
        )
    return max(bounds)


def _best_slots(
    by_resource: dict[str, list[tuple[float, float, float]]], limits: Tokens, slots: float
) -> float:
    """Seconds before which jobs that share the slots of their best way, and streams of datastores, cannot all end.

    In a time T each datastore gives its streams times T. Jobs that do not fit into that by their second way have to
    go the best one, those first that save the most for a second of a slot; and all those seconds have to fit into
    the slots times T. Parts of jobs count, so that this is a lower bound.

    Args:
        by_resource: For each resource the jobs: what they hold of it by the best way and by another, in
            token-seconds; and the seconds of a slot that the best way takes.
    """
    sorted_ = {
        name: sorted(jobs, key=lambda job: -(job[1] - job[0]) / max(job[2], 1e-9))
        for name, jobs in by_resource.items()
    }

    def fits(end_s: float) -> bool:
        needed_s = 0.0
        for name, jobs in sorted_.items():
            over = sum(slow for _, slow, _ in jobs) - limits[name] * end_s
            for fast, slow, slot_s in jobs:
                if over <= 0:
                    break
                saved = slow - fast
                if saved <= 0:
                    return False
                part = min(1.0, over / saved)
                over -= part * saved
                needed_s += part * slot_s
            if over > 1e-6:
                return False
        return needed_s <= slots * end_s

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, high * 2
    while high - low > 0.001 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low
