"""The repository as its users see it: back up, read back, find points, and be told what is wrong."""

import os
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    CLUSTER,
    NO_FRAME,
    SPAN,
    ChangedAreas,
    ConfigError,
    ContractError,
    DiskReceipt,
    Evidence,
    Extents,
    Job,
    KiB,
    MachineId,
    MiB,
    SinkError,
    TiB,
    TransferFailed,
    Unchanged,
    Zeros,
)
from pipeline.testing.checks import check_sink, check_source
from pipeline.testing.fakes import FakeCapture, FakeMachine, Items
from sinks import NullSink
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    POOL,
    MemoryDisk,
    backup,
    disk_of,
    framed,
    full_path,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import restore_point, verify
from vadpipe.repository.config import Origin, read_config
from vadpipe.repository.disk_map import PAGE
from vadpipe.repository.files import Layout
from vadpipe.repository.into_repository import IntoRepository
from vadpipe.repository.reader import ReadPoint, open_repository
from vadpipe.repository.restore_point import RestorePoint, in_order
from vadpipe.repository.store import Repository, RepositoryStore


def mixed_content(capacity, seed=1):
    """Random, repeated, zero and sparse regions."""
    content = random_bytes(seed, capacity)
    content[: 256 * KiB] = content[512 * KiB : 768 * KiB]
    content[MiB : 2 * MiB] = 0
    content[capacity // 2 : capacity // 2 + 100 * KiB] = 0
    return content


@pytest.mark.parametrize("tail", [0, 512, 3 * 512, CLUSTER - 512])
async def test_what_was_stored_is_read_back(repository, tail):
    disk = MemoryDisk(mixed_content(5 * MiB + tail))
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[0]), disk.content)


async def test_a_tail_shared_by_two_disks_is_stored_once(repository):
    content = random_bytes(1, 64 * KiB + 512)
    disks = [MemoryDisk(content.copy(), key=key) for key in ("a", "b")]
    await backup(repository, disks)
    async with open_repository(repository.path) as reader:
        (point,) = reader.points
        assert point.disks[0].receipt.root == point.disks[1].receipt.root
        assert sorted(disk.receipt.new for disk in point.disks) == [0, len(content)]
        for key in ("a", "b"):
            assert np.array_equal(await restore(reader, point, key), content)


async def test_an_empty_disk_and_a_disk_of_zeros_are_read_back(repository):
    disks = [MemoryDisk(np.zeros(size, np.uint8), key=str(size)) for size in (0, 512, 9 * MiB)]
    await backup(repository, disks)
    async with open_repository(repository.path) as reader:
        for disk in disks:
            assert np.array_equal(await restore(reader, reader.points[0], disk.key), disk.content)
        assert (await verify(reader)).damages == ()


async def test_the_same_data_again_costs_nothing_but_the_point(repository):
    disk = MemoryDisk(mixed_content(3 * MiB))
    await backup(repository, [disk])
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:
        first, second = (point.disks[0].receipt for point in reader.points)
    assert (second.new, second.stored, second.root) == (0, 0, first.root)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_incremental_points_equal_a_model(repository, seed):
    random = np.random.default_rng(seed)
    disk = MemoryDisk(mixed_content(6 * MiB + 1024, seed))
    states = []
    for _ in range(5):
        await backup(repository, [disk], incremental_path)
        states.append(disk.content.copy())
        for _ in range(int(random.integers(6))):
            offset = int(random.integers(disk.capacity))
            length = min(int(random.integers(1, 300 * KiB)), disk.capacity - offset)
            kind = random.integers(3)
            source = int(random.integers(disk.capacity - length + 1))
            data = {
                0: np.zeros(length, np.uint8),
                1: disk.content[source : source + length].copy(),
                2: random_bytes(int(random.integers(1 << 30)), length),
            }[int(kind)]
            disk.write(offset, data)
    async with open_repository(repository.path) as reader:
        assert [point.previous for point in reader.points[1:]] == [point.id for point in reader.points[:-1]]
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
        assert (await verify(reader)).damages == ()


