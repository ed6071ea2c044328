"""Server names: understood or refused when the settings are made, before anything is sent."""

import socket
import threading

import pytest

from pipeline.errors import ConfigError
from pipeline.secrets import Secret
from vadpipe.vsphere.api.faults import ConnectionLost, VsphereError
from vadpipe.vsphere.api.session import Vcenter


def settings(server: str, **others: object) -> Vcenter:
    return Vcenter(server, "backup", Secret.from_text("x"), **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vc01", "vc01", 443),
        ("vc01.example.com.", "vc01.example.com.", 443),
        ("vc01:8443", "vc01", 8443),
        ("192.0.2.1", "192.0.2.1", 443),
        ("192.0.2.1:8443", "192.0.2.1", 8443),
        ("::1", "::1", 443),
        ("[::1]", "::1", 443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("vcenter-ä.example.com", "vcenter-ä.example.com", 443),
        ("esx_1.example.com", "esx_1.example.com", 443),
    ],
)
def test_a_name_with_or_without_a_port_is_understood(text, host, port):
    made = settings(text)
    assert (made.server, made.port) == (host, port)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("vc01..com", "empty or longer than 63"),
        (f"{'a' * 64}.example.com", "empty or longer than 63"),
        (f"{'a.' * 127}example.com", "letters, digits"),
        (" vc01", "a blank"),
        ("vc01 ", "a blank"),
        ("vc 01", "a blank"),
        ("https://vc01/sdk", "letters, digits|no port"),
        ("vc01/sdk", "letters, digits"),
        ("user@vc01", "letters, digits"),
        ("-vc01", "letters, digits"),
        ("vc01:", "port after ':' is missing"),
        ("[::1]:", "port after ':' is missing"),
        ("vc01:https", "'https' is no port"),
        ("vc01:0", "'0' is no port"),
        ("vc01:65536", "'65536' is no port"),
        ("1:2:3", "no IPv6 address"),
        ("[vc01]", "no IPv6 address"),
    ],
)
def test_what_cannot_be_a_server_is_a_config_error_with_an_example(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        settings(text)
    assert "vc01.example.com" in caught.value.remedy


def test_a_port_in_the_name_must_not_contradict_port():
    assert settings("vc01:8443", port=8443).port == 8443
    with pytest.raises(ConfigError, match=r"names port 8443, and port=9443"):
        settings("vc01:8443", port=9443)


async def test_a_port_that_does_not_speak_tls_is_named():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def answer() -> None:
            connection, _ = plain.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(VsphereError, match=f"Port {port} of 127.0.0.1 does not speak TLS") as caught:
            async with settings(f"127.0.0.1:{port}", thumbprint="ab" * 32).connect():
                pass
        thread.join()
    assert not isinstance(caught.value, ConnectionLost)
    assert "443" in caught.value.remedy
