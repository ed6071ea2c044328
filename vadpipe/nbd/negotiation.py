"""The handshake as a server does it, without I/O: options in, an agreement out."""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Final

from .export import Export, WritableExport
from .protocol import (
    ALLOCATION,
    BLOCK_SIZES,
    EXPORT_INFO,
    FIXED_NEWSTYLE,
    GREETING,
    NBD_MAGIC,
    NO_ZEROES,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REPLY_ERROR,
    Info,
    Option,
    OptionReply,
    ProtocolError,
    Receive,
    Refusal,
    Send,
    StartTls,
    Transmission,
)

LARGEST_REQUEST: Final = 32 << 20  # what clients assume of every server
PREFERRED: Final = 64 << 10  # the usual chunk of a repository
CONTEXT_ID: Final = 1

_MOST_OPTIONS: Final = 64  # clients send about six
_LONGEST_OPTION: Final = 16 << 10  # a name has at most 4096 bytes, and an option one name and some queries
_LONGEST_NAME: Final = 4096

_LENGTH = struct.Struct(">I")
_COUNT = struct.Struct(">H")


@dataclass
class Agreement:
    """What client and server agreed on. `export`: None when the client said good-bye."""

    export: Export | None = None
    structured: bool = False
    allocation: bool = False


Steps = Generator[Send | Receive | StartTls, bytes, Agreement]


def negotiate(exports: Mapping[str, Export], *, tls: bool) -> Steps:
    """The server's handshake as a generator: it yields steps and is sent the bytes of each `Receive`.

    Args:
        exports: What is offered, by name. Where it is one export only, the empty name means it, too.
        tls: Whether TLS is required, and nothing is told without it.

    Raises:
        ProtocolError: The client broke the protocol, or asks for more than a client needs.
    """
    yield Send(GREETING.pack(NBD_MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES))
    (flags,) = _LENGTH.unpack((yield Receive(4)))
    if flags & ~(FIXED_NEWSTYLE | NO_ZEROES) or not flags & FIXED_NEWSTYLE:
        raise ProtocolError("the client does not speak the fixed newstyle handshake")
    state = _Negotiation(exports, locked=tls)
    for _ in range(_MOST_OPTIONS):
        magic, option, length = OPTION.unpack((yield Receive(OPTION.size)))
        if magic != OPTION_MAGIC or length > _LONGEST_OPTION:
            raise ProtocolError("the client sent a malformed option")
        body = (yield Receive(length)) if length else b""
        if option == Option.EXPORT_NAME:
            export = None if state.locked else state.find(body)
            if export is None:
                raise ProtocolError("the client asked for an export that there is not")
            padding = b"" if flags & NO_ZEROES else bytes(124)
            yield Send(struct.pack(">QH", export.size, transmission(export)) + padding)
            return Agreement(export, state.agreed.structured, state.agreed.allocation)
        if option == Option.ABORT:
            yield Send(_reply(option, OptionReply.ACK))
            return Agreement()
        if option == Option.STARTTLS and state.locked and not body:
            yield Send(_reply(option, OptionReply.ACK))
            yield StartTls()
            state = _Negotiation(exports, locked=False)  # nothing that was said in the clear counts
            continue
        yield Send(state.answer(option, body))
        if state.agreed.export is not None:
            return state.agreed
    raise ProtocolError(f"the client sent more than {_MOST_OPTIONS} options")


def transmission(export: Export) -> Transmission:
    """The flags of an export."""
    flags = Transmission.HAS_FLAGS | Transmission.MULTI_CONN | Transmission.CACHE | Transmission.DONT_FRAGMENT
    if not isinstance(export, WritableExport):
        return flags | Transmission.READ_ONLY
    return flags | Transmission.FLUSH | Transmission.FUA | Transmission.TRIM | Transmission.WRITE_ZEROES