async def test_a_changed_range_that_became_zero_overwrites(repository):
    disk = MemoryDisk(random_bytes(1, MiB))
    await backup(repository, [disk], incremental_path)
    disk.write(128 * KiB, np.zeros(64 * KiB, np.uint8))
    await backup(repository, [disk], incremental_path)
    async with open_repository(repository.path) as reader:
        assert np.array_equal(await restore(reader, reader.points[1]), disk.content)
        assert reader.points[1].disks[0].receipt.new == 0


@pytest.mark.slow
async def test_unchanged_pages_are_shared_without_being_loaded(repository):
    """A thin disk of 4 TiB with a write in three pages; then one page changes, and one changes back."""
    wide = _Wide(4 * TiB, [0, 7 * PAGE, 900 * PAGE])
    for place in wide.places:
        wide.fill(place, seed=place)
    await backup(repository, [wide], incremental_path)
    wide.fill(7 * PAGE, seed=1)
    await backup(repository, [wide], incremental_path)
    wide.fill(7 * PAGE, seed=7 * PAGE)
    await backup(repository, [wide], incremental_path)
    async with open_repository(repository.path) as reader:
        pages = [reader.page_digests(point, point.disks[0]) for point in reader.points]
        receipts = [point.disks[0].receipt for point in reader.points]
    used = np.flatnonzero(pages[0].any(axis=1)).tolist()
    assert used == [0, 7, 900]
    assert np.flatnonzero((pages[0] != pages[1]).any(axis=1)).tolist() == [7]
    assert receipts[1].unchanged == wide.capacity - 64 * KiB
    assert receipts[2].root == receipts[0].root
    assert receipts[2].stored == 0


class _Wide:
    """A disk of any size that holds 64 KiB at each of a few places."""

    def __init__(self, capacity, places):
        self.key, self.label, self.capacity, self.pool = "wide", "wide", capacity, POOL
        self.places = places
        self._at = {}
        self._changed = []

    @property
    def change_id(self):
        return str(len(self._changed))

    def fill(self, place, seed):
        self._at[place] = random_bytes(seed, 64 * KiB)
        self._changed.append((place, 64 * KiB))

    async def allocated(self, offset, length):
        await trio.lowlevel.checkpoint()
        return Extents.of((place, 64 * KiB) for place in self._at).within(offset, length)

    async def changed(self, since, offset):
        await trio.lowlevel.checkpoint()
        found = Extents.of(self._changed[int(since) :])
        return ChangedAreas(offset, self.capacity - offset, found.within(offset, self.capacity - offset))

    async def read(self, buffer, offset, wanted):
        await trio.lowlevel.checkpoint()
        for start, length in wanted:
            buffer.array[start - offset : start - offset + length] = self._at[start][:length]


# --- what a point knows, and finding points ---


async def test_a_point_keeps_what_was_asked_and_found(repository):
    disk = MemoryDisk(random_bytes(1, 64 * KiB))
    documents = {"manifest.zip": random_bytes(2, 100_000).tobytes(), "empty": b""}
    evidence = Evidence("file-system", False, ["a writer failed"], {"writers": 3}, documents)
    async with repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        capture = FakeCapture(MACHINE, [disk], "application", {"cpus": 2, "name": "Büro"})
        identity = await point.publish(capture, [receipt], evidence)
    async with open_repository(repository.path) as reader:
        found = reader.resolve(identity)
        assert (found.machine, found.previous) == (MACHINE, None)
        assert found.configuration == {"cpus": 2, "name": "Büro"}
        assert (found.quiescing.asked, found.quiescing.reached) == ("application", "file-system")
        assert (found.quiescing.reasons, found.quiescing.verdict) == (("a writer failed",), {"writers": 3})
        assert found.disks[0].receipt == receipt
        assert {name: await reader.document(found, name) for name in found.documents} == documents
        with pytest.raises(ConfigError, match=r"no document 'other'.*empty, manifest\.zip"):
            await reader.document(found, "other")
        assert (await verify(reader)).damages == ()


