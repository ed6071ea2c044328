"""Copying points into another repository: the same points, proved, each byte read once; repeatable after a kill."""

import numpy as np
import pytest

from pipeline import CLUSTER, KiB, MiB, SinkError, TransferFailed
from pipeline.testing.fakes import FakeCapture
from sinks.copying import copy_points
from tests.vadpipe.repository.prune_kit import empty_repository, over, pruned
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    full_path,
    incremental_path,
    names,
    random_bytes,
    restore,
)
from tests.vadpipe.repository.test_golden import FORMAT_1, SEALED, states, ways
from vadpipe.repository import Repository, runs, verify
from vadpipe.repository.format.objects import ENDED, point_name, run_name

DOCUMENTS = {"vm-config.xml": b"<config/>", "vm.nvram": bytes(range(256)) * 300}


class Original:
    """A repository of three points of one disk, and what each holds. The second one zeroes a range."""

    def __init__(self, repository):
        self.repository = repository
        self.disk = MemoryDisk(random_bytes(1, 6 * MiB + 512))
        self.states = {}

    async def back_up(self, tags=()):
        tagged = replace_tags(self.repository, tags)
        async with tagged.open() as store, store.begin(MACHINE) as point:
            receipt = await incremental_path(self.disk, point).run()
            capture = FakeCapture(
                MACHINE, [self.disk], "application", {"cpus": 2}, documents=DOCUMENTS, preflight={"a": 1}
            )
            identity = await point.publish(capture, [receipt], None)
        self.states[identity] = self.disk.content.copy()
        return identity

    async def make(self):
        await self.back_up()
        self.disk.write(MiB, np.zeros(MiB, np.uint8))
        self.disk.write(4 * MiB, random_bytes(2, 64 * KiB))
        await self.back_up(["monthly"])
        self.disk.write(MiB + CLUSTER, random_bytes(3, CLUSTER))
        await self.back_up()
        return self

    async def check(self, target, ids=None):
        """These points of it are in the target as they are here, and verify finds nothing."""
        async with self.repository.read() as here, target.read() as there:
            assert there.damaged == ()
            originals = [point for point in here.points if ids is None or point.id in ids]
            assert [point.id for point in there.points] == [point.id for point in originals]
            for copy, original in zip(there.points, originals, strict=True):
                assert np.array_equal(await restore(there, copy), self.states[copy.id])
                assert said(copy) == said(original)
                assert {name: await there.document(copy, name) for name in copy.documents} == DOCUMENTS
            assert (await verify(there)).damages == ()


def replace_tags(repository, tags):
    return Repository(repository.place, unlock=repository.unlock, tags=tags, origin=repository.origin)


def said(point):
    """What a point says of its VM, and which point it is."""
    fields = point.as_dict()
    fields["disks"] = [(disk.key, disk.receipt.label, disk.capacity, disk.change_id) for disk in point.disks]
    fields["documents"] = {name: document.length for name, document in point.documents.items()}
    del fields["previous_seal"]
    return fields


@pytest.fixture
async def original():
    return await Original(empty_repository()).make()


@pytest.mark.parametrize("to_sealed", [False, True], ids=["to plain", "to sealed"])
@pytest.mark.parametrize("from_sealed", [False, True], ids=["from plain", "from sealed"])
async def test_a_copy_says_the_same_and_holds_the_same(from_sealed, to_sealed):
    original = await Original(empty_repository(sealed=from_sealed)).make()
    target = empty_repository(sealed=to_sealed)
    receipt = await copy_points(original.repository, target)
    assert receipt.copied == tuple(original.states)
    assert receipt.present == ()
    await original.check(target)
    async with target.read() as reader:
        first, second, third = reader.points
        assert [point.previous_seal for point in reader.points] == [None, first.seal, second.seal]
        assert [point.number for point in reader.points] == [1, 2, 3]
        assert second.tags == ("monthly",)
        assert third.previous == second.id


async def test_only_what_changed_between_two_points_is_read_and_stored(original, monkeypatch):
    target = empty_repository()
    ids = list(original.states)
    receipts, taken, sizes = [], [], []
    read = original.repository.place.read

    def counting(name, offset=0, length=None):
        content = read(name, offset, length)
        if name.startswith("packs/"):
            taken.append(len(content))
        return content

    monkeypatch.setattr(original.repository.place, "read", counting)
    for number in range(3):
        taken.clear()
        receipts.append(
            await copy_points(original.repository, target, wanted=lambda point, n=number: point.id == ids[n])
        )
        sizes.append(sum(taken))
    await original.check(target)
    assert receipts[0].read == 6 * MiB + 512
    assert receipts[1].read < 512 * KiB  # 64 KiB of data; zeros are not read
    assert receipts[2].read < 128 * KiB
    assert receipts[1].stored < 512 * KiB
    assert receipts[2].stored < 128 * KiB
    assert sizes[1] < sizes[0] // 2
    assert sizes[2] < sizes[0] // 2
    async with target.read() as reader:
        assert reader.points[2].disks[0].receipt.unchanged > 5 * MiB


async def test_points_that_are_there_are_not_copied_again(original):
    target = empty_repository()
    await copy_points(original.repository, target)
    before = dict(target.place._content)
    receipt = await copy_points(original.repository, target)
    assert (receipt.copied, receipt.present) == ((), tuple(original.states))
    assert (receipt.read, receipt.stored) == (0, 0)
    assert target.place._content == before


async def test_new_points_are_added_to_a_copy(original):
    target = empty_repository()
    await copy_points(original.repository, target)
    original.disk.write(0, random_bytes(9, CLUSTER))
    newest = await original.back_up()
    receipt = await copy_points(original.repository, target)
    assert receipt.copied == (newest,)
    assert receipt.read < 256 * KiB
    await original.check(target)


