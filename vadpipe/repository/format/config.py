"""config.json, the keys of a repository, and its documents.

One key per purpose keeps purposes apart: bytes that are a map page in one place and guest data in another have two
names that nobody without the secret can relate. The purposes' names are part of the format.

In a document, the keyed BLAKE3 of the rest stands in the field `seal`. The text is canonical (sorted keys, fixed
spacing), and reading compares byte for byte: what parses to the same values but is written otherwise was altered,
too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from blake3 import blake3

from pipeline import ConfigError, IntegrityError, SinkError

from ..backends.contract import Backend, ObjectExists
from .objects import CONFIG, LARGEST_SMALL, Damage, Missing, Objects, machine_directory
from .sealing import Sealing, Secrets

if TYPE_CHECKING:
    from .ways import NewWay, Way

KEY_SIZE = 32


@dataclass(frozen=True)
class Keys:
    """`chunk` is the repository's key itself; the others are its keyed BLAKE3 of 'vadpipe repository <purpose>'."""

    chunk: bytes = field(repr=False)
    frame: bytes = field(repr=False)
    page: bytes = field(repr=False)
    root: bytes = field(repr=False)
    document: bytes = field(repr=False)
    seal: bytes = field(repr=False)
    machine: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: bytes) -> Keys:
        def of(purpose: str) -> bytes:
            return blake3(f"vadpipe repository {purpose}".encode(), key=key).digest()

        return cls(key, of("frame"), of("page"), of("root"), of("document"), of("seal"), of("machine"))


def seal(fields: Mapping[str, object], key: bytes) -> bytes:
    """The document as it is stored."""
    return _text({**fields, "seal": blake3(_text(fields), key=key).hexdigest()})


def unseal(content: bytes, key: bytes) -> dict[str, object]:
    """The fields of a document, `seal` among them. Raises Damage."""
    fields = parse(content)
    if not _is_as_sealed(content, fields, key):
        raise Damage("its seal is wrong")
    return fields


def _is_as_sealed(content: bytes, fields: Mapping[str, object], key: bytes) -> bool:
    """Whether `seal` wrote a document, from the first byte to the last.

    The seal proves the bytes of the text without its line; what is left is where that line stands. Writing the text
    anew would prove the same, and make reading a point take six times as long.
    """
    given = fields.get("seal")
    if not isinstance(given, str) or list(fields) != sorted(fields):
        return False
    before, line, after = content.partition(f'\n "seal": "{given}"'.encode(errors="surrogatepass"))
    is_last = not after.startswith(b",")
    rest = before.removesuffix(b",") + after if is_last else before + after[1:]
    return bool(line) and blake3(rest, key=key).hexdigest() == given


