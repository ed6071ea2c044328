"""Prune: what no point needs is named, then deleted; what a point needs, or a run may use, never is."""

from contextlib import AsyncExitStack

import numpy as np
import pytest
import trio

from pipeline import ConfigError, IntegrityError, KiB, MiB, SinkError
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.prune_kit import (
    Machine,
    attempt,
    empty_repository,
    finish,
    forget,
    kept_in,
    over,
    packs,
    pruned,
    put_back,
    unknown_pack,
)
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    full_path,
    incremental_path,
    names,
    overwrite,
    random_bytes,
    restore,
)
from tests.vadpipe.repository.test_golden import FORMAT_1
from vadpipe.repository import Repository, runs, verify
from vadpipe.repository.format.objects import ENDED, removal_name, run_name, segment_name, stem, waiting_name
from vadpipe.repository.maintenance.prune import PruneReport


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def vm(request):
    """A VM and its empty repository in memory."""
    return Machine(empty_repository(sealed=request.param))


@pytest.fixture
def plain():
    return Machine(empty_repository())


async def two_points(vm):
    """The large disk of the first point is needed by it alone; the small one lies in the same pack, and is
    needed."""
    first = await vm.back_up()
    vm.change(3)
    return first, await vm.back_up()


# --- the two phases ---


async def test_what_no_point_needs_is_named_and_then_deleted(vm):
    first, second = await two_points(vm)
    old = {pack for pack in packs(vm.repository) if pack.startswith(first)}
    forget(vm.repository, first, second)
    vm.change(4)
    vm.small.write(0, random_bytes(9, 256 * KiB))
    third = await vm.back_up()
    dead = {pack for pack in packs(vm.repository) if not pack.startswith(third)}
    assert old < dead
    report = pruned(vm.repository)
    assert (report.named_packs, report.deleted_packs, report.copied_bytes) == (len(dead), 0, 0)
    assert report.named_bytes > MiB
    assert report.waiting == ()
    assert dead < packs(vm.repository)
    assert len(names(vm.repository, "removals/")) == 2
    assert names(vm.repository, "runs/") == []
    await vm.check(third)
    report = pruned(vm.repository)
    assert (report.named_packs, report.deleted_packs, report.rescued_packs) == (0, len(dead), 0)
    assert report.deleted_bytes > MiB
    assert {pack[:16] for pack in packs(vm.repository)} == {third}
    await vm.check(third)
    # What named them is named itself by now, until every run knows of its successor.
    assert pruned(vm.repository) == PruneReport(0, 0, 0, 0, 0, 0, ())
    assert names(vm.repository, "removals/") == []
    async with vm.repository.read() as reader:
        assert {pack for segment in reader.index.segments for pack in segment.packs()} == packs(vm.repository)
    await vm.check(third)


async def test_where_nothing_is_dead_nothing_is_written(vm):
    points = await two_points(vm)
    before = kept_in(vm.repository)
    assert pruned(vm.repository) == PruneReport(0, 0, 0, 0, 0, 0, ())
    assert kept_in(vm.repository) == before
    await vm.check(*points)


async def test_an_empty_repository_is_pruned(vm):
    before = kept_in(vm.repository)
    assert pruned(vm.repository) == PruneReport(0, 0, 0, 0, 0, 0, ())
    assert kept_in(vm.repository) == before


async def test_with_no_point_left_all_packs_go(vm):
    points = await two_points(vm)
    forget(vm.repository, *points)
    assert pruned(vm.repository).named_packs == len(packs(vm.repository))
    finish(vm.repository)
    assert {name.partition("/")[0] for name in names(vm.repository)} - {"keys"} == {
        "config.json",
        "forgotten",
    }
    await vm.check(await vm.back_up())


# --- packs of which a part is needed ---


async def test_a_pack_of_which_little_is_needed_is_written_anew(vm):
    first, second = await two_points(vm)
    forget(vm.repository, first)
    report = pruned(vm.repository)
    assert report.named_packs == 1
    assert 256 * KiB < report.copied_bytes < 300 * KiB
    await vm.check(second)
    assert pruned(vm.repository).deleted_packs == 1
    assert not any(pack.startswith(first) for pack in packs(vm.repository))
    await vm.check(second)
    # The index finds the copies: the same data costs nothing.
    third = await vm.back_up()
    async with vm.repository.read() as reader:
        assert [disk.receipt.new for disk in reader.resolve(third).disks] == [0, 0]
        assert [disk.receipt.stored for disk in reader.resolve(third).disks] == [0, 0]
    await vm.check(second, third)


