"""A replica: increments write what changed, a crash at any moment is recovered, a proof finds what is wrong."""

import json
import os
import subprocess

import numpy as np
import pytest
import trio

from pipeline import (
    SPAN,
    BufferPool,
    ChangedAreas,
    ChangeTrackingInvalid,
    ConfigError,
    Extents,
    IntegrityError,
    KiB,
    MachineId,
    MiB,
    SinkError,
    Span,
    Window,
    Zeros,
)
from pipeline.errors import leaves
from pipeline.testing import FakeMachine, FaultyDisk, PatternDisk, check_sink, check_stage
from sinks.migrate import Migrate
from sinks.replica import IntoReplica, Replica
from sinks.replica_places import place_of
from sinks.replica_proof import prove_replica
from stages.extents import ChangedExtents
from stages.read import ReadSpans
from stages.remember import RememberRanges
from stages.zeros import MarkZeros
from tests.sinks.replica_kit import (
    CAPACITY,
    Moving,
    changed,
    doubt,
    image_content,
    path,
    qemu,
    written,
    zeros_of,
)
from tests.sinks.target_kit import tool
from vadpipe.nbd import Nbd
from vadpipe.nbd.writer import NbdWriter

pytestmark = pytest.mark.slow


@pytest.fixture
def moving(tmp_path):
    return Moving(tmp_path)


async def test_an_increment_writes_what_changed_and_nothing_else(moving):
    first = await moving.increment()
    assert moving.matches()
    assert first.point == "increment-1"
    moving.disk.write(5 * MiB, 200 * KiB, seed=1)
    moving.disk.write(CAPACITY - 700, 700, seed=2)
    second = await moving.increment()
    assert moving.matches()
    assert second.disks[0].mode == "incremental"
    assert written(second) == changed(second) < MiB


async def test_a_changed_block_with_the_same_content_is_not_written(moving):
    await moving.increment()
    moving.disk.write(MiB, 64 * KiB, seed=1)
    await moving.increment()
    moving.disk.write(MiB, 64 * KiB, seed=1)
    receipt = await moving.increment()
    assert changed(receipt) == 64 * KiB
    assert written(receipt) == 0


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_what_became_zero_gives_its_space_back(tmp_path, form):
    moving = Moving(tmp_path, form, PatternDisk(CAPACITY, hole_ratio=0, zero_ratio=0))
    await moving.increment()
    before = moving.image.stat().st_blocks
    moving.disk.erase(2 * MiB, 12 * MiB)
    receipt = await moving.increment()
    assert moving.matches()
    assert written(receipt) == 0
    assert zeros_of(moving.image, form) >= 12 * MiB
    if form == "raw":
        assert moving.image.stat().st_blocks < before


@pytest.mark.parametrize("nth", [2, 4])
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_write_that_fails_leaves_its_range_in_doubt_and_the_next_increment_writes_it_again(
    moving, monkeypatch, nth, how
):
    """`after`: the bytes arrived, but nobody was told: the digests must not be believed."""
    await moving.increment()
    for place in range(9):
        moving.disk.write(2 * place * MiB + 64 * KiB, 300 * KiB, seed=place)
    calls = []
    real = NbdWriter.write

    async def failing(self, buffer, offset, wanted):
        calls.append(offset)
        number = len(calls)
        if how == "after" or number != nth:
            await real(self, buffer, offset, wanted)
        if number == nth:
            raise SinkError("Injected.")

    with monkeypatch.context() as patched:
        patched.setattr(NbdWriter, "write", failing)
        with pytest.raises(ExceptionGroup) as failed:
            await moving.increment()
        assert [str(leaf) for leaf in leaves(failed.value)] == ["Injected."]
        assert doubt(moving).total >= 300 * KiB
        with pytest.raises(IntegrityError, match="did not end"):
            await prove_replica(moving.replica)
    moving.disk.write(20 * MiB, 64 * KiB, seed=77)
    await moving.increment()
    assert moving.matches()
    assert not len(doubt(moving))
    await prove_replica(moving.replica)


