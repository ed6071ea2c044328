"""`python -m vadpipe.lab.faults.schedules --count N --seed S`: backups, removals and a restore, in every order.

Each schedule takes a small repository and plays three backups, two removals (`forget`, then `prune`) and a restore,
all real code, whose operations on the store are interleaved one by one. Runs fail, are killed, and are stopped and
wake up after they were given up; clocks are wrong by years and jump. What each point has to hold is kept beside the
repository.

In the end every point that was published and not removed is there and holds its bytes, and after some more prunes
nothing is left that nobody needs.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from unittest.mock import patch

import click
import numpy as np
import trio
from trio.abc import ReceiveChannel

from pipeline import (
    CLUSTER,
    NO_FRAME,
    EncodedFrame,
    Extents,
    FramedSpan,
    IntegrityError,
    MachineId,
    MoverError,
    Unchanged,
    Zeros,
)
from pipeline.testing.fakes import FakeCapture, MemoryDisk
from vadpipe.repository import IntoRepository, Point, RepositoryReader, RestorePoint, open_repository, verify
from vadpipe.repository import runs as _runs
from vadpipe.repository.format import packs as _packs
from vadpipe.repository.format.config import Config, Origin, create_repository
from vadpipe.repository.format.objects import (
    INDEX,
    PACKS,
    POINTS,
    REMOVALS,
    RUNS,
    Objects,
    run_name,
    stem,
)
from vadpipe.repository.format.restore_point import read_points
from vadpipe.repository.format.ways import KeyFile, make_key_file
from vadpipe.repository.index import lookup as _index
from vadpipe.repository.index import merging as _merging
from vadpipe.repository.index.segments import ENDED_SIZE, FRAMES, Segment
from vadpipe.repository.into_repository import Items
from vadpipe.repository.maintenance import prune as _prune
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.reader import DiskContent, disk_of
from vadpipe.repository.store import RepositoryStore

from .interleaving import (
    Actor,
    Choice,
    Interleaving,
    Process,
    ScheduledBackend,
    by_priority,
    here,
    in_bursts,
    processes,
    uniform,
)

# Small enough that a backup takes a few milliseconds, and has several packs, segments and frames.
CLUSTERS: Final = 12
CAPACITY: Final = CLUSTERS * CLUSTER
PER_SPAN: Final = 4  # clusters in a span
PACK_SIZE: Final = 10_000  # of two frames or three
SEGMENT_ROWS: Final = 8
VALUES: Final = 14  # different clusters; 0 is zeros

KEY: Final = "scsi0:0"
BASES: Final = 64  # repositories that schedules of a seed begin with
LAST_PRUNES: Final = 4  # after so many nothing is left
DAY: Final = 86400.0
YEAR: Final = 365 * DAY

Clusters = tuple[int, ...]  # the content of a disk: the value of each cluster


@cache
def _block(value: int) -> bytes:
    return random.Random(value).randbytes(CLUSTER) if value else bytes(CLUSTER)


def _bytes(content: Clusters) -> bytes:
    return b"".join(map(_block, content))


DISK: Final = MemoryDisk(np.zeros(CAPACITY, np.uint8), key=KEY)  # only its key and its capacity count


class Failed(Exception):
    """A backup that fails: its VM vanished, for example, or somebody removed its previous point meanwhile."""


@dataclass
class Oracle:
    """What points have to hold, and what was done to them."""

    held: dict[str, Clusters] = field(default_factory=dict)  # of points that were published, or may be
    documents: dict[str, dict[str, bytes]] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)  # `publish` returned
    forgetting: set[str] = field(default_factory=set)  # `forget` was called
    forgotten: set[str] = field(default_factory=set)  # `forget` returned

    def copy(self) -> Oracle:
        return Oracle(
            dict(self.held),
            dict(self.documents),
            set(self.published),
            set(self.forgetting),
            set(self.forgotten),
        )


@dataclass(frozen=True)
class Base:
    """A repository that schedules begin with."""

    content: dict[str, tuple[bytes, float]]
    config: Config
    key: KeyFile | None
    oracle: Oracle


def origin_of(draw: random.Random, now: datetime | None = None) -> Origin:
    """Ids from `draw`, and a clock that begins at `now` and goes a second per look."""
    clock = [now or datetime(2026, 1, 1, tzinfo=UTC)]

    def look() -> datetime:
        clock[0] += timedelta(seconds=1)
        return clock[0]

    return Origin(random=draw.randbytes, now=look)


# --- backups, through the real sink ---


class _Items(ReceiveChannel[Items]):
    """A disk as the items that `IntoRepository` takes; chunks get their places as they are taken."""

    def __init__(self, items: Iterator[Items]) -> None:
        self._items = items

    async def receive(self) -> Items:
        for item in self._items:
            return item
        raise trio.EndOfChannel

    async def aclose(self) -> None: ...


def _items(point: Point, content: Clusters, parent: Clusters | None, *, whole: bool) -> Iterator[Items]:
    """The content. What is as in the parent is unchanged, unless the disk is read as a whole."""
    if parent == content and not whole:
        yield Unchanged(0, CAPACITY)
        return
    for low in range(0, CLUSTERS, PER_SPAN):
        places = range(low, low + PER_SPAN)
        same = [at for at in places if parent is not None and not whole and parent[at] == content[at]]
        data = [at for at in places if at not in same and content[at]]
        zeros = [at for at in places if at not in same and not content[at]]
        if data:
            yield _span(point, low, content, data, zeros)
        elif len(same) == PER_SPAN:
            yield Unchanged(low * CLUSTER, PER_SPAN * CLUSTER)
        elif len(zeros) == PER_SPAN:
            yield Zeros(low * CLUSTER, PER_SPAN * CLUSTER)
        else:
            for at in places:
                yield (Zeros if at in zeros else Unchanged)(at * CLUSTER, CLUSTER)


def _span(point: Point, low: int, content: Clusters, data: Sequence[int], zeros: Sequence[int]) -> FramedSpan:
    identity = point.identity
    names = b"".join(identity.digest(memoryview(_block(content[at]))) for at in data)
    digest = np.frombuffer(names, np.uint8).reshape(-1, 32)
    offset = np.array(data, np.int64) * CLUSTER
    length = np.full(len(data), CLUSTER, np.int64)
    placed = point.assign(digest, offset, length)
    frames: list[EncodedFrame] = []
    for frame in placed.frames:
        rows = frame.first + np.flatnonzero(~placed.known[frame.first : frame.last])
        payload = b"".join(_block(content[data[row]]) for row in rows.tolist())
        frames.append(EncodedFrame(frame.number, "raw", len(payload), payload, length[rows], digest[rows]))
    return FramedSpan(
        offset=low * CLUSTER,
        length=PER_SPAN * CLUSTER,
        identity=identity,
        data=Extents.of([(at * CLUSTER, CLUSTER) for at in data]),
        zeros=Extents.of([(at * CLUSTER, CLUSTER) for at in zeros]),
        chunk_offset=offset,
        chunk_length=length,
        chunk_frame=placed.frame,
        chunk_place=placed.place,
        known=placed.known,
        frames=frames,
    )


@dataclass(frozen=True)
class Backup:
    """One backup: of which VM, what changes, and whether it fails in the end."""

    machine: MachineId
    changes: tuple[tuple[int, int], ...]  # place and new value of clusters
    whole: bool = False  # everything is read
    fails: bool = False
    documents: tuple[int, ...] = ()

    @classmethod
    def drawn(cls, draw: random.Random, machine: int | None = None) -> Backup:
        number = draw.randrange(2) if machine is None else machine
        many = draw.choice([0, 1, 2, 4, CLUSTERS])
        return cls(
            MachineId(f"0000000{number}", f"vm{number}"),
            tuple(
                (draw.randrange(CLUSTERS), draw.randrange(VALUES) if draw.random() < 0.8 else 0)
                for _ in range(many)
            ),
            whole=draw.random() < 0.2,
            fails=draw.random() < 0.1,
            documents=tuple(draw.sample(range(1, 4), draw.choice([0, 0, 1, 2]))),
        )

    async def run(self, store: RepositoryStore, oracle: Oracle) -> None:
        """Publish a point. Raises Failed, MoverError."""
        async with store.begin(self.machine) as point:
            opened = point._opened
            stored = point.parent_of(DISK)
            parent = oracle.held[opened.parent.id] if opened.parent is not None and stored else None
            clusters = list(parent or (1, 2, 3, 4, 0, 0, 5, 6, 7, 7, 8, 9))
            for place, value in self.changes:
                clusters[place] = value
            content = tuple(clusters)
            items = _items(point, content, parent, whole=self.whole)
            try:
                receipt = await IntoRepository(point, DISK).run(_Items(items))
            except IntegrityError as error:
                if opened.parent is not None and opened.parent.id in oracle.forgetting:
                    raise Failed from error
                raise
            if self.fails:
                raise Failed
            documents = {f"{number}.txt": _block(number + 100)[:999] for number in self.documents}
            oracle.held[opened.run.id] = content
            oracle.documents[opened.run.id] = documents
            capture = FakeCapture(self.machine, [DISK], documents=documents)
            oracle.published.add(await point.publish(capture, [receipt], None))


# --- what is there ---


def restored(reader: RepositoryReader, point: RestorePoint) -> bytes:
    """The disk of a point."""
    content = DiskContent(reader, point, disk_of(point, KEY))
    found = bytearray(CAPACITY)
    for offset, digest in content.pages():
        page = content.page(offset, digest)
        rows = page.rows
        columns = (rows.offset, rows.count, rows.frame, rows.place)
        for at, count, frame, place in zip(*(column.tolist() for column in columns), strict=True):
            low, high = place * CLUSTER, (place + count) * CLUSTER
            identity = rows.frame_ids[frame].tobytes()
            data = content.frame(page.addresses[frame], at * CLUSTER, count * CLUSTER, identity)
            found[at * CLUSTER : (at + count) * CLUSTER] = data[low:high]
    return bytes(found)


def wrong_bytes(reader: RepositoryReader, point: RestorePoint, oracle: Oracle) -> list[str]:
    """What a restore of a point gives that it must not give. Raises IntegrityError."""
    if point.id not in oracle.held:
        return [f"point {point.id} was never published"]
    wrong: list[str] = []
    if restored(reader, point) != _bytes(oracle.held[point.id]):
        wrong.append(f"point {point.id} is restored with wrong bytes")
    for name, content in oracle.documents[point.id].items():
        if reader.read_document(point, name) != content:
            wrong.append(f"the document {name} of point {point.id} is wrong")
    return wrong


class Schedule:
    """One schedule, drawn from its seed. `wrong` says what it broke."""

    def __init__(self, base: Base, seed: str, *, keep_trace: bool = False) -> None:
        draw = self._draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._config = base.config
        self._key = base.key
        self._oracle = base.oracle.copy()
        self._backend = ScheduledBackend(base.content, draw.choice([1000, 1000, 1, 3]))
        self._backend.clock += draw.choice([0, 0, 8 * DAY, -3 * YEAR, 3 * YEAR])
        self._backend.on_put = self._check_put
        self._objects = Objects(self._backend)
        self._table: dict[int, Process] = {}
        self._beats = draw.random() < 0.2
        self._keep_trace = keep_trace
        self.trace: list[str] = []
        self._cleaned = False
        works = [(f"writer {number}", self._writer()) for number in range(3)]
        works += [(f"removal {number}", self._removal()) for number in range(2)]
        works.append(("reader", self._reader()))
        self._actors = [Actor(name, self._process(), work) for name, work in works]
        self._disturb()

    # Drawing

    def _process(self) -> Process:
        draw, pid = self._draw, 100 + len(self._table)
        process = Process(pid)
        match draw.randrange(6):
            case 0:
                process.host = "host b"
            case 1:
                process.namespace = "pid:[2]"
        self._table[pid] = process
        return process

    def _origin(self) -> Origin:
        skew = self._draw.choice([0.0, 0.0, 10.0, -3600.0, 3 * YEAR, -3 * YEAR])
        return origin_of(self._draw_of(), datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=skew))

    def _draw_of(self) -> random.Random:
        """A source of its own, so that what one actor draws does not hang on the others."""
        return random.Random(self._draw.randrange(1 << 60))

    def _writer(self) -> Callable[[], None]:
        store = RepositoryStore(self._objects, self._config, self._origin())
        backup = Backup.drawn(self._draw, 0 if self._draw.random() < 0.4 else None)
        return lambda: trio.run(backup.run, store, self._oracle)

    def _removal(self) -> Callable[[], None]:
        origin, draw = self._origin(), self._draw_of()
        share = draw.choice([0.0, 0.3, 0.6, 1.0])
        times = draw.choice([1, 2, 2])
        below = draw.choice([0.0, 0.5, 0.9])

        def work() -> None:
            points, _ = read_points(self._objects, self._config)
            going = [point for point in points if draw.random() < share]
            self._oracle.forgetting.update(point.id for point in going)
            forget(self._objects, self._config, origin, going)
            self._oracle.forgotten.update(point.id for point in going)
            for _ in range(times):
                _prune.prune(self._objects, self._config, origin, rewrite_below=below)
                self.counts["prunes"] += 1

        return work

    def _reader(self) -> Callable[[], None]:
        draw = self._draw_of()

        def work() -> None:
            reader = RepositoryReader(self._objects, self._config)
            if not reader.points:
                return
            point = draw.choice(reader.points)
            try:
                self.wrong += wrong_bytes(reader, point, self._oracle)
                self.counts["restored"] += 1
            except MoverError as error:
                if point.id not in self._oracle.forgetting:
                    self.wrong.append(f"the restore of point {point.id} fails: {error}")
                self.counts["restores of removed points that failed"] += 1

        return work

    def _disturb(self) -> None:
        """Draw who is killed, stopped or meets a fault, and how the clock of the store jumps."""
        draw, actors = self._draw, self._actors[:5]
        if draw.random() < 0.4:
            draw.choice(actors).killed_at = draw.randint(1, draw.choice([15, 40, 80]))
        if draw.random() < 0.4:
            draw.choice(actors).stopped_at = draw.randint(1, draw.choice([15, 40, 80]))
        if draw.random() < 0.1:
            actor = draw.choice(actors)
            actor.fault_at, actor.fault_has_effect = draw.randint(1, 60), draw.random() < 0.5

    def _choice(self) -> Choice:
        draw = self._draw_of()
        match draw.randrange(6):
            case 0:
                return uniform(draw)
            case 1 | 2:
                return in_bursts(draw, draw.choice([0.7, 0.9, 0.97]))
            case _:
                return by_priority(draw, self._actors, draw.choice([0, 1, 2, 3, 5]), 300)

    def _jump(self, seconds: float) -> None:
        self._backend.clock += seconds

    # Playing

    def play(self) -> None:
        """Play it, and check what it left."""
        maintenance = Process(1, host="host c")
        self._table[1] = maintenance
        with (
            processes(self._table, maintenance),
            patch.object(_runs, "BEAT_S", -1.0 if self._beats else 60.0),
        ):
            interleaving = Interleaving(self._actors, self._choice(), keep_trace=self._keep_trace)
            for _ in range(self._draw.choice([0, 0, 1, 2, 5])):
                jump = self._draw.choice([1.0, 8 * DAY, 3 * YEAR, -3 * YEAR])
                interleaving.at_step[self._draw.randint(1, 400)] = partial(self._jump, jump)
            self._backend.interleaving = interleaving
            try:
                interleaving.play()
            finally:
                self._backend.interleaving = None
            self.trace = interleaving.trace or []
            self.counts["operations"] += interleaving.step
            for actor in self._actors:
                actor.process.there = False
                self._judge(actor)
            try:
                self._check()
                if not self.wrong:
                    self._clean()
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.wrong.append(f"the check fails: {error!r} at {where.filename}:{where.lineno}")

    def _check_put(self, name: str) -> None:
        """Before an object is written: a point belongs to a run that was not given up."""
        actor = here()
        if actor is None or not name.startswith(POINTS) or not name.endswith(".json"):
            return
        run_id = stem(name)
        if run_id in actor.process.alive and run_name(run_id) not in self._backend.content():
            self.wrong.append(f"the run {run_id} was given up, and publishes its point")

    def _judge(self, actor: Actor) -> None:
        """Whether an actor may end as it did."""
        error = actor.error
        if error is None:
            self.counts["killed" if actor.dead else "ended"] += 1
            return
        errors = [error]
        if isinstance(error, BaseExceptionGroup):
            errors = list(error.exceptions)
        for each in errors:
            text = str(each)
            if isinstance(each, Failed):
                self.counts["failed"] += 1
            elif actor.fault_at and "The store d" in text:
                self.counts["fault of the store"] += 1
            elif "was given up by another one" in text:
                self.counts["given up"] += 1
            elif len(errors) > 1 and actor.fault_at and self._gave_up():
                self.counts["given up"] += 1  # it could not even look whether it was: its clean-up failed
            else:
                where = "".join(traceback.format_exception(each)[-3:]) if self._keep_trace else ""
                self.wrong.append(f"{actor.name} ends with {type(each).__name__}: {text}{where}")

    def _check(self) -> None:
        """Every point that has to be there is there, and holds its bytes."""
        trio.run(self._check_points, self._draw.random() < 0.2)

    async def _check_points(self, with_verify: bool) -> None:
        oracle, wrong = self._oracle, self.wrong
        async with open_repository(self._backend, unlock=() if self._key is None else (self._key,)) as reader:
            wrong += [f"damaged: {damage}" for damage in reader.damaged]
            there = {point.id for point in reader.points}
            wrong += [
                f"point {each} is lost" for each in sorted(oracle.published - oracle.forgetting - there)
            ]
            wrong += [
                f"point {each} was forgotten, and is there" for each in sorted(oracle.forgotten & there)
            ]
            for point in reader.points:
                try:
                    wrong += wrong_bytes(reader, point, oracle)
                except MoverError as error:
                    wrong.append(f"point {point.id} cannot be restored: {error}")
            if with_verify and not wrong:
                report = await verify(reader)
                for found in report.damages:
                    forgotten = any(each in found.problem for each in oracle.forgetting)
                    left = "no run is writing it" in found.problem and not self._cleaned
                    # A run may write a pack after it was given up; the last prunes delete it.
                    if not (forgotten and "was made from it" in found.problem) and not (
                        left and self._gave_up()
                    ):
                        wrong.append(f"verify: {found.file}: {found.problem}")

    def _gave_up(self) -> bool:
        """Whether a run was given up that may still have been alive."""
        found = self._backend.list(INDEX)
        return any(each.size == ENDED_SIZE for each in found)

    def _clean(self) -> None:
        """Some prunes later nothing is left that nobody needs."""
        # A store whose clock went back by years takes as long to give a run up; that is no part of what is checked.
        self._backend.clock = max(time for _, time in self._backend.content().values()) + 8 * DAY
        origin = origin_of(self._draw_of())
        for _ in range(LAST_PRUNES):
            done = _prune.prune(self._objects, self._config, origin)
            if not (done.deleted_packs or done.named_packs or done.waiting or self._backend.has(REMOVALS)):
                break
        self.wrong += self._left()
        self._cleaned = True
        trio.run(self._check_points, True)
        if self.wrong:
            self.wrong = [f"after the last prunes: {sentence}" for sentence in self.wrong]

    def _left(self) -> list[str]:
        backend, objects, config = self._backend, self._objects, self._config
        left = [found.name for room in (RUNS, REMOVALS) for found in backend.list(room)]
        reader = RepositoryReader(objects, config)
        needed = _needed(reader)
        live: set[str] = set()
        named: set[str] = set()
        for found in backend.list(INDEX):
            if found.size == ENDED_SIZE:
                continue
            segment = Segment(objects, found.name, config.id, config.sealing)
            packs = segment.packs()
            named.update(packs)
            for row in segment.column(FRAMES, 0, segment.frames):
                if row["id"].tobytes() in needed:
                    live.add(packs[row["pack"]])
        there = {stem(found.name) for found in backend.list(PACKS)}
        return [
            *(f"{name} is left" for name in left),
            *(f"pack {name} is in no segment" for name in sorted(there - named)),
            *(f"pack {name} is gone, and a segment names it" for name in sorted(named - there)),
            *(f"pack {name} holds nothing that a point needs" for name in sorted((there & named) - live)),
        ]


def _needed(reader: RepositoryReader) -> set[bytes]:
    """The ids of the frames that points need."""
    digests: set[bytes] = set()
    frames: set[bytes] = set()
    for point in reader.points:
        for document in point.documents.values():
            digests.update(map(bytes.fromhex, document.parts))
        for disk in point.disks:
            digests.add(bytes.fromhex(disk.pages))
            for offset, digest in DiskContent(reader, point, disk).pages():
                digests.add(digest)
                page = reader.page(point, disk, offset // CAPACITY, digest)
                frames.update(each.tobytes() for each in page.frame_ids)
    if digests:
        wanted = np.frombuffer(b"".join(sorted(digests)), np.uint8).reshape(-1, 32)
        number, _ = reader.index.lookup(wanted)
        found = reader.index.frame_ids(number[number != NO_FRAME])
        frames.update(each.tobytes() for each in found)
    return frames


# --- repositories to begin with ---


@cache
def _key_file() -> KeyFile:
    """It is read once, with the first repository that is sealed for it."""
    with tempfile.TemporaryDirectory() as directory:
        make_key_file(Path(directory, "key"))
        key = KeyFile(Path(directory, "key"))
        create_repository(ScheduledBackend({}), Origin(), key)
    return key


def made_base(seed: str) -> Base:
    """Two VMs with some points, some of them forgotten; in some a removal waits, or a run died."""
    draw = random.Random(seed)
    backend, oracle, origin = ScheduledBackend({}), Oracle(), origin_of(draw)
    key = _key_file() if draw.random() < 0.25 else None
    config = create_repository(backend, origin, key)
    objects, process = Objects(backend), Process(1)
    store = RepositoryStore(objects, config, origin)
    with processes({1: process}, process):
        for turn in range(draw.randint(1, 5)):
            backup = Backup.drawn(draw, turn % 2)
            try:
                trio.run(backup.run, store, oracle)
            except Failed:
                continue
            if draw.random() < 0.2:
                _forget_some(objects, config, origin, oracle, draw)
                if draw.random() < 0.7:
                    _prune.prune(objects, config, origin)
        if draw.random() < 0.3:  # a prune that died, or a backup that is older than all
            _runs.Run(objects, config, origin, config.directory("00000000"))
    return Base(backend.content(), config, key, oracle)


def _forget_some(
    objects: Objects, config: Config, origin: Origin, oracle: Oracle, draw: random.Random
) -> None:
    points = [point for point in read_points(objects, config)[0] if draw.random() < 0.4]
    oracle.forgetting.update(point.id for point in points)
    forget(objects, config, origin, points)
    oracle.forgotten.update(point.id for point in points)


@contextmanager
def small_files() -> Iterator[None]:
    """Packs and segments that are small enough for such disks; segments are merged from the third on."""
    with (
        patch.object(_packs, "PACK_SIZE", PACK_SIZE),
        patch.object(_index, "DRAFT_ROWS", SEGMENT_ROWS),
        patch.object(_merging, "MOST", 2),
        patch.object(_merging, "FEWEST", 2),
    ):
        yield


@cache
def _base(seed: int, number: int) -> Base:
    return made_base(f"{seed}/base {number}")


def make_bases(seed: int) -> None:
    """Make what the schedules of a seed begin with, once in a process."""
    with small_files():
        for number in range(BASES):
            _base(seed, number)


def play(seed: int, number: int, *, keep_trace: bool = False) -> Schedule:
    """Play schedule `number` of a seed."""
    draw = random.Random(f"{seed}/{number}")
    with small_files():
        schedule = Schedule(_base(seed, draw.randrange(BASES)), f"{seed}/{number}", keep_trace=keep_trace)
        schedule.play()
    return schedule


def play_some(seed: int, numbers: Sequence[int]) -> tuple[Counter[str], list[str]]:
    """Play some schedules in this process; what was done in them, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for number in numbers:
        schedule = play(seed, number)
        counts += schedule.counts
        counts["schedules"] += 1
        wrong += [f"schedule {number}: {sentence}" for sentence in schedule.wrong]
    return counts, wrong


