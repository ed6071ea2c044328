"""Reading over Unix sockets, TCP and TLS, from both servers."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import numpy as np
import pytest

from pipeline import ConfigError, Extents
from pipeline.units import SPAN, KiB
from tests.vadpipe.nbd.nbd_kit import keeps_the_rules_of_disks
from tests.vadpipe.reading_kit import whole_disk
from vadpipe.lab.certificate import create_credentials
from vadpipe.nbd import Nbd, NbdError

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    create_credentials(directory, HOST)
    return directory


def trusting(credentials: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(credentials / "ca-cert.pem"))


def qemu(raw: Path, port: int, tls: Path | None, verify: str = "no") -> list[object]:
    words: list[object] = ["qemu-nbd", "--persistent", "--shared=8", "--read-only", "-f", "raw"]
    if tls is not None:
        kind = f"tls-creds-x509,id=tls,endpoint=server,verify-peer={verify},dir={tls}"
        words += ["--object", kind, "--tls-creds", "tls"]
    return [*words, "-b", HOST, "-p", port, raw]


def nbdkit(raw: Path, port: int, tls: Path | None) -> list[object]:
    wanted = [] if tls is None else ["--tls=require", f"--tls-certificates={tls}"]
    return ["nbdkit", "-f", "-r", "-i", HOST, "-p", port, *wanted, "file", raw]


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("server", [qemu, nbdkit])
async def test_a_disk_is_read_over_tcp_with_and_without_tls(serve, raw, pool, port, credentials, server, tls):
    serve(*server(raw, port, credentials if tls else None), port=port)
    context = trusting(credentials) if tls else None
    async with Nbd(HOST, port, tls=context, depth=3, request=256 * KiB).open(pool=pool) as disk:
        assert disk.allocation == "queried"
        await keeps_the_rules_of_disks(disk, raw)


async def test_a_server_that_wants_a_client_certificate_gets_it(serve, raw, pool, port, credentials):
    serve(*qemu(raw, port, credentials, verify="yes"), port=port)
    context = trusting(credentials)
    with pytest.raises(NbdError, match="cannot be used"):
        async with Nbd(HOST, port, tls=context, restarts=0).open(pool=pool):
            pytest.fail("it is not open")
    context.load_cert_chain(credentials / "client-cert.pem", credentials / "client-key.pem")
    async with Nbd(HOST, port, tls=context).open(pool=pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), np.fromfile(raw, np.uint8))


async def test_tls_is_required_where_it_is_asked_for(serve, raw, pool, port, credentials):
    serve(*nbdkit(raw, port, None), port=port)
    with pytest.raises(NbdError, match="refused TLS"):
        async with Nbd(HOST, port, tls=trusting(credentials)).open(pool=pool):
            pytest.fail("it is not open")


@pytest.mark.parametrize(
    ("host", "trusted"), [(HOST, False), ("127.0.0.2", True)], ids=["another authority", "another name"]
)
async def test_a_certificate_of_somebody_else_is_refused(serve, raw, pool, port, credentials, host, trusted):
    words = nbdkit(raw, port, credentials)
    serve(*("0.0.0.0" if word == HOST else word for word in words), port=port)
    context = trusting(credentials) if trusted else ssl.create_default_context()
    with pytest.raises(NbdError, match="certificate verify failed"):
        async with Nbd(host, port, tls=context, restarts=0).open(pool=pool):
            pytest.fail("it is not open")


async def test_a_unix_socket_can_have_tls_and_can_demand_it(serve, raw, pool, credentials):
    words = ["nbdkit", "-f", "-r", "-U", "SOCKET", "--tls=require", f"--tls-certificates={credentials}"]
    place = serve(*words, "file", raw)
    context = trusting(credentials)
    with pytest.raises(ConfigError, match="has no name") as caught:
        Nbd(str(place), tls=context)
    assert "check_hostname = False" in caught.value.remedy
    context.check_hostname = False
    async with Nbd(str(place), tls=context).open(pool=pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), np.fromfile(raw, np.uint8))
    with pytest.raises(NbdError, match="requires TLS"):
        async with Nbd(str(place), restarts=0).open(pool=pool):
            pytest.fail("it is not open")


async def test_a_server_of_tcp_that_ends_within_a_read_is_connected_anew(serve, raw, pool, port, credentials):
    serve(*qemu(raw, port, credentials), port=port)
    settings = Nbd(HOST, port, tls=trusting(credentials), restart_pause_s=0.01, restarts=8)
    async with settings.open(pool=pool) as disk:
        buffer = await pool.acquire()
        await disk.read(buffer, 0, Extents.whole(SPAN))
        serve.kill()
        serve(*qemu(raw, port, credentials), port=port)
        await disk.read(buffer, 4 * SPAN, Extents.whole(SPAN, 4 * SPAN))
        assert np.array_equal(buffer.array, np.fromfile(raw, np.uint8)[4 * SPAN : 5 * SPAN])
        assert disk.reconnects == 1
        buffer.release()
