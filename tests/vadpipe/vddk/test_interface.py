"""The tables: the binary interface against the stand-in and the documented layout, and the error codes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from vadpipe.vddk import abi
from vadpipe.vddk.client import LOG_TAIL
from vadpipe.vddk.codes import CODES, code_of
from vadpipe.vddk.errors import call_failed


@pytest.mark.parametrize("generation", [6, 7, 8, 9])
def test_every_symbol_is_exported(libdir, generation):
    if shutil.which("nm") is None:
        pytest.skip("nm is missing: the exports cannot be listed")
    library = libdir / "lib64" / f"libvixDiskLib.so.{generation}"
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert {abi.PREFIX + name for name in abi.SYMBOLS} <= exported


def test_struct_layouts_are_the_documented_ones():
    sizes = {abi.ConnectParams: 128, abi.Info: 56, abi.Block: 16, abi.BlockList: 24}
    assert {struct: ctypes.sizeof(struct) for struct in sizes} == sizes
    offsets = {"credType": 32, "creds": 40, "port": 64, "vimApiVer": 72, "state": 88, "specType": 120}
    assert {name: getattr(abi.ConnectParams, name).offset for name in offsets} == offsets
    assert (abi.Info.capacity.offset, abi.Info.uuid.offset, abi.BlockList.blocks.offset) == (24, 48, 8)


def test_transient_error_codes_are_those_worth_a_retry():
    transient = {number for number, code in CODES.items() if code.transient}
    assert transient == {2, 5, 13, 26, 34, 36, *range(14006, 14012), 14014, 14015, 18000}
    assert all(code.number == number for number, code in CODES.items())
    assert (code_of(30007).transient, code_of(13005).transient, code_of(12345).transient) == (
        True,
        False,
        False,
    )
    assert code_of(0xABCD_0000_0000 | 16007).name == "DISK_OUTOFRANGE"


def test_an_error_quotes_the_library_lines_above_information():
    log = ["I hello", "W first", "D noise", "W second", "I bye"]
    error = call_failed("Open", 0x7_0000 | 4, "A file was not found", "[ds1] a.vmdk", log)
    assert "failed with code 4 (FILE_NOT_FOUND" in str(error)
    assert "The library said: first / second." in str(error)
    assert error.facts["log"] == log
    assert len(log) < LOG_TAIL
