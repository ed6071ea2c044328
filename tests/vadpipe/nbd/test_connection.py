"""One connection: what a cancelled request leaves behind."""

import socket

import trio
import trio.testing

from pipeline.units import MiB
from vadpipe.nbd import protocol
from vadpipe.nbd.connection import Connection, Request
from vadpipe.nbd.link import Link
from vadpipe.nbd.protocol import Command, Export


async def test_a_request_that_is_cancelled_before_it_was_sent_is_not_waited_for():
    ours, theirs = socket.socketpair()
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    connection = Connection(Link(ours), Export(size=64 * MiB), timeout_s=60)
    content = memoryview(bytes(16 * MiB))  # more than the socket holds
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        written = Request(0, len(content), None, content=content, reads=False)
        nursery.start_soon(connection.run, Command.WRITE, written)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.run(Command.READ, Request(0, 4096, memoryview(bytearray(4096))))
        assert scope.cancelled_caught
        left = protocol.REQUEST.size + len(content)
        while left:
            left -= len(await server.receive_some(min(left, MiB)))
        magic = protocol.REPLY_MAGIC.pack(protocol.SIMPLE_REPLY_MAGIC)
        await server.send_all(magic + protocol.SIMPLE_REPLY.pack(0, 1))
        await written.ended.wait()
        assert not connection._requests
        nursery.cancel_scope.cancel()
