"""Linux as a proxy: rules over recorded facts, and facts gathered below a root directory that is not ours."""

import os
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vadpipe.jsonable import jsonable
from vadpipe.proxy import harden, undo
from vadpipe.proxy.command import NOT_FOUND, run_command
from vadpipe.proxy.linux import LinuxProxy
from vadpipe.proxy.linux_config import MdFacts, Mount, MountFacts, MultipathFacts
from vadpipe.proxy.linux_rules import RULES, LinuxFacts
from vadpipe.proxy.lvm import CONFIGURATION, LvmFacts, limit_activation, parse_configuration
from vadpipe.proxy.report import Transport, judge_machine
from vadpipe.proxy.settings import plan
from vadpipe.proxy.undo import load_undo

LVM = LvmFacts(
    event_activation=True,
    auto_activation=["vg0"],
    devices_file=True,
    global_filter=["a|.*|"],
    volume_groups=["vg0"],
)
MULTIPATH = MultipathFacts("strict", blacklisted=False)
MD = MdFacts(["64-md-raid-assembly.rules"], "/etc/mdadm/mdadm.conf", ["-all"], [])
MOUNTS = MountFacts([Mount("UUID=0a7f", "/")], {})
HEALTHY = LinuxFacts(LVM, MULTIPATH, MD, True, MOUNTS)


def broken(facts):
    return [finding.rule for finding in judge_machine("linux", RULES, facts, Transport.HOTADD).findings]


def fixes(machine):
    return machine.judge(Transport.HOTADD).fixes


def test_a_healthy_proxy_raises_nothing():
    assert broken(HEALTHY) == []


def test_a_program_that_is_not_installed_breaks_no_rule():
    assert broken(LinuxFacts(None, None, None, None, MountFacts([], {}))) == []


OPEN = replace(LVM, devices_file=False, auto_activation=None)


@pytest.mark.parametrize(
    ("facts", "rules"),
    [
        ({"lvm": OPEN}, ["lvm-auto-activation", "lvm-sees-guest-disks"]),
        ({"lvm": replace(OPEN, auto_activation=[])}, ["lvm-sees-guest-disks"]),
        ({"lvm": replace(OPEN, auto_activation=[], volume_groups=[])}, []),
        ({"lvm": replace(OPEN, auto_activation=[], volume_groups=None)}, ["lvm-sees-guest-disks"]),
        ({"lvm": replace(OPEN, volume_groups=[])}, ["lvm-auto-activation"]),
        ({"lvm": replace(OPEN, event_activation=False)}, ["lvm-sees-guest-disks"]),
        ({"lvm": replace(OPEN, global_filter=["a|^/dev/sda|", "r|.*|"])}, []),
        ({"multipath": MultipathFacts("smart", False)}, ["multipath-claims-disks"]),
        ({"multipath": MultipathFacts("greedy", True)}, []),
        ({"md": replace(MD, auto=None)}, ["md-assembly"]),
        ({"md": replace(MD, auto=None, rules=[])}, []),
        ({"md": replace(MD, auto=["+1.x", "-all"])}, ["md-assembly"]),
        ({"md": replace(MD, auto=None, unlisted=["/dev/md/0"])}, ["md-assembly", "md-arrays-unlisted"]),
        ({"udisks_kept_off": False}, ["udisks-automount"]),
        ({"mounts": replace(MOUNTS, ambiguous={"UUID=0a7f": ["sda1", "sdc1"]})}, ["fstab-ambiguous"]),
        ({"mounts": replace(MOUNTS, ambiguous={"UUID=ffff": ["sda1", "sdc1"]})}, []),
        ({"mounts": MountFacts([Mount("LABEL=root", "/")], {})}, ["fstab-by-label"]),
        ({"unreadable": ["no access"]}, ["facts-unreadable"]),
    ],
)
def test_each_rule_is_broken_by_its_own_fact(facts, rules):
    assert broken(replace(HEALTHY, **facts)) == rules


@pytest.mark.parametrize("transport", [Transport.SAN, Transport.NBD])
def test_disks_that_never_appear_need_no_rule(linux, transport):
    report = linux.judge(transport)
    assert report.findings == []
    assert report.held == []


def test_a_fresh_proxy_is_unfit(linux):
    report = linux.judge(Transport.HOTADD)
    assert [finding.rule for finding in report.findings] == [
        "lvm-auto-activation",
        "lvm-sees-guest-disks",
        "multipath-claims-disks",
        "md-assembly",
        "udisks-automount",
    ]
    assert report.findings[3].found == (
        "64-md-raid-assembly.rules assembles any array (there is no AUTO line in /etc/mdadm/mdadm.conf)"
    )


def test_the_commands_are_exactly_these(linux, commands):
    linux.facts()
    assert commands.calls == [
        (
            "lvmconfig",
            "--typeconfig",
            "full",
            "global/event_activation",
            "activation/auto_activation_volume_list",
            "devices/use_devicesfile",
            "devices/devicesfile",
            "devices/global_filter",
        ),
        ("vgs", "--noheadings", "--options", "vg_name"),
        ("multipath", "-t"),
        ("mdadm", "--detail", "--scan"),
        ("lsblk", "--json", "--output", "NAME,FSTYPE,UUID,LABEL,PARTUUID,PARTLABEL"),
    ]


