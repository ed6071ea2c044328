"""tools.conf is read as GLib reads it, and rewritten with everything else left alone."""

import ctypes
import ctypes.util
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vadpipe.vsphere.guest.tools_conf import ToolsConfig, ToolsConfigUnreadable, put_back

KEYS = ["enableVSS", "scriptArg", "excludedFileSystems"]
ADMINS = b"""# by the administrator, \xe9 in Latin-1
[logging]
log = true

[vmbackup]
   enableVSS =  true
# vss.disableAppQuiescing = true

[guestinfo]
exclude-nics=eth*
"""


def test_a_value_is_changed_in_its_place():
    config = ToolsConfig.parse(ADMINS).with_values({"enableVSS": "false"})
    assert config.content == ADMINS.replace(b"=  true", b"=  false")
    assert config.values() == {"enableVSS": "false"}


def test_a_key_is_added_after_the_last_of_its_group():
    config = ToolsConfig.parse(ADMINS).with_values({"vss.disableAppQuiescing": "true"})
    lines = config.content.split(b"\n")
    assert lines[lines.index(b"   enableVSS =  true") + 1] == b"vss.disableAppQuiescing=true"
    assert len(lines) == ADMINS.count(b"\n") + 2


def test_a_group_is_added_at_the_end_with_the_line_ends_of_the_file():
    config = ToolsConfig.parse(b"[logging]\r\nlog=true\r\n").with_values({"enableVSS": "false"})
    assert config.content == b"[logging]\r\nlog=true\r\n\r\n[vmbackup]\r\nenableVSS=false\r\n"
    assert ToolsConfig.parse(b"").with_values({"a": "1"}, line_end="\r\n").content == b"[vmbackup]\r\na=1\r\n"
    assert ToolsConfig.parse(b"[g]\nb=2").with_values({"a": "1"}).content == b"[g]\nb=2\n\n[vmbackup]\na=1\n"


def test_the_last_of_several_keys_counts_and_all_are_removed():
    twice = ToolsConfig.parse(b"[vmbackup]\na=1\na=2\n[x]\n[vmbackup]\na=3\n")
    assert twice.value("a") == "3"
    assert twice.with_values({"a": "4"}).content == b"[vmbackup]\na=1\na=2\n[x]\n[vmbackup]\na=4\n"
    assert twice.with_values({"a": None}).content == b"[vmbackup]\n[x]\n[vmbackup]\n"


def test_windows_paths_are_escaped():
    config = ToolsConfig.parse(b"").with_values({"excludedFileSystems": "E:\\,F:\\mount\\"})
    assert config.content == b"[vmbackup]\nexcludedFileSystems=E:\\\\,F:\\\\mount\\\\\n"
    assert config.value("excludedFileSystems") == "E:\\,F:\\mount\\"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[vmbackup]\n; no comment\n", 2),
        (b"a=1\n", 1),
        (b"[vmbackup]\n=1\n", 2),
        (b"[vm[backup]\n", 1),
        ("\ufeff[vmbackup]\n".encode(), None),
        ("[vmbackup]\n".encode("utf-16"), None),
        (b"[vmbackup]\na=\0\n", None),
    ],
)
def test_a_file_that_vmware_tools_ignore_is_refused(content, line):
    with pytest.raises(ToolsConfigUnreadable, match="ignore the whole file") as caught:
        ToolsConfig.parse(content)
    assert caught.value.facts["line"] == line


def test_changes_by_others_survive_restoring():
    before = ToolsConfig.parse(b"[vmbackup]\nenableVSS=true\n")
    now = before.with_values({"enableVSS": "false", "scriptArg": "x"})
    assert put_back(now, before, KEYS) == (before, True)
    theirs = ToolsConfig.parse(now.content + b"# ours\n[logging]\nlog=true\n")
    back, whole = put_back(theirs, before, KEYS)
    assert not whole
    assert back.content == b"[vmbackup]\nenableVSS=true\n# ours\n[logging]\nlog=true\n"


