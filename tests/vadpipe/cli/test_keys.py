"""The commands of keys as users call them, on a sealed repository in a directory."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from pipeline.errors import ConfigError, IntegrityError, SinkError
from pipeline.secrets import Secret
from vadpipe.cli import keys
from vadpipe.cli.commands import vadpipe
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format import slot_changes
from vadpipe.repository.format.config import FORMAT, SEALING, Keys, Origin, create_repository, seal
from vadpipe.repository.format.sealing import Secrets
from vadpipe.repository.format.slot_changes import add_slot, create_keys
from vadpipe.repository.format.slots import unlock
from vadpipe.repository.format.ways import KeyFile, Passphrase, make_key_file, new_slot
from vadpipe.repository.format.wrapping import Argon2

IDENTITY = bytes(range(16))
WEAK = Argon2(1, 64, 1)
OFFICE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("REPOSITORY", "KEY_FILE", "PASSPHRASE_FILE", "AGE_IDENTITY"):
        monkeypatch.delenv(f"VADPIPE_{name}", raising=False)


@pytest.fixture
def repository(tmp_path):
    """A sealed one, whose first slot is that of the key file `key`."""
    backend = LocalBackend(tmp_path / "repository")
    secrets = Secrets.draw()
    make_key_file(tmp_path / "key")
    create_keys(backend, IDENTITY, secrets, KeyFile(tmp_path / "key"), "proxy")
    fields = {"format": FORMAT, "version": 2, "id": IDENTITY.hex(), "sealing": SEALING, "created": "2026"}
    backend.put("config.json", [seal(fields, Keys.derive(secrets.naming).seal)])
    return tmp_path / "repository"


@pytest.fixture
def weak(monkeypatch):
    """New passphrases cost no second."""

    def with_weak(way, label, naming, identity, origin, strength):
        return new_slot(way, label, naming, identity, origin, WEAK)

    monkeypatch.setattr(slot_changes, "new_slot", with_weak)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(keys, "_can_ask", lambda: True)


def secrets_of(repository, way):
    return unlock(LocalBackend(repository), IDENTITY, [way])


def with_passphrase(repository, label="office"):
    key = KeyFile(repository.parent / "key")
    way = Passphrase(Secret.from_text(OFFICE))
    add_slot(LocalBackend(repository), IDENTITY, secrets_of(repository, key), way, label, strength=WEAK)


def call(*arguments, answers=None):
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(vadpipe, ["key", *words], input=answers, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def key_of(repository):
    return ("--key-file", repository.parent / "key")


def test_the_slots_are_a_table(repository):
    with_passphrase(repository)
    header, *rows = call("list", repository).splitlines()
    assert header.split() == ["SLOT", "KIND", "LABEL", "CREATED", "EPOCHS", "SEAL"]
    assert {tuple(row.split()[1:3]) for row in rows} == {("keyfile", "proxy"), ("passphrase", "office")}
    assert all(row.endswith("not checked") for row in rows)


def test_with_a_key_the_seals_are_checked(repository):
    with_passphrase(repository)
    forged = next(path for path in (repository / "keys").glob("*.json") if "office" in path.read_text())
    forged.write_text(forged.read_text().replace('"office"', '"0ffice"'))
    done = CliRunner().invoke(vadpipe, ["key", "list", str(repository), *map(str, key_of(repository))])
    found = {row.split()[2]: row.split()[-1] for row in done.stdout.splitlines()[1:]}
    assert found == {"proxy": "right", "0ffice": "WRONG"}
    assert f"vadpipe: keys/{forged.name}: its seal is wrong." in done.stderr


def test_the_slots_are_a_document(repository):
    (slot,) = json.loads(call("list", repository, "--json"))["slots"]
    assert (slot["kind"], slot["label"], slot["epochs"]) == ("keyfile", "proxy", "1")


def test_secrets_that_a_removed_slot_left_are_named_and_removed(repository):
    with_passphrase(repository)
    gone = next(path for path in (repository / "keys").glob("*.json") if "office" in path.read_text())
    gone.unlink()
    assert f"vadpipe key remove {gone.stem}" in call("list", repository)
    call("remove", repository, gone.stem, *key_of(repository))
    assert not list((repository / "keys" / gone.stem).glob("*"))


def test_a_key_file_is_made_and_opens_the_repository(repository, tmp_path):
    call("file", tmp_path / "new")
    said = call(
        "add", repository, "--label", "second", "--new-key-file", tmp_path / "new", *key_of(repository)
    )
    assert re.search(r"Key slot [0-9a-f]{16} \(key file 'second'\) opens .*repository now", said)
    secrets = secrets_of(repository, KeyFile(tmp_path / "new"))
    assert secrets == secrets_of(repository, KeyFile(tmp_path / "key"))


def test_a_key_file_is_not_made_twice(tmp_path):
    call("file", tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        call("file", tmp_path / "new")


def test_a_passphrase_is_added_from_a_file(repository, tmp_path, weak):
    (tmp_path / "words").write_text("words of several kinds\n")
    call("add", repository, "--label", "b", "--new-passphrase-file", tmp_path / "words", *key_of(repository))
    assert secrets_of(repository, Passphrase(Secret.from_text("words of several kinds")))


def test_an_age_recipient_is_added(repository, tmp_path):
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(f"{identity}\n")
    call("add", repository, "--label", "b", "--age-recipient", identity.to_public(), *key_of(repository))
    said = call("epoch", repository, "--age-identity", tmp_path / "identity")
    assert "under epoch 2, which 2 key slots can open" in said


def test_a_new_passphrase_is_asked_for_twice(repository, weak, terminal):
    answers = "several good words\nsomething else\nseveral good words\nseveral good words\n"
    said = call("add", repository, "--label", "b", *key_of(repository), answers=answers)
    assert "do not match" in said
    assert "several" not in said
    assert secrets_of(repository, Passphrase(Secret.from_text("several good words")))


def test_an_empty_new_passphrase_is_refused(repository, weak, terminal):
    with pytest.raises(ConfigError, match="must not be empty"):
        call("add", repository, "--label", "b", *key_of(repository), answers="\n\n")


def test_without_a_terminal_a_new_passphrase_needs_an_option(repository):
    with pytest.raises(ConfigError, match="no terminal to ask for the new passphrase"):
        call("add", repository, "--label", "b", *key_of(repository))


def test_two_new_keys_for_one_slot_are_refused(repository, tmp_path):
    with pytest.raises(click.UsageError, match="A key slot has one key"):
        call(
            "add", repository, "--label", "b", "--age-recipient", "age1x", "--new-key-file", tmp_path / "key"
        )


def test_a_slot_is_removed_by_its_label(repository):
    with_passphrase(repository)
    said = call("remove", repository, "office", *key_of(repository))
    assert "still knows the secrets" in said
    assert "office" not in call("list", repository)


def test_the_last_slot_is_not_removed(repository):
    with pytest.raises(ConfigError, match="is the last key slot"):
        call("remove", repository, "proxy", *key_of(repository))
    assert secrets_of(repository, KeyFile(repository.parent / "key"))


@pytest.mark.parametrize("slot", ["nobody", "000", ""])
def test_an_unknown_slot_is_refused_with_those_that_are_there(repository, slot):
    with pytest.raises(ConfigError, match=r"There is no key slot .* \(key file 'proxy'\)"):
        call("remove", repository, slot, *key_of(repository))


def test_a_passphrase_is_changed(repository, tmp_path, weak):
    with_passphrase(repository)
    (tmp_path / "old").write_text(OFFICE)
    (tmp_path / "new").write_text("another good passphrase")
    call(
        "change", repository, "--passphrase-file", tmp_path / "old", "--new-passphrase-file", tmp_path / "new"
    )
    assert secrets_of(repository, Passphrase(Secret.from_text("another good passphrase")))
    with pytest.raises(ConfigError, match="does not open"):
        secrets_of(repository, Passphrase(Secret.from_text(OFFICE)))


def test_a_passphrase_that_was_forgotten_is_changed_with_another_key(repository, monkeypatch, weak):
    with_passphrase(repository)
    monkeypatch.setenv("NEW_WORDS", "another good passphrase")
    call("change", repository, "--slot", "office", "--new-passphrase-env", "NEW_WORDS", *key_of(repository))
    assert secrets_of(repository, Passphrase(Secret.from_text("another good passphrase")))


def test_a_new_epoch_is_made(repository):
    assert "under epoch 2, which 1 key slot can open" in call("epoch", repository, *key_of(repository))
    assert json.loads(call("epoch", repository, "--json", *key_of(repository))) == {"epoch": 3}
    assert secrets_of(repository, KeyFile(repository.parent / "key")).newest == 3


def test_the_environment_names_the_repository_and_the_key(repository, monkeypatch):
    monkeypatch.setenv("VADPIPE_REPOSITORY", str(repository))
    monkeypatch.setenv("VADPIPE_KEY_FILE", str(repository.parent / "key"))
    assert "under epoch 2" in call("epoch")


def test_the_passphrase_is_asked_for_when_no_key_is_given(repository, terminal):
    with_passphrase(repository)
    said = call("epoch", repository, answers=f"{OFFICE}\n")
    assert "Passphrase of the repository: " in said
    assert "under epoch 2" in said
    assert OFFICE not in said


def test_nothing_is_asked_for_when_a_key_is_given(repository, terminal):
    assert "Passphrase" not in call("epoch", repository, *key_of(repository))


def test_without_a_key_and_a_terminal_the_options_are_named(repository):
    with pytest.raises(ConfigError, match="Give --key-file or --passphrase-file, or set VADPIPE_KEY_FILE"):
        call("epoch", repository)


def test_a_repository_that_is_not_sealed_has_no_keys(tmp_path):
    create_repository(LocalBackend(tmp_path / "plain"), Origin())
    with pytest.raises(ConfigError, match="is not sealed, so it has no keys"):
        call("list", tmp_path / "plain")


def test_what_is_no_repository_is_named(tmp_path):
    with pytest.raises(SinkError, match=r"it has no config.json"):
        call("list", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SinkError, match="of another program"):
        call("list", tmp_path)


@pytest.mark.parametrize("identity", [None, 5, "", "00", "ZZ" * 16])
def test_a_damaged_config_is_named(repository, identity):
    config = repository / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id": identity}))
    with pytest.raises(IntegrityError, match=r"config\.json is damaged"):
        call("list", repository)


def test_an_altered_config_is_named(repository):
    config = repository / "config.json"
    config.write_text(config.read_text().replace("aes-256-gcm", "aes-256-gcm ").replace("gcm ", "gcm") + "\n")
    with pytest.raises(IntegrityError, match="its seal is wrong"):
        call("epoch", repository, *key_of(repository))


def test_a_wrong_key_ends_with_the_code_of_a_wrong_command_line(repository, tmp_path):
    make_key_file(tmp_path / "wrong")
    with pytest.raises(ConfigError, match="The key file that was given does not open") as caught:
        call("epoch", repository, "--key-file", tmp_path / "wrong")
    assert caught.value.exit_code == 2


def test_ways_that_a_user_named_are_told_from_the_question(tmp_path):
    question = Passphrase(keys.Prompted.new("Passphrase"))
    assert not keys.were_given([question])
    assert not keys.were_given([])
    assert keys.were_given([question, KeyFile(tmp_path / "key")])
    assert keys.were_given([Passphrase(Secret.from_text("given"))])


def test_a_prompted_passphrase_is_not_shown():
    secret = keys.Prompted.new("Passphrase of the repository")
    object.__setattr__(secret, "_text", OFFICE)
    assert secret.reveal() == OFFICE
    assert OFFICE not in repr(Passphrase(secret))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_question_leaves_the_terminal_as_it_was(repository, number):
    import termios

    with_passphrase(repository)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "vadpipe", "key", "epoch", str(repository)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    said = b""
    while b"Passphrase of the repository" not in said and select.select([master], [], [], 20)[0]:
        said += os.read(master, 1000)
    for _ in range(2000):
        if not termios.tcgetattr(slave)[3] & termios.ECHO:
            break
        time.sleep(0.01)
    else:
        pytest.fail(f"nothing was asked: {said!r}")
    process.send_signal(number)
    assert process.wait(20) == 130
    assert termios.tcgetattr(slave)[3] & termios.ECHO
    os.close(master)
    os.close(slave)
