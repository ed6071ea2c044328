"""Secrets: read late, shown never."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .errors import ConfigError


@dataclass(frozen=True)
class Secret:
    """A password that is read when it is needed. Its repr names the place, never the value.

    >>> Secret.from_env("VC_PASSWORD")
    Secret(environment VC_PASSWORD)
    """

    origin: str
    _place: str | int | None = field(repr=False, compare=False)
    _text: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_env(cls, variable: str) -> Secret:
        """The value of an environment variable."""
        return cls(f"environment {variable}", variable)

    @classmethod
    def from_fd(cls, descriptor: int) -> Secret:
        """The first line that an inherited file descriptor gives; read once."""
        return cls(f"file descriptor {descriptor}", descriptor)

    @classmethod
    def from_text(cls, text: str) -> Secret:
        """A value that the caller already holds."""
        return cls("given", None, text)

    def reveal(self) -> str:
        """The secret itself. Raises ConfigError when its place is empty."""
        if self._text is not None:
            return self._text
        if isinstance(self._place, str):
            text = os.environ.get(self._place, "")
            if not text:
                raise ConfigError(
                    f"The environment variable {self._place} holds no password.",
                    remedy=f"Set it for this command: {self._place}=... vadpipe ...",
                )
            return text
        assert isinstance(self._place, int)
        text = _first_line(self._place)
        object.__setattr__(self, "_text", text)
        return text

    def __repr__(self) -> str:
        return f"Secret({self.origin})"

    __str__ = __repr__


def _first_line(descriptor: int) -> str:
    try:
        with os.fdopen(os.dup(descriptor), encoding="utf-8") as lines:
            text = lines.readline().rstrip("\r\n")
    except OSError as exc:
        raise ConfigError(
            f"File descriptor {descriptor} cannot be read for the password: {exc.strerror}.",
            remedy=f"Pass it open, for example: vadpipe run CONFIG.py {descriptor}<password-file",
        ) from exc
    if not text:
        raise ConfigError(f"File descriptor {descriptor} gave an empty password.")
    return text
