"""Every code of the collected facts has a cause, a remedy or none, and a word about another attempt."""

import pytest

from vadpipe.vsphere.api.advice import CATALOGUE, advice_for, tools_status, vss_code
from vadpipe.vsphere.api.faults import QuiesceFailed
from vadpipe.vsphere.snapshot.fallback import advice_on

EVENT = (
    "The guest OS has reported an error during quiescing. The error code was: 5 The error message was: "
    "'VssSyncStart' operation failed: IDispatch error #8449 (0x80042301)"
)
# The collected facts on faults of vSphere and on VSS errors: whether another attempt can help, and how soon.
FACTS = """
ApplicationQuiesceFault             retry
FilesystemQuiesceFault              later
SnapshotFault                       later
ToolsUnavailable                    no
TaskInProgress                      retry
InvalidPowerState                   no
InvalidState                        no
MultipleSnapshotsNotSupported       no
TooManySnapshotLevels               no
SnapshotLocked                      no
SnapshotDisabled                    no
SnapshotIncompatibleDeviceInVm      no
MemorySnapshotOnIndependentDisk     no
SnapshotNoChange                    no
NoDiskSpace                         no
FileLocked                          retry
FileFault                           no
QuiesceDatastoreIOForHAFailed       no
NotSupported                        no
InvalidName                         no
VmConfigFault                       no
0x80042301 BAD_STATE                             later
0x80042302 UNEXPECTED                            no
0x80042303 PROVIDER_ALREADY_REGISTERED           no
0x80042304 PROVIDER_NOT_REGISTERED               no
0x80042306 PROVIDER_VETO                         retry
0x80042308 OBJECT_NOT_FOUND                      retry
0x8004230c VOLUME_NOT_SUPPORTED                  no
0x8004230e VOLUME_NOT_SUPPORTED_BY_PROVIDER      no
0x8004230f UNEXPECTED_PROVIDER_ERROR             retry
0x80042312 MAXIMUM_NUMBER_OF_VOLUMES_REACHED     no
0x80042313 FLUSH_WRITES_TIMEOUT                  10-minutes
0x80042314 HOLD_WRITES_TIMEOUT                   10-minutes
0x80042315 UNEXPECTED_WRITER_ERROR               retry
0x80042316 SNAPSHOT_SET_IN_PROGRESS              later
0x80042317 MAXIMUM_NUMBER_OF_SNAPSHOTS_REACHED   no
0x80042318 WRITER_INFRASTRUCTURE                 retry
0x80042319 WRITER_NOT_RESPONDING                 no
0x8004231d VOLUME_IN_USE                         no
0x8004231f INSUFFICIENT_STORAGE                  no
0x80042328 TRANSACTION_FREEZE_TIMEOUT            later
0x80042329 TRANSACTION_THAW_TIMEOUT              later
0x80042336 WRITERERROR_PARTIAL_FAILURE           no
0x80042409 WRITER_STATUS_NOT_AVAILABLE           later
0x800423f0 WRITERERROR_INCONSISTENTSNAPSHOT      no
0x800423f1 WRITERERROR_OUTOFRESOURCES            later
0x800423f2 WRITERERROR_TIMEOUT                   later
0x800423f3 WRITERERROR_RETRYABLE                 retry
0x800423f4 WRITERERROR_NONRETRYABLE              no
0x800423f5 WRITERERROR_RECOVERY_FAILED           no
0x800423fc DYNAMIC_DISK_ERROR                    no
"""
ATTEMPTS = {"no": range(0), "retry": range(1, 120), "later": range(120, 600), "10-minutes": range(600, 601)}
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
def test_every_code_has_advice(code):
    advice = advice_for(code)
    assert advice is not None
    assert advice.cause


def test_every_vss_code_has_a_remedy_and_its_name():
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
def test_a_retry_is_advised_where_it_can_help(code, retry_after_s):
    advice = advice_for(code)
    assert advice is not None
    assert advice.retry_after_s == retry_after_s


@pytest.mark.parametrize("line", FACTS.split("\n")[1:-1], ids=lambda line: line.split()[0])
def test_advice_agrees_with_each_line_of_the_facts(line):
    code, *name, attempt = line.split()
    advice = advice_for(code)
    assert advice is not None
    assert advice.cause
    assert advice.name == (f"VSS_E_{name[0]}" if name else code)
    if attempt == "no":
        assert advice.retry_after_s is None
    else:
        assert advice.retry_after_s in ATTEMPTS[attempt]


def test_the_list_of_facts_is_complete():
    codes = [line.split()[0] for line in FACTS.split("\n")[1:-1]]
    assert (
        {code for code in codes if code.startswith("0x")}
        == set(VSS)
        == {code for code in CATALOGUE if code.startswith("0x")}
    )
    assert set(FAULTS) <= set(codes)


def test_codes_are_found_in_the_text_of_an_event():
    assert vss_code(EVENT) == "0x80042301"
    assert tools_status(EVENT) == "tools 5"
    assert vss_code("nothing") is None
    assert tools_status("nothing") is None
    assert advice_for(None) is None
    assert advice_for("0x80049999") is None


def test_the_most_specific_code_is_used():
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
