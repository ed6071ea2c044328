"""The key slots of a sealed repository: finding a way to its secrets, and adding and removing ways.

Every step is one object, and what makes the earlier ones count is written last. So a process that dies between two
steps leaves a repository that opens, and the operation can be repeated:

    add a slot      the secrets of each epoch for it, then the slot itself
    remove a slot   the slot itself, then its secrets
    a new epoch     its key for each slot, then the object that takes it into use

Two operations at the same time look, after their last step, at what the other one did; what a slot still lacks is
written by the next operation.

Synchronous, for worker threads.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline import ConfigError, IntegrityError, KiB, MoverError, SinkError
from vadpipe.words import counted, printable

from .backends.contract import Backend, ObjectExists, ObjectMissing
from .config import FORMAT, Keys, Origin, parse, unseal
from .files import Damage
from .sealing import ID_SIZE, KEY_SIZE, Secrets
from .wrapping import (
    KINDS,
    VERSION,
    AgeHolder,
    AgeIdentity,
    AgeRecipient,
    Argon2,
    KeyFile,
    NewWay,
    Passphrase,
    Slot,
    Way,
    WrongKey,
    X25519Holder,
    check_epoch,
    epoch_content,
    make_key_file,
    new_slot,
    unwrap,
    wrap,
)

__all__ = [
    "AgeIdentity",
    "AgeRecipient",
    "Argon2",
    "KeyFile",
    "NewWay",
    "Opened",
    "Passphrase",
    "Slot",
    "SlotTable",
    "Way",
    "add_slot",
    "change_passphrase",
    "complete_slots",
    "create_keys",
    "make_key_file",
    "new_epoch",
    "new_slot",
    "open_repository_keys",
    "open_slot",
    "remove_foreign",
    "remove_slot",
    "sealed_id",
    "unlock",
]

log = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1  # in use from the start, without an object that says so
_LAST_EPOCH: Final = 10**8 - 1  # the names have 8 digits
_LARGEST: Final = 64 * KiB
_ORIGIN: Final = Origin()
_STRENGTH: Final = Argon2()
_CONFIG: Final = "config.json"
_SEALING: Final = "aes-256-gcm"
_PREFIX: Final = "keys/"
_SLOT = re.compile(r"keys/([0-9a-f]{16})\.json")
_WRAP = re.compile(r"keys/([0-9a-f]{16})/((?!0{8})[0-9]{8})\.json")
_EPOCH = re.compile(r"keys/epochs/((?!0{8})[0-9]{8})\.json")


def slot_name(slot_id: str) -> str:
    return f"keys/{slot_id}.json"


def wrap_name(slot_id: str, epoch: int) -> str:
    return f"keys/{slot_id}/{epoch:08d}.json"


def epoch_name(epoch: int) -> str:
    return f"keys/epochs/{epoch:08d}.json"


@dataclass(frozen=True)
class SlotTable:
    """What lies under `keys/`. Nothing of it is proved before the secrets are known.

    Attributes:
        slots: Those that can be parsed, by id.
        wraps: The epochs whose secrets each slot has, by the id of the slot; also of slots that are gone.
        announced: The content of each object that takes an epoch into use.
        damaged: What is wrong with an object, by its name.
    """

    slots: tuple[Slot, ...]
    wraps: Mapping[str, frozenset[int]]
    announced: Mapping[int, bytes]
    damaged: Mapping[str, str]
    _contents: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, backend: Backend) -> SlotTable:
        """Raises SinkError."""
        slots, contents, announced, damaged = [], {}, {}, {}
        wraps: dict[str, set[int]] = {}
        for name in [found.name for found in backend.list(_PREFIX)]:
            if found := _WRAP.fullmatch(name):
                wraps.setdefault(found[1], set()).add(int(found[2]))
                continue
            slot, epoch = _SLOT.fullmatch(name), _EPOCH.fullmatch(name)
            try:
                if slot:
                    contents[slot[1]] = _read(backend, name)
                    slots.append(Slot.parse(slot[1], contents[slot[1]]))
                elif epoch:
                    announced[int(epoch[1])] = _read(backend, name)
                else:
                    damaged[name] = "no key of a repository has this name"
            except ObjectMissing:
                continue  # removed since it was listed
            except Damage as damage:
                damaged[name] = str(damage)
        frozen = {slot_id: frozenset(epochs) for slot_id, epochs in wraps.items()}
        return cls(tuple(slots), frozen, announced, damaged, contents)

    def sound(self, naming: bytes) -> tuple[Slot, ...]:
        """The slots whose seal is right: they were made by somebody who knew the secrets."""
        return tuple(slot for slot in self.slots if self.is_sound(slot, naming))

    def is_sound(self, slot: Slot, naming: bytes) -> bool:
        try:
            unseal(self._contents[slot.id], Keys.derive(naming).seal)
        except Damage:
            return False
        return True

    def problems(self, naming: bytes) -> list[str]:
        """A sentence for each object that is damaged or forged."""
        forged = [slot for slot in self.slots if not self.is_sound(slot, naming)]
        bad = [epoch for epoch in self.announced if _digest_of(self, epoch, naming) is None]
        return [
            *(f"{name}: {printable(problem)}." for name, problem in sorted(self.damaged.items())),
            *(
                f"{slot_name(slot.id)}: its seal is wrong. It was altered, or made by somebody who does not know "
                "the secrets. It gets no secrets."
                for slot in forged
            ),
            *(f"{epoch_name(epoch)}: its seal is wrong. The epoch is not used." for epoch in bad),
        ]

    def in_use(self, naming: bytes) -> tuple[int, ...]:
        """The epochs in use, ascending."""
        later = (epoch for epoch in self.announced if _digest_of(self, epoch, naming) is not None)
        return tuple(sorted({FIRST_EPOCH, *later}))

    def content(self, slot_id: str) -> bytes | None:
        """The object of a slot, even a damaged one; None where there is none."""
        return self._contents.get(slot_id)

    def named(self, text: str) -> str:
        """The id of the slot that a person means: its id, the begin of it, or its label. Raises ConfigError."""
        known = {slot.id for slot in self.slots} | set(self.wraps) | set(self._contents)
        found = {slot_id for slot_id in known if len(text) >= 4 and slot_id.startswith(text)}
        found = found or {slot.id for slot in self.slots if slot.label == text}
        if len(found) != 1:
            many = f"{len(found)} key slots are called" if found else "There is no key slot"
            raise ConfigError(
                f"{many} {printable(text)!r}.", remedy=f"Give the id of one: {self.described()}."
            )
        return found.pop()

    def described(self) -> str:
        """The slots in words."""
        return ", ".join(printable(str(slot)) for slot in self.slots) or "there is none"


def sealed_id(backend: Backend) -> bytes:
    """The id of a sealed repository, which nothing proves before it is opened: see `open_repository_keys`.

    Raises:
        SinkError: There is no repository of this version.
        ConfigError: It is not sealed.
        IntegrityError: Its config.json is damaged.
    """
    place, name = backend.place(), backend.place(_CONFIG)
    try:
        fields = parse(_read(backend, _CONFIG))
        if fields.get("format") != FORMAT or fields.get("version") != VERSION:
            raise SinkError(
                f"{place} is no repository that can be sealed: it is of another program or version.",
                remedy="Name a repository of format 2.",
            )
        if fields.get("sealing") != _SEALING:
            raise ConfigError(
                f"The repository {place} is not sealed, so it has no keys.",
                remedy="Make a sealed one with `vadpipe init --seal`, and copy into it.",
            )
        identity = fields.get("id")
        if not isinstance(identity, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * ID_SIZE}}}", identity):
            raise Damage("its id is impossible")
        return bytes.fromhex(identity)
    except ObjectMissing as missing:
        raise SinkError(
            f"{place} is not a repository: it has no {_CONFIG}.", remedy="Name a repository, or make one."
        ) from missing
    except Damage as damage:
        raise IntegrityError(
            f"{name} is damaged: {damage}.", remedy="Put it back from a copy of the repository."
        ) from damage


def open_repository_keys(backend: Backend, ways: Sequence[Way]) -> tuple[bytes, Opened]:
    """The proved id of a sealed repository, and its secrets. Raises what `sealed_id` and `unlock` raise."""
    identity = sealed_id(backend)
    found = open_slot(backend, identity, ways)
    try:
        unseal(_read(backend, _CONFIG), Keys.derive(found.secrets.naming).seal)
    except (Damage, ObjectMissing) as damage:
        raise IntegrityError(
            f"{backend.place(_CONFIG)} is damaged: its seal is wrong.",
            remedy="Put it back from a copy of the repository.",
        ) from damage
    return identity, found


@dataclass(frozen=True)
class Opened:
    """The secrets, and the slot that gave them."""

    secrets: Secrets
    slot: Slot


def ways_of_environment() -> Sequence[Way]:
    """What VADPIPE_KEY_FILE, VADPIPE_PASSPHRASE_FILE and VADPIPE_AGE_IDENTITY name."""
    found: list[Way] = []
    if place := os.environ.get("VADPIPE_KEY_FILE"):
        found.append(KeyFile(Path(place)))
    if place := os.environ.get("VADPIPE_AGE_IDENTITY"):
        found.append(AgeIdentity(Path(place)))
    if place := os.environ.get("VADPIPE_PASSPHRASE_FILE"):
        found.append(Passphrase.from_file(Path(place)))
    return found


# What opens a repository where nobody says it.
default_ways: Final[ContextVar[Callable[[], Sequence[Way]]]] = ContextVar(
    "default_ways", default=ways_of_environment
)


def unlock(backend: Backend, repository_id: bytes, ways: Sequence[Way]) -> Secrets:
    """The secrets of a repository.

    Args:
        ways: Key files are tried first, then age identities, then passphrases, which cost time and memory.

    Raises:
        ConfigError: None of the ways opens a slot, or none was given.
        IntegrityError: The slot that one opens is damaged or forged.
        SinkError
    """
    return open_slot(backend, repository_id, ways).secrets


def open_slot(backend: Backend, repository_id: bytes, ways: Sequence[Way]) -> Opened:
    """As `unlock`; says which slot it was, too."""
    table, problems = SlotTable.read(backend), list[str]()
    order = list(KINDS)
    for way in sorted(ways, key=lambda way: order.index(way.kind)):
        for slot in table.slots:
            if slot.kind != way.kind:
                continue
            started = time.monotonic()
            try:
                secrets = _secrets_of(backend, table, slot, way.holder(slot), repository_id)
            except WrongKey:
                continue
            except Damage as damage:
                problems.append(f"Key slot {printable(str(slot))}: {damage}.")
                continue
            log.debug("Key slot %s opened: %.2f s", slot.id, time.monotonic() - started)
            for problem in table.problems(secrets.naming):
                log.warning("%s", problem)
            return Opened(secrets, slot)
    raise _locked(backend, table, ways, problems)


def _locked(backend: Backend, table: SlotTable, ways: Sequence[Way], problems: Sequence[str]) -> MoverError:
    damaged = [f"{name}: {printable(problem)}." for name, problem in sorted(table.damaged.items())]
    place = backend.place()
    if problems:
        return IntegrityError(
            " ".join([f"The repository {place} cannot be opened.", *problems, *damaged]),
            remedy="Put its keys/ back from a copy of the repository, or use another key.",
        )
    count = counted(len(table.slots), "key slot")
    has = " ".join([f"It has {count}: {table.described()}.", *damaged])
    if not table.slots and not damaged:
        return IntegrityError(
            f"The repository {place} is sealed, and has no key slot.",
            remedy="Put its keys/ back from a copy of the repository.",
        )
    if not ways:
        return ConfigError(
            f"The repository {place} is sealed, and no key was given. {has}",
            remedy="Give --key-file or --passphrase-file, or set VADPIPE_KEY_FILE or VADPIPE_PASSPHRASE_FILE.",
        )
    tried = dict.fromkeys(KINDS[way.kind] for way in ways)
    return ConfigError(
        f"The {' and the '.join(tried)} that was given does not open the repository {place}. {has}",
        remedy="Give the key of one of them.",
    )


def _secrets_of(
    backend: Backend, table: SlotTable, slot: Slot, holder: X25519Holder | AgeHolder, repository_id: bytes
) -> Secrets:
    """Raises Damage; WrongKey where the holder is not that of the slot."""
    naming, keys, lost, wrong = b"", dict[int, bytes](), dict[int, Damage](), 0
    for epoch in sorted(table.wraps.get(slot.id, ())):
        try:
            content = _read(backend, wrap_name(slot.id, epoch))
            found, keys[epoch] = unwrap(content, epoch, slot, holder, repository_id)
        except ObjectMissing:
            continue
        except WrongKey:  # of an age slot, unless another epoch opens
            wrong += 1
            lost[epoch] = Damage("it does not open")
            continue
        except Damage as damage:
            lost[epoch] = damage
            continue
        if naming and naming != found:
            raise Damage("its epochs belong to different repositories")
        naming = found
    if not keys and wrong:
        raise WrongKey
    if not keys:
        raise next(iter(lost.values()), Damage("it has no secrets"))
    in_use = table.in_use(naming)
    for epoch in in_use[1:]:
        fits = _digest_of(table, epoch, naming)
        if epoch in keys and fits is not None and not fits(keys[epoch]):
            lost[epoch] = Damage("its key is not that of the epoch")
            del keys[epoch]
    current = in_use[-1]
    if current not in keys:
        why = lost.get(current, Damage("it is missing"))
        raise Damage(f"{wrap_name(slot.id, current)}: {why}; another slot opens it and makes it anew")
    for epoch, why in lost.items():
        log.warning(
            "%s: %s. What was written under this epoch cannot be read.", wrap_name(slot.id, epoch), why
        )
    return Secrets(naming, keys, current)


def create_keys(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    way: NewWay,
    label: str,
    *,
    origin: Origin = _ORIGIN,
    strength: Argon2 = _STRENGTH,
) -> Slot:
    """Make the first key slot of a new repository, before its config.json.

    What an `init` that was interrupted left is neither used nor deleted: another one may be at work. After
    config.json is written, `remove_foreign` deletes it.

    Raises:
        ConfigError: The label, the passphrase, the key file or the recipient cannot be used.
        SinkError
    """
    slot = new_slot(way, label, secrets.naming, repository_id, origin, strength)
    _put_slot(backend, repository_id, secrets, slot, secrets.epochs, origin)
    return slot


def remove_foreign(backend: Backend, secrets: Secrets) -> None:
    """Delete the key slots that an interrupted `init` left, once config.json is written. Raises SinkError."""
    table = SlotTable.read(backend)
    sound = {slot.id for slot in table.sound(secrets.naming)}
    for slot_id in ({slot.id for slot in table.slots} | set(table.wraps)) - sound:
        _delete_slot(backend, slot_id)


def add_slot(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    way: NewWay,
    label: str,
    *,
    origin: Origin = _ORIGIN,
    strength: Argon2 = _STRENGTH,
) -> Slot:
    """Give somebody a way to the secrets.

    Raises:
        ConfigError: The label is taken; or it, the passphrase, the key file or the recipient cannot be used.
        SinkError
    """
    table = complete_slots(backend, repository_id, secrets, origin)
    if any(slot.label == label for slot in table.slots):
        raise ConfigError(f"There is a key slot {label!r} already.", remedy="Choose another label.")
    return _add(backend, repository_id, secrets, table, way, label, origin, strength)


def _add(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    table: SlotTable,
    way: NewWay,
    label: str,
    origin: Origin,
    strength: Argon2,
) -> Slot:
    slot = new_slot(way, label, secrets.naming, repository_id, origin, strength)
    _put_slot(backend, repository_id, secrets, slot, table.in_use(secrets.naming), origin)
    complete_slots(backend, repository_id, secrets, origin)  # an epoch that was made meanwhile
    return slot


def _put_slot(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    slot: Slot,
    epochs: Iterable[int],
    origin: Origin,
) -> None:
    for epoch in epochs:
        backend.put(wrap_name(slot.id, epoch), [_wrapped(repository_id, secrets, epoch, slot, origin)])
    backend.put(slot_name(slot.id), [slot.content(secrets.naming)])


def remove_slot(backend: Backend, repository_id: bytes, secrets: Secrets, slot_id: str) -> None:
    """Take a way to the secrets away. Who knew the secrets still knows them: `new_epoch` keeps new data from them.

    Raises:
        ConfigError: It is the last slot that opens the repository.
        SinkError
    """
    table = complete_slots(backend, repository_id, secrets, without=slot_id)
    left = [slot for slot in table.sound(secrets.naming) if slot.id != slot_id]
    if not left:
        raise ConfigError(
            f"{slot_id} is the last key slot: without it nobody can read the repository.",
            remedy="Add another one first: vadpipe key add",
        )
    content = table.content(slot_id)
    backend.delete([slot_name(slot_id)])
    if content is not None and not SlotTable.read(backend).sound(secrets.naming):
        backend.put(slot_name(slot_id), [content])  # somebody else removed the others at the same time
        raise ConfigError(
            f"{slot_id} is the last key slot: another command removed the others at the same time.",
            remedy="Add another one first: vadpipe key add",
        )
    _delete_slot(backend, slot_id)


def change_passphrase(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    slot_id: str,
    way: Passphrase,
    *,
    origin: Origin = _ORIGIN,
    strength: Argon2 = _STRENGTH,
) -> Slot:
    """Add a slot with the new passphrase and the label of the old one, then remove the old one.

    Raises:
        ConfigError: The slot is not one of a passphrase, or the new passphrase cannot be used.
        SinkError
    """
    table = complete_slots(backend, repository_id, secrets, origin)
    old = next((slot for slot in table.sound(secrets.naming) if slot.id == slot_id), None)
    if old is None or old.kind != "passphrase":
        raise ConfigError(
            f"{slot_id} is no key slot with a passphrase.", remedy="Name one that `vadpipe key list` shows."
        )
    again = [slot for slot in table.sound(secrets.naming) if slot.label == old.label and slot.id != slot_id]
    new = next((slot for slot in again if _opens(way, slot)), None)  # this was interrupted before
    if new is None:
        new = _add(backend, repository_id, secrets, table, way, old.label, origin, strength)
    remove_slot(backend, repository_id, secrets, slot_id)
    return new


def _opens(way: Passphrase, slot: Slot) -> bool:
    try:
        return slot.kind == way.kind and way.holder(slot).public == slot.public
    except WrongKey:
        return False


def new_epoch(
    backend: Backend, repository_id: bytes, secrets: Secrets, *, origin: Origin = _ORIGIN
) -> Secrets:
    """Draw a new epoch key, give it to every slot, and take it into use. Returns all secrets.

    Who has lost a slot before cannot read what is written from now on.

    Raises:
        SinkError: Another command makes an epoch at the same time.
    """
    table = complete_slots(backend, repository_id, secrets, origin)
    seen = {
        *secrets.epochs,
        *table.announced,
        *(epoch for epochs in table.wraps.values() for epoch in epochs),
    }
    epoch = max(seen) + 1
    if epoch > _LAST_EPOCH:
        raise ConfigError(f"{_LAST_EPOCH} is the last epoch that a repository can have.")
    new = Secrets(secrets.naming, {**secrets.epochs, epoch: origin.random(KEY_SIZE)}, epoch)
    written: list[str] = []
    try:
        while missing := [slot for slot in table.sound(secrets.naming) if slot.id not in written]:
            # All of them first: what cannot be wrapped is found before anything is written.
            wraps = {slot.id: _wrapped(repository_id, new, epoch, slot, origin) for slot in missing}
            for slot_id, content in wraps.items():
                backend.put(wrap_name(slot_id, epoch), [content])
                written.append(slot_id)
            table = SlotTable.read(backend)  # a slot that was added meanwhile
        backend.put(epoch_name(epoch), [epoch_content(epoch, new, origin)])
    except ObjectExists as exc:
        backend.delete([wrap_name(slot_id, epoch) for slot_id in written])
        raise SinkError(
            "Another command makes an epoch of this repository at the same time.",
            remedy="Run this one again if it is still needed.",
        ) from exc
    complete_slots(backend, repository_id, new, origin)
    return new


def complete_slots(
    backend: Backend,
    repository_id: bytes,
    secrets: Secrets,
    origin: Origin = _ORIGIN,
    *,
    without: str = "",
) -> SlotTable:
    """Write the secrets that a slot lacks, as after an interrupted operation, and those that are damaged.

    Args:
        without: The id of a slot that is left alone.

    Returns:
        The table, as it was read before.

    Raises:
        SinkError
    """
    table = SlotTable.read(backend)
    key = Keys.derive(secrets.naming).seal
    for slot in table.sound(secrets.naming):
        for epoch in table.in_use(secrets.naming):
            name = wrap_name(slot.id, epoch)
            if slot.id == without:
                continue
            try:
                unseal(_read(backend, name), key)
                continue
            except ObjectMissing:
                problem = "it is missing"
            except Damage as damage:
                problem = str(damage)
            if epoch not in secrets.epochs:
                log.warning("%s: %s. Its key is not known here: run `vadpipe key list` again.", name, problem)
                continue
            content = _wrapped(repository_id, secrets, epoch, slot, origin)
            log.warning("%s: %s. It is written anew.", name, problem)
            backend.delete([name])
            try:
                backend.put(name, [content])
            except ObjectExists:
                log.debug("%s: another command was first", name)
    return table


def _wrapped(repository_id: bytes, secrets: Secrets, epoch: int, slot: Slot, origin: Origin) -> bytes:
    try:
        return wrap(secrets, epoch, slot, repository_id, origin)
    except Damage as damage:
        raise IntegrityError(
            f"Key slot {printable(str(slot))}: {damage}.", remedy="Remove it, and add it again."
        ) from damage


def _delete_slot(backend: Backend, slot_id: str) -> None:
    """The slot first: what has no slot is never completed."""
    backend.delete([slot_name(slot_id)])
    backend.delete([found.name for found in backend.list(f"{_PREFIX}{slot_id}/")])


def _digest_of(table: SlotTable, epoch: int, naming: bytes) -> Callable[[bytes], bool] | None:
    """What tells the key of an epoch from others; None where its object is not sound."""
    try:
        return check_epoch(table.announced[epoch], epoch, naming)
    except (KeyError, Damage):
        return None


def _read(backend: Backend, name: str) -> bytes:
    """Raises ObjectMissing, Damage, SinkError."""
    content = backend.read(name, 0, _LARGEST + 1)
    if len(content) > _LARGEST:
        raise Damage(f"it has more than {_LARGEST} bytes")
    return content
