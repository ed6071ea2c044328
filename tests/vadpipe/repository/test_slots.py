"""Key slots: every way opens, nothing forged does, and a crash between any two writes leaves what opens."""

import json
import logging
import os
import struct
import unicodedata
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pyrage
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError, IntegrityError, MoverError, SinkError
from pipeline.secrets import Secret
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format import wrapping
from vadpipe.repository.format.config import Keys, Origin, seal
from vadpipe.repository.format.objects import Damage
from vadpipe.repository.format.sealing import Sealing, Secrets
from vadpipe.repository.format.slot_changes import (
    add_slot,
    change_passphrase,
    complete_slots,
    create_keys,
    new_epoch,
    remove_foreign,
    remove_slot,
)
from vadpipe.repository.format.slots import SlotTable, open_slot, slot_name, unlock, wrap_name
from vadpipe.repository.format.ways import AgeIdentity, AgeRecipient, KeyFile, Passphrase, make_key_file
from vadpipe.repository.format.wrapping import Argon2

GOLDEN = Path(__file__).parent / "golden" / "slots.json"
REPOSITORY = bytes(range(16))
WEAK = Argon2(1, 64, 1)  # the real one costs a second for each slot
OFFICE = "correct horse battery staple"
EDITED = ["kind", "label", "created", "public", "proof", "kdf", "version", "id"]


def passphrase(text=OFFICE):
    return Passphrase(Secret.from_text(text))


def key_file(tmp_path, name="key"):
    if not (tmp_path / name).exists():
        make_key_file(tmp_path / name)
    return KeyFile(tmp_path / name)


def age_pair(tmp_path, name="age"):
    """A recipient and the file of its identity, as age-keygen writes it."""
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / name).write_text(f"# created: today\n# public key: {identity.to_public()}\n{identity}\n")
    (tmp_path / name).chmod(0o600)
    return AgeRecipient(str(identity.to_public())), AgeIdentity(tmp_path / name)


def made(way=None, backend=None):
    """A backend with one slot, and the secrets."""
    backend = backend or MemoryBackend()
    secrets = Secrets.draw()
    create_keys(backend, REPOSITORY, secrets, way or passphrase(), "office", strength=WEAK)
    return backend, secrets


def add(backend, secrets, way, label="second"):
    return add_slot(backend, REPOSITORY, secrets, way, label, strength=WEAK)


def opened(backend, *ways):
    return unlock(backend, REPOSITORY, ways)


def names(backend):
    return [stored.name for stored in backend.list("")]


def copy_of(backend):
    copy = MemoryBackend()
    for name in names(backend):
        copy.put(name, [backend.read(name)])
    return copy


def edit(backend, name, key=None, **fields):
    """Change fields of an object; with a right seal, if the key of seals is given."""
    document = json.loads(backend.read(name)) | fields
    if key is None:
        content = (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    else:
        document.pop("seal")
        content = seal(document, key)
    backend.replace(name, [content])


def only_slot(backend):
    (slot,) = SlotTable.read(backend).slots
    return slot


# Ways in.


def test_a_passphrase_opens_its_slot():
    backend, secrets = made()
    assert opened(backend, passphrase()) == secrets


def test_a_key_file_opens_its_slot(tmp_path):
    backend, secrets = made(key_file(tmp_path))
    assert opened(backend, key_file(tmp_path)) == secrets


def test_an_age_identity_opens_the_slot_of_its_recipient(tmp_path):
    recipient, identity = age_pair(tmp_path)
    backend, secrets = made(recipient)
    assert opened(backend, identity) == secrets


def test_a_file_with_several_age_identities_opens_the_slot_of_each(tmp_path):
    (first, one), (second, two) = age_pair(tmp_path, "one"), age_pair(tmp_path, "two")
    both = tmp_path / "both"
    both.write_text(one.path.read_text() + two.path.read_text())
    for recipient in (first, second):
        backend, secrets = made(recipient)
        assert opened(backend, AgeIdentity(both)) == secrets


def test_an_ssh_key_opens_the_slot_of_its_public_key(tmp_path):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
    (tmp_path / "id").write_bytes(
        private.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    )
    backend, secrets = made(AgeRecipient(public))
    assert opened(backend, AgeIdentity(tmp_path / "id")) == secrets


def test_a_passphrase_is_the_same_however_its_accents_are_composed():
    backend, secrets = made(passphrase("Zürich café und Kaffee"))
    assert opened(backend, passphrase(unicodedata.normalize("NFD", "Zürich café und Kaffee"))) == secrets


@pytest.mark.slow
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), st.text())
def test_a_passphrase_opens_its_slot_and_no_other_text_does(text, other):
    backend, secrets = made(passphrase(text))
    assert opened(backend, passphrase(text)) == secrets
    if unicodedata.normalize("NFC", text) != unicodedata.normalize("NFC", other):
        with pytest.raises(ConfigError):
            opened(backend, passphrase(other))


def test_a_passphrase_that_is_not_utf_8_is_refused_without_showing_it(tmp_path, monkeypatch):
    (tmp_path / "latin-1").write_bytes(b"some words \xfc")
    monkeypatch.setenv("LATIN_1", os.fsdecode(b"some words \xfc"))
    for way in (
        lambda: passphrase("some words \ud800"),
        lambda: Passphrase(Secret.from_env("LATIN_1")),
        lambda: Passphrase.from_file(tmp_path / "latin-1"),
    ):
        with pytest.raises(ConfigError, match="is not UTF-8 text") as caught:
            made(way())
        assert caught.value.__cause__ is None
        assert "some words" not in str(caught.value)


