"""The resources, the proxies and who holds what of them: the account of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .tokens import UNIT, Machine, Needs, Pool, Queue, Resource, Route, Waiting, is_at, needed, offered
from .values import Proxy, Tokens, Use


class Book:
    """All resources, proxies and pools by their names.

    `touched`: queues at which a job may be able to start, since something came free there; `freed`: something came
    free since this was last set to False.
    """

    def __init__(self, limits: Tokens, proxies: Iterable[Proxy]) -> None:
        self.resources: dict[str, Resource] = {}
        self.machines = {proxy.name: Machine(proxy) for proxy in proxies}
        self.pools: dict[tuple[str, tuple[str, ...]], Pool] = {}
        self.touched: dict[Queue, None] = {}
        self.freed = False
        for name, capacity in limits.items():
            self.resource(name).capacity = offered(capacity)

    def resource(self, name: str) -> Resource:
        """The resource of this name; a new one has no limit."""
        if (found := self.resources.get(name)) is None:
            found = self.resources[name] = Resource(name)
        return found

    def compile(self, job: Waiting) -> None:
        """Find the objects that the request of a job names."""
        request = job.request
        job.whole = self._needs(request.tokens)
        job.removal = self._needs(request.removal)
        job.routes = tuple(
            Route(
                way.transport,
                self._joined(job.whole, way.tokens),
                self._pool(way.transport, way.sees),
                request.expected_s if way.expected_s is None else way.expected_s,
            )
            for way in request.ways
        )

    def _joined(self, whole: Needs, tokens: Tokens) -> Needs:
        """The needs of a way: first what is held to the end, then what is its own; a name in both counts twice."""
        own = dict(self._needs(tokens))
        return (*((one, need + own.pop(one, 0)) for one, need in whole), *own.items())

    def _needs(self, tokens: Tokens) -> Needs:
        return tuple((self.resource(name), needed(amount)) for name, amount in tokens.items() if amount)

    def _pool(self, transport: str, sees: Sequence[str]) -> Pool:
        key = transport, tuple(sorted(set(sees)))
        if (found := self.pools.get(key)) is None:
            found = self.pools[key] = Pool(
                f"slots of proxies with {transport}", transport=transport, sees=key[1]
            )
            self.find_machines(found)
        return found

    def find_machines(self, pool: Pool) -> None:
        """Find the proxies of a pool anew."""
        for machine in pool.machines:
            machine.pools.remove(pool)
        pool.machines = [machine for machine in self.machines.values() if pool.fits(machine.proxy)]
        for machine in pool.machines:
            machine.pools.append(pool)

    def hold(self, job: Waiting, needs: Needs, machine: Machine, ends_at: float) -> None:
        """A job holds these tokens and a slot from now on."""
        job.state = "running"
        job.expected_end = ends_at
        machine.jobs[job] = None
        job.held, job.machine = needs, machine
        machine.used += 1
        for resource, need in needs:
            resource.used += need

    def release(self, held: Needs, keep: Needs = ()) -> None:
        """Take tokens back, but for those of `keep`."""
        kept = dict(keep)
        self.freed = True
        for resource, need in held:
            resource.used -= need - kept.get(resource, 0)
            if resource.heaps:
                self.touched[resource] = None

    def release_slot(self, job: Waiting) -> None:
        """Take back the slot of a job that ended."""
        assert job.machine is not None
        job.machine.used -= 1
        del job.machine.jobs[job]
        self.touch(job.machine)

    def touch(self, machine: Machine) -> None:
        """A slot of a proxy came free."""
        for pool in machine.pools:
            if pool.heaps:
                self.touched[pool] = None

    def uses(self) -> list[Use]:
        """Each resource that has a limit or is in use, and the slots of each proxy."""
        found = [
            Use(
                resource.name,
                resource.used / UNIT,
                None if resource.capacity is None else resource.limit() / UNIT,
                None if resource.capacity is None else resource.capacity / UNIT,
                resource.claimed / UNIT,
                sum(1 for heap in resource.heaps.values() for entry in heap if is_at(entry[3], resource)),
            )
            for resource in self.resources.values()
        ]
        for name, machine in self.machines.items():
            slots = float(machine.proxy.slots)
            found.append(Use(f"proxy:{name}/slots", machine.used, slots, slots, machine.claimed, 0))
        return found
