"""Ways to the secrets of a sealed repository: passphrases, key files, age identities; and new slots for them."""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

from pipeline import ConfigError, KiB
from pipeline.secrets import Secret, blot
from vadpipe.files import create, flush_directory, write_all

from .config import Origin
from .sealing import KEY_SIZE
from .wrapping import (
    KDF_SALT_SIZE,
    LONGEST_LABEL,
    SLOT_ID_SIZE,
    AgeHolder,
    Argon2,
    Slot,
    WrongKey,
    X25519Holder,
    pyrage,
    recipient,
)

log = logging.getLogger(__name__)

_SHORT_PASSPHRASE: Final = 12  # letters; below, a passphrase of words can be guessed in spite of Argon2id
_LARGEST_FILE: Final = 64 * KiB
_KEY_LINE: Final = re.compile(r"VADPIPE-KEY-1-([0-9a-f]{64})")
_ORIGIN: Final = Origin()


@dataclass(frozen=True)
class Passphrase:
    """A passphrase. It is asked for when a slot needs it, and shown never."""

    secret: Secret
    kind: ClassVar[str] = "passphrase"

    @classmethod
    def from_file(cls, path: Path) -> Passphrase:
        """The first line of a file or a pipe. Raises ConfigError."""
        return cls(Secret.from_text(_first_line(path, "passphrase")))

    def text(self) -> str:
        """The passphrase itself. Raises ConfigError, also for what is not UTF-8."""
        try:
            text = self.secret.reveal()
            text.encode()
        except UnicodeEncodeError:  # the cause is left out: it holds the passphrase
            raise ConfigError(
                f"The passphrase ({self.secret.origin}) is not UTF-8 text.", remedy="Give it as UTF-8."
            ) from None
        return text

    def holder(self, slot: Slot) -> X25519Holder:
        """Raises WrongKey, ConfigError; Damage for an impossible slot."""
        text = self.text()
        if not text:
            raise ConfigError("The passphrase is empty.", remedy="Give the one of a key slot.")
        assert slot.kdf is not None
        return _fitting(X25519Holder(slot.kdf.derive(text)), slot)


@dataclass(frozen=True)
class KeyFile:
    """A file that `make_key_file` wrote."""

    path: Path
    kind: ClassVar[str] = "keyfile"

    def holder(self, slot: Slot) -> X25519Holder:
        """Raises WrongKey, ConfigError."""
        return _fitting(self._holder, slot)

    @cached_property
    def _holder(self) -> X25519Holder:  # read once, as a pipe can be
        line = _first_line(self.path, "key file")
        found = _KEY_LINE.fullmatch(line.strip())
        blot(line)
        if found is None:
            raise ConfigError(
                f"{self.path} is not a key file: its first line is no VADPIPE-KEY-1-... with 64 digits.",
                remedy="Name a file that `vadpipe key file` made.",
            )
        blot(found.group(1))
        return X25519Holder(bytes.fromhex(found.group(1)))


@dataclass(frozen=True)
class AgeIdentity:
    """A file with age identities, as age-keygen writes it, or an ssh private key without a passphrase.

    Source: https://age-encryption.org/v1
    """

    path: Path
    kind: ClassVar[str] = "age"

    def holder(self, slot: Slot) -> AgeHolder:
        """Raises ConfigError. Whether it is that of the slot shows when it is used."""
        return self._holder

    @cached_property
    def _holder(self) -> AgeHolder:
        content, age = _small_file(self.path, "age identity"), pyrage()
        try:
            if content.startswith("-----BEGIN"):
                return AgeHolder([age.ssh.Identity.from_buffer(content.encode())])
            lines = [line.strip() for line in content.splitlines()]
            texts = [line for line in lines if line and not line.startswith("#")]
            for text in texts:
                blot(text)
            identities = [age.x25519.Identity.from_str(text) for text in texts]
        except age.IdentityError:
            identities = []  # the cause is left out: it may quote the file
        if not identities:
            raise ConfigError(
                f"{self.path} holds no age identity that can be used.",
                remedy="Name a file with lines AGE-SECRET-KEY-1..., or an ssh key without a passphrase.",
            )
        return AgeHolder(identities)


