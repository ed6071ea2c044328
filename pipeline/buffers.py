"""A bounded pool of page-aligned buffers in memory that a child process can share.

All buffers of a pool lie in one anonymous memory file: a reader's child process maps the same file and
reads the disk into it, and the kernels work there, so nothing is copied and only small messages cross a pipe. The
size of the pool bounds what a job holds of its disks: a reader that finds no free buffer waits, and so does
everything upstream.

`release` gives a buffer back. One that was not released goes back when its last array is gone: arrays keep their
buffer alive, so whoever still reads an array never sees the bytes of the next span.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import trio
from numpy.typing import NDArray

from .errors import LimitReached, limit_reached
from .meters import current_meter
from .units import SPAN, MiB

# Six spans: one that is read ahead, one that is received, one for each of two worker threads, and two in channels.
# More than this made no difference on two cores (vadpipe/bench/path.py).
DEFAULT_POOL = 24 * MiB


@dataclass(frozen=True)
class PoolStatistics:
    """Counts of buffers of a pool."""

    buffers: int
    free: int
    waiting: int


class Buffer:
    """One span of memory. `array` is its bytes as uint8, `position` its byte offset in the pool's file."""

    __slots__ = ("__weakref__", "_index", "_pool")

    def __init__(self, pool: BufferPool, index: int) -> None:
        self._pool = pool
        self._index = index

    @property
    def position(self) -> int:
        return self._index * SPAN

    @property
    def array(self) -> NDArray[np.uint8]:
        """The SPAN bytes of the buffer. The array keeps the buffer from being reused unless it is released."""
        if self._index < 0:
            raise ValueError("The buffer was released.")
        return np.asarray(self)

    @property
    def memory(self) -> memoryview:
        """The same bytes as a memoryview."""
        return self.array.data

    @property
    def __array_interface__(self) -> dict[str, object]:
        address = self._pool._address + self.position
        return {"version": 3, "shape": (SPAN,), "typestr": "|u1", "data": (address, False)}

    def release(self) -> None:
        """Give the memory back; from any thread, once or more often."""
        index, self._index = self._index, -1
        if index >= 0:
            self._pool._give_back(index)

    def __del__(self) -> None:
        self.release()


def _memory_file(size: int) -> int:
    """A file in memory; -1 where the system has none, or refuses one of this size."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        descriptor = os.memfd_create("vadpipe-buffers")
    except OSError:
        return -1
    try:
        os.ftruncate(descriptor, size)
    except OSError:  # a limit of file sizes
        os.close(descriptor)
        return -1
    return descriptor


class BufferPool:
    """`size` bytes of buffers of one span each. Memory is mapped at the first use.

    `fileno()` is the memory file for a child process to map.
    """

    def __init__(self, size: int = DEFAULT_POOL) -> None:
        self._count = max(1, size // SPAN)
        self._free = deque(range(self._count))
        self._lot = trio.lowlevel.ParkingLot()
        self._mapped: tuple[int, NDArray[np.uint8]] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._loop_thread = 0

    @property
    def size(self) -> int:
        return self._count * SPAN

    def fileno(self) -> int:
        """The descriptor of the memory, for another process to map.

        Raises:
            LimitReached: The system gave memory that cannot be shared.
        """
        descriptor = self._map()[0]
        if descriptor < 0:
            raise LimitReached(
                f"No file of {self.size} bytes in memory can be made (memfd_create), which a VDDK process needs.",
                remedy="Raise the limits of file sizes and open files (`ulimit -f`, `ulimit -n`).",
            )
        return descriptor

    async def acquire(self) -> Buffer:
        """A free buffer with undefined content; waits for one."""
        self._map()
        token = trio.lowlevel.current_trio_token()
        if self._token is not token:  # another run of trio, on this thread or on another one
            self._token, self._loop_thread = token, threading.get_ident()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._free:
            with current_meter().blocked():
                while not self._free:
                    await self._lot.park()
        return Buffer(self, self._free.popleft())

    def acquire_nowait(self) -> Buffer:
        """A free buffer with undefined content; needs no event loop. Raises trio.WouldBlock when none is free."""
        self._map()
        try:
            return Buffer(self, self._free.popleft())
        except IndexError:
            raise trio.WouldBlock from None

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(self._count, len(self._free), len(self._lot))

    @property
    def _address(self) -> int:
        return self._map()[1].ctypes.data

    def _map(self) -> tuple[int, NDArray[np.uint8]]:
        if self._mapped is None:
            descriptor = _memory_file(self.size)
            try:
                memory = mmap.mmap(descriptor, self.size)
            except OSError as exc:
                if descriptor >= 0:
                    os.close(descriptor)
                raise limit_reached(exc) or exc from exc
            self._mapped = descriptor, np.frombuffer(memory, dtype=np.uint8)
        return self._mapped

    def _give_back(self, index: int) -> None:
        self._free.append(index)
        if threading.get_ident() == self._loop_thread:
            self._lot.unpark()
        elif self._token is not None:
            try:
                self._token.run_sync_soon(self._lot.unpark)
            except trio.RunFinishedError:  # nobody can be waiting any more
                return

    def __del__(self) -> None:
        if self._mapped is not None and self._mapped[0] >= 0:
            os.close(self._mapped[0])  # the mapping itself lives as long as its last array
