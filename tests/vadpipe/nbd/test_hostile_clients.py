"""Clients that break the protocol, flood, stall or die: each loses its own connection, and nothing else happens."""

import errno
import random
import resource
import struct

import pytest
import trio
import trio.lowlevel

from pipeline import KiB, MiB
from tests.vadpipe.nbd.server_kit import (
    MemoryExport,
    WritableMemory,
    client_of,
    connect,
    context_query,
    named,
    pattern,
    request,
    until,
)
from vadpipe.nbd import protocol
from vadpipe.nbd.protocol import Command, Option
from vadpipe.nbd.replies import PIECE
from vadpipe.nbd.server import Limits, serve
from vadpipe.nbd.session import MOST_REQUESTS

SIZE = 8 * MiB
START = struct.pack(">I", 3)


@pytest.fixture
def export():
    return MemoryExport(pattern(SIZE, [(0, 3 * MiB), (5 * MiB, 6 * MiB)]))


@pytest.fixture
def place(tmp_path):
    return tmp_path / "nbd.sock"


def option(number, body=b"", length=None, magic=protocol.OPTION_MAGIC):
    return protocol.OPTION.pack(magic, number, len(body) if length is None else length) + body


GO = START + option(Option.STRUCTURED_REPLY) + option(Option.GO, named(""))


async def still_serves(server, export):
    async with client_of(server) as client:
        await client.go()
        assert (await client.run(Command.READ, 512, KiB)).data == export.content[512 : 512 + KiB].tobytes()


HOSTILE = {
    "no magic": b"GET / HTTP/1.1\r\n\r\n",
    "unknown flags": struct.pack(">I", 0xFFFFFFFF),
    "oldstyle": struct.pack(">I", 0),
    "option without magic": START + option(Option.LIST, magic=1),
    "huge option": START + option(Option.GO, length=0xFFFFFFFF),
    "long option": START + option(Option.GO, length=1 << 20),
    "flood of options": START + option(77) * 1000,
    "flood of lists": START + option(Option.LIST) * 1000,
    "unknown export by its name": START + option(Option.EXPORT_NAME, b"missing"),
    "request without magic": GO + bytes(28),
    "huge write": GO + request(Command.WRITE, 0, 0xFFFFFFFF),
    "write that is never sent": GO + request(Command.WRITE, 0, MiB) + bytes(100),
    "half a request": GO + request(Command.READ, 0, 512)[:20],
    "good-bye": GO + request(Command.DISCONNECT),
}


@pytest.mark.parametrize("said", HOSTILE)
async def test_a_client_that_breaks_the_protocol_loses_its_connection(export, place, said):
    async with serve([export], place) as server:
        stream = await connect(server)
        await stream.send_all(HOSTILE[said])
        await stream.send_eof()
        with trio.fail_after(10):
            try:
                while await stream.receive_some(1 << 16):
                    pass
            except trio.BrokenResourceError:
                pass
        await stream.aclose()
        await until(lambda: not server.connections)
        await still_serves(server, export)


async def test_a_handshake_that_takes_too_long_is_ended(export, place):
    async with serve([export], place, limits=Limits(handshake_s=0.05)) as server:
        async with client_of(server) as client:
            await client.greet()
            assert await client.ends()
        await until(lambda: not server.connections)


async def test_a_client_that_takes_no_bytes_is_disconnected(export, place):
    async with serve([export], place, limits=Limits(stalled_s=0.05)) as server:
        stream = await connect(server)
        await stream.send_all(GO + b"".join(request(Command.READ, 0, MiB) for _ in range(20)))
        await until(lambda: server.connections == 1)
        await until(lambda: not server.connections)
        await stream.aclose()


async def test_connections_have_a_limit(export, place):
    async with serve([export], place, limits=Limits(connections=2)) as server:
        async with client_of(server) as first, client_of(server) as second, client_of(server) as third:
            await first.go()
            await second.go()
            assert await third.ends()
        await until(lambda: not server.connections)
        await still_serves(server, export)


async def test_a_flood_of_reads_is_held_back(export, place):
    """Requests are not taken while too many bytes of the client's are being read or wait to be sent."""
    export.gate = trio.Event()
    limits = Limits(most_of_one=2 * MiB)
    async with serve([export], place, limits=limits) as server, client_of(server) as client:
        await client.go()
        # not one behind the other, or they would be read one after the other
        many = [request(Command.READ, number * 70 * KiB, 64 * KiB) for number in range(80)]
        await client.stream.send_all(b"".join(many))
        await until(lambda: export.reading >= 2 * MiB - 64 * KiB)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert export.most <= 2 * MiB
        export.gate.set()
        for _ in range(80):
            reply = await client.reply(64 * KiB)
            assert reply.data == export.content[reply.offset : reply.offset + 64 * KiB].tobytes()
        assert export.most <= 2 * MiB


async def test_the_share_of_a_client_shrinks_with_their_number(export, place):
    export.gate = trio.Event()
    limits = Limits(most_of_one=4 * MiB, in_flight=4 * MiB)
    async with serve([export], place, limits=limits) as server, trio.open_nursery() as nursery:
        for _ in range(4):
            client = await nursery.start(_one_of_many, server, export)
        await until(lambda: export.reading == 4 * PIECE)
        export.gate.set()
        assert client


async def _one_of_many(server, export, task_status):
    async with client_of(server) as client:
        await client.go()
        task_status.started(client)
        await until(lambda: server.connections == 4)
        for number in range(4):
            await client.ask(Command.READ, number * 2 * MiB, PIECE)
        for _ in range(4):
            reply = await client.reply(PIECE)
            assert reply.data == export.content[reply.offset : reply.offset + PIECE].tobytes()