@dataclass(frozen=True)
class AgeRecipient:
    """An age recipient (`age1...` or an ssh public key) that gets a slot; its identity is not needed for that."""

    text: str
    kind: ClassVar[str] = "age"


Way = Passphrase | KeyFile | AgeIdentity
NewWay = Passphrase | KeyFile | AgeRecipient


def make_key_file(path: Path, origin: Origin = _ORIGIN) -> None:
    """Write a new key file, which only its owner may read. Raises ConfigError; a file is never replaced."""
    line = f"VADPIPE-KEY-1-{origin.random(KEY_SIZE).hex()}\n"
    blot(line.strip())
    try:
        descriptor = create(path)
        try:
            write_all(descriptor, [line.encode()])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        flush_directory(path.parent)
    except FileExistsError as exc:
        raise ConfigError(
            f"{path} exists already; a key file is never replaced.", remedy="Name a new file."
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f"The key file {path} cannot be written: {exc.strerror}.", remedy="Name another place."
        ) from exc


def new_slot(
    way: NewWay,
    label: str,
    naming: bytes,
    repository_id: bytes,
    origin: Origin,
    strength: Argon2,
) -> Slot:
    """A slot for the holder of a passphrase, a key file or an age identity.

    Args:
        strength: How a passphrase becomes a key; its salt is drawn here.

    Raises:
        ConfigError: The label, the passphrase, the key file or the recipient cannot be used.
    """
    check_label(label)
    slot_id = origin.random(SLOT_ID_SIZE).hex()
    slot = Slot(slot_id, way.kind, label, origin.timestamp(), "", "")
    if isinstance(way, AgeRecipient):
        recipient(way.text)
        return replace(slot, public=way.text)
    if isinstance(way, Passphrase):
        _check_new_passphrase(way.text())
        slot = replace(slot, kdf=replace(strength, salt=origin.random(KDF_SALT_SIZE)))
    holder = way.holder(slot)
    return replace(slot, public=holder.public, proof=holder.proof(slot_id, naming, repository_id))


def check_label(label: str) -> None:
    """Raises ConfigError for a label that cannot stand in a table."""
    if not label.strip() or len(label) > LONGEST_LABEL or not label.isprintable():
        raise ConfigError(
            f"{label[:LONGEST_LABEL]!r} cannot be the label of a key slot.",
            remedy=f"Use 1 to {LONGEST_LABEL} letters that can be printed.",
        )


def _check_new_passphrase(text: str) -> None:
    if not text.strip():
        raise ConfigError("A passphrase must not be empty.", remedy="Use several words.")
    if len(text) < _SHORT_PASSPHRASE:
        log.warning(
            "The new passphrase has fewer than %d characters: whoever gets a copy of the repository can guess it.",
            _SHORT_PASSPHRASE,
        )


def _fitting(holder: X25519Holder, slot: Slot) -> X25519Holder:
    """The holder, if the slot is its own, or a new one without a public key."""
    if slot.public and holder.public != slot.public:
        raise WrongKey
    return holder


def _first_line(path: Path, what: str) -> str:
    line = _small_file(path, what).partition("\n")[0].rstrip("\r")
    if not line:
        raise ConfigError(f"The first line of the {what} {path} is empty.", remedy="Name the right file.")
    return line


def _small_file(path: Path, what: str) -> str:
    """The text of a file or a pipe. Warns where others can read it. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_FILE + 1)
    except OSError as exc:
        raise ConfigError(
            f"The {what} {path} cannot be read: {exc.strerror}.",
            remedy="Name a file that this user may read.",
        ) from exc
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{path} is no {what}: it is too large.", remedy="Name the right file.")
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("Others can read the %s %s; chmod 600 takes that from them.", what, path)
    try:
        return content.decode()
    except UnicodeDecodeError:  # the cause is left out: it holds the content
        raise ConfigError(f"The {what} {path} is not UTF-8 text.", remedy="Name the right file.") from None
