"""A model of a site: hosts, datastores, proxies, VMs, and the jobs of a night. Plain data, from and to JSON."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import ConfigError
from pipeline.units import GiB, MiB

from .limits import MB, NFC_BYTES, SESSION_BYTES
from .values import (
    Proxy,
    Request,
    Tokens,
    Way,
    bandwidth,
    connections,
    nfc_bytes,
    removals,
    sessions,
    streams,
)


@dataclass(frozen=True)
class Host:
    """An ESXi host. `nfc_bytes`: of its NFC buffers, what backups may have."""

    name: str
    connections: int = 50
    nfc_bytes: float = 0.85 * NFC_BYTES[8]


@dataclass(frozen=True)
class Datastore:
    """A datastore.

    Up to `bytes_per_second` it gives each stream what that asks for, at `latency_s`; above, all streams share it,
    and the latency rises in proportion to what they ask for.

    Args:
        streams: Disks that may be read at once.
        removals: Snapshots that may be removed at once.
    """

    name: str
    bytes_per_second: float = 2000 * MB
    latency_s: float = 0.002
    streams: int = 8
    removals: int = 4


@dataclass(frozen=True)
class SiteDisk:
    """A disk of a VM. `used`: bytes in use; `changed`: the share of them that a job reads, 1 for a full backup."""

    datastore: str
    used: float
    changed: float = 0.03

    @property
    def bytes(self) -> float:
        return self.used * self.changed


@dataclass(frozen=True)
class SiteVm:
    """A VM and its job.

    Args:
        begins_s: When its window begins, in seconds from the start of the simulation.
        due_s: When its job has to have ended; None for no deadline.
        last_s: How long its last job took; None: what this one will take alone.
    """

    name: str
    host: str
    disks: Sequence[SiteDisk]
    tenant: str = ""
    begins_s: float = 0.0
    due_s: float | None = None
    last_s: float | None = None


@dataclass(frozen=True)
class Site:
    """Everything of a site that decides how long its backups take.

    Args:
        stream_bytes_per_second: What one disk gives at most, by transport; also the transports of jobs, best first.
        local_transports: Of these, those for which the proxy has to see the datastores of the VM, and which need
            nothing of the ESXi host.
        disks_at_once: Disks of a VM that are read at the same time.
        begin_s: From the start of a job to its first read: login, snapshot, opening the disks.
        remove_s: For removing its snapshot.
        repository_bytes_per_second: What the repository takes; None for no limit.
        sessions: Jobs that may be logged in at the vCenter.
    """

    hosts: Sequence[Host]
    datastores: Sequence[Datastore]
    proxies: Sequence[Proxy]
    vms: Sequence[SiteVm]
    stream_bytes_per_second: Mapping[str, float] = field(
        default_factory=lambda: {"hotadd": 150.0 * MB, "nbdssl": 120.0 * MB}
    )
    local_transports: Sequence[str] = ("hotadd", "san")
    disks_at_once: int = 2
    begin_s: float = 20.0
    remove_s: float = 15.0
    repository_bytes_per_second: float | None = None
    sessions: int | None = 500
    tenants: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Site:
        """The site that a JSON document describes: the fields of these classes by their names.

        Raises:
            ConfigError: A field is missing, not known or of a wrong kind, or something is named that there is not.
        """
        parts = dict(document)
        try:
            for name, kind in (("hosts", Host), ("datastores", Datastore), ("proxies", Proxy)):
                parts[name] = [kind(**fields) for fields in parts[name]]
            parts["vms"] = [
                SiteVm(**{**fields, "disks": [SiteDisk(**disk) for disk in fields["disks"]]})
                for fields in parts["vms"]
            ]
            site = cls(**parts)
            site.check()
        except KeyError as exc:
            raise ConfigError(
                f"The site has no {exc.args[0]!r}.", remedy="docs/fleet.md has an example."
            ) from exc
        except TypeError as exc:
            text = str(exc).replace("__init__() ", "")
            raise ConfigError(
                f"The site is not understood: {text}.", remedy="docs/fleet.md has an example."
            ) from exc
        return site

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Raise ConfigError where a name is not known or used twice, or an amount is impossible."""
        names = {
            "host": [one.name for one in self.hosts],
            "datastore": [one.name for one in self.datastores],
            "proxy": [one.name for one in self.proxies],
            "VM": [one.name for one in self.vms],
        }
        for kind, given in names.items():
            twice = [name for name, times in Counter(given).items() if times > 1]
            if twice:
                raise ConfigError(
                    f"The site has two {kind} entries {twice[0]!r}.", remedy="Give each its own name."
                )
        hosts, datastores = set(names["host"]), set(names["datastore"])
        for vm in self.vms:
            unknown = {vm.host} - hosts or {disk.datastore for disk in vm.disks} - datastores
            if unknown:
                raise ConfigError(f"VM {vm.name!r} names {min(unknown)!r}, which the site does not have.")
            if not vm.disks:
                raise ConfigError(f"VM {vm.name!r} has no disk.")
        amounts = [
            *(disk.used for vm in self.vms for disk in vm.disks),
            *(disk.changed for vm in self.vms for disk in vm.disks),
        ]
        if any(not 0 <= amount < math.inf for amount in amounts):
            raise ConfigError("The site has a disk with a negative size or change rate.")
        rates = [*self.stream_bytes_per_second.values(), *(one.bytes_per_second for one in self.datastores)]
        if any(not 0 < rate < math.inf for rate in rates):
            raise ConfigError("The site has a transport or a datastore without any bytes per second.")

    def limits(self) -> dict[str, float]:
        """The capacity of each resource by its name."""
        found: dict[str, float] = {}
        for host in self.hosts:
            found[connections(host.name)] = host.connections
            found[nfc_bytes(host.name)] = host.nfc_bytes
        for datastore in self.datastores:
            found[streams(datastore.name)] = datastore.streams
            found[removals(datastore.name)] = datastore.removals
        if self.sessions is not None:
            found[sessions("vcenter")] = self.sessions
        if self.repository_bytes_per_second is not None:
            found[bandwidth("repository")] = self.repository_bytes_per_second
        return found

    def request(self, vm: SiteVm) -> Request:
        """What the job of a VM needs, on each way that the site has.

        What is more than there is at all is lowered to that: such a job has the resource to itself, as it would
        have to queue there with its own disks.
        """
        seen = sorted({disk.datastore for disk in vm.disks})
        limits = self.limits_here
        ways = []
        for transport, rate in self.stream_bytes_per_second.items():
            tokens: dict[str, float] = {}
            for name in seen:
                there = sum(disk.datastore == name for disk in vm.disks)
                tokens[streams(name)] = min(there, self.disks_at_once)
            if transport not in self.local_transports:
                tokens[connections(vm.host)] = len(vm.disks)
                tokens[nfc_bytes(vm.host)] = len(vm.disks) * SESSION_BYTES
            if self.repository_bytes_per_second is not None:
                tokens[bandwidth("repository")] = rate * min(len(vm.disks), self.disks_at_once)
            sees = seen if transport in self.local_transports else ()
            takes_s = self.begin_s + self.transfer_s(vm, transport) + self.remove_s
            ways.append(Way(transport, _lowered(tokens, limits), sees, takes_s))
        if vm.last_s is not None:  # a history knows the way that was gone, not the others
            ways = [replace(way, expected_s=None) for way in ways]
        return Request(
            vm.name,
            ways,
            tokens={sessions("vcenter"): 1},
            removal={removals(name): 1 for name in seen},
            tenant=vm.tenant,
            expected_s=self.alone_s(vm) if vm.last_s is None else vm.last_s,
            deadline=vm.due_s,
        )

    @property
    def limits_here(self) -> Tokens:
        """`limits`, made once."""
        found: Tokens | None = self.__dict__.get("_limits")
        if found is None:
            found = self.limits()
            object.__setattr__(self, "_limits", found)
        return found

    def transfer_s(self, vm: SiteVm, transport: str) -> float:
        """Seconds in which the disks of a VM are read when nothing else runs, at the least."""
        rate = self.stream_bytes_per_second[transport]
        sizes = [disk.bytes for disk in vm.disks]
        return max(*sizes, sum(sizes) / self.disks_at_once) / rate

    def alone_s(self, vm: SiteVm) -> float:
        """Seconds of a job when nothing else runs, by its best way that some proxy can go."""
        seen = {disk.datastore for disk in vm.disks}
        best = min((self.transfer_s(vm, transport) for transport in self.transports_for(seen)), default=0.0)
        return self.begin_s + best + self.remove_s

    def transports_for(self, datastores: set[str]) -> list[str]:
        """The transports that some proxy has for disks on these datastores, best first."""
        return [
            transport
            for transport in self.stream_bytes_per_second
            if any(self.can(proxy, transport, datastores) for proxy in self.proxies)
        ]

    def can(self, proxy: Proxy, transport: str, datastores: set[str]) -> bool:
        """Whether a proxy can read disks on these datastores by a transport."""
        if transport not in proxy.transports or not proxy.slots:
            return False
        return (
            transport not in self.local_transports
            or proxy.datastores is None
            or datastores <= set(proxy.datastores)
        )


