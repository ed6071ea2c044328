"""How the secrets of a sealed repository are wrapped for the holder of a key slot. Bytes: docs/repository.md.

A slot has an X25519 public key, or an age recipient. So whoever knows the secrets can wrap them for any slot, and
only its holder unwraps them. The private key of a holder is Argon2id of a passphrase, or stands in a key file.
"""

from __future__ import annotations

import importlib
import logging
import re
import struct
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from blake3 import blake3

from pipeline import ConfigError, GiB, KiB

from .config import Keys, Origin, parse, seal, unseal
from .objects import Damage
from .sealing import KEY_SIZE, Secrets, aes_gcm, cryptography_missing

if TYPE_CHECKING:
    from types import ModuleType

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

log = logging.getLogger(__name__)

VERSION: Final = 2
SLOT_ID_SIZE: Final = 8
KDF_SALT_SIZE: Final = 16
LONGEST_LABEL: Final = 100  # letters; it stands in tables and messages
_LONGEST_RECIPIENT: Final = 4 * KiB  # an ssh-rsa key of 16384 bits has 2.8 KB
_SECRETS_SIZE: Final = 2 * KEY_SIZE  # the naming key and the epoch key
_NONCE: Final = bytes(12)
_INFO: Final = struct.Struct("<12s16s8sI")


KINDS: Final = {"keyfile": "key file", "age": "age recipient", "passphrase": "passphrase"}

T = TypeVar("T")


class WrongKey(Exception):
    """The key is not the one of the slot; another one may be."""


@dataclass(frozen=True)
class Argon2:
    """The parameters of Argon2id. The default costs 1.25 CPU-seconds and 256 MiB for each guess.

    Source: RFC 9106.
    """

    passes: int = 3
    memory_kib: int = 256 * 1024
    lanes: int = 1
    salt: bytes = b""

    def check(self) -> None:
        """Refuse what no honest slot has, before any memory is taken. Raises Damage."""
        if not (1 <= self.passes <= 16 and 1 <= self.lanes <= 16):
            raise Damage(
                f"its Argon2id has {self.passes} passes and {self.lanes} lanes; 1 to 16 are possible"
            )
        if not 8 * self.lanes <= self.memory_kib <= 4 * GiB // KiB:
            raise Damage(f"its Argon2id needs {self.memory_kib} KiB; up to 4 GiB are possible")
        if len(self.salt) != KDF_SALT_SIZE:
            raise Damage(f"the salt of its Argon2id has {len(self.salt)} bytes instead of {KDF_SALT_SIZE}")

    @property
    def cost(self) -> int:
        """The KiB that are written, all passes together."""
        return self.passes * self.memory_kib

    def derive(self, passphrase: str) -> bytes:
        """The X25519 private key of a passphrase. Raises Damage, ConfigError."""
        self.check()
        text = unicodedata.normalize("NFC", passphrase).encode()
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
        except ModuleNotFoundError as exc:
            raise cryptography_missing() from exc
        started = time.monotonic()
        try:
            kdf = Argon2id(
                salt=self.salt,
                length=KEY_SIZE,
                iterations=self.passes,
                lanes=self.lanes,
                memory_cost=self.memory_kib,
            )
            key = kdf.derive(text)
        except UnsupportedAlgorithm as exc:
            raise ConfigError(
                "The OpenSSL of the package cryptography has no Argon2id, which passphrases need.",
                remedy="Install a wheel of cryptography from PyPI, or use a key file.",
            ) from exc
        log.debug("Argon2id with %d KiB: %.2f s", self.memory_kib, time.monotonic() - started)
        return key


