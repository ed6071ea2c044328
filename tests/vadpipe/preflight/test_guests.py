"""The table of guests against the user's document, and the versions of VDDK and of VMware Tools."""

import pytest

from tests.vadpipe.preflight.healthy import VM, vm
from vadpipe.preflight.guests import GUESTS, OTHER, agree, guest_os
from vadpipe.preflight.rules_site import compare_generations

# (guest ids, driver, quiescing) row by row as the document has them, and as the versions since behave.
VSS = "VMware VSS component"
DOCUMENT = [
    (
        ("winXPProGuest", "winXPHomeGuest", "win2000ServGuest", "win2000ProGuest"),
        "sync driver",
        "file-system",
    ),
    (("winVistaGuest", "winVista64Guest", "windows7Guest", "windows7_64Guest"), VSS, "file-system"),
    (("winNetStandardGuest", "winNetEnterprise64Guest"), VSS, "application"),
    (("winLonghornGuest", "winLonghorn64Guest", "windows7Server64Guest"), VSS, "application"),
    (("windows8Server64Guest",), VSS, "application"),
    (("windows9Server64Guest",), VSS, "application"),
    (("ubuntu64Guest", "otherGuest64", "solaris11_64Guest", "darwin21_64Guest"), "not applicable", "crash"),
    (("windows8_64Guest", "windows9_64Guest", "windows11_64Guest"), VSS, "file-system"),
    (
        ("windows2019srv_64Guest", "windows2019srvNext_64Guest", "windows2022srvNext_64Guest"),
        VSS,
        "application",
    ),
]
CASES = [(guest_id, driver, reaches) for ids, driver, reaches in DOCUMENT for guest_id in ids]


@pytest.mark.parametrize(("guest_id", "driver", "reaches"), CASES)
def test_the_table_gives_the_driver_and_the_level_of_each_guest(guest_id, driver, reaches):
    row = guest_os(guest_id)
    assert row is not None
    assert (row.driver, row.reaches) == (driver, reaches)


def test_a_windows_that_the_table_does_not_have_is_unknown():
    assert guest_os("windows12_64Guest") is None
    assert guest_os("windowsHyperVGuest") is None
    assert guest_os("") is None
    assert guest_os("rhel9_64Guest") is OTHER


def test_disk_uuids_from_2008_and_new_tools_from_2016():
    uuids = {row.name for row in GUESTS.values() if row.needs_disk_uuids}
    tools = {row.name for row in GUESTS.values() if row.needs_new_tools}
    assert "Windows Server 2003" not in uuids
    assert uuids - tools == {"Windows Server 2008", "Windows Server 2008 R2", "Windows Server 2012"}
    assert tools == {f"Windows Server {year}" for year in (2016, 2019, 2022, 2025)}


def test_old_hosts_run_later_servers_as_2016():
    as_2016, as_2022 = GUESTS["windows9Server64Guest"], GUESTS["windows2019srvNext_64Guest"]
    assert agree(as_2016, as_2022)
    assert not agree(as_2022, as_2016)
    assert not agree(as_2016, GUESTS["windows8Server64Guest"])


@pytest.mark.parametrize(
    ("number", "release"),
    [
        (10240, (10, 0, 0)), (10272, (10, 1, 0)), (11365, (11, 3, 5)), (12448, (12, 5, 0)), (13312, (13, 0, 0)),
        (0, None), (0x7FFFFFFF, None), (0xFFFFFFFF, None), (None, None),
    ],
)  # fmt: skip
def test_the_number_of_vmware_tools_gives_their_release(number, release):
    assert vm(tools_version=number).vm.tools_release == release
    assert VM.tools_release == (12, 5, 0)


@pytest.mark.parametrize(
    ("vddk", "oldest", "newest"),
    [
        ((6, 7), (6, 0), (7, 0)),
        ((7, 0, 3), (6, 5), (8, 0)),
        ((8, 0, 3), (6, 7), (9, 0)),
        ((9,), (7, 0), (9, 0)),
    ],
)
def test_vddk_works_with_two_generations_before_and_the_next(vddk, oldest, newest):
    assert compare_generations(vddk, oldest) == compare_generations(vddk, newest) == 0


def test_a_vddk_that_does_not_say_its_version_is_compared_with_nothing():
    assert compare_generations((6,), (7, 0)) is None
    assert compare_generations((9, 1), (5, 5, 0)) == -1
    assert compare_generations((6, 7, 1), (8, 0, 0)) == 1
    assert compare_generations((8, 0), (9, 1)) == 0  # of the next generation
