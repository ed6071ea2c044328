"""Commands of the operating system, run in one place, so that tests can hand in recorded outputs."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Protocol

log = logging.getLogger(__name__)

NOT_FOUND = 127  # these two as a shell reports them
NOT_EXECUTABLE = 126
TIMED_OUT = 124  # as timeout(1) reports it
# DiskPart waits for the virtual disk service, which looks at every disk when it starts.
TIMEOUT_S = 120.0
# Not in the PATH of a plain user or a cron job; a program that is not found counts as not installed.
_ADMIN_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin") if os.name == "posix" else ()


class Run(Protocol):
    """Runs a command to its end: (exit code, output). NOT_FOUND and TIMED_OUT are exit codes, never exceptions."""

    def __call__(self, argv: Sequence[str], stdin: str = "") -> tuple[int, str]: ...


def run_command(argv: Sequence[str], stdin: str = "") -> tuple[int, str]:
    """Run it in a subprocess. The output is standard output; after a failure, followed by standard error."""
    begun = time.perf_counter()
    code, output = _run(argv, stdin)
    log.debug("%s ended with %d after %.2f s", " ".join(argv), code, time.perf_counter() - begun)
    return code, output


def _run(argv: Sequence[str], stdin: str) -> tuple[int, str]:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ADMIN_PATH))
    environment = {**os.environ, "LC_ALL": "C", "PATH": path}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        return NOT_FOUND, f"{argv[0]}: command not found"
    except PermissionError as exc:
        return NOT_EXECUTABLE, str(exc)
    except subprocess.TimeoutExpired:
        return TIMED_OUT, f"{argv[0]} did not end within {TIMEOUT_S:.0f} s"
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def failure(argv: Sequence[str], code: int, output: str) -> str:
    """A failed command in one line."""
    text = " ".join(output.split()) or "without any output"
    return f"`{' '.join(argv)}` failed with exit code {code}: {text}"
