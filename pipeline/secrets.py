"""Secrets: read late, shown never.

Every secret that was read is known from then on, so that whatever is logged or printed can be cleared of it: see
`blot` and `blotted`.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from urllib.parse import quote

from .errors import ConfigError

# A shorter text would blot out ordinary words; such a password protects nothing.
_SHORTEST = 4
_BLOT = "***"

_known: dict[str, None] = {}


def blot(text: str) -> None:
    """Make a secret known, e.g. a session cookie, so that `blotted` takes it out; of 4 letters or more."""
    if len(text) >= _SHORTEST and text not in _known:
        spellings = {text, json.dumps(text)[1:-1], repr(text)[1:-1], *_quoted(text)}
        _known.update(dict.fromkeys(spellings))


def blotted(text: str) -> str:
    """The text without any known secret, in plain or in the spelling of JSON, Python or a URL."""
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, _BLOT)
    return text


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
        """The first line that an inherited file descriptor gives; read once."""
        return cls(f"file descriptor {descriptor}", descriptor)

    @classmethod
    def from_keyring(cls, service: str, user: str) -> Secret:
        """The entry of the system's keyring, by the names that it was stored under; needs `keyring` installed.

        Source: https://keyring.readthedocs.io
        """
        return cls(f"keyring {service}, {user}", (service, user))

    @classmethod
    def from_text(cls, text: str) -> Secret:
        """A value that the caller already holds."""
        return cls("given", None, text)

    def reveal(self) -> str:
        """The secret itself; `blotted` knows it from then on. Raises ConfigError when its place is empty."""
        text = self._read()
        blot(text)
        return text

    def _read(self) -> str:
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
    """Asked anew each time: the keyring is the place that may hold it. Loaded here, so that only users need it."""
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


def _quoted(text: str) -> set[str]:
    """As a URL has it; a passphrase may hold bytes that are no text."""
    return {quote(text, safe=safe, errors="surrogatepass") for safe in ("/", "")}
