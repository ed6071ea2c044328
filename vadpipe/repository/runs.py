"""Runs: who is writing, and ending those that died.

A run says in `runs/` that it has not ended. What a dead run left is found by its id: packs that no index knows.
They are removed by whoever begins next. No lock is needed: a run that was given up wrongly finds that the name of
its segment or of its point is taken, and publishes nothing (docs/repository.md, "Runs that died").
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

from pipeline import IntegrityError, SinkError

from .backends.contract import ObjectExists, ObjectMissing, Stored
from .format.config import VERSION, Config, Origin, parse
from .format.objects import (
    ENDED,
    INDEX,
    LARGEST_SMALL,
    PACK_ID_SIZE,
    PACKS,
    REMOVALS,
    RUN_ID_SIZE,
    RUNS,
    Damage,
    Objects,
    point_name,
    run_name,
    segment_name,
    stem,
)
from .index.segments import ENDED_SIZE, Segment

log = logging.getLogger(__name__)

SILENT_S: Final = 7 * 24 * 3600.0  # a run that cannot be looked at is given up after this
BEAT_S: Final = 60.0

_alive: set[str] = set()  # the runs of this process that have not ended


class Run:
    """A run of this process that has not ended.

    Args:
        machine: Directory of the machine that it backs up; None: it maintains the repository.
        run_id: That of the point that it copies; by default a new one.
    """

    def __init__(
        self,
        objects: Objects,
        config: Config,
        origin: Origin,
        machine: str | None,
        run_id: str | None = None,
    ) -> None:
        """Begin it. Raises ObjectExists when `run_id` is that of a run that has not ended, SinkError."""
        self.id = run_id or origin.random(RUN_ID_SIZE).hex()
        self.segments = 0  # how many it has published: the number of the next one
        self.removals = 0  # likewise
        self.packs = 0  # the number of its first pack
        self._objects = objects
        self._config = config
        self._machine = machine
        self._beat, self._beaten = 0, time.monotonic()
        self._turn = threading.Lock()
        objects.backend.put(run_name(self.id), [self._content()])
        _alive.add(self.id)
        if run_id is not None:  # a copy of this point may have been begun before
            self.segments, self.removals, self.packs = (
                _next_number(objects, prefix)
                for prefix in (f"{INDEX}{run_id}", f"{REMOVALS}{run_id}", f"{PACKS}{run_id[:2]}/{run_id}")
            )

    def beat(self) -> None:
        """Say that the run lives; at most once in BEAT_S. For any thread. Raises SinkError."""
        with self._turn:
            if time.monotonic() - self._beaten <= BEAT_S:
                return
            self._beaten = time.monotonic()
            self._beat += 1
        if self._objects.exists(run_name(self.id)):  # what was given up stays given up
            self._objects.backend.replace(run_name(self.id), [self._content()])

    def end(self) -> None:
        """It has published everything, or wrote nothing. Raises SinkError."""
        self._objects.backend.delete([run_name(self.id)])
        self.abandon()

    def roll_back(self) -> None:
        """Remove what the run wrote and no index knows, and end it. Raises SinkError."""
        unknown = _unknown_packs(self._objects, self._config, self.id)
        if not self.was_given_up():
            self._objects.backend.delete(unknown)
        self.end()

    def was_given_up(self) -> bool:
        """Whether another run ended this one: then what it read of the repository may be gone. Raises SinkError."""
        for number in count(self.segments):
            name = segment_name(self.id, number)
            if not self._objects.exists(name):
                return False
            if _is_ended(self._objects, name):
                return True
        raise AssertionError

    def require_alive(self) -> None:
        """Before something is deleted: what was read until now was not removed by others. Raises SinkError."""
        if self.was_given_up():
            raise self.was_ended()

    def abandon(self) -> None:
        """Leave the rest to the run that begins next."""
        _alive.discard(self.id)

    def was_ended(self) -> SinkError:
        """What a run says that finds a name of its own taken."""
        return SinkError(
            f"The run {self.id} was given up by another one, and ended; nothing was published.",
            remedy="It was silent for too long: it was stopped, or it lost the connection to the "
            "repository. Run again.",
            path=self._objects.place(run_name(self.id)),
        )

    def _content(self) -> bytes:
        fields = {
            "version": VERSION,
            "kind": "maintenance" if self._machine is None else "backup",
            "machine": self._machine,
            **_this_process(),
            "beat": self._beat,
        }
        return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode(
            errors="surrogatepass"
        )


@contextmanager
def maintenance(objects: Objects, config: Config, origin: Origin) -> Iterator[Run]:
    """A run that maintains the repository. Ends the runs that died first.

    Raises:
        SinkError: It was given up by another one; also in the place of damage that this explains.
    """
    run = Run(objects, config, origin, None)
    try:
        try:
            end_dead_runs(objects, config, run)
            yield run
        except (ObjectExists, IntegrityError) as exc:
            run.roll_back()
            if isinstance(exc, IntegrityError) and not run.was_given_up():
                raise
            raise run.was_ended() from exc  # what it misses, others removed by then
        except BaseException:
            run.roll_back()
            raise
        run.end()
    finally:
        run.abandon()


@dataclass(frozen=True)
class _Seen:
    """A run as its object shows it; `fields` is None for one that says nothing."""

    id: str
    stored: Stored
    fields: Mapping[str, object] | None


def unended_runs(objects: Objects) -> list[str]:
    """The ids of the runs that have not ended, as far as `runs/` says."""
    return [stem(name) for name in objects.backend.names(RUNS) if name.endswith(".json")]


def has_ended(objects: Objects, run_id: str) -> bool:
    """Whether a run publishes no point any more: it ended, or it was ended."""
    seen = next(_seen(objects, objects.backend.list(run_name(run_id))), None)
    if seen is None:
        return True
    machine = _machine_of(seen)
    return machine is not None and objects.exists(point_name(machine, run_id))


def end_dead_runs(objects: Objects, config: Config, own: Run) -> list[str]:
    """End the runs that died, and remove what they left. Returns their ids.

    Args:
        own: A run that has just begun: the time of its object is now, by the clock of the store.

    Raises:
        SinkError
    """
    sweep = getattr(objects.backend, "sweep", None)
    if sweep is not None:
        sweep()
    ended: list[str] = []
    listed = {stem(found.name): found for found in objects.backend.list(RUNS)}
    now = listed[own.id].modified if own.id in listed else None
    others = [found for run_id, found in listed.items() if run_id != own.id and run_id not in _alive]
    for seen in list(_seen(objects, iter(others))):
        if not _died(seen.fields):
            if now is None or now - seen.stored.modified <= SILENT_S:
                log.info("the run %s of host %s has not ended", seen.id, (seen.fields or {}).get("name"))
                continue
            log.warning("the run %s was silent for %d days: it is given up", seen.id, SILENT_S // 86400)
            _take_names(objects, seen, own.id)
        unknown = _unknown_packs(objects, config, seen.id)
        own.require_alive()
        objects.backend.delete([*unknown, seen.stored.name])
        ended.append(seen.id)
    return ended


def _next_number(objects: Objects, prefix: str) -> int:
    """The first number of which no object of a run has a name."""
    digits = slice(2 * RUN_ID_SIZE, 2 * PACK_ID_SIZE)
    return 1 + max((int(stem(found.name)[digits], 16) for found in objects.backend.list(prefix)), default=-1)


def free_point(objects: Objects, machine: str, run_id: str) -> None:
    """Give the name of a point back that was taken to end the run of a copy. Raises SinkError.

    The run was ended, and the name of its next segment stays taken: it publishes nothing new.
    """
    name = point_name(machine, run_id)
    if _is_ended(objects, name):
        objects.backend.delete([name])


def _take_names(objects: Objects, seen: _Seen, by: str) -> None:
    """Take the names that a run needs next: that of its next segment, and that of its point."""
    content = ENDED + bytes.fromhex(by)
    for number in count():
        name = segment_name(seen.id, number)
        try:
            objects.backend.put(name, [content])
            break
        except ObjectExists:
            if _is_ended(objects, name):
                break
    if (machine := _machine_of(seen)) is not None:
        with suppress(ObjectExists):
            objects.backend.put(point_name(machine, seen.id), [content])


def _unknown_packs(objects: Objects, config: Config, run_id: str) -> list[str]:
    """The packs of a run that publishes no segment any more and that no segment names, whoever wrote that segment:
    those of the run may have been merged into others."""
    packs = [found.name for found in objects.packs_of(run_id)]
    if not packs:
        return []
    named: set[str] = set()
    for found in objects.backend.list(INDEX):
        if found.name.endswith(".idx") and found.size != ENDED_SIZE:
            try:
                named.update(Segment(objects, found.name, config.id, config.sealing).packs())
            except IntegrityError as error:
                log.info("packs of the run %s stay, as %s", run_id, error.problem)
                return []
    return [name for name in packs if stem(name) not in named]


def _is_ended(objects: Objects, name: str) -> bool:
    """Whether the name of a segment or a point was taken to end its run."""
    try:
        return objects.backend.read(name, 0, len(ENDED)) == ENDED
    except (ObjectMissing, Damage):
        return False


def _machine_of(seen: _Seen) -> str | None:
    machine = (seen.fields or {}).get("machine")
    return machine if isinstance(machine, str) else None


def _seen(objects: Objects, found: Iterator[Stored]) -> Iterator[_Seen]:
    for each in found:
        if not each.name.endswith(".json"):
            continue
        try:
            fields = parse(objects.read_whole(each.name, LARGEST_SMALL))
        except Damage:
            fields = None
        yield _Seen(stem(each.name), each, fields)


def _died(fields: Mapping[str, object] | None) -> bool:
    """Whether a run is dead for certain: it is one of this host, and its process is not there any more."""
    here = _this_process()
    if fields is None or any(fields.get(name) != here[name] for name in ("host", "name")):
        return False
    if fields.get("boot") != here["boot"]:
        return bool(here["boot"])
    if fields.get("pid_namespace") != here["pid_namespace"]:
        return False
    pid = fields.get("pid")
    if pid == here["pid"] and fields.get("started") == here["started"]:
        return True  # of this process, and not among those that are alive
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:  # no process has such a number
        return False
    return not _exists(pid) or _started(pid) != fields.get("started")


def _this_process() -> dict[str, object]:
    return {**_this_host(), "pid": os.getpid(), "started": _started(os.getpid())}


@cache
def _this_host() -> Mapping[str, object]:
    """Which machine this is, and since which boot. Copies of a machine may have one id, so the name counts too."""
    name = socket.gethostname()
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return {
        "host": _first_line("/etc/machine-id") or name,
        "name": name,
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": namespace,
    }


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where the system does not say.

    Source: proc(5), /proc/pid/stat, field 22; the second one is a name in parentheses that may hold anything.
    """
    fields = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _first_line(path: str) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
