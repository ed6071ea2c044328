"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pipeline.units import KiB


def machine_line() -> str:
    """Processor, cores, kernel and Python, on one line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def cpu_s() -> float:
    """CPU-seconds of this process and its ended children until now."""
    return sum(os.times()[:4])


def peak_rss() -> int:
    """Largest resident size of this process until now, bytes.

    Not that of getrusage, which begins with the size of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KiB
    return 0