async def test_ranges_in_doubt_are_written_again_when_the_guest_wrote_the_old_bytes_back(moving, monkeypatch):
    """The digests say that nothing differs, and the replica may hold the half of an increment."""
    moving.disk.write(MiB, 64 * KiB, seed=1)
    await moving.increment()
    moving.disk.write(MiB, 64 * KiB, seed=2)

    async def lost(self, reached):
        raise SinkError("Injected.")

    with monkeypatch.context() as patched:
        patched.setattr("sinks.replica.OpenReplicaDisk.settle", lost)
        patched.setattr("vadpipe.replica.digests.DigestFile.write", lambda *_: None)
        with pytest.raises(ExceptionGroup):
            await moving.increment()
    moving.disk.write(MiB, 64 * KiB, seed=1)
    receipt = await moving.increment()
    assert written(receipt) == 64 * KiB
    assert moving.matches()


@pytest.mark.parametrize("method", ["allocated", "changed", "read"])
async def test_a_source_that_fails_leaves_a_replica_that_the_next_increment_completes(moving, method):
    await moving.increment()
    moving.disk.write(3 * MiB, 9 * MiB, seed=3)
    with pytest.raises(Exception, match=r"transfer failed|Injected"):
        await moving.increment(FaultyDisk(moving.disk, method, 1))
    await moving.increment()
    assert moving.matches()


async def test_an_increment_that_was_not_published_is_asked_for_again(moving):
    await moving.increment()
    moving.disk.write(MiB, MiB, seed=4)
    machine = FakeMachine([moving.disk], moved=SinkError("Moved."))
    with pytest.raises(SinkError, match="Moved"):
        await Migrate(machine, path, into=moving.replica).run()
    receipt = await moving.increment()
    assert receipt.disks[0].changed == MiB
    assert written(receipt) == 0  # it is there already, and durable
    assert moving.matches()


class Untracked(FaultyDisk):
    """A disk whose change tracking was reset."""

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid("Tracking was reset.")


async def test_lost_change_tracking_becomes_a_comparison_that_writes_what_differs(moving):
    await moving.increment()
    moving.disk.write(7 * MiB, 128 * KiB, seed=5)
    receipt = await moving.increment(Untracked(moving.disk, "", 0))
    assert receipt.disks[0].mode == "full"
    assert written(receipt) == 128 * KiB
    assert moving.matches()


async def test_a_full_increment_finds_what_change_tracking_did_not_report(moving):
    await moving.increment()
    moving.disk.write(9 * MiB, 64 * KiB, seed=6)
    moving.disk._written.clear()
    receipt = await moving.increment()
    assert written(receipt) == 0
    assert not moving.matches()
    receipt = await moving.job().increment(full=True)
    assert written(receipt) == 64 * KiB
    assert moving.matches()


async def test_a_checkpoint_saves_what_was_written_from_being_written_again(moving, monkeypatch):
    moving.disk = PatternDisk(CAPACITY, hole_ratio=0, zero_ratio=0)
    calls = []
    real = NbdWriter.write

    def often(disk, replica):
        return path(disk, replica).flow | IntoReplica(replica, disk, checkpoint=4 * MiB)

    async def failing(self, buffer, offset, wanted):
        calls.append(offset)
        if offset >= 4 * SPAN:
            raise SinkError("Injected.")
        await real(self, buffer, offset, wanted)

    with monkeypatch.context() as patched:
        patched.setattr(NbdWriter, "write", failing)
        with pytest.raises(ExceptionGroup):
            await moving.increment(path=often)
    left = doubt(moving)
    assert len(left) == 1
    assert SPAN <= left.start[0] <= 4 * SPAN
    receipt = await moving.increment(path=often)
    assert written(receipt) == left.total
    assert moving.matches()


async def test_a_replica_that_somebody_else_wrote_to_is_found_and_mended(moving):
    await moving.increment()
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 6M 64k", moving.image)
    with pytest.raises(
        IntegrityError, match=r"holds other bytes .* 64.0 KiB in 1 ranges, the first at 6291456"
    ):
        await prove_replica(moving.replica)
    receipt = await moving.increment()
    assert any("in doubt" in remark for remark in receipt.remarks)
    assert moving.matches()
    [proof] = await prove_replica(moving.replica)
    assert proof.read > 0


