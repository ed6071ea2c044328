"""`vadpipe proxy check` and `harden` as users meet them: exit codes, the question, the documents."""

import json
import os
import pty
import subprocess
import sys

import click
import pytest

from pipeline.errors import ConfigError
from vadpipe.cli import proxy as proxy_commands
from vadpipe.cli.proxy import proxy
from vadpipe.proxy.linux import LinuxProxy
from vadpipe.proxy.machine import this_machine
from vadpipe.proxy.windows import WindowsProxy


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command against a machine: (exit code, output)."""

    def on(machine, *arguments):
        monkeypatch.setattr(proxy_commands, "this_machine", lambda: machine)
        code = proxy.main(list(map(str, arguments)), standalone_mode=False)
        return code, capsys.readouterr().out

    return on


def test_check_lists_findings_with_their_remedy(windows, run):
    code, output = run(windows, "check")
    assert code == 3
    assert output.splitlines()[:5] == [
        "windows proxy, transport hotadd: 3 of 6 rules hold.",
        "  error   automount-on                Windows mounts new volumes by itself (NoAutoMount is 0 or not set)",
        f"{'':38}Run vadpipe proxy harden.",
        "  warning automount-not-scrubbed      "
        "nothing shows that the mount points of earlier volumes were scrubbed",
        f"{'':38}Run vadpipe proxy harden.",
    ]


def test_check_changes_nothing(linux, run, tree):
    before = tree()
    run(linux, "check")
    assert tree() == before


def test_check_of_a_fit_proxy_exits_0(linux, commands, run):
    commands.answers.clear()
    commands.answers["lsblk"] = (0, '{"blockdevices": []}')
    assert run(linux, "check", "--transport", "nbd")[0] == 0


@pytest.mark.parametrize("machine", ["windows", "linux"])
def test_check_gives_machines_one_document(request, run, machine):
    code, output = run(request.getfixturevalue(machine), "check", "--json")
    document = json.loads(output)
    assert code == 3
    assert document["ok"] is False
    assert (document["platform"], document["transport"]) == (machine, "hotadd")
    keys = {"rule", "severity", "found", "wanted", "remedy", "source", "mended_by_harden"}
    assert {frozenset(finding) for finding in document["findings"]} == {frozenset(keys)}
    assert "facts" in document


def test_the_rules_of_all_platforms_are_listed_anywhere(run):
    code, output = run(None, "check", "--rules", "--json")
    rules = json.loads(output)["rules"]
    assert code == 0
    assert len({(rule["platform"], rule["rule"]) for rule in rules}) == len(rules) == 16
    assert all(rule["wanted"] and rule["remedy"] and rule["source"] for rule in rules)
    assert len(run(None, "check", "--rules")[1].splitlines()) == 16


def test_harden_shows_does_and_looks_again(windows, run, tmp_path, registry, diskpart):
    file = tmp_path / "undo.json"
    code, output = run(windows, "harden", "--yes", "--undo-file", file)
    assert code == 0
    assert output.startswith(
        f"These changes will be made, the way back written to {file} before each:\n  automount: "
    )
    assert f"Done. The way back: vadpipe proxy harden --undo {file}\n" in output
    assert "windows proxy, transport hotadd: 6 of 6 rules hold." in output
    code, output = run(windows, "harden", "--yes")
    assert (code, output.splitlines()[0]) == (0, "There is nothing to change.")
    assert len(diskpart.scripts) == 1


def test_what_harden_cannot_do_keeps_its_attention(windows, run, tmp_path, registry):
    key = r"SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "fDenyTSConnections"
    registry[key] = 0
    code, output = run(windows, "harden", "--yes", "--undo-file", tmp_path / "undo.json")
    assert code == 3
    assert "Not done here:\n  error   remote-desktop-policy" in output
    code, output = run(windows, "harden", "--yes")
    assert code == 3
    assert output.startswith("There is nothing to change.\n  error   remote-desktop-policy")


def test_harden_and_undo_for_machines(linux, run, tree):
    before = tree()
    code, output = run(linux, "harden", "--yes", "--json")
    document = json.loads(output)
    assert code == 3  # the recorded answers of the programs do not change
    assert [one["setting"] for one in document["changes"]] == ["lvm", "multipath", "mdadm-debian", "udisks"]
    assert document["undo_file"].startswith(str(linux.state_directory))
    code, output = run(linux, "harden", "--yes", "--json", "--undo", document["undo_file"])
    undone = json.loads(output)["undone"]
    assert code == 0
    assert [(one["setting"], one["result"]) for one in undone] == [
        ("udisks", "restored"),
        ("mdadm-debian", "restored"),
        ("multipath", "restored"),
        ("lvm", "restored"),
    ]
    after = {name: content for name, content in tree().items() if not name.startswith("var/")}
    assert after == before


def test_undo_that_keeps_something_asks_for_attention(linux, run, root, tmp_path):
    file = tmp_path / "undo.json"
    run(linux, "harden", "--yes", "--undo-file", file)
    (root / "etc/lvm/lvmlocal.conf").write_text("# mine\n")
    code, output = run(linux, "harden", "--yes", "--undo", file)
    assert code == 3
    assert "lvm: kept: changed by somebody else since" in output


@pytest.mark.parametrize("undoing", [False, True])
def test_without_a_terminal_nothing_is_done_unless_told(
    linux, run, tree, tmp_path, monkeypatch, capsys, undoing
):
    file = tmp_path / "undo.json"
    if undoing:
        run(linux, "harden", "--yes", "--undo-file", file)
    before = tree()
    with open(os.devnull) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        with pytest.raises(click.UsageError, match="give --yes"):
            run(linux, "harden", *(["--undo", file] if undoing else ["--undo-file", file]))
    assert "    then: multipathd reconfigure\n" in capsys.readouterr().out
    assert tree() == before
    assert file.exists() is undoing


@pytest.mark.parametrize("arguments", [["--json"], ["--yes", "--undo", "a", "--undo-file", "b"]])
def test_options_that_contradict_each_other_are_usage_errors(linux, run, tree, arguments):
    before = tree()
    with pytest.raises(click.UsageError):
        run(linux, "harden", *arguments)
    assert tree() == before


SCRIPT = """
import sys
from pathlib import Path
from vadpipe.cli import proxy as commands
from vadpipe.proxy.linux import LinuxProxy
machine = LinuxProxy(Path(sys.argv[1]), lambda argv, stdin="": (127, ""))
commands.this_machine = lambda: machine
sys.exit(commands.proxy.main(["harden"], standalone_mode=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code", "changed"), [(b"y\n", 3, True), (b"n\n", 3, False)])
def test_on_a_terminal_it_asks(root, tree, answer, code, changed):
    before = tree()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root)], stdin=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, answer)
        output, _ = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert "Do it? [y/N]" in output
    assert process.returncode == code
    assert ("etc/udev/rules.d/99-vadpipe-proxy.rules" in tree()) is changed
    assert (tree() != before) is changed


def test_each_platform_has_its_proxy_and_others_are_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "winreg", object())
    assert isinstance(this_machine("win32"), WindowsProxy)
    assert isinstance(this_machine("linux"), LinuxProxy)
    with pytest.raises(ConfigError, match="darwin is not supported") as caught:
        this_machine("darwin")
    assert caught.value.exit_code == 2
