"""Encryption of a repository: documents, frames, cells of index segments. Kernel; bytes: docs/repository.md.

One object, one key. The key of an object is derived from the key of an epoch and a random salt that stands in the
object. So nonces are small numbers and never repeat under a key, however many machines write at the same time. What
an object is and where it belongs (repository, kind, name or frame id) is associated data: moved ones do not open.

The package `cryptography` is loaded with the first key. A repository that is not sealed never needs it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import xxhash
from blake3 import blake3

from pipeline import ConfigError, ContractError

from .objects import Damage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Random = Callable[[int], bytes]

KEY_SIZE: Final = 32
ID_SIZE: Final = 16
SALT_SIZE: Final = 16
TAG_SIZE: Final = 16  # AES-GCM, NIST SP 800-38D
LAST_EPOCH: Final = 2**32 - 1  # u32 in documents and frames

MAGIC: Final = b"VADSEAL2"
HEADER: Final = struct.Struct("<8sII16s")
_CHECKSUM: Final = struct.Struct("<Q")
_SMALLEST: Final = HEADER.size + TAG_SIZE + _CHECKSUM.size

FRAME_HEAD_SIZE: Final = 56  # bytes 0 to 56 of a frame: everything before its checksum
_FRAME_EPOCH: Final = struct.Struct("<20xI32x")
assert HEADER.size == 32
assert _FRAME_EPOCH.size == FRAME_HEAD_SIZE

_NONCE_SIZE: Final = 12
_DOCUMENT_NONCE: Final = bytes(_NONCE_SIZE)
_TABLE_NONCE: Final = bytes(_NONCE_SIZE)
_PAYLOAD_NONCE: Final = (1).to_bytes(_NONCE_SIZE, "little")

_ALTERED: Final = "its encryption does not fit: it was altered, or it belongs to another place or repository"


@dataclass(frozen=True)
class Secrets:
    """What opens a sealed repository. Its repr shows the numbers of the epochs only.

    Args:
        naming: The naming key, 32 bytes.
        epochs: The key of each epoch that can be read, 32 bytes, by number.
        newest: The epoch of new objects; when it is left out, the last one.
    """

    naming: bytes = field(repr=False)
    epochs: Mapping[int, bytes] = field(repr=False)
    newest: int = 0

    def __post_init__(self) -> None:
        if len(self.naming) != KEY_SIZE or any(len(key) != KEY_SIZE for key in self.epochs.values()):
            raise ContractError(f"A key of a repository has {KEY_SIZE} bytes.")
        if not self.epochs or min(self.epochs) < 1 or max(self.epochs) > LAST_EPOCH:
            raise ContractError(f"The epochs of a repository are numbered from 1 to {LAST_EPOCH}.")
        object.__setattr__(self, "newest", self.newest or max(self.epochs))
        if self.newest not in self.epochs:
            raise ContractError(f"The key of epoch {self.newest} is missing.")
        object.__setattr__(self, "epochs", MappingProxyType(dict(self.epochs)))

    @classmethod
    def draw(cls, random: Random = secrets.token_bytes) -> Secrets:
        """New secrets with one epoch."""
        return cls(random(KEY_SIZE), {1: random(KEY_SIZE)})

    def __repr__(self) -> str:
        return f"Secrets(epochs {', '.join(map(str, sorted(self.epochs)))})"


class Sealing:
    """The encryption of one opened repository.

    Args:
        repository_id: 16 bytes; part of the associated data of everything.
        secrets: None where the repository is not sealed: documents are then their plain text.
        random: Where salts come from; tests that compare bytes give their own.
    """

    def __init__(
        self, repository_id: bytes, secrets: Secrets | None, random: Random = secrets.token_bytes
    ) -> None:
        if len(repository_id) != ID_SIZE:
            raise ContractError(f"The id of a repository has {ID_SIZE} bytes.")
        self.repository_id = repository_id
        self._secrets = secrets
        self._random = random

    @property
    def sealed(self) -> bool:
        return self._secrets is not None

    @property
    def epoch(self) -> int:
        """The epoch of new objects; 0 where the repository is not sealed."""
        return self._secrets.newest if self._secrets is not None else 0

    def salt(self) -> bytes:
        """The random salt of a new object."""
        return self._random(SALT_SIZE)

    def cipher(self, epoch: int, purpose: str, salt: bytes) -> AESGCM:
        """The cipher of one object.

        Raises:
            Damage: The repository is not sealed, or the epoch is not known.
            ConfigError: The package `cryptography` is missing.
        """
        if self._secrets is None:
            raise Damage("it is encrypted, but the repository is not sealed")
        key = self._secrets.epochs.get(epoch)
        if key is None:
            raise Damage(f"it is encrypted under epoch {epoch}, whose key this slot does not have")
        if len(salt) != SALT_SIZE:
            raise Damage(f"its salt has {len(salt)} bytes instead of {SALT_SIZE}")
        return aes_gcm(blake3(b"vadpipe seal " + purpose.encode("ascii") + salt, key=key).digest())

    def seal_document(self, name: str, text: bytes) -> bytes:
        """The object to be written as `name`; the text itself where the repository is not sealed."""
        if self._secrets is None:
            return text
        salt = self.salt()
        header = HEADER.pack(MAGIC, self.epoch, 0, salt)
        cipher = self.cipher(self.epoch, "document", salt)
        content = header + cipher.encrypt(_DOCUMENT_NONCE, text, self._document_place(header, name))
        return content + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(content))

    def open_document(self, name: str, content: bytes) -> bytes:
        """The text of the object that was read as `name`.

        Raises:
            Damage: It was altered, is of another name, epoch or repository, or is not encrypted though the
                repository is sealed, or encrypted though it is not.
        """
        if self._secrets is None:
            if content.startswith(MAGIC):
                raise Damage("it is encrypted, but the repository is not sealed")
            return content
        epoch = check_document(content)
        header, encrypted = content[: HEADER.size], content[HEADER.size : -_CHECKSUM.size]
        cipher = self.cipher(epoch, "document", header[-SALT_SIZE:])
        return _decrypt(cipher, _DOCUMENT_NONCE, encrypted, self._document_place(header, name))

    def _document_place(self, header: bytes, name: str) -> bytes:
        return b"document" + self.repository_id + header + name.encode("utf-8", errors="surrogatepass")

    def __repr__(self) -> str:
        return f"Sealing({self.repository_id.hex()}, {self._secrets!r})"


def check_document(content: bytes) -> int:
    """Prove the checksum of an encrypted document; needs no key. Returns its epoch. Raises Damage."""
    if not content.startswith(MAGIC):
        raise Damage("it is not encrypted, but the repository is sealed")
    if len(content) < _SMALLEST:
        raise Damage("it is cut off")
    _, epoch, reserved, _ = HEADER.unpack_from(content)
    end = len(content) - _CHECKSUM.size
    if _CHECKSUM.unpack_from(content, end)[0] != xxhash.xxh3_64_intdigest(memoryview(content)[:end]):
        raise Damage("its checksum is wrong")
    if reserved or not epoch:
        raise Damage("its header is impossible")
    return int(epoch)


def seal_frame_parts(
    sealing: Sealing, head: bytes, table: bytes, payload: bytes | memoryview, salt: bytes
) -> tuple[bytes, bytes]:
    """The encrypted chunk table and payload of a frame, each with its tag (16 bytes longer than what goes in).

    Args:
        head: Bytes 0 to 56 of the frame; its epoch says which key.
        salt: 16 random bytes that no other frame has: `Sealing.salt`.
    """
    cipher, place = _frame_cipher(sealing, head, salt)
    return cipher.encrypt(_TABLE_NONCE, table, place), cipher.encrypt(_PAYLOAD_NONCE, payload, place)


def open_frame_table(sealing: Sealing, head: bytes, salt: bytes, table: bytes | memoryview) -> bytes:
    """The chunk table of a frame; `table` is the encrypted one with its tag. Raises Damage."""
    cipher, place = _frame_cipher(sealing, head, salt)
    return _decrypt(cipher, _TABLE_NONCE, table, place)


def open_frame_payload(sealing: Sealing, head: bytes, salt: bytes, payload: bytes | memoryview) -> bytes:
    """The payload of a frame, still encoded; `payload` is the encrypted one with its tag. Raises Damage."""
    cipher, place = _frame_cipher(sealing, head, salt)
    return _decrypt(cipher, _PAYLOAD_NONCE, payload, place)


def _frame_cipher(sealing: Sealing, head: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    if len(head) != FRAME_HEAD_SIZE:
        raise ContractError(f"The head of a frame has {FRAME_HEAD_SIZE} bytes, not {len(head)}.")
    cipher = sealing.cipher(_FRAME_EPOCH.unpack(head)[0], "frame", salt)
    return cipher, b"frame" + sealing.repository_id + head


def seal_cell(cipher: AESGCM, number: int, content: bytes | memoryview, associated: bytes) -> bytes:
    """One cell of an object that is sealed in pieces, with its tag.

    Args:
        number: Its nonce: no two cells of a cipher have the same.
    """
    return cipher.encrypt(number.to_bytes(_NONCE_SIZE, "little"), content, associated)


def open_cell(cipher: AESGCM, number: int, content: bytes | memoryview, associated: bytes) -> bytes:
    """The content of cell `number`. Raises Damage."""
    return _decrypt(cipher, number.to_bytes(_NONCE_SIZE, "little"), content, associated)


def aes_gcm(key: bytes) -> AESGCM:
    """AES-256-GCM. Raises ConfigError where the package `cryptography` is missing."""
    return _aes_gcm_class()(key)


@cache
def _aes_gcm_class() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as exc:
        raise cryptography_missing() from exc
    return AESGCM


def cryptography_missing() -> ConfigError:
    return ConfigError(
        "The repository is sealed, but there is no Python package cryptography.",
        remedy="Install it beside vadpipe: pip install 'vadpipe[sealed]'",
    )


def _decrypt(cipher: AESGCM, nonce: bytes, content: bytes | memoryview, associated: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    if len(content) < TAG_SIZE:
        raise Damage("it is cut off")
    try:
        return cipher.decrypt(nonce, content, associated)
    except InvalidTag as exc:
        raise Damage(_ALTERED) from exc
