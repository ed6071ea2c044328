"""The way back: written before each change, usable after any failure, and careful with what others did since."""

import json
import socket

import pytest

from pipeline.errors import ConfigError, MoverError
from vadpipe.cli.output import error_lines
from vadpipe.proxy import harden, undo
from vadpipe.proxy.harden import Undone
from vadpipe.proxy.report import Transport
from vadpipe.proxy.settings import REMOTE_DESKTOP, plan
from vadpipe.proxy.undo import load_undo, new_undo_path


def planned(machine):
    return plan(machine.judge(Transport.HOTADD).fixes, machine.read)


def loaded(machine, path):
    return load_undo(path, machine.platform, machine.settings)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "undo.json"


def test_the_file_holds_ids_and_values_only(windows, path):
    harden(windows, planned(windows), path)
    document = json.loads(path.read_text())
    assert document.pop("written").endswith("+00:00")
    assert document == {
        "format": "vadpipe proxy undo",
        "version": 1,
        "host": socket.gethostname(),
        "platform": "windows",
        "changes": [
            {"setting": "automount", "former": 0, "wanted": 1},
            {"setting": "automount-scrubbed", "former": None, "wanted": 1},
            {"setting": "remote-desktop", "former": 0, "wanted": 1},
        ],
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_each_change_is_in_the_file_before_it_is_made(linux, path, monkeypatch):
    seen = []
    make = linux.set

    def looking(setting, value):
        seen.append((setting.id, [one.setting.id for one in loaded(linux, path)]))
        return make(setting, value)

    monkeypatch.setattr(linux, "set", looking)
    harden(linux, planned(linux), path)
    names = ["lvm", "multipath", "mdadm-debian", "udisks"]
    assert seen == [(name, names[: count + 1]) for count, name in enumerate(names)]


@pytest.mark.parametrize("place", range(4))
def test_a_failure_at_any_change_leaves_a_way_back(linux, path, tree, monkeypatch, place):
    before = tree()
    make = linux.set
    calls = []

    def failing(setting, value):
        calls.append(setting)
        if len(calls) > place:
            raise MoverError("The disk is full.")
        return make(setting, value)

    monkeypatch.setattr(linux, "set", failing)
    with pytest.raises(MoverError) as caught:
        harden(linux, planned(linux), path)
    assert error_lines(caught.value) == [
        f"The disk is full. (the way back is `vadpipe proxy harden --undo {path}`)"
    ]
    monkeypatch.undo()
    results = [result for _, result, _ in undo(linux, loaded(linux, path))]
    assert results == [Undone.ALREADY, *[Undone.RESTORED] * place]
    assert tree() == before


def test_a_run_that_is_killed_after_writing_the_file_is_undone_too(windows, path, registry, monkeypatch):
    before = dict(registry)

    def killed(setting, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(windows, "set", killed)
    with pytest.raises(KeyboardInterrupt):
        harden(windows, planned(windows), path)
    monkeypatch.undo()
    assert [result for _, result, _ in undo(windows, loaded(windows, path))] == [Undone.ALREADY]
    assert registry == before


def test_a_diskpart_script_that_stops_half_way_is_undone(windows, path, registry, diskpart):
    before = dict(registry)
    diskpart.fails_at = "automount scrub"
    with pytest.raises(MoverError):
        harden(windows, planned(windows), path)
    assert registry != before
    undo(windows, loaded(windows, path))
    assert registry == before


def test_a_value_that_does_not_stay_is_an_error(windows, path, registry, monkeypatch):
    monkeypatch.setattr(registry, "write", lambda key, name, value: None)
    with pytest.raises(MoverError, match="was set, but has another value"):
        harden(windows, planned(windows), path)


def test_a_plan_that_is_no_longer_true_is_not_carried_out(windows, path, registry):
    changes = planned(windows)
    windows.set(REMOTE_DESKTOP, 1)
    with pytest.raises(MoverError, match="fDenyTSConnections changed since the plan was made"):
        harden(windows, changes, path)
    assert [one.setting.id for one in loaded(windows, path)] == ["automount", "automount-scrubbed"]


def test_a_setting_that_was_changed_since_is_kept(linux, path, root):
    harden(linux, planned(linux), path)
    configuration = root / "etc/mdadm/mdadm.conf"
    configuration.write_text("AUTO -all\nARRAY /dev/md0 UUID=aa\n")
    results = {change.setting.id: result for change, result, _ in undo(linux, loaded(linux, path))}
    assert results.pop("mdadm-debian") is Undone.KEPT
    assert set(results.values()) == {Undone.RESTORED}
    assert configuration.read_text() == "AUTO -all\nARRAY /dev/md0 UUID=aa\n"


def test_undoing_twice_changes_nothing_more(linux, path, tree):
    harden(linux, planned(linux), path)
    undo(linux, loaded(linux, path))
    once = tree()
    assert {result for _, result, _ in undo(linux, loaded(linux, path))} == {Undone.ALREADY}
    assert tree() == once


def test_an_existing_file_is_never_overwritten(windows, path, registry):
    path.parent.mkdir()
    path.write_text("the former values of yesterday")
    before = dict(registry)
    with pytest.raises(ConfigError, match="Give another name"):
        harden(windows, planned(windows), path)
    assert path.read_text() == "the former values of yesterday"
    assert registry == before


def test_nothing_is_changed_without_a_way_back(windows, tmp_path, registry):
    before = dict(registry)
    (tmp_path / "file").write_text("")
    with pytest.raises(MoverError, match="--undo-file"):
        harden(windows, planned(windows), tmp_path / "file" / "undo.json")
    assert registry == before


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"format": "other"}, "no undo file for windows: format 'other', version 1"),
        ({"version": 2}, "version 2"),
        ({"host": "elsewhere"}, r"was written on elsewhere \(windows\)"),
        ({"platform": "linux"}, r"\(linux\)"),
        ({"changes": None}, "no undo file"),
        ({"changes": [{"setting": "passwd", "former": 0, "wanted": 1}]}, "passwd"),
        ({"changes": [{"setting": "san-policy", "former": "1", "wanted": 1}]}, "san-policy cannot be '1'"),
        ({"changes": [{"setting": "san-policy", "former": True, "wanted": 1}]}, "san-policy cannot be True"),
        ({"changes": [{"setting": "san-policy", "former": 1}]}, "wanted"),
    ],
)
def test_only_an_undo_file_of_this_machine_is_accepted(windows, path, edit, told):
    harden(windows, planned(windows), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(ConfigError, match=told):
        loaded(windows, path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null"])
def test_a_file_that_is_no_undo_file_is_refused(windows, tmp_path, content):
    file = tmp_path / "undo.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="no undo file"):
        loaded(windows, file)
    with pytest.raises(ConfigError, match="cannot be read"):
        loaded(windows, tmp_path / "missing.json")


def test_a_place_without_access_is_named(linux, path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vadpipe.proxy.linux.write_durably", denied)
    with pytest.raises(
        MoverError, match=r"lvmlocal.conf cannot be changed: Permission denied. Run it as root"
    ):
        harden(linux, planned(linux), path)


def test_names_tell_when_and_are_not_used_twice(tmp_path):
    names = {new_undo_path(tmp_path).name for _ in range(3)}
    assert all(name.startswith("proxy-undo-2") and name.endswith("Z.json") for name in names)
