"""The library's log on a child's standard error: one line per message, tagged "D", "I", "W" or "P" by level.

Secrets are blotted out should the library log them. Imported by the child process: only the standard library.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from . import abi
else:
    import abi

LOG_LINE = 2000  # bytes; well below PIPE_BUF, so lines of different threads do not mix
BLOTTED = 6  # characters of a secret: shorter ones are parts of words, and blots would give them away
LOG = 2

# Warnings of healthy systems: telemetry that cannot reach its server.
NOISE = (b"CEIP", b"VDDK_PhoneHome")

libc = ctypes.CDLL(None)
libc.vsnprintf.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]


class Log:
    """The library's log on standard error. Called on any thread of the library."""

    def __init__(self) -> None:
        self.secrets: list[bytes] = []
        self.probing = False  # a probe that fails is no reason to warn
        # The library keeps these pointers: the objects must live as long as the process.
        self.functions = [abi.LogFunction(self._writer(level)) for level in (b"I", b"W", b"P")]

    def keep_secret(self, *secrets: str) -> None:
        self.secrets = [secret.encode() for secret in secrets if len(secret) >= BLOTTED]

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
    """Write at most PIPE_BUF bytes at once. Nobody left to read them is seen by `leave_with_parent`."""
    try:
        os.write(descriptor, record)
    except OSError:
        return