def _lowered(tokens: Tokens, limits: Tokens) -> dict[str, float]:
    return {name: min(amount, limits.get(name, amount)) for name, amount in tokens.items()}


def random_site(
    disks: int, *, hosts: int = 0, datastores: int = 0, proxies: int = 0, seed: int = 0, slots: int = 8
) -> Site:
    """A site as they are found: clusters, VMs of unlike sizes, most backups incremental, some full.

    Sizes of disks are log-normal around 60 GiB, at most 1 TiB. In each cluster some datastores hold more than
    others. One backup in fourteen is full, as with a full one every two weeks. Half of the proxies are VMs, which
    hot-add disks of their cluster; the others read over the network. Without `hosts`, `datastores` and `proxies`
    there is one for each 50, 250 and 500 disks.
    """
    random_ = random.Random(seed)
    hosts, datastores = hosts or max(1, disks // 50), datastores or max(1, disks // 250)
    proxies = proxies or max(1, disks // 500)
    clusters = max(1, min(hosts // 20, datastores // 4, 10)) if hosts >= 20 else 1
    host_names = [f"esxi{number:03}" for number in range(hosts)]
    store_names = [f"datastore{number:02}" for number in range(datastores)]
    seen_by = [store_names[cluster::clusters] for cluster in range(clusters)]
    vms: list[SiteVm] = []
    left = disks
    while left:
        cluster = random_.randrange(clusters)
        stores = seen_by[cluster]
        weights = [1.0 + (at % 3) / 3 for at in range(len(stores))]
        [home] = random_.choices(stores, weights)
        count = min(left, random_.choices([1, 2, 3, 4], [35, 40, 15, 10])[0])
        changed = 1.0 if random_.random() < 1 / 14 else min(0.5, random_.lognormvariate(math.log(0.03), 0.7))
        made = []
        for _ in range(count):
            place = random_.choice(stores) if random_.random() < 0.1 else home
            used = min(1024 * GiB, max(100 * MiB, random_.lognormvariate(math.log(60 * GiB), 1.0)))
            made.append(SiteDisk(place, round(used), round(changed, 4)))
        vms.append(SiteVm(f"vm{len(vms):05}", random_.choice(host_names[cluster::clusters]), made))
        left -= count
    made_proxies = [
        Proxy(f"proxy{number:02}", slots, ("hotadd", "nbdssl"), tuple(seen_by[number // 2 % clusters]))
        if number % 2 == 0
        else Proxy(f"proxy{number:02}", slots, ("nbdssl",))
        for number in range(proxies)
    ]
    return Site(
        [Host(name) for name in host_names], [Datastore(name) for name in store_names], made_proxies, vms
    )
