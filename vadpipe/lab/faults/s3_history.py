"""`python -m vadpipe.lab.faults.s3_history --server moto --count N`: repositories in a bucket, with troubles.

Each history draws two VMs, whose disks live as in `histories`. Backups, `forget`, `prune` and copies into a
local repository run against an S3 server, with storms of 503, answers that are lost after the server did what it
was asked, and a few milliseconds of latency. Processes are killed at any moment, many of them in the middle of
an upload. What each point has to hold is kept beside the repositories. In the end every point of both is restored
and compared, both are verified, and two prunes must leave nothing behind.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import click
import numpy as np
import trio

from pipeline import BufferPool, Job, KiB, MiB, MoverError, SinkError
from pipeline.errors import leaves
from sinks.copying import copy_points
from vadpipe.kernels.codecs import Zstd
from vadpipe.lab.object_stores import ObjectStore, moto_server, radosgw
from vadpipe.repository import Repository
from vadpipe.repository.backends.cached import Cached
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.wrappers import Delayed, Fault, Faulty, Retrying
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.reader import RepositoryReader

from . import forked
from .expected import Expected, OracleDisk, OracleVm
from .history import path, scratch, small_files

HANGS_AFTER_S = 60.0
KILLED_WITHIN_S = 0.6  # a backup takes 0.3 s against moto
LATENCY_S = 0.002

_METHODS = ("put", "finish", "replace", "read", "size", "list", "delete")
_WRITING = ("put", "finish")
_LONGEST_STORM = 4  # calls in a row; six attempts are made
_DIED = "the process died"


def _storm() -> SinkError:
    error = SinkError("The server is overloaded (HTTP 503 SlowDown).", remedy="Run again later.", status=503)
    error.transient = True
    return error


class S3History:
    """One history, drawn from its seed.

    Args:
        place: URL of the repository, which is made.
        root: An empty directory for the copy and for copies of the index.
    """

    def __init__(self, place: str, root: Path, seed: str) -> None:
        self._place = place
        self._root = root
        self._draw = random.Random(seed)
        self._random = np.random.default_rng(self._draw.randrange(1 << 32))
        self._pool = BufferPool()
        self._vms = [OracleVm(f"vm{number}", f"0000000{number}", []) for number in range(2)]
        for vm in self._vms:
            for number in range(self._draw.randint(1, 2)):
                vm.disks.append(self._disk(f"scsi0:{number}"))
        self._expected = Expected()
        self.counts: Counter[str] = Counter()

    def play(self) -> list[str]:
        """Live through it; what is wrong, empty where nothing is."""
        _, wrong = self._run("made", self._make, troubles=False)
        turns = [self._back_up, self._back_up, self._back_up, self._prune, self._forget, self._copy]
        for _ in range(self._draw.randint(4, 8)):
            self._live()
            wrong = wrong or self._draw.choice(turns)()
        for vm in self._vms:
            wrong = wrong or self._back_up(vm, troubles=False)
        wrong = wrong or self._copy(troubles=False)
        for _ in range(2):
            wrong = wrong or self._prune(troubles=False)
        if not wrong:
            found, wrong = self._run("checked", lambda: trio.run(self._check), troubles=False)
            wrong = wrong or cast("list[str]", found)
        return wrong

    def _disk(self, key: str) -> OracleDisk:
        capacity = self._draw.choice([MiB // 2, MiB, MiB + 512, 700 * KiB + 1536])
        disk = OracleDisk(key, np.zeros(capacity, dtype=np.uint8), self._pool)
        self._write(disk)
        return disk

    def _write(self, disk: OracleDisk) -> None:
        length = self._draw.choice([512, 4 * KiB, 64 * KiB, 300 * KiB])
        data = self._random.integers(0, 256, length, dtype=np.uint8)
        disk.write(self._draw.randrange(disk.capacity) // 512 * 512, data * self._draw.randint(0, 1))

    def _live(self) -> None:
        for vm in self._vms:
            for disk in vm.disks:
                for _ in range(self._draw.randint(0, 3)):
                    self._write(disk)
                if self._draw.random() < 0.1:
                    disk.epoch += 1

    # What happens, each in a process of its own.

    def _run(
        self, name: str, command: Callable[[], object], *, troubles: bool = True
    ) -> tuple[object, list[str]]:
        """What a command returns, None where it was killed or failed as planned; and what is wrong."""
        deadline = HANGS_AFTER_S
        if troubles and self._draw.random() < 0.3:
            deadline = self._draw.random() * KILLED_WITHIN_S
        try:
            told = forked.call(partial(_told, command), deadline)
        except forked.Hung as exc:
            self.counts[f"{name}, killed at some moment"] += 1
            return None, [] if deadline < HANGS_AFTER_S else [f"{name}: it hangs: {exc}"]
        except RuntimeError as exc:
            if troubles and _DIED in str(exc):
                self.counts[f"{name}, killed in an upload"] += 1
                return None, []
            return None, [f"{name}: it fails: {exc}"]
        if "failed" in told:
            if troubles and told["transient"]:
                self.counts[f"{name}, given up after a storm"] += 1
                return None, []
            return None, [f"{name}: it fails: {told['failed']}"]
        self.counts[name] += 1
        return told["result"], []

    @contextmanager
    def _opened(self, faults: list[Fault]) -> Iterator[Repository]:
        backend = self._backend(faults)
        try:
            yield Repository(backend)
        finally:
            backend.close()

    def _backend(self, faults: list[Fault]) -> Backend:
        """As `backend_at` makes it, with the troubles between the server and what repeats."""
        from vadpipe.repository.backends.s3 import S3Backend
        from vadpipe.repository.backends.s3_location import S3Location

        server = Delayed(S3Backend(S3Location.parse(self._place)), LATENCY_S)
        patient = Retrying(Faulty(server, faults), sleep=lambda seconds: None)
        return Cached(patient, self._root / "cache")

    def _troubles(self) -> list[Fault]:
        """Storms and lost answers; in some, the end of the process in the middle of an upload."""
        faults: list[Fault] = []
        for method in _METHODS:
            if self._draw.random() < 0.4:
                first = self._draw.randint(1, 6)
                endless = self._draw.random() < 0.05
                last = first + (1000 if endless else self._draw.randint(1, _LONGEST_STORM))
                faults += [Fault(method, call, error=_storm) for call in range(first, last)]
            faults += [
                Fault(method, self._draw.randint(1, 12), after=True)
                for _ in range(self._draw.choice([0, 0, 1, 2]))
            ]
        if self._draw.random() < 0.35:
            soon = partial(_kill_soon, self._draw.random() * 0.01)
            kill: Callable[[], Exception] = soon if self._draw.random() < 0.5 else _kill
            after = self._draw.random() < 0.3
            faults.append(
                Fault(self._draw.choice(_WRITING), self._draw.randint(1, 4), after=after, error=kill)
            )
        return faults

    def _make(self) -> None:
        with self._opened([]) as repository:
            repository.init()
        Repository(self._root / "copy").init()

    def _back_up(self, vm: OracleVm | None = None, *, troubles: bool = True) -> list[str]:
        machine = vm or self._draw.choice(self._vms)
        faults = self._troubles() if troubles else []

        async def back_up() -> str:
            with self._opened(faults) as repository:
                return (await Job(machine, path, repository, disks_at_once=2).run()).point

        point, wrong = self._run("backed up", lambda: trio.run(back_up), troubles=troubles)
        self._expected.backed_up(None if point is None else str(point), machine.held())
        return wrong

    def _prune(self, *, troubles: bool = True) -> list[str]:
        faults = self._troubles() if troubles else []

        def pruned() -> None:
            with (
                self._opened(faults) as repository,
                repository.open_for_maintenance() as (objects, config),
            ):
                prune(objects, config, repository.origin)

        return self._run("pruned", pruned, troubles=troubles)[1]

    def _forget(self) -> list[str]:
        if not self._expected.published:
            return []
        point = self._draw.choice(sorted(self._expected.published))
        faults = self._troubles()

        def removed() -> bool:
            with self._opened(faults) as repository:
                reader = RepositoryReader.of(repository.backend())
                forget(
                    reader.objects,
                    reader.config,
                    repository.origin,
                    [each for each in reader.points if each.id == point],
                )
            return True

        done, wrong = self._run("forgotten", removed)
        self._expected.forgotten([point], surely=done is not None)
        return wrong

    def _copy(self, *, troubles: bool = True) -> list[str]:
        faults = self._troubles() if troubles else []

        async def copy() -> list[str]:
            with self._opened(faults) as repository:
                receipt = await copy_points(repository, Repository(self._root / "copy"), codec=Zstd(level=-1))
                return [*receipt.copied, *receipt.present]

        there, wrong = self._run("copied", lambda: trio.run(copy), troubles=troubles)
        if there is not None:
            wrong += self._expected.copied_over(cast("list[str]", there))
        return wrong

    async def _check(self) -> list[str]:
        with self._opened([]) as repository:
            wrong = await self._expected.compare(repository, copy=False)
            names = [found.name for found in repository.backend().list("")]
            wrong += [
                f"left behind: {name}" for name in names if name.startswith(("runs/", "removals/", "probe-"))
            ]
        copied = await self._expected.compare(Repository(self._root / "copy"), copy=True)
        return [*wrong, *(f"copy: {sentence}" for sentence in copied)]


def _told(command: Callable[[], object]) -> dict[str, object]:
    """What a command returns, or how it failed; any other exception is a defect."""
    try:
        return {"result": command()}
    except (MoverError, BaseExceptionGroup) as exc:
        found = leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
        if not all(isinstance(each, MoverError) for each in found):
            raise
        transient = any(isinstance(each, SinkError) and each.transient for each in found)
        return {"failed": "; ".join(map(str, found)), "transient": transient}


def _kill() -> Exception:
    os.kill(os.getpid(), signal.SIGKILL)
    return _storm()


def _kill_soon(wait_s: float) -> Exception:
    """The request is made again, and the process ends while it is."""
    threading.Timer(wait_s, _kill).start()
    return _storm()


def _play(job: tuple[int, int, str]) -> tuple[int, Counter[str], list[str]]:
    seed, number, place = job
    small_files()
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        history = S3History(place, Path(directory), f"{seed}/{number}")
        wrong = history.play()
        return number, history.counts, wrong


def campaign(
    server: ObjectStore, count: int, seed: int, workers: int, only: int | None = None
) -> tuple[Counter[str], list[str]]:
    """Play `count` histories, or the one with the number `only`; what was done in them, and what is wrong."""
    os.environ.update(server.environment)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    before, mark, options = server.make_bucket(f"histories-{os.getpid()}").partition("?")
    jobs = [
        (seed, number, f"{before}/{number}{mark}{options}")
        for number in (range(count) if only is None else [only])
    ]
    with get_context("spawn").Pool(workers) as pool:
        for number, done, found in pool.imap_unordered(_play, jobs):
            counts += done
            counts["histories"] += 1
            wrong += [f"history {number}: {sentence}" for sentence in found]
    return counts, wrong


@click.command()
@click.option(
    "--server",
    default="moto",
    show_default=True,
    metavar="moto|ceph|URL",
    help="The S3 server; one by its URL takes the lab's keys.",
)
@click.option("--count", default=100, show_default=True, help="How many histories to play.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the history with this number.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(server: str, count: int, seed: int, only: int | None, workers: int) -> None:
    """Back up VMs into a bucket, with troubles and kills, and compare every point with what the VM held."""
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        starts = {"moto": moto_server, "ceph": radosgw}
        if server in starts:
            place = Path(directory, server)
            place.mkdir()
            with starts[server](place) as store:
                counts, wrong = campaign(store, count, seed, workers, only)
        else:
            counts, wrong = campaign(ObjectStore(server), count, seed, workers, only)
    click.echo(f"seed {seed}: {', '.join(f'{number} {name}' for name, number in sorted(counts.items()))}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
