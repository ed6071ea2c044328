"""Adding and removing key slots, changing passphrases, new epochs.

Every step is one object, and what makes the earlier ones count is written last. So a process that dies between two
steps leaves a repository that opens, and the operation can be repeated:

    add a slot      the secrets of each epoch for it, then the slot itself
    remove a slot   the slot itself, then its secrets
    a new epoch     its key for each slot, then the object that takes it into use

Two operations at the same time look, after their last step, at what the other one did. The next operation writes
what a slot still lacks, and deletes secrets that have no slot.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from pipeline import ConfigError, IntegrityError, SinkError
from vadpipe.words import printable

from ..backends.contract import Backend, ObjectExists
from .config import Keys, Origin, unseal
from .objects import Damage, Missing
from .sealing import KEY_SIZE, Secrets
from .slots import LAST_EPOCH, SlotTable, epoch_name, read_key, slot_name, wrap_name
from .ways import NewWay, Passphrase, new_slot
from .wrapping import Argon2, Slot, WrongKey, epoch_content, wrap

log = logging.getLogger(__name__)

_ORIGIN: Final = Origin()
_STRENGTH: Final = Argon2()


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
    if epoch > LAST_EPOCH:
        raise ConfigError(f"{LAST_EPOCH} is the last epoch that a repository can have.")
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

    Secrets without a slot are deleted. Where another command is about to write that slot, it looks afterwards, and
    writes them again.

    Args:
        without: The id of a slot that is left alone.

    Returns:
        The table, as it was read before.

    Raises:
        SinkError
    """
    table = SlotTable.read(backend)
    key = Keys.derive(secrets.naming).seal
    for slot_id in table.without_slot():
        log.warning("keys/%s/: these secrets have no slot. They are deleted.", slot_id)
        _delete_slot(backend, slot_id)
    for slot in table.sound(secrets.naming):
        for epoch in table.in_use(secrets.naming):
            name = wrap_name(slot.id, epoch)
            if slot.id == without:
                continue
            try:
                unseal(read_key(backend, name), key)
                continue
            except Missing:
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
    backend.delete([found.name for found in backend.list(f"keys/{slot_id}/")])
