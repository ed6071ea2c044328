"""Versions and object lock of a bucket.

Locks are tried on radosgw alone: in a bucket with a default retention, moto wants a header that S3 does not want.
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pipeline import ConfigError, SinkError
from tests.vadpipe.repository.backends.suite import is_clear
from vadpipe.repository.backends.administration import S3Administration
from vadpipe.repository.backends.contract import ObjectMissing
from vadpipe.repository.backends.s3 import S3Backend
from vadpipe.repository.backends.s3_location import S3Location

pytestmark = pytest.mark.slow


def of(*servers):
    return pytest.mark.parametrize("location", servers, indirect=True)


@pytest.fixture
def location(request, bucket):
    """A bucket of a server, which is not made yet."""
    server = request.getfixturevalue(request.param)
    made = S3Location.parse(bucket(server))
    return S3Location(f"{made.bucket}locked", "repository", server.endpoint)


@pytest.fixture
def administration(location):
    made = S3Administration(location)
    yield made
    made.close()


@of("ceph")
def test_a_locked_version_survives_deletion_and_is_found(location, administration):
    administration.prepare_bucket(make=True, retention_days=1, mode="GOVERNANCE")
    administration.prepare_bucket(retention_days=1, mode="GOVERNANCE")
    backend = S3Backend(location)
    backend.put("packs/00/1.pack", [b"the good one"])
    recorded = administration.recorded_versions()
    assert list(recorded) == ["packs/00/1.pack"]
    backend.delete(["packs/00/1.pack"])  # a delete marker
    with pytest.raises(ObjectMissing):
        backend.read("packs/00/1.pack")
    backend.put("packs/00/1.pack", [b"of a thief"])
    found = list(administration.versions("packs/"))
    assert [version.size for version in found] == [10, 12]
    assert administration.recorded_versions() == recorded
    got = administration._client.get_object(
        Bucket=location.bucket,
        Key="repository/packs/00/1.pack",
        VersionId=recorded["packs/00/1.pack"],
    )
    assert got["Body"].read() == b"the good one"


@of("ceph")
def test_retention_is_extended_and_never_shortened(location, administration):
    administration.prepare_bucket(make=True, retention_days=1, mode="GOVERNANCE")
    backend = S3Backend(location)
    backend.put("packs/00/1.pack", [b"x"])
    recorded = administration.recorded_versions()
    (version,) = recorded.values()
    long = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    assert administration.extend_retention(recorded, long, "GOVERNANCE") == ["packs/00/1.pack"]
    assert administration.retention("packs/00/1.pack", version) == long
    assert administration.extend_retention(recorded, long - timedelta(days=5), "GOVERNANCE") == []
    assert administration.retention("packs/00/1.pack", version) == long


def test_radosgw_refuses_to_remove_a_locked_version(ceph, bucket):
    location = S3Location(f"{S3Location.parse(bucket(ceph)).bucket}kept", "repository", ceph.endpoint)
    administration = S3Administration(location)
    administration.prepare_bucket(make=True, retention_days=1)
    S3Backend(location).put("a", [b"x"])
    version = administration.recorded_versions()["a"]
    assert administration.retention("a", version) > datetime.now(UTC) + timedelta(hours=23)
    with pytest.raises(administration._client.exceptions.ClientError, match="AccessDenied"):
        administration._client.delete_object(Bucket=location.bucket, Key="repository/a", VersionId=version)
    administration.close()


@of("moto", "ceph")
def test_versions_alone_have_no_retention(location, administration):
    administration.prepare_bucket(make=True)
    S3Backend(location).put("a", [b"x"])
    version = administration.recorded_versions()["a"]
    assert version not in ("", "null")


@of("moto", "ceph")
def test_a_missing_bucket_is_told(location, administration):
    with pytest.raises(SinkError) as caught:
        administration.prepare_bucket()
    assert is_clear(caught.value, "NoSuchBucket", "make=True")


@of("moto")
@pytest.mark.parametrize("settings", [{"retention_days": 0}, {"retention_days": 3, "mode": "FOREVER"}])
def test_a_retention_that_is_none_is_refused(location, administration, settings):
    with pytest.raises(ConfigError):
        administration.prepare_bucket(**settings)


def test_without_boto3_the_extra_is_named():
    script = """
import sys
sys.modules["boto3"] = None
from vadpipe.repository.backends.administration import S3Administration
from vadpipe.repository.backends.s3_location import S3Location
try:
    S3Administration(S3Location("bucket"))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("ConfigError"), done.stderr
    assert "pip install 'vadpipe[s3-admin]'" in done.stdout
