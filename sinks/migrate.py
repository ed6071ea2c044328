"""A warm migration as a job of a configuration: increments of a running VM into a replica, then the cut-over."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, Literal, Protocol, TypeVar, cast
from uuid import uuid4

import trio

from pipeline import Capture, ConfigError, DiskReceipt, Job, JobReceipt, Pipeline, emit, format_size
from pipeline.composition import has_methods, readable
from pipeline.contracts import expect_trio
from pipeline.errors import failures
from pipeline.events import place, within
from pipeline.job import DiskWatch
from stages.remember import RememberRanges
from vadpipe.files import write_durably
from vadpipe.replica.estimate import Estimate, estimate

from .replica import Replica, ReplicaWriter
from .replica_proof import ReplicaProof, prove_replica

C = TypeVar("C", bound=Capture)

SHUTDOWN_WITHIN_S = 900.0  # Windows installs its updates on the way down
WAIT_S = 3600.0  # for the increment of another run
RECEIPT = "receipt.json"


class Stopped(Protocol):
    """A machine that is held off during a cut-over; it is started again unless it is to stay off."""

    async def confirm(self) -> None:
        """Raises SourceError when it is not off, or was started meanwhile."""
        ...

    def stay_off(self) -> None:
        """Leave it off at the end."""
        ...


@dataclass(frozen=True)
class CutOver:
    """A replica that holds what the VM held when it was off.

    `down_s`: from the order to shut down, or the begin of the last increment of a VM that was off, until the proof.
    `last`: the last increment.
    """

    job: str
    machine: str
    at: str
    increments: int
    last: JobReceipt
    proofs: Sequence[ReplicaProof]
    down_s: float

    @property
    def attention(self) -> Sequence[str]:
        return self.last.attention

    def as_dict(self) -> dict[str, object]:
        return {
            "job": self.job,
            "machine": self.machine,
            "cut_over": self.at,
            "increments": self.increments,
            "down_s": round(self.down_s, 3),
            "disks": [asdict(proof) for proof in self.proofs],
            "last_increment": self.last.as_dict(),
            "attention": list(self.attention),
        }

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.job}: cut over at {self.at} after {self.increments} increments; {self.machine} was down for "
            f"{self.down_s:.1f} s",
            *(f"  {proof}" for proof in self.proofs),
            *(f"  ATTENTION: {sentence}" for sentence in self.attention),
        ]


@dataclass(frozen=True)
class Migrate(Job[C, ReplicaWriter], Generic[C]):
    """Moves a VM to a replica outside of vSphere: increments while it runs, then a last one with the VM off.

    As a job of `vadpipe run` it is one increment. `vadpipe migrate` repeats increments and cuts over.

    Args:
        machine: The VM. Without quiescing the increments before the last one hold what a power failure would
            leave, and they are never started.
        path: How each disk travels: `ChangedExtents(disk, replica.previous(disk)) | RememberRanges(replica, disk) |
            ReadSpans(disk) | MarkZeros() | IntoReplica(replica, disk)`.
        into: The replica.
        power_off: The cut-over may shut the guest down, through VMware Tools. Otherwise the VM has to be off before
            it.
        shutdown_within_s: How long the guest may take for that; afterwards the cut-over fails, and the VM stays on.
        proof: What the cut-over reads back of the replica while the VM is off: 'whole', or 'changed', which is what
            was written since `vadpipe migrate --prove` last read the whole. What somebody else wrote to the replica
            is found for certain by a proof of the whole only.

    Raises:
        ConfigError: A setting is impossible.
    """

    _: KW_ONLY
    power_off: bool = False
    shutdown_within_s: float = SHUTDOWN_WITHIN_S
    proof: Literal["whole", "changed"] = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.into, Replica):
            raise ConfigError(
                f"Migrate(into={readable(self.into)}) is impossible.",
                remedy='Give it a Replica("qcow2:/images", state="/var/lib/vadpipe/web01").',
            )
        if self.proof not in ("whole", "changed"):
            raise ConfigError(
                f"Migrate(proof={self.proof!r}) is impossible.", remedy="Choose 'whole' or 'changed'."
            )
        if self.power_off and not has_methods(self.machine, "stopped"):
            raise ConfigError(
                f"Migrate(power_off=True) is impossible: {type(self.machine).__name__} cannot be shut down.",
                remedy="Leave power_off out, and see that nobody writes to the VM's disks during the cut-over.",
            )

    @property
    def replica(self) -> Replica:
        return cast("Replica", self.into)

    def planned(self) -> tuple[Pipeline[DiskReceipt] | None, str]:
        """See Job.planned. Raises ConfigError, too, for a path that does not remember what it writes."""
        pipeline, problem = super().planned()
        if pipeline is not None and not any(isinstance(part, RememberRanges) for part in pipeline.parts):
            raise ConfigError(
                "The path does not remember what it writes: after a crash nobody could trust the replica.",
                remedy="Put RememberRanges(replica, disk) between ChangedExtents and ReadSpans.",
            )
        return pipeline, problem

    def forecast(self) -> Sequence[str]:
        """For a plan: how long a cut-over would take, from the figures of the increments. Raises SinkError."""
        state = self.replica.directory.load()
        unproved = None
        if state is not None and self.proof == "changed":
            unproved = sum(
                self.replica.directory.unproved(key, disk.capacity).total for key, disk in state.disks.items()
            )
        found = None if state is None else estimate(state, unproved=unproved)
        return estimate_lines(found, self.shutdown_within_s if self.power_off else None)

    async def is_cut_over(self) -> bool:
        """Whether the migration has ended. Raises SinkError."""
        state = await trio.to_thread.run_sync(self.replica.directory.load)
        return state is not None and bool(state.cut_over)

    async def increment(self, watch: DiskWatch | None = None, *, full: bool = False) -> JobReceipt:
        """One increment, when that of another run has ended. `full`: everything is read and compared.

        Raises as Job.run.
        """
        into = replace(self.replica, full=full or self.replica.full, wait_s=WAIT_S)
        return await replace(self, into=into).run(watch)

    async def prove(self, watch: DiskWatch | None = None, *, whole: bool = True) -> Sequence[ReplicaProof]:
        """Read the replica back; the VM is not needed for that. Raises as `prove_replica`."""
        return await prove_replica(replace(self.replica, wait_s=WAIT_S), watch, whole=whole)

    async def cut_over(self, watch: DiskWatch | None = None) -> CutOver:
        """Stop the VM, copy what it wrote last, prove the whole replica. The VM stays off.

        Where anything fails before the proof is there, the VM is started again if it was on, and the migration goes
        on.

        Raises:
            ConfigError: The VM is on, and `power_off` does not allow to shut it down.
            MoverError, TransferFailed: The cut-over failed.
        """
        expect_trio()
        with within(run=place().get("run") or uuid4().hex[:12], job=self.title):
            emit("cut-over begun", machine=self.machine.name)
            try:
                begun = trio.current_time()
                async with self._stopped() as stopped:
                    last = await self.increment(watch)
                    proofs = await self.prove(watch, whole=self.proof == "whole")
                    await stopped.confirm()
                    stopped.stay_off()
                    down_s = trio.current_time() - begun
                receipt = await self._end(last, proofs, down_s)
            except BaseException as exc:
                emit("cut-over failed", errors=[failure.text for failure in failures(exc)])
                raise
            emit("cut-over finished", **receipt.as_dict())
            return receipt

    async def _end(self, last: JobReceipt, proofs: Sequence[ReplicaProof], down_s: float) -> CutOver:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        async with replace(self.replica, wait_s=WAIT_S).open() as opened:
            assert opened.state is not None
            number = opened.state.number
            receipt = CutOver(self.title, self.machine.name, at, number, last, proofs, down_s)
            content = json.dumps(receipt.as_dict(), indent=1, default=str).encode()
            where = opened.directory.path / RECEIPT
            await trio.to_thread.run_sync(lambda: write_durably(where, content, replace=True))
            await trio.to_thread.run_sync(opened.directory.save, replace(opened.state, cut_over=at))
        return receipt

    @asynccontextmanager
    async def _stopped(self) -> AsyncIterator[Stopped]:
        stop: Callable[..., Any] | None = getattr(self.machine, "stopped", None)
        if stop is None:
            yield _Trusted()
            return
        async with stop(power_off=self.power_off, within_s=self.shutdown_within_s) as stopped:
            yield stopped


class _Trusted:
    """A machine that has no power: whoever cuts over sees that nobody writes to its disks."""

    async def confirm(self) -> None:
        await trio.lowlevel.checkpoint()

    def stay_off(self) -> None:
        """It is off as far as we know."""


def estimate_lines(found: Estimate | None, shutdown_within_s: float | None) -> list[str]:
    """The estimate, for a plan."""
    if found is None:
        return ["How long a cut-over takes is known after the first increment."]
    shutdown = (
        f", and the time that the guest takes to shut down (at most {shutdown_within_s:.0f} s)"
        if shutdown_within_s is not None
        else ""
    )
    proof = (
        f"{found.proof_s:.0f} s for reading the replica back"
        if found.proof_s is not None
        else "the time for reading the whole replica back, which was not measured yet (`vadpipe migrate --prove`)"
    )
    rate = (
        f"it changes {format_size(found.change_rate)}/s and is copied at {format_size(found.copy_rate)}/s"
        if found.copy_rate
        else "nothing was copied yet"
    )
    return [
        f"A cut-over takes about {found.last_s:.0f} s for the last increment, {proof}{shutdown}: {rate}, "
        f"as measured in {found.increments} increments."
    ]
