"""A server of exports over TCP, TLS or a Unix socket. What a client does costs at most its own connection."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket as sockets
import ssl
import stat
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from pipeline.errors import ConfigError
from vadpipe.background import in_background
from vadpipe.files import FILE_MODE

from .client import DEFAULT_PORT
from .export import Export
from .link import Link, LinkLost
from .negotiation import Agreement, negotiate
from .protocol import ProtocolError, Receive, Send, StartTls
from .replies import PIECE
from .session import Session

log = logging.getLogger(__name__)

_BACKLOG: Final = 128

# Of a Unix socket; by default 208 KiB, less than one reply to nbdcopy. With it the event loop took 0.52 CPU-seconds
# for 1.3 GiB instead of 0.60 (medians of 5 rounds). TCP finds its own.
_SEND_BUFFER: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Args:
        connections: At once; further ones are closed at once. nbdcopy opens four.
        in_flight: Bytes of requests of all clients together; each has its share, and at least one MiB.
        most_of_one: Bytes of requests of one client.
        handshake_s: A handshake that takes longer ends the connection.
        stalled_s: A client that takes no byte of a reply for so long is disconnected.
    """

    connections: int = 256
    in_flight: int = 256 << 20
    most_of_one: int = 4 << 20
    handshake_s: float = 10.0
    stalled_s: float = 60.0


@dataclass(frozen=True)
class Address:
    """A TCP port; port 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Address:
        """From HOST, HOST:PORT or [HOST]:PORT. Raises ConfigError."""
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
            host, port = text, str(DEFAULT_PORT)
        if not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
            raise ConfigError(
                f"{text!r} is no address to listen on.", remedy="Write HOST:PORT or [HOST]:PORT."
            )
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Server:
    """A running server; see `serve`."""

    def __init__(
        self, exports: Mapping[str, Export], where: Address | Path, tls: ssl.SSLContext | None
    ) -> None:
        self.exports = exports
        self.where = where
        self.connections = 0
        self._tls = tls

    def uri(self, name: str) -> str:
        """How clients call an export."""
        scheme = "nbds" if self._tls is not None else "nbd"
        path = quote(name, safe=":")
        if isinstance(self.where, Path):
            return f"{scheme}+unix:///{path}?socket={quote(str(self.where))}"
        return f"{scheme}://{self.where}/{path}"


@asynccontextmanager
async def serve(
    exports: Sequence[Export],
    listen: Address | Path | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Server]:
    """Serve exports by their names, until the block ends; then clients are disconnected.

    Args:
        exports: What is served. A single one is also what a client gets that names none.
        listen: A TCP port, or the path of a Unix socket that is made; None: port 10809 of 127.0.0.1.
        tls: Settings of a TLS server, which make TLS required.
        limits: What clients may take.

    Raises:
        ConfigError: The address cannot be had, or others than this machine could reach it without TLS.
    """
    by_name = {export.name: export for export in exports}
    listeners, where = await _listen(_place(listen), secured=tls is not None)
    server = Server(by_name, where, tls)
    try:
        async with in_background() as nursery:
            handle = partial(_serve_client, server, limits or Limits(), tls)
            nursery.start_soon(partial(trio.serve_listeners, handle, listeners, handler_nursery=nursery))
            yield server
    finally:
        for listener in listeners:
            listener.socket.close()
        if isinstance(where, Path):
            with contextlib.suppress(OSError):
                where.unlink()


def tls_server(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """Settings of a TLS server with a certificate.

    Args:
        certificate: Of the server, PEM, with those between it and its authority.
        key: Of the certificate, PEM.
        clients: The authority whose certificates clients must have; None: any client may connect.

    Raises:
        ConfigError: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"The TLS files cannot be used: {getattr(exc, 'strerror', None) or exc}.",
            remedy="Name a certificate and its key without a password, both PEM.",
        ) from exc
    return context