def _play_some(job: tuple[int, Sequence[int]]) -> tuple[Counter[str], list[str]]:
    logging.disable()  # each schedule has runs that are given up, which is a warning
    return play_some(*job)


_AT_ONCE: Final = 50


def campaign(count: int, seed: int, workers: int) -> tuple[Counter[str], list[str]]:
    """Play `count` schedules; what was done in them, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    jobs = [(seed, range(low, min(low + _AT_ONCE, count))) for low in range(0, count, _AT_ONCE)]
    # The order of sets is part of a schedule.
    with patch.dict(os.environ, PYTHONHASHSEED="0"), get_context("spawn").Pool(workers) as pool:
        for done, found in pool.imap_unordered(_play_some, jobs):
            counts += done
            wrong += found
    return counts, wrong


@click.command()
@click.option("--count", default=1000, show_default=True, help="How many schedules to play.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the schedule with this number; its operations are printed.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, only: int | None, workers: int) -> None:
    """Interleave backups, removals and a restore, and check what they leave."""
    begun = time.monotonic()
    if only is None:
        counts, wrong = campaign(count, seed, workers)
    else:
        if os.environ.get("PYTHONHASHSEED") != "0":
            os.environ["PYTHONHASHSEED"] = "0"
            os.execv(sys.executable, [sys.executable, "-m", "vadpipe.lab.faults.schedules", *sys.argv[1:]])
        schedule = play(seed, only, keep_trace=True)
        counts, wrong = schedule.counts, schedule.wrong
        click.echo("\n".join(schedule.trace))
    click.echo(f"seed {seed}: {', '.join(f'{number} {name}' for name, number in sorted(counts.items()))}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong, {time.monotonic() - begun:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
