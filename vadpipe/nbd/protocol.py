"""The NBD protocol as bytes: fixed newstyle handshake, requests, simple and structured replies. No I/O.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final, NoReturn

NBD_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

GREETING: Final = struct.Struct(">QQH")
OPTION: Final = struct.Struct(">QII")  # magic, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, type, length
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REPLY_MAGIC: Final = struct.Struct(">I")
SIMPLE_REPLY: Final = struct.Struct(">IQ")  # error, cookie
STRUCTURED_REPLY: Final = struct.Struct(">HHQI")  # flags, type, cookie, length
EXPORT_INFO: Final = struct.Struct(">HQH")  # information type, size, transmission flags
BLOCK_SIZES: Final = struct.Struct(">HIII")  # information type, minimum, preferred, maximum
HOLE: Final = struct.Struct(">QI")  # offset, length

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
REPLY_ERROR: Final = 1 << 31
REPLY_DONE: Final = 1  # flag of the last chunk of a structured reply

# Longer than any legal option reply, and than any chunk of a reply besides data.
MAX_MESSAGE: Final = 1 << 20
ALLOCATION: Final = "base:allocation"


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4


class Info(IntEnum):
    """What a server tells of an export in answer to INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Refusal(IntEnum):
    """Why a server refuses an option."""

    UNSUPPORTED = 1
    POLICY = 2
    INVALID = 3
    TLS_REQUIRED = 5
    UNKNOWN_EXPORT = 6
    TOO_BIG = 9


OPTION_ERRORS: Final = {
    1: "the server does not support it",
    2: "the server's policy forbids it",
    3: "the request is invalid",
    4: "the platform does not support it",
    5: "the server requires TLS",
    6: "there is no such export",
    7: "the server is shutting down",
    8: "the server requires knowledge of block sizes",
    9: "the request is too large",
}


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1
    NO_HOLE = 2
    DONT_FRAGMENT = 4
    ONE_EXTENT = 8
    FAST_ZERO = 16