def test_the_passphrase_is_the_first_line_of_a_file(tmp_path):
    backend, secrets = made(passphrase("two words of Zürich"))
    (tmp_path / "file").write_text("two words of Zürich\r\nanother line\n")
    assert opened(backend, Passphrase.from_file(tmp_path / "file")) == secrets


def test_the_passphrase_is_in_an_environment_variable(monkeypatch):
    backend, secrets = made()
    monkeypatch.setenv("BACKUP_PASSPHRASE", OFFICE)
    assert opened(backend, Passphrase(Secret.from_env("BACKUP_PASSPHRASE"))) == secrets


def test_a_key_file_is_tried_before_a_passphrase_is_asked_for(tmp_path):
    backend, secrets = made()
    add(backend, secrets, key_file(tmp_path))
    nobody = Passphrase(Secret.from_env("NOT_SET_ANYWHERE"))
    assert opened(backend, nobody, key_file(tmp_path)) == secrets


def test_a_slot_whose_key_is_not_given_is_passed_over(tmp_path):
    backend, secrets = made(key_file(tmp_path, "other"))
    add(backend, secrets, key_file(tmp_path))
    add(backend, secrets, age_pair(tmp_path, "stranger")[0], "third")
    recipient, identity = age_pair(tmp_path)
    add(backend, secrets, recipient, "fourth")
    assert open_slot(backend, REPOSITORY, [key_file(tmp_path)]).slot.label == "second"
    assert open_slot(backend, REPOSITORY, [identity]).slot.label == "fourth"


@pytest.mark.slow
def test_the_full_strength_opens_too():
    backend, secrets = MemoryBackend(), Secrets.draw()
    slot = create_keys(backend, REPOSITORY, secrets, passphrase(), "office")
    assert (slot.kdf.passes, slot.kdf.memory_kib, slot.kdf.lanes) == (3, 262144, 1)
    assert opened(backend, passphrase()) == secrets


# Ways that stay shut.


def test_a_wrong_passphrase_is_one_clear_error(tmp_path):
    backend, secrets = made()
    add(backend, secrets, key_file(tmp_path), "proxy 1")
    with pytest.raises(ConfigError) as caught:
        opened(backend, passphrase("wrong horse battery staple"))
    assert "The passphrase that was given does not open the repository memory:" in str(caught.value)
    assert "It has 2 key slots: " in str(caught.value)
    assert "(passphrase 'office')" in str(caught.value)
    assert "(key file 'proxy 1')" in str(caught.value)
    assert "wrong horse" not in str(caught.value)


def test_a_wrong_key_file_and_a_wrong_identity_are_named_as_such(tmp_path):
    recipient, _ = age_pair(tmp_path)
    backend, _ = made(recipient)
    ways = [age_pair(tmp_path, "other")[1], key_file(tmp_path)]
    with pytest.raises(ConfigError, match="The age recipient and the key file that was given does not open"):
        opened(backend, *ways)


def test_no_way_at_all_says_what_to_give():
    backend, _ = made()
    with pytest.raises(ConfigError, match=r"no key was given. It has 1 key slot: .* Give --key-file"):
        opened(backend)


def test_no_slot_at_all_is_damage():
    with pytest.raises(IntegrityError, match="has no key slot"):
        opened(MemoryBackend(), passphrase())


@pytest.mark.parametrize(
    "content", ["", "\n", "VADPIPE-KEY-1-00\n", "VADPIPE-KEY-1-" + "G" * 64, "x" * 70000]
)
def test_what_is_no_key_file_is_refused(tmp_path, content):
    backend, _ = made(key_file(tmp_path))
    (tmp_path / "bad").write_text(content)
    with pytest.raises(ConfigError, match="bad"):
        opened(backend, KeyFile(tmp_path / "bad"))


@pytest.mark.parametrize("content", ["", "# nothing\n", "AGE-SECRET-KEY-1WRONG\n", "-----BEGIN X-----\n"])
def test_what_is_no_age_identity_is_refused(tmp_path, content):
    backend, _ = made(age_pair(tmp_path)[0])
    (tmp_path / "bad").write_text(content)
    with pytest.raises(ConfigError, match="holds no age identity") as caught:
        opened(backend, AgeIdentity(tmp_path / "bad"))
    assert "WRONG" not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path):
    backend, _ = made(key_file(tmp_path))
    with pytest.raises(ConfigError, match="missing cannot be read: No such file"):
        opened(backend, KeyFile(tmp_path / "missing"))


def test_a_key_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    way = key_file(tmp_path)
    way.path.chmod(0o644)
    backend, _ = made(way)
    assert "Others can read the key file" in caplog.text
    assert opened(backend, way)


def test_a_slot_of_another_repository_does_not_open():
    backend, _ = made()
    with pytest.raises(IntegrityError, match="another slot, epoch or repository"):
        unlock(backend, b"another repository"[:16], [passphrase()])


# New slots.


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_passphrase_is_refused(text):
    with pytest.raises(ConfigError, match="must not be empty"):
        made(passphrase(text))


