"""The HTTP client: complete answers within a limit, or one of our errors that does not show the target."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vadpipe.lab.certificate import Certificate, load_or_create
from vadpipe.vsphere.api.faults import ConnectionLost, SessionExpired, Unreachable, VsphereError
from vadpipe.vsphere.api.http import Endpoint, HttpClient, Refusal, Trust
from vadpipe.vsphere.inventory.hosts import pin

TARGET = "/guestFile?token=a-secret-token"


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return load_or_create(tmp_path, "127.0.0.1")


@contextmanager
def answering(certificate: Certificate, *answers: bytes) -> Iterator[Endpoint]:
    """A server that gives these answers, one for each connection."""
    context = certificate.server_context()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                plain, _ = listening.accept()
                # A client can leave before it has read everything.
                with plain, suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Endpoint("127.0.0.1", listening.getsockname()[1], Trust(certificate.thumbprint_sha256))
        thread.join()


def ask(endpoint: Endpoint, limit: int = 100) -> bytes:
    with HttpClient(endpoint) as client:
        response = client.request("GET", TARGET, call="GET tools.conf", limit=limit)
    return response.require_success({401: Refusal("it requires a login", error=SessionExpired)})


def answer(status: str, content: bytes = b"", length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + content


def test_a_complete_answer_within_the_limit_is_returned(certificate):
    with answering(certificate, answer("200 OK", b"x" * 100)) as endpoint:
        assert ask(endpoint) == b"x" * 100


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (answer("200 OK", b"x" * 101), VsphereError, "larger than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 101, VsphereError, "larger than 100 bytes"),
        (answer("200 OK", b"x" * 10, length=20), ConnectionLost, "was lost during GET tools.conf"),
        (answer("503 Service Unavailable"), Unreachable, "is not ready"),
        (answer("502 Bad Gateway"), Unreachable, "is not ready"),
        (answer("401 Unauthorized"), SessionExpired, "it requires a login"),
        (answer("404 Not Found"), VsphereError, "GET tools.conf failed: 404 Not Found"),
        (b"", ConnectionLost, "was lost during GET tools.conf"),
    ],
    ids=["too long", "too long without a length", "cut", "503", "502", "401", "404", "nothing"],
)
def test_each_failure_is_an_error_of_its_own_without_the_target(certificate, given, error, text):
    with answering(certificate, given) as endpoint, pytest.raises(error, match=text) as caught:
        ask(endpoint)
    assert type(caught.value) is error
    assert "token" not in f"{caught.value!r}{caught.value.facts}{caught.value.__cause__!r}{endpoint!r}"


def test_an_address_with_control_characters_is_refused_without_showing_it(certificate):
    endpoint = Endpoint("127.0.0.1", 1, Trust(certificate.thumbprint_sha256))
    with HttpClient(endpoint) as client, pytest.raises(VsphereError, match="control character") as caught:
        client.request("GET", TARGET + " \x01", call="GET tools.conf", limit=1)
    assert "token" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_client_that_was_cut_sends_nothing(certificate):
    client = HttpClient(Endpoint("127.0.0.1", 1, Trust(certificate.thumbprint_sha256)))
    client.cut()
    with pytest.raises(ConnectionLost, match="cancelled"):
        client.request("GET", TARGET, call="GET tools.conf", limit=1)


def test_a_certificate_is_pinned_by_sha256_where_the_server_names_it_whole(tmp_path):
    certificate = load_or_create(tmp_path, "127.0.0.1")
    with answering(certificate, answer("200 OK")) as endpoint:
        pem = ssl.get_server_certificate((endpoint.host, endpoint.port), timeout=10)
    assert pin(f"\n{pem}\n", certificate.thumbprint_sha1) == certificate.thumbprint_sha256
    assert pin(None, certificate.thumbprint_sha1) == certificate.thumbprint_sha1
    assert pin("", "") is None
