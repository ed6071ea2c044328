"""A VM written over with a point of itself: what is written and marked, what a kill leaves, what comes next."""

from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio

from pipeline import CLUSTER, ConfigError, IntegrityError, KiB, SourceError
from pipeline.errors import leaves
from sinks import in_place
from tests.vadpipe.repository.repository_kit import random_bytes
from vadpipe.vddk.errors import VddkError
from vadpipe.vsphere.journal import rollback as rollbacks
from vadpipe.vsphere.journal.intents import IntentKind
from vadpipe.vsphere.journal.rollback import Phase, read_rollback
from vadpipe.vsphere.restore.in_place_check import NotInPlace
from vadpipe.vsphere.vm.mark import SETTING
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead, sweep

pytestmark = pytest.mark.slow


def change(original) -> None:
    """What the guest did after the backup; then it was shut down."""
    original.write((0, 512 * KiB, b"x" * 10), (0, 2048 * KiB, b"new" * 2000), (1, 64 * KiB, bytes(8 * KiB)))
    original.state.power = "poweredOff"


async def test_a_vm_becomes_what_the_point_holds_and_only_differences_are_written(original):
    await original.back_up()
    change(original)
    assert original.holds(0) == [False, False]
    receipt = await original.restore()
    assert list(receipt.failures) == []
    assert original.holds(0) == [True, True]
    assert [disk.data for disk in receipt.disks] == [CLUSTER, 2 * CLUSTER]  # and two clusters of zeros
    assert receipt.disks[0].place == original.state.datastore_path("disk0.vmdk")


async def test_nothing_of_the_restore_stays_behind(original):
    await original.back_up()
    change(original)
    await original.restore()
    assert original.journal.intents() == []
    assert list(original.journal.directory.glob("*.json")) == []
    assert SETTING not in original.state.extra_config
    assert original.lab.snapshots(original.moref) == {}
    assert original.state.power == "poweredOff"


async def test_the_next_backup_is_full_and_says_why(original):
    await original.back_up()
    change(original)
    since = original.disks[0].change_id
    receipt = await original.restore()
    assert "Change tracking of web01 was reset: its next backup reads 2 disks in full." in receipt.remarks
    original.state.power = "poweredOn"
    original.write((0, 3072 * KiB, b"later"))
    report = await original.back_up()
    assert original.disks[0].change_id.partition("/")[0] != since.partition("/")[0]
    for disk in report.disks:
        assert disk.mode == "full"
        assert "tracking was reset since then" in disk.reason
    change(original)
    await original.restore(backup=1)
    assert original.holds(1) == [True, True]


async def test_a_vm_without_change_tracking_gets_none(original):
    original.state.change_tracking = False
    for disk in original.disks:
        disk.disable_tracking()
    await original.back_up()
    change(original)
    calls = original.lab.calls.get("CreateSnapshot_Task", 0) + original.lab.calls.get(
        "CreateSnapshotEx_Task", 0
    )
    receipt = await original.restore()
    assert not any("tracking" in remark for remark in receipt.remarks)
    after = original.lab.calls.get("CreateSnapshot_Task", 0) + original.lab.calls.get(
        "CreateSnapshotEx_Task", 0
    )
    assert after == calls  # no snapshot was needed
    assert not original.state.change_tracking


async def test_only_the_disks_that_are_named_are_written(original):
    await original.back_up()
    change(original)
    receipt = await original.restore(keys=["scsi0:1"])
    assert original.holds(0) == [False, True]
    assert "disk0 (scsi0:0)" in " ".join(receipt.remarks) or "Hard disk 1 (scsi0:0)" in " ".join(
        receipt.remarks
    )


async def test_a_renamed_vm_is_found_by_its_uuid(original):
    await original.back_up()
    change(original)
    original.state.name = "web01-old"
    await original.restore()
    assert original.holds(0) == [True, True]


@contextmanager
def failing_after(monkeypatch, writes: int):
    """This many spans are written, then every write fails."""
    done = SimpleNamespace(spans=0)
    write = in_place._Writing.write

    async def dying(self, span) -> None:
        if done.spans >= writes:
            span.release()
            self.turns.release()
            raise SourceError("Injected: the host is gone.")
        done.spans += 1
        await write(self, span)

    with monkeypatch.context() as patch:
        patch.setattr(in_place._Writing, "write", dying)
        yield


async def test_a_restore_that_fails_half_way_is_told_marked_and_resumed(original, monkeypatch):
    await original.back_up()
    change(original)
    with failing_after(monkeypatch, 1):
        receipt = await original.restore()
    assert len(receipt.failures) >= 1
    notes = " ".join(note for one in leaves(receipt.failures[0]) for note in getattr(one, "__notes__", ()))
    assert "web01 is neither what it was nor what the point holds" in notes
    assert "Do not power it on" in notes
    assert original.state.extra_config[SETTING].startswith("to point ")
    assert not original.state.change_tracking
    [intent] = original.journal.intents()
    assert intent.kind is IntentKind.ROLLBACK
    async with original.vcenter.connect() as session:
        for look in (look_ahead, sweep):
            [swept] = await look(session, original.journal)
            assert swept.outcome is Outcome.KEPT
            assert "Do not power it on: run the same restore again" in swept.reason
    receipt = await original.restore()
    assert list(receipt.failures) == []
    assert "An earlier restore over web01 did not end" in " ".join(receipt.remarks)
    assert original.holds(0) == [True, True]
    assert original.state.change_tracking  # as it was before the first of the two
    assert original.journal.intents() == []
    assert SETTING not in original.state.extra_config