_lines = st.one_of(
    st.sampled_from(
        ["", "# note", " [vmbackup]", "[vmbackup]", "[logging] ", "enableVSS = true", "scriptArg="]
    ),
    st.builds(
        "{}={}".format, st.sampled_from([*KEYS, "a b", "n[de]", "q]"]), st.text("a\\ s;#[]=\t", max_size=6)
    ),
    st.text("[]=#ab \t\x0b\x0c\\", max_size=8),
)
_texts = st.builds(
    lambda lines, end, last: (end.join(lines) + (end if last else "")).encode(),
    st.lists(_lines, max_size=7),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
_wanted = st.fixed_dictionaries(
    {}, optional={key: st.none() | st.text("tru e\\\n\t\r1#=[]", max_size=6) for key in KEYS}
)


def _readable(content: bytes) -> ToolsConfig | None:
    try:
        return ToolsConfig.parse(content)
    except ToolsConfigUnreadable:
        return None


@pytest.mark.slow
@given(_texts, _wanted)
@example(b"[vmbackup]\r\nscriptArg=x", {"enableVSS": "1"})
@example(b"[vmbackup]\r\nscriptArg=x", {"scriptArg": None})
def test_a_change_sets_the_values_and_keeps_everything_else(content, wanted):
    before = _readable(content)
    if before is None:
        return
    wanted = {key: wanted[key] for key in KEYS if key in wanted}  # one order for both ways
    assert before.content == content
    after = ToolsConfig.parse(before.with_values(wanted).content)
    assert {key: after.value(key) for key in wanted} == wanted
    assert {k: v for k, v in after.values().items() if k not in wanted} == {
        k: v for k, v in before.values().items() if k not in wanted
    }
    assert after.values("logging") == before.values("logging")
    kept = [line for line in content.replace(b"\r", b"").split(b"\n") if line.strip().startswith(b"#")]
    assert kept == [
        line for line in after.content.replace(b"\r", b"").split(b"\n") if line.strip().startswith(b"#")
    ]
    assert after.with_values(wanted) == after
    assert put_back(after, before, list(wanted)) == (before, True)


# An independent witness: the library that VMware Tools read the file with.

Load = Callable[[bytes], Callable[[str, str], bytes | None] | None]


@pytest.fixture(scope="module")
def glib() -> Load:
    name = ctypes.util.find_library("glib-2.0")
    if name is None:
        pytest.skip("GLib is not installed here")
    library = ctypes.CDLL(name)
    library.g_key_file_new.restype = ctypes.c_void_p
    library.g_key_file_load_from_data.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
    ]  # fmt: skip
    library.g_key_file_get_string.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
    ]
    library.g_key_file_get_string.restype = ctypes.c_char_p

    def load(content: bytes) -> Callable[[str, str], bytes | None] | None:
        file = library.g_key_file_new()
        if not library.g_key_file_load_from_data(file, content, len(content), 0, None):
            return None
        return lambda group, key: library.g_key_file_get_string(file, group.encode(), key.encode(), None)

    return load


@pytest.mark.slow
@settings(max_examples=300)
@given(_texts, _wanted)
@example(b"[vmbackup]\nn[de]=1\na b = 2\n", {})
@example(b"\xef\xbb\xbf[vmbackup]\n", {})
def test_glib_reads_it_the_same(glib, content, wanted):
    config, witness = _readable(content), glib(content)
    assert (config is None) == (witness is None)
    if config is None:
        return
    after = config.with_values(wanted)
    witness = glib(after.content)
    assert witness is not None
    for key, value in wanted.items():
        assert witness("vmbackup", key) == (None if value is None else value.encode())
    for group in ("vmbackup", "logging"):
        for key, value in after.values(group).items():
            if "[" not in key and "\\" not in value:  # of a wrong escape GLib gives what came before it
                assert witness(group, key) == value.encode()
