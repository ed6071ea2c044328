import errno
import gc
import mmap
import os

import numpy as np
import pytest
import trio
import trio.testing

from pipeline import SPAN, BufferPool, Extents, Span
from pipeline.errors import LimitReached, are_ours, limit_reached


async def test_a_buffer_is_page_aligned_and_a_child_can_map_it():
    pool = BufferPool(2 * SPAN)
    buffer = await pool.acquire()
    assert buffer.array.ctypes.data % mmap.PAGESIZE == 0
    buffer.array[:5] = np.frombuffer(b"hello", np.uint8)
    with mmap.mmap(os.dup(pool.fileno()), pool.size) as mapped:
        assert mapped[buffer.position : buffer.position + 5] == b"hello"


async def test_without_a_file_in_memory_buffers_work_but_cannot_be_shared(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    for call in ("ftruncate", "memfd_create"):
        monkeypatch.setattr(os, call, refuse)
        pool = BufferPool(SPAN)
        buffer = await pool.acquire()
        buffer.array[:] = 7
        with pytest.raises(LimitReached, match="ulimit -f"):
            pool.fileno()
        buffer.release()


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.EMFILE, ""), "ulimit -n"),
        (MemoryError(), "ulimit -v"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (ImportError("libx.so: failed to map segment from shared object"), "ulimit -v"),
        (ImportError("libx.so: cannot open shared object file: Too many open files"), "ulimit -n"),
    ],
    ids=repr,
)
def test_a_foreign_error_of_a_limit_names_the_limit(error, named):
    assert are_ours(ExceptionGroup("", [error]))
    assert named in str(limit_reached(error))
    wrapped = RuntimeError("internal error")
    wrapped.__cause__ = error
    assert named in str(limit_reached(wrapped))
    assert limit_reached(OSError(errno.EIO, "")) is None


async def test_acquire_waits_for_a_release():
    pool = BufferPool(SPAN)
    first = await pool.acquire()
    got = []

    async def second():
        got.append(await pool.acquire())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        assert pool.statistics().waiting == 1
        first.release()
    assert len(got) == 1


async def test_release_from_a_thread_wakes_a_waiter():
    pool = BufferPool(SPAN)
    first = await pool.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, first.release)
        with trio.fail_after(5):
            await pool.acquire()


async def test_a_forgotten_buffer_comes_back_when_its_last_array_is_gone():
    pool = BufferPool(SPAN)
    array = (await pool.acquire()).array
    part = array[10:20]
    del array
    gc.collect()
    assert pool.statistics().free == 0  # the part still needs it
    del part
    assert pool.statistics().free == 1


async def test_release_is_idempotent_and_ends_access():
    pool = BufferPool(2 * SPAN)
    buffer = await pool.acquire()
    buffer.release()
    buffer.release()
    assert pool.statistics().free == 2
    with pytest.raises(ValueError, match="released"):
        _ = buffer.array


async def test_a_cancelled_waiter_takes_nothing():
    pool = BufferPool(SPAN)
    buffer = await pool.acquire()
    with trio.move_on_after(0.01):
        await pool.acquire()
    buffer.release()
    assert pool.statistics() == type(pool.statistics())(1, 1, 0)


def test_a_pool_serves_one_run_after_the_other():
    pool = BufferPool(SPAN)

    async def use():
        buffer = await pool.acquire()
        await trio.to_thread.run_sync(buffer.release)

    trio.run(use)
    trio.run(use)
    assert pool.statistics().free == 1


def test_release_from_a_thread_wakes_a_waiter_of_a_later_run():
    pool = BufferPool(SPAN)

    async def wait_for_a_thread():
        held = await pool.acquire()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.acquire)
                await trio.testing.wait_all_tasks_blocked()
                await trio.to_thread.run_sync(held.release)

    for _ in range(2):
        trio.run(wait_for_a_thread)
        assert pool.statistics().waiting == 0


def test_a_span_is_made_from_bytes_without_an_event_loop():
    span = Span.of(b"hello", 3 * SPAN)
    assert (span.offset, span.length, span.data) == (3 * SPAN, 5, Extents.of([(3 * SPAN, 5)]))
    assert span.bytes_of(3 * SPAN + 1, 3).tobytes() == b"ell"


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (SPAN + 1, 0), (2, SPAN - 1)])
def test_bytes_that_are_no_span_are_refused(size, offset):
    with pytest.raises(ValueError, match="are no span"):
        Span.of(bytes(size), offset)


def test_acquiring_without_waiting_says_when_no_buffer_is_free():
    pool = BufferPool(SPAN)
    span = Span.of(b"one", pool=pool)
    with pytest.raises(trio.WouldBlock):
        pool.acquire_nowait()
    span.release()
    assert pool.acquire_nowait().position == 0
