"""Secrets: read when they are needed, never shown."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field

from .errors import ConfigError


@dataclass(frozen=True)
class Secret:
    """A password or a session cookie that is read when it is needed. Its repr names the place, never the value.

    >>> Secret.from_env("VC_PASSWORD")
    Secret(environment VC_PASSWORD)
    """

    origin: str
    _place: str | int | tuple[str, str] | None = field(repr=False, compare=False)
    _text: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_env(cls, variable: str) -> Secret:
        """The value of an environment variable."""
        return cls(f"environment {variable}", variable)

    @classmethod
    def from_fd(cls, descriptor: int) -> Secret:
        """The first line of an inherited file descriptor; read once."""
        return cls(f"file descriptor {descriptor}", descriptor)

    @classmethod
    def from_keyring(cls, service: str, user: str) -> Secret:
        """An entry of the system's keyring; needs the package `keyring`.

        Source: https://keyring.readthedocs.io
        """
        return cls(f"keyring {service}, {user}", (service, user))

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
        if isinstance(self._place, tuple):
            return _from_keyring(*self._place)
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


def _from_keyring(service: str, user: str) -> str:
    """The password, read at each use so that only the keyring keeps it. Only its users need the package."""
    try:
        keyring = importlib.import_module("keyring")
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"The password of {user} for {service} is in the keyring, but there is no Python package keyring.",
            remedy="Install it beside vadpipe: pip install keyring",
        ) from exc
    try:
        text = keyring.get_password(service, user)
    except keyring.errors.NoKeyringError as exc:
        raise ConfigError(
            f"This machine has no keyring to take the password of {user} from.",
            remedy="Start or install a backend ('keyring diagnose' lists them), or use the environment or a file "
            "descriptor.",
        ) from exc
    except keyring.errors.KeyringError as exc:
        raise ConfigError(
            f"The keyring does not give the password of {user} for {service}: {exc or type(exc).__name__}.",
            remedy="Unlock it for the account that vadpipe runs as, then run again.",
        ) from exc
    if not text:
        raise ConfigError(
            f"The keyring has no password of {user} for {service}.",
            remedy=f"Store it, as the account that vadpipe runs as: keyring set {service} {user}",
        )
    return str(text)
