"""Sending a disk to a host for a lease: one POST whose length nobody knows before its end.

Source: vSphere Web Services SDK programming guide, "Importing an OVF template"; HttpNfcLease in the API reference.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from pyVmomi import vim

from pipeline.errors import MoverError

from ..api.faults import FOREIGN, CertificateRefused, VsphereError, translate
from ..api.http import HTTPS_PORT, Endpoint, Response, Trust, TrustedConnection
from ..api.session import VcenterSession

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/x-vnd.vmware-streamVmdk"
_CALL: Final = "upload of a disk"
_ANSWER: Final = 64 << 10


class Upload:
    """One disk on its way. `sent` bytes of the stream, `sha1` of them.

    `begin`, `send` and `end` block and are for one thread at a time; `close` never blocks and is for any.
    """

    def __init__(self, endpoint: Endpoint, target: str) -> None:
        self._endpoint = endpoint
        self._target = target
        self._connection = endpoint.connection()
        self._started = time.monotonic()
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._turn = threading.Lock()
        self._closing = False
        self.sent = 0

    @property
    def sha1(self) -> str:
        return self._sha1.hexdigest()

    def begin(self) -> None:
        """Connect, check the certificate, and announce the stream. Raises MoverError."""
        with self._using() as connection:
            connection.putrequest("POST", self._target, skip_accept_encoding=True)
            connection.putheader("Content-Type", CONTENT_TYPE)
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()

    def send(self, content: bytes) -> None:
        """Send the next bytes. Raises MoverError."""
        if not content:
            return
        self._sha1.update(content)
        with self._using() as connection:
            try:
                connection.send(b"%x\r\n" % len(content))
                connection.send(content)
                connection.send(b"\r\n")
            except OSError:
                self._raise_refusal()
                raise
        self.sent += len(content)

    def end(self) -> None:
        """Tell that the stream is complete, and read the answer. Raises MoverError unless the host took it."""
        with self._using() as connection:
            connection.send(b"0\r\n\r\n")
            answer = self._answer()
        answer.require_success()
        seconds = time.monotonic() - self._started
        log.debug("%s: %s: %d, %d bytes, %.3f s", answer.server, _CALL, answer.status, self.sent, seconds)

    def close(self) -> None:
        """End the connection, also one that another thread is using: its call fails."""
        self._closing = True
        if (sock := self._connection.sock) is not None:
            with suppress(OSError):
                # Only the TCP half: the TLS object belongs to the thread that uses it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        if self._turn.acquire(blocking=False):
            self._connection.close()
            self._turn.release()

    @contextmanager
    def _using(self) -> Iterator[TrustedConnection]:
        """The connection, for a call of it. Raises MoverError; then the connection is closed."""
        with self._turn:
            try:
                if self._closing:
                    raise ConnectionAbortedError("the upload was cancelled")
                yield self._connection
            except FOREIGN as exc:
                self._connection.close()
                raise translate(exc, _CALL, self._endpoint.host) from exc
            except MoverError:
                self._connection.close()
                raise
            finally:
                if self._closing:
                    self._connection.close()

    def _answer(self) -> Response:
        with self._connection.getresponse() as answer:
            content = answer.read(_ANSWER)
            return Response(self._endpoint.host, _CALL, answer.status, answer.reason, content)

    def _raise_refusal(self) -> None:
        """A host that refuses a stream answers before its end, and closes."""
        with suppress(*FOREIGN, http.client.HTTPException):
            self._answer().require_success()


def upload_to(session: VcenterSession, device: vim.HttpNfcLease.DeviceUrl) -> Upload:
    """The upload that a lease wants for a device. `*` in its address is the server's own name.

    A host must show the certificate that the lease names.

    Raises:
        VsphereError: The address has no TLS.
        CertificateRefused: The lease does not say which certificate the host has.
    """
    parts, own = urlsplit(device.url), session.endpoint
    if parts.scheme != "https" or parts.hostname is None:
        raise VsphereError(
            f"{session.server} names an address without TLS for a disk of a new VM.",
            remedy="Nothing is sent there. Ask the administrator of this server.",
            server=session.server,
        )
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if parts.hostname == "*":
        return Upload(replace(own, port=parts.port or own.port), target)
    port = parts.port or HTTPS_PORT
    if (parts.hostname, port) == (own.host.lower(), own.port):
        return Upload(own, target)
    if not device.sslThumbprint:
        raise CertificateRefused(
            f"{session.server} does not say which certificate {parts.hostname} has, so no disk is sent there.",
            remedy="Check in vCenter that the host is connected; or restore through VDDK.",
            server=parts.hostname,
        )
    return Upload(Endpoint(parts.hostname, port, Trust(device.sslThumbprint)), target)