def test_a_short_passphrase_is_warned_of(caplog):
    made(passphrase("eleven char"))
    assert "fewer than 12 characters" in caplog.text
    caplog.clear()
    made(passphrase("twelve chars"))
    assert caplog.text == ""


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "\x1b[2J", "x" * 101])
def test_an_impossible_label_is_refused(label):
    backend, secrets = made()
    with pytest.raises(ConfigError, match="cannot be the label"):
        add(backend, secrets, passphrase("another passphrase"), label)


def test_a_taken_label_is_refused(tmp_path):
    backend, secrets = made()
    with pytest.raises(ConfigError, match="There is a key slot 'office' already"):
        add(backend, secrets, key_file(tmp_path), "office")


@pytest.mark.parametrize("text", ["", "age1wrong", "ssh-rsa wrong", "AGE-SECRET-KEY-1"])
def test_what_is_no_recipient_is_refused(text):
    backend, secrets = made()
    with pytest.raises(ConfigError, match="is no age recipient"):
        add(backend, secrets, AgeRecipient(text))


def test_a_key_file_is_private_and_never_replaced(tmp_path):
    make_key_file(tmp_path / "key")
    content = (tmp_path / "key").read_text()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert len(content) == len("VADPIPE-KEY-1-") + 65
    with pytest.raises(ConfigError, match="exists already"):
        make_key_file(tmp_path / "key")
    assert (tmp_path / "key").read_text() == content


def test_a_key_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError):
        make_key_file(tmp_path / "link")
    assert not (tmp_path / "target").exists()


# Adding, removing, changing, epochs.


def test_a_slot_is_added_and_removed(tmp_path):
    backend, secrets = made()
    slot = add(backend, secrets, key_file(tmp_path))
    assert opened(backend, key_file(tmp_path)) == secrets
    remove_slot(backend, REPOSITORY, secrets, slot.id)
    assert not [name for name in names(backend) if slot.id in name]
    with pytest.raises(ConfigError, match="does not open"):
        opened(backend, key_file(tmp_path))
    assert opened(backend, passphrase()) == secrets


def test_the_last_slot_is_not_removed():
    backend, secrets = made()
    before = names(backend)
    with pytest.raises(ConfigError, match="is the last key slot"):
        remove_slot(backend, REPOSITORY, secrets, only_slot(backend).id)
    assert names(backend) == before


def test_a_forged_slot_does_not_count_as_another_one(tmp_path):
    backend, secrets = made()
    forged, _ = made(key_file(tmp_path))
    for name in names(forged):
        backend.put(name, [forged.read(name)])
    with pytest.raises(ConfigError, match="is the last key slot"):
        remove_slot(backend, REPOSITORY, secrets, _own(backend))


def _own(backend):
    return open_slot(backend, REPOSITORY, [passphrase()]).slot.id


def test_the_last_slot_comes_back_when_the_others_were_removed_at_the_same_time(tmp_path):
    backend, secrets = made()
    other = add(backend, secrets, key_file(tmp_path))

    class Racing:
        """Removes the other slot as soon as the first one is gone."""

        def __getattr__(self, name):
            return getattr(backend, name)

        def delete(self, gone):
            backend.delete(list(gone))
            backend.delete([slot_name(other.id)])

    with pytest.raises(ConfigError, match="at the same time"):
        remove_slot(Racing(), REPOSITORY, secrets, _own(backend))
    assert opened(backend, passphrase()) == secrets


def test_a_passphrase_is_changed(tmp_path):
    backend, secrets = made()
    add(backend, secrets, key_file(tmp_path))
    old = _own(backend)
    new = change_passphrase(backend, REPOSITORY, secrets, old, passphrase("a new passphrase"), strength=WEAK)
    assert new.label == "office"
    assert opened(backend, passphrase("a new passphrase")) == secrets
    with pytest.raises(ConfigError):
        opened(backend, passphrase())
    assert len(SlotTable.read(backend).slots) == 2


def test_the_only_passphrase_is_changed():
    backend, secrets = made()
    change_passphrase(
        backend, REPOSITORY, secrets, _own(backend), passphrase("a new one, long"), strength=WEAK
    )
    assert opened(backend, passphrase("a new one, long")) == secrets


def test_a_key_file_has_no_passphrase_to_change(tmp_path):
    backend, secrets = made(key_file(tmp_path))
    with pytest.raises(ConfigError, match="no key slot with a passphrase"):
        change_passphrase(backend, REPOSITORY, secrets, only_slot(backend).id, passphrase(), strength=WEAK)


def test_a_new_epoch_is_made_for_every_slot(tmp_path):
    backend, secrets = made()
    recipient, identity = age_pair(tmp_path)
    add(backend, secrets, key_file(tmp_path))
    add(backend, secrets, recipient, "third")
    new = new_epoch(backend, REPOSITORY, secrets)
    assert (new.newest, sorted(new.epochs), new.naming) == (2, [1, 2], secrets.naming)
    assert new.epochs[1] == secrets.epochs[1] != new.epochs[2]
    for way in (passphrase(), key_file(tmp_path), identity):
        assert opened(backend, way) == new
    third = new_epoch(backend, REPOSITORY, opened(backend, identity))
    assert opened(backend, passphrase()) == third
    assert third.newest == 3


