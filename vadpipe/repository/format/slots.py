"""The key slots of a sealed repository: what lies under `keys/`, and the way from a key to the secrets.

Nothing there is proved before a slot opens: what can be read is parsed, and what cannot is named. `slot_changes`
adds and removes slots. Synchronous, for worker threads.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline import ConfigError, IntegrityError, MoverError
from vadpipe.words import counted, printable

from ..backends.contract import Backend
from .config import Keys, unseal
from .objects import LARGEST_SMALL, Damage, Missing, Objects
from .sealing import Secrets
from .ways import AgeIdentity, KeyFile, Passphrase, Way
from .wrapping import KINDS, AgeHolder, Slot, WrongKey, X25519Holder, check_epoch, unwrap

log = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1  # in use from the start, without an object that says so
LAST_EPOCH: Final = 10**8 - 1  # the names have 8 digits

_PREFIX: Final = "keys/"
_SLOT: Final = re.compile(r"keys/([0-9a-f]{16})\.json")
_WRAP: Final = re.compile(r"keys/([0-9a-f]{16})/((?!0{8})[0-9]{8})\.json")
_EPOCH: Final = re.compile(r"keys/epochs/((?!0{8})[0-9]{8})\.json")


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
                    contents[slot[1]] = read_key(backend, name)
                    slots.append(Slot.parse(slot[1], contents[slot[1]]))
                elif epoch:
                    announced[int(epoch[1])] = read_key(backend, name)
                else:
                    damaged[name] = "no key of a repository has this name"
            except Missing:
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

    def without_slot(self) -> list[str]:
        """The ids under which there are secrets and no slot: what an interrupted command leaves."""
        known = {slot_name(slot_id) for slot_id in self._contents} | set(self.damaged)
        return sorted(slot_id for slot_id in self.wraps if slot_name(slot_id) not in known)

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


@dataclass(frozen=True)
class Opened:
    """The secrets, and the slot that gave them."""

    secrets: Secrets
    slot: Slot


@dataclass(frozen=True)
class _Unwrapped:
    """The secrets of a slot, and what is wrong with those of other epochs."""

    secrets: Secrets
    slot: Slot
    lost: Mapping[int, Damage]

    def with_epochs_of(self, other: _Unwrapped) -> _Unwrapped:
        if other.secrets.naming != self.secrets.naming:
            return self
        epochs = {**other.secrets.epochs, **self.secrets.epochs}
        lost = {epoch: why for epoch, why in self.lost.items() if epoch not in epochs}
        return _Unwrapped(Secrets(self.secrets.naming, epochs, self.secrets.newest), self.slot, lost)


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
        ways: Key files are tried first, then age identities, then passphrases, which cost time and memory. The
            first one that opens a slot decides; where the secrets of an epoch are damaged there, others are tried.

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
    # The cheap ones first: a forged slot that takes all memory is not reached by who has the right passphrase.
    cheap_first = sorted(table.slots, key=lambda slot: slot.kdf.cost if slot.kdf else 0)
    found: _Unwrapped | None = None
    for way in sorted(ways, key=lambda way: order.index(way.kind)):
        for slot in cheap_first:
            if slot.kind != way.kind or (found is not None and not found.lost):
                continue
            started = time.monotonic()
            try:
                unwrapped = _unwrapped(backend, table, slot, way.holder(slot), repository_id)
            except WrongKey:
                continue
            except Damage as damage:
                problems.append(f"Key slot {printable(str(slot))}: {damage}.")
                continue
            log.debug("Key slot %s opened: %.2f s", slot.id, time.monotonic() - started)
            found = unwrapped if found is None else found.with_epochs_of(unwrapped)
    if found is None:
        raise _locked(backend, table, ways, problems)
    for problem in table.problems(found.secrets.naming):
        log.warning("%s", problem)
    for epoch, why in found.lost.items():
        log.warning(
            "%s: %s. What was written under this epoch cannot be read.", wrap_name(found.slot.id, epoch), why
        )
    return Opened(found.secrets, found.slot)


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


def _unwrapped(
    backend: Backend, table: SlotTable, slot: Slot, holder: X25519Holder | AgeHolder, repository_id: bytes
) -> _Unwrapped:
    """Raises Damage; WrongKey where the holder is not that of the slot."""
    naming, keys, lost, wrong = b"", dict[int, bytes](), dict[int, Damage](), 0
    for epoch in sorted(table.wraps.get(slot.id, ())):
        try:
            content = read_key(backend, wrap_name(slot.id, epoch))
            found, keys[epoch] = unwrap(content, epoch, slot, holder, repository_id)
        except Missing:
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
    for epoch in in_use:
        if epoch not in keys:
            lost.setdefault(epoch, Damage("it is missing"))
    current = in_use[-1]
    if current not in keys:
        raise Damage(
            f"{wrap_name(slot.id, current)}: {lost[current]}; another slot opens it and makes it anew"
        )
    if unused := [epoch for epoch in keys if epoch > current]:
        log.warning(
            "Key slot %s has secrets of epoch %d, which is not in use: `vadpipe key epoch` was interrupted, or "
            "the object of the epoch was deleted. Run `vadpipe key epoch` again.",
            slot.id,
            max(unused),
        )
    return _Unwrapped(Secrets(naming, keys, current), slot, lost)


def _digest_of(table: SlotTable, epoch: int, naming: bytes) -> Callable[[bytes], bool] | None:
    """What tells the key of an epoch from others; None where its object is not sound."""
    try:
        return check_epoch(table.announced[epoch], epoch, naming)
    except (KeyError, Damage):
        return None


def read_key(backend: Backend, name: str) -> bytes:
    """An object under `keys/`. Raises Damage, Missing among it; SinkError."""
    return Objects(backend).read_whole(name, LARGEST_SMALL)