async def test_a_full_backup_finds_the_copies(vm):
    first, second = await two_points(vm)
    forget(vm.repository, first)
    pruned(vm.repository)
    for _ in range(2):  # before and after the old pack is deleted
        point = vm.note(await backup(vm.repository, vm.disks, full_path))
        async with vm.repository.read() as reader:
            assert [disk.receipt.new for disk in reader.resolve(point).disks] == [0, 0]
        forget(vm.repository, point)
        pruned(vm.repository)
    await vm.check(second)


@pytest.mark.parametrize("how", [{"rewrite_below": 0}, {"rewrite_below": 0.05}, {"most_copied": 1000}])
async def test_a_pack_that_is_not_worth_it_stays_whole(vm, how):
    first, second = await two_points(vm)
    forget(vm.repository, first)
    before = kept_in(vm.repository)
    assert pruned(vm.repository, **how).named_packs == 0
    assert kept_in(vm.repository) == before
    await vm.check(second)


async def test_copies_are_limited_to_the_packs_with_the_most_to_give(plain):
    vm = plain
    points = []
    for seed in range(3):
        vm.small.write(0, random_bytes(50 + seed, 256 * KiB))
        vm.change(seed)
        points.append(await vm.back_up())
    other = Machine(vm.repository)
    other.small.content[:] = random_bytes(50, 256 * KiB)
    kept = [await backup(vm.repository, [other.small], uuid="00000000-0000-0000-0000-00000000000a")]
    forget(vm.repository, *points[:2])
    assert pruned(vm.repository, most_copied=400 * KiB).copied_bytes < 400 * KiB
    finish(vm.repository)
    async with vm.repository.read() as reader:
        assert {point.id for point in reader.points} == {points[2], *kept}
        assert np.array_equal(await restore(reader, reader.resolve(kept[0]), "small"), other.small.content)
        assert (await verify(reader)).damages == ()


async def test_documents_are_needed_too(plain):
    vm = plain
    large = random_bytes(7, 200 * KiB).tobytes()
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(vm.large, point).run()
        capture = FakeCapture(MACHINE, [vm.large], documents={"vm.nvram": large})
        first = await point.publish(capture, [receipt], None)
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        second = await point.publish(FakeCapture(MACHINE, [], documents={"vm.nvram": large}), [], None)
    forget(vm.repository, first)
    assert pruned(vm.repository).copied_bytes > 200 * KiB
    finish(vm.repository)
    async with vm.repository.read() as reader:
        assert await reader.document(reader.resolve(second), "vm.nvram") == large
        assert (await verify(reader)).damages == ()


async def test_a_frame_that_two_runs_stored_is_kept_once(plain):
    """Two runs at once store the same data; each pack is right, and one is enough."""
    vm = plain
    async with vm.repository.open() as store, store.begin(MACHINE) as one, store.begin(MACHINE) as two:
        for point in (one, two):
            receipts = [await full_path(disk, point).run() for disk in vm.disks]
            vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    assert len(packs(vm.repository)) == 2
    assert pruned(vm.repository).named_packs == 1
    finish(vm.repository)
    assert len(packs(vm.repository)) == 1
    await vm.check(*vm.states)


# --- runs ---


@pytest.mark.parametrize("path", [full_path, incremental_path])
async def test_a_run_that_began_before_keeps_its_packs_alive(vm, path):
    """It finds its chunks in a pack that is named while it runs; its point restores, at any time."""
    first = await vm.back_up()
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        run_id = point._run.run.id
        receipts = [await path(vm.small, point).run()]
        forget(vm.repository, first)
        assert pruned(vm.repository).named_packs == 1
        assert pruned(vm.repository).waiting == (run_id,)
        receipts.append(await path(vm.large, point).run())
        report = pruned(vm.repository)
        assert (report.deleted_packs, report.waiting) == (0, (run_id,))
        assert f"1 run may still use what was named: {run_id}" in "\n".join(report.lines())
        second = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
        await vm.check(second)
        report = pruned(vm.repository)  # the point is there: the run has ended
        assert (report.deleted_packs, report.rescued_packs) == (1, 1)  # what the point needs was copied
    await vm.check(second)
    finish(vm.repository)
    assert first not in {pack[:16] for pack in packs(vm.repository)}
    await vm.check(second)
    third = await vm.back_up()
    await vm.check(second, third)


