"""The server of exports: other people's clients as witnesses, old and new handshakes, and what clients may ask."""

import errno
import os
import socket
import ssl
import stat

import numpy as np
import pytest
import trio

from pipeline import BufferPool, ConfigError, KiB, MiB
from tests.vadpipe.nbd.server_kit import (
    HOLE,
    PIECE,
    Client,
    MemoryExport,
    WritableMemory,
    client_of,
    connect,
    context_query,
    image_options,
    named,
    pattern,
    qemu_map,
    said,
    saved,
)
from tests.vadpipe.reading_kit import whole_disk
from vadpipe.lab.certificate import create_credentials
from vadpipe.nbd import Nbd, protocol
from vadpipe.nbd.protocol import Command, CommandFlag, Option, OptionReply, Refusal
from vadpipe.nbd.server import Address, serve, tls_server, tls_with_shared_keys

SIZE = 9 * MiB + 3 * 512
DATA = [(0, 700 * KiB), (2 * MiB, 5 * MiB + 4096), (SIZE - 700, SIZE)]
ANY_PORT = Address("127.0.0.1", 0)


@pytest.fixture
def export():
    return MemoryExport(pattern(SIZE, DATA), "scsi0:0")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "nbd.sock"


async def test_nbdinfo_tells_what_the_export_is(export, place):
    async with serve([export], place) as server:
        told = await said("nbdinfo", server.uri("scsi0:0"))
    assert f"export-size: {SIZE}" in told
    assert "description: an array" in told
    assert "is_read_only: true" in told
    assert "can_multi_conn: true" in told
    assert "base:allocation" in told
    assert "using structured packets" in told
    assert "block_size_minimum: 1" in told
    assert "block_size_maximum: 33554432" in told


async def test_exports_are_listed_and_chosen_by_name(export, place):
    other = MemoryExport(pattern(MiB, [(0, MiB)], seed=9), "scsi0:1")
    async with serve([export, other], place) as server:
        told = await said("nbdinfo", "--list", f"nbd+unix:///?socket={place}")
        assert 'export="scsi0:0"' in told
        assert 'export="scsi0:1"' in told
        assert (await said("nbdinfo", "--size", server.uri("scsi0:1"))).strip() == str(MiB)
        async with client_of(server) as client:  # two of them: no name means neither
            await client.greet()
            [(kind, _)] = await client.option(Option.GO, named(""))
    assert kind == protocol.REPLY_ERROR | Refusal.UNKNOWN_EXPORT


@pytest.mark.parametrize("tcp", [False, True])
async def test_other_clients_copy_the_bytes(export, place, tmp_path, tcp):
    raw = saved(export.content, tmp_path / "expected.raw")
    async with serve([export], ANY_PORT if tcp else place) as server:
        uri = server.uri("scsi0:0")
        await said("nbdcopy", uri, tmp_path / "nbdcopy.raw")
        await said("qemu-img", "convert", "--image-opts", image_options(uri), tmp_path / "qemu.raw")
        await said(
            "qemu-img", "compare", "--image-opts", image_options(uri), f"driver=raw,file.filename={raw}"
        )
    for copy in ("nbdcopy.raw", "qemu.raw"):
        assert (tmp_path / copy).read_bytes() == raw.read_bytes()


async def test_qemu_and_libnbd_see_the_holes(export, place):
    async with serve([export], place) as server:
        found = await qemu_map(server.uri("scsi0:0"))
        listed = await said("nbdinfo", "--map", server.uri("scsi0:0"))
    expected, at = [], 0
    for length, state in export._states(0, SIZE):
        expected.append((at, length, not state))
        at += length
    lines = [line.split() for line in listed.splitlines()]
    assert [(int(line[0]), int(line[1]), line[3] == "data") for line in lines] == expected
    # qemu-img rounds the end of a disk to sectors
    assert [each[:1] + each[2:] for each in found] == [each[:1] + each[2:] for each in expected]


async def test_our_own_client_reads_it(export, place):
    pool = BufferPool()
    async with serve([export], place), Nbd(str(place)).open(pool=pool) as disk:
        assert disk.allocation == "queried"
        assert np.array_equal(await whole_disk(disk, pool), export.content)