async def test_a_flood_of_small_requests_is_held_back(export, place):
    export.gate = trio.Event()
    async with serve([export], place) as server, client_of(server) as client:
        await client.go()
        await client.stream.send_all(b"".join(request(Command.READ, n * 8192, 512) for n in range(500)))
        await until(lambda: export.reading == MOST_REQUESTS * 512)
        export.gate.set()
        for _ in range(500):
            reply = await client.reply(512)
            assert reply.data == export.content[reply.offset : reply.offset + 512].tobytes()
        assert export.most == MOST_REQUESTS * 512


@pytest.mark.parametrize("moment", range(6))
async def test_a_client_that_is_killed_leaves_nothing_behind(export, place, moment):
    async with serve([export], place) as server:
        stream = await connect(server)
        export.gate = trio.Event() if moment % 2 else None
        await stream.send_all([START, GO, GO + request(Command.READ, 0, 6 * MiB)][moment // 2])
        await until(lambda: server.connections == 1)
        await trio.aclose_forcefully(stream)
        await until(lambda: not server.connections)
        assert export.reading == 0
        export.gate = None
        await still_serves(server, export)


async def test_an_export_that_is_full_says_so(place):
    class Full(WritableMemory):
        async def write(self, offset, content):
            raise OSError(errno.ENOSPC, "full")

    async with serve([Full(pattern(SIZE, []))], place) as server, client_of(server) as client:
        await client.go()
        await client.ask(Command.WRITE, 0, 3 * MiB)
        await client.stream.send_all(bytes(3 * MiB))
        assert (await client.reply()).error == errno.ENOSPC
        assert not (await client.run(Command.READ, 0, 512)).error


async def test_a_defect_of_an_export_costs_one_connection_and_is_logged(export, place, caplog):
    async with serve([export], place) as server:
        async with client_of(server) as client:
            await client.go()
            export.states = None  # type: ignore[assignment]
            await client.ask(Command.BLOCK_STATUS, 0, 512)
            assert await client.ends()
        await still_serves(server, export)
    assert "A connection of a client failed." in caplog.text


def session(drawn: random.Random) -> bytes:
    """What a client may say: mostly sound, with lies in lengths, fields, order and where it ends."""
    number = [0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]

    def name():
        return drawn.choice(["", "disk", "missing", "x" * drawn.choice([1, 4096, 5000])])

    said = [drawn.choice([START] * 9 + [drawn.randbytes(4)])]
    for _ in range(drawn.choice([0, 1, 2, 3, 5, 80])):
        kind = drawn.choice([*Option, 4, drawn.getrandbits(32)])
        body = drawn.choice(
            [b"", named(name(), *range(drawn.randrange(5))), context_query(name(), b"base:allocation")]
        )
        if drawn.random() < 0.2:
            body = drawn.randbytes(drawn.choice([1, 5, 40, 3000]))
        length = drawn.choice(number) if drawn.random() < 0.05 else None
        said.append(option(int(kind), body, length))
    if drawn.random() < 0.7:
        said += [option(Option.STRUCTURED_REPLY)] * drawn.randrange(2)
        said += [option(Option.SET_META_CONTEXT, context_query("", b"base:allocation"))] * drawn.randrange(2)
        said.append(option(Option.GO, named("")))
    for _ in range(drawn.choice([0, 1, 3, 10, 200])):
        command = drawn.choice([*Command, Command.READ, Command.READ, 9, drawn.getrandbits(16)])
        if command == Command.DISCONNECT and drawn.random() < 0.8:
            continue
        offset = drawn.choice([0, 4096, SIZE - 1, SIZE, 1 << 63, drawn.randrange(SIZE)])
        length = drawn.choice([0, 1, 512, 4096, 65536, PIECE + 1, *number, drawn.randrange(SIZE)])
        flags = drawn.choice([0] * 6 + [4, 8, drawn.getrandbits(16)])
        said.append(request(int(command), offset, length, flags))
        if command == Command.WRITE:
            said.append(bytes(min(length, drawn.choice([0, 512, 1 << 20]))))
    whole = b"".join(said)
    return whole[: drawn.randrange(len(whole))] if drawn.random() < 0.3 else whole


async def fuzzed(server, seed: int) -> None:
    drawn = random.Random(seed)
    stream = await connect(server)
    try:
        await stream.send_all(session(drawn))
        if drawn.random() < 0.7:
            await stream.send_eof()
            for _ in range(drawn.choice([0, 3, 1000])):
                if not await stream.receive_some(1 << 18):
                    break
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def many_fuzzed(place, export, count: int, at_once: int = 8) -> None:
    """So many sessions; afterwards nothing of them is left, and others are served.

    A session that sends more than the server takes, and reads nothing, ends as a stalled one.
    """
    async with serve([export], place, limits=Limits(handshake_s=5, stalled_s=0.5)) as server:
        seeds = iter(range(count))

        async def work():
            for seed in seeds:
                with trio.fail_after(60):
                    await fuzzed(server, seed)

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
        await until(lambda: not server.connections)
        await still_serves(server, export)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MemoryExport, WritableMemory])
async def test_fuzzed_sessions_cost_nothing_but_themselves(place, kind, caplog):
    await many_fuzzed(place, kind(pattern(SIZE, [(0, 3 * MiB)])), 300)
    assert "failed" not in caplog.text


@pytest.mark.campaign
@pytest.mark.timeout(7200)
async def test_a_hundred_thousand_fuzzed_sessions_leave_no_memory_behind(place, export, caplog):
    await many_fuzzed(place, export, 5_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await many_fuzzed(place, export, 100_000)
    assert "failed" not in caplog.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * KiB