async def test_a_proof_of_what_changed_reads_no_more(moving):
    await moving.increment()
    [whole] = await prove_replica(moving.replica, whole=False)
    assert whole.looked_at == CAPACITY
    moving.disk.write(3 * MiB, 128 * KiB, seed=1)
    moving.disk.erase(9 * MiB, 64 * KiB)
    await moving.increment()
    [changed] = await prove_replica(moving.replica, whole=False)
    assert (changed.looked_at, changed.read) == (192 * KiB, 128 * KiB)
    [nothing] = await prove_replica(moving.replica, whole=False)
    assert nothing.looked_at == 0


async def test_a_replica_that_changed_between_increments_is_proved_as_a_whole(moving):
    await moving.increment()
    await prove_replica(moving.replica)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 6M 64k", moving.image)
    receipt = await moving.increment()
    assert "was changed since increment 1" in receipt.remarks[0]
    with pytest.raises(IntegrityError, match="the first at 6291456"):
        await prove_replica(moving.replica, whole=False)


async def test_a_cut_over_ends_the_migration(moving):
    await moving.increment()
    moving.disk.write(MiB, MiB, seed=8)
    receipt = await moving.job().cut_over()
    assert moving.matches()
    assert receipt.increments == 2
    assert json.loads((moving.root / "migration" / "receipt.json").read_text())["down_s"] >= 0
    with pytest.raises(SinkError, match="was cut over"):
        await moving.increment()


async def test_a_path_that_does_not_remember_is_refused(moving):
    def forgetful(disk, replica):
        return (
            ChangedExtents(disk, replica.previous(disk))
            | ReadSpans(disk)
            | MarkZeros()
            | IntoReplica(replica, disk)
        )

    with pytest.raises(ConfigError, match="does not remember"):
        await moving.increment(path=forgetful)


async def test_a_path_that_leaves_out_what_is_in_doubt_is_refused(moving, monkeypatch):
    await moving.increment()
    moving.replica.directory.put_in_doubt("scsi0:0", doubt(moving).whole(MiB, MiB))

    def careless(disk, replica):
        from pipeline import PreviousDisk

        previous = PreviousDisk("x", disk.capacity, disk.change_id)
        return (
            ChangedExtents(disk, previous)
            | RememberRanges(replica, disk)
            | ReadSpans(disk)
            | MarkZeros()
            | IntoReplica(replica, disk)
        )

    with pytest.raises(ExceptionGroup) as failed:
        await moving.increment(path=careless)
    assert "left out a range" in str(leaves(failed.value)[0])


async def test_another_vm_and_a_taken_name_are_refused(moving):
    await moving.increment()
    other = FakeMachine([moving.disk], uuid="00000000-0000-0000-0000-000000000002")
    with pytest.raises(SinkError, match="is of fake"):
        await Migrate(other, path, into=moving.replica).run()
    elsewhere = Replica(moving.replica.place, state=moving.root / "another")
    with pytest.raises(Exception, match=r"transfer failed") as failed:
        await moving.increment(into=elsewhere)
    assert "exists already" in str(leaves(failed.value)[0])


async def test_a_disk_that_grew_is_refused(moving):
    await moving.increment()
    with pytest.raises(Exception, match=r"transfer failed") as failed:
        await moving.increment(PatternDisk(CAPACITY + MiB, seed=5))
    assert "when the migration began" in str(leaves(failed.value)[0])


async def test_a_disk_that_comes_later_or_goes_is_told(moving):
    await moving.increment()
    second = PatternDisk(4 * MiB, seed=9, key="scsi0:1")
    machine = FakeMachine([moving.disk, second])
    receipt = await Migrate(machine, path, into=moving.replica).run()
    assert [run.mode for run in receipt.disks] == ["incremental", "full"]
    receipt = await moving.increment()
    assert receipt.remarks == [
        "Disk scsi0:1 is in the replica and was not among the VM's disks this time: it stays as it is."
    ]
    assert len(await prove_replica(moving.replica)) == 2