async def test_a_run_that_fails_keeps_nothing_alive(vm):
    first = await vm.back_up()
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        await full_path(vm.small, point).run()
        forget(vm.repository, first)
        pruned(vm.repository)
    assert pruned(vm.repository).deleted_packs == 1
    assert packs(vm.repository) == set()


async def test_a_run_that_began_after_does_not_use_what_was_named(vm):
    first = await vm.back_up()
    forget(vm.repository, first)
    assert pruned(vm.repository).named_packs == 1
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        assert [receipt.new for receipt in receipts] == [256 * KiB, MiB]
        assert pruned(vm.repository).deleted_packs == 1  # does not wait for this run
        second = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    await vm.check(second)
    finish(vm.repository)
    await vm.check(second)


async def test_a_run_takes_over_what_its_previous_point_needs_of_named_packs(vm):
    """Its previous point was made by a run that did not know of the removal."""
    first = await vm.back_up()
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        forget(vm.repository, first)
        pruned(vm.repository)
        second = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    third = await vm.back_up()
    async with vm.repository.read() as reader:
        assert [disk.receipt.new for disk in reader.resolve(third).disks] == [0, 0]
    await vm.check(second, third)
    forget(vm.repository, second)
    finish(vm.repository)
    await vm.check(third)


@pytest.mark.parametrize("path", [full_path, incremental_path])
async def test_a_run_whose_previous_point_is_removed_takes_nothing_over_from_named_packs(vm, path):
    """The removal does not wait for this run, and no point needs the packs any more: it copies what it takes
    over."""
    first = await vm.back_up()
    async with vm.repository.open() as store:
        async with store.begin(MACHINE) as point:
            receipts = [await full_path(disk, point).run() for disk in vm.disks]
            forget(vm.repository, first)
            pruned(vm.repository)
            second = await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None)
        async with store.begin(MACHINE) as point:
            receipts = [await path(disk, point).run() for disk in vm.disks]
            forget(vm.repository, second)
            assert pruned(vm.repository).deleted_packs == 1
            third = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    await vm.check(third)
    fourth = await vm.back_up()
    finish(vm.repository)
    await vm.check(third, fourth)


async def test_a_prune_that_was_given_up_deletes_nothing(vm):
    first, second = await two_points(vm)
    forget(vm.repository, first)
    pruned(vm.repository)
    before = packs(vm.repository)

    def give_up(what, name):
        if what == "list" and name == "points/":
            for run in names(vm.repository, "runs/"):
                taken = segment_name(stem(run), 0)
                if taken not in names(vm.repository, "index/"):
                    vm.repository.place.put(taken, [ENDED + bytes(8)])
            vm.repository.place.delete(names(vm.repository, "runs/"))

    with pytest.raises(SinkError, match="was given up by another one"):
        pruned(over(vm.repository, give_up))
    assert packs(vm.repository) == before
    await vm.check(second)


async def test_packs_of_a_run_that_has_not_ended_are_never_named(vm):
    """No point needs them yet."""
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        point._run.packs.finish()
        run, index = point._run.run, point._run.index
        run.segments += len(index.publish(0))
        report = pruned(vm.repository)
        assert (report.named_packs, report.deleted_packs) == (0, 0)
        assert len(receipts) == 2
        await vm.check()


async def test_prune_waits_for_a_run_of_another_host(plain):
    vm = plain
    first, second = await two_points(vm)
    forget(vm.repository, first)
    stranger = "ab" * 8
    vm.repository.place.put(
        run_name(stranger), [b'{"kind": "backup", "machine": "x", "host": "another", "name": "other01"}']
    )
    assert pruned(vm.repository).waiting == (stranger,)
    for _ in range(3):
        report = pruned(vm.repository)
        assert (report.deleted_packs, report.waiting) == (0, (stranger,))
    vm.repository.place.delete([run_name(stranger)])
    report = pruned(vm.repository)
    assert (report.deleted_packs, report.waiting) == (1, ())
    await vm.check(second)