class Transmission(IntFlag):
    """What the server says of an export, in `Export.flags`."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    FLUSH = 1 << 2
    FUA = 1 << 3
    TRIM = 1 << 5
    WRITE_ZEROES = 1 << 6
    DONT_FRAGMENT = 1 << 7
    MULTI_CONN = 1 << 8
    CACHE = 1 << 10


class Chunk(IntEnum):
    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


class State(IntFlag):
    """Flags of an extent in the context base:allocation."""

    HOLE = 1
    ZERO = 2


class ProtocolError(Exception):
    """The peer broke the protocol, or refused what is needed. The text is a clause without a full stop."""


@dataclass(frozen=True)
class Send:
    """The handshake wants to send bytes."""

    content: bytes


@dataclass(frozen=True)
class Receive:
    """The handshake wants exactly so many bytes."""

    length: int


@dataclass(frozen=True)
class StartTls:
    """The handshake wants the stream wrapped in TLS."""


@dataclass
class Export:
    """The result of a handshake. Sizes in bytes; `maximum` is the largest request."""

    size: int = -1
    flags: int = 0
    minimum: int = 1
    maximum: int = 32 << 20  # what every server takes, unless it says otherwise
    structured: bool = False
    contexts: dict[str, int] = field(default_factory=dict)


Steps = Generator[Send | Receive | StartTls, bytes, Export]


def handshake(name: str, *, tls: bool, contexts: Sequence[str] = ()) -> Steps:
    """The client's handshake as a generator: it yields steps and is sent the bytes of each `Receive`.

    Args:
        name: The export.
        tls: Whether TLS is required; without it the server is not asked for it.
        contexts: Meta contexts to ask for beside base:allocation; `Export.contexts` says which there are.

    Returns:
        The export, ready for requests.

    Raises:
        ProtocolError: The peer is not an NBD server, or refused.
    """
    magic, second, flags = GREETING.unpack((yield Receive(GREETING.size)))
    if magic != NBD_MAGIC or second != OPTION_MAGIC:
        raise ProtocolError("it is not an NBD server of the newstyle")
    if not flags & FIXED_NEWSTYLE:
        raise ProtocolError("the server does not speak the fixed newstyle handshake")
    yield Send(struct.pack(">I", flags & (FIXED_NEWSTYLE | NO_ZEROES)))
    export = Export()
    if tls:
        if (yield from _ask(Option.STARTTLS, b"")) is None:
            raise ProtocolError("the server refused TLS")
        yield StartTls()
    export.structured = (yield from _ask(Option.STRUCTURED_REPLY, b"")) is not None
    encoded = name.encode()
    if export.structured:
        wanted = [context.encode() for context in (ALLOCATION, *contexts)]
        query = struct.pack(">I", len(encoded)) + encoded + struct.pack(">I", len(wanted))
        query += b"".join(struct.pack(">I", len(context)) + context for context in wanted)
        for kind, content in (yield from _ask(Option.SET_META_CONTEXT, query)) or ():
            if kind == OptionReply.META_CONTEXT and len(content) > 4:
                number = int.from_bytes(content[:4], "big")
                export.contexts[content[4:].decode(errors="replace")] = number
    query = struct.pack(">I", len(encoded)) + encoded + struct.pack(">HH", 1, 3)  # NBD_INFO_BLOCK_SIZE
    for kind, content in (yield from _ask(Option.GO, query, needed=f"the export {name!r}")) or ():
        if kind == OptionReply.INFO and content[:2] == b"\0\0" and len(content) == EXPORT_INFO.size:
            _, export.size, export.flags = EXPORT_INFO.unpack(content)
        elif kind == OptionReply.INFO and content[:2] == b"\0\3" and len(content) == BLOCK_SIZES.size:
            _, export.minimum, _, export.maximum = BLOCK_SIZES.unpack(content)
    if export.size < 0:
        raise ProtocolError("the server did not tell the size of the export")
    return export


def _ask(
    option: Option, content: bytes, needed: str = ""
) -> Generator[Send | Receive | StartTls, bytes, list[tuple[int, bytes]] | None]:
    """Send an option. Returns the replies before its acknowledgement; None if it was refused and not `needed`."""
    yield Send(OPTION.pack(OPTION_MAGIC, option, len(content)) + content)
    replies: list[tuple[int, bytes]] = []
    while True:
        magic, about, kind, length = OPTION_REPLY.unpack((yield Receive(OPTION_REPLY.size)))
        if magic != OPTION_REPLY_MAGIC or about != option or length > MAX_MESSAGE:
            raise ProtocolError(f"the server's answer to option {option.name} is malformed")
        body = (yield Receive(length)) if length else b""
        if kind & REPLY_ERROR:
            if not needed:
                return None
            reason = OPTION_ERRORS.get(kind & ~REPLY_ERROR, f"error {kind & ~REPLY_ERROR}")
            text = body.decode(errors="replace")
            raise ProtocolError(f"the server refused {needed}: {reason}{f' ({text})' if text else ''}")
        if kind == OptionReply.ACK:
            return replies
        replies.append((kind, body))


def request(command: Command, cookie: int, offset: int = 0, length: int = 0) -> bytes:
    """One request; the data of a write follows it. `cookie` comes back in its reply."""
    return REQUEST.pack(REQUEST_MAGIC, 0, command, cookie, offset, length)


def block_status(content: bytes, context: int) -> Iterable[tuple[int, State]]:
    """(length, state) of consecutive extents in a block status chunk. Raises ProtocolError."""
    if len(content) < 12 or len(content) % 8 != 4:
        malformed("block status")
    if int.from_bytes(content[:4], "big") != context:
        return []
    return [(length, State(flags & 3)) for length, flags in struct.iter_unpack(">II", content[4:])]


def malformed(what: str) -> NoReturn:
    raise ProtocolError(f"the server sent a malformed {what}")
