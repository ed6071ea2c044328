import os

import pytest

from pipeline import ConfigError, Secret


def test_a_secret_is_read_from_the_environment_when_it_is_used(monkeypatch):
    secret = Secret.from_env("A_PASSWORD")
    monkeypatch.setenv("A_PASSWORD", "hunter2")
    assert secret.reveal() == "hunter2"


def test_a_missing_variable_is_named(monkeypatch):
    monkeypatch.delenv("A_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="A_PASSWORD holds no password"):
        Secret.from_env("A_PASSWORD").reveal()


def test_a_secret_is_read_from_a_file_descriptor_once(tmp_path):
    (tmp_path / "password").write_text("hunter2\nanother line\n")
    with (tmp_path / "password").open() as file:
        secret = Secret.from_fd(file.fileno())
        assert secret.reveal() == "hunter2"
        assert secret.reveal() == "hunter2"  # the descriptor is read once, and stays open for its owner
        os.fstat(file.fileno())


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_descriptor_is_an_error(tmp_path, content):
    (tmp_path / "password").write_text(content)
    with (tmp_path / "password").open() as file, pytest.raises(ConfigError, match="empty password"):
        Secret.from_fd(file.fileno()).reveal()


def test_a_closed_descriptor_is_an_error():
    with pytest.raises(ConfigError, match="File descriptor 987 cannot be read"):
        Secret.from_fd(987).reveal()


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_no_text_form_of_a_secret_shows_its_value(monkeypatch, show):
    monkeypatch.setenv("A_PASSWORD", "hunter2")
    for secret in (Secret.from_env("A_PASSWORD"), Secret.from_text("hunter2")):
        secret.reveal()
        assert "hunter2" not in show(secret)
        assert "hunter2" not in show([secret])