@pytest.mark.slow
async def test_points_are_found_by_id_prefix_and_latest(repository):
    disk = MemoryDisk(random_bytes(1, 64 * KiB))
    ids = [await backup(repository, [disk]) for _ in range(18)]  # two of 18 begin with the same of 16 digits
    async with open_repository(repository.path) as reader:
        assert [point.id for point in reader.points] == ids
        assert reader.resolve("latest").id == ids[-1]
        assert reader.resolve("latest", machine="fake").id == ids[-1]
        assert reader.resolve(ids[3][:12]).id == ids[3]
        common = next(i[0] for i in ids if sum(other[0] == i[0] for other in ids) > 1)
        with pytest.raises(ConfigError, match=f"begin with '{common}': {common}"):
            reader.resolve(common)
        with pytest.raises(ConfigError, match="No restore point begins with 'xyz'"):
            reader.resolve("xyz")
        with pytest.raises(ConfigError, match="no restore points of VM 'other'"):
            reader.resolve("latest", machine="other")


async def test_a_uuid_names_no_other_directory(repository):
    disk = MemoryDisk(random_bytes(1, 4096))
    hostile = MachineId("../..", "evil")
    async with repository.open() as store, store.begin(hostile) as point:
        receipt = await full_path(disk, point).run()
        await point.publish(FakeCapture(hostile, [disk]), [receipt], None)
    assert Layout(repository.path).point("..", "p").parent.parent == Layout(repository.path).points
    async with open_repository(repository.path) as reader:
        assert reader.points[0].machine == hostile


def test_settings_do_no_io_and_show_no_key(tmp_path):
    repository = Repository(tmp_path / "nowhere")
    point = repository.planned()
    disk = MemoryDisk(np.zeros(4096, np.uint8))
    assert point.previous(disk) is None
    path = full_path(disk, point)
    assert "IntoRepository(point=Point(" in repr(path)
    assert point.key.hex() not in repr(path)
    assert repr(repository) == f"Repository('{tmp_path / 'nowhere'}')"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ContractError, match="only planned"):
        point.assign(*[np.zeros((1, 32), np.uint8)] * 3)


class Clock:
    """An origin whose clock is set by the test."""

    def __init__(self):
        self.hour = 12

    def repository(self, path):
        return Repository(path, origin=Origin(now=lambda: datetime(2025, 1, 1, self.hour, tzinfo=UTC)))


async def test_a_clock_that_goes_back_does_not_change_the_order(repository, caplog):
    clock, disk = Clock(), MemoryDisk(random_bytes(1, 64 * KiB))
    ids = []
    for clock.hour in (12, 10, 11, 13):
        ids.append(await backup(clock.repository(repository.path), [disk], incremental_path))
        disk.write(0, random_bytes(len(ids), CLUSTER))
    async with open_repository(repository.path) as reader:
        assert [point.id for point in reader.points] == ids
        assert [point.previous for point in reader.points] == [None, *ids[:-1]]
        assert [point.created[11:] for point in reader.points] == [
            "12:00:00.000000+00:00",
            "12:00:00.000001+00:00",
            "12:00:00.000002+00:00",
            "13:00:00.000000+00:00",
        ]
        assert reader.resolve("latest").id == ids[-1]
    assert caplog.text.count("is behind the previous point's time") == 2


async def test_a_clock_that_went_back_is_reported(repository):
    clock = Clock()
    await backup(clock.repository(repository.path), [disk_of(4096)])
    clock.hour = 3
    async with clock.repository(repository.path).open() as store, store.begin(MACHINE) as point:
        await point.publish(FakeCapture(MACHINE, []), [], None)
    (remark,) = point.remarks
    assert "The clock of this machine (2025-01-01T03:00" in remark
    receipt = await Job(FakeMachine([disk_of(4096)]), full_path, clock.repository(repository.path)).run()
    assert [remark[:25] for remark in receipt.remarks] == ["The clock of this machine"]