def test_a_slot_that_is_added_later_has_all_epochs(tmp_path):
    backend, secrets = made()
    new = new_epoch(backend, REPOSITORY, secrets)
    add(backend, new, key_file(tmp_path))
    assert opened(backend, key_file(tmp_path)) == new


def test_a_removed_slot_gets_nothing_of_a_new_epoch(tmp_path):
    backend, secrets = made()
    slot = add(backend, secrets, key_file(tmp_path))
    remove_slot(backend, REPOSITORY, secrets, slot.id)
    new_epoch(backend, REPOSITORY, secrets)
    assert not [name for name in names(backend) if slot.id in name]


def test_a_forged_slot_gets_nothing_and_is_named(tmp_path, caplog):
    backend, secrets = made()
    forged, _ = made(key_file(tmp_path))
    intruder = only_slot(forged)
    backend.put(slot_name(intruder.id), [forged.read(slot_name(intruder.id))])
    new = new_epoch(backend, REPOSITORY, secrets)
    assert wrap_name(intruder.id, 2) not in names(backend)
    assert opened(backend, passphrase()) == new
    assert f"keys/{intruder.id}.json: its seal is wrong" in caplog.text
    assert "It gets no secrets" in caplog.text


def test_a_number_of_an_epoch_is_not_used_twice():
    backend, secrets = made()
    backend.put(wrap_name(only_slot(backend).id, 7), [b"of an epoch that did not come into use"])
    assert new_epoch(backend, REPOSITORY, secrets).newest == 8


def test_an_epoch_that_was_deleted_or_interrupted_is_warned_of(caplog):
    backend, secrets = made()
    new = new_epoch(backend, REPOSITORY, secrets)
    backend.delete(["keys/epochs/00000002.json"])
    known = opened(backend, passphrase())
    assert (known.newest, known.epochs) == (1, new.epochs)
    assert "has secrets of epoch 2, which is not in use" in caplog.text
    new_epoch(backend, REPOSITORY, known)
    caplog.clear()
    assert opened(backend, passphrase()).newest == 3
    assert caplog.text == ""


def test_two_new_epochs_at_the_same_time_leave_one(tmp_path):
    backend, secrets = made()
    add(backend, secrets, key_file(tmp_path))
    other = []

    class Racing:
        """Another command makes an epoch before the n-th put."""

        def __init__(self, number):
            self.number = number

        def __getattr__(self, name):
            return getattr(backend, name)

        def put(self, name, parts):
            self.number -= 1
            if self.number == 0:
                other.append(new_epoch(backend, REPOSITORY, opened(backend, passphrase())))
            backend.put(name, parts)

    with pytest.raises(SinkError, match="at the same time"):
        new_epoch(Racing(1), REPOSITORY, secrets)
    assert opened(backend, passphrase()) == opened(backend, key_file(tmp_path)) == other[-1]
    last = new_epoch(Racing(2), REPOSITORY, opened(backend, passphrase()))
    assert (
        opened(backend, passphrase()).newest == opened(backend, key_file(tmp_path)).newest == last.newest + 1
    )


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_slot_that_is_added_while_an_epoch_is_made_gets_it(tmp_path, number):
    backend, secrets = made()
    add(backend, secrets, age_pair(tmp_path)[0], "third")

    class Racing:
        """The slot is added before the n-th put."""

        left = number

        def __getattr__(self, name):
            return getattr(backend, name)

        def put(self, name, parts):
            self.left -= 1
            if self.left == 0:
                add(backend, secrets, key_file(tmp_path))
            backend.put(name, parts)

    new = new_epoch(Racing(), REPOSITORY, secrets)
    assert opened(backend, key_file(tmp_path)) == new


def test_secrets_that_a_slot_lacks_or_has_damaged_are_written_anew(tmp_path):
    backend, secrets = made()
    slot = add(backend, secrets, key_file(tmp_path))
    for spoil in (
        lambda name: backend.delete([name]),
        lambda name: backend.replace(name, [b"rot"]),
        lambda name: backend.replace(name, [bytes(20 << 20)]),
    ):
        spoil(wrap_name(slot.id, 1))
        with pytest.raises(MoverError):
            opened(backend, key_file(tmp_path))
        complete_slots(backend, REPOSITORY, opened(backend, passphrase()))
        assert opened(backend, key_file(tmp_path)) == secrets


def test_what_an_interrupted_init_left_is_deleted(tmp_path):
    backend, _ = made()
    _, secrets = made(key_file(tmp_path), backend)
    remove_foreign(backend, secrets)
    assert opened(backend, key_file(tmp_path)) == secrets
    assert len(names(backend)) == 2


# Crashes: the n-th change of the store fails, for each n.


class Crash(Exception):
    pass


class Failing:
    """A backend whose n-th change fails, and those after it."""

    def __init__(self, backend, number):
        self.backend, self.left = backend, number

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise Crash

    def put(self, name, parts):
        self._count()
        self.backend.put(name, parts)

    def delete(self, gone):
        for name in gone:
            self._count()
            self.backend.delete([name])


def _repeated_add(backend, secrets, tmp_path):
    add(backend, secrets, key_file(tmp_path, "new"), "new")


def _repeated_remove(backend, secrets, tmp_path):
    remove_slot(backend, REPOSITORY, secrets, (tmp_path / "removable").read_text())