async def test_a_prune_that_was_given_up_names_nothing(plain, monkeypatch):
    """Another host took the name of its next segment."""
    vm = plain
    first, second = await two_points(vm)
    forget(vm.repository, first)
    taken = []

    def take(what, name):
        if what in ("put", "finish") and name.startswith("index/") and not taken:
            taken.append(name)
            vm.repository.place.put(segment_name(stem(name)[:16], 0), [b"VADENDED" + bytes(8)])

    with pytest.raises(SinkError, match="was given up by another one"):
        pruned(over(vm.repository, take))
    assert names(vm.repository, "removals/") == []
    assert names(vm.repository, "runs/") == []
    await vm.check(second)
    finish(vm.repository)
    await vm.check(second)


# --- what stops it ---


async def damaged_point(vm, points):
    [name] = [name for name in names(vm.repository, "points/") if points[1] in name]
    overwrite(vm.repository, name, vm.repository.place.read(name).replace(b"0", b"1", 1))


async def damaged_maps(vm, points):
    for name in names(vm.repository, "packs/"):
        content = bytearray(vm.repository.place.read(name))
        for at in range(48, len(content) - 8):
            if content[at : at + 5] == b"VFRM\2":
                content[at + 30] ^= 1
        overwrite(vm.repository, name, bytes(content))


async def damaged_segment(vm, points):
    name = names(vm.repository, "index/")[0]
    overwrite(vm.repository, name, b"\0" * len(vm.repository.place.read(name)))


async def missing_segment(vm, points):
    vm.repository.place.delete([name for name in names(vm.repository, "index/") if points[1] in name])


async def missing_packs(vm, points):
    vm.repository.place.delete(names(vm.repository, "packs/"))


@pytest.mark.parametrize(
    "damage", [damaged_point, damaged_maps, damaged_segment, missing_segment, missing_packs]
)
@pytest.mark.parametrize("phase", [1, 2])
async def test_where_it_is_not_known_what_is_needed_nothing_is_removed(plain, damage, phase):
    vm = plain
    points = await two_points(vm)
    forget(vm.repository, points[0])
    if phase == 2:
        pruned(vm.repository)
    await damage(vm, points)
    before = kept_in(vm.repository)
    with pytest.raises(IntegrityError) as caught:
        pruned(vm.repository)
    assert caught.value.remedy
    after = kept_in(vm.repository)
    kept = [name for name in before if name.startswith(("packs/", "points/")) or damage is not missing_packs]
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert names(vm.repository, "runs/") == []


async def test_a_format_1_repository_is_not_pruned(tmp_path):
    with pytest.raises(SinkError, match=r"format version 1.*vadpipe copy"):
        pruned(Repository(FORMAT_1))


async def test_a_sealed_repository_is_not_pruned_without_its_secrets():
    vm = Machine(empty_repository(sealed=True))
    await two_points(vm)
    with pytest.raises(ConfigError, match="is sealed, and no key was given"):
        pruned(Repository(vm.repository.place))


# --- orphans ---


async def test_a_pack_that_no_index_ever_knew_is_deleted_at_once(vm):
    point = await vm.back_up()
    vm.repository.place.put(unknown_pack("ab" * 8), [b"half"])
    report = pruned(vm.repository)
    assert (report.deleted_packs, report.deleted_bytes, report.named_packs) == (1, 4, 0)
    assert {pack[:16] for pack in packs(vm.repository)} == {point}
    await vm.check(point)


async def test_a_pack_of_a_run_that_has_not_ended_is_no_orphan(vm):
    stranger = "ab" * 8
    vm.repository.place.put(
        run_name(stranger), [b'{"kind": "backup", "machine": "x", "host": "another", "name": "other01"}']
    )
    vm.repository.place.put(unknown_pack(stranger), [b"half"])
    assert pruned(vm.repository).deleted_packs == 0
    assert names(vm.repository, "packs/") == [unknown_pack(stranger)]


# --- a dry run ---


@pytest.mark.parametrize("phase", [1, 2])
async def test_a_dry_run_says_what_would_be_done_and_changes_nothing(vm, phase):
    first, second = await two_points(vm)
    forget(vm.repository, first)
    vm.repository.place.put(unknown_pack("ab" * 8), [b"half"])
    if phase == 2:
        pruned(vm.repository)
        vm.repository.place.put(unknown_pack("ab" * 8), [b"half"])
    before = kept_in(vm.repository)
    foreseen = pruned(vm.repository, dry_run=True)
    assert kept_in(vm.repository) == before
    assert any("would be" in line for line in foreseen.lines())
    done = pruned(vm.repository)
    for name in ("deleted_packs", "deleted_bytes", "named_packs", "named_bytes", "copied_bytes"):
        assert getattr(foreseen, name) == getattr(done, name), name
    await vm.check(second)