@dataclass(frozen=True)
class Slot:
    """A key slot as it is stored. What `public` and `label` say is proved by its seal only.

    Attributes:
        id: 16 hexadecimal digits.
        kind: passphrase, keyfile or age.
        public: The X25519 public key, hexadecimal; of age the recipient.
        proof: Shows that the holder of the private key made the slot for this repository; empty for age.
        kdf: Only of passphrases.
    """

    id: str
    kind: str
    label: str
    created: str
    public: str
    proof: str
    kdf: Argon2 | None = None

    def __str__(self) -> str:
        return f"{self.id} ({KINDS[self.kind]} {self.label!r})"

    def content(self, naming: bytes) -> bytes:
        """The object to be written."""
        fields: dict[str, object] = {
            "version": VERSION,
            "id": self.id,
            "kind": self.kind,
            "label": self.label,
            "created": self.created,
            "public": self.public,
            "proof": self.proof,
        }
        if self.kdf is not None:
            fields["kdf"] = {
                "name": "argon2id",
                "passes": self.kdf.passes,
                "memory_kib": self.kdf.memory_kib,
                "lanes": self.kdf.lanes,
                "salt": self.kdf.salt.hex(),
            }
        return seal(fields, Keys.derive(naming).seal)

    @classmethod
    def parse(cls, slot_id: str, content: bytes) -> Slot:
        """A slot whose seal cannot be proved yet. Raises Damage."""
        fields = parse(content)
        _check_version(fields)
        kind = _typed(fields, "kind", str)
        if kind not in KINDS:
            raise Damage(f"its kind is {kind[:20]!r}, which this version does not know")
        if _typed(fields, "id", str) != slot_id:
            raise Damage("it is another slot under this name")
        public, proof, kdf = _typed(fields, "public", str), _typed(fields, "proof", str), None
        if kind == "age":
            if not 0 < len(public) <= _LONGEST_RECIPIENT or proof:
                raise Damage("its recipient is impossible")
        else:
            _from_hex(public, KEY_SIZE)
            _from_hex(proof, KEY_SIZE)
        if kind == "passphrase":
            kdf = _parse_kdf(fields)
        label, created = _typed(fields, "label", str), _typed(fields, "created", str)
        if len(label) > LONGEST_LABEL or len(created) > LONGEST_LABEL:
            raise Damage("its label is too long")
        return cls(slot_id, kind, label, created, public, proof, kdf)


def _parse_kdf(fields: Mapping[str, object]) -> Argon2:
    values: dict[str, object] = _typed(fields, "kdf", dict)
    if values.get("name") != "argon2id":
        raise Damage("its kdf is not argon2id")
    passes, memory_kib, lanes = (_typed(values, name, int) for name in ("passes", "memory_kib", "lanes"))
    kdf = Argon2(passes, memory_kib, lanes, _from_hex(_typed(values, "salt", str), KDF_SALT_SIZE))
    kdf.check()
    return kdf


class X25519Holder:
    """The private key of a slot."""

    def __init__(self, private: bytes) -> None:
        self._private = private
        self.public = _x25519(private).public_key().public_bytes_raw().hex()

    def unwrap(self, ephemeral: str, wrapped: bytes, public: str, info: bytes) -> bytes:
        """Raises Damage."""
        from cryptography.exceptions import InvalidTag

        key = _wrap_key(self._private, _from_hex(ephemeral, KEY_SIZE), ephemeral, public, info)
        try:
            return aes_gcm(key).decrypt(_NONCE, wrapped, info)
        except InvalidTag as exc:
            raise Damage("it was altered, or it belongs to another slot, epoch or repository") from exc

    def proof(self, slot_id: str, naming: bytes, repository_id: bytes) -> str:
        content = b"vadpipe slot" + repository_id + bytes.fromhex(slot_id) + naming
        return blake3(content, key=self._private).hexdigest()


class AgeHolder:
    """The identities of an age file."""

    def __init__(self, identities: list[object]) -> None:
        self._identities = identities

    def unwrap(self, ephemeral: str, wrapped: bytes, public: str, info: bytes) -> bytes:
        """Raises Damage; WrongKey where the identities do not open it."""
        age = pyrage()
        try:
            content = bytes(age.decrypt(wrapped, self._identities))
        except age.DecryptError as exc:
            raise WrongKey from exc
        if ephemeral or not content.startswith(info):
            raise Damage("it belongs to another slot, epoch or repository")
        return content[len(info) :]


# Wrapping.


def wrap(secrets: Secrets, epoch: int, slot: Slot, repository_id: bytes, origin: Origin) -> bytes:
    """The object with the naming key and the key of an epoch for the holder of a slot.

    Raises:
        Damage: The public key of the slot is impossible.
    """
    info, content = _info(repository_id, slot.id, epoch), secrets.naming + secrets.epochs[epoch]
    if slot.kind == "age":
        ephemeral = ""
        wrapped = bytes(pyrage().encrypt(info + content, [recipient(slot.public)]))
    else:
        private = origin.random(KEY_SIZE)
        ephemeral = _x25519(private).public_key().public_bytes_raw().hex()
        key = _wrap_key(private, _from_hex(slot.public, KEY_SIZE), ephemeral, slot.public, info)
        wrapped = aes_gcm(key).encrypt(_NONCE, content, info)
    fields = {
        "version": VERSION,
        "slot": slot.id,
        "epoch": epoch,
        "ephemeral": ephemeral,
        "wrapped": wrapped.hex(),
    }
    return seal(fields, Keys.derive(secrets.naming).seal)


