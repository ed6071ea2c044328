"""Borrow the read side for a mover without async: allocated blocks of every disk of a VM in a plain `for` loop.

python from_threads.py /vms/web01
"""

import sys

from pipeline import Span
from pipeline.blocking import Loop
from stages import AllocatedExtents, LocalVm, MarkZeros, ReadSpans


def main(directory: str) -> None:
    with Loop() as loop, loop.entered(LocalVm(directory).capture()) as capture:
        for disk in capture.disks:
            data = 0
            with loop.items(AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()) as items:
                for item in items:
                    if isinstance(item, Span):
                        data += item.data.total  # your put(offset, bytes), from item.bytes_of(offset, length)
                        item.release()
            print(f"{disk.key}: {data} bytes of data")


if __name__ == "__main__":
    main(sys.argv[1])
