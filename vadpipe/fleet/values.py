"""What the scheduler is told and what it answers: jobs, proxies, events and decisions, as plain data.

Everything here becomes JSON by `dataclasses.asdict`; `from_json` makes it again. Moments are seconds of one clock,
which the caller chooses. A *token* is a share of a named resource. Names of resources are made by the functions
below, so that all parts name a thing alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Tokens: TypeAlias = Mapping[str, float]
"""How much of each resource, by its name."""


def connections(host: str) -> str:
    """Open disks on an ESXi host: one NFC connection each."""
    return f"host:{host}/connections"


def nfc_bytes(host: str) -> str:
    """Bytes of NFC buffers on an ESXi host."""
    return f"host:{host}/nfc-bytes"


def streams(datastore: str) -> str:
    """Disks that are read from a datastore at the same time."""
    return f"datastore:{datastore}/streams"


def snapshots(datastore: str) -> str:
    """VMs that have a snapshot on a datastore."""
    return f"datastore:{datastore}/snapshots"


def removals(datastore: str) -> str:
    """Snapshots that are removed on a datastore at the same time."""
    return f"datastore:{datastore}/snapshot-removals"


def sessions(vcenter: str) -> str:
    """Sessions at a vCenter, or at an ESXi host that is asked itself."""
    return f"vcenter:{vcenter}/sessions"


def bandwidth(repository: str) -> str:
    """Bytes per second into a repository."""
    return f"repository:{repository}/bytes-per-second"


@dataclass(frozen=True)
class Proxy:
    """A machine that runs jobs.

    Args:
        name: Names it; unique.
        slots: Jobs at the same time. 0: it gets none, e.g. because it is being taken out of service.
        transports: What it can, e.g. ('hotadd', 'nbdssl').
        datastores: Those that it sees, for transports that need it; None for all.
    """

    name: str
    slots: int
    transports: Sequence[str] = ("nbdssl",)
    datastores: Sequence[str] | None = None


@dataclass(frozen=True)
class Way:
    """One way to run a job: its transport, and the tokens that are held while data is read.

    Args:
        transport: A proxy has to have it.
        tokens: See above.
        sees: The datastores that the proxy has to see for it; none for a transport over the network.
        expected_s: Seconds of the job this way; None: as those of the job.
    """

    transport: str
    tokens: Tokens = field(default_factory=dict)
    sees: Sequence[str] = ()
    expected_s: float | None = None


@dataclass(frozen=True)
class Request:
    """A job that wants to run.

    Args:
        job: Names it; unique among the jobs that the scheduler knows.
        ways: In the order of preference; none while it is not known what the job needs (see `Learned`).
        tokens: Held from the start to the end, whichever way it runs: a session, a share of the repository.
        removal: Held while the snapshot is removed, in place of those of its way.
        tenant: Whose job it is; tenants share the resources by weight.
        expected_s: Seconds that it took the last time, or an estimate; 0 when nothing is known.
        deadline: When it has to have ended.
    """

    job: str
    ways: Sequence[Way] = ()
    tokens: Tokens = field(default_factory=dict)
    removal: Tokens = field(default_factory=dict)
    tenant: str = ""
    expected_s: float = 0.0
    deadline: float | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Request:
        """The request that `dataclasses.asdict` made `document` of."""
        return cls(**{**document, "ways": [Way(**way) for way in document.get("ways", ())]})


@dataclass(frozen=True)
class Submitted:
    """Jobs that came at one moment. Those of one event are ranked before any of them starts."""

    at: float
    requests: Sequence[Request]


@dataclass(frozen=True)
class Learned:
    """What a waiting job needs became known, or changed; `request` takes the place of the one before."""

    at: float
    request: Request


@dataclass(frozen=True)
class Found:
    """A job that already runs, e.g. when a coordinator starts again; its tokens count even above a limit."""

    at: float
    request: Request
    proxy: str
    transport: str


@dataclass(frozen=True)
class Began:
    """A job that was told to start has begun."""

    at: float
    job: str


@dataclass(frozen=True)
class Transferred:
    """A job has read everything: it gives back the tokens of its way, and asks to remove its snapshot."""

    at: float
    job: str


Ending: TypeAlias = Literal["done", "failed", "cancelled", "lost"]


@dataclass(frozen=True)
class Ended:
    """A job ended and holds nothing any more. 'lost': its proxy is gone, and its death is certain.

    The second such event of a job changes nothing.
    """

    at: float
    job: str
    how: Ending = "done"


@dataclass(frozen=True)
class Cancelled:
    """Somebody does not want a job any more. One that runs holds its tokens until it ended."""

    at: float
    job: str


@dataclass(frozen=True)
class LimitChanged:
    """A resource has another capacity; None: no limit. What runs goes on."""

    at: float
    resource: str
    capacity: float | None


@dataclass(frozen=True)
class ProxyChanged:
    """A proxy came, or can something else now. `slots=0`: it gets no further job."""

    at: float
    proxy: Proxy


@dataclass(frozen=True)
class LatencyObserved:
    """Mean latency of reads from a datastore since the last observation."""

    at: float
    datastore: str
    latency_s: float


@dataclass(frozen=True)
class TimePassed:
    """Nothing happened, but it is later."""

    at: float


Event: TypeAlias = (
    Submitted
    | Learned
    | Found
    | Began
    | Transferred
    | Ended
    | Cancelled
    | LimitChanged
    | ProxyChanged
    | LatencyObserved
    | TimePassed
)


@dataclass(frozen=True)
class Start:
    """Start a job on this proxy in this way. It holds its tokens from now on."""

    job: str
    proxy: str
    transport: str


@dataclass(frozen=True)
class Hold:
    """A job waits. `resource`: what it waits for first; `impossible`: it cannot start as the limits are now."""

    job: str
    resource: str
    impossible: bool = False


@dataclass(frozen=True)
class Remove:
    """A job that has read everything may remove its snapshot."""

    job: str


@dataclass(frozen=True)
class Late:
    """A job will probably miss its deadline, by as many seconds at least."""

    job: str
    by_s: float


@dataclass(frozen=True)
class Stop:
    """End a running job in order."""

    job: str


Decision: TypeAlias = Start | Hold | Remove | Late | Stop


@dataclass(frozen=True)
class Use:
    """A resource now. `allowed`: its capacity, or less while its latency is too high; None for no limit.

    `reserved`: set aside for jobs that others passed too often. `waiting`: jobs that wait for it first.
    """

    resource: str
    used: float
    allowed: float | None
    capacity: float | None
    reserved: float
    waiting: int
