"""The entry point of the command `vadpipe`: what holds for the whole process, and how a command ends.

This module loads nothing but the standard library, so that signals are handled from the start and `--help` is fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from . import EXIT_INTERRUPTED, ending_signals

EXIT_USAGE = 2  # as in pipeline.errors, which takes long to load

_ADDRESS_SPACE = 384 << 20  # loading takes 200 MiB on two processors, and the threads of a run need theirs

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    for number in ending_signals():
        signal.signal(number, _end_at_once)
    # numpy's linear algebra, which nothing here uses, would start a thread per processor, and each spins at its
    # start: 0.1 CPU-seconds per processor after the first (bench/startup.py).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _forbid_core_dumps()
    _check_address_space()
    keep_freed_memory()
    code = _run(list(sys.argv[1:] if args is None else args))
    sys.exit(code)


def _run(args: list[str]) -> int:
    import click

    from .commands import vadpipe

    as_json = "--json" in args
    try:
        code = vadpipe.main(args, prog_name="vadpipe", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.UsageError as exc:
        with contextlib.suppress(OSError):
            exc.show()
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_INTERRUPTED
    except Exception as exc:
        from .output import report_failure

        code = report_failure(exc, as_json)
    code = code if isinstance(code, int) else 0
    output = sys.modules.get(f"{__package__}.output")  # loaded by every command, but not by --help
    return output.code_after_output(code) if output else code


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process while nothing has been begun; a running command has its own handler (see process.py)."""
    with contextlib.suppress(OSError, ValueError):
        os.write(2, f"vadpipe: Ended by {signal.Signals(number).name}; nothing was running.\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _forbid_core_dumps() -> None:
    """Passwords are in this process's memory, so none of it may land in a file. The VDDK child has its own rule."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _check_address_space() -> None:
    """Refuse an address space in which the libraries cannot even be loaded: they would end the process or hang."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
            told = f"vadpipe: The address space is limited to {limit >> 20} MiB"
            told += f", at least {_ADDRESS_SPACE >> 20} are needed. Raise it (`ulimit -v`) and run again.\n"
            os.write(2, told.encode())
            sys.exit(EXIT_USAGE)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory in the process. For programs, not for libraries.

    Encoded frames of about a MiB come and go all the time. By default glibc maps and unmaps memory of that size,
    and every time the kernel clears each page anew: measured 0.45 CPU-seconds per GiB read, a fifth of all (`make
    bench`). With the thresholds raised the same memory is used again, and the process grows no further than its
    peak.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)  # about what a job holds in encoded frames
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that the C library accepts
        libc.mallopt(_M_ARENA_MAX, 1)  # by default each thread keeps its own share of freed memory
