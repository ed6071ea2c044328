"""Removals: what they name, who is waited for, what new runs leave out, and merging index segments by them."""

import pytest

from pipeline import IntegrityError, KiB, SinkError, TransferFailed
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.prune_kit import (
    Machine,
    empty_repository,
    finish,
    forget,
    kept_in,
    packs,
    pruned,
)
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    Watched,
    backup,
    full_path,
    incremental_path,
    names,
    opened,
    overwrite,
    random_bytes,
)
from vadpipe.repository import Repository, verify
from vadpipe.repository.backends.wrappers import Forwarding
from vadpipe.repository.format.objects import (
    LARGEST_LIST,
    Objects,
    pack_id,
    removal_name,
    run_name,
    segment_name,
    waiting_name,
)
from vadpipe.repository.index import merging
from vadpipe.repository.removal import (
    drop,
    drop_waiting_lists,
    is_ready,
    live_segments,
    publish_removal,
    read_removals,
    read_removed,
)
from vadpipe.repository.runs import Run

STRANGER = "ab" * 8
PACK, SEGMENT = "00" * 12, "11" * 12


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def vm(request):
    return Machine(empty_repository(sealed=request.param))


@pytest.fixture
def maintained(vm):
    """The objects and the config of a repository, and a run that maintains it."""
    objects, config = opened(vm.repository)
    run = Run(objects, config, vm.repository.origin, None)
    yield objects, config, run
    run.end()


def removal_of(vm, maintained, **names_of):
    publish_removal(*maintained, vm.repository.origin, **names_of)
    objects, config, _ = maintained
    return read_removals(objects, config)


def stranger(vm):
    """A backup of another host, which has not ended."""
    vm.repository.place.put(
        run_name(STRANGER), [b'{"kind": "backup", "machine": "x", "host": "another", "name": "other01"}']
    )


def test_a_removal_names_packs_and_segments(vm, maintained):
    objects, config, run = maintained
    [removal] = removal_of(vm, maintained, packs=[PACK], segments=[SEGMENT])
    assert removal.id == pack_id(run.id, 0)
    assert (removal.packs, removal.segments, removal.waiting) == ({PACK}, {SEGMENT}, frozenset())
    assert names(vm.repository, "removals/") == [waiting_name(removal.id), removal_name(removal.id)]
    assert is_ready(objects, removal)
    removal_of(vm, maintained, packs=["22" * 12])
    removed = read_removed(objects, config)
    assert removed.packs == {PACK, "22" * 12}
    assert removed.segments == {SEGMENT}
    drop(objects, removal.id)
    assert [each.id for each in read_removals(objects, config)] == [pack_id(run.id, 1)]


def test_a_removal_waits_for_the_runs_that_had_begun_and_for_no_later_one(vm, maintained):
    objects, config, _ = maintained
    stranger(vm)
    [removal] = removal_of(vm, maintained, packs=[PACK])
    assert removal.waiting == {STRANGER}
    assert not is_ready(objects, removal)
    later = Run(objects, config, vm.repository.origin, MACHINE.uuid)
    vm.repository.place.delete([run_name(STRANGER)])
    [removal] = read_removals(objects, config)
    assert is_ready(objects, removal)
    later.end()


def test_a_removal_without_a_waiting_list_is_never_ready(vm, maintained):
    """Its prune died before it listed the runs; the next prune lists them."""
    objects, config, _ = maintained
    [removal] = removal_of(vm, maintained, packs=[PACK])
    vm.repository.place.delete([waiting_name(removal.id)])
    [removal] = read_removals(objects, config)
    assert removal.waiting is None
    assert not is_ready(objects, removal)


def test_a_waiting_list_without_a_removal_is_dropped(vm, maintained):
    objects, config, _ = maintained
    [removal] = removal_of(vm, maintained, packs=[PACK])
    vm.repository.place.delete([removal_name(removal.id)])
    assert read_removals(objects, config) == []
    drop_waiting_lists(objects)
    assert names(vm.repository, "removals/") == []
    removal_of(vm, maintained, packs=[PACK])
    drop_waiting_lists(objects)
    assert len(names(vm.repository, "removals/")) == 2


def test_a_removal_that_replaces_one_during_an_empty_listing_is_not_missed(vm, maintained):
    """A listing that comes in pages was past the place of the new one, and the old one was dropped before its place
    was reached: so it shows nothing."""
    objects, config, _ = maintained
    [old] = removal_of(vm, maintained, packs=[PACK])
    listed = []

    class Paged(Forwarding):
        def list(self, prefix):
            listed.append(prefix)
            if listed == ["removals/"]:
                removal_of(vm, maintained, segments=[SEGMENT])
                drop(objects, old.id)
                return iter(())
            return self.inner.list(prefix)

    removed = read_removed(Objects(Paged(objects.backend)), config)
    assert (removed.packs, removed.segments) == (frozenset(), frozenset([SEGMENT]))


async def test_a_run_lists_removals_and_segments_after_its_point_and_only_for_one_reading(vm):
    await vm.back_up()
    calls = []
    watched = Repository(
        Watched(vm.repository.backend(), lambda *call: calls.append(call)),
        origin=vm.repository.origin,
        unlock=vm.repository.unlock,
    )
    await backup(watched, vm.disks, incremental_path)
    listed = [prefix.partition("/")[0] for what, prefix in calls if what == "list" and prefix != "keys/"]
    assert listed == ["runs", "points", "removals", "removals", "index"]