async def test_a_vm_that_is_mixed_is_not_backed_up(original, monkeypatch):
    await original.back_up()
    change(original)
    with failing_after(monkeypatch, 0):
        assert (await original.restore()).failures
    with pytest.raises(SourceError, match=r"web01 is not backed up: restore in place of web01: kept"):
        await original.back_up()
    assert len(await original.points()) == 1
    await original.restore()
    await original.back_up()
    assert len(await original.points()) == 2


async def test_a_restore_to_another_point_takes_over_from_one_that_failed(original, monkeypatch):
    await original.back_up()
    original.write((0, 1024 * KiB, random_bytes(5, 64 * KiB).tobytes()))
    await original.back_up()
    change(original)
    with failing_after(monkeypatch, 0):
        assert (await original.restore(backup=0)).failures
    receipt = await original.restore(backup=1)
    assert "compared from the beginning" in " ".join(receipt.remarks)
    assert original.holds(1) == [True, True]
    assert original.journal.intents() == []


async def test_a_restore_of_some_disks_does_not_end_one_that_left_others_mixed(original, monkeypatch):
    await original.back_up()
    change(original)
    with failing_after(monkeypatch, 0):
        assert (await original.restore()).failures
    with pytest.raises(NotInPlace, match=r"wrote its disks scsi0:0, which are not among those of this one"):
        await original.restore(keys=["scsi0:1"])
    [intent] = original.journal.intents()
    assert read_rollback(original.journal, intent.token).is_mixed


async def test_what_an_earlier_restore_had_done_is_written_again_when_it_changed_meanwhile(
    original, monkeypatch
):
    """Somebody powered the mixed VM on: what the journal calls done is not."""
    await original.back_up()
    change(original)
    with failing_after(monkeypatch, 0):
        assert (await original.restore()).failures
    [intent] = original.journal.intents()
    record = read_rollback(original.journal, intent.token)
    for key in record.disks:
        record = record.with_disk(key, phase=Phase.BEGUN, position=record.disks[key].capacity)
    rollbacks.write_rollback(original.journal, record)
    receipt = await original.restore()
    assert list(receipt.failures) == []
    assert original.holds(0) == [True, True]


async def test_a_disk_that_reads_otherwise_than_it_was_written_fails_the_proof(original, monkeypatch):
    await original.back_up()
    change(original)
    prove = in_place._OpenOverVm._prove

    async def spoiled(self, disk, pool):
        original.write((1, 128 * KiB, b"somebody else"))
        return await prove(self, disk, pool)

    monkeypatch.setattr(in_place._OpenOverVm, "_prove", spoiled)
    receipt = await original.restore(keys=["scsi0:1"])
    [failure] = receipt.failures
    assert isinstance(failure, IntegrityError)
    assert "Disk scsi0:1 reads back wrong at bytes" in str(failure)
    assert len(original.journal.intents()) == 1  # the VM stays marked
    assert SETTING in original.state.extra_config


async def test_a_second_restore_at_the_same_time_is_refused(original):
    await original.back_up()
    change(original)
    holding = trio.Event()
    target = original.target

    class Waiting:
        def open(self, access, pool, **options):
            return self._open(access, pool, **options)

        @asynccontextmanager
        async def _open(self, access, pool, **options):
            holding.set()
            await trio.sleep(0.5)
            async with original.vddk.open(access, pool, **options) as disk:
                yield disk

    async with trio.open_nursery() as nursery:
        nursery.start_soon(original.restore, 0, replace(target, writer=Waiting()))
        await holding.wait()
        with pytest.raises(NotInPlace, match=r"is being restored in place by run .*Wait until it has ended"):
            await original.restore()
    assert original.holds(0) == [True, True]


async def test_a_disk_that_a_killed_restore_still_has_open_is_waited_for(original):
    await original.back_up()
    change(original)
    tried = []

    class Locked:
        def open(self, access, pool, **options):
            tried.append(access.path)
            if options and len(tried) < 4:
                raise VddkError("Injected: the file is locked.", code=15)
            return original.vddk.open(access, pool, **options)

    receipt = await original.restore(target=replace(original.target, writer=Locked()), keys=["scsi0:0"])
    assert list(receipt.failures) == []
    assert len(tried) == 5  # the last to prove it
    assert original.holds(0)[0]


async def test_a_configuration_has_to_permit_it(original):
    await original.back_up()
    change(original)
    with pytest.raises(ConfigError, match=r"does not permit.*allow=True"):
        await original.restore(target=replace(original.target, allow=False))
    assert original.holds(0) == [False, False]


async def test_a_failure_before_the_first_byte_leaves_nothing(original):
    await original.back_up()
    change(original)

    class Refusing:
        def open(self, access, pool, **options):
            raise SourceError("Injected: no connection.")

    receipt = await original.restore(target=replace(original.target, writer=Refusing()))
    assert len(receipt.failures) == 2
    assert "Nothing of web01 was written." in receipt.failures[0].__notes__
    assert original.journal.intents() == []
    assert SETTING not in original.state.extra_config
    assert original.state.change_tracking