# --- interruptions ---


async def plan_naming(vm):
    """Names a pack of which a part is needed, and one that is dead as a whole."""
    first, second = await two_points(vm)
    vm.change(5)
    third = await vm.back_up()
    forget(vm.repository, first, second)
    return [third]


async def plan_deleting(vm):
    """Deletes, after everything was named."""
    points = await plan_naming(vm)
    pruned(vm.repository)
    return points


async def plan_keeping(vm):
    """Keeps a pack that is needed again by a run that did not know, and deletes another."""
    first, second = await two_points(vm)
    async with vm.repository.open() as store, store.begin(MACHINE) as point:
        receipts = [await full_path(disk, point).run() for disk in vm.disks]
        forget(vm.repository, first, second)
        pruned(vm.repository)
        third = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    return [third]


PLANS = [plan_naming, plan_deleting, plan_keeping]


def changes(what):
    return what in ("put", "finish", "delete", "replace")


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
async def test_a_prune_that_dies_anywhere_is_finished_by_another(plan, sealed):
    """The process dies before each change of the store once."""
    vm = Machine(empty_repository(sealed=sealed))
    points = await plan(vm)
    assert await interrupted(vm, points, changes, 1, dies=True) > 5


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
async def test_a_prune_of_which_a_call_fails_is_finished_by_another(plain, plan):
    """Calls of the store fail, one each time; the prune cleans up after itself."""
    points = await plan(plain)
    assert await interrupted(plain, points, lambda what: True, 4, dies=False) > 20


async def interrupted(vm, points, counts, step, *, dies):
    """Fail at every `step`th call that counts. Returns how many there are."""
    content = kept_in(vm.repository)
    finish(vm.repository)
    end = packs_and_bytes(vm)
    for moment in range(1, 500, step):
        put_back(vm.repository, content)
        calls = 0

        def watch(what, name, moment=moment):
            nonlocal calls
            calls += counts(what)
            if (calls == moment and counts(what)) or (dies and calls >= moment):
                raise SinkError("The store failed.", remedy="Wait.")

        ended = attempt(lambda: pruned(over(vm.repository, watch)))
        if calls < moment:
            assert ended
            return moment
        if dies:
            runs._alive.clear()
        await vm.check_quickly(*points)
        finish(vm.repository)
        assert packs_and_bytes(vm) == end
        await vm.check_quickly(*points)
    raise AssertionError("prune does not end")


def packs_and_bytes(vm):
    """How many packs there are, and their sizes; the names of copies are drawn anew each time."""
    return sorted(found.size for found in vm.repository.place.list("packs/"))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
async def test_two_prunes_at_once_do_no_harm(plain, plan):
    """A whole prune runs, or is refused, between two calls of another."""
    vm = plain
    points = await plan(vm)
    content = kept_in(vm.repository)
    finish(vm.repository)
    end = packs_and_bytes(vm)
    for moment in range(1, 500, 3):
        put_back(vm.repository, content)
        calls = 0

        def watch(what, name, moment=moment):
            nonlocal calls
            calls += 1
            if calls == moment:
                pruned(vm.repository)

        attempt(lambda: pruned(over(vm.repository, watch)))
        if calls < moment:
            break
        await vm.check_quickly(*points)
        finish(vm.repository)
        await vm.check_quickly(*points)
        assert packs_and_bytes(vm) == end, moment
    assert moment > 20


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("path", [full_path, incremental_path])
async def test_a_run_that_begins_and_publishes_at_any_time_of_two_prunes_restores(plain, plan, path):
    """The run begins before one call of a prune and publishes before a later one, of this or of the next prune."""
    vm = plain
    points = await plan(vm)
    content = kept_in(vm.repository)
    steps = 0

    def count(what, name):
        nonlocal steps
        steps += changes(what)

    for _ in range(2):
        pruned(over(vm.repository, count))
    for begin in range(1, steps + 1):
        for end in sorted({begin, min(begin + 2, steps), steps + 1}):
            put_back(vm.repository, content)
            try:
                published = await _prune_around(vm, path, begin, end)
            except BaseException as error:
                error.add_note(f"the run began at change {begin} and published at {end}")
                raise
            assert published
            try:
                await vm.check_quickly(*points, published)
                finish(vm.repository)
                await vm.check_quickly(*points, published)
            except BaseException as error:
                error.add_note(f"the run began at change {begin} and published at {end}")
                raise
            del vm.states[published]


