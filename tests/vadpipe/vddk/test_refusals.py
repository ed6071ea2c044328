"""What cannot be opened: one message each that names the cause and the remedy."""

from __future__ import annotations

import shutil

import pytest

from pipeline.buffers import BufferPool
from pipeline.errors import ConfigError, MoverError
from pipeline.secrets import Secret
from tests.vadpipe.vddk.conftest import THUMBPRINT, quick
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import Vddk
from vadpipe.vddk.errors import VddkError
from vadpipe.vddk.library import find_library

OTHER = ":".join(["A0"] * 20)


async def refused(settings: Vddk, access: DiskAccess, pool: BufferPool) -> MoverError:
    with pytest.raises(MoverError) as caught:
        async with settings.open(access, pool):
            pytest.fail("it is not open")
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("thumbprint", [OTHER, ""])
async def test_a_wrong_thumbprint_is_named_in_the_error(libdir, lab, pool, thumbprint):
    error = await refused(quick(libdir), lab.access(thumbprint=thumbprint), pool)
    assert isinstance(error, VddkError)
    assert (error.facts["call"], error.facts["code"]) == ("Open", 1)
    assert "thumbprint is most likely wrong or missing" in str(error)
    assert f"actual thumbprint {THUMBPRINT}" in str(error)


WRONG = [
    ({"password": Secret.from_text("guessed")}, "ConnectEx", 3014, "privileges"),
    ({"vm": "vm-99"}, "ConnectEx", 4000, "moref"),
    ({"snapshot": "snapshot-99"}, "Open", 13003, "take a new one"),
    ({"path": "[ds1] web01/gone.vmdk"}, "Open", 4, "snapshot"),
]


@pytest.mark.parametrize(("wrong", "call", "code", "remedy"), WRONG)
async def test_wrong_login_vm_snapshot_or_path_is_one_error_with_its_remedy(
    libdir, lab, pool, wrong, call, code, remedy
):
    error = await refused(quick(libdir), lab.access(**wrong), pool)
    assert isinstance(error, VddkError)
    assert not error.transient
    assert (error.facts["call"], error.facts["code"]) == (call, code)
    assert remedy in error.remedy


async def test_an_unusable_transport_fails_at_open(libdir, lab, pool):
    error = await refused(quick(libdir, transports="san"), lab.access(), pool)
    assert isinstance(error, VddkError)
    assert error.facts["call"] == "Open"


MISSING = [
    {"server": ""},
    {"user": ""},
    {"path": ""},
    {"password": None},
    {"cookie": Secret.from_text("both")},
    {"thumbprint": "AA:BB"},
    {"path": "[ds1] a\0b"},
    {"vm": "", "path": "relative.vmdk"},
]


@pytest.mark.parametrize("missing", MISSING, ids=str)
def test_incomplete_access_never_reaches_the_library(made_lab, missing):
    with pytest.raises(ConfigError):
        made_lab.access(**missing)


async def test_an_empty_secret_is_refused(libdir, lab, pool):
    for secret in (Secret.from_env("NO_SUCH_VARIABLE"), Secret.from_text("")):
        error = await refused(quick(libdir), lab.access(password=secret), pool)
        assert isinstance(error, ConfigError)


async def test_a_missing_library_is_named_with_the_files_looked_for(tmp_path, pool):
    for libdir in (tmp_path, tmp_path / "absent"):
        error = await refused(quick(libdir), DiskAccess.local("/d.vmdk"), pool)
        assert isinstance(error, ConfigError)
        assert str(libdir) in str(error)
        assert "libvixDiskLib.so.9 to libvixDiskLib.so.6" in str(error)


@pytest.mark.parametrize("content", [b"not a library", None])
async def test_a_file_that_is_not_vddk_is_refused(tmp_path, pool, content):
    library = tmp_path / "lib64" / "libvixDiskLib.so.8"
    library.parent.mkdir()
    if content is None:  # a real library, but not this one
        import _ctypes

        shutil.copy(_ctypes.__file__, library)
    else:
        library.write_bytes(content)
    error = await refused(quick(tmp_path), DiskAccess.local("/d.vmdk"), pool)
    assert isinstance(error, ConfigError)
    assert str(library) in str(error)


def test_the_newest_library_is_found_in_lib64_first(tmp_path):
    lib64 = tmp_path / "lib64"
    lib64.mkdir()
    (tmp_path / "libvixDiskLib.so.9").touch()
    assert find_library(tmp_path).parent == tmp_path
    for name in ("libvixDiskLib.so.6", "libvixDiskLib.so.8"):
        (lib64 / name).touch()
    (lib64 / "libvixDiskLib.so.9").symlink_to("gone")
    assert find_library(tmp_path) == lib64 / "libvixDiskLib.so.8"
    assert find_library(lib64) == lib64 / "libvixDiskLib.so.8"
