"""The protocol kernel: handshakes and replies from bytes alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.nbd import protocol
from vadpipe.nbd.protocol import Export, Option, OptionReply, ProtocolError, State


def drive(server: bytes, *, tls: bool = False) -> tuple[Export, bytes]:
    """Run a handshake against the bytes of a server. EOFError when they do not suffice."""
    steps = protocol.handshake("vm/disk", tls=tls)
    sent = b""
    step = next(steps)
    while True:
        answer = b""
        if isinstance(step, protocol.Send):
            sent += step.content
        elif isinstance(step, protocol.Receive):
            if len(server) < step.length:
                raise EOFError
            answer, server = server[: step.length], server[step.length :]
        try:
            step = steps.send(answer) if answer else next(steps)
        except StopIteration as done:
            return done.value, sent


def reply(option: Option, kind: int, content: bytes = b"") -> bytes:
    return protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, option, kind, len(content)) + content


GREETING = protocol.GREETING.pack(protocol.NBD_MAGIC, protocol.OPTION_MAGIC, 3)
UNSUPPORTED = protocol.REPLY_ERROR | 1
GO = reply(Option.GO, OptionReply.INFO, protocol.EXPORT_INFO.pack(0, 12345, 3)) + reply(
    Option.GO, OptionReply.ACK
)


def test_a_modern_server_agrees_on_structured_replies_and_allocation():
    context = struct.pack(">I", 7) + protocol.ALLOCATION.encode()
    server = GREETING + reply(Option.STRUCTURED_REPLY, OptionReply.ACK)
    server += reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, context)
    server += reply(Option.SET_META_CONTEXT, OptionReply.ACK)
    server += reply(Option.GO, OptionReply.INFO, protocol.BLOCK_SIZES.pack(3, 512, 4096, 1 << 20)) + GO
    export, sent = drive(server)
    assert (export.size, export.minimum, export.maximum) == (12345, 512, 1 << 20)
    assert (export.structured, export.contexts) == (True, {"base:allocation": 7})
    assert sent.count(struct.pack(">Q", protocol.OPTION_MAGIC)) == 3
    assert b"vm/disk" in sent


def test_an_old_server_is_read_with_simple_replies():
    export, _ = drive(GREETING + reply(Option.STRUCTURED_REPLY, UNSUPPORTED) + GO)
    assert (export.size, export.structured, export.contexts) == (12345, False, {})


@pytest.mark.parametrize(
    ("server", "tls", "why"),
    [
        (b"x" * 18, False, "not an NBD server"),
        (protocol.GREETING.pack(protocol.NBD_MAGIC, protocol.OPTION_MAGIC, 0), False, "fixed newstyle"),
        (GREETING + reply(Option.STARTTLS, UNSUPPORTED), True, "refused TLS"),
        (GREETING + reply(Option.GO, OptionReply.ACK), False, "STRUCTURED_REPLY is malformed"),
        (
            GREETING
            + reply(Option.STRUCTURED_REPLY, UNSUPPORTED)
            + reply(Option.GO, protocol.REPLY_ERROR | 6, b"gone"),
            False,
            r"no such export \(gone\)",
        ),
        (
            GREETING + reply(Option.STRUCTURED_REPLY, UNSUPPORTED) + reply(Option.GO, OptionReply.ACK),
            False,
            "did not tell the size",
        ),
    ],
)
def test_a_refused_or_broken_handshake_says_why(server, tls, why):
    with pytest.raises(ProtocolError, match=why):
        drive(server, tls=tls)


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_end_a_handshake_in_an_export_or_an_error(content, good):
    server = [b"", GREETING, GREETING + reply(Option.STRUCTURED_REPLY, UNSUPPORTED), GREETING][good] + content
    try:
        export, _ = drive(server)
    except (ProtocolError, EOFError):
        return
    assert export.size >= 0


def test_extents_of_another_context_are_ignored():
    content = struct.pack(">IIIII", 7, 4096, 0, 8192, 3)
    assert list(protocol.block_status(content, 7)) == [(4096, State(0)), (8192, State.HOLE | State.ZERO)]
    assert list(protocol.block_status(content, 8)) == []
    with pytest.raises(ProtocolError, match="block status"):
        protocol.block_status(content[:-1], 7)
