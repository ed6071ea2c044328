"""Block digests of a replica, and the ranges that the state keeps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import SPAN, ContractError, Extents, KiB, MiB, SinkError, Span
from vadpipe.replica import BLOCK, DigestFile, Increment, ReplicaState, StateDirectory, digest_blocks
from vadpipe.replica.digests import extents_of, inside
from vadpipe.replica.estimate import estimate
from vadpipe.replica.state import ProofFigures, ReplicaDisk

KEY = bytes(range(32))


def test_a_block_of_zeros_has_a_digest_of_zeros_whether_it_was_read_or_not():
    content = np.zeros(4 * BLOCK, np.uint8)
    content[BLOCK + 5] = 1
    span = Span.of(content.tobytes())
    numbers, found = digest_blocks(span, KEY, 4 * BLOCK)
    assert numbers.tolist() == [0, 1, 2, 3]
    assert found.any(axis=1).tolist() == [False, True, False, False]
    data = Extents.whole(BLOCK, BLOCK)
    span.buffer.array[2 * BLOCK :] = 9  # what the buffer of another span held
    partly = replace(span, data=data, zeros=Extents.of([(0, BLOCK), (2 * BLOCK, 2 * BLOCK)]))
    assert np.array_equal(digest_blocks(partly, KEY, 4 * BLOCK)[1], found)


def test_a_short_last_block_is_a_block():
    capacity = BLOCK + 700
    span = Span.of(bytes([7]) * 700, BLOCK)
    numbers, found = digest_blocks(span, KEY, capacity)
    assert numbers.tolist() == [1]
    assert found.any()


def test_parts_of_blocks_are_refused():
    with pytest.raises(ContractError, match="parts of blocks"):
        digest_blocks(Span.of(bytes(4 * KiB)), KEY, MiB)


def test_the_file_says_what_was_written_and_zeros_elsewhere(tmp_path):
    with DigestFile.open(tmp_path / "digests", 100 * SPAN + 1) as file:
        digests = np.arange(32, dtype=np.uint8).reshape(2, 16)
        file.write(70, digests)
        file.flush()
    with DigestFile.open(tmp_path / "digests", 100 * SPAN + 1) as file:
        found = file.read(69, 4)
        assert np.array_equal(found[1:3], digests)
        assert not found[0].any()
        assert not found[3].any()
        assert len(file.read(100 * SPAN // BLOCK, 1)) == 1
        with pytest.raises(OSError, match="ends at"):
            file.read(100 * SPAN // BLOCK, 2)


ranges = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=8).map(
    lambda pairs: Extents.of([(low * BLOCK, length * BLOCK) for low, length in pairs])
)


@given(ranges)
def test_inside_and_extents_of_undo_each_other(extents):
    numbers = np.arange(240)
    mask = inside(numbers, extents)
    assert extents_of(numbers[mask], 240 * BLOCK) == extents


def test_ranges_come_back_as_they_were_kept(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    with directory.locked():
        assert not len(directory.doubt("scsi0:0"))
        assert directory.unproved("scsi0:0", MiB) == Extents.whole(MiB)
        extents = Extents.of([(0, 5), (1 << 50, 7)])
        directory.put_in_doubt("scsi0:0", extents)
        directory.keep_unproved("scsi0:0", Extents.empty())
        assert directory.doubt("scsi0:0") == extents
        assert not len(directory.unproved("scsi0:0", MiB))
        assert not len(directory.doubt("scsi0:1"))
    (tmp_path / "state" / "scsi0%3A0.doubt").write_bytes(b"123")
    with pytest.raises(SinkError, match="is damaged"):
        directory.doubt("scsi0:0")


def increment(number, **changes):
    sizes = {"read": 200, "touched": 200, "written": 100}
    values = {"ended": 100.0 * number, "wall_s": 6.0, "moving_s": 2.0, **sizes}
    return Increment(number=number, full=number == 1, **{**values, **changes})


def test_the_state_comes_back_as_it_was_saved(tmp_path):
    directory = StateDirectory(tmp_path)
    assert directory.load() is None
    disks = {"scsi0:0": ReplicaDisk(MiB, "/images/x", True, "52 aa/3", "1:2")}
    state = ReplicaState("uuid", "web01", disks=disks, increments=(increment(1),), proof=ProofFigures(5, 1.0))
    directory.save(state)
    assert directory.load() == state
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert state.key not in repr(state)


def test_a_cut_over_is_estimated_from_the_figures_of_the_increments():
    increments = (increment(1, read=1000, touched=9000), increment(2), increment(3))
    state = ReplicaState("uuid", "web01", increments=increments)
    found = estimate(state, now=350.0)
    assert found.change_rate == 2.0  # 200 bytes each 100 s, without the first, which was in full
    assert found.copy_rate == 1400 / 6
    assert found.pending == 100.0
    assert found.warm_s == pytest.approx(4 + 100 / (1400 / 6))
    assert found.last_s == pytest.approx(4 + 2 * found.warm_s / (1400 / 6))
    assert found.proof_s is None
    proved = replace(state, proof=ProofFigures(read=1000, wall_s=10.0))
    assert estimate(proved, now=300.0).proof_s == 10.0
    assert estimate(proved, now=300.0, unproved=100).proof_s == 1.0
    assert estimate(ReplicaState("uuid", "web01")) is None
