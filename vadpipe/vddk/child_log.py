"""The library's log on a child's standard error: one line per message, tagged "D", "I", "W" or "P" by level.

Secrets are replaced by *** where the library logs them; the mover does the same again for everything the library
prints itself. Imported by the child process: only the standard library.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from . import abi, wire
else:
    import abi
    import wire

LOG_LINE = 2000  # bytes; well below PIPE_BUF, so lines of different threads do not mix
LOG = 2

# Warnings that healthy systems log (telemetry that cannot reach its server: VDDK 7.0 and later), for DEBUG.
NOISE = (b"CEIP", b"VDDK_PhoneHome", b"PhoneHome")

libc = ctypes.CDLL(None)
libc.vsnprintf.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]


class Log:
    """The library's log functions. The library calls them on any of its threads."""

    def __init__(self) -> None:
        self.secrets: list[bytes] = []
        self.probing = False  # warnings of a probe that may fail go to DEBUG
        # The library keeps these pointers: the objects must live as long as the process.
        self.functions = [abi.LogFunction(self._writer(level)) for level in (b"I", b"W", b"P")]

    def keep_secret(self, *secrets: str) -> None:
        self.secrets = [secret.encode() for secret in secrets if len(secret) >= wire.SHORTEST_SECRET]

    def _writer(self, level: bytes) -> Callable[[int, int], None]:
        def write(message: int, arguments: int) -> None:
            line = ctypes.create_string_buffer(LOG_LINE)
            libc.vsnprintf(line, LOG_LINE, message, arguments)
            self.line(level, line.value)
            if level == b"P":  # the library does not expect a panic to return
                os._exit(70)

        return write

    def line(self, level: bytes, text: bytes) -> None:
        for secret in self.secrets:
            text = text.replace(secret, b"***")
        if level == b"W" and (self.probing or any(noise in text for noise in NOISE)):
            level = b"D"
        send(LOG, level + b" " + b" ".join(text.split()) + b"\n")


def send(descriptor: int, record: bytes) -> None:
    """Write at most PIPE_BUF bytes at once. A closed pipe is ignored: the parent has ended."""
    try:
        os.write(descriptor, record)
    except OSError:
        return


def forbid_core_dumps() -> None:
    """Keep the memory of this process, which holds passwords, out of core files and from other processes.

    RLIMIT_CORE is not enough: the kernel ignores it where core_pattern is a pipe (core(5)).
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