@pytest.mark.parametrize("flags", [1, 3])
async def test_an_old_client_gets_simple_replies(export, place, flags):
    async with serve([export], place) as server, client_of(server) as client:
        await client.greet(flags)
        body = b"scsi0:0"
        head = protocol.OPTION.pack(protocol.OPTION_MAGIC, Option.EXPORT_NAME, len(body))
        await client.stream.send_all(head + body)
        told = await client.exactly(10 if flags == 3 else 134)
        assert int.from_bytes(told[:8], "big") == SIZE
        for offset, length in ((0, 512), (PIECE - 1, 3 * MiB), (0, SIZE), (SIZE - 5, 5), (77, 0)):
            reply = await client.run(Command.READ, offset, length)
            assert reply.data == export.content[offset : offset + length].tobytes()
        assert (await client.run(Command.BLOCK_STATUS, 0, 512)).error == errno.EINVAL


async def test_a_read_beyond_the_end_and_an_unknown_command_are_invalid(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        for command, offset, length, flags in (
            (Command.READ, SIZE - 511, 512, 0),
            (Command.READ, 1 << 63, 512, 0),
            (Command.READ, 0, 33 * MiB, 0),
            (Command.READ, 0, 512, CommandFlag.FUA),
            (Command.BLOCK_STATUS, 0, 0, 0),
            (Command.BLOCK_STATUS, SIZE, 1, 0),
            (77, 0, 0, 0),
        ):
            assert (await client.run(command, offset, length, flags)).error == errno.EINVAL
        assert (await client.run(Command.READ, 0, 512)).data == export.content[:512].tobytes()


async def test_an_export_that_is_read_only_refuses_every_change(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        for command in (Command.TRIM, Command.WRITE_ZEROES, Command.FLUSH):
            assert (await client.run(command, 0, 512 if command != Command.FLUSH else 0)).error == errno.EPERM
        await client.ask(Command.WRITE, 0, 3 * MiB)
        await client.stream.send_all(bytes(3 * MiB))
        assert (await client.reply()).error == errno.EPERM
        assert (await client.run(Command.READ, 0, 9)).data == export.content[:9].tobytes()


async def test_what_a_client_writes_is_read_back(place):
    export = WritableMemory(pattern(SIZE, DATA), "scsi0:0")
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        new = os.urandom(2 * MiB + 17)
        await client.ask(Command.WRITE, 4097, len(new), CommandFlag.FUA)
        await client.stream.send_all(new)
        assert not (await client.reply()).error
        assert export.flushes == 1
        assert (await client.run(Command.READ, 4097, len(new))).data == new
        assert not (await client.run(Command.WRITE_ZEROES, 0, 8192)).error
        assert not (await client.run(Command.TRIM, 8192, 8192)).error
        assert not (await client.run(Command.FLUSH)).error
        assert export.flushes == 2
        assert not export.content[:16384].any()
        await client.ask(Command.WRITE, SIZE - 1, 2)
        await client.stream.send_all(b"xy")
        assert (await client.reply()).error == errno.ENOSPC


async def test_a_reply_tells_holes_unless_it_must_not_be_in_pieces(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        offset, length = 640 * KiB, 128 * KiB
        plain = await client.run(Command.READ, offset, length)
        assert plain.holes == [(704 * KiB, 64 * KiB)]
        assert plain.chunks == 2
        whole = await client.run(Command.READ, offset, length, CommandFlag.DONT_FRAGMENT)
        assert whole.chunks == 1
        assert whole.data == plain.data == export.content[offset : offset + length].tobytes()
        too_long = await client.run(Command.READ, 0, 2 * MiB, CommandFlag.DONT_FRAGMENT)
        assert too_long.error == errno.EOVERFLOW


async def test_extents_are_told_all_or_one(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        many = await client.run(Command.BLOCK_STATUS, 0, SIZE)
        assert many.extents == export._states(0, SIZE)
        one = await client.run(Command.BLOCK_STATUS, 704 * KiB, MiB, CommandFlag.ONE_EXTENT)
        assert one.extents == [(MiB, HOLE)]


async def test_metadata_contexts_are_listed_and_set_for_one_export(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.greet()
        for query in ([], [b"base:"], [b"base:allocation"]):
            told = await client.option(Option.LIST_META_CONTEXT, context_query("scsi0:0", *query))
            assert [body[4:] for kind, body in told if kind == OptionReply.META_CONTEXT] == [
                b"base:allocation"
            ]
        early = await client.option(Option.SET_META_CONTEXT, context_query("", b"base:allocation"))
        assert early[-1][0] == protocol.REPLY_ERROR | Refusal.INVALID  # structured replies come first
        await client.option(Option.STRUCTURED_REPLY)
        none = await client.option(Option.SET_META_CONTEXT, context_query("", b"qemu:dirty-bitmap:x"))
        assert [kind for kind, _ in none] == [OptionReply.ACK]
        await client.option(Option.GO, named(""))
        client.structured = True
        assert (await client.run(Command.BLOCK_STATUS, 0, 512)).error == errno.EINVAL


async def test_unknown_and_malformed_options_are_refused_and_the_next_is_answered(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.greet()
        for option, body, reason in (
            (99, b"whatever", Refusal.UNSUPPORTED),
            (Option.STARTTLS, b"", Refusal.POLICY),
            (Option.LIST, b"x", Refusal.INVALID),
            (Option.GO, b"", Refusal.INVALID),
            (Option.GO, b"\xff\xff\xff\xff", Refusal.INVALID),
            (Option.GO, named("missing"), Refusal.UNKNOWN_EXPORT),
            (
                Option.GO,
                named("\udc80".encode("utf-8", "surrogatepass").decode("latin-1")),
                Refusal.UNKNOWN_EXPORT,
            ),
            (Option.LIST_META_CONTEXT, context_query("")[:-1], Refusal.INVALID),
        ):
            [(kind, _)] = await client.option(option, body)
            assert kind == protocol.REPLY_ERROR | reason, option
        told = await client.option(Option.INFO, named("", 1, 2, 3))
        assert [int.from_bytes(body[:2], "big") for kind, body in told if kind == OptionReply.INFO] == [
            0,
            1,
            2,
            3,
        ]
        assert [kind for kind, _ in await client.option(Option.ABORT)] == [OptionReply.ACK]
        assert await client.ends()


@pytest.mark.parametrize("structured", [True, False])
async def test_a_range_that_cannot_be_read_is_an_error_for_it_alone(export, place, structured):
    export.bad = {40}
    low = 40 * PIECE
    async with serve([export], place) as server, client_of(server) as client:
        await client.go(structured=structured)
        assert (await client.run(Command.READ, low, 512)).error == errno.EIO
        assert (await client.run(Command.READ, low - 2 * MiB, 4 * MiB)).error == errno.EIO
        for offset, length in ((low - 512, 512), (low + PIECE, 3 * PIECE), (0, 2 * MiB)):
            reply = await client.run(Command.READ, offset, length)
            assert reply.data == export.content[offset : offset + length].tobytes()


async def test_a_prefetch_reaches_the_export(export, place):
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        assert not (await client.run(Command.CACHE, MiB, 2 * MiB)).error
    assert export.expected == [(MiB, 2 * MiB)]


async def test_requests_in_flight_are_answered_before_the_connection_ends(export, place):
    export.gate = trio.Event()
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        await client.ask(Command.READ, 0, 512)
        await client.ask(Command.DISCONNECT)
        await trio.sleep(0.02)
        export.gate.set()
        assert (await client.reply(512)).data == export.content[:512].tobytes()
        assert await client.ends()


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    place = tmp_path_factory.mktemp("tls")
    create_credentials(place, "127.0.0.1")
    return place


async def test_tls_is_required_once_it_is_there(export, credentials):
    tls = tls_server(credentials / "server-cert.pem", credentials / "server-key.pem")
    async with serve([export], ANY_PORT, tls=tls) as server:
        assert server.uri("scsi0:0").startswith("nbds://127.0.0.1:")
        async with client_of(server) as client:
            await client.greet()
            for option, body in ((Option.LIST, b""), (Option.GO, named("")), (Option.STRUCTURED_REPLY, b"")):
                [(kind, _)] = await client.option(option, body)
                assert kind == protocol.REPLY_ERROR | Refusal.TLS_REQUIRED
        told = await said("nbdinfo", f"{server.uri('scsi0:0')}?tls-certificates={credentials}")
        assert "with TLS" in told
        trusting = ssl.create_default_context(cafile=str(credentials / "ca-cert.pem"))
        pool = BufferPool()
        where = server.where
        async with Nbd(where.host, where.port, export="scsi0:0", tls=trusting).open(pool=pool) as disk:
            assert np.array_equal(await whole_disk(disk, pool), export.content)


async def test_a_client_without_a_certificate_is_refused_where_one_is_needed(export, credentials, tmp_path):
    files = [credentials / name for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")]
    async with serve([export], ANY_PORT, tls=tls_server(*files)) as server:
        uri = server.uri("scsi0:0")
        await said("nbdcopy", f"{uri}?tls-certificates={credentials}", tmp_path / "copy.raw")
        assert (tmp_path / "copy.raw").read_bytes() == export.content.tobytes()
        (tmp_path / "ca-cert.pem").write_bytes((credentials / "ca-cert.pem").read_bytes())
        assert "nbdinfo" in await said("nbdinfo", f"{uri}?tls-certificates={tmp_path}", fails=True)


async def test_what_was_agreed_in_the_clear_does_not_count_after_tls(export, credentials):
    tls = tls_server(credentials / "server-cert.pem", credentials / "server-key.pem")
    async with serve([export], ANY_PORT, tls=tls) as server, await connect(server) as stream:
        client = Client(stream)
        await client.greet()
        # a man in the middle sends an option into the clear part, behind STARTTLS
        starting = protocol.OPTION.pack(protocol.OPTION_MAGIC, Option.STARTTLS, 0)
        injected = protocol.OPTION.pack(protocol.OPTION_MAGIC, Option.STRUCTURED_REPLY, 0)
        await stream.send_all(starting + injected)
        assert await client.exactly(protocol.OPTION_REPLY.size)
        assert await client.ends()


async def test_any_free_port_is_one_port_for_a_host_of_several_addresses(export):
    async with serve([export], Address("localhost", 0)) as server:
        assert server.where.port
        assert server.where.host in ("127.0.0.1", "::1")
        async with client_of(server) as client:
            await client.go()


async def test_other_machines_need_tls(export):
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match=r"can be reached by other machines.*Use TLS"):
            async with serve([export], Address(host, 0)):
                pass


async def test_an_address_that_is_taken_is_told(export, place):
    async with serve([export], ANY_PORT) as server:
        with pytest.raises(ConfigError, match=r"cannot be listened on: Address already in use.*port 0"):
            async with serve([export], server.where):
                pass
    async with serve([export], place):
        with pytest.raises(ConfigError, match="Address already in use"):
            async with serve([export], place):
                pass
    place.write_bytes(b"a file")
    with pytest.raises(ConfigError, match="something else with this name"):
        async with serve([export], place):
            pass
    assert place.read_bytes() == b"a file"


async def test_a_socket_is_its_owners_and_a_stale_one_is_replaced(export, place):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))
    async with serve([export], place) as server:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        async with client_of(server) as client:
            await client.go()
    assert not place.exists()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 10809),
        ("localhost:0", "localhost", 0),
        ("[::1]:7", "::1", 7),
        ("[::1]", "::1", 10809),
        ("::1", "::1", 10809),
    ],
)
def test_addresses_are_parsed(text, host, port):
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize("text", ["", ":", ":5", "host:x", "host:99999"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="no address to listen on"):
        Address.parse(text)


def test_tls_files_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"TLS files cannot be used: No such file.*both PEM"):
        tls_server(tmp_path / "missing", tmp_path / "missing")


SHARED_KEYS = hasattr(ssl.SSLContext, "set_psk_server_callback")


@pytest.mark.skipif(SHARED_KEYS, reason="this Python can serve shared keys")
def test_shared_keys_need_a_newer_python(tmp_path):
    with pytest.raises(ConfigError, match=r"needs Python 3\.13"):
        tls_with_shared_keys(tmp_path / "keys")


@pytest.mark.skipif(not SHARED_KEYS, reason="TLS with shared keys needs Python 3.13")
async def test_shared_keys_let_those_in_who_have_one(export, tmp_path):
    keys, others = tmp_path / "keys.psk", tmp_path / "others.psk"
    keys.write_text(f"alice:{'5a' * 32}\nbob:{'a5' * 32}\n")
    others.write_text(f"alice:{'00' * 32}\ncarol:{'5a' * 32}\n")
    async with serve([export], ANY_PORT, tls=tls_with_shared_keys(keys)) as server:
        for name, file, fails in (
            ("alice", keys, False),
            ("bob", keys, False),
            ("alice", others, True),
            ("carol", others, True),
        ):
            uri = server.uri("scsi0:0").replace("//", f"//{name}@")
            told = await said("nbdinfo", f"{uri}?tls-psk-file={file}", fails=fails)
            assert fails or "with TLS" in told
        assert "nbdinfo" in await said("nbdinfo", server.uri("scsi0:0"), fails=True)


@pytest.mark.skipif(not SHARED_KEYS, reason="TLS with shared keys needs Python 3.13")
@pytest.mark.parametrize("text", [None, "no key", "alice:xyz"])
def test_a_file_of_keys_that_cannot_be_used_is_told(tmp_path, text):
    keys = tmp_path / "keys.psk"
    if text is not None:
        keys.write_text(text)
    with pytest.raises(ConfigError, match="Write lines of NAME:HEXADECIMAL-KEY"):
        tls_with_shared_keys(keys)
