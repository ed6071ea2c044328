"""The kernels over Linux configuration text: what is in force, and what it means for a disk that appears."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.proxy.linux_config import (
    BLACKLIST,
    IGNORE_RULE,
    Mount,
    ambiguous_tags,
    assembles_by_rule,
    assembles_nothing_foreign,
    auto_policy,
    configuration_lines,
    forbid_foreign,
    in_force,
    keeps_udisks_off,
    parse_fstab,
    parse_multipath,
    unlisted_arrays,
)
from vadpipe.proxy.lvm import accepts_hot_added, limit_activation, parse_configuration


def test_lvmconfig_prints_a_list_of_one_like_a_value():
    # Printed by lvm 2.03.16 for a list of one, of two and of none, and for a filter with escapes.
    assert parse_configuration('auto_activation_volume_list="vg-own"') == {
        "auto_activation_volume_list": ["vg-own"]
    }
    assert parse_configuration('auto_activation_volume_list=["vg0","vg1"]')[
        "auto_activation_volume_list"
    ] == [
        "vg0",
        "vg1",
    ]
    assert parse_configuration("auto_activation_volume_list=[]")["auto_activation_volume_list"] == []
    assert parse_configuration(r'global_filter=["a|^/dev/sd[a-b]\\.x|","r|.*|"]')["global_filter"] == [
        r"a|^/dev/sd[a-b]\.x|",
        "r|.*|",
    ]
    assert parse_configuration("  WARNING: Ignoring duplicate config value: x\nevent_activation=0\n") == {
        "event_activation": ["0"]
    }


@pytest.mark.parametrize(
    ("patterns", "accepted"),
    [
        ([], True),
        (["a|.*|"], True),
        (["r|.*|"], False),
        (["a|^/dev/sda[0-9]*$|", "r|.*|"], False),
        (["a|^/dev/sd.*|", "r|.*|"], True),
        (["a|/dev/disk/by-id/.*|", "r|.*|"], True),
        (["r|/dev/sdb|"], True),
        (["r/.*/"], False),
        (["r(.*)"], False),
        (["a|loop|", "r|/dev/.*|"], False),
    ],
)
def test_a_filter_is_applied_to_an_unknown_disk(patterns, accepted):
    assert accepts_hot_added(patterns) is accepted


def test_the_activation_list_is_appended_to_the_existing_text():
    assert limit_activation("", []).endswith("activation {\n\tauto_activation_volume_list = []\n}\n")
    text = limit_activation("local {\n}\n", ["vg0", "vg-1"])
    assert text.startswith("local {\n}\n\n")
    assert '\tauto_activation_volume_list = ["vg0", "vg-1"]\n' in text


def multipath(blacklist="", exceptions="", find="smart"):
    found = parse_multipath(
        f'defaults {{\n\tfind_multipaths "{find}"\n}}\nblacklist {{\n{blacklist}\n}}\n'
        f"blacklist_exceptions {{\n{exceptions}\n}}\n"
    )
    return found.claims_guest_disks


@pytest.mark.parametrize(
    ("find", "claims"),
    [
        ("strict", False),
        ("yes", False),
        ("on", False),
        ("smart", True),
        ("greedy", True),
        ("no", True),
        ("off", True),
    ],
)
def test_a_single_path_is_claimed_or_waited_for(find, claims):
    assert multipath(find=find) is claims


@pytest.mark.parametrize(
    ("blacklist", "exceptions", "claims"),
    [
        ("", "", True),
        ('device {\n vendor "VMware"\n product "Virtual disk"\n}', "", False),
        ('device {\n vendor "VMware"\n}', "", False),
        ('device {\n vendor "VMware"\n product "Virtual cdrom"\n}', "", True),
        ('device {\n vendor "(IBM|VMware)"\n}', 'device {\n vendor "VMware"\n}', True),
        ('devnode "^sd[a-z]"', "", False),
        ('devnode "*"', "", False),
        ('devnode "!^(sd[a-z]|nvme[0-9])"', "", True),
        ('devnode "^sd[a-z]"', 'devnode "^sd"', True),
        ('devnode "^sd[a-z]"', 'device {\n vendor "VMware"\n}', False),
        ('wwid ".*"', 'wwid "^3600a098"', False),
        ('wwid "^36000c29"', "", False),
        ("devnode ^sd  # all of them", "", False),
        ('# devnode "^sd"\n! devnode "^sd"', "", True),
    ],
)
def test_the_blacklist_is_asked_about_a_disk_of_a_vm(blacklist, exceptions, claims):
    assert multipath(blacklist, exceptions) is claims


def test_versions_without_the_setting_map_every_path():
    assert parse_multipath("defaults {\n}\n").claims_guest_disks
    assert not parse_multipath(BLACKLIST).claims_guest_disks
    assert parse_multipath("}\n} }\n").claims_guest_disks


@pytest.mark.parametrize(
    ("line", "nothing"),
    [
        (None, False),
        ("AUTO -all", True),
        ("auto -ALL", True),
        ("AUTO homehost -all", True),
        ("AUTO +homehost -all", True),
        ("AUTO -0.90 -all", True),
        ("AUTO +1.x homehost -all", False),
        ("AUTO -ddf", False),
        ("AUTO -ddf +all", False),
        ("AUTO homehost\n -all", True),
        ("AUTO -all\nAUTO +all", True),
        ("AUTO +all\nAUTO -all", False),
        ("# AUTO -all", False),
        ("aut -all", True),
        ("au -all", False),
    ],
)
def test_the_first_auto_line_decides(line, nothing):
    assert assembles_nothing_foreign(auto_policy(line or "MAILADDR root\n")) is nothing


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("HOMEHOST <system>\nAUTO +all\nMAILADDR root\n", "HOMEHOST <system>\nAUTO -all\nMAILADDR root\n"),
        ("AUTO +1.x\n  homehost\nMAILADDR root", "AUTO -all\nMAILADDR root\n"),
        ("AUTO +1.x\nDEVICE partitions\nAUTO -all\n", "AUTO -all\nDEVICE partitions\n"),
    ],
)
def test_an_auto_line_is_replaced(text, edited):
    assert forbid_foreign(text) == edited


lines = st.lists(
    st.sampled_from(
        [
            "AUTO +all",
            "AUTO -ddf",
            "auto homehost",
            "  +1.x",
            "  AUTO -ddf",
            "# AUTO -all",
            "",
            "MAILADDR root",
            "\tx",
        ]
    )
)


@pytest.mark.slow
@given(lines.map("\n".join))
def test_an_edited_configuration_assembles_nothing_foreign_and_keeps_the_rest(text):
    edited = forbid_foreign(text)
    assert assembles_nothing_foreign(auto_policy(edited))
    assert forbid_foreign(edited) == edited

    def others(of):
        return [words for words in configuration_lines(of) if words[0].lower() != "auto"]

    assert others(edited) == others(text)


def test_arrays_are_known_by_their_uuid():
    active = (
        "ARRAY /dev/md/0 metadata=1.2 UUID=aa:bb\nARRAY /dev/md/1 UUID=cc:dd\nARRAY metadata=imsm UUID=ee"
    )
    assert unlisted_arrays(active, "ARRAY /dev/md0\n  UUID=AA:BB\n") == ["/dev/md/1", ""]
    assert unlisted_arrays("", "ARRAY /dev/md0 UUID=aa") == []


@pytest.mark.parametrize(
    ("rule", "assembles"),
    [
        ('IMPORT{program}="/sbin/mdadm --incremental --export $devnode"', True),
        ('RUN+="/sbin/mdadm -I $env{DEVNAME}"', True),
        ('RUN+="/sbin/mdadm -If $name --path $env{ID_PATH}"', False),
        ('# RUN+="/sbin/mdadm -I $env{DEVNAME}"', False),
        ('IMPORT{program}="/sbin/mdadm --detail --export $devnode"', False),
    ],
)
def test_udev_rules_that_assemble_are_recognised(rule, assembles):
    assert assembles_by_rule(f"{rule}\n") is assembles


def test_the_strongest_rules_file_of_a_name_is_in_force():
    etc = {"64-md.rules": "", "99-own.rules": "a"}
    vendor = {"64-md.rules": "assemble", "80-udisks2.rules": "b", "99-own.rules": "c"}
    assert in_force([etc, {}, vendor]) == {"80-udisks2.rules": "b", "99-own.rules": "a"}


@pytest.mark.parametrize(
    ("rules", "kept_off"),
    [
        ([], False),
        ([IGNORE_RULE], True),
        (['ENV{UDISKS_IGNORE}="1"'], True),
        (['SUBSYSTEM=="block", ENV{UDISKS_AUTO}="0"'], True),
        (['SUBSYSTEM=="block", ENV{UDISKS_AUTO}="1"'], False),
        (['KERNEL=="sd*|vd*", ENV{UDISKS_IGNORE}="1"'], True),
        (['KERNEL!="sd*", ENV{UDISKS_IGNORE}="1"'], False),
        (['KERNEL=="sda", ENV{UDISKS_IGNORE}="1"'], False),
        (['ENV{ID_FS_UUID}=="0a7f", ENV{UDISKS_IGNORE}="1"'], False),
        (['# ENV{UDISKS_IGNORE}="1"'], False),
        (['SUBSYSTEM=="block", \\\n  ENV{UDISKS_IGNORE}="1"'], True),
        (['ENV{UDISKS_IGNORE}="1"', 'ENV{UDISKS_IGNORE}="0"'], False),
    ],
)
def test_rules_tell_whether_udisks_is_kept_off_a_disk_of_a_vm(rules, kept_off):
    assert keeps_udisks_off(rules) is kept_off


def test_fstab_is_read_with_its_tags_quotes_and_escapes():
    text = (
        '# LABEL=no /no\nlabel="root" / ext4\n\nUUID=0a7f /a\\040b xfs\n/dev/sdb1 /c ext4\nnone /t tmpfs\na\n'
    )
    assert parse_fstab(text) == [
        Mount("LABEL=root", "/"),
        Mount("UUID=0a7f", "/a b"),
        Mount("/dev/sdb1", "/c"),
        Mount("none", "/t"),
    ]
    assert [mount.by_label for mount in parse_fstab("PARTLABEL=a /a x\nPARTUUID=b /b x\n")] == [True, False]


def device(name, fstype="ext4", children=(), **tags):
    none = dict.fromkeys(("uuid", "label", "partuuid", "partlabel"))
    return {"name": name, "fstype": fstype, **none, **tags, "children": list(children)}


def ambiguous(*devices):
    return ambiguous_tags(json.dumps({"blockdevices": devices}))


def test_a_tag_on_two_devices_is_ambiguous():
    assert ambiguous(device("sda1", uuid="1", label="root"), device("sdb1", uuid="2", label="root")) == {
        "LABEL=root": ["sda1", "sdb1"]
    }
    nested = device("sdb", None, [device("sdb1", uuid="1")])
    assert ambiguous(device("sda1", uuid="1"), nested) == {"UUID=1": ["sda1", "sdb1"]}


def test_members_of_one_whole_are_not_ambiguous():
    mapped = device("mpatha", uuid="1")
    assert (
        ambiguous(device("sda", "mpath_member", [mapped], uuid="1"), device("sdb", "mpath_member", [mapped]))
        == {}
    )
    assert ambiguous(device("sda", "btrfs", uuid="1"), device("sdb", "btrfs", uuid="1")) == {}
    assert ambiguous(device("sda", children=[device("dm-0", uuid="1")], uuid="1")) == {}


def test_an_answer_that_is_no_json_is_an_error():
    with pytest.raises(ValueError):
        ambiguous_tags("lsblk: unknown column\n")
