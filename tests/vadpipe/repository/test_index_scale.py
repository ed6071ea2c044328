"""What the index costs does not grow with the repository: memory, calls to the store, and the work of a merge."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import DIGEST_SIZE, MiB
from tests.vadpipe.repository.index_kit import (
    CHUNK,
    KEYS,
    REPOSITORY,
    SEALING,
    add_run,
    known,
    memory,
    random_digests,
    run_id,
)
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format.frames import chunk_table, frame_id
from vadpipe.repository.format.objects import Objects, pack_id, segment_name
from vadpipe.repository.format.packs import FRAME_ROW
from vadpipe.repository.index.lookup import DRAFT_ROWS, Removed, RunIndex
from vadpipe.repository.index.merging import merge
from vadpipe.repository.index.segment_writer import SegmentWriter, SortedEntries, TemporarySegment, publish
from vadpipe.repository.index.segments import CHUNK_ROW, Counts, heads

ROOT = Path(__file__).parents[3]
LIMIT = 192 * MiB
BLOCK = 1 << 16  # chunks of a synthetic segment that are made together
PER_FRAME = 16
PROVED = 8  # frames of a block whose ids are right; the others are never looked up


def block_of(number, blocks):
    """Digests of a block: ascending in a segment, so that it is written without sorting."""
    random = np.random.default_rng(number)
    digest = np.frombuffer(random.bytes(BLOCK * DIGEST_SIZE), np.uint8).reshape(-1, DIGEST_SIZE).copy()
    first = (number << 64) // blocks
    step = (1 << 64) // blocks // BLOCK
    head = np.uint64(first) + np.arange(BLOCK, dtype=np.uint64) * np.uint64(step)
    head += random.integers(0, step, BLOCK, dtype=np.uint64)
    digest[:, :8] = head.astype(">u8").view(np.uint8).reshape(-1, 8)
    return digest


def frames_of(number, digest):
    random = np.random.default_rng((number, 1))
    frames = np.zeros(BLOCK // PER_FRAME, FRAME_ROW)
    frames["id"] = np.frombuffer(random.bytes(frames["id"].nbytes), np.uint8).reshape(-1, DIGEST_SIZE)
    for row in range(PROVED):
        table = chunk_table(np.full(PER_FRAME, CHUNK), digest[row * PER_FRAME : (row + 1) * PER_FRAME])
        frames["id"][row] = np.frombuffer(frame_id(table, KEYS), np.uint8)
    frames["chunks"], frames["length"], frames["size"] = PER_FRAME, PER_FRAME * CHUNK, 1000
    frames["pack"] = number
    frames["offset"] = 48 + np.arange(len(frames)) * 1000
    return frames


def write_large(objects, name, blocks, directory):
    """A segment of so many blocks, without sorting and without having it in memory."""
    counts = Counts(blocks * BLOCK // PER_FRAME, blocks * BLOCK, blocks)
    temporary = TemporarySegment(name, directory)
    writer = SegmentWriter(temporary.file, name, REPOSITORY, counts)
    per_block = BLOCK // PER_FRAME
    for number in range(blocks):
        rows = np.empty(BLOCK, CHUNK_ROW)
        rows["digest"] = block_of(number, blocks)
        rows["frame"] = number * per_block + np.arange(BLOCK) // PER_FRAME
        rows["place"] = np.arange(BLOCK) % PER_FRAME * CHUNK
        writer.write(rows)
    writer.end_column()
    ids = []
    for number in range(blocks):
        frames = frames_of(number, block_of(number, blocks))
        ids.append(heads(frames["id"]))
        writer.write(frames)
    writer.end_column()
    writer.write(np.arange(0, counts.chunks, PER_FRAME, dtype="<u4"))
    writer.end_column()
    packs = [bytes.fromhex(pack_id(run_id(1), number)) for number in range(blocks)]
    writer.write(np.frombuffer(b"".join(packs), np.uint8))
    writer.end_column()
    chunks = SortedEntries(counts.chunks, with_filter=True)
    for number in range(blocks):
        row = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.uint32)
        for piece in chunks.add(heads(block_of(number, blocks)), row):
            writer.write(piece)
    writer.end_column()
    writer.write(chunks.starts())
    writer.end_column()
    writer.write(chunks.filter(last=True))
    writer.end_column()
    frame_ids = SortedEntries(counts.frames, with_filter=False)
    for piece in frame_ids.add(np.concatenate(ids)):
        writer.write(piece)
    writer.end_column()
    writer.write(frame_ids.starts())
    writer.end_column()
    writer.finish()
    publish(objects, temporary)
    temporary.close()


MEASURED = """
import json, sys
from pathlib import Path
from tests.vadpipe.repository import test_index_scale
result = getattr(test_index_scale, sys.argv[1])(Path(sys.argv[2]), int(sys.argv[3]))
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({**result, "peak": int(line.split()[1]) * 1024}))
"""


def in_a_process(function, place, blocks):
    """What a function of this module gives in a process of its own, and the memory of that."""
    arguments = [sys.executable, "-c", MEASURED, function, str(place), str(blocks)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def look_up_everything(place, blocks):
    """As a long run does it: hits in order and in none, unknown chunks, and then a full draft of new ones."""
    index = RunIndex(Objects(LocalBackend(place)), REPOSITORY, run_id(2), KEYS, directory=place)
    random = np.random.default_rng(3)
    hits = 0
    for number in random.permutation(blocks).tolist():
        digest = block_of(number, blocks)[: PROVED * PER_FRAME]
        hits += int(known(index, digest).sum()) + int(known(index, random.permutation(digest)).sum())
    missed = sum(int((~known(index, random_digests(1000 + turn, 5000))).sum()) for turn in range(4))
    loaded = index.filters.loaded
    for low in range(0, DRAFT_ROWS, 4096):
        for row in range(0, 4096, PER_FRAME):
            digest = random_digests(low + row, PER_FRAME)
            number = index.add_frame(np.full(PER_FRAME, CHUNK), digest, bytes(DIGEST_SIZE))
            index.stored(number, 0, 48 + row, 1000)
        index.lookup(digest)
    index.publish()
    index.close()
    return {"hits": hits, "missed": missed, "loaded": loaded, "asked": 2 * blocks * PROVED * PER_FRAME}


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks",
    [pytest.param(2_000_000, id="2M"), pytest.param(20_000_000, id="20M", marks=pytest.mark.campaign)],
)
def test_a_run_against_a_large_index_stays_below_192_mib(tmp_path, chunks):
    blocks = chunks // BLOCK + 1
    place = tmp_path / "repository"
    place.mkdir()
    name = segment_name(run_id(1), 0)
    write_large(Objects(LocalBackend(place)), name, blocks, place)
    try:
        found = in_a_process("look_up_everything", place, blocks)
    finally:
        (place / name).unlink()
    print(f"peak {found['peak'] / MiB:.0f} MiB, filters {found['loaded'] / MiB:.0f} MiB")
    assert found["hits"] == found["asked"]
    assert found["missed"] == 20_000
    assert found["loaded"] >= 2 * chunks
    assert found["peak"] <= LIMIT


def merge_two(place, blocks):
    objects = Objects(LocalBackend(place))
    names = [segment_name(run_id(number), 0) for number in (1, 3)]
    # Every frame of the first segment is in the second, too: half of them are dropped.
    merge(objects, REPOSITORY, names, segment_name(run_id(9), 0), directory=place)
    return {"size": objects.size(segment_name(run_id(9), 0))}


@pytest.mark.slow
def test_a_merge_needs_no_more_memory_for_a_larger_segment(tmp_path):
    peaks = []
    for blocks in (8, 32):
        place = tmp_path / str(blocks)
        place.mkdir()
        objects = Objects(LocalBackend(place))
        write_large(objects, segment_name(run_id(1), 0), blocks, place)
        write_large(objects, segment_name(run_id(3), 0), blocks // 2, place)
        try:
            found = in_a_process("merge_two", place, blocks)
        finally:
            shutil.rmtree(place)
        assert found["size"] > blocks * BLOCK * 50
        peaks.append(found["peak"])
    print([f"{peak / MiB:.0f} MiB" for peak in peaks])
    assert peaks[1] - peaks[0] < 16 * MiB
    assert peaks[1] < 128 * MiB


class Counting:
    """A backend that counts calls."""

    def __init__(self, backend):
        self.backend = backend
        self.calls = 0

    def __getattr__(self, name):
        self.calls += 1
        return getattr(self.backend, name)


@pytest.mark.slow
@pytest.mark.parametrize("sealing", [None, SEALING], ids=["plain", "sealed"])
def test_a_run_with_nothing_new_reads_the_same_at_the_hundredth_point(sealing):
    """One large first run, then many small ones, each of which stored a few chunks of the disk."""
    objects, disk = memory(), random_digests(0, 4096)
    add_run(objects, 0, disk, sealing=sealing)
    calls = []
    for number in range(1, 41):
        at = number * 50
        disk[at : at + 8] = random_digests(number, 8)
        add_run(objects, number, disk[at : at + 8], sealing=sealing)
        if number % 16 == 0:
            names = [stored.name for stored in objects.backend.list("index/")]
            merge(objects, REPOSITORY, names, segment_name(run_id(1000 + number), 0), sealing=sealing)
            objects.backend.delete(names)
        if number % 16 == 1:
            counting = Counting(objects.backend)
            index = RunIndex(Objects(counting), REPOSITORY, run_id(5000), KEYS, sealing)
            assert known(index, disk).all()
            assert index.filters.loaded == 0
            calls.append(counting.calls)
    assert max(calls) <= 2 * min(calls)


def test_a_run_that_knows_of_removals_finds_the_rest_in_order():
    """What lies in packs that go is unknown, and its neighbours are found beside it."""
    objects, disk = memory(), random_digests(0, 4096)
    add_run(objects, 1, disk, per_frame=16, packs=16)
    going = frozenset(pack_id(run_id(1), number) for number in (3, 7))
    index = RunIndex(objects, REPOSITORY, run_id(2), KEYS, removed=Removed(packs=going))
    expected = ~np.isin(np.arange(4096) // 256, (3, 7))
    assert np.array_equal(known(index, disk), expected)
    assert np.array_equal(known(index, disk[::-1]), expected[::-1])
    assert index.used_packs.isdisjoint(going)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--sealed",)], ids=["plain", "sealed"])
def test_the_index_bench_finds_what_is_there_and_nothing_else(tmp_path, options):
    sizes = ("--chunks", 20_000, "--lookups", 5_000, "--seed", 2, "--directory", tmp_path)
    command = [sys.executable, ROOT / "bench" / "index.py", *map(str, sizes), *options]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "20000 chunks" in lines[1]
    assert "seed 2" in lines[1]
    figures = {line.split()[0]: float(line.split()[1].replace(",", "")) for line in lines[2:]}
    assert figures["segments"] > 4
    assert 50 < figures["index_bytes_per_chunk"] < 60
    assert all(figures[f"{kind}_64_per_cpu_s"] > 0 for kind in ("missing", "random", "sequential"))
    assert figures["merge_rss_mib"] > 10
    assert list(tmp_path.iterdir()) == []