def parse(content: bytes) -> dict[str, object]:
    """The fields of a document that cannot be proved yet. Raises Damage."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise Damage("it is not a JSON document") from exc
    if not isinstance(fields, dict):
        raise Damage("it is not a JSON object")
    return fields


def _text(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode(
        errors="surrogatepass"
    )


FORMAT: Final = "vadpipe repository"
VERSION: Final = 2
READ_ONLY: Final = 1  # an earlier version: read, and copied into a repository of this one
ID_SIZE: Final = 16
SEALING: Final = "aes-256-gcm"


@dataclass(frozen=True)
class Origin:
    """Where ids, keys and times come from. Tests that compare files byte for byte give their own."""

    random: Callable[[int], bytes] = secrets.token_bytes
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def timestamp(self) -> str:
        """Now as ISO 8601 in UTC with microseconds; sorts like the time."""
        return self.now().astimezone(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Config:
    """A repository's identity and keys.

    Args:
        conditional: Whether the store gives a name to one writer only.
        sealing: Encrypts what is written.
    """

    id: bytes
    created: str
    version: int
    conditional: bool
    keys: Keys = field(repr=False)
    sealing: Sealing = field(repr=False)

    def directory(self, machine_uuid: str) -> str:
        """The directory of a machine: no name of a VM is told by a sealed repository."""
        if not self.sealing.sealed:
            return machine_directory(machine_uuid)
        return blake3(machine_uuid.encode(errors="surrogatepass"), key=self.keys.machine).hexdigest()[:32]

    def encode(self, name: str, fields: Mapping[str, object]) -> bytes:
        """The document of this name as it is stored."""
        return self.sealing.seal_document(name, seal(fields, self.keys.seal))

    def decode(self, name: str, content: bytes) -> dict[str, object]:
        """The fields of the document of this name, proved. Raises Damage."""
        return unseal(self.sealing.open_document(name, content), self.keys.seal)


def create_repository(
    backend: Backend, origin: Origin, seal_for: NewWay | None = None, label: str = "first"
) -> Config:
    """Make a repository in a place that is empty, or where this was begun before.

    Args:
        seal_for: What opens it; None: it is not sealed.
        label: What the first key slot is called.

    Raises:
        ConfigError: The passphrase, the key file or the recipient cannot be used.
        SinkError: There is something already, or the place cannot be written.
    """
    objects = Objects(backend)
    if objects.exists(CONFIG):
        raise SinkError(f"There is a repository in {backend.place()} already.", remedy="Use it as it is.")
    begun = [found.name for found in backend.list("")]
    if not all(name.startswith("keys/") for name in begun):
        raise SinkError(f"{backend.place()} is not empty.", remedy="Name an empty directory or prefix.")
    naming, identity = origin.random(KEY_SIZE), origin.random(ID_SIZE)
    keys = Keys.derive(naming)
    conditional = getattr(backend, "probe_conditional", lambda: True)()
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "id": identity.hex(),
        "created": origin.timestamp(),
        "digest": "blake3",
        "conditional": conditional,
        "sealing": "none" if seal_for is None else SEALING,
    }
    drawn: Secrets | None = None
    if seal_for is None:
        fields["key"] = naming.hex()
    else:
        from .slot_changes import create_keys

        drawn = Secrets(naming, {1: origin.random(KEY_SIZE)})
        create_keys(backend, identity, drawn, seal_for, label, origin=origin)
    sealing = Sealing(identity, drawn, origin.random)
    # Last: a place with a config is a whole repository.
    try:
        backend.put(CONFIG, [seal(fields, keys.seal)])
    except ObjectExists as exc:
        raise SinkError(
            f"Somebody made a repository in {backend.place()} at the same time.", remedy="Use it as it is."
        ) from exc
    if drawn is not None:
        from .slot_changes import remove_foreign

        remove_foreign(backend, drawn)
    return Config(identity, str(fields["created"]), VERSION, conditional, keys, sealing)


# Gives the secrets of a sealed repository, from its backend and its id. Raises ConfigError where nothing opens it.
Unlock = Callable[[Backend, bytes], Secrets]


def read_config(
    backend: Backend, unlock: Sequence[Way] | Unlock = (), origin: Origin | None = None
) -> Config:
    """What a repository is.

    Args:
        unlock: What may open a sealed repository; by default what the environment names (slots.default_ways).

    Raises:
        SinkError: it is no repository of this version.
        ConfigError: it is sealed, and nothing opens it.
        IntegrityError: the config was altered.
    """
    objects, path = Objects(backend), backend.place(CONFIG)
    try:
        content = objects.read_whole(CONFIG, LARGEST_SMALL)
    except Damage as damage:
        raise _unreadable(backend, damage) from damage.__cause__
    try:
        fields = parse(content)
        if fields.get("format") != FORMAT:
            raise SinkError(
                f"{backend.place()} is not a repository: {CONFIG} is of another program.",
                remedy="Name the place of a repository.",
                path=path,
            )
        if fields.get("version") not in (READ_ONLY, VERSION):
            raise SinkError(
                f"The repository {backend.place()} has format version {fields.get('version')}, known are "
                f"{READ_ONLY} and {VERSION}.",
                remedy="Use the vadpipe that wrote it, or a newer one.",
                path=path,
            )
        return _parse(fields, content, backend, unlock, origin or Origin())
    except Damage as damage:
        raise IntegrityError(
            f"{path} is damaged: {damage}.",
            remedy="Put it back from a copy of the repository: without its key nothing can be proved.",
            path=path,
        ) from damage


def _refuse_plain(backend: Backend, unlock: Sequence[Way] | Unlock) -> None:
    """Somebody who can write the store could put a plain config in the place of a sealed one, and wait for
    backups."""
    if not callable(unlock) and unlock:
        raise ConfigError(
            f"The repository {backend.place()} is not sealed, but a key was given to open it.",
            remedy="If it was sealed, somebody exchanged its config.json: do not use it. "
            "Otherwise leave the key out.",
        )


def _unreadable(backend: Backend, damage: Damage) -> SinkError:
    if isinstance(damage, Missing):
        return SinkError(
            f"{backend.place()} is not a repository: it has no {CONFIG}.",
            remedy=f"Name a repository, or make one with: vadpipe init {backend.place()}",
            path=backend.place(),
        )
    return SinkError(
        f"Could not read {backend.place(CONFIG)}: {damage}.",
        remedy="Give this user the right to read the repository, or put the file back from a copy of it.",
        path=backend.place(CONFIG),
    )


def _parse(
    fields: dict[str, object],
    content: bytes,
    backend: Backend,
    unlock: Sequence[Way] | Unlock,
    origin: Origin,
) -> Config:
    version, sealing = cast("int", fields["version"]), fields.get("sealing", "none")
    try:
        identity, created = bytes.fromhex(str(fields["id"])), str(fields["created"])
        naming = bytes.fromhex(str(fields["key"])) if sealing == "none" else None
    except (KeyError, ValueError) as exc:
        raise Damage("a field is missing or unreadable") from exc
    if len(identity) != ID_SIZE or (naming is not None and len(naming) != KEY_SIZE):
        raise Damage("its key or its id has a wrong length")
    if sealing not in ("none", SEALING):
        raise Damage(f"it is sealed by {sealing!r}, which this version does not know")
    found = None
    if naming is not None:
        _refuse_plain(backend, unlock)
    else:
        if callable(unlock):
            found = unlock(backend, identity)
        else:
            from . import slots

            found = slots.unlock(backend, identity, unlock or slots.default_ways.get()())
        naming = found.naming
    keys = Keys.derive(naming)
    unseal(content, keys.seal)
    conditional = bool(fields.get("conditional", True))
    return Config(identity, created, version, conditional, keys, Sealing(identity, found, origin.random))
