"""Borrow the read side for a mover of your own: allocated blocks of every disk of a VM, zeros marked.

python embed.py /vms/web01
"""

import sys

import trio

from pipeline import Span, Unchanged, Zeros
from stages import AllocatedExtents, LocalVm, MarkZeros, ReadSpans


async def main(directory: str) -> None:
    async with LocalVm(directory).capture() as capture:
        for disk in capture.disks:
            data = zero = 0
            async with (AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()).open() as pieces:
                async for piece in pieces:
                    match piece:
                        case Span():
                            for offset, length in piece.data:
                                data += len(piece.bytes_of(offset, length))  # your put(offset, bytes)
                            zero += piece.zeros.total
                            piece.release()
                        case Zeros(_offset, length):
                            zero += length  # your zero(offset, length)
                        case Unchanged():
                            raise AssertionError("a full read leaves nothing out")
            print(f"{disk.key}: {data} bytes of data, {zero} of zeros")
            assert data + zero == disk.capacity


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
