"""The log: where it goes, what is in it, and that no secret is."""

import logging
import os
import re

import pytest

from pipeline.errors import ConfigError
from pipeline.events import within
from pipeline.secrets import Secret
from vadpipe import logs

log = logging.getLogger("vadpipe.tests")


@pytest.fixture(autouse=True)
def _restored():
    yield
    logs.configure()


def test_a_line_has_time_level_logger_and_job(tmp_path):
    path = tmp_path / "log"
    logs.configure(2, file=path)
    with within(run="1", job="web01"):
        log.debug("asked for %s", "disks")
    log.info("done")
    first, second = path.read_text().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z DEBUG vadpipe\.tests \[web01\]: asked for disks", first
    )
    assert second.endswith(" INFO vadpipe.tests: done")


@pytest.mark.parametrize(("verbosity", "levels"), [(0, []), (1, ["INFO"]), (2, ["INFO", "DEBUG"])])
def test_verbosity_chooses_what_standard_error_gets(capsys, verbosity, levels):
    logs.configure(verbosity)
    log.info("info")
    log.debug("debug")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == levels


def test_a_file_gets_waits_and_retries_without_being_asked(tmp_path):
    logs.configure(file=tmp_path / "log")
    log.info("waiting")
    log.debug("a call")
    assert [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()] == ["INFO"]


def test_an_existing_file_is_made_private_and_appended_to(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    path.chmod(0o644)
    logs.configure(file=path)
    log.info("after")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("before\n")


def test_a_file_that_cannot_be_written_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"The log file .*/missing/log cannot be written: No such file"):
        logs.configure(file=tmp_path / "missing" / "log")


def test_secrets_are_blotted_in_messages_arguments_and_tracebacks(tmp_path):
    path = tmp_path / "log"
    logs.configure(2, file=path)
    Secret.from_text("pass word/1").reveal()
    logs.blot("c00kie-of-a-session")
    try:
        raise ValueError("c00kie-of-a-session is refused")
    except ValueError:
        log.exception("login with %s at https://u:%s@vc01", "pass word/1", "pass%20word%2F1")
    text = path.read_text()
    assert "login with *** at https://u:***@vc01" in text
    assert "ValueError: *** is refused" in text
    assert "c00kie" not in text


def test_a_secret_filter_serves_handlers_of_an_embedder(caplog):
    caplog.handler.addFilter(logs.SecretFilter())
    logs.blot("another secret")
    log.warning("with %s", "another secret")
    assert caplog.messages == ["with ***"]


def test_control_characters_of_names_do_not_reach_the_log(tmp_path):
    path = tmp_path / "log"
    logs.configure(file=path)
    log.info("VM %s", "web\n2026-01-01T00:00:00.000Z INFO forged\x1b[2J")
    [line] = path.read_text().splitlines()
    assert "\x1b" not in line


def test_a_pipe_keeps_its_mode(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o622)
    mode = path.stat().st_mode
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        logs.open_private(path, "log file").close()
    finally:
        os.close(reading)
    assert path.stat().st_mode == mode