@pytest.mark.parametrize(
    "place", ["nbd://host/x", "device:/dev/vg/web01", Nbd("host"), {"scsi0:0": "nbd://host/x"}]
)
def test_what_may_not_be_overwritten_is_refused_when_it_is_named(tmp_path, place):
    with pytest.raises(ConfigError, match="A migration overwrites what"):
        Replica(place, state=tmp_path)
    assert Replica(place, state=tmp_path, overwrite=True)


@pytest.mark.parametrize("place", ["", "qcow2:", "raw:-", "vmdk:/x", "null:", "rbd:pool/image"])
def test_what_is_no_place_is_refused_when_it_is_named(tmp_path, place):
    with pytest.raises(ConfigError, match="is no place for a replica"):
        Replica(place, state=tmp_path)


async def test_an_image_is_readable_by_its_owner_only(moving):
    await moving.increment()
    assert moving.image.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["removed", "cut"])
async def test_digests_that_are_lost_put_the_whole_disk_in_doubt(moving, damage):
    """Digests of zeros in their place would leave out what became zero."""
    moving.disk.write(MiB, MiB, seed=1)
    await moving.increment()
    moving.disk.erase(MiB, MiB)
    digests = moving.replica.directory.digests("scsi0:0")
    if damage == "removed":
        digests.unlink()
    else:
        os.truncate(digests, 8)
    receipt = await moving.increment(Untracked(moving.disk, "", 0))
    assert moving.matches()
    assert any("in doubt" in remark for remark in receipt.remarks)


async def test_two_runs_at_once_are_refused(moving):
    with moving.replica.directory.locked(), pytest.raises(SinkError, match="at work"):
        await moving.increment()


async def test_a_damaged_state_is_one_message(moving):
    await moving.increment()
    (moving.root / "migration" / "state.json").write_text("{}")
    with pytest.raises(SinkError, match="is damaged"):
        await moving.increment()


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_an_export_is_overwritten_wholly_and_keeps_holes(tmp_path, serve, form):
    image = tmp_path / f"target.{form}"
    size = CAPACITY + 4 * MiB - CAPACITY % (4 * MiB)
    qemu("qemu-img", "create", "-q", "-f", form, image, size)
    qemu("qemu-io", "-f", form, "-c", "write -P 0x5a 0 24M", image)
    socket = serve("qemu-nbd", "--persistent", "--discard=unmap", "-f", form, "-k", "SOCKET", image)
    disk = PatternDisk(CAPACITY, seed=5)
    into = Replica({"scsi0:0": Nbd(str(socket))}, state=tmp_path / "migration", overwrite=True)
    for seed in range(3):
        receipt = await Migrate(FakeMachine([disk]), path, into=into).run()
        disk.write((seed + 3) * MiB, 64 * KiB, seed=seed)
    assert written(receipt) == 64 * KiB
    await Migrate(FakeMachine([disk]), path, into=into).cut_over()
    serve.kill()
    content = image_content(image, form, tmp_path / "witness.raw")
    assert np.array_equal(content[:CAPACITY], disk.bytes_at(0, CAPACITY))
    assert zeros_of(image, form) > 6 * MiB


async def test_an_export_that_is_too_small_is_refused(tmp_path, serve):
    image = tmp_path / "small.raw"
    image.write_bytes(bytes(MiB))
    socket = serve("qemu-nbd", "--persistent", "-f", "raw", "-k", "SOCKET", image)
    into = Replica(Nbd(str(socket)), state=tmp_path / "migration", overwrite=True)
    with pytest.raises(ExceptionGroup) as failed:
        await Migrate(FakeMachine([PatternDisk(CAPACITY)]), path, into=into).run()
    assert "at least as large" in str(leaves(failed.value)[0])


async def test_an_image_that_a_dying_server_holds_is_waited_for(moving):
    await moving.increment()
    moving.disk.write(MiB, MiB, seed=4)
    place = place_of(moving.replica.place, "fake", "scsi0:0")
    async with trio.open_nursery() as nursery:

        async def hold(*, task_status):
            async with place.writing(moving.disk.pool, "held"):
                task_status.started()
                await trio.sleep(0.5)

        await nursery.start(hold)
        await moving.increment()
    assert moving.matches()


