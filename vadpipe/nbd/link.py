"""A socket between an NBD client and a server, plain or in TLS.

Bytes are received straight into the caller's memory, as many as the kernel has, and the event loop is asked only
when there are none. trio's streams copy every byte once more, and visit the loop for each piece.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Sequence

import trio

_BUFFERS = 512  # of one call; Linux takes 1024


class LinkLost(Exception):
    """The connection ended; the text is the reason."""


class Link:
    """A connected socket. One task may receive while another one sends.

    Args:
        connected: The socket.
        peer: What the other side is called in messages.
        stalled_s: The connection is lost when the other side takes no byte for so long.
    """

    def __init__(
        self, connected: socket.socket, *, peer: str = "server", stalled_s: float = math.inf
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._peer = peer
        self._stalled_s = stalled_s

    @classmethod
    async def open(cls, host: str, port: int) -> Link:
        """Connect to a TCP port, or to a Unix socket where `host` begins with a slash. Raises OSError."""
        stream: trio.SocketStream
        if host.startswith("/"):
            stream = await trio.open_unix_socket(host)
        else:
            stream = await trio.open_tcp_stream(host, port)
        return cls(socket.socket(fileno=stream.socket.detach()))

    async def start_tls(
        self, context: ssl.SSLContext, name: str | None, *, server_side: bool = False
    ) -> None:
        """Shake hands. Raises ssl.SSLError for a certificate that is not trusted, LinkLost."""
        secured = context.wrap_socket(
            self._socket, server_hostname=name, server_side=server_side, do_handshake_on_connect=False
        )
        self._socket = secured
        while True:
            try:
                return secured.do_handshake()
            except ssl.SSLWantReadError:
                await self.wait()
            except ssl.SSLWantWriteError:
                await self._wait_writable()
            except ssl.SSLError:
                raise
            except OSError as exc:
                raise LinkLost(f"the connection broke ({exc})") from exc

    def receive_nowait(self, target: memoryview) -> int:
        """Fill the beginning of `target`, which is not empty. 0: nothing has come. Raises LinkLost."""
        try:
            count = self._socket.recv_into(target)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as exc:
            raise LinkLost(f"the connection broke ({exc})") from exc
        if not count:
            raise LinkLost(f"the {self._peer} closed the connection")
        return count

    async def wait(self) -> None:
        """Wait until there may be something to receive. Raises LinkLost."""
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except trio.ClosedResourceError:
            raise LinkLost("it was closed") from None

    async def exactly(self, length: int) -> bytes:
        """So many bytes. Raises LinkLost."""
        content = bytearray(length)
        rest = memoryview(content)
        while rest:
            count = self.receive_nowait(rest)
            if not count:
                await self.wait()
            rest = rest[count:]
        return bytes(content)

    async def send_all(self, content: bytes | memoryview) -> None:
        """Raises LinkLost."""
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait_writable()
            except ssl.SSLWantReadError:  # the receiver has to read first, and it does
                await trio.sleep(0.001)
            except OSError as exc:
                raise LinkLost(f"the connection broke ({exc})") from exc

    async def send_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send all parts, without joining them first. Raises LinkLost."""
        if isinstance(self._socket, ssl.SSLSocket):
            for part in parts:
                await self.send_all(part)
            return
        for start in range(0, len(parts), _BUFFERS):
            await self._send_some(list(parts[start : start + _BUFFERS]))

    async def _send_some(self, left: list[bytes | memoryview]) -> None:
        size = sum(map(len, left))
        while True:
            try:
                sent = self._socket.sendmsg(left)
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as exc:
                raise LinkLost(f"the connection broke ({exc})") from exc
            size -= sent
            if not size:
                return
            gone = 0
            while sent >= len(left[gone]):
                sent -= len(left[gone])
                gone += 1
            left = left[gone:]
            left[0] = memoryview(left[0])[sent:]

    def close(self) -> None:
        """Close it; whoever waits for it gets LinkLost."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self._stalled_s) as patience:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                raise LinkLost("it was closed") from None
        if patience.cancelled_caught:
            raise LinkLost(f"the {self._peer} took nothing for {self._stalled_s:g} s")
