"""What makes a file of clusters a qcow2 image: its tables and its header. Kernel.

Only what an overlay needs is written: version 3, clusters of 64 KiB, no snapshots, a raw backing file.

Source: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

CLUSTER: Final = 1 << 16  # the default
PER_TABLE: Final = CLUSTER // 8
TABLE: Final = PER_TABLE * CLUSTER  # bytes of a disk that one table describes: 512 MiB

# Entries of a table. 0 is what the backing file has.
ZERO: Final = 1  # reads as zero
OWN: Final = 1 << 63  # beside an offset: its cluster is used once
OFFSET: Final = 0x00FF_FFFF_FFFF_FE00

_PER_COUNTS: Final = CLUSTER // 2  # counts of 16 bits
_COUNT_ORDER: Final = 4  # 2 to the power of it is their size in bits
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT: Final = 0xE2792ACA

Table = NDArray[np.uint64]


def completion(size: int, tables: Mapping[int, Table], end: int, backing: str) -> Iterator[tuple[int, bytes]]:
    """What has to be written so that a file of clusters is an image: offset and content, the header last.

    Args:
        size: Bytes of the disk.
        tables: By their number, tables whose entries name clusters of the file.
        end: Where the clusters end. The first one is free: it gets the header.
        backing: The name of the backing file, at most 1023 bytes.
    """
    roots = np.zeros(max(-(-size // TABLE), 1), ">u8")
    used = [np.zeros(1, np.int64)]
    for number, table in sorted(tables.items()):
        yield end, table.astype(">u8").tobytes()
        roots[number] = OWN | end
        clusters = (table & np.uint64(OFFSET)) // np.uint64(CLUSTER)
        used += [np.array([end // CLUSTER]), clusters[clusters != 0].astype(np.int64)]
        end += CLUSTER
    roots_at = end
    yield roots_at, roots.tobytes()
    end += -(-roots.nbytes // CLUSTER) * CLUSTER
    used.append(np.arange(roots_at // CLUSTER, end // CLUSTER))
    places, counts = _counts(end // CLUSTER, np.concatenate(used))
    yield end, places
    yield end + len(places), counts
    yield 0, _header(size, backing, (roots_at, len(roots)), (end, len(places) // CLUSTER))


def _counts(first: int, used: NDArray[np.int64]) -> tuple[bytes, bytes]:
    """How often each cluster is used: places of the tables of counts, and these; both stored from `first` on."""
    blocks = roots = 1
    while first + roots + blocks > blocks * _PER_COUNTS:
        blocks += 1
        roots = -(-blocks // PER_TABLE)
    counts = np.zeros(blocks * _PER_COUNTS, ">u2")
    counts[used] = 1
    counts[first : first + roots + blocks] = 1
    places = np.zeros(roots * PER_TABLE, ">u8")
    places[:blocks] = (first + roots + np.arange(blocks)) * CLUSTER
    return places.tobytes(), counts.tobytes()


def _header(size: int, backing: str, roots: tuple[int, int], counts: tuple[int, int]) -> bytes:
    """`roots`: offset and entries of the first table. `counts`: offset and clusters of the table of counts."""
    name = backing.encode()
    extensions = _EXTENSION.pack(_BACKING_FORMAT, 3) + b"raw".ljust(8, b"\0") + _EXTENSION.pack(0, 0)
    header = _HEADER.pack(
        b"QFI\xfb", 3, _HEADER.size + len(extensions), len(name), CLUSTER.bit_length() - 1, size, 0,
        roots[1], roots[0], *counts, 0, 0, 0, 0, 0, _COUNT_ORDER, _HEADER.size,
    )  # fmt: skip
    return header + extensions + name