def test_the_devices_file_counts_only_if_it_is_used_and_there(linux, commands, root):
    commands.answers["lvmconfig"] = (
        0,
        'use_devicesfile=1\ndevicesfile="own.devices"\nglobal_filter=["a|.*|"]\n',
    )
    assert linux.facts().lvm.devices_file is False
    (root / "etc/lvm/devices").mkdir()
    (root / "etc/lvm/devices/own.devices").write_text("")
    assert linux.facts().lvm.devices_file is True
    commands.answers["lvmconfig"] = (
        0,
        'use_devicesfile=0\ndevicesfile="own.devices"\nglobal_filter=["a|.*|"]\n',
    )
    assert linux.facts().lvm.devices_file is False


@pytest.mark.parametrize("command", ["lvmconfig", "vgs", "multipath -t", "mdadm", "lsblk"])
def test_a_command_that_fails_is_a_finding(linux, commands, command):
    commands.answers[command] = (1, "permission denied\n")
    [finding] = [each for each in linux.judge(Transport.HOTADD).findings if each.rule == "facts-unreadable"]
    assert f"`{command}" in finding.found
    assert "failed with exit code 1: permission denied" in finding.found


def test_without_the_own_volume_groups_lvm_is_not_touched(linux, commands):
    commands.answers["vgs"] = (5, "")
    findings = {finding.rule: finding for finding in linux.judge(Transport.HOTADD).findings}
    assert not findings["lvm-auto-activation"].violation.fixes


def test_arrays_without_a_line_keep_harden_from_forbidding_all(linux, commands, root):
    commands.answers["mdadm"] = (0, "ARRAY /dev/md/0 metadata=1.2 name=proxy:0 UUID=aa:bb\n")
    findings = {finding.rule: finding for finding in linux.judge(Transport.HOTADD).findings}
    assert not findings["md-assembly"].violation.fixes
    assert "/dev/md/0" in findings["md-arrays-unlisted"].found
    (root / "etc/mdadm/mdadm.conf.d").mkdir()
    (root / "etc/mdadm/mdadm.conf.d/own.conf").write_text("ARRAY /dev/md/0 UUID=AA:BB\n")
    findings = {finding.rule: finding for finding in linux.judge(Transport.HOTADD).findings}
    assert "md-arrays-unlisted" not in findings
    assert findings["md-assembly"].violation.fixes


@pytest.mark.parametrize(
    ("debian", "present", "read"),
    [
        (True, ["mdadm/mdadm.conf", "mdadm.conf"], "/etc/mdadm/mdadm.conf"),
        (True, ["mdadm.conf"], "/etc/mdadm.conf"),
        (True, [], "/etc/mdadm/mdadm.conf"),
        (False, ["mdadm/mdadm.conf", "mdadm.conf"], "/etc/mdadm.conf"),
        (False, ["mdadm/mdadm.conf"], "/etc/mdadm/mdadm.conf"),
        (False, [], "/etc/mdadm.conf"),
    ],
)
def test_mdadms_configuration_is_the_one_its_distribution_reads(linux, root, debian, present, read):
    (root / "etc/mdadm/mdadm.conf").unlink()
    for name in present:
        (root / "etc" / name).write_text("MAILADDR root\n")
    if not debian:
        (root / "etc/debian_version").unlink()
    assert linux.facts().md.configuration == read


def test_a_masked_udev_rule_assembles_nothing(linux, root):
    (root / "etc/udev/rules.d").mkdir(parents=True)
    (root / "etc/udev/rules.d/64-md-raid-assembly.rules").symlink_to("/dev/null")
    assert linux.facts().md.rules == []


def test_the_plan_says_exactly_what_will_be_done(linux):
    changes = plan(fixes(linux), linux.read)
    assert [line for change in changes for line in change.lines()] == [
        "lvm: /etc/lvm/lvmlocal.conf",
        "    @@ -2 +2,6 @@",
        "     }",
        "    +",
        "    +# Only the volume groups of this machine itself are activated when their disks appear (vadpipe).",
        "    +activation {",
        '    +\tauto_activation_volume_list = ["data", "ubuntu-vg"]',
        "    +}",
        "    note: a volume group that is added later has to be put into the list; a guest's must not be in it",
        "multipath: /etc/multipath/conf.d/vadpipe.conf",
        "    a new file",
        "    @@ -0,0 +1,7 @@",
        "    +# A guest's disk that is hot-added here has one path, and is not ours to map (vadpipe).",
        "    +blacklist {",
        "    +\tdevice {",
        '    +\t\tvendor "VMware"',
        '    +\t\tproduct "Virtual disk"',
        "    +\t}",
        "    +}",
        "    then: multipathd reconfigure",
        "mdadm-debian: /etc/mdadm/mdadm.conf",
        "    @@ -2 +2,3 @@",
        "     MAILADDR root",
        "    +# Only the arrays listed here are assembled, not those of guests (vadpipe).",
        "    +AUTO -all",
        "    note: the initial RAM disk keeps its own copy until it is built anew",
        "udisks: /etc/udev/rules.d/99-vadpipe-proxy.rules",
        "    a new file",
        "    @@ -0,0 +1,2 @@",
        "    +# A guest's disk that is hot-added here must not be mounted (vadpipe).",
        '    +SUBSYSTEM=="block", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ENV{UDISKS_IGNORE}="1"',
        "    then: udevadm control --reload",
    ]


