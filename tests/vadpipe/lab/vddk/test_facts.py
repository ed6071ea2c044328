"""Facts about disks and about the library: information, metadata, exports, versions."""

import ctypes

import pytest

from tests.vadpipe.lab.vddk.conftest import Client, child, create, needs_qemu, qemu_img
from vadpipe.lab.vddk_build import build_vddk


@needs_qemu
@pytest.mark.parametrize("generation", [6, 7, 8, 9])
def test_info_has_the_size_of_its_generation(run, libdir, tmp_path, generation):
    leaf = child(tmp_path / "leaf.vmdk", create(tmp_path / "base.vmdk", "1G", adapter_type="lsilogic"))
    run.library = str(libdir / "lib64" / f"libvixDiskLib.so.{generation}")

    def facts(client, path):
        handle = client.open(path)
        info = client.info(handle)[0]
        single = client.info(client.open(path, 4 | 2, connection=client.connection))[0]
        geometry = list(info.bios)
        return [info.capacity, geometry, info.links, single.links, info.parent.decode(), info.logical]

    capacity, geometry, links, single, parent, sector = run(facts, str(leaf))
    assert (capacity, links, single, parent) == (2 << 20, 2, 1, "base.vmdk")
    assert geometry[1:] == [16, 63]
    # Before 7.0 the struct ends earlier: what lies there is not a sector size.
    assert (sector == 512) == (generation >= 7)
    assert sector != 0


@needs_qemu
def test_metadata_is_read_with_two_calls(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "1M")

    def metadata(client, path):
        handle = client.open(path, 0)
        size = ctypes.c_size_t()
        codes = [
            client.call("WriteMetadata", handle, b"uuid", b"60 00 C2 9a"),
            client.call("WriteMetadata", handle, b"a", b'"'),
        ]
        codes.append(client.call("GetMetadataKeys", handle, None, ctypes.c_size_t(0), ctypes.byref(size)))
        codes[-1] = client.raw  # real clients compare it unmasked
        keys = ctypes.create_string_buffer(size.value)
        codes.append(client.call("GetMetadataKeys", handle, keys, ctypes.c_size_t(size.value), None))
        codes.append(
            client.call("ReadMetadata", handle, b"uuid", None, ctypes.c_size_t(0), ctypes.byref(size))
        )
        value = ctypes.create_string_buffer(size.value)
        codes.append(client.call("ReadMetadata", handle, b"uuid", value, ctypes.c_size_t(size.value), None))
        codes.append(client.call("ReadMetadata", handle, b"none", value, ctypes.c_size_t(size.value), None))
        client.finish(handle)
        return [codes, keys.raw.decode(), value.raw.decode(), client.log]

    codes, keys, value, _ = run(metadata, str(disk))
    assert codes == [0, 3, 24, 0, 24, 0, 16052]
    assert value == "60 00 C2 9a\0"
    assert keys.endswith("\0\0")
    assert {"adapterType", "geometry.cylinders", "uuid"} <= set(keys.split("\0"))
    assert b'ddb.uuid = "60 00 C2 9a"' in disk.read_bytes()
    assert "No errors were found" in qemu_img("check", "-f", "vmdk", disk)


NAMES = """
InitEx Init Exit GetErrorText FreeErrorText ListTransportModes Cleanup SetInjectedFault
AllocateConnectParams FreeConnectParams GetConnectParams Connect ConnectEx Disconnect PrepareForAccess
EndAccess Open Close GetInfo FreeInfo GetTransportMode Read Write ReadAsync WriteAsync Flush Wait
QueryAllocatedBlocks FreeBlockList ReadMetadata WriteMetadata GetMetadataKeys Create CreateChild
IsAttachPossible Attach Clone SpaceNeededForClone Grow Shrink Defragment Rename Unlink CheckRepair
"""


@pytest.mark.parametrize("suffix", [".6", ".7", ".8", ".9", ""])
def test_every_name_is_exported(run, libdir, suffix):
    library = libdir / "lib64" / f"libvixDiskLib.so{suffix}"
    run.library = str(library)

    def missing(library, names):
        loaded = ctypes.CDLL(library)
        internal = [name for name in ("chain_open", "misuse", "vix_error") if hasattr(loaded, name)]
        return [name for name in names if not hasattr(loaded, "VixDiskLib_" + name)] + internal

    assert run(missing, NAMES.split(), client=False) == []
    assert f"libvixDiskLib.so{suffix or '.9'}".encode() + b"\0" in library.read_bytes()  # the soname


def test_a_library_is_built_without_the_functions_it_is_to_lack(tmp_path, run):
    lacking = build_vddk(tmp_path / "lacking", lacks=["Cleanup", "AllocateConnectParams"])
    run.library = str(lacking / "lib64" / "libvixDiskLib.so.6")

    def missing(library, names):
        loaded = ctypes.CDLL(library)
        return [name for name in names if not hasattr(loaded, "VixDiskLib_" + name)]

    assert run(missing, NAMES.split(), client=False) == ["Cleanup", "AllocateConnectParams"]


def test_the_library_can_be_initialised_once(run):
    def life(library):
        client = Client(library, init=False)
        client.c.VixDiskLib_GetErrorText.restype = ctypes.c_void_p
        client.c.VixDiskLib_ListTransportModes.restype = ctypes.c_char_p
        client.c.VixDiskLib_FreeConnectParams(client.c.VixDiskLib_AllocateConnectParams())
        # A failed call leaves the process as it was: the client may try another version.
        codes = [client.init(10, 0), client.init(6, 5), client.init()]
        pointer = ctypes.c_void_p(client.c.VixDiskLib_GetErrorText(ctypes.c_uint64(0xABCD_0000_3E87), None))
        text = ctypes.string_at(pointer.value).decode()
        client.c.VixDiskLib_FreeErrorText(pointer)
        poisoned = ctypes.string_at(pointer.value, 8).hex()
        codes.append(client.call("Unlink", None, b"/tmp/none"))
        modes = client.c.VixDiskLib_ListTransportModes().decode()
        client.c.VixDiskLib_Exit()
        return [codes, text, poisoned, modes, client.log]

    codes, text, poisoned, modes, log = run(life, client=False)
    assert codes == [3, 0, 16053, 6]
    assert text == "The request lies outside the virtual disk"
    assert poisoned == "db" * 8
    assert modes == "file:san:hotadd:nbdssl:nbd"
    assert sum("thread" in line for line in log) == 4
    assert any("VDDK_PhoneHome" in line for line in log)


@pytest.mark.parametrize(("version", "code"), [((6, 4), 3), ((8, 0), 0), ((9, 0), 3)])
def test_only_known_versions_are_accepted_by_init(run, version, code):
    def ask(library, version):
        return Client(library, init=False).init(*version)

    assert run(ask, version, client=False) == code
