"""Read one disk through VDDK alone, without vCenter's API: the allocated blocks into a raw image.

python vddk_alone.py LIBDIR /vms/web01/web01.vmdk web01.raw

A disk of a VM at a vCenter or ESXi host is opened in the same way, with
DiskAccess(path="[ds1] web01/web01.vmdk", vm="vm-16", snapshot="snapshot-42", server=..., user=..., password=...,
thumbprint=...).
"""

import os
import sys

import trio

from pipeline import Span, Unchanged, Zeros
from stages import AllocatedExtents, DiskAccess, ReadSpans, Vddk


async def main(libdir: str, source: str, target: str) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    async with Vddk(libdir).open(DiskAccess.local(source)) as disk:
        os.ftruncate(descriptor, disk.capacity)  # a hole reads as zeros
        async with (AllocatedExtents(disk) | ReadSpans(disk)).open() as pieces:
            async for piece in pieces:
                match piece:
                    case Span():
                        for offset, length in piece.data:
                            os.pwrite(descriptor, piece.bytes_of(offset, length).data, offset)
                        piece.release()
                    case Zeros():
                        pass
                    case Unchanged():
                        raise AssertionError("a full read leaves nothing out")
        print(
            f"{disk.label}: {disk.statistics().bytes_read} of {disk.capacity} bytes read over {disk.transport}"
        )
    os.close(descriptor)


if __name__ == "__main__":
    libdir, source, target = sys.argv[1:]
    trio.run(main, libdir, os.path.abspath(source), target)