def test_harden_makes_the_planned_changes_and_undo_restores_every_byte(linux, root, commands, tree, tmp_path):
    (root / "etc/lvm/lvmlocal.conf").write_bytes(b"# caf\xe9, Latin-1\r\nlocal {\r\n}\r\n")
    (root / "etc/lvm/lvmlocal.conf").chmod(0o640)
    before = tree()
    path = tmp_path / "undo.json"
    harden(linux, plan(fixes(linux), linux.read), path)
    assert commands.calls[-2:] == [("multipathd", "reconfigure"), ("udevadm", "control", "--reload")]
    assert (root / "etc/lvm/lvmlocal.conf").stat().st_mode & 0o777 == 0o640
    assert b"caf\xe9" in (root / "etc/lvm/lvmlocal.conf").read_bytes()
    assert "udisks-automount" not in [each.rule for each in linux.judge(Transport.HOTADD).findings]
    undo(linux, load_undo(path, "linux", linux.settings))
    assert tree() == before
    assert (root / "etc/lvm/lvmlocal.conf").stat().st_mode & 0o777 == 0o640


def test_hardening_twice_changes_nothing_more(linux, commands, tree, tmp_path):
    harden(linux, plan(fixes(linux), linux.read), tmp_path / "one.json")
    # What the programs say of the files that were written, on a machine where they are installed.
    commands.answers["lvmconfig"] = (
        0,
        commands.answers["lvmconfig"][1] + 'auto_activation_volume_list=["data"]\n',
    )
    written = plan(fixes(linux), linux.read)
    assert written == ()
    once = tree()
    harden(linux, written, tmp_path / "two.json")
    assert tree() == once


def test_a_change_that_takes_effect_later_is_a_remark(linux, commands, tmp_path):
    commands.answers["multipathd"] = (1, "error -1 receiving packet\n")
    remarks = harden(linux, plan(fixes(linux), linux.read), tmp_path / "undo.json")
    assert remarks == [
        "multipath takes effect at the next start of the machine: "
        "`multipathd reconfigure` failed with exit code 1: error -1 receiving packet"
    ]


def test_a_link_stays_a_link(linux, root):
    real = root / "etc/mdadm/real.conf"
    (root / "etc/mdadm/mdadm.conf").rename(real)
    (root / "etc/mdadm/mdadm.conf").symlink_to("real.conf")
    [setting] = [one for one in linux.settings.values() if str(one.place) == "/etc/mdadm/mdadm.conf"]
    linux.set(setting, "AUTO -all\n")
    assert (root / "etc/mdadm/mdadm.conf").is_symlink()
    assert real.read_text() == "AUTO -all\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the gatherer of Linux")
def test_the_facts_of_this_machine_are_gathered():
    facts = LinuxProxy().facts()
    assert {each.name for each in fields(facts)} == jsonable(facts).keys()
    path = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
    for program, part in (("lvmconfig", facts.lvm), ("multipath", facts.multipath), ("mdadm", facts.md)):
        if shutil.which(program, path=path) is None:
            assert part is None
    lines = [line for line in Path("/etc/fstab").read_text().splitlines() if line.strip() and line[0] != "#"]
    assert len(facts.mounts.mounts) == len(lines)


def test_real_commands_end_with_a_code_and_their_words(monkeypatch):
    assert run_command(["sh", "-c", "cat; echo aside >&2"], "given\n") == (0, "given\n")
    assert run_command(["sh", "-c", "echo out; echo why >&2; exit 7"]) == (7, "out\nwhy\n")
    assert run_command(["vadpipe-no-such-program"])[0] == NOT_FOUND
    monkeypatch.setenv("PATH", "/nowhere")
    assert run_command(["/bin/sh", "-c", "echo $PATH"])[1].startswith("/nowhere:")
    monkeypatch.setattr("vadpipe.proxy.command.TIMEOUT_S", 0.05)
    assert run_command(["/bin/sleep", "60"])[0] == 124


@pytest.mark.slow
def test_lvm_itself_reads_what_was_written(root, monkeypatch):
    if shutil.which("lvmconfig") is None:
        pytest.skip("lvmconfig is not installed")
    monkeypatch.setenv("LVM_SYSTEM_DIR", str(root / "etc/lvm"))
    path = root / "etc/lvm/lvmlocal.conf"
    for groups in ([], ["vg0"], ["data", "ubuntu-vg"]):
        path.write_text(limit_activation("local {\n}\n", groups))
        _, output = run_command(CONFIGURATION)
        assert parse_configuration(output)["auto_activation_volume_list"] == groups
