"""Reading an open disk of any kind, as a mover reads it."""

import numpy as np
import trio

from pipeline import SPAN, BufferPool, Disk


async def whole_disk(disk: Disk, pool: BufferPool) -> np.ndarray:
    """The disk as a mover reads it: only what is allocated, all spans at once."""
    allocated = await disk.allocated(0, disk.capacity)
    image = np.zeros(disk.capacity, np.uint8)

    async def read(offset: int) -> None:
        wanted = allocated.within(offset, SPAN)
        buffer = await pool.acquire()
        try:
            await disk.read(buffer, offset, wanted)
            for start, length in wanted:
                image[start : start + length] = buffer.array[start - offset : start - offset + length]
        finally:
            buffer.release()

    async with trio.open_nursery() as nursery:
        for offset in range(0, disk.capacity, SPAN):
            nursery.start_soon(read, offset)
    return image
