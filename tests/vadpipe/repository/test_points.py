"""What a point knows of its VM, and finding points in the order of their chain."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    CLUSTER,
    ConfigError,
    ContractError,
    Evidence,
    Job,
    KiB,
    MachineId,
    observed,
)
from pipeline.testing.fakes import FakeCapture, FakeMachine
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    disk_of,
    full_path,
    incremental_path,
    names,
    opened,
    overwrite,
    random_bytes,
)
from vadpipe.repository import verify
from vadpipe.repository.format import restore_point
from vadpipe.repository.format.config import Origin
from vadpipe.repository.format.restore_point import RestorePoint, in_order
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository


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
    assert [path.name for path in (repository.path / "points").iterdir()] == ["..%2F.."]
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
    events = []
    async with clock.repository(repository.path).open() as store, store.begin(MACHINE) as point:
        with observed(events.append):
            await point.publish(FakeCapture(MACHINE, []), [], None)
    (remark,) = point.remarks
    assert "The clock of this machine (2025-01-01T03:00" in remark
    [behind] = [event for event in events if event.kind == "clock behind"]
    assert behind.facts["now"].startswith("2025-01-01T03:00")
    assert behind.facts["previous"].startswith("2025-01-01T12:00")
    receipt = await Job(FakeMachine([disk_of(4096)]), full_path, clock.repository(repository.path)).run()
    assert [remark[:25] for remark in receipt.remarks] == ["The clock of this machine"]


async def test_the_newest_of_many_points_is_found_without_reading_them_all(anywhere, monkeypatch):
    monkeypatch.setattr(restore_point, "NOTED_FROM", 3)
    disk = disk_of(4096)
    ids = [await backup(anywhere, [disk]) for _ in range(4)]
    directory = f"points/{MACHINE.uuid}"
    assert names(anywhere, "points/") == sorted(
        [*(f"{directory}/{i}.json" for i in ids), f"{directory}/newest"]
    )
    read = []
    real = restore_point.read_point
    monkeypatch.setattr(restore_point, "read_point", lambda *what: (read.append(what), real(*what))[1])

    def newest():
        read.clear()
        found = restore_point.PointsOf(*opened(anywhere), MACHINE).newest()
        return found.id, len(read)

    assert newest() == (ids[-1], 1)
    note = anywhere.backend().read(f"{directory}/newest")
    for altered in (note.replace(ids[-1].encode(), ids[0].encode()), b"", b"x" * 99999):
        overwrite(anywhere, f"{directory}/newest", altered)
        assert newest() == (ids[-1], 4)
    overwrite(anywhere, f"{directory}/newest", note)
    anywhere.backend().delete([f"{directory}/{ids[-1]}.json"])
    assert newest() == (ids[-2], 3)


async def test_two_points_at_once_are_not_noted_wrongly(repository, monkeypatch):
    monkeypatch.setattr(restore_point, "NOTED_FROM", 1)
    async with repository.open() as store, store.begin(MACHINE) as one, store.begin(MACHINE) as two:
        first = await one.publish(FakeCapture(MACHINE, []), [], None)
        second = await two.publish(FakeCapture(MACHINE, []), [], None)
    third = await backup(repository, [disk_of(4096)])
    async with open_repository(repository.path) as reader:
        assert [point.id for point in reader.points] == [first, second, third]
        assert [point.number for point in reader.points] == [1, 1, 2]
        assert reader.points[-1].previous == second


def a_point(identity, machine, number, hour, previous=None):
    return RestorePoint(identity, machine, f"{hour}", previous, (), None, {}, {}, number=number)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5), st.integers(0, 5)), max_size=10))
def test_points_are_ordered_by_number_whatever_the_clock_said(made):
    machines = [MachineId("a", "a"), MachineId("b", "b")]
    points = [a_point(f"{i}", machines[vm], number, hour) for i, (vm, number, hour) in enumerate(made)]
    ordered = in_order(points)
    assert sorted(point.id for point in ordered) == sorted(point.id for point in points)
    for machine in machines:
        mine = [(point.number, point.created, point.id) for point in ordered if point.machine == machine]
        assert mine == sorted(mine)
        if mine:
            newest = restore_point.newest_of([point for point in points if point.machine == machine])
            assert newest.id == mine[-1][2]


async def test_a_point_counts_on_from_its_previous_one_and_proves_it(anywhere):
    disk = disk_of(4096)
    for _ in range(3):
        await backup(anywhere, [disk])
    async with anywhere.read() as reader:
        first, second, third = reader.points
    assert [point.number for point in (first, second, third)] == [1, 2, 3]
    assert [point.previous_seal for point in (first, second, third)] == [None, first.seal, second.seal]
    assert len({first.seal, second.seal, third.seal}) == 3


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