def test_segments_of_ended_runs_and_of_removals_are_not_live(vm, maintained):
    objects, config, _ = maintained
    for run_id, content in (("22" * 8, b"VADENDED" + bytes(8)), ("11" * 8, bytes(99)), ("33" * 8, bytes(99))):
        objects.backend.put(segment_name(run_id, 0), [content])
    removal_of(vm, maintained, segments=["11" * 8 + "00000000"])
    live = live_segments(objects, read_removed(objects, config))
    assert [found.name for found in live] == [segment_name("33" * 8, 0)]


# --- damage ---


@pytest.mark.parametrize("which", ["removal", "waiting list"])
@pytest.mark.parametrize("content", [b"", b"{}\n", b"VADSEAL2" + bytes(90), None], ids=str)
async def test_a_damaged_removal_stops_runs_and_prunes_and_is_named(vm, which, content):
    """Nobody knows what is going to be removed."""
    first, second = await vm.back_up(), None
    vm.change(3)
    second = await vm.back_up()
    forget(vm.repository, first)
    pruned(vm.repository)
    waiting, removal = names(vm.repository, "removals/")
    name = removal if which == "removal" else waiting
    altered = bytearray(vm.repository.place.read(name))
    altered[len(altered) // 2] ^= 1
    overwrite(vm.repository, name, bytes(altered) if content is None else content)
    before = kept_in(vm.repository)
    for work in (lambda: backup(vm.repository, vm.disks), None):
        with pytest.raises(IntegrityError, match=r"is damaged: .* Put it back") as caught:
            await work() if work else pruned(vm.repository)
        assert caught.value.facts["path"] == vm.repository.place.place(name)
    assert kept_in(vm.repository) == before
    assert second in {point for point in vm.states if any(point in name for name in before)}


async def test_a_removal_that_is_too_large_is_damage(vm, maintained):
    objects, config, _ = maintained
    objects.backend.put(removal_name("11" * 12), [bytes(LARGEST_LIST + 1)])
    with pytest.raises(IntegrityError, match="no object of its kind has"):
        read_removals(objects, config)


# --- merging ---


@pytest.fixture
def few(monkeypatch):
    """More than five segments are merged already."""
    monkeypatch.setattr(merging, "MOST", 5)
    monkeypatch.setattr(merging, "FEWEST", 3)


async def many_points(vm, count):
    """Points of little new data each: one segment per point."""
    for seed in range(count):
        vm.small.write(0, random_bytes(100 + seed, 4 * KiB))
        await vm.back_up()


async def test_segments_are_merged_and_the_old_ones_are_deleted_by_a_later_run(vm, few):
    await many_points(vm, 6)
    before = set(names(vm.repository, "index/"))
    assert len(before) == 6
    await vm.back_up()  # merges; nothing is new, so it adds none of its own but its merged one
    objects, config = opened(vm.repository)
    [removal] = read_removals(objects, config)
    merged = {f"index/{segment}.idx" for segment in removal.segments}
    assert removal.packs == frozenset()
    assert len(merged) >= 3
    assert merged <= before
    assert merged < set(names(vm.repository, "index/"))
    await vm.check(*vm.states)
    await vm.back_up()
    assert not merged.intersection(names(vm.repository, "index/"))
    assert names(vm.repository, "removals/") == []
    await vm.check(*vm.states)


async def test_a_run_that_listed_segments_before_they_were_merged_keeps_them(vm, few):
    await many_points(vm, 6)
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        merged = set(names(vm.repository, "index/"))
        objects, config = opened(vm.repository)
        [removal] = read_removals(objects, config)
        # Another run merges what is left, and a third one would delete.
        await many_points(vm, 3)
        for segment in removal.segments:
            assert f"index/{segment}.idx" in merged
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    await vm.check(*vm.states)


async def test_a_reader_reads_on_while_segments_are_merged_and_deleted(vm, few):
    await many_points(vm, 6)
    async with vm.repository.read() as reader:
        await vm.back_up()
        await vm.back_up()
        finish(vm.repository)
        assert names(vm.repository, "removals/") == []
        assert [
            found for found in (await verify(reader)).damages if "no run is writing" not in found.problem
        ] == []


async def test_a_merge_that_fails_fails_no_run(vm, few, monkeypatch, caplog):
    await many_points(vm, 6)

    def fail(*arguments, **named):
        raise SinkError("The store is full.", remedy="Make room.")

    monkeypatch.setattr("vadpipe.repository.removal.merge", fail)
    await vm.back_up()
    assert "index segments could not be merged: The store is full." in caplog.text
    await vm.check(*vm.states)


async def test_a_merge_keeps_what_lies_in_packs_that_a_removal_names(vm, few):
    """A point of a run that did not know of the removal needs it."""
    await many_points(vm, 4)
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        gone = list(vm.states)
        forget(vm.repository, *gone)
        pruned(vm.repository)
        last = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    for state in gone:
        del vm.states[state]
    await many_points(vm, 4)
    await vm.check(*vm.states)
    finish(vm.repository)
    await vm.check(*vm.states)
    assert last in vm.states
    assert len(packs(vm.repository)) >= 1


async def test_a_run_with_a_damaged_segment_stores_nothing(vm):
    await vm.back_up()
    name = names(vm.repository, "index/")[0]
    overwrite(vm.repository, name, bytes(len(vm.repository.place.read(name))))
    before = packs(vm.repository)
    with pytest.raises((IntegrityError, TransferFailed)):
        await backup(vm.repository, [MemoryDisk(random_bytes(9, 64 * KiB))])
    assert packs(vm.repository) == before
