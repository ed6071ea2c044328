"""Merging index segments: nothing is lost wherever it is cut off, and a repository survives any number of runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import NO_FRAME, IntegrityError, KiB, MiB, SinkError
from tests.vadpipe.repository.index_kit import (
    KEYS,
    REPOSITORY,
    SEALING,
    add_run,
    known,
    memory,
    pack_of,
    put_segment,
    random_digests,
    run_id,
    with_right_checks,
)
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import Repository, open_repository, verify
from vadpipe.repository.backends.contract import ObjectExists, Stored
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.objects import Objects, segment_name
from vadpipe.repository.index import merging
from vadpipe.repository.index.lookup import Index, Removed, RunIndex
from vadpipe.repository.index.merging import merge, smallest
from vadpipe.repository.index.segment_writer import TemporarySegment
from vadpipe.repository.index.segments import CHUNK_ROW, ENDED_SIZE, FRAMES, HEADER_SIZE, ROWS, Segment

FINAL = segment_name(run_id(99), 0)
sealed_or_not = pytest.mark.parametrize("sealing", [None, SEALING], ids=["plain", "sealed"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several windows of frames, ranges of digests and blocks in a small merge."""
    monkeypatch.setattr(merging, "FRAMES_AT_ONCE", 30)
    monkeypatch.setattr(merging, "ROWS_AT_ONCE", 90)
    monkeypatch.setattr(merging, "SORTED_AT_ONCE", 50)
    monkeypatch.setattr(merging, "_BLOCK", 250)


# --- the kernel ---


def stored_runs(sizes, sealing=None):
    """Runs of so many chunks: the objects, the names of their segments and their chunks."""
    objects, names = memory(), []
    chunks = [random_digests(seed, size) for seed, size in enumerate(sizes)]
    for number, digest in enumerate(chunks):
        names += add_run(objects, number, digest, sealing=sealing)
    return objects, names, chunks


def test_a_merged_segment_is_the_one_that_would_have_been_written_at_once():
    objects, names, chunks = stored_runs([300, 1, 77, 1500])
    assert merge(objects, REPOSITORY, names, FINAL)
    frames, packs, place = [], [], []
    for name in names:
        segment = Segment(objects, name, REPOSITORY)
        rows = segment.column(FRAMES, 0, segment.frames).copy()
        rows["pack"] += len(packs)
        packs += segment.packs()
        frames.append(rows)
        place.append(segment.column(ROWS, 0, segment.chunks)["place"].astype(np.int64))
    other = memory()
    put_segment(
        other, np.concatenate(chunks), np.concatenate(frames), np.concatenate(place), packs, name=FINAL
    )
    assert other.backend.read(FINAL) == objects.backend.read(FINAL)


