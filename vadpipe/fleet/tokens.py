"""What the scheduler keeps of each resource, proxy and job. All amounts are whole numbers: millionths of a token.

So that sums of shares such as 0.1 come back to exactly nothing, needs are rounded up and capacities down.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .brake import LatencyBrake
from .values import Proxy, Request

UNIT = 1_000_000

Key: TypeAlias = "tuple[float, ...]"
Entry: TypeAlias = (
    "tuple[Key, int, int, Waiting]"  # the number of the job, and of the entry, decide between equals
)
Heap: TypeAlias = "list[Entry]"


def needed(amount: float) -> int:
    return math.ceil(round(amount * UNIT, 3))


def offered(capacity: float | None) -> int | None:
    return None if capacity is None else max(0, math.floor(round(capacity * UNIT, 3)))


@dataclass(eq=False, slots=True)
class Queue(ABC):
    """Jobs that wait at one place, by tenant and by how much they need there: the best of each is found at once."""

    name: str
    heaps: dict[tuple[str, int], Heap] = field(default_factory=dict)

    @abstractmethod
    def free(self) -> float:
        """What a further job can have here."""


@dataclass(eq=False, slots=True)
class Resource(Queue):
    """A named resource: how much there is, is held, and is set aside.

    `work`: the seconds of waiting jobs times what they need; `brake`: of a datastore whose latency is watched.
    """

    capacity: int | None = None
    used: int = 0
    claimed: int = 0
    work: float = 0.0
    brake: LatencyBrake | None = None

    def limit(self) -> float:
        """What may be held at once. The brake counts beside others only: one job alone never waits for it."""
        if self.capacity is None:
            return math.inf
        if self.brake is None or not self.used:
            return self.capacity
        return min(self.capacity, int(self.brake.allowed) * UNIT)

    def free(self) -> float:
        return self.limit() - self.used - self.claimed

    def drain_s(self) -> float:
        """How long all of it would be busy with the waiting jobs."""
        return self.work / self.capacity if self.capacity else 0.0


Needs: TypeAlias = "tuple[tuple[Resource, int], ...]"


@dataclass(eq=False, slots=True)
class Machine:
    """A proxy, with the slots that are taken and set aside."""

    proxy: Proxy
    used: int = 0
    claimed: int = 0
    pools: list[Pool] = field(default_factory=list)
    jobs: dict[Waiting, None] = field(default_factory=dict)  # that run on it

    def free(self) -> int:
        return self.proxy.slots - self.used - self.claimed

    def load(self) -> float:
        return (self.used + self.claimed) / self.proxy.slots if self.proxy.slots else math.inf


@dataclass(eq=False, slots=True)
class Pool(Queue):
    """The proxies that can run jobs of one kind: a transport, and the datastores that it has to see."""

    transport: str = ""
    sees: tuple[str, ...] = ()
    machines: list[Machine] = field(default_factory=list)
    patient: dict[Waiting, None] = field(default_factory=dict)  # jobs that wait here, but could go elsewhere

    def fits(self, proxy: Proxy) -> bool:
        """Whether a proxy belongs to it."""
        seen = proxy.datastores is None or set(self.sees) <= set(proxy.datastores)
        return self.transport in proxy.transports and seen

    def free(self) -> float:
        return sum(machine.free() for machine in self.machines if machine.free() > 0)

    def best(self) -> Machine | None:
        """The proxy with a free slot that can do the least else; of those alike, the one with the least to do."""
        free = [machine for machine in self.machines if machine.free() > 0]
        return min(free, key=lambda one: (len(one.proxy.transports), one.load()), default=None)


@dataclass(eq=False, slots=True)
class Route:
    """A way of a job, compiled: what it takes, and which proxies can go it. `at`: where the job waits for it."""

    transport: str
    needs: Needs
    pool: Pool
    expected_s: float
    at: Queue | None = None

    def amount(self, queue: Queue) -> int:
        """What the job waits for at `queue`."""
        return next((need for resource, need in self.needs if resource is queue), 1)

    def feasible(self) -> bool:
        """Whether the job could go this way if nothing else ran."""
        return any(machine.proxy.slots > 0 for machine in self.pool.machines) and all(
            resource.capacity is None or need <= resource.capacity for resource, need in self.needs
        )


State: TypeAlias = Literal["unknown", "waiting", "running", "removing", "ended"]


@dataclass(eq=False, slots=True)
class Waiting:
    """A job, from its submission to its end. See the scheduler for the rules that the fields serve."""

    request: Request
    number: int
    batch: int  # of the event that submitted it
    state: State = "unknown"
    routes: tuple[Route, ...] = ()
    whole: Needs = ()  # held from the start to the end
    removal: Needs = ()
    held: Needs = ()
    machine: Machine | None = None
    expected_end: float = 0.0
    risks: bool = False
    passed: int = 0
    reserved: Route | None = None  # what it needs this way is set aside
    reserved_slot: Machine | None = None
    told: str | None = None  # what it was last said to wait for
    late: bool = False
    stopping: bool = False

    def lined_up_wrongly(self) -> bool:
        """Whether it waits for a way that is impossible, or not for one that is possible."""
        return any(route.feasible() != (route.at is not None) for route in self.routes)

    @property
    def latest_start(self) -> float:
        assert self.request.deadline is not None
        return self.request.deadline - self.request.expected_s


def is_at(job: Waiting, queue: Queue) -> bool:
    """Whether a job waits in a queue; entries of jobs that do not are out of date."""
    return job.state == "waiting" and any(route.at is queue for route in job.routes)