def _repeated_change(backend, secrets, tmp_path):
    slot = (tmp_path / "changeable").read_text()
    if slot_name(slot) not in names(backend):  # what is left of it
        return remove_slot(backend, REPOSITORY, secrets, SlotTable.read(backend).named(slot))
    return change_passphrase(
        backend, REPOSITORY, secrets, slot, passphrase("a new passphrase"), strength=WEAK
    )


def _repeated_epoch(backend, secrets, tmp_path):
    new_epoch(backend, REPOSITORY, secrets)


def _ways_after(operation, tmp_path):
    """What opens after the operation, and what does not."""
    identity, file, new = (
        AgeIdentity(tmp_path / "age"),
        KeyFile(tmp_path / "key"),
        passphrase("a new passphrase"),
    )
    return {
        _repeated_add: ([passphrase(), identity, file, KeyFile(tmp_path / "new")], []),
        _repeated_remove: ([passphrase(), identity], [file]),
        _repeated_change: ([new, identity, file], [passphrase()]),
        _repeated_epoch: ([passphrase(), identity, file], []),
    }[operation]


@pytest.mark.parametrize("operation", [_repeated_add, _repeated_remove, _repeated_change, _repeated_epoch])
def test_a_crash_between_any_two_writes_leaves_a_repository_that_opens(operation, tmp_path):
    start, secrets = made()
    recipient, identity = age_pair(tmp_path)
    add(start, secrets, recipient, "age")
    slot = add(start, secrets, key_file(tmp_path), "proxy")
    (tmp_path / "removable").write_text(slot.id)
    (tmp_path / "changeable").write_text(_own(start))
    secrets = new_epoch(start, REPOSITORY, secrets)
    for number in count():
        backend = copy_of(start)
        try:
            operation(Failing(backend, number), secrets, tmp_path)
        except Crash:
            known = opened(backend, identity)
            assert known.newest == 2  # what has not come into use is not written under
            assert known.naming == secrets.naming
            assert known.epochs[2] == secrets.epochs[2]
            assert opened(backend, passphrase(), passphrase("a new passphrase")).newest == 2
            operation(backend, known, tmp_path)
        else:
            break
        opening, shut = _ways_after(operation, tmp_path)
        found = [opened(backend, way) for way in opening]
        newest = found[0].newest
        assert newest >= 3 if operation is _repeated_epoch else newest == 2
        assert all(
            (known.newest, known.epochs[newest]) == (newest, found[0].epochs[newest]) for known in found
        )
        for way in shut:
            with pytest.raises(ConfigError, match="does not open"):
                opened(backend, way)
    assert number >= 3


def test_secrets_without_a_slot_are_deleted_by_the_next_command(tmp_path):
    start, secrets = made()
    for number in count():
        backend = copy_of(start)
        try:
            add(Failing(backend, number), secrets, key_file(tmp_path))
        except Crash:
            new_epoch(backend, REPOSITORY, secrets)
            table = SlotTable.read(backend)
            assert set(table.wraps) == {slot.id for slot in table.slots}
        else:
            break
    assert number >= 2


def test_the_secrets_of_a_damaged_slot_are_kept(tmp_path):
    backend, secrets = made()
    slot = add(backend, secrets, key_file(tmp_path))
    backend.replace(slot_name(slot.id), [b"damaged"])
    new_epoch(backend, REPOSITORY, secrets)
    assert wrap_name(slot.id, 1) in names(backend)


def test_secrets_that_are_deleted_while_their_slot_is_added_are_written_again(tmp_path):
    backend, secrets = made()

    class Racing(MemoryBackend):
        def __getattribute__(self, name):
            return getattr(backend, name) if name != "put" else super().__getattribute__(name)

        def put(self, name, parts):
            if name.count("/") == 1:  # the slot
                complete_slots(backend, REPOSITORY, secrets)
            backend.put(name, parts)

    slot = add(Racing(), secrets, key_file(tmp_path))
    assert wrap_name(slot.id, 1) in names(backend)
    assert opened(backend, key_file(tmp_path)) == secrets


def test_a_crash_of_the_creation_is_repeated(tmp_path):
    for number in count():
        backend = MemoryBackend()
        try:
            made(key_file(tmp_path), Failing(backend, number))
        except Crash:
            _, secrets = made(key_file(tmp_path), backend)
            remove_foreign(backend, secrets)
            assert opened(backend, key_file(tmp_path)) == secrets
        else:
            break
    assert number == 2


# Hostile and damaged objects.


def flips(content):
    for place in range(len(content) * 8):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        yield bytes(altered)


@pytest.mark.slow
def test_every_flipped_bit_of_wrapped_secrets_is_noticed(tmp_path):
    backend, _ = made(key_file(tmp_path))
    name = wrap_name(only_slot(backend).id, 1)
    for altered in flips(backend.read(name)):
        backend.replace(name, [altered])
        with pytest.raises(IntegrityError):
            opened(backend, key_file(tmp_path))


@pytest.mark.slow
def test_every_flipped_bit_of_a_slot_is_noticed(tmp_path, caplog):
    backend, secrets = made(key_file(tmp_path))
    name = slot_name(only_slot(backend).id)
    for altered in flips(backend.read(name)):
        backend.replace(name, [altered])
        caplog.clear()
        try:
            assert opened(backend, key_file(tmp_path)) == secrets
        except MoverError:
            continue
        assert "its seal is wrong" in caplog.text