async def test_the_newest_of_many_points_is_found_without_reading_them_all(repository, monkeypatch):
    monkeypatch.setattr(restore_point, "NOTED_FROM", 3)
    disk = disk_of(4096)
    ids = [await backup(repository, [disk]) for _ in range(4)]
    directory = repository.path / "points" / MACHINE.uuid
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*(f"{i}.json" for i in ids), "newest"]
    )
    keys = read_config(Layout(repository.path)).keys
    read = []
    real = restore_point.read_point
    monkeypatch.setattr(
        restore_point, "read_point", lambda path, keys: (read.append(path), real(path, keys))[1]
    )

    def newest():
        read.clear()
        found = restore_point.PointsOf(Layout(repository.path), MACHINE, keys).newest()
        return found.id, len(read)

    assert newest() == (ids[-1], 1)
    note = (directory / "newest").read_bytes()
    for altered in (note.replace(ids[-1].encode(), ids[0].encode()), b"", b"x" * 9999):
        (directory / "newest").write_bytes(altered)
        assert newest() == (ids[-1], 4)
    (directory / "newest").write_bytes(note)
    (directory / f"{ids[-1]}.json").unlink()
    assert newest() == (ids[-2], 3)


async def test_two_points_at_once_are_not_noted_wrongly(repository, monkeypatch):
    monkeypatch.setattr(restore_point, "NOTED_FROM", 1)
    async with repository.open() as store, store.begin(MACHINE) as one, store.begin(MACHINE) as two:
        first = await one.publish(FakeCapture(MACHINE, []), [], None)
        second = await two.publish(FakeCapture(MACHINE, []), [], None)
    assert not (repository.path / "points" / MACHINE.uuid / "newest").exists()
    third = await backup(repository, [disk_of(4096)])
    async with open_repository(repository.path) as reader:
        assert [point.id for point in reader.points] == [first, second, third]
        assert reader.points[-1].previous == second


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 9)), max_size=10))
def test_points_of_older_versions_are_ordered_by_chain(made):
    """Their times may be before their predecessor's; forged ones may even go round in a circle."""
    points = [
        RestorePoint(
            f"{number}", MACHINE, f"{hour}", None if previous < 0 else f"{previous}", (), None, {}, {}
        )
        for number, (hour, previous) in enumerate(made)
    ]
    ordered = in_order(points)
    assert sorted(point.id for point in ordered) == sorted(point.id for point in points)
    at = {point.id: number for number, point in enumerate(ordered)}
    straight = all(point.previous is None or int(point.previous) < int(point.id) for point in points)
    if straight:
        assert all(at[point.previous] < at[point.id] for point in points if point.previous in at)


# --- what is not a repository ---


def test_an_init_that_was_broken_off_can_be_repeated(tmp_path, monkeypatch):
    """At every step: the disk is full, the process is killed, and so on."""
    for step in range(30):
        repository = Repository(tmp_path / f"{step}")
        done = 0

        def counted(call, step=step):
            def fails(*arguments, **named):
                nonlocal done
                done += 1
                if done > step:
                    raise OSError(28, "No space left on device")
                return call(*arguments, **named)

            return fails

        with monkeypatch.context() as patched:
            for name in ("mkdir", "fsync", "writev", "link", "unlink"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                repository.init()
                break
            except (SinkError, OSError):
                pass
        if not (repository.path / "config.json").exists():
            repository.init()
        trio.run(backup, repository, [MemoryDisk(random_bytes(1, CLUSTER))])
    assert 10 < step < 29


def test_init_takes_nothing_that_is_not_its_own(tmp_path):
    for name in ("packs", "tmp"):
        place = tmp_path / name / name
        place.mkdir(parents=True)
        (place / "file").touch()
        with pytest.raises(SinkError, match="not an empty directory"):
            Repository(place.parent).init()
        assert (place / "file").exists()


def test_init_refuses_what_is_there(tmp_path, repository):
    with pytest.raises(SinkError, match="is a repository"):
        repository.init()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SinkError, match="not an empty directory"):
        Repository(tmp_path / "full").init()
    (tmp_path / "plain").touch()
    with pytest.raises(SinkError):
        Repository(tmp_path / "plain" / "below").init()
    assert (repository.path / "config.json").stat().st_mode & 0o777 == 0o600


