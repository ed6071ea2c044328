"""The HTTPS client of this package: one way to trust a certificate, and one way to ask.

Every request to vCenter, to an ESXi host or to a file of a guest goes through `TrustedConnection`, pyVmomi's
included. It checks the certificate while it connects, so no password, cookie or ticket is sent to a server that did
not pass. All of it blocks; it is called in worker threads.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError

from .faults import FOREIGN, CertificateRefused, NotConnected, VsphereError, translate

log = logging.getLogger(__name__)

# Longer than any single answer takes. tasks.py waits for updates in pieces of half of it.
SOCKET_TIMEOUT_S = 120.0
HTTPS_PORT = 443

_ALGORITHMS = {20: "sha1", 32: "sha256"}  # of a thumbprint, by its length in bytes
_NOT_READY = (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE)
# Reasons of OpenSSL for an answer that is no TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_LABEL = re.compile(rb"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_LONGEST_NAME = 253  # RFC 1035, in the form that is written


def parse_server(text: str, port: int = HTTPS_PORT) -> tuple[str, int]:
    """Host and port of 'vc01', 'vc01:8443', '192.0.2.1', '::1', '[::1]' or '[::1]:8443'.

    Args:
        text: What the configuration names.
        port: The port where `text` has none.

    Raises:
        ConfigError: `text` cannot be the name or the address of a server, or it names another port than `port`.
    """
    host, own_port = text, ""
    if found := re.fullmatch(r"\[(.*)\](?::(.*))?", text) or re.fullmatch(r"([^:]*):([^:]*)", text):
        host, own_port = found[1], found[2] or ""
        if ":" in text.removeprefix(f"[{host}]") and not own_port:
            raise _bad_server(text, "the port after ':' is missing")
    if own_port and not (own_port.isascii() and own_port.isdigit() and 0 < int(own_port) < 1 << 16):
        raise _bad_server(text, f"{own_port!r} is no port")
    if own_port and port not in (HTTPS_PORT, int(own_port)):
        raise _bad_server(text, f"it names port {own_port}, and port={port} is given")
    problem = "there is no IPv6 address between '[' and ']'" if text[:1] == "[" and ":" not in host else ""
    if problem := problem or _problem_of(host):
        raise _bad_server(text, problem)
    return host, int(own_port or port)


@dataclass(frozen=True)
class Trust:
    """Which certificate is accepted: the pinned one, else one that `ca_file` or the system's authorities vouch for.

    Args:
        thumbprint: SHA-1 (20 bytes) or SHA-256 (32 bytes) of the certificate in hex, with colons or without.
        ca_file: A PEM file with certificate authorities.

    Raises:
        ConfigError: Both are given, or the thumbprint has another form.
    """

    thumbprint: str | None = None
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if self.thumbprint is not None and self.ca_file is not None:
            raise ConfigError("Both thumbprint= and ca_file= are given.", remedy="Give one of them.")
        if self.thumbprint is not None and len(_digits(self.thumbprint)) not in _ALGORITHMS:
            raise ConfigError(
                f"{self.thumbprint!r} is not a certificate thumbprint.",
                remedy="Give 20 (SHA-1) or 32 (SHA-256) pairs of hex digits, e.g. 'AB:CD:...'.",
            )

    def context(self) -> ssl.SSLContext:
        """A new TLS context. With a pinned certificate, `check` alone decides.

        Raises:
            ConfigError: The authorities in `ca_file` cannot be read.
        """
        if self.thumbprint is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as exc:  # ssl.SSLError is one too
            raise ConfigError(
                f"The certificate authorities in {self.ca_file} cannot be read: {exc.strerror or exc}.",
                remedy="Give a PEM file that exists.",
            ) from exc

    def check(self, server: str, certificate: bytes) -> None:
        """Compare the certificate (DER) with the pinned one.

        Raises:
            CertificateRefused: A certificate is pinned, and it is another one.
        """
        if self.thumbprint is None:
            return
        wanted = _digits(self.thumbprint)
        algorithm = _ALGORITHMS[len(wanted)]
        if hmac.compare_digest(hashlib.new(algorithm, certificate).digest(), wanted):
            return
        found, pinned = thumbprint_of(certificate, algorithm), wanted.hex(":").upper()
        raise CertificateRefused(
            f"{server} shows another certificate than the pinned one. Pinned: {pinned}, found: {found}.",
            remedy=(
                "Compare with the server's own, read at its console: 'openssl x509 -noout -fingerprint "
                f"-{algorithm} -in' /etc/vmware-vpx/ssl/rui.crt (vCenter) or /etc/vmware/ssl/rui.crt (ESXi). "
                "If it was renewed, pin the new one; if not, somebody may be intercepting the connection."
            ),
            server=server,
            pinned=pinned,
            found=found,
        )


@dataclass(frozen=True)
class Endpoint:
    """A server, and the certificate that it must show. `context`: made from `trust` when not given."""

    host: str
    port: int
    trust: Trust = field(repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    def connection(self) -> TrustedConnection:
        """A connection that is not open yet."""
        return TrustedConnection(self)


class TrustedConnection(http.client.HTTPSConnection):
    """An HTTPS connection that checks the certificate while it connects, and keeps it as `certificate` (DER)."""

    certificate: bytes

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(
            endpoint.host,
            endpoint.port,
            timeout=SOCKET_TIMEOUT_S,
            context=endpoint.context or endpoint.trust.context(),
        )
        self._trust = endpoint.trust

    def connect(self) -> None:
        """Connect and check the certificate.

        Raises:
            CertificateRefused: The certificate is not the pinned one, or no authority vouches for it.
            VsphereError: The port does not speak TLS.
            NotConnected: Any other failure, as its cause.
        """
        try:
            try:
                super().connect()
            except ssl.SSLCertVerificationError as exc:
                raise self._unverified(exc) from exc
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert isinstance(self.sock, ssl.SSLSocket)
            certificate = self.sock.getpeercert(binary_form=True)
            assert certificate is not None  # a TLS server always shows one
            self.certificate = certificate
            self._trust.check(self.host, certificate)
        except CertificateRefused as refused:
            self.close()
            log.warning("%s", refused.problem)
            raise
        except OSError as exc:
            if isinstance(exc, ssl.SSLError) and exc.reason in _NO_TLS:
                raise VsphereError(
                    f"Port {self.port} of {self.host} does not speak TLS ({exc.reason}).",
                    remedy=f"Give the HTTPS port of the server; vCenter and ESXi use {HTTPS_PORT}.",
                    server=self.host,
                    port=self.port,
                ) from exc
            raise NotConnected(*exc.args) from exc

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Send a request; a connection that breaks is closed, because pyVmomi before 9.1 forgets it open."""
        with self._closed_if_broken():
            super().request(*args, **options)

    def getresponse(self) -> http.client.HTTPResponse:
        """The answer; see `request` for a connection that breaks."""
        with self._closed_if_broken():
            return super().getresponse()

    @contextmanager
    def _closed_if_broken(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def _unverified(self, exc: ssl.SSLCertVerificationError) -> CertificateRefused:
        """The refusal, with the thumbprint to pin: read in a handshake that sends nothing."""
        try:
            pem = ssl.get_server_certificate((self.host, self.port), timeout=10)
            found = thumbprint_of(ssl.PEM_cert_to_DER_cert(pem), "sha256")
        except OSError:
            found = "unknown"
        return CertificateRefused(
            f"The certificate of {self.host} cannot be verified: {exc.verify_message}. "
            f"Its SHA-256 thumbprint is {found}.",
            remedy=(
                "Give its certificate authority (ca_file=), or compare the thumbprint at the server's console and "
                "pin it (thumbprint=)."
            ),
            server=self.host,
            found=found,
        )


@dataclass(frozen=True)
class Refusal:
    """What a status means for a caller: the error to raise, the cause in words, and the remedy."""

    cause: str
    remedy: str = ""
    error: type[VsphereError] = VsphereError


@dataclass(frozen=True)
class Response:
    """A complete answer. `content`: at most the limit that the caller gave."""

    server: str
    call: str
    status: int
    reason: str
    content: bytes = field(repr=False)

    def require_success(self, refusals: Mapping[int, Refusal] | None = None, *, remedy: str = "") -> bytes:
        """The content of an answer 2xx.

        Args:
            refusals: What other statuses mean here.
            remedy: For statuses that `refusals` does not have.

        Raises:
            VsphereError: Any other status; facts `call`, `status`.
        """
        if http.client.OK <= self.status < http.client.MULTIPLE_CHOICES:
            return self.content
        default = Refusal(f"{self.status} {self.reason}", remedy)
        refusal = (refusals or {}).get(self.status, default)
        error = refusal.error(
            f"{self.server}: {self.call} failed: {refusal.cause}.",
            remedy=refusal.remedy,
            server=self.server,
            call=self.call,
            status=self.status,
        )
        if self.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            log.warning("%s", error.problem)
        raise error


class HttpClient:
    """Requests over one connection to one server, which is opened by the first and closed with the block."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection = endpoint.connection()
        self._was_cut = False

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    @property
    def certificate(self) -> bytes:
        """The server's certificate (DER), known after the first request."""
        return self._connection.certificate

    @property
    def is_open(self) -> bool:
        return self._connection.sock is not None

    def request(
        self,
        method: str,
        target: str,
        *,
        call: str,
        limit: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request and read the whole answer.

        Args:
            method: The HTTP method.
            target: Path and query. It can contain a token, so it is in no log and in no error.
            call: The name of the request in logs and errors.
            limit: The largest answer in bytes.
            headers: Additional headers.
            body: The content to send.

        Raises:
            CertificateRefused: The certificate is wrong. Nothing was sent.
            ConnectionLost: There was no complete answer. Unreachable: The request had no effect (502, 503).
            VsphereError: The answer is larger than `limit`, or the port does not speak TLS.
        """
        host, started = self.endpoint.host, time.monotonic()
        try:
            if self._was_cut:
                raise ConnectionAbortedError("the request was cancelled")
            self._connection.request(method, target, body, dict(headers or {}))
            with self._connection.getresponse() as answer:
                if answer.status in _NOT_READY:
                    raise http.client.HTTPException(f"{answer.status} {answer.reason}")
                content = self._read(answer, call, limit)
        except http.client.InvalidURL:  # its text quotes the target
            raise VsphereError(
                f"{host}: {call} failed: its address contains a blank or a control character.",
                remedy="Ask the administrator of the server that names the address.",
                server=host,
                call=call,
            ) from None
        except FOREIGN as exc:
            self._connection.close()
            error = translate(exc, call, host)
            log.debug("%s after %.3f s", error.problem, time.monotonic() - started)
            raise error from error.__cause__
        duration_s = time.monotonic() - started
        log.debug("%s: %s: %d, %d bytes, %.3f s", host, call, answer.status, len(content), duration_s)
        return Response(host, call, answer.status, answer.reason, content)

    def cut(self) -> None:
        """End the request that another thread waits in, and every later one."""
        self._was_cut = True
        if (sock := self._connection.sock) is not None:
            with suppress(OSError):
                # Only the TCP half: the TLS object belongs to the thread that reads from it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _read(self, answer: http.client.HTTPResponse, call: str, limit: int) -> bytes:
        size = answer.length
        content = b"" if size is not None and size > limit else answer.read(limit + 1)
        if len(content) > limit or (size or 0) > limit:
            self._connection.close()
            raise VsphereError(
                f"{self.endpoint.host}: the answer to {call} is larger than {limit} bytes.",
                remedy="Check that the name is the right one.",
                server=self.endpoint.host,
                call=call,
            )
        if size is not None and len(content) < size:  # `read` with a limit does not raise it
            raise http.client.IncompleteRead(content, size - len(content))
        return content


def thumbprint_of(certificate: bytes, algorithm: str) -> str:
    """Digest of a DER certificate as VMware's tools print it: upper-case hex with colons."""
    return hashlib.new(algorithm, certificate).digest().hex(":").upper()


def _digits(thumbprint: str) -> bytes:
    """The bytes of a thumbprint; empty when it is not hex."""
    text = thumbprint.replace(":", "").strip()
    return bytes.fromhex(text) if re.fullmatch(r"([0-9A-Fa-f]{2})+", text) else b""


def _problem_of(host: str) -> str:
    """Why this cannot be the name or the address of a host; empty when it can."""
    if not host:
        return "it is empty"
    if any(character.isspace() for character in host):
        return "it has a blank in it"
    if ":" in host:
        try:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except OSError:
            return "it is no IPv6 address"
        return ""
    try:
        name = host.removesuffix(".").encode("idna")
    except UnicodeError:
        return "a part of it between dots is empty or longer than 63 characters"
    if len(name) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in name.split(b".")):
        return "host names consist of letters, digits, '-' and dots"
    return ""


def _bad_server(text: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not the name of a server: {problem}.",
        remedy="Give a host name or an address, as in 'vc01.example.com', 'vc01:8443' or '[2001:db8::1]'.",
    )
