"""Keeping freed memory in the process.

Encoded frames of about a MiB come and go all the time. By default glibc maps and unmaps memory of that size, and
every time the kernel clears each page anew: measured 0.45 CPU-seconds per GiB read, a fifth of all (`make bench`).
With the thresholds raised, the same memory is used again; the process grows no further than its peak.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

from pipeline.units import MiB

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# About what a job holds in encoded frames; the C library accepts no more for the second.
TRIM_THRESHOLD = 32 * MiB
MMAP_THRESHOLD = 32 * MiB
# By default each thread gets an arena and keeps its own share of freed memory.
ARENAS = 1


def keep_freed_memory() -> None:
    """Tell the C library; where it is not glibc, nothing happens. For programs, not for libraries."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(_M_ARENA_MAX, ARENAS)
