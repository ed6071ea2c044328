"""An export in memory, and a client that says whatever a test wants."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline.errors import IntegrityError
from vadpipe.nbd import protocol
from vadpipe.nbd.protocol import Chunk, Command, Option, OptionReply
from vadpipe.nbd.server import Address, Server

HOLE = 3  # HOLE and ZERO
PIECE = 64 * 1024
EVERYTHING_S = 20


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: no witness (libnbd-bin and qemu-utils have them)")
    return found


async def said(name: str, *words: object, fails: bool = False) -> str:
    """What a tool prints."""
    done = await trio.run_process(
        [tool(name), *map(str, words)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    text = (done.stdout + done.stderr).decode()
    assert bool(done.returncode) == fails, text
    return text


async def qemu_map(uri: str) -> list[tuple[int, int, bool]]:
    """Offset, length and whether it is data, as qemu-img reads base:allocation."""
    text = await said("qemu-img", "map", "--output=json", "--image-opts", image_options(uri))
    return [(each["start"], each["length"], not each["zero"]) for each in json.loads(text)]


def image_options(uri: str) -> str:
    """For qemu-img: a raw image of this server; QEMU's own URIs name a default format by probing."""
    scheme, _, rest = uri.partition(":///" if "unix" in uri else "://")
    place, _, query = rest.partition("?socket=")
    if "unix" in scheme:
        return f"driver=raw,file.driver=nbd,file.path={query},file.export={place}"
    server, _, export = place.partition("/")
    host, _, port = server.rpartition(":")
    return f"driver=raw,file.driver=nbd,file.host={host},file.port={port},file.export={export}"


