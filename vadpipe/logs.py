"""The log: where lines of the loggers under "vadpipe" go, and what is taken out of them.

Libraries of vadpipe only log; a program decides where to. `vadpipe` the command does so here. Whoever embeds
vadpipe attaches handlers of their own to the logger "vadpipe", with a `SecretFilter`.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import TextIO

from pipeline.errors import ConfigError
from pipeline.events import place
from pipeline.secrets import blot, blotted

__all__ = ["SecretFilter", "blot", "configure", "open_private"]

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_TRACEBACKS = logging.Formatter()


class SecretFilter(logging.Filter):
    """Takes every known secret out of a record, its traceback included, and names the job that it is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = blotted(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = blotted(record.exc_text or _TRACEBACKS.formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = blotted(record.stack_info)
        record.job = f" [{job}]" if (job := place().get("job")) else ""
        return True


class _Lines(logging.Formatter):
    """One line a record, with the time in UTC, so that logs of several machines can be merged."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        text = super().formatMessage(record)
        return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class _File(logging.StreamHandler[TextIO]):
    def close(self) -> None:
        self.stream.close()
        super().close()


def configure(verbosity: int = 0, *, quiet: bool = False, file: Path | None = None) -> None:
    """Send the log of this process to standard error or to a file. May be called again; the last call counts.

    Args:
        verbosity: 0: nothing on standard error; 1: waits, retries and fallbacks; 2: every call to the outside.
        quiet: Nothing on standard error, whatever the verbosity.
        file: Append to this file instead; it is made readable by its owner only. Without verbosity level INFO.

    Raises:
        ConfigError: The file cannot be written.
    """
    log = logging.getLogger("vadpipe")
    for old in list(log.handlers):
        log.removeHandler(old)
        old.close()
    log.propagate = False
    level = _LEVELS[min(verbosity, 2)]
    handler: logging.Handler
    if file is not None:
        handler = _File(open_private(file, "log file"))
        level = min(level, logging.INFO)
    elif verbosity and not quiet:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.NullHandler()
    handler.addFilter(SecretFilter())
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s%(job)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    logging.raiseExceptions = False  # a full disk must not print a traceback for every line


def open_private(path: Path, what: str) -> TextIO:
    """A text file to append to, readable by its owner only; a pipe or a device stays as it is.

    Raises:
        ConfigError: The file cannot be written. `what` names it, e.g. "log file".
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
    except OSError as exc:
        raise ConfigError(
            f"The {what} {path} cannot be written: {exc.strerror}.", remedy="Name another file."
        ) from exc