async def test_a_directory_that_is_no_repository_is_refused(tmp_path, repository):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SinkError, match=r"not a repository.*vadpipe init"):
            async with Repository(place).open():
                pass
        with pytest.raises(SinkError, match="not a repository"):
            async with open_repository(place):
                pass
    config = repository.path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(SinkError, match=r"format version 2.*newer"):
        async with open_repository(repository.path):
            pass
    config.write_text('{"format": "other"}')
    with pytest.raises(SinkError, match="another program"):
        async with open_repository(repository.path):
            pass


# --- the rules of the sink ---


@pytest.fixture
async def point(repository):
    async with repository.open() as store, store.begin(MACHINE) as point:
        yield point


@pytest.mark.slow
async def test_the_sink_keeps_the_rules(repository, point):
    seeds = iter(range(0, 10**9, 10**4))

    def items():
        return [framed(point, 0, random_bytes(next(seeds), MiB)), Zeros(MiB, 3 * MiB)]

    def published():
        return sorted(repository.path.glob("points/*/*"))

    disk = disk_of(4 * MiB)
    await check_sink(
        lambda: IntoRepository(point, disk), items, published=published, view=lambda r: replace(r, root="")
    )


@pytest.mark.slow
async def test_the_source_keeps_the_rules(repository):
    disk = MemoryDisk(mixed_content(3 * SPAN + 512))
    await backup(repository, [disk])
    async with open_repository(repository.path) as reader:

        def view(item):
            if isinstance(item, Zeros):
                return item
            return item.offset, item.data, item.bytes_of(*next(iter(item.data))).tobytes()

        await check_source(lambda: ReadPoint(reader, reader.points[0], disk.key), view=view, least=4)
        with pytest.raises(TransferFailed) as failed:
            await (ReadPoint(reader, reader.points[0], "other") | NullSink()).run()
    assert failed.group_contains(ConfigError, match="has no disk 'other'")


def moved(span, **changes):
    return replace(span, **changes)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: [Zeros(0, 4096)], "the input ends at 4096"),
        (lambda p: [Zeros(4096, MiB - 4096)], "came where 0 was due"),
        (lambda p: [Zeros(0, 8192), Zeros(4096, MiB - 4096)], "came where 8192 was due"),
        (lambda p: [Zeros(0, MiB + 4096)], "came where 0 was due"),
        (lambda p: [Zeros(0, 512), Zeros(512, MiB - 512)], "no whole number of clusters"),
        (lambda p: [Unchanged(0, MiB)], "no previous point"),
        (lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), data=Extents.empty())], "no previous point"),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), zeros=Extents.whole(4096))],
            "overlap",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), data=Extents.whole(2 * MiB))],
            "over its own borders",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_offset=np.arange(16) * 65536 + 4096)],
            "not exactly the data",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_place=np.arange(16) * 65536 + 512)],
            "no whole clusters",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_frame=np.full(16, NO_FRAME))],
            "have no frame",
        ),
        (
            lambda p: [moved(framed(p, 0, random_bytes(1, MiB)), chunk_frame=np.full(16, 5, np.uint64))],
            "no frame with the number",
        ),
    ],
)
async def test_a_disk_that_is_not_covered_exactly_once_is_refused(point, make, problem):
    with pytest.raises(TransferFailed) as failed:
        await (Items(make(point)) | IntoRepository(point, disk_of(MiB))).run()
    assert failed.group_contains(ContractError, match=problem)


