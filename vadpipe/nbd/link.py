"""A socket to an NBD server, plain or in TLS.

Bytes are received straight into the caller's memory, as many as the kernel has, and the event loop is asked only
when there are none. trio's streams copy every byte once more, and visit the loop for each piece.
"""

from __future__ import annotations

import socket
import ssl

import trio


class LinkLost(Exception):
    """The connection ended; the text is the reason."""


class Link:
    """A connected socket. One task may receive while another one sends."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    @classmethod
    async def open(cls, host: str, port: int) -> Link:
        """Connect to a TCP port, or to a Unix socket where `host` begins with a slash. Raises OSError."""
        stream: trio.SocketStream
        if host.startswith("/"):
            stream = await trio.open_unix_socket(host)
        else:
            stream = await trio.open_tcp_stream(host, port)
        return cls(socket.socket(fileno=stream.socket.detach()))

    async def start_tls(self, context: ssl.SSLContext, name: str | None) -> None:
        """Shake hands. Raises ssl.SSLError for a certificate that is not trusted, LinkLost."""
        secured = context.wrap_socket(self._socket, server_hostname=name, do_handshake_on_connect=False)
        self._socket = secured
        while True:
            try:
                return secured.do_handshake()
            except ssl.SSLWantReadError:
                await self.wait()
            except ssl.SSLWantWriteError:
                await self._wait_writable()

    def receive_nowait(self, target: memoryview) -> int:
        """Fill the beginning of `target`, which is not empty. 0: nothing has come. Raises LinkLost."""
        try:
            count = self._socket.recv_into(target)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as exc:
            raise LinkLost(f"the connection broke ({exc})") from exc
        if not count:
            raise LinkLost("the server closed the connection")
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

    def close(self) -> None:
        """Close it; whoever waits for it gets LinkLost."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except trio.ClosedResourceError:
            raise LinkLost("it was closed") from None
