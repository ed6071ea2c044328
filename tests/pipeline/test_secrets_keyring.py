"""Secrets from the keyring: the library itself, over a backend of the test's own."""

import sys

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringLocked

from pipeline import ConfigError, Secret


class Entries(KeyringBackend):
    """A keyring in memory."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.entries = {}
        self.locked = False

    def get_password(self, service, username):
        if self.locked:
            raise KeyringLocked("it is locked")
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        self.entries[service, username] = password


@pytest.fixture
def entries():
    before = keyring.get_keyring()
    backend = Entries()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def test_an_entry_is_read_at_each_use_and_not_before(entries):
    secret = Secret.from_keyring("vc01", "backup")
    keyring.set_password("vc01", "backup", "hunter2")
    assert secret.reveal() == "hunter2"
    keyring.set_password("vc01", "backup", "hunter3")
    assert secret.reveal() == "hunter3"


def test_the_repr_of_a_keyring_secret_names_the_entry_only(entries):
    keyring.set_password("vc01", "backup", "hunter2")
    secret = Secret.from_keyring("vc01", "backup")
    secret.reveal()
    assert repr(secret) == str(secret) == "Secret(keyring vc01, backup)"


def test_a_missing_entry_says_how_to_store_it(entries):
    with pytest.raises(ConfigError, match=r"no password of backup for vc01.*keyring set vc01 backup"):
        Secret.from_keyring("vc01", "backup").reveal()


def test_a_locked_keyring_is_told(entries):
    entries.locked = True
    with pytest.raises(ConfigError, match=r"it is locked\. Unlock"):
        Secret.from_keyring("vc01", "backup").reveal()


def test_a_machine_without_a_keyring_is_an_error(entries):
    keyring.set_keyring(NoKeyring())
    with pytest.raises(ConfigError, match=r"has no keyring.*file descriptor"):
        Secret.from_keyring("vc01", "backup").reveal()


def test_the_library_is_needed_only_when_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    secret = Secret.from_keyring("vc01", "backup")
    with pytest.raises(ConfigError, match=r"no Python package keyring.*pip install keyring"):
        secret.reveal()
