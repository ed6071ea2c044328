"""S3 servers, started once for each worker."""

import itertools

import pytest

from vadpipe.lab.object_stores import ObjectStoreMissing, moto_server, radosgw


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    try:
        with moto_server(tmp_path_factory.mktemp("moto")) as server:
            yield server
    except ObjectStoreMissing as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    try:
        with radosgw(tmp_path_factory.mktemp("ceph")) as server:
            yield server
    except ObjectStoreMissing as exc:
        pytest.skip(str(exc))


@pytest.fixture
def bucket(monkeypatch):
    """Makes a bucket of its own in a server, and sets the credentials. Returns the URL."""
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)

    def make(server):
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server.make_bucket(f"bucket{next(_numbers)}")

    return make


_numbers = itertools.count(1)