@dataclass
class MemoryExport:
    """An array as an export; pieces of 64 KiB that are zero are holes. Reads of `bad` pieces fail.

    `gate`: reads wait for it. `most`: the most bytes that were being read at once.
    """

    content: np.ndarray
    name: str = "disk"
    bad: set[int] = field(default_factory=set)
    gate: trio.Event | None = None
    reading: int = 0
    most: int = 0
    expected: list[tuple[int, int]] = field(default_factory=list)

    description = "an array"

    @property
    def size(self) -> int:
        return len(self.content)

    def read_nowait(self, offset, length):
        if self.gate is not None or self.bad:
            return None
        return self._parts(offset, length)

    async def read(self, offset, length):
        self.reading += length
        self.most = max(self.most, self.reading)
        try:
            await trio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            if self.bad & set(range(offset // PIECE, -(-(offset + length) // PIECE))):
                raise IntegrityError("It is damaged.")
            return self._parts(offset, length)
        finally:
            self.reading -= length

    def _parts(self, offset, length):
        parts = []
        for size, state in self._states(offset, length):
            parts.append(size if state else memoryview(self.content[offset : offset + size].tobytes()))
            offset += size
        return parts

    def expect(self, offset, length):
        self.expected.append((offset, length))

    async def states(self, offset, length):
        await trio.lowlevel.checkpoint()
        return self._states(offset, length)

    def _states(self, offset, length):
        found = []
        end = offset + length
        while offset < end:
            stop = min((offset // PIECE + 1) * PIECE, end)
            piece = self.content[offset // PIECE * PIECE : (offset // PIECE + 1) * PIECE]
            state = 0 if piece.any() else HOLE
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + stop - offset, state)
            else:
                found.append((stop - offset, state))
            offset = stop
        return found


class WritableMemory(MemoryExport):
    """The same, which can be changed."""

    flushes = 0

    async def write(self, offset, content):
        await trio.lowlevel.checkpoint()
        self.content[offset : offset + len(content)] = np.frombuffer(content, np.uint8)

    async def zero(self, offset, length):
        await trio.lowlevel.checkpoint()
        self.content[offset : offset + length] = 0

    async def flush(self):
        await trio.lowlevel.checkpoint()
        self.flushes += 1


@dataclass
class Reply:
    """The end of a reply, and what came with it."""

    offset: int = 0
    error: int = 0
    data: bytes = b""
    holes: list[tuple[int, int]] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    chunks: int = 0


class Client:
    """One connection, byte by byte."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.structured = False
        self._rest = b""

    async def exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            more = await self.stream.receive_some(1 << 16)
            if not more:
                raise EOFError
            self._rest += more
        content, self._rest = self._rest[:size], self._rest[size:]
        return content

    async def ends(self) -> bool:
        """Whether the server closes the connection, after whatever it still says."""
        try:
            while True:
                if not await self.stream.receive_some(1 << 16):
                    return True
        except trio.BrokenResourceError:
            return True

    async def greet(self, flags: int = 3) -> None:
        await self.exactly(18)
        await self.stream.send_all(struct.pack(">I", flags))

    async def option(self, number: int, body: bytes = b"") -> list[tuple[int, bytes]]:
        """The replies to an option, with the last one."""
        await self.stream.send_all(protocol.OPTION.pack(protocol.OPTION_MAGIC, number, len(body)) + body)
        found = []
        while True:
            _, about, kind, length = protocol.OPTION_REPLY.unpack(
                await self.exactly(protocol.OPTION_REPLY.size)
            )
            assert about == number
            found.append((kind, await self.exactly(length)))
            if kind == OptionReply.ACK or kind & protocol.REPLY_ERROR:
                return found

    async def go(self, name: str = "", *, structured: bool = True) -> None:
        await self.greet()
        if structured:
            await self.option(Option.STRUCTURED_REPLY)
            self.structured = True
            await self.option(Option.SET_META_CONTEXT, context_query(name, b"base:allocation"))
        assert (await self.option(Option.GO, named(name)))[-1][0] == OptionReply.ACK

    async def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        await self.stream.send_all(request(command, offset, length, flags))

    async def run(self, command: int, offset: int = 0, length: int = 0, flags: int = 0) -> Reply:
        await self.ask(command, offset, length, flags)
        return await self.reply(length if command == Command.READ else 0)

    async def reply(self, length: int = 0) -> Reply:
        """A reply to a request for so many bytes; its cookie says from which offset on."""
        (magic,) = struct.unpack(">I", await self.exactly(4))
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            error, cookie = protocol.SIMPLE_REPLY.unpack(await self.exactly(12))
            return Reply(cookie, error, await self.exactly(0 if error else length))
        found = Reply()
        image = bytearray(length)
        while True:
            assert magic == protocol.STRUCTURED_REPLY_MAGIC
            flags, kind, found.offset, size = protocol.STRUCTURED_REPLY.unpack(await self.exactly(16))
            body = await self.exactly(size)
            found.chunks += 1
            if kind == Chunk.DATA:
                place = int.from_bytes(body[:8], "big") - found.offset
                image[place : place + size - 8] = body[8:]
            elif kind == Chunk.HOLE:
                found.holes.append(protocol.HOLE.unpack(body))
            elif kind == Chunk.BLOCK_STATUS:
                found.extents = list(struct.iter_unpack(">II", body[4:]))
            elif kind & 0x8000:
                found.error = int.from_bytes(body[:4], "big")
            if flags & protocol.REPLY_DONE:
                found.data = bytes(image)
                return found
            (magic,) = struct.unpack(">I", await self.exactly(4))


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Its cookie is its offset."""
    return protocol.REQUEST.pack(protocol.REQUEST_MAGIC, flags, command, offset, offset, length)


def named(name: str, *wanted: int) -> bytes:
    encoded = name.encode()
    return struct.pack(f">I{len(encoded)}sH{len(wanted)}H", len(encoded), encoded, len(wanted), *wanted)


def context_query(name: str, *queries: bytes) -> bytes:
    encoded = name.encode()
    counted = b"".join(struct.pack(">I", len(query)) + query for query in queries)
    return struct.pack(">I", len(encoded)) + encoded + struct.pack(">I", len(queries)) + counted


async def connect(server: Server) -> trio.SocketStream:
    if isinstance(server.where, Address):
        return await trio.open_tcp_stream(server.where.host, server.where.port)
    return await trio.open_unix_socket(str(server.where))


@asynccontextmanager
async def client_of(server: Server):
    async with await connect(server) as stream:
        with trio.fail_after(EVERYTHING_S):
            yield Client(stream)


async def until(condition) -> None:
    with trio.fail_after(EVERYTHING_S):
        while not condition():  # noqa: ASYNC110 - of a server, which tells nobody
            await trio.sleep(0.005)


def pattern(size: int, data: Sequence[tuple[int, int]], seed: int = 3) -> np.ndarray:
    """Zeros, with random bytes in these ranges."""
    content = np.zeros(size, np.uint8)
    random = np.random.default_rng(seed)
    for start, end in data:
        content[start:end] = random.integers(1, 256, end - start, np.uint8)
    return content


def saved(content: np.ndarray, path: Path) -> Path:
    content.tofile(path)
    return path