async def _prune_around(vm, path, begin, end):
    """Two prunes; a run begins before change `begin` of theirs, reads, and publishes before change `end`."""
    calls, point, receipts, published = 0, None, [], None
    token = trio.lowlevel.current_trio_token()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(vm.repository.open())

        async def reach():
            nonlocal point, receipts, published
            if calls == begin:
                point = await stack.enter_async_context(store.begin(MACHINE))
                receipts = [await path(disk, point).run() for disk in vm.disks]
            if calls == end:
                published = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))

        def watch(what, name):
            nonlocal calls
            if changes(what):
                calls += 1
                trio.from_thread.run(reach, trio_token=token)

        for _ in range(2):
            await trio.to_thread.run_sync(lambda: attempt(lambda: pruned(over(vm.repository, watch))))
        if point is None:
            calls = begin
            await reach()
        if published is None:
            calls = end
            if end != begin:
                await reach()
            else:
                published = vm.note(await point.publish(FakeCapture(MACHINE, vm.disks), receipts, None))
    return published


# --- readers ---


async def test_a_reader_that_was_there_before_reads_on(vm):
    """A pack was written anew, and deleted, while the reader was open: it finds the copies."""
    first, second = await two_points(vm)
    async with vm.repository.read() as reader:
        point = reader.resolve(second)
        forget(vm.repository, first)
        pruned(vm.repository)
        assert np.array_equal(await restore(reader, point, "large"), vm.large.content)
        pruned(vm.repository)
        assert np.array_equal(await restore(reader, point, "small"), vm.small.content)


# --- merged segments ---


async def test_merged_segments_that_name_dead_packs_are_written_anew(plain, monkeypatch):
    """A run that did not know of a removal merged segments that name its packs."""
    vm = plain
    points = []
    for seed in range(20):
        vm.change(seed)
        points.append(await vm.back_up())
    forget(vm.repository, *points[:-1])
    pruned(vm.repository)
    await vm.check(points[-1])
    finish(vm.repository)
    last = await vm.back_up()
    await vm.check(points[-1], last)
    async with vm.repository.read() as reader:
        named = {pack for segment in reader.index.segments for pack in segment.packs()}
    assert named == packs(vm.repository)


async def test_the_objects_of_a_removal_are_named_after_their_run(plain):
    vm = plain
    first, _ = await two_points(vm)
    forget(vm.repository, first)
    pruned(vm.repository)
    [removal, waiting] = names(vm.repository, "removals/")
    removal_id = stem(waiting).removesuffix("-waiting")
    assert sorted([removal_name(removal_id), waiting_name(removal_id)]) == sorted([removal, waiting])


def test_a_report_says_what_was_done_and_what_comes_next():
    report = PruneReport(1, 2048, 2, 4 * MiB, MiB, 1, ("aa" * 8, "bb" * 8, "cc" * 8, "dd" * 8))
    assert report.lines() == [
        "1 pack deleted, 2.0 KiB.",
        "2 packs named for removal, 4.0 MiB; 1.0 MiB of them copied, as points need it.",
        "1 pack held what points need that were made since; it was copied.",
        f"4 runs may still use what was named: {'aa' * 8}, {'bb' * 8}, {'cc' * 8}, ....",
        "The next `vadpipe prune` deletes what was named, when these runs have ended.",
    ]


async def test_another_machine_of_the_same_data_keeps_it(vm):
    first = await vm.back_up()
    other = MemoryDisk(vm.large.content.copy(), key="large")
    kept = await backup(vm.repository, [other], uuid="00000000-0000-0000-0000-00000000000a")
    forget(vm.repository, first)
    finish(vm.repository)
    async with vm.repository.read() as reader:
        assert np.array_equal(await restore(reader, reader.resolve(kept), "large"), other.content)
        assert (await verify(reader)).damages == ()
