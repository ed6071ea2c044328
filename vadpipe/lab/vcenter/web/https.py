"""HTTPS on loopback: one thread per connection, kept alive, for `/sdk`, `/folder` and the REST API.

Answers leave in one piece (buffered, Nagle off): unbuffered small writes meet delayed acknowledgements and cost
44 ms a call. The TLS handshake runs in the connection's own thread, so a silent client blocks nobody.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qs, urlsplit

from pyVmomi import vmodl

from ..api import soap
from ..api.sessions import COOKIE
from ..faults.injection import ConnectionDroppedError, Delay, Drop, Failure, ServiceUnavailableError
from ..faults.on_demand import FolderError
from . import nfc, rest
from .folder import FileContent, FolderRequest, change, serve

if TYPE_CHECKING:
    from ..service import Service


_log = logging.getLogger(__name__)

_PIECE = 1 << 20
_FOLDER = "/folder"
_GUEST_FILE = "/guestFile"


class HttpsServer(socketserver.ThreadingTCPServer):
    """Serves one `Service`. Raises OSError when the address cannot be bound."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, service: Service) -> None:
        self.service = service
        self._context = context
        self._connections: set[socket.socket] = set()
        self._closing = False
        super().__init__(address, _Handler)

    def finish_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        with self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as tls:
            self._connections.add(tls)
            try:
                if not self._closing:  # else nobody would cut this one any more
                    tls.do_handshake()
                    super().finish_request(tls, client_address)
            finally:
                self._connections.discard(tls)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, or refuses the certificate, is no event; a defect of ours is."""
        level = logging.DEBUG if isinstance(sys.exception(), OSError) else logging.ERROR
        _log.log(level, "connection from %s ended", client_address, exc_info=True)

    def stop(self, release: Callable[[], None]) -> None:
        """End the accept loop and every connection; returns when their threads have ended.

        release: ends what the calls in those threads wait for.
        """
        self.shutdown()
        self._closing = True
        self.close_connections()
        release()
        self.server_close()

    def close_connections(self) -> None:
        """Cut every connection, as a restart or a network failure would."""
        for connection in list(self._connections):
            try:
                # Only the TCP half: the TLS object belongs to the thread that reads from it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue  # it ended by itself


class _Handler(BaseHTTPRequestHandler):
    server: HttpsServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version = "vadpipe-lab"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        if rest.is_served(self.path):
            self._rest()
            return
        if self.path.startswith(nfc.PREFIX):
            self._take_disk()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith("/sdk"):
            self._send(HTTPStatus.NOT_FOUND)
            return
        cookie = self._cookies().get(COOKIE)
        try:
            answer = self.server.service.answer(
                body,
                soap_action=self.headers.get("SOAPAction"),
                cookie=cookie,
                address=self.client_address[0],
                user_agent=self.headers.get("User-Agent", ""),
            )
        except ConnectionDroppedError:
            self.close_connection = True
            return
        except ServiceUnavailableError:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        headers = {}
        if answer.session is not None and answer.session.cookie != cookie:
            headers["Set-Cookie"] = f'{COOKIE}="{answer.session.cookie}"; Path=/; HttpOnly; Secure'
        self._send(HTTPStatus(answer.status), answer.body, "text/xml; charset=utf-8", headers)

    def do_GET(self) -> None:
        if self.path == "/sdk/vimServiceVersions.xml":
            self._send(
                HTTPStatus.OK, soap.service_versions(self.server.service.settings.api_version), "text/xml"
            )
        elif self.path.split("?")[0] == _FOLDER or self.path.startswith(f"{_FOLDER}/"):
            self._folder()
        elif self.path.startswith(f"{_GUEST_FILE}?"):
            self._guest_file(None)
        elif rest.is_served(self.path):
            self._rest()
        else:
            self._send(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _take_disk(self) -> None:
        """The data of a disk, for a lease that waits for it."""
        self.close_connection = True  # what is left of a refused body is nobody's next request
        with self._refusals():
            self._send(nfc.take(self.server.service, self.path, self.headers, self.rfile))

    def do_PUT(self) -> None:
        if self.path.startswith(nfc.PREFIX):
            self._take_disk()
            return
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith(f"{_FOLDER}/"):
            self._change_folder(content)
        else:
            self._guest_file(content)

    def _guest_file(self, content: bytes | None) -> None:
        """A file out of a guest, or `content` into one."""
        try:
            later = self.server.service.injections.before_call(_GUEST_FILE)
        except ConnectionDroppedError:
            self.close_connection = True
            return
        token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        transfer = self.server.service.guests.redeem(token, incoming=content is not None)
        if transfer is None or (content is not None and len(content) != transfer.size):
            self._send(
                HTTPStatus.INTERNAL_SERVER_ERROR
            )  # what a host answers to a token that it does not know
        elif content is not None:
            transfer.store(content)
            self._send(HTTPStatus.OK)
        else:
            size = transfer.file.stat().st_size
            self._send_file(FileContent(transfer.file, 0, size, size, partial=False), later)

    def do_DELETE(self) -> None:
        if rest.is_served(self.path):
            self._rest()
        elif self.path.startswith(f"{_FOLDER}/"):
            self._change_folder(None)
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def _rest(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = rest.RestRequest(self.command, self.path, self.headers, body)
        try:
            later = self.server.service.injections.before_call(request.family)
            answer = rest.serve(self.server.service, request)
            self.server.service.injections.happen(later)
        except ConnectionDroppedError:
            self.close_connection = True
            return
        except (ServiceUnavailableError, vmodl.MethodFault):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._send(answer.status, answer.body, "application/json")

    def _folder(self) -> None:
        with self._refusals():
            later = self.server.service.injections.before_call(_FOLDER)
            content = serve(self.server.service, self._folder_request())
            if isinstance(content, str):
                self._send(HTTPStatus.OK, content.encode(), "text/html; charset=utf-8")
            else:
                self._send_file(content, later)

    def _change_folder(self, content: bytes | None) -> None:
        """A file into a datastore, or out of it when there is no content."""
        with self._refusals():
            later = self.server.service.injections.before_call(_FOLDER)
            status = change(self.server.service, self._folder_request(), content)
            self.server.service.injections.happen(later)
            self._send(status)

    def _folder_request(self) -> FolderRequest:
        return FolderRequest(
            self.command,
            self.path,
            self._cookies(),
            self.headers.get("Authorization"),
            self.headers.get("Range"),
        )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Answer with what the `with` block raises, where it says that a request fails."""
        try:
            yield
        except FolderError as error:
            challenge = {"WWW-Authenticate": 'Basic realm="VMware HTTP server"'}
            headers = challenge if error.status is HTTPStatus.UNAUTHORIZED else {}
            self._send(error.status, f"{error}\n".encode(), "text/plain; charset=utf-8", headers)
        except ConnectionDroppedError:
            self.close_connection = True
        except ServiceUnavailableError:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE)
        except vmodl.MethodFault as fault:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{soap.message_of(fault)}\n".encode())

    def _send_file(self, content: FileContent, later: list[Failure]) -> None:
        """Send the file, or half of it and what is to happen `later`: a pause, or the end of the connection."""
        self.send_response(HTTPStatus.PARTIAL_CONTENT if content.partial else HTTPStatus.OK)
        if content.partial:
            last = content.offset + content.length - 1
            self.send_header("Content-Range", f"bytes {content.offset}-{last}/{content.size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(content.length))
        if self.server.service.folder.versions:
            self.send_header("Last-Modified", self.date_time_string(content.path.stat().st_mtime))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = content.length // 2 if later else 0
        with content.path.open("rb") as file:
            file.seek(content.offset)
            self._send_piece(file, half)
            if later:
                self.wfile.flush()
                self.server.service.injections.happen([one for one in later if isinstance(one, Delay)])
            if Drop.AFTER in later or not self._send_piece(file, content.length - half):
                self.close_connection = True

    def _send_piece(self, file: BinaryIO, length: int) -> bool:
        """Send `length` bytes; False when the file ends before."""
        while length and (piece := file.read(min(length, _PIECE))):
            self.wfile.write(piece)
            self.server.service.folder.bytes_sent += len(piece)
            length -= len(piece)
        return not length

    def _send(
        self,
        status: HTTPStatus,
        body: bytes = b"",
        content_type: str = "text/plain",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cookies(self) -> dict[str, str]:
        try:
            return {
                name: morsel.value for name, morsel in SimpleCookie(self.headers.get("Cookie", "")).items()
            }
        except CookieError:
            return {}

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)