def tls_with_shared_keys(path: Path) -> ssl.SSLContext:
    """Settings of a TLS server whose clients show a key that both know.

    Args:
        path: Lines of `name:key`, the key hexadecimal, as `psktool` writes them.

    Raises:
        ConfigError: The file cannot be used, or this Python cannot do it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ask = getattr(context, "set_psk_server_callback", None)
    if ask is None:
        raise ConfigError(
            "TLS with shared keys needs Python 3.13 or newer.",
            remedy="Use a certificate, or serve on a Unix socket or 127.0.0.1 behind a TLS proxy.",
        )
    try:
        lines = [line.split(":", 1) for line in path.read_text().splitlines() if line.strip()]
        keys = {name: bytes.fromhex(key) for name, key in lines}
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"The keys in {path} cannot be used.", remedy="Write lines of NAME:HEXADECIMAL-KEY."
        ) from exc
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # Python's callback is for its way of naming the key
    context.set_ciphers("kECDHEPSK:!eNULL")
    ask(lambda name: keys.get(name or "", b""))
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _place(listen: Address | Path | None) -> Address | Path:
    return listen.absolute() if isinstance(listen, Path) else listen or Address()


async def _listen(
    where: Address | Path, *, secured: bool
) -> tuple[list[trio.SocketListener], Address | Path]:
    """Begin to listen. Returns the place with the port that was chosen. Raises ConfigError."""
    try:
        if isinstance(where, Path):
            return [trio.SocketListener(_unix_socket(where))], where
        found = await trio.socket.getaddrinfo(where.host, where.port, type=sockets.SOCK_STREAM)
        hosts = {str(each[4][0]) for each in found}
        if not secured and not all(ipaddress.ip_address(host).is_loopback for host in hosts):
            raise ConfigError(
                f"{where} can be reached by other machines, and everybody there could read the disks.",
                remedy="Use TLS (--tls-certificate, --tls-key), a Unix socket (--socket), or 127.0.0.1.",
            )
        listeners = await trio.open_tcp_listeners(where.port, host=where.host)
        if where.port:
            return listeners, where
        for other in listeners[1:]:  # each has another port
            other.socket.close()
        host, port = listeners[0].socket.getsockname()[:2]
        return listeners[:1], Address(host, port)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        taken = exc.errno == errno.EADDRINUSE
        raise ConfigError(
            f"{where} cannot be listened on: {reason}.",
            remedy="Name another one; port 0 is any free port." if taken else "Name another one.",
        ) from exc


def _unix_socket(path: Path) -> trio.socket.SocketType:
    """A socket that only its owner may use. One that a killed server left is replaced. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is something else with this name")
        with sockets.socket(sockets.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    made = sockets.socket(sockets.AF_UNIX)
    try:
        made.bind(str(path))
        path.chmod(FILE_MODE)  # nobody can connect before `listen`
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return trio.socket.from_stdlib_socket(made)


async def _serve_client(
    server: Server, limits: Limits, tls: ssl.SSLContext | None, stream: trio.SocketStream
) -> None:
    """The life of a connection; never raises an error."""
    if server.connections >= limits.connections:
        log.info("A connection is closed: there are %d already.", server.connections)
        await trio.aclose_forcefully(stream)
        return
    with contextlib.suppress(OSError):
        stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
        if isinstance(server.where, Path):
            stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _SEND_BUFFER)
    link = Link(sockets.socket(fileno=stream.socket.detach()), peer="client", stalled_s=limits.stalled_s)
    server.connections += 1
    begun = time.monotonic()
    ended = "good-bye"
    try:
        agreed: Agreement | None = None
        with trio.move_on_after(limits.handshake_s):
            agreed = await _shake_hands(link, server.exports, tls)
        if agreed is None:
            ended = f"no handshake within {limits.handshake_s:g} s"
        elif agreed.export is not None:
            log.info("A client has chosen %s.", agreed.export.name)

            def share() -> int:
                return max(min(limits.most_of_one, limits.in_flight // server.connections), PIECE)

            await Session(link, agreed, share).run()
    except (LinkLost, ProtocolError, OSError) as exc:
        ended = str(exc)
    except Exception:  # a defect costs one client, not all
        log.exception("A connection of a client failed.")
        ended = "a defect"
    finally:
        server.connections -= 1
        link.close()
        log.info("A client is gone after %.1f s: %s.", time.monotonic() - begun, ended)


async def _shake_hands(link: Link, exports: Mapping[str, Export], tls: ssl.SSLContext | None) -> Agreement:
    """The handshake with a client. Raises ProtocolError, LinkLost, ssl.SSLError."""
    steps = negotiate(exports, tls=tls is not None)
    step = next(steps)
    while True:
        answer = b""
        match step:
            case Send(content):
                await link.send_all(content)
            case Receive(length):
                answer = await link.exactly(length)
            case StartTls():
                assert tls is not None
                await link.start_tls(tls, None, server_side=True)
        try:
            step = steps.send(answer) if isinstance(step, Receive) else next(steps)
        except StopIteration as done:
            agreed: Agreement = done.value
            return agreed
