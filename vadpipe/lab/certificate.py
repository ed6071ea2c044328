"""The lab's TLS identity: one self-signed certificate that a lab directory keeps for its life.

Clients pin vCenter by thumbprint, so a restarted server must present the certificate it had before.
"""

import datetime
import hashlib
import ipaddress
import os
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=3650)  # a lab directory may outlive any release


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, both PEM, with the thumbprints that vSphere clients compare.

    thumbprint_sha1, thumbprint_sha256: upper-case hexadecimal bytes joined by colons, of the DER form.
    """

    path: Path
    key_path: Path
    thumbprint_sha1: str
    thumbprint_sha256: str

    def server_context(self) -> ssl.SSLContext:
        """A TLS context that serves with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key_path)
        return context


def load_or_create(directory: Path, host: str) -> Certificate:
    """The certificate kept in `directory` as `server.crt` and `server.key`, made for `host` at the first call."""
    path, key_path = directory / "server.crt", directory / "server.key"
    if not (path.exists() and key_path.exists()):
        _create(path, key_path, host)
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    return Certificate(path, key_path, _thumbprint(hashlib.sha1(der)), _thumbprint(hashlib.sha256(der)))


def create_credentials(directory: Path, host: str) -> None:
    """An authority, and certificates by it of a server `host` and of a client, as qemu-nbd and nbdkit want them.

    They lie in `directory` as `ca-cert.pem`, and as `server-` and `client-` `cert.pem` and `key.pem`.
    """
    authority = load_or_create(directory, host)
    shutil.copy(authority.path, directory / "ca-cert.pem")
    issuer = x509.load_pem_x509_certificate(authority.path.read_bytes())
    issuer_key = serialization.load_pem_private_key(authority.key_path.read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    for side, purpose in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"vadpipe lab {side}")]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(issuer.not_valid_before_utc)
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
            .sign(issuer_key, hashes.SHA256())
        )
        _write(directory / f"{side}-cert.pem", directory / f"{side}-key.pem", certificate, key)


def _thumbprint(digest: "hashlib._Hash") -> str:
    return digest.digest().hex(":").upper()


def _create(path: Path, key_path: Path, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vadpipe lab vCenter")])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clients whose clock is behind
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
        # Self-signed and its own trust anchor, so that `cafile=server.crt` verifies it, also strictly.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    _write(path, key_path, certificate, key)


def _write(
    path: Path, key_path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    key_bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key_bytes)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _alternative_names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    try:
        own: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        own = x509.DNSName(host)
    return names if own in names else [*names, own]


def _key_usage(*, signs: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