def test_secrets_under_another_epoch_or_slot_are_refused(tmp_path):
    recipient, identity = age_pair(tmp_path)
    for way, opening in ((key_file(tmp_path), key_file(tmp_path)), (recipient, identity)):
        backend, secrets = made(way)
        new_epoch(backend, REPOSITORY, secrets)
        slot = only_slot(backend).id
        seals = Keys.derive(secrets.naming).seal
        backend.replace(wrap_name(slot, 2), [backend.read(wrap_name(slot, 1))])
        with pytest.raises(IntegrityError, match="it belongs to another slot"):
            opened(backend, opening)
        edit(backend, wrap_name(slot, 2), seals, epoch=2)
        with pytest.raises(IntegrityError, match="another slot, epoch or repository"):
            opened(backend, opening)


def test_a_slot_under_another_id_is_refused(tmp_path):
    backend, _ = made(key_file(tmp_path))
    slot = only_slot(backend).id
    backend.put(slot_name("0" * 16), [backend.read(slot_name(slot))])
    backend.put(wrap_name("0" * 16, 1), [backend.read(wrap_name(slot, 1))])
    assert SlotTable.read(backend).damaged == {slot_name("0" * 16): "it is another slot under this name"}


def test_other_secrets_wrapped_for_the_public_key_of_a_slot_are_refused(tmp_path):
    """Who can write the store puts a repository of his own there, to read what will be backed up."""
    for way in (key_file(tmp_path), passphrase()):
        backend, _ = made(way)
        slot, theirs = only_slot(backend), Secrets.draw()
        backend.replace(slot_name(slot.id), [slot.content(theirs.naming)])
        forged = wrapping.wrap(theirs, 1, slot, REPOSITORY, Origin())
        backend.replace(wrap_name(slot.id, 1), [forged])
        with pytest.raises(IntegrityError, match="not made by its holder"):
            opened(backend, way)


def test_an_epoch_that_somebody_without_the_secrets_announced_is_not_used(caplog):
    backend, secrets = made()
    theirs = Secrets(b"x" * 32, {9: b"y" * 32})
    backend.put("keys/epochs/00000009.json", [wrapping.epoch_content(9, theirs, Origin())])
    assert opened(backend, passphrase()) == secrets
    assert "keys/epochs/00000009.json: its seal is wrong. The epoch is not used." in caplog.text


def test_an_epoch_whose_object_is_damaged_is_read_and_not_written(caplog):
    backend, secrets = made()
    new = new_epoch(backend, REPOSITORY, secrets)
    backend.replace("keys/epochs/00000002.json", [b"{}"])
    known = opened(backend, passphrase())
    assert (known.newest, known.epochs) == (1, new.epochs)
    assert "keys/epochs/00000002.json: its seal is wrong" in caplog.text
    assert new_epoch(backend, REPOSITORY, known).newest == 3


def test_a_wrong_key_of_an_epoch_is_noticed():
    backend, secrets = made()
    new_epoch(backend, REPOSITORY, secrets)
    slot = only_slot(backend)
    other = Secrets(secrets.naming, {2: b"x" * 32})
    backend.replace(wrap_name(slot.id, 2), [wrapping.wrap(other, 2, slot, REPOSITORY, Origin())])
    with pytest.raises(IntegrityError, match="its key is not that of the epoch; another slot opens it"):
        opened(backend, passphrase())


def test_the_lost_key_of_an_older_epoch_is_warned_of(caplog):
    backend, secrets = made()
    new_epoch(backend, REPOSITORY, secrets)
    backend.replace(wrap_name(only_slot(backend).id, 1), [b"{}"])
    assert list(opened(backend, passphrase()).epochs) == [2]
    assert "00000001.json: its field 'version' is missing" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [lambda backend, name: backend.replace(name, [b"{}"]), lambda backend, name: backend.delete([name])],
)
def test_the_lost_key_of_an_older_epoch_is_found_in_another_slot(damage, tmp_path, caplog):
    backend, secrets = made(key_file(tmp_path))
    first = only_slot(backend)
    add(backend, secrets, passphrase())
    new = new_epoch(backend, REPOSITORY, secrets)
    damage(backend, wrap_name(first.id, 1))
    found = open_slot(backend, REPOSITORY, [key_file(tmp_path), passphrase()])
    assert (found.secrets, found.slot.id) == (new, first.id)
    assert "cannot be read" not in caplog.text
    assert list(opened(backend, key_file(tmp_path)).epochs) == [2]
    assert "What was written under this epoch cannot be read" in caplog.text


HOSTILE_KDF = [
    {"passes": 17},
    {"passes": 0},
    {"passes": -1},
    {"passes": 10**30},
    {"passes": True},
    {"passes": "3"},
    {"passes": 3.0},
    {"passes": None},
    {"memory_kib": 4 * 1024 * 1024 + 1},
    {"memory_kib": 2**64},
    {"memory_kib": 7},
    {"memory_kib": []},
    {"lanes": 17},
    {"lanes": 0},
    {"salt": ""},
    {"salt": "00" * 15},
    {"salt": "0G" * 16},
    {"salt": "AA" * 16},
    {"salt": " " + "00" * 16},
    {"salt": 5},
    {"name": "argon2i"},
    {"name": None},
]