async def test_a_point_without_its_previous_one_is_copied_whole(original):
    target = empty_repository()
    last = list(original.states)[-1]
    receipt = await copy_points(original.repository, target, wanted=lambda point: point.id == last)
    assert receipt.copied == (last,)
    async with target.read() as reader:
        (point,) = reader.points
        assert (point.id, point.previous, point.previous_seal, point.number) == (last, None, None, 3)
        assert np.array_equal(await restore(reader, point), original.states[last])
        assert (await verify(reader)).damages == ()


async def test_a_disk_that_grew_is_copied_whole(original):
    original.disk.content = random_bytes(7, 7 * MiB)
    original.disk.written.append((0, 7 * MiB))
    original.disk.write(0, random_bytes(8, CLUSTER))
    async with original.repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(original.disk, point).run()
        identity = await point.publish(
            FakeCapture(
                MACHINE, [original.disk], "application", {"cpus": 2}, documents=DOCUMENTS, preflight={"a": 1}
            ),
            [receipt],
            None,
        )
    original.states[identity] = original.disk.content.copy()
    target = empty_repository()
    await copy_points(original.repository, target)
    await original.check(target)


async def test_several_vms_keep_their_chains(original):
    other = MemoryDisk(random_bytes(20, MiB))
    uuid = "00000000-0000-0000-0000-00000000000a"
    await backup(original.repository, [other], incremental_path, uuid=uuid)
    other.write(0, random_bytes(21, CLUSTER))
    await backup(original.repository, [other], incremental_path, uuid=uuid)
    target = empty_repository()
    await copy_points(original.repository, target)
    async with original.repository.read() as here, target.read() as there:
        assert [(point.id, point.previous, point.number) for point in there.points] == [
            (point.id, point.previous, point.number) for point in here.points
        ]
        assert np.array_equal(await restore(there, there.points[-1]), other.content)
        assert (await verify(there)).damages == ()


@pytest.mark.parametrize("sealed", [False, True], ids=["to plain", "to sealed"])
async def test_a_repository_of_format_1_is_copied(sealed):
    target = empty_repository(sealed=sealed)
    receipt = await copy_points(Repository(FORMAT_1), target)
    assert len(receipt.copied) == 2
    async with Repository(FORMAT_1).read() as here, target.read() as there:
        assert [point.id for point in there.points] == [point.id for point in here.points]
        assert [point.created for point in there.points] == [point.created for point in here.points]
        assert [point.number for point in there.points] == [1, 2]
        assert there.points[1].previous == there.points[0].id
        for point, state in zip(there.points, states(), strict=True):
            assert np.array_equal(await restore(there, point), state)
        assert (await verify(there)).damages == ()
    disk = MemoryDisk(states()[1])
    await backup(target, [disk])  # and it goes on
    async with target.read() as reader:
        assert reader.points[-1].number == 3


async def test_nothing_is_copied_into_format_1(original):
    with pytest.raises(SinkError, match="format version 1, which is only read"):
        await copy_points(original.repository, Repository(FORMAT_1))


async def test_the_golden_sealed_repository_is_copied():
    target = empty_repository()
    await copy_points(Repository(SEALED, unlock=ways(SEALED)), target)
    async with target.read() as reader:
        for point, state in zip(reader.points, states(), strict=True):
            assert np.array_equal(await restore(reader, point), state)


async def test_a_damaged_source_stops_the_copy_and_what_was_copied_stays(original):
    ids = list(original.states)
    [pack] = [name for name in names(original.repository, "packs/") if ids[1] in name]
    content = bytearray(original.repository.place.read(pack))
    content[200] ^= 1
    original.repository.place.replace(pack, [bytes(content)])
    target = empty_repository()
    with pytest.raises((TransferFailed, Exception), match=r"damaged|failed"):
        await copy_points(original.repository, target)
    await original.check(target, ids[:1])
    assert names(target, "runs/") == []


# --- interruptions ---


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True], ids=["the store fails", "the process dies"])
async def test_a_copy_that_was_interrupted_anywhere_can_be_repeated(original, dies):
    """Each change of the target is once the one that fails."""
    for moment in range(1, 100):
        target = empty_repository()
        calls = 0

        def watch(what, name, moment=moment):
            nonlocal calls
            calls += what in ("put", "finish", "delete", "begin")
            if calls == moment or (dies and calls > moment):
                raise SinkError("The store is gone.", remedy="Wait.")

        try:
            await copy_points(original.repository, over(target, watch))
            done = True
        except (SinkError, TransferFailed, BaseExceptionGroup):
            done = False
        if dies:
            runs._alive.clear()
        if calls < moment:
            assert done
            break
        await copy_points(original.repository, target)
        await original.check(target)
        pruned(target)
        assert names(target, "runs/") == []
        await original.check(target)
    assert moment > 8


async def test_a_copy_that_another_process_makes_is_not_made_twice(original):
    target = empty_repository()
    first = next(iter(original.states))
    target.place.put(run_name(first), [b'{"kind": "backup", "host": "another", "name": "other01"}'])
    with pytest.raises(SinkError, match=f"The point {first} is being copied"):
        await copy_points(original.repository, target)
    assert names(target, "points/") == []


async def test_a_copy_that_was_given_up_can_be_repeated(original):
    target = empty_repository()
    first = next(iter(original.states))
    target.place.put(point_name(MACHINE.uuid, first), [ENDED + bytes(8)])
    target.place.put(f"index/{first}00000000.idx", [ENDED + bytes(8)])
    await copy_points(original.repository, target)
    await original.check(target)
