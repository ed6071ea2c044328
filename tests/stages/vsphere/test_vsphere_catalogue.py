"""Every code of the collected facts has a cause, a remedy or none, and a word about another attempt."""

import pytest

from pipeline.errors import QuiesceFailed
from stages.vsphere.catalogue import CATALOGUE, advice_for, tools_status, vss_code
from stages.vsphere.events import advice_on

EVENT = (
    "The guest OS has reported an error during quiescing. The error code was: 5 The error message was: "
    "'VssSyncStart' operation failed: IDispatch error #8449 (0x80042301)"
)
FAULTS = [
    "ApplicationQuiesceFault", "FilesystemQuiesceFault", "SnapshotFault", "ToolsUnavailable", "TaskInProgress",
    "InvalidPowerState", "InvalidState", "MultipleSnapshotsNotSupported", "TooManySnapshotLevels",
    "SnapshotLocked", "SnapshotDisabled", "SnapshotIncompatibleDeviceInVm", "MemorySnapshotOnIndependentDisk",
    "SnapshotNoChange", "FileFault", "NoDiskSpace", "FileLocked", "NotSupported", "InvalidName", "VmConfigFault",
]  # fmt: skip
VSS = [
    f"0x8004{low:04x}"
    for low in (
        0x2301, 0x2302, 0x2303, 0x2304, 0x2306, 0x2308, 0x230C, 0x230E, 0x230F, 0x2312, 0x2313, 0x2314, 0x2315,
        0x2316, 0x2317, 0x2318, 0x2319, 0x231D, 0x231F, 0x2328, 0x2329, 0x2336, 0x2409, 0x23F0, 0x23F1, 0x23F2,
        0x23F3, 0x23F4, 0x23F5, 0x23FC,
    )
]  # fmt: skip


@pytest.mark.parametrize("code", [*FAULTS, *VSS, "tools 1", "tools 2", "tools 3", "tools 4", "tools 5"])
def test_each_code_is_known(code: str) -> None:
    advice = advice_for(code)
    assert advice is not None
    assert advice.cause


def test_every_vss_code_has_a_remedy_and_its_name() -> None:
    for code in VSS:
        advice = CATALOGUE[code]
        assert advice.name.startswith("VSS_E_")
        assert advice.remedy


@pytest.mark.parametrize(
    ("code", "retry_after_s"),
    [
        ("0x80042313", 600),  # Microsoft: wait 10 minutes
        ("0x800423F3", 30),
        ("0x800423F4", None),
        ("0x80042304", None),
        ("TooManySnapshotLevels", None),
        ("ToolsUnavailable", None),
        ("FilesystemQuiesceFault", 180),
    ],
)
def test_another_attempt_where_it_may_help(code: str, retry_after_s: float | None) -> None:
    advice = advice_for(code)
    assert advice is not None
    assert advice.retry_after_s == retry_after_s


def test_codes_are_found_in_the_text_of_an_event() -> None:
    assert vss_code(EVENT) == "0x80042301"
    assert tools_status(EVENT) == "tools 5"
    assert vss_code("nothing") is None
    assert tools_status("nothing") is None
    assert advice_for(None) is None
    assert advice_for("0x80049999") is None


def test_the_most_exact_code_counts() -> None:
    failed = QuiesceFailed(
        "x", fault="ApplicationQuiesceFault", tools_status="tools 5", vss_code="0x800423f4"
    )
    advice = advice_on(failed)
    assert advice is not None
    assert advice.name == "VSS_E_WRITERERROR_NONRETRYABLE"
    failed = QuiesceFailed("x", fault="ApplicationQuiesceFault", tools_status="tools 2", vss_code=None)
    advice = advice_on(failed)
    assert advice is not None
    assert "script" in advice.cause
    assert advice_on(QuiesceFailed("x")) is None