@pytest.mark.parametrize("change", HOSTILE_KDF, ids=str)
def test_impossible_parameters_of_argon2_are_refused_before_any_memory_is_taken(change, monkeypatch):
    backend, _ = made()
    slot = only_slot(backend)
    kdf = json.loads(backend.read(slot_name(slot.id)))["kdf"] | change
    edit(backend, slot_name(slot.id), kdf=kdf)
    monkeypatch.setattr(Argon2, "derive", lambda *_: pytest.fail("Argon2id was begun"))
    with pytest.raises(ConfigError, match=rf"does not open .* keys/{slot.id}.json: .+"):
        opened(backend, passphrase())


def test_a_costly_forged_slot_is_not_reached_with_the_right_passphrase():
    backend, secrets = made()
    content = json.loads(backend.read(slot_name(only_slot(backend).id)))
    for slot_id in ("0" * 16, "f" * 16):
        costly = content | {
            "id": slot_id,
            "kdf": content["kdf"] | {"passes": 16, "memory_kib": 4 * 1024 * 1024},
        }
        backend.put(slot_name(slot_id), [json.dumps(costly).encode()])
    assert len(SlotTable.read(backend).slots) == 3
    assert opened(backend, passphrase()) == secrets


@pytest.mark.parametrize("value", [None, 5, True, [], {}, "", "x" * 5000, "\x1b[2J", -1, 1e400])
@pytest.mark.parametrize("field", EDITED)
def test_a_slot_with_a_wrong_field_never_opens_and_never_breaks(field, value):
    backend, secrets = made()
    slot = only_slot(backend)
    edit(backend, slot_name(slot.id), **{field: value})
    problem, known = None, None
    try:
        known = opened(backend, passphrase())
    except MoverError as exc:
        problem = str(exc)
    if problem is not None:
        assert "\x1b" not in problem
    else:
        assert (field in ("label", "created"), known) == (True, secrets)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 60000, b'{"version":2}', bytes(20 << 20), b"9" * 5000],
    ids=lambda content: f"{content[:12]!r}-{len(content)}",
)
def test_what_is_no_slot_is_named_and_the_others_open(content):
    backend, secrets = made()
    backend.put(slot_name("f" * 16), [content])
    backend.put(wrap_name("f" * 16, 1), [content])
    backend.put("keys/epochs/00000002.json", [content])
    backend.put("keys/epochs/00000000.json", [content])
    backend.put("keys/anything", [content])
    assert opened(backend, passphrase()) == secrets
    damaged = SlotTable.read(backend).damaged
    assert {"keys/anything", "keys/epochs/00000000.json", slot_name("f" * 16)} <= set(damaged)


def test_a_large_object_is_not_read_whole():
    backend, _ = made()
    backend.put(slot_name("f" * 16), [bytes(20 << 20)])
    lengths = []

    class Watched:
        def __getattr__(self, name):
            return getattr(backend, name)

        def read(self, name, offset=0, length=None):
            lengths.append(length)
            return backend.read(name, offset, length)

    opened(Watched(), passphrase())
    assert None not in lengths
    assert max(lengths) == 64 * 1024 + 1


# Points of small order on Curve25519, in all encodings: RFC 7748, section 6.1, asks to refuse what they give.
SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_point_of_small_order_is_refused(point, tmp_path):
    backend, secrets = made(key_file(tmp_path))
    slot = only_slot(backend)
    edit(backend, wrap_name(slot.id, 1), ephemeral=point)
    with pytest.raises(IntegrityError, match="a public key in it is impossible"):
        opened(backend, key_file(tmp_path))
    edit(backend, slot_name(slot.id), Keys.derive(secrets.naming).seal, public=point)
    with pytest.raises(IntegrityError, match="a public key in it is impossible"):
        new_epoch(backend, REPOSITORY, secrets)


@pytest.mark.parametrize(
    "change", [{"wrapped": ""}, {"wrapped": "00"}, {"wrapped": "zz"}, {"ephemeral": "00"}]
)
def test_impossible_wrapped_secrets_are_refused(change, tmp_path):
    recipient, identity = age_pair(tmp_path)
    for way, opening in ((key_file(tmp_path), key_file(tmp_path)), (recipient, identity)):
        backend, _ = made(way)
        edit(backend, wrap_name(only_slot(backend).id, 1), **change)
        with pytest.raises(MoverError):
            opened(backend, opening)


def test_an_escape_sequence_in_a_label_is_not_printed():
    backend, _ = made()
    edit(backend, slot_name(only_slot(backend).id), label="\x1b[2Jevil")
    with pytest.raises(ConfigError) as caught:
        opened(backend, passphrase("a wrong passphrase"))
    assert "\x1b" not in str(caught.value)


# Secrets stay secret.


