import gc
import mmap
import os

import numpy as np
import pytest
import trio
import trio.testing

from pipeline import SPAN, BufferPool


async def test_a_buffer_is_page_aligned_and_a_child_can_map_it():
    pool = BufferPool(2 * SPAN)
    buffer = await pool.acquire()
    assert buffer.array.ctypes.data % mmap.PAGESIZE == 0
    buffer.array[:5] = np.frombuffer(b"hello", np.uint8)
    with mmap.mmap(os.dup(pool.fileno()), pool.size) as mapped:
        assert mapped[buffer.position : buffer.position + 5] == b"hello"


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
