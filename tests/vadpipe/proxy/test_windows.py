"""Windows as a proxy: rules over recorded facts, DiskPart's scripts, the registry. None of it needs Windows."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipeline.errors import ContractError, MoverError
from vadpipe.proxy import harden, undo
from vadpipe.proxy.report import Transport, judge_machine
from vadpipe.proxy.settings import AUTOMOUNT, LVM, REMOTE_DESKTOP, SAN_POLICY, plan
from vadpipe.proxy.undo import load_undo
from vadpipe.proxy.windows import WindowsRegistry
from vadpipe.proxy.windows_rules import RULES, WindowsFacts
from vadpipe.rules import Severity

HEALTHY = WindowsFacts(
    automount_off=True,
    scrubbed=True,
    rdp_denied=1,
    rdp_denied_by_policy=None,
    san_policy=1,
    cluster_node=False,
)
MOUNTMGR = r"SYSTEM\CurrentControlSet\Services\mountmgr", "NoAutoMount"
MARK = r"SOFTWARE\vadpipe", "AutomountScrubbed"
RDP = r"SYSTEM\CurrentControlSet\Control\Terminal Server", "fDenyTSConnections"
RDP_POLICY = r"SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "fDenyTSConnections"
SAN = r"SYSTEM\CurrentControlSet\Services\partmgr\Parameters", "SanPolicy"
CLUSTER = r"SYSTEM\CurrentControlSet\Services\ClusSvc", "Start"


def broken(facts, transport=Transport.HOTADD):
    return [finding.rule for finding in judge_machine("windows", RULES, facts, transport).findings]


def fixes(machine, transport=Transport.HOTADD):
    return machine.judge(transport).fixes


@pytest.mark.parametrize("transport", Transport)
def test_a_healthy_proxy_raises_nothing(transport):
    assert broken(HEALTHY, transport) == []


@pytest.mark.parametrize(
    ("facts", "rule", "transports"),
    [
        ({"automount_off": False}, "automount-on", {Transport.HOTADD}),
        ({"scrubbed": False}, "automount-not-scrubbed", {Transport.HOTADD}),
        ({"cluster_node": True}, "cluster-node", {Transport.HOTADD}),
        ({"rdp_denied": 0}, "remote-desktop", set(Transport)),
        ({"rdp_denied": None}, "remote-desktop", set(Transport)),
        ({"rdp_denied_by_policy": 0}, "remote-desktop-policy", set(Transport)),
        ({"san_policy": 2}, "san-policy", {Transport.SAN}),
        ({"san_policy": None}, "san-policy", {Transport.SAN}),
        ({"unreadable": {"rdp_denied": "denied"}, "rdp_denied": None}, "facts-unreadable", set(Transport)),
        ({"unreadable": {"san_policy": "denied"}, "san_policy": None}, "facts-unreadable", set(Transport)),
    ],
)
def test_each_rule_is_broken_alone_where_it_applies(facts, rule, transports):
    facts = replace(HEALTHY, **facts)
    for transport in Transport:
        assert broken(facts, transport) == ([rule] if transport in transports else [])


def test_every_rule_is_broken_by_some_fact():
    worst = WindowsFacts(False, False, 0, None, 3, True, {"cluster_node": "denied"})
    seen = {rule for transport in Transport for rule in broken(worst, transport)}
    seen |= set(broken(replace(worst, rdp_denied_by_policy=0)))
    assert seen == {rule.id for rule in RULES}


def test_the_policy_wins_over_the_local_value():
    assert broken(replace(HEALTHY, rdp_denied=0, rdp_denied_by_policy=1)) == []
    assert broken(replace(HEALTHY, rdp_denied=1, rdp_denied_by_policy=0)) == ["remote-desktop-policy"]


def test_a_finding_names_what_was_found_and_the_remedy():
    [finding] = judge_machine("windows", RULES, replace(HEALTHY, san_policy=4), Transport.SAN).findings
    assert finding.severity is Severity.ERROR
    assert finding.found == "the SAN policy is OfflineInternal"
    assert "san policy=OnlineAll" in finding.remedy
    assert "Microsoft" in finding.source


def test_the_facts_come_from_the_registry(registry, windows):
    facts = windows.facts()
    assert (facts.automount_off, facts.rdp_denied, facts.san_policy) == (False, 0, 2)
    assert not facts.cluster_node
    registry.update({MOUNTMGR: 5, RDP_POLICY: 1, CLUSTER: 2, MARK: 1})
    facts = windows.facts()
    assert (facts.automount_off, facts.scrubbed, facts.rdp_denied_by_policy) == (True, True, 1)
    assert facts.cluster_node


def test_a_missing_automount_value_means_on(registry, windows):
    del registry[MOUNTMGR]
    assert windows.facts().automount_off is False


def test_a_disabled_cluster_service_is_no_node(registry, windows):
    registry[CLUSTER] = 4
    assert windows.facts().cluster_node is False


def test_a_value_that_cannot_be_read_is_a_finding_and_not_a_guess(registry, windows):
    registry.denied = {"fDenyTSConnections"}
    report = windows.judge(Transport.NBD)
    assert [finding.rule for finding in report.findings] == ["facts-unreadable", "facts-unreadable"]
    assert "Access is denied" in report.findings[0].found


def test_the_san_policy_is_shown_for_every_transport(windows):
    for transport in Transport:
        assert windows.judge(transport).notes == ["The SAN policy is OfflineShared."]


def test_the_plan_says_exactly_what_will_be_done(windows):
    changes = plan(fixes(windows), windows.read)
    assert [line for change in changes for line in change.lines()] == [
        r"automount: HKLM\SYSTEM\CurrentControlSet\Services\mountmgr, NoAutoMount: 0 -> 1",
        "    DiskPart: automount disable; automount scrub; exit",
        "    note: scrubbing forgets the mount points of volumes that are gone; there is no way back from that",
        r"automount-scrubbed: HKLM\SOFTWARE\vadpipe, AutomountScrubbed: not set -> 1",
        "    note: our own mark: Windows keeps no trace of the scrubbing",
        r"remote-desktop: HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server, fDenyTSConnections: 0 -> 1",
        "    note: no new remote desktop session afterwards: have the console of this machine at hand",
    ]


def test_san_transport_leaves_automount_alone(windows):
    changes = plan(fixes(windows, Transport.SAN), windows.read)
    assert [change.setting for change in changes] == [REMOTE_DESKTOP, SAN_POLICY]
    assert "    DiskPart: san policy=OnlineAll; exit" in changes[1].lines()


def test_hardening_runs_the_documented_script_and_then_nothing_is_left(windows, diskpart, registry, tmp_path):
    changes = plan(fixes(windows), windows.read)
    harden(windows, changes, tmp_path / "undo.json")
    assert diskpart.scripts == [["automount disable", "automount scrub", "exit"]]
    assert registry == {MOUNTMGR: 1, MARK: 1, RDP: 1, SAN: 2}
    assert windows.judge(Transport.HOTADD).findings == []
    assert plan(fixes(windows), windows.read) == ()


def test_automount_that_is_off_already_is_still_scrubbed(windows, diskpart, registry, tmp_path):
    registry.update({MOUNTMGR: 1, RDP: 1})
    changes = plan(fixes(windows), windows.read)
    assert [(change.former, change.wanted) for change in changes] == [(1, 1), (None, 1)]
    assert "stays 1" in changes[0].lines()[0]
    harden(windows, changes, tmp_path / "undo.json")
    assert diskpart.scripts == [["automount disable", "automount scrub", "exit"]]
    undo(windows, load_undo(tmp_path / "undo.json", "windows", windows.settings))
    assert registry == {MOUNTMGR: 1, RDP: 1, SAN: 2}


@pytest.mark.parametrize("transport", [Transport.HOTADD, Transport.SAN])
def test_undo_restores_the_former_values(windows, diskpart, registry, tmp_path, transport):
    del registry[RDP]
    before = dict(registry)
    path = tmp_path / "undo.json"
    harden(windows, plan(fixes(windows, transport), windows.read), path)
    assert registry != before
    undo(windows, load_undo(path, "windows", windows.settings))
    assert registry == before
    script = "automount enable" if transport is Transport.HOTADD else "san policy=OfflineShared"
    assert diskpart.scripts[-1] == [script, "exit"]


def test_a_san_policy_that_was_not_set_is_removed_again(windows, registry, tmp_path):
    del registry[SAN]
    before = dict(registry)
    harden(windows, plan(fixes(windows, Transport.SAN), windows.read), tmp_path / "undo.json")
    assert registry[SAN] == 1
    undo(windows, load_undo(tmp_path / "undo.json", "windows", windows.settings))
    assert registry == before


def test_a_failing_diskpart_is_named_with_its_words(windows, diskpart):
    diskpart.fails_at = "automount scrub"
    with pytest.raises(
        MoverError, match=r"automount disable; automount scrub; exit.*could not complete"
    ) as caught:
        windows.set(AUTOMOUNT, 1)
    assert "administrator" in caught.value.remedy


def test_values_of_the_other_platform_are_refused(windows, linux):
    with pytest.raises(ContractError):
        windows.read(LVM)
    with pytest.raises(ContractError):
        linux.read(AUTOMOUNT)
    with pytest.raises(ContractError):
        windows.set(REMOTE_DESKTOP, "1")
    with pytest.raises(ContractError):
        linux.set(LVM, 1)


class FakeWinreg:
    """Keeps values as Windows does: per key, with a type; every access has to ask for the 64-bit view."""

    HKEY_LOCAL_MACHINE, REG_DWORD, REG_SZ = 0x80000002, 4, 1
    KEY_READ, KEY_SET_VALUE, KEY_WOW64_64KEY = 0x20019, 0x0002, 0x0100

    def __init__(self):
        self.keys = {}

    @contextmanager
    def OpenKey(self, key, sub_key, reserved, access):  # noqa: N802
        assert key == self.HKEY_LOCAL_MACHINE
        assert access & self.KEY_WOW64_64KEY
        if sub_key not in self.keys:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        yield self.keys[sub_key]

    def CreateKeyEx(self, key, sub_key, reserved, access):  # noqa: N802
        self.keys.setdefault(sub_key, {})
        return self.OpenKey(key, sub_key, reserved, access)

    def QueryValueEx(self, key, name):  # noqa: N802
        if name not in key:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return key[name]

    def SetValueEx(self, key, name, reserved, kind, value):  # noqa: N802
        key[name] = (value, kind)

    def DeleteValue(self, key, name):  # noqa: N802
        self.QueryValueEx(key, name)
        del key[name]


def test_the_registry_is_read_and_written_as_winreg_wants_it():
    winreg = FakeWinreg()
    registry = WindowsRegistry(winreg)
    assert registry.read("SOFTWARE\\a", "b") is None
    registry.write("SOFTWARE\\a", "b", None)
    registry.write("SOFTWARE\\a", "b", 7)
    assert winreg.keys == {"SOFTWARE\\a": {"b": (7, winreg.REG_DWORD)}}
    assert registry.read("SOFTWARE\\a", "b") == 7
    registry.write("SOFTWARE\\a", "b", None)
    registry.write("SOFTWARE\\a", "b", None)
    assert registry.read("SOFTWARE\\a", "b") is None


def test_a_value_of_another_type_is_an_error():
    winreg = FakeWinreg()
    winreg.keys["k"] = {"v": ("1", winreg.REG_SZ)}
    with pytest.raises(MoverError, match="REG_DWORD"):
        WindowsRegistry(winreg).read("k", "v")
