"""Reading ahead: few requests where an object is read in order, little in vain where it is not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import KiB, MiB, SinkError
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.read_ahead import ReadAhead
from vadpipe.repository.backends.wrappers import Delayed, Fault, Faulty, Forwarding

PACK = "packs/00/x.pack"


class Reads(Forwarding):
    """Notes the ranges that are read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.ranges = []

    def read(self, name, offset=0, length=None):
        content = self.inner.read(name, offset, length)
        self.ranges.append((offset, len(content)))
        return content


def made(size=64 * MiB, **options):
    content = np.random.default_rng(1).integers(0, 256, size, np.uint8).tobytes()
    store = MemoryBackend()
    store.put(PACK, [content])
    reads = Reads(store)
    return content, reads, ReadAhead(reads, **options)


def test_frames_that_lie_side_by_side_are_read_with_few_requests():
    content, reads, backend = made()
    size = 1100 * KiB
    for offset in range(48, len(content), size):
        assert backend.read(PACK, offset, size) == content[offset : offset + size]
    assert len(reads.ranges) <= 11
    assert sum(length for _, length in reads.ranges) == len(content) - 48


def test_gaps_between_frames_are_read_over():
    content, reads, backend = made()
    for offset in range(0, len(content), 2 * MiB):
        assert backend.read(PACK, offset, MiB) == content[offset : offset + MiB]
    assert len(reads.ranges) <= 11


def test_heads_of_frames_are_read_alone():
    content, reads, backend = made(16 * MiB)
    for offset in range(0, len(content), MiB):
        backend.read(PACK, offset, 2 * KiB)
    assert sum(length for _, length in reads.ranges) == 16 * 2 * KiB


def test_reading_backwards_reads_nothing_in_vain():
    content, reads, backend = made(16 * MiB)
    for offset in reversed(range(0, len(content), MiB)):
        backend.read(PACK, offset, MiB)
    assert sum(length for _, length in reads.ranges) == len(content)


def test_other_objects_are_read_as_they_are_asked_for():
    store = MemoryBackend()
    store.put("index/x.idx", [bytes(MiB)])
    reads = Reads(store)
    backend = ReadAhead(reads)
    for offset in range(0, MiB, 64 * KiB):
        backend.read("index/x.idx", offset, 64 * KiB)
    assert len(reads.ranges) == 16


def test_memory_is_bounded_by_the_windows():
    store = MemoryBackend()
    for number in range(20):
        store.put(f"packs/00/{number}", [bytes(32 * KiB)])
    backend = ReadAhead(store, longest=8 * KiB, windows=3)
    for offset in range(0, 32 * KiB, KiB):
        for number in range(20):
            backend.read(f"packs/00/{number}", offset, KiB)
    assert sum(window.length for window in backend._windows.values()) <= 3 * 8 * KiB
    assert len(backend._reached) <= 12


@given(st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 200)), max_size=30))
def test_what_is_read_is_what_is_there(asked):
    content = bytes(number % 251 for number in range(1000))
    store = MemoryBackend()
    store.put(PACK, [content])
    backend = ReadAhead(store, longest=128, windows=2)
    for offset, length in asked:
        assert backend.read(PACK, offset, length) == content[offset : offset + length]


def test_threads_that_need_the_same_range_wait_for_one_request():
    content, reads, _ = made(8 * MiB)
    backend = ReadAhead(Delayed(reads, 0.02))
    backend.read(PACK, 0, MiB)
    together = threading.Barrier(4)

    def read(number):
        together.wait()
        return backend.read(PACK, MiB, MiB)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(read, range(4))) == {content[MiB : 2 * MiB]}
    assert len(reads.ranges) == 2


def test_a_request_that_fails_fails_for_who_waits_and_is_made_again_later():
    content, reads, _ = made(8 * MiB)
    backend = ReadAhead(Faulty(reads, [Fault("read", 2)]))
    backend.read(PACK, 0, MiB)
    with pytest.raises(SinkError, match="lost"):
        backend.read(PACK, MiB, MiB)
    assert backend.read(PACK, MiB, MiB) == content[MiB : 2 * MiB]


def test_what_is_deleted_is_not_read_from_memory():
    content, _, backend = made(4 * MiB)
    for offset in (0, MiB):
        backend.read(PACK, offset, MiB)
    backend.delete([PACK])
    with pytest.raises(Exception, match=PACK):
        backend.read(PACK, 2 * MiB, KiB)


def test_latency_is_paid_by_the_request_and_not_by_the_frame():
    content, reads, _ = made(32 * MiB)
    waits = []
    backend = ReadAhead(Delayed(reads, 0.02, sleep=waits.append))
    for offset in range(0, len(content), MiB):
        backend.read(PACK, offset, MiB)
    assert len(waits) <= 7
