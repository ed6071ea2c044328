"""An intent is durable before the call it announces, and nobody takes a live one."""

import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from vadpipe.files import state_directory
from vadpipe.vsphere.journal.intents import Intent, IntentKind, Journal, process_start


def _intent(**changes: object) -> Intent:
    made = Intent(
        server="vc01", server_id="id", vm_moref="vm-1", vm_uuid="uuid", vm_name="web01", run="20260101"
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_intents_are_read_as_they_were_written(journal):
    first, second = _intent(created="2026-01-01T00:00:00+00:00"), _intent(created="2026-01-02T00:00:00+00:00")
    journal.write(second)
    journal.write(first)
    assert journal.intents() == [first, second]
    journal.remove(first)
    journal.remove(first)  # once more does no harm
    assert journal.intents() == [second]


def test_an_intent_file_without_a_kind_is_a_snapshot(journal):
    intent = _intent()
    journal.write(intent)
    entry = json.loads(journal.path(intent).read_text())
    for name in ("kind", "libdir", "tmp_directory"):
        del entry[name]
    journal.path(intent).write_text(json.dumps(entry))
    assert journal.intents() == [intent]
    assert intent.kind is IntentKind.SNAPSHOT


@pytest.mark.parametrize("kind", IntentKind)
def test_every_kind_of_intent_survives_writing_and_reading(journal, kind):
    intent = _intent(kind=kind, libdir="/opt/vddk", tmp_directory="/var/tmp/x")
    journal.write(intent)
    assert journal.intents() == [intent]
    assert kind in intent.title
    assert len(intent.identity) <= 50  # what PrepareForAccess takes


@pytest.mark.parametrize("damage", [{"kind": "unheard of"}, {"token": None}])
def test_an_invalid_intent_file_is_an_error(journal, damage):
    intent = _intent()
    journal.write(intent)
    entry = json.loads(journal.path(intent).read_text())
    for name, value in damage.items():
        del entry[name]
        if value:
            entry[name] = value
    journal.path(intent).write_text(json.dumps(entry))
    with pytest.raises(SourceError, match=intent.token):
        journal.intents()


def test_an_empty_or_missing_journal_has_no_intents(tmp_path):
    assert Journal(tmp_path / "none").intents() == []


def test_a_journal_write_flushes_file_then_directory(journal, monkeypatch):
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> None:
        steps.append("rename")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    intent = _intent()
    journal.write(intent)
    assert steps == ["fsync file", "rename", "fsync directory"]
    journal.remove(intent)
    assert steps[3:] == ["fsync directory"]
    assert list(journal.directory.iterdir()) == []


def test_a_failed_write_leaves_nothing_and_says_where(journal, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"journal.*No space left"):
        journal.write(_intent())
    assert list(journal.directory.iterdir()) == []


def test_a_directory_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cannot be written"):
        Journal(tmp_path / "file").write(_intent())


def test_a_damaged_intent_file_is_an_error(journal):
    journal.write(_intent())
    (journal.directory / "x.intent.json").write_text("{")
    with pytest.raises(SourceError, match=r"x\.intent\.json"):
        journal.intents()


def test_intent_files_are_small_readable_and_private(journal):
    intent = _intent()
    journal.write(intent)
    (path,) = journal.directory.iterdir()
    assert json.loads(path.read_text())["vm_name"] == "web01"
    assert path.stat().st_size < 1000
    assert journal.directory.stat().st_mode & 0o077 == 0


def test_an_own_intent_is_live_until_it_is_abandoned(journal):
    intent = _intent()
    assert intent.is_live()
    journal.write(intent)
    journal.abandon(intent)
    (found,) = journal.intents()
    assert found.token == intent.token
    assert not found.is_live()


def test_an_intent_of_a_dead_process_is_not_live():
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(ended.pid) or ""
    alive = _intent(pid=ended.pid, process_start=start)
    assert start
    assert alive.is_live()
    ended.kill()
    assert _wait_until_dead(alive)  # a zombie, which nobody has waited for yet, is dead too
    ended.communicate()
    assert not alive.is_live()


def _wait_until_dead(intent: Intent) -> bool:
    os.waitid(os.P_PID, intent.pid, os.WEXITED | os.WNOWAIT)
    return not intent.is_live()


def test_an_intent_whose_pid_was_used_again_is_not_live():
    assert not _intent(process_start="another boot/1").is_live()


def test_an_intent_of_another_host_is_always_live():
    assert _intent(host=f"not-{socket.gethostname()}", pid=1, process_start="x").is_live()


def test_the_default_place_follows_the_base_directory_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "vadpipe"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert state_directory() == Path.home() / ".local" / "state" / "vadpipe"
