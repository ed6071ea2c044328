"""The suite of the contract over S3: against moto, and against radosgw where Ceph is installed."""

import pytest

from tests.vadpipe.repository.backends.suite import BackendSuite
from vadpipe.repository.backends.s3 import S3Backend
from vadpipe.repository.backends.s3_location import S3Location


class OverS3(BackendSuite):
    """With a prefix and without."""

    @pytest.fixture(params=["", "/of/two~parts%20"])
    def below(self, request):
        return request.param

    @pytest.fixture
    def backend(self, server, bucket, below):
        url = bucket(server)
        made = S3Backend(S3Location.parse(url.replace("?", f"{below.replace('%', '%25')}?")))
        assert made.location.prefix == below.strip("/")
        yield made
        made.close()

    def test_the_server_lets_one_writer_have_a_name(self, backend):
        assert backend.probe_conditional()
        assert backend.conditional
        assert list(backend.list("")) == []


@pytest.mark.slow
class TestMoto(OverS3):
    many = 1200  # a page has 1000; moto takes 5 ms per object

    @pytest.fixture
    def server(self, moto):
        return moto


@pytest.mark.slow
class TestRadosgw(OverS3):
    many = 2500

    @pytest.fixture
    def server(self, ceph):
        return ceph
