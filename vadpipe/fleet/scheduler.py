"""Which job starts when, and where: admission by the resources that jobs share.

A kernel: an event in, decisions out. It knows no clock, no file and no network, so that one machine, a fleet and a
simulation use the same one, and equal events give equal decisions. The rules:

* A job starts when all that it needs is free at once; it never waits with a part of it in its hands. Only the
  removal of its snapshot is asked for later, when what it read with is given back, and who removes waits for
  nothing more. So no jobs wait for each other.
* Jobs that reach their latest start come first, least slack first. Then the tenant that had the least of its share;
  of its jobs the one with the longest way to go: its own expected time, or the time that the waiting jobs will keep
  the busiest of its resources, whichever is longer.
* Nobody is passed for ever. When `passes` jobs that were submitted later have started, the oldest job gets a
  reservation: what it needs is set aside as it comes free. So does a job that is first at a resource and sees
  `passes` smaller ones start there.

Jobs wait in queues at what they lack, by amount and tenant. An event looks only at the queues of what came free;
the cost does not grow with the number of jobs that wait elsewhere.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from .book import Book
from .brake import LatencyBrake
from .tokens import (
    UNIT,
    Entry,
    Heap,
    Key,
    Machine,
    Queue,
    Resource,
    Route,
    Waiting,
    is_at,
    offered,
)
from .values import (
    Began,
    Cancelled,
    Decision,
    Ended,
    Event,
    Found,
    Hold,
    Late,
    LatencyObserved,
    Learned,
    LimitChanged,
    Proxy,
    ProxyChanged,
    Remove,
    Request,
    Start,
    Stop,
    Submitted,
    TimePassed,
    Tokens,
    Transferred,
    Use,
    streams,
)

_RESERVED = 4  # jobs with a reservation because smaller ones passed them; the oldest is one more
_STALE = 1.05  # a rank that fell by less than this factor is left as it is


@dataclass(frozen=True)
class Policy:
    """How jobs are ranked.

    Args:
        order: 'longest' as described above, or 'fifo': as they came, for comparison.
        passes: Starts of others after which a job that waits gets a reservation.
        risk_s: A job is at risk this many seconds before its latest start.
        latency_s: Target of the mean read latency of each datastore; None: no brake.
    """

    order: Literal["longest", "fifo"] = "longest"
    passes: int = 100
    risk_s: float = 900.0
    latency_s: float | None = None


class Scheduler:
    """The queue, the running jobs and all tokens.

    Args:
        limits: Capacity of each resource that has one, by name (see `values`).
        proxies: Where jobs run.
        tenants: Their weights; 1 for those that are not named.
        policy: How jobs are ranked.
    """

    def __init__(
        self,
        limits: Tokens,
        proxies: Iterable[Proxy],
        *,
        tenants: Mapping[str, float] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.now = -math.inf
        self._weights = dict(tenants or {})
        self._served: dict[str, float] = {}  # of each tenant: the work it got, divided by its weight
        self._waits_of: dict[str, int] = {}  # of each tenant: jobs that wait
        self._book = Book(limits, proxies)
        self._jobs: dict[str, Waiting] = {}
        self._numbers, self._batches, self._entries = count(), count(), count()
        self._fifo: deque[Waiting] = deque()
        self._overtaken = 0
        self._reserved: list[Waiting] = []
        self._impossible: dict[str, Waiting] = {}
        self._removing: list[Waiting] = []
        self._moments: list[tuple[float, int, Waiting]] = []
        self._new: list[Waiting] = []
        self._decisions: list[Decision] = []

    def take(self, event: Event) -> list[Decision]:
        """Take an event, and return what is to be done now. An event of a job that is not known changes nothing.

        Raises:
            ValueError: A job is submitted under the name of another that has not ended; or an amount is negative.
        """
        self.now = max(self.now, event.at)
        match event:
            case Submitted():
                self._submit(event.requests)
            case Learned():
                self._learn(event.request)
            case Found():
                self._find(event)
            case Began() | TimePassed():
                pass
            case Transferred():
                self._transferred(event.job)
            case Ended():
                self._end(event.job)
            case Cancelled():
                self._cancel(event.job)
            case LimitChanged():
                self._change_limit(self._book.resource(event.resource), event.capacity)
            case ProxyChanged():
                self._change_proxy(event.proxy)
            case LatencyObserved():
                self._observe(event)
        self._pass_moments()
        self._grant_removals()
        self._start_jobs()
        self._tell_new()
        decisions, self._decisions = self._decisions, []
        return decisions

    def uses(self) -> list[Use]:
        """Each resource that has a limit or is in use, and the slots of each proxy."""
        return self._book.uses()

    def running(self) -> list[str]:
        """The jobs that hold tokens."""
        return [name for name, job in self._jobs.items() if job.state in ("running", "removing")]

    def waiting(self) -> list[str]:
        """The jobs that have not started."""
        return [name for name, job in self._jobs.items() if job.state in ("unknown", "waiting")]

    def next_moment(self) -> float | None:
        """When `TimePassed` changes something without any other event; None for never."""
        while self._moments and self._moments[0][2].state == "ended":
            heapq.heappop(self._moments)
        return self._moments[0][0] if self._moments else None

    # Events.

    def _submit(self, requests: Sequence[Request]) -> None:
        batch = next(self._batches)
        for request in requests:
            if request.job in self._jobs:
                raise ValueError(f"A job {request.job!r} is waiting or running already.")
            _check(request)
        jobs = [Waiting(request, next(self._numbers), batch) for request in requests]
        for job in jobs:
            self._jobs[job.request.job] = job
            self._await(job)
        for job in jobs:  # ranks are right only when the work of all is known
            if job.state == "waiting":
                self._line_up(job)

    def _await(self, job: Waiting) -> None:
        """Note what a job needs, as soon as it is known."""
        request = job.request
        if not request.ways:
            self._hold(job, "")
            return
        self._book.compile(job)
        job.state = "waiting"
        if not self._waits_of.get(request.tenant):
            others = [self._served.get(one, 0.0) for one, waits in self._waits_of.items() if waits]
            self._served[request.tenant] = max(
                self._served.get(request.tenant, 0.0), min(others, default=0.0)
            )
        self._waits_of[request.tenant] = self._waits_of.get(request.tenant, 0) + 1
        self._fifo.append(job)
        self._count_work(job, 1)
        if request.deadline is not None:
            for moment in (job.latest_start - self.policy.risk_s, job.latest_start, request.deadline):
                self._note_moment(moment, job)

    def _learn(self, request: Request) -> None:
        job = self._jobs.get(request.job)
        if job is None or job.state not in ("unknown", "waiting"):
            return
        _check(request)
        if job.state == "waiting":
            self._leave(job)
        job.state = "ended"  # a new object takes its place, so that its entries in the queues are out of date
        again = self._jobs[request.job] = Waiting(
            request, job.number, job.batch, risks=job.risks, late=job.late
        )
        self._await(again)
        if again.state == "waiting":
            self._line_up(again)
        self._sort_fifo()

    def _find(self, event: Found) -> None:
        if event.request.job in self._jobs:
            return
        _check(event.request)
        job = self._jobs[event.request.job] = Waiting(event.request, next(self._numbers), next(self._batches))
        self._book.compile(job)
        route = next((one for one in job.routes if one.transport == event.transport), None)
        machine = self._book.machines.setdefault(event.proxy, Machine(Proxy(event.proxy, 0)))
        self._book.hold(job, route.needs if route else job.whole, machine, self.now + job.request.expected_s)
        if job.request.deadline is not None:
            self._note_moment(job.request.deadline, job)

    def _transferred(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is None or job.state != "running":
            return
        job.state = "removing"
        self._book.release(job.held, keep=job.whole)
        job.held = job.whole
        self._removing.append(job)

    def _end(self, name: str) -> None:
        job = self._jobs.pop(name, None)
        if job is None:
            return
        if job.state in ("running", "removing"):
            self._book.release(job.held)
            job.held = ()
            self._book.release_slot(job)
            if job in self._removing:
                self._removing.remove(job)
        elif job.state == "waiting":
            self._leave(job)
        job.state = "ended"

    def _cancel(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is None:
            return
        if job.state in ("unknown", "waiting"):
            self._end(name)
        elif not job.stopping:
            job.stopping = True
            self._decisions.append(Stop(name))

    def _change_limit(self, resource: Resource, capacity: float | None) -> None:
        resource.capacity = offered(capacity)
        resource.brake = None  # one of the new capacity is made by the next observation
        self._book.touched[resource] = None
        self._reconsider()

    def _change_proxy(self, proxy: Proxy) -> None:
        machine = self._book.machines.setdefault(proxy.name, Machine(proxy))
        machine.proxy = proxy
        for pool in self._book.pools.values():
            self._book.find_machines(pool)
        self._reconsider()

    def _reconsider(self) -> None:
        """Limits changed: reservations are made anew, and jobs wait for the ways that are possible now."""
        for job in self._reserved:
            self._unclaim(job)
        self._reserved.clear()
        for job in self._jobs.values():
            if job.state != "waiting" or not job.lined_up_wrongly():
                continue
            if self._impossible.pop(job.request.job, None):
                job.told = None
                self._fifo.append(job)
            self._line_up(job)
        self._sort_fifo()
        self._book.touched |= dict.fromkeys(self._book.pools.values())

    def _sort_fifo(self) -> None:
        oldest = self._fifo[0] if self._fifo else None
        self._fifo = deque(sorted(self._fifo, key=lambda one: one.number))
        if self._fifo and self._fifo[0] is not oldest:
            self._overtaken = 0

    def _observe(self, event: LatencyObserved) -> None:
        resource = self._book.resource(streams(event.datastore))
        if resource.brake is None:
            if self.policy.latency_s is None or not resource.capacity:
                return
            resource.brake = LatencyBrake(self.policy.latency_s, most=max(1.0, resource.capacity / UNIT))
        resource.brake.observe(event.latency_s, resource.used / UNIT)
        self._book.touched[resource] = None

    def _note_moment(self, moment: float, job: Waiting) -> None:
        heapq.heappush(self._moments, (moment, next(self._entries), job))

    def _pass_moments(self) -> None:
        """Note the jobs that are at risk by now, and say which will be late."""
        while self._moments and self._moments[0][0] <= self.now:
            _, _, job = heapq.heappop(self._moments)
            if job.state == "ended" or job.request.deadline is None:
                continue
            if job.state == "waiting":
                if not job.risks and self.policy.order == "longest":
                    job.risks = True
                    for route in job.routes:
                        if route.at is not None:
                            self._push(job, route.at, route.amount(route.at))
                            self._book.touched[route.at] = None
                by_s = self.now - job.latest_start
            else:
                by_s = self.now - job.request.deadline
            if by_s >= 0 and not job.late:
                job.late = True
                self._decisions.append(Late(job.request.job, by_s))

    def _grant_removals(self) -> None:
        """Let jobs remove their snapshots, first come first served at each resource."""
        wanted: dict[Resource, None] = {}
        for job in list(self._removing):
            # One that wants more than there is has it all, alone: its snapshot has to be removed.
            removal = tuple(
                (resource, min(need, resource.capacity or need) if resource.capacity != 0 else need)
                for resource, need in job.removal
            )
            if all(resource not in wanted and need <= resource.free() for resource, need in removal):
                self._removing.remove(job)
                for resource, need in removal:
                    resource.used += need
                job.held = (*job.held, *removal)
                self._decisions.append(Remove(job.request.job))
            else:
                wanted |= {resource: None for resource, _ in removal}

    # Starting jobs.

    def _start_jobs(self) -> None:
        """Start what can start: those with a reservation first, then the best at what came free."""
        self._reserve_oldest()
        for job in list(self._reserved):
            self._start_reserved(job)
        while self._book.touched and self._has_slot():
            self._book.freed = False
            heads = list(self._heads())
            heapq.heapify(heads)
            again = False
            while heads and not again and self._has_slot():
                _, number, at, queue, heap, amount = heapq.heappop(heads)
                if amount > queue.free():
                    continue
                if heap and heap[0][1] == number:
                    *_, job = heapq.heappop(heap)
                    started = self._try(job, queue, amount)
                    # The tenant's share changed, so that the keys of all others stand in another order.
                    again = started and len(self._waits_of) > 1
                if (head := self._head(queue, heap)) is not None:
                    heapq.heappush(heads, (*head, at, queue, heap, amount))
            if not heads and not again and not self._book.freed:
                self._book.touched.clear()

    def _tell_new(self) -> None:
        """Say of jobs that came with this event and did not start what they wait for."""
        for job in self._new:
            if job.state == "waiting" and job.told is None:
                lacks = next((one for one in map(self._lacks, job.routes) if one), job.routes[0].pool)
                self._hold(job, lacks.name)
        self._new.clear()

    def _has_slot(self) -> bool:
        return any(machine.free() > 0 for machine in self._book.machines.values())

    def _heads(self) -> Iterator[tuple[Key, int, int, Queue, Heap, int]]:
        """The best job of each heap at which what came free suffices for one."""
        at = 0
        for queue in self._book.touched:
            if not queue.heaps:
                continue
            free = queue.free()
            for place, heap in list(queue.heaps.items()):
                if place[1] > free:
                    continue
                if (head := self._head(queue, heap)) is None:
                    del queue.heaps[place]
                    continue
                at += 1
                yield (*head, at, queue, heap, place[1])

    def _head(self, queue: Queue, heap: Heap) -> tuple[Key, int] | None:
        """The best job of a heap: the key by which it stands against those of other heaps, and its number."""
        while heap:
            key, number, entry, job = heap[0]
            if not is_at(job, queue) or (job.risks and key[0] != 0):
                heapq.heappop(heap)
                continue
            if key[0] == 0 or self.policy.order == "fifo":
                return key, number
            rank = self._rank(job)
            if rank * _STALE < -key[1]:
                heapq.heapreplace(heap, ((1, -rank, key[2]), number, entry, job))
                continue
            return (1, self._served.get(job.request.tenant, 0.0), *key[1:]), number
        return None

    def _try(self, job: Waiting, queue: Queue, amount: int) -> bool:
        """Start a job that was found in a queue, or let it wait at what it lacks."""
        for route in job.routes:
            if route.at is queue and route.amount(queue) == amount:
                break
        else:
            return False  # an entry of earlier
        lacks = self._lacks(route)
        if lacks is not None:
            self._wait_at(job, route, lacks)
            return False
        if len(job.routes) > 1:
            if self._waits_for_best(job, route):
                best = job.routes[0].pool
                best.patient[job] = None
                route.at = best  # looked at again with each slot that comes free there
                self._push(job, best, 1)
                self._hold(job, best.name)
                return False
            route = next(one for one in job.routes if self._lacks(one) is None)
        machine = route.pool.best()
        assert machine is not None
        self._start(job, route, machine)
        return True

    def _waits_for_best(self, job: Waiting, route: Route) -> bool:
        """Whether a job that could start this way had better wait for a slot for its best way.

        It had when one comes free before the time is over that the best way saves.
        """
        best = job.routes[0]
        if route is best or self.policy.order == "fifo" or self._lacks(best) is not best.pool:
            return False
        if not best.feasible():
            return False
        ends = sorted(one.expected_end for machine in best.pool.machines for one in machine.jobs)
        ahead = len(best.pool.patient) - (job in best.pool.patient)
        return ahead < len(ends) and ends[ahead] - self.now < route.expected_s - best.expected_s

    def _lacks(self, route: Route) -> Queue | None:
        """The first thing that is not free; None when the job can start."""
        for resource, need in route.needs:
            if need > resource.free():
                return resource
        return route.pool if route.pool.free() < 1 else None

    def _wait_at(self, job: Waiting, route: Route, queue: Queue) -> None:
        if not route.feasible():
            route.at = None
            self._hold_if_impossible(job)
            return
        route.at = queue
        self._push(job, queue, route.amount(queue))
        self._hold(job, queue.name)

    def _hold_if_impossible(self, job: Waiting) -> bool:
        """Whether a job cannot start as the limits are; it then waits aside until one changes."""
        if any(route.feasible() for route in job.routes):
            return False
        for route in job.routes:
            route.at = None
        if job.request.job not in self._impossible:
            self._impossible[job.request.job] = job
            self._drop_claims(job)
            lacks = next(
                (
                    one.name
                    for one, need in job.routes[0].needs
                    if need > (one.capacity or 0) and one.capacity is not None
                ),
                job.routes[0].pool.name,
            )
            self._hold(job, lacks, impossible=True)
        return True

    def _start(self, job: Waiting, route: Route, machine: Machine) -> None:
        if job.reserved is None:
            self._note_passes(route)
        oldest = self._oldest()
        if oldest is not None and oldest is not job and job.batch > oldest.batch:
            self._overtaken += 1
        self._leave(job)
        share = max(
            (need / resource.capacity for resource, need in route.needs if resource.capacity), default=0.0
        )
        slots = sum(one.proxy.slots for one in self._book.machines.values())
        cost = max(job.request.expected_s, 1.0) * max(share, 1 / max(slots, 1))
        tenant = job.request.tenant
        self._served[tenant] = self._served.get(tenant, 0.0) + cost / self._weights.get(tenant, 1.0)
        self._book.hold(job, route.needs, machine, self.now + route.expected_s)
        self._decisions.append(Start(job.request.job, machine.proxy.name, route.transport))

    def _leave(self, job: Waiting) -> None:
        """A job waits no longer."""
        self._waits_of[job.request.tenant] -= 1
        self._count_work(job, -1)
        self._impossible.pop(job.request.job, None)
        for route in job.routes:
            route.at = None
            route.pool.patient.pop(job, None)
        self._drop_claims(job)
        job.state = "ended"  # a job that starts is set to running after this
        self._oldest()

    # Reservations.

    def _oldest(self) -> Waiting | None:
        """The job that waits the longest, of those that can start at all."""
        while self._fifo:
            oldest = self._fifo[0]
            if oldest.state == "waiting" and oldest.request.job not in self._impossible:
                return oldest
            self._fifo.popleft()
            self._overtaken = 0
        return None

    def _reserve_oldest(self) -> None:
        while self._overtaken >= self.policy.passes:
            oldest = self._oldest()
            if oldest is None or oldest.reserved is not None or self._reserve(oldest):
                return

    def _note_passes(self, route: Route) -> None:
        """Count, for the first of those that need more of a resource than is free, that a smaller job passed it."""
        if len(self._reserved) >= _RESERVED:
            return
        passed: tuple[Key, int, Waiting] | None = None
        for resource, need in route.needs:
            for (_, amount), heap in resource.heaps.items():
                if amount <= need or amount <= resource.free():
                    continue
                head = self._head(resource, heap)
                if head is not None and (passed is None or head < passed[:2]):
                    passed = (*head, heap[0][3])
        if passed is None:
            return
        job = passed[2]
        job.passed += 1
        if job.passed >= self.policy.passes and job.reserved is None:
            self._reserve(job)

    def _reserve(self, job: Waiting) -> bool:
        """Set aside what a job needs, on the first way that is possible, as it comes free."""
        if self._hold_if_impossible(job):
            return False
        route = next(one for one in job.routes if one.feasible())
        machine = max((one for one in route.pool.machines if one.proxy.slots), key=Machine.free)
        job.reserved, job.reserved_slot = route, machine
        machine.claimed += 1
        for resource, need in route.needs:
            resource.claimed += need
        self._reserved.append(job)
        self._reserved.sort(key=lambda one: one.number)
        return True

    def _drop_claims(self, job: Waiting) -> None:
        if job.reserved is not None:
            self._reserved.remove(job)
            self._unclaim(job)

    def _unclaim(self, job: Waiting) -> None:
        assert job.reserved is not None
        assert job.reserved_slot is not None
        self._book.freed = True
        job.reserved_slot.claimed -= 1
        self._book.touch(job.reserved_slot)
        for resource, need in job.reserved.needs:
            resource.claimed -= need
            self._book.touched[resource] = None
        job.reserved = job.reserved_slot = None
        job.passed = 0

    def _start_reserved(self, job: Waiting) -> None:
        """Start a job with a reservation, if all is free but for its own claim and those of younger jobs."""
        route, machine = job.reserved, job.reserved_slot
        if route is None or machine is None:
            return
        older = self._reserved[: self._reserved.index(job)]
        claimed: dict[Resource, int] = {}
        for other in older:
            assert other.reserved is not None
            for resource, need in other.reserved.needs:
                claimed[resource] = claimed.get(resource, 0) + need
        slots = machine.proxy.slots - machine.used - sum(one.reserved_slot is machine for one in older)
        if slots > 0 and all(
            need <= resource.limit() - resource.used - claimed.get(resource, 0)
            for resource, need in route.needs
        ):
            self._start(job, route, machine)

    # Queues.

    def _line_up(self, job: Waiting) -> None:
        """Let a job wait, for each of its ways, at the resource that waiting jobs will keep busy the longest."""
        if self._hold_if_impossible(job):
            return
        self._new.append(job)
        for route in job.routes:
            if not route.feasible():
                route.at = None
                continue
            if route.at is not None:  # it waits for this way already
                continue
            limited = [resource for resource, _ in route.needs if resource.capacity is not None]
            queue: Queue = max(limited, key=Resource.drain_s) if limited else route.pool
            route.at = queue
            self._push(job, queue, route.amount(queue))
            self._book.touched[queue] = None

    def _push(self, job: Waiting, queue: Queue, amount: int) -> None:
        if job.risks:
            key: Key = (0, job.latest_start)
        elif self.policy.order == "fifo":
            key = (1, job.number)
        else:
            key = (1, -self._rank(job), -job.request.expected_s)
        entry: Entry = (key, job.number, next(self._entries), job)
        heapq.heappush(queue.heaps.setdefault((job.request.tenant, amount), []), entry)

    def _rank(self, job: Waiting) -> float:
        """How long this job and those that share its resources have to go at least."""
        own = job.routes[0].needs[len(job.whole) :]  # what is held to the end, all jobs need alike
        return max(job.request.expected_s, max((one.drain_s() for one, _ in own), default=0.0))

    def _count_work(self, job: Waiting, sign: int) -> None:
        for resource, need in job.routes[0].needs:
            resource.work = max(0.0, resource.work + sign * need * job.request.expected_s)

    def _hold(self, job: Waiting, name: str, *, impossible: bool = False) -> None:
        if job.told != name or impossible:
            job.told = name
            self._decisions.append(Hold(job.request.job, name, impossible))


def _check(request: Request) -> None:
    for tokens in (request.tokens, request.removal, *(way.tokens for way in request.ways)):
        for name, amount in tokens.items():
            if not 0 <= amount < math.inf:
                raise ValueError(f"The job {request.job!r} needs {amount} of {name}, which is impossible.")