class Remembered(IntoReplica):
    async def run(self, inbox):
        await self.replica.remember(self.disk, Extents.whole(self.disk.capacity))
        return await super().run(inbox)


async def test_the_sink_keeps_the_rules_of_sinks(moving):
    disk = moving.disk

    def items():
        return [
            Span.of(disk.bytes_at(0, SPAN).tobytes(), pool=BufferPool(SPAN)),
            Zeros(SPAN, SPAN),
            *(
                Span.of(disk.bytes_at(at, min(SPAN, CAPACITY - at)).tobytes(), at)
                for at in range(2 * SPAN, CAPACITY, SPAN)
            ),
        ]

    async with moving.replica.open() as opened, opened.begin(MachineId("1", "fake")) as writer:
        await check_sink(
            lambda: Remembered(writer, disk),
            items,
            published=lambda: writer.state.number,
            view=lambda receipt: (receipt.capacity, receipt.read, receipt.unchanged),
        )


async def test_the_stage_keeps_the_rules_of_stages():
    noted = []

    class Notes:
        async def remember(self, disk, extents):
            noted.append(extents.total)

    disk = PatternDisk(CAPACITY)
    window = Window(0, CAPACITY, Extents.whole(MiB), Extents.whole(MiB, 4 * MiB))
    nothing = Window(0, CAPACITY, Extents.empty(), Extents.empty())
    views = await check_stage(lambda: RememberRanges(Notes(), disk), lambda: [window, nothing])
    assert len(views) == 2
    assert set(noted) == {2 * MiB}


async def test_a_path_without_the_stage_fails_before_it_writes(moving):
    await moving.increment()
    moving.disk.write(MiB, MiB, seed=3)
    machine = MachineId(FakeMachine([]).uuid, "fake")
    async with moving.replica.open() as opened, opened.begin(machine) as writer:
        pipeline = (
            ChangedExtents(moving.disk, writer.previous(moving.disk))
            | ReadSpans(moving.disk)
            | IntoReplica(writer, moving.disk)
        )
        with pytest.raises(ExceptionGroup) as failed:
            await pipeline.run()
    assert "without being remembered" in str(leaves(failed.value)[0])


@pytest.fixture
def device(tmp_path):
    """A loop device over a file that is full of something else."""
    image = tmp_path / "device.raw"
    image.write_bytes(b"\xaa" * (CAPACITY + 2 * MiB))
    made = subprocess.run(
        [tool("losetup"), "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run([tool("losetup"), "--detach", made.stdout.strip()], check=True)


async def test_a_block_device_is_overwritten_unless_it_is_in_use(tmp_path, device):
    disk = PatternDisk(CAPACITY, seed=5)
    job = Migrate(
        FakeMachine([disk]),
        path,
        into=Replica(f"device:{device}", state=tmp_path / "migration", overwrite=True),
    )
    held = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(ExceptionGroup) as failed:
            await job.run()
        assert "is in use" in str(leaves(failed.value)[0])
    finally:
        os.close(held)
    await job.run()
    disk.write(MiB, 64 * KiB, seed=1)
    receipt = await job.cut_over()
    assert written(receipt.last) == 64 * KiB
    content = np.fromfile(device, np.uint8)
    assert np.array_equal(content[:CAPACITY], disk.bytes_at(0, CAPACITY))
    assert (content[CAPACITY + 4096 :] == 0xAA).all()


async def test_a_cancelled_increment_leaves_a_sound_image(moving):
    def slow(disk, replica):
        return path(disk, replica).flow | Stalled(replica, disk)

    class Stalled(IntoReplica):
        async def run(self, inbox):
            self.replica.settle = cancelled
            return await super().run(inbox)

    async def cancelled(*_):
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await moving.increment(path=slow)
    qemu("qemu-img", "check", "-f", "qcow2", moving.image)
    assert len(doubt(moving))
    await moving.increment()
    assert moving.matches()