@sealed_or_not
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_merge_keeps_what_stays_and_nothing_else(sealing, data):
    """Packs that are going to be removed, and frames that a predicate leaves out, in runs of any size."""
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    objects, names, chunks = stored_runs(sizes, sealing)
    packs = [pack_of(run, pack) for run, size in enumerate(sizes) for pack in range(-(-size // 32))]
    removed = frozenset(data.draw(st.sets(st.sampled_from(packs))))
    odd = data.draw(st.booleans())

    def keep(rows, ids):
        assert set(np.array(ids)[rows["pack"]]) <= set(packs)
        return rows["id"][:, 0] % 2 == 0 if odd else np.ones(len(rows), bool)

    expected = {}
    for name in names:
        segment = Segment(objects, name, REPOSITORY, sealing)
        for number, address in enumerate(segment.addresses(np.arange(segment.frames))):
            if address.pack not in removed and not (odd and address.id[0] % 2):
                low, high = segment.bounds(number, number + 1)
                rows = segment.column(ROWS, low, high)
                expected[address] = rows["digest"].tobytes(), rows["place"].tolist()
    written = merge(
        objects, REPOSITORY, names, FINAL, sealing=sealing, removed=Removed(packs=removed), keep_frame=keep
    )
    assert written == bool(expected) == objects.exists(FINAL)
    if not written:
        return
    merged = Segment(objects, FINAL, REPOSITORY, sealing)
    merged.prove()
    found = {}
    for number, address in enumerate(merged.addresses(np.arange(merged.frames))):
        rows = merged.column(ROWS, *merged.bounds(number, number + 1).tolist())
        found[address] = rows["digest"].tobytes(), rows["place"].tolist()
        assert (rows["frame"] == number).all()
    assert found == expected
    assert set(merged.packs()) == {address.pack for address in expected}
    everything = np.concatenate(chunks)
    held = np.frombuffer(b"".join(digests for digests, _ in expected.values()), np.uint8).reshape(-1, 32)
    assert (merged.find(held) >= 0).all()
    assert (merged.find(everything) >= 0).sum() == len(held)
    ids = merged.ids(np.arange(merged.frames))
    assert merged.find_frames(ids).tolist() == list(range(merged.frames))


def test_what_a_merge_that_was_cut_off_left_is_held_once():
    """The merged segment is there, and the old ones are not named by a removal: then all are merged again."""
    objects, names, chunks = stored_runs([100, 200, 300])
    merge(objects, REPOSITORY, names[:2], FINAL)
    again = segment_name(run_id(98), 0)
    merge(objects, REPOSITORY, [*names, FINAL], again)
    merged = Segment(objects, again, REPOSITORY)
    assert merged.chunks == 600
    assert (merged.find(np.concatenate(chunks)) >= 0).all()


def test_a_frame_that_lies_in_two_packs_stays_in_both():
    objects, names, chunks = stored_runs([64])
    other = memory()
    names += add_run(other, 7, chunks[0])
    objects.backend.put(names[1], [other.backend.read(names[1])])
    merge(objects, REPOSITORY, names, FINAL)
    objects.backend.delete(names)
    for going, staying in ((0, 7), (7, 0)):
        removed = Removed(packs=frozenset(pack_of(going, pack) for pack in range(2)))
        run = RunIndex(objects, REPOSITORY, run_id(3), KEYS, removed=removed)
        number, _ = run.lookup(chunks[0])
        assert {address.pack[:16] for address in run.addresses(number)} == {run_id(staying)}
        assert run.used_packs == {pack_of(staying, 0), pack_of(staying, 1)}


def test_a_name_that_is_taken_stops_a_merge():
    objects, names, _ = stored_runs([10, 10])
    objects.backend.put(FINAL, [b"VADENDED" + bytes(8)])
    with pytest.raises(ObjectExists):
        merge(objects, REPOSITORY, names, FINAL)


def test_a_damaged_segment_is_not_merged():
    objects, names, _ = stored_runs([300, 10])
    content = bytearray(objects.backend.read(names[0]))
    content[200] ^= 1
    objects.backend.replace(names[0], [content])
    with pytest.raises(IntegrityError, match="checksum of bytes"):
        merge(objects, REPOSITORY, names, FINAL)
    assert not objects.exists(FINAL)


def test_a_forged_segment_is_not_merged():
    """Rows with right checksums that name another frame than the one they belong to."""
    objects, (name,), chunks = stored_runs([64])
    content = bytearray(objects.backend.read(name))
    row = HEADER_SIZE + 40 * CHUNK_ROW.itemsize
    content[row + 32] ^= 1
    objects.backend.replace(name, [with_right_checks(objects, name, content)])
    with pytest.raises(IntegrityError, match="in another frame than its row says"):
        merge(objects, REPOSITORY, [name], FINAL)
    with pytest.raises(IntegrityError, match="a chunk lies where another one is stored"):
        RunIndex(objects, REPOSITORY, run_id(2), KEYS).lookup(chunks[0])
    assert not objects.exists(FINAL)


def test_temporary_files_of_a_sealed_merge_show_nothing(monkeypatch):
    contents = []

    class Watched(TemporarySegment):
        def close(self):
            self.file.flush()
            contents.append(self.read("", 0, self.size()))
            super().close()

    monkeypatch.setattr(merging, "TemporarySegment", Watched)
    objects, names, chunks = stored_runs([300, 40], SEALING)
    merge(objects, REPOSITORY, names, FINAL, sealing=SEALING)
    assert len(contents) > 4
    assert sum(map(len, contents)) > 340 * 40
    for content in contents:
        for digest in np.concatenate(chunks):
            head = digest[:8].tobytes()
            assert head not in content
            assert head[::-1] not in content


@pytest.mark.parametrize("large", [False, True])
def test_a_merge_killed_at_any_call_to_the_store_loses_nothing(large, monkeypatch):
    """Also in the middle of a large segment that is written in pieces."""
    if large:
        monkeypatch.setattr("vadpipe.repository.index.segment_writer._SMALL", 0)
        monkeypatch.setattr("vadpipe.repository.index.segment_writer.MiB", 1000)

    class Killed(BaseException):
        pass

    class Killing:
        def __init__(self, backend, left):
            self._backend, self._left = backend, left

        def __getattr__(self, name):
            call = getattr(self._backend, name)

            def counted(*arguments):
                self._left -= 1
                if self._left < 0:
                    raise Killed
                result = call(*arguments)
                if name != "begin":
                    return result
                upload = Killing(result, 0)
                upload.__dict__.update(_left=self._left)
                return upload

            return counted

    whole, names, chunks = stored_runs([50, 100, 3])
    finished = False
    for step in range(300):
        backend = MemoryBackend()
        for name in names:
            backend.put(name, [whole.backend.read(name)])
        try:
            merge(Objects(Killing(backend, step)), REPOSITORY, names, FINAL)
            finished = True
        except Killed:
            pass
        after = Objects(backend)
        index = Index(after, REPOSITORY)
        assert index.damaged == []
        assert (index.lookup(np.concatenate(chunks))[0] != NO_FRAME).all()
        index.drop_damaged()
        assert index.damaged == []
        if after.exists(FINAL):  # then the old ones may go
            backend.delete(names)
            index = RunIndex(after, REPOSITORY, run_id(5), KEYS)
            assert known(index, np.concatenate(chunks)).all()
        if finished:
            break
    assert finished
    assert step > 8


def test_a_store_that_fails_in_a_merge_is_named_and_nothing_is_published(monkeypatch):
    objects, names, _ = stored_runs([50, 100])

    def fails(name, parts):
        raise SinkError("The store is full.", remedy="Make room.")

    monkeypatch.setattr(objects.backend, "put", fails)
    with pytest.raises(SinkError, match="store is full"):
        merge(objects, REPOSITORY, names, FINAL)
    assert not objects.exists(FINAL)


# --- what is merged ---


def listed(*sizes):
    return [Stored(segment_name(run_id(number), 0), size, 0.0) for number, size in enumerate(sizes)]


def test_few_segments_are_left_alone():
    assert smallest(listed(*[1000] * merging.MOST), ()) == []


def test_the_smallest_are_merged_as_long_as_the_next_is_no_larger_than_all_before():
    stored = listed(*[100] * 9, 1000, *[5000] * 9)
    assert smallest(stored, ()) == [each.name for each in stored[:9]]
    stored = listed(*[100] * 9, 900, 1800, *[50000] * 9)
    assert smallest(stored, ()) == [each.name for each in stored[:11]]


def test_segments_of_runs_that_have_not_ended_are_left_alone():
    stored = listed(*[1000] * 20)
    assert smallest(stored, {run_id(number) for number in range(20)}) == []
    assert smallest(stored, {run_id(3)}) == [each.name for each in stored if each != stored[3]]


def test_names_of_runs_that_were_ended_do_not_count():
    assert smallest([*listed(*[1000] * 16), *listed(*[ENDED_SIZE] * 30)], ()) == []


def test_at_most_so_many_are_merged_at_once():
    assert len(smallest(listed(*[1000] * 600), ())) == merging.AT_ONCE


# --- in a repository ---

RUNS = 12


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty one whose segments are merged from the fifth on."""
    monkeypatch.setattr(merging, "MOST", 4)
    monkeypatch.setattr(merging, "FEWEST", 2)
    made = Repository(tmp_path / "repository")
    made.init()
    return made


def segments(repository):
    return sorted(Path(repository.place).glob("index/*.idx"))


@pytest.mark.slow
async def test_runs_merge_segments_and_everything_is_found(repository):
    disk = MemoryDisk(random_bytes(1, MiB))
    states, most = [], 0
    for run in range(RUNS):
        await backup(repository, [disk], incremental_path)
        states.append(disk.content.copy())
        most = max(most, len(segments(repository)))
        disk.write(64 * KiB * (run % 15), random_bytes(run + 2, 100 * KiB)[: 64 * KiB])
    assert most < RUNS
    assert len(segments(repository)) <= 6
    async with open_repository(repository.place) as reader:
        assert reader.damaged == ()
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
        assert (await verify(reader)).damages == ()


@pytest.mark.slow
async def test_a_run_after_merges_stores_nothing_twice(repository):
    disk = MemoryDisk(random_bytes(1, MiB))
    for run in range(6):
        await backup(repository, [disk], incremental_path)
        disk.write(64 * KiB * run, random_bytes(run + 2, 64 * KiB))
    await backup(repository, [disk], incremental_path)
    await backup(repository, [MemoryDisk(disk.content.copy())], incremental_path)
    async with open_repository(repository.place) as reader:
        assert reader.points[-1].disks[0].receipt.new == 0


MANY = """
import resource, sys, trio
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path, random_bytes, restore
from vadpipe.repository import Repository, open_repository, verify
import numpy as np

async def main():
    repository = Repository(sys.argv[1])
    disk = MemoryDisk(random_bytes(0, 1 << 18))
    for run in range(int(sys.argv[2])):
        disk.write(4096 * (run % 64), random_bytes(run, 4096))
        await backup(repository, [disk], incremental_path)
        await backup(repository, [disk], incremental_path)  # nothing new
    async with open_repository(repository.place) as reader:
        assert len(reader.points) == 2 * int(sys.argv[2])
        assert np.array_equal(await restore(reader, reader.points[-1]), disk.content)
        print(len(reader.index.segments), (await verify(reader)).damages)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("runs", "limit"),
    [
        pytest.param(60, 40, marks=pytest.mark.slow),
        pytest.param(550, 256, marks=pytest.mark.campaign),
    ],
)
def test_a_repository_survives_many_runs_with_few_descriptors(tmp_path, runs, limit):
    repository = Repository(tmp_path / "repository")
    repository.init()
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", MANY, str(repository.place), str(runs), str(limit)]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    count, _, damages = done.stdout.partition(" ")
    assert damages == "()\n"
    assert int(count) <= merging.MOST + 1
