"""Whom we talk to: a pinned certificate, or one that an authority vouches for.

The check is part of making the connection, before the first byte of a request: a password or a session cookie
is never sent to a server that did not pass. The API and the datastore files use the same connection class.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
import socket
import ssl
from dataclasses import dataclass

from pipeline.errors import ConfigError

from .faults import CertificateRefused, NotConnected

# Algorithm of a thumbprint by its length in bytes.
_ALGORITHMS = {20: "sha1", 32: "sha256"}


def thumbprint_of(certificate: bytes, algorithm: str) -> str:
    """Colon-separated upper-case hex of the digest of a DER certificate, as VMware's tools print it."""
    return hashlib.new(algorithm, certificate).digest().hex(":").upper()


@dataclass(frozen=True)
class Trust:
    """Which certificate is accepted: the pinned one, else one verified by `ca_file` or by the system's authorities.

    `thumbprint` is SHA-1 (20 bytes) or SHA-256 (32 bytes) in hex, with or without colons. Raises ConfigError.
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
        """A TLS context: with a pin the certificate is checked by `check` alone. Raises ConfigError."""
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
        """Raise CertificateRefused when a pin is set and `certificate` (DER) is another one."""
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
                "If it was renewed, pin the new one; if not, somebody stands between."
            ),
            server=server,
            pinned=pinned,
            found=found,
        )


class TrustedConnection(http.client.HTTPSConnection):
    """An HTTPS connection that checks the certificate while it connects, and keeps it as `certificate` (DER)."""

    certificate: bytes

    def __init__(
        self, host: str, port: int, *, trust: Trust, context: ssl.SSLContext, timeout_s: float
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._trust = trust

    def connect(self) -> None:
        try:
            super().connect()
        except ssl.SSLCertVerificationError as exc:
            raise self._unverified(exc) from exc
        except OSError as exc:
            raise NotConnected(*exc.args) from exc
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.certificate = _peer_certificate(self.sock)
        try:
            self._trust.check(self.host, self.certificate)
        except CertificateRefused:
            self.close()
            raise

    def _unverified(self, exc: ssl.SSLCertVerificationError) -> CertificateRefused:
        """The refusal, with the thumbprint that could be pinned: fetched by a handshake that sends nothing."""
        try:
            pem = ssl.get_server_certificate((self.host, self.port), timeout=10)
            found = thumbprint_of(ssl.PEM_cert_to_DER_cert(pem), "sha256")
        except OSError:
            found = "not to be had"
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


def _peer_certificate(sock: socket.socket) -> bytes:
    assert isinstance(sock, ssl.SSLSocket)
    certificate = sock.getpeercert(binary_form=True)
    assert certificate is not None  # a TLS server always shows one
    return certificate


def _digits(thumbprint: str) -> bytes:
    """The bytes of a thumbprint; empty when it is not hex."""
    text = thumbprint.replace(":", "").strip()
    return bytes.fromhex(text) if re.fullmatch(r"([0-9A-Fa-f]{2})+", text) else b""