def test_no_secret_is_logged_or_shown(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    recipient, identity = age_pair(tmp_path)
    backend, secrets = made()
    add(backend, secrets, key_file(tmp_path), "file")
    add(backend, secrets, recipient, "age")
    secrets = new_epoch(backend, REPOSITORY, secrets)
    shown = [repr(Sealing(REPOSITORY, secrets)), repr(secrets)]
    for way in (passphrase(), key_file(tmp_path), identity):
        found = open_slot(backend, REPOSITORY, [way])
        holder = way.holder(found.slot)
        shown += [repr(way), repr(found), repr(holder), str(found.slot), repr(found.slot)]
    change_passphrase(
        backend, REPOSITORY, secrets, _own(backend), passphrase("another long passphrase"), strength=WEAK
    )
    for way in (passphrase("a wrong passphrase"), key_file(tmp_path, "wrong"), age_pair(tmp_path, "w")[1]):
        with pytest.raises(ConfigError) as caught:
            opened(backend, way)
        shown += [str(caught.value), repr(caught.value), str(caught.value.facts)]
    everything = caplog.text + "\n".join(shown) + repr(SlotTable.read(backend).problems(secrets.naming))
    texts = [OFFICE, "another long passphrase", "a wrong passphrase"]
    texts += [(tmp_path / "key").read_text()[14:-1], (tmp_path / "age").read_text().splitlines()[-1]]
    keys = [secrets.naming, *secrets.epochs.values()]
    texts += [key.hex() for key in keys] + [repr(key)[2:-1] for key in keys]
    assert "opened" in caplog.text
    for text in texts:
        assert text not in everything


# The format, byte for byte. What the page says, once more.


def fixed_origin():
    numbers = count(1)
    return Origin(
        random=lambda size: blake3(bytes([next(numbers)])).digest(size),
        now=lambda: datetime(2026, 11, 28, tzinfo=UTC),
    )


def make_golden(tmp_path):
    backend, origin = MemoryBackend(), fixed_origin()
    secrets = Secrets.draw(origin.random)
    create_keys(backend, REPOSITORY, secrets, passphrase(), "office", origin=origin, strength=WEAK)
    make_key_file(tmp_path / "golden", origin)
    add_slot(backend, REPOSITORY, secrets, KeyFile(tmp_path / "golden"), "proxy", origin=origin)
    new_epoch(backend, REPOSITORY, secrets, origin=origin)
    objects = {name: backend.read(name).decode() for name in names(backend)}
    return {"key file": (tmp_path / "golden").read_text(), "objects": objects}


def test_the_objects_are_the_golden_ones(tmp_path):
    assert make_golden(tmp_path) == json.loads(GOLDEN.read_text())


def page_secrets(objects, slot_id, private, epoch):
    """The naming key and the key of an epoch, from the page alone."""
    slot = json.loads(objects[f"keys/{slot_id}.json"])
    wrapped = json.loads(objects[f"keys/{slot_id}/{epoch:08}.json"])
    ephemeral, public = bytes.fromhex(wrapped["ephemeral"]), bytes.fromhex(slot["public"])
    key = X25519PrivateKey.from_private_bytes(private)
    assert key.public_key().public_bytes_raw() == public
    shared = key.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    info = b"vadpipe wrap" + REPOSITORY + bytes.fromhex(slot_id) + struct.pack("<I", epoch)
    wrap_key = HKDF(SHA256(), 32, ephemeral + public, info).derive(shared)
    found = AESGCM(wrap_key).decrypt(bytes(12), bytes.fromhex(wrapped["wrapped"]), info)
    naming = found[:32]
    proof = blake3(b"vadpipe slot" + REPOSITORY + bytes.fromhex(slot_id) + naming, key=private).hexdigest()
    assert proof == slot["proof"]
    return naming, found[32:]


def page_seal(text, naming):
    document = json.loads(text)
    given = document.pop("seal")
    rest = (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    assert blake3(rest, key=blake3(b"vadpipe repository seal", key=naming).digest()).hexdigest() == given


def test_the_page_alone_opens_the_golden_objects():
    golden = json.loads(GOLDEN.read_text())
    objects = golden["objects"]
    slots = {name[5:21]: json.loads(text) for name, text in objects.items() if len(name) == 26}
    assert sorted(slot["kind"] for slot in slots.values()) == ["keyfile", "passphrase"]
    found = set()
    for slot_id, slot in slots.items():
        if slot["kind"] == "keyfile":
            private = bytes.fromhex(golden["key file"].removeprefix("VADPIPE-KEY-1-").strip())
        else:
            kdf = slot["kdf"]
            private = Argon2id(
                salt=bytes.fromhex(kdf["salt"]),
                length=32,
                iterations=kdf["passes"],
                lanes=kdf["lanes"],
                memory_cost=kdf["memory_kib"],
            ).derive(OFFICE.encode())
        (naming, first), (again, second) = (
            page_secrets(objects, slot_id, private, epoch) for epoch in (1, 2)
        )
        assert naming == again
        found.add((naming, first, second))
    assert len(found) == 1
    for text in objects.values():
        page_seal(text, naming)
    epoch = json.loads(objects["keys/epochs/00000002.json"])
    digest_key = blake3(b"vadpipe repository epoch", key=naming).digest()
    assert epoch["digest"] == blake3(second, key=digest_key).hexdigest()


def test_a_damage_never_leaves_the_package(tmp_path):
    backend, _ = made(key_file(tmp_path))
    backend.replace(wrap_name(only_slot(backend).id, 1), [b"{}"])
    with pytest.raises(IntegrityError) as caught:
        opened(backend, key_file(tmp_path))
    assert not isinstance(caught.value, Damage)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.write_text(json.dumps(make_golden(Path(directory)), indent=1) + "\n")