def unwrap(
    content: bytes, epoch: int, slot: Slot, holder: X25519Holder | AgeHolder, repository_id: bytes
) -> tuple[bytes, bytes]:
    """The naming key and the epoch key.

    Raises:
        Damage: It was altered, or is of another slot, epoch or repository.
        WrongKey: These age identities do not open it.
    """
    fields = parse(content)
    _check_version(fields)
    if _typed(fields, "slot", str) != slot.id or _typed(fields, "epoch", int) != epoch:
        raise Damage("it belongs to another slot or epoch")
    ephemeral, wrapped = _typed(fields, "ephemeral", str), _any_hex(_typed(fields, "wrapped", str))
    found = holder.unwrap(ephemeral, wrapped, slot.public, _info(repository_id, slot.id, epoch))
    if len(found) != _SECRETS_SIZE:
        raise Damage(f"it holds {len(found)} bytes instead of {_SECRETS_SIZE}")
    naming, key = found[:KEY_SIZE], found[KEY_SIZE:]
    unseal(content, Keys.derive(naming).seal)
    if isinstance(holder, X25519Holder) and holder.proof(slot.id, naming, repository_id) != slot.proof:
        raise Damage("the slot was not made by its holder: somebody put other secrets in the place of yours")
    return naming, key


def epoch_content(epoch: int, secrets: Secrets, origin: Origin) -> bytes:
    """The object that takes an epoch into use."""
    fields = {
        "version": VERSION,
        "epoch": epoch,
        "created": origin.timestamp(),
        "digest": _epoch_digest(secrets.naming, secrets.epochs[epoch]),
    }
    return seal(fields, Keys.derive(secrets.naming).seal)


def check_epoch(content: bytes, epoch: int, naming: bytes) -> Callable[[bytes], bool]:
    """Prove the object of an epoch. Returns what tells whether a key is the key of this epoch. Raises Damage."""
    fields = unseal(content, Keys.derive(naming).seal)
    _check_version(fields)
    if _typed(fields, "epoch", int) != epoch:
        raise Damage("it is another epoch under this name")
    digest = _typed(fields, "digest", str)
    return lambda key: _epoch_digest(naming, key) == digest


def _epoch_digest(naming: bytes, key: bytes) -> str:
    return blake3(key, key=blake3(b"vadpipe repository epoch", key=naming).digest()).hexdigest()


def _info(repository_id: bytes, slot_id: str, epoch: int) -> bytes:
    return _INFO.pack(b"vadpipe wrap", repository_id, bytes.fromhex(slot_id), epoch)


def _wrap_key(private: bytes, peer: bytes, ephemeral: str, public: str, info: bytes) -> bytes:
    """The key between a private key and the public key of the other side. Raises Damage."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        shared = _x25519(private).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as exc:  # a point of small order, with which everybody would know the key
        raise Damage("a public key in it is impossible") from exc
    salt = bytes.fromhex(ephemeral) + bytes.fromhex(public)
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=info).derive(shared)


def _x25519(private: bytes) -> X25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    except ModuleNotFoundError as exc:
        raise cryptography_missing() from exc
    return X25519PrivateKey.from_private_bytes(private)


def pyrage() -> ModuleType:
    """The package that reads and writes age files. Raises ConfigError where it is missing."""
    try:
        return importlib.import_module("pyrage")
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "A key slot of age needs the Python package pyrage.",
            remedy="Install it beside vadpipe: pip install 'vadpipe[age]'",
        ) from exc


def recipient(text: str) -> object:
    """An age recipient. Raises ConfigError."""
    age = pyrage()
    try:
        if text.startswith("ssh-"):
            return age.ssh.Recipient.from_str(text)
        return age.x25519.Recipient.from_str(text)
    except (age.RecipientError, ValueError) as exc:
        raise ConfigError(
            f"{text[:80]!r} is no age recipient.", remedy="Give age1..., ssh-ed25519 ... or ssh-rsa ..."
        ) from exc


def _check_version(fields: Mapping[str, object]) -> None:
    if _typed(fields, "version", int) != VERSION:
        raise Damage(f"its version is {str(fields['version'])[:20]}, known is {VERSION}")


def _typed(fields: Mapping[str, object], name: str, wanted: type[T]) -> T:
    value = fields.get(name)
    if type(value) is not wanted:
        raise Damage(f"its field {name!r} is missing or of another type")
    return value


def _from_hex(text: str, size: int) -> bytes:
    content = _any_hex(text)
    if len(content) != size:
        raise Damage(f"a field has {len(content)} bytes instead of {size}")
    return content


def _any_hex(text: str) -> bytes:
    """Small digits only: one spelling for one value."""
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", text):
        raise Damage("a field is not hexadecimal")
    return bytes.fromhex(text)