def altered_frame(point, **changes):
    span = framed(point, 0, random_bytes(1, MiB))
    return replace(span, frames=[replace(span.frames[0], **changes)])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: altered_frame(p, number=77), "was not promised"),
        (lambda p: altered_frame(p, length=MiB - 1), "does not decode what it encoded"),
        (
            lambda p: altered_frame(p, digest=random_bytes(9, 512).reshape(16, 32)),
            "digests of its chunks are not",
        ),
        (lambda p: altered_frame(p, codec="lzma"), "does not know the codec 'lzma'"),
        (
            lambda p: (lambda span: replace(span, frames=span.frames * 2))(
                framed(p, 0, random_bytes(1, MiB))
            ),
            "came twice",
        ),
    ],
)
async def test_a_frame_that_was_not_promised_is_refused(point, make, problem):
    with pytest.raises(TransferFailed) as failed:
        await (Items([make(point)]) | IntoRepository(point, disk_of(MiB))).run()
    assert failed.group_contains(ContractError, match=problem)


async def test_an_incomplete_point_is_not_published(point):
    disk = disk_of(MiB)
    receipt = await (Items([Zeros(0, MiB)]) | IntoRepository(point, disk)).run()
    capture = FakeCapture(MACHINE, [disk])
    with pytest.raises(ContractError, match="other was not written"):
        await point.publish(capture, [receipt, replace(receipt, key="other")], None)
    with pytest.raises(ContractError, match="same key"):
        await point.publish(capture, [receipt, receipt], None)
    framed(point, 0, random_bytes(1, MiB))
    with pytest.raises(ContractError, match="Promised and not stored: 1 frame;"):
        await point.publish(capture, [receipt], None)


async def test_a_configuration_that_is_not_json_is_refused(point):
    with pytest.raises(ContractError, match="not JSON"):
        await point.publish(FakeCapture(MACHINE, [], "none", {"x": object()}), [], None)


async def test_a_published_point_cannot_be_written(point):
    await point.publish(FakeCapture(MACHINE, []), [], None)
    with pytest.raises(ContractError, match="was published"):
        framed(point, 0, random_bytes(1, MiB))


async def test_previous_is_the_same_disk_of_the_newest_point(repository):
    disk, other = disk_of(8192), MemoryDisk(np.zeros(4096, np.uint8), key="other")
    identity = await backup(repository, [disk])
    async with repository.open() as store:
        assert isinstance(store, RepositoryStore)
        async with store.begin(MACHINE) as point:
            previous = point.previous(disk)
            assert previous is not None
            assert (previous.point, previous.capacity, previous.change_id) == (identity, 8192, "0")
            assert point.previous(other) is None
        async with store.begin(MachineId("another", "vm")) as point:
            assert point.previous(disk) is None


@pytest.mark.slow
async def test_a_run_may_have_more_chunks_than_a_draft_holds(repository, monkeypatch):
    monkeypatch.setattr("vadpipe.repository.index.DRAFT_ROWS", 40)
    monkeypatch.setattr("vadpipe.repository.packs.PACK_SIZE", MiB)
    disk = MemoryDisk(random_bytes(1, 14 * MiB))
    disk.content[12 * MiB :] = disk.content[: 2 * MiB]  # found in what was written as a segment long before
    await backup(repository, [disk])
    layout = Layout(repository.path)
    assert len(list(layout.index.iterdir())) > 3
    assert len(list(layout.packs.glob("*/*"))) > 3
    disk.write(MiB, random_bytes(2, 5 * MiB))
    await backup(repository, [disk], incremental_path)
    async with open_repository(repository.path) as reader:
        assert reader.points[0].disks[0].receipt.known >= MiB
        assert np.array_equal(await restore(reader, reader.points[1]), disk.content)
        assert (await verify(reader)).damages == ()


async def test_disks_of_one_point_are_written_at_once(repository):
    disks = [MemoryDisk(mixed_content(4 * MiB, seed % 2), key=str(seed)) for seed in range(4)]
    job = replace(Job(FakeMachine(disks), full_path, repository), disks_at_once=4)
    await job.run()
    async with open_repository(repository.path) as reader:
        for disk in disks:
            assert np.array_equal(await restore(reader, reader.points[0], disk.key), disk.content)
        receipts = [disk.receipt for disk in reader.points[0].disks]
    assert isinstance(receipts[0], DiskReceipt)
    assert sum(receipt.known for receipt in receipts) >= sum(receipt.new for receipt in receipts)