@dataclass
class _Negotiation:
    """`locked`: TLS has to come first. `asked`: the export of which allocation was agreed."""

    exports: Mapping[str, Export]
    locked: bool
    agreed: Agreement = field(default_factory=Agreement)
    asked: Export | None = None

    def find(self, name: bytes) -> Export | None:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if not text and text not in self.exports and len(self.exports) == 1:
            return next(iter(self.exports.values()))
        return self.exports.get(text)

    def answer(self, option: int, body: bytes) -> bytes:
        if self.locked:
            return _refused(option, Refusal.TLS_REQUIRED, "this server requires TLS")
        try:
            match option:
                case Option.LIST:
                    return self._list(body)
                case Option.INFO | Option.GO:
                    return self._info(option, body)
                case Option.STRUCTURED_REPLY:
                    return self._structure(body)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    return self._contexts(option, body)
                case Option.STARTTLS:
                    return _refused(option, Refusal.POLICY, "this server has no TLS, or it is on already")
        except (struct.error, ValueError):
            return _refused(option, Refusal.INVALID, "the option is malformed")
        return _refused(option, Refusal.UNSUPPORTED, "")

    def _list(self, body: bytes) -> bytes:
        if body:
            raise ValueError
        names = [_counted(name.encode()) for name in self.exports]
        return b"".join(_reply(Option.LIST, OptionReply.SERVER, name) for name in names) + _reply(
            Option.LIST, OptionReply.ACK
        )

    def _structure(self, body: bytes) -> bytes:
        if body:
            raise ValueError
        self.agreed.structured = True
        return _reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _info(self, option: int, body: bytes) -> bytes:
        name, rest = _name_of(body)
        (count,) = _COUNT.unpack_from(rest)
        if len(rest) != _COUNT.size * (1 + count):
            raise ValueError
        wanted = {number for (number,) in _COUNT.iter_unpack(rest[_COUNT.size :])}
        export = self.find(name)
        if export is None:
            return _refused(option, Refusal.UNKNOWN_EXPORT, "there is no such export")
        told = [EXPORT_INFO.pack(Info.EXPORT, export.size, transmission(export))]
        if Info.NAME in wanted:
            told.append(_COUNT.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted:
            told.append(_COUNT.pack(Info.DESCRIPTION) + export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            told.append(BLOCK_SIZES.pack(Info.BLOCK_SIZE, 1, PREFERRED, LARGEST_REQUEST))
        if option == Option.GO:
            self.agreed.export = export
            self.agreed.allocation = self.agreed.allocation and self.asked is export
        return b"".join(_reply(option, OptionReply.INFO, one) for one in told) + _reply(
            option, OptionReply.ACK
        )

    def _contexts(self, option: int, body: bytes) -> bytes:
        name, rest = _name_of(body)
        (count,) = _LENGTH.unpack_from(rest)
        place = _LENGTH.size
        queries: list[bytes] = []
        while len(queries) < count:
            (length,) = _LENGTH.unpack_from(rest, place)
            place += _LENGTH.size + length
            if place > len(rest):
                raise ValueError
            queries.append(rest[place - length : place])
        setting = option == Option.SET_META_CONTEXT
        if place != len(rest) or (setting and not self.agreed.structured):
            raise ValueError
        if setting:
            self.agreed.allocation, self.asked = False, None
        export = self.find(name)
        if export is None:
            return _refused(option, Refusal.UNKNOWN_EXPORT, "there is no such export")
        context = ALLOCATION.encode()
        told = context in queries or (not setting and (not queries or b"base:" in queries))
        if setting and told:
            self.agreed.allocation, self.asked = True, export
        number = CONTEXT_ID if setting else 0
        listed = _reply(option, OptionReply.META_CONTEXT, _LENGTH.pack(number) + context) if told else b""
        return listed + _reply(option, OptionReply.ACK)


def _counted(name: bytes) -> bytes:
    return _LENGTH.pack(len(name)) + name


def _name_of(body: bytes) -> tuple[bytes, bytes]:
    """The name that an option begins with, and the rest of it."""
    (length,) = _LENGTH.unpack_from(body)
    end = _LENGTH.size + length
    if length > _LONGEST_NAME or end > len(body):
        raise ValueError
    return body[_LENGTH.size : end], body[end:]


def _reply(option: int, kind: int, content: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(content)) + content


def _refused(option: int, reason: Refusal, text: str) -> bytes:
    return _reply(option, REPLY_ERROR | reason, text.encode())
