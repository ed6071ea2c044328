"""A restore as a job of a configuration: a point of a repository, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline import ConfigError, Pipeline, emit
from pipeline.composition import has_methods, readable
from pipeline.contracts import expect_trio
from pipeline.errors import failures
from pipeline.events import place, within
from pipeline.job import DiskWatch
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.store import Repository

from .restoring import Contents, RestoreReceipt, RestoreTarget, disks_of, restore

if TYPE_CHECKING:
    from vadpipe.vsphere.plan.values import RestorePlan

_NAMED = 5  # VMs that an error names


@dataclass(frozen=True)
class Restore:
    """Restores one point. Settings only, no I/O.

    Args:
        repository: The repository, or its place: a directory or `s3://bucket/prefix`.
        point: An id of a point, a unique prefix of one, or 'latest'.
        into: Where it goes: `NewVm(...)`, `RawDirectory(directory)`, or `Proof()` for a proof alone.
        path: How each disk travels into a VM: a function of the source and the open disk; None: as `into` says.
        vm: The VM of the point, by name or UUID; needed for 'latest' where the repository has several.
        disks: Keys of the disks to restore; empty: all.
        force: Replace what is there already, where `into` can.
        name: For messages.

    Raises:
        ConfigError: A setting is impossible.
    """

    repository: Repository | str | Path
    point: str
    _: KW_ONLY
    into: RestoreTarget
    path: Callable[[Any, Any], Pipeline[Any]] | None = None
    vm: str | None = None
    disks: Sequence[str] = ()
    force: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not has_methods(self.into, "open"):
            raise ConfigError(
                f"Restore(into={readable(self.into)}) is impossible: it has no open.",
                remedy="Give it for example NewVm(vcenter, writer=Vddk(libdir)).",
            )
        if self.path is not None and (not hasattr(self.into, "path") or isinstance(self.path, type)):
            raise ConfigError(
                f"Restore(path={readable(self.path)}) is impossible with {type(self.into).__name__}.",
                remedy="Leave path out, or give a function `path(source, disk)` and a target that takes one.",
            )
        if isinstance(self.disks, str):
            raise ConfigError("disks= must be a list.", remedy=f"Give a list: disks=[{self.disks!r}].")

    @property
    def title(self) -> str:
        return self.name or f"restore {self.vm or self.point}"

    @property
    def target(self) -> RestoreTarget:
        """`into` with `path`."""
        return self.into if self.path is None else replace(self.into, path=self.path)  # type: ignore[type-var]

    @property
    def source(self) -> Repository:
        """Where the point is."""
        return self.repository if isinstance(self.repository, Repository) else Repository(self.repository)

    @property
    def missing(self) -> Sequence[str]:
        """What a run would fail for now: a sentence when there is no repository."""
        return self.source.unreadable()

    def effects(self) -> Sequence[str]:
        """What a run would change outside, one sentence each."""
        told: Sequence[str] = getattr(self.into, "effects", tuple)()
        return [f"Reads point {self.point} of {self.source.name}.", *told]

    async def run(self, watch: DiskWatch | None = None) -> RestoreReceipt:
        """Restore the point.

        Args:
            watch: Called when a disk starts, with the disk and its report, which grows while it is written.

        Raises:
            MoverError, TransferFailed: Not all disks are restored; what was made of it is taken away again where
                the target can do so.
        """
        expect_trio()
        with within(run=place().get("run") or uuid4().hex[:12], job=self.title):
            emit("job started", machine=self.title)
            try:
                async with self.source.read() as reader:
                    found = resolve_point(reader, self.point, self.vm)
                    receipt = await restore(
                        reader, found, self.target, keys=self.disks, force=self.force, watch=watch
                    )
                if receipt.failures:
                    raise _failed(receipt.failures)
            except BaseException as exc:
                emit("job failed", job=self.title, errors=[failure.text for failure in failures(exc)])
                raise
            emit("job finished", job=self.title, **receipt.as_dict())
            return receipt

    async def plan(self) -> RestorePlan | None:
        """What would be made on the target's server; None for a target without one. Raises MoverError."""
        target: Any = self.target
        if not has_methods(target, "plan"):
            return None
        async with self.source.read() as reader:
            found = resolve_point(reader, self.point, self.vm)
            disks = disks_of(found, self.disks)
            plan: RestorePlan = await target.plan(Contents(reader, found, disks, self.force))
            return plan


def resolve_point(reader: RepositoryReader, name: str, vm: str | None) -> RestorePoint:
    """The point of that name. `latest` needs a VM where there are several, or it would depend on who ran last.

    Raises ConfigError.
    """
    machines = {
        point.machine.uuid: point.machine.name
        for point in reader.points
        if vm in (None, point.machine.name, point.machine.uuid)
    }
    if name == "latest" and len(machines) > 1:
        names = sorted(machines.values())
        more = ", ..." if len(names) > _NAMED else ""
        raise ConfigError(
            f"`latest` is ambiguous: there are points of {len(names)} VMs ({', '.join(names[:_NAMED])}{more}).",
            remedy="Say which VM: --vm NAME, or its UUID.",
        )
    return reader.resolve(name, machine=vm)


def _failed(found: Sequence[Exception]) -> Exception:
    return found[0] if len(found) == 1 else ExceptionGroup("The restore failed.", list(found))
