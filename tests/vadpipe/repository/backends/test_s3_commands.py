"""Every command on a repository in a bucket, as users call them."""

import json
import logging

import numpy as np
import pytest

from pipeline import KiB, MiB
from pipeline.errors import EXIT_DONE, EXIT_FAILED
from tests.vadpipe.repository.repository_kit import mixed_content, random_bytes
from vadpipe.cli.main import _run
from vadpipe.lab.object_stores import SECRET_KEY
from vadpipe.repository.format.ways import make_key_file

pytestmark = pytest.mark.slow

CONFIG = """
import os
import numpy as np
from pipeline import Job
from pipeline.testing.fakes import FakeMachine
from tests.vadpipe.repository.repository_kit import MemoryDisk, incremental_path
from vadpipe.repository import Repository

disk = MemoryDisk(np.fromfile({content!r}, np.uint8), written=[(0, 4096)] * {writes})
job = Job(FakeMachine([disk]), incremental_path, Repository({place!r}, tags=["nightly"]), name="web01")
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("REPOSITORY", "KEY_FILE", "PASSPHRASE_FILE", "AGE_IDENTITY"):
        monkeypatch.delenv(f"VADPIPE_{name}", raising=False)


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command; returns what it said. Whatever it says, it is no secret."""
    monkeypatch.setenv("VADPIPE_LOG", "")

    def call(*arguments, code=EXIT_DONE):
        found = _run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert SECRET_KEY not in said.out + said.err
        assert "Traceback" not in said.err, said.err
        assert found == code, (arguments, said.err, said.out)
        return said.out

    return call


@pytest.fixture
def machine(tmp_path):
    """Writes the configuration of a VM with one disk; returns its path."""

    def machine(place, content, writes=0):
        content.tofile(tmp_path / "content")
        config = tmp_path / "nightly.py"
        config.write_text(CONFIG.format(content=str(tmp_path / "content"), writes=writes, place=place))
        return config

    return machine


def ids(call, place):
    return [point["id"] for point in json.loads(call("points", place, "--json"))["points"]]


def restored(call, place, point, directory):
    call("restore", place, point, f"raw:{directory}")
    (image,) = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > MiB]
    return np.fromfile(image, np.uint8)


@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_repository_in_a_bucket_lives(request, bucket, call, machine, tmp_path, caplog, server):
    caplog.set_level(logging.DEBUG, "vadpipe")
    place = bucket(request.getfixturevalue(server)).replace("?", "/web?")
    call("init", place)
    content = mixed_content(6 * MiB)
    config = machine(place, content)

    assert "MISSING" not in call("plan", config)
    call("run", config)
    assert "incremental" in call("run", config)
    changed = content.copy()
    changed[: 4 * KiB] = random_bytes(9, 4 * KiB)
    call("run", machine(place, changed, writes=1))
    first, second, third = ids(call, place)

    assert first in call("show", place, first)
    assert np.array_equal(restored(call, place, first, tmp_path / "first"), content)
    assert np.array_equal(restored(call, place, "latest", tmp_path / "third"), changed)
    call("verify", place)
    call("verify", place, "--budget", "50%")
    call("verify", place, "--without-key")
    call("stats", place)
    assert "4.0 KiB" in call("diff", place, first, third)
    (tmp_path / "head.json").write_text(call("head", place, "--json"))
    call("head", place, "--compare", tmp_path / "head.json")

    call("hold", place, second, "--reason", "an audit")
    call("forget", place, "--keep-last", "1")
    assert ids(call, place) == [second, third]
    call("release", place, second)
    call("forget", place, second)
    call("prune", place, "--dry-run")
    call("prune", place)
    call("prune", place)
    call("repair", place, "--dry-run")
    call("repair", place)
    call("verify", place)
    assert ids(call, place) == [third]
    call("head", place, "--compare", tmp_path / "head.json")

    call("init", tmp_path / "local")
    call("copy", place, tmp_path / "local")
    assert np.array_equal(restored(call, tmp_path / "local", third, tmp_path / "copied"), changed)
    assert SECRET_KEY not in caplog.text


@pytest.mark.parametrize("server", ["moto"])
def test_a_sealed_repository_in_a_bucket_lives(request, bucket, call, machine, tmp_path, monkeypatch, server):
    place = bucket(request.getfixturevalue(server)).replace("?", "/sealed?")
    key, other = tmp_path / "key", tmp_path / "other"
    make_key_file(key)
    call("init", place, "--new-key-file", key)
    make_key_file(other)
    monkeypatch.setenv("VADPIPE_KEY_FILE", str(key))
    content = mixed_content(3 * MiB)
    call("run", machine(place, content))
    call("key", "add", place, "--label", "recovery", "--new-key-file", other)
    assert "recovery" in call("key", "list", place)
    call("key", "epoch", place)
    call("run", machine(place, content))
    monkeypatch.setenv("VADPIPE_KEY_FILE", str(other))
    assert np.array_equal(restored(call, place, "latest", tmp_path / "restored"), content)
    call("verify", place)
    monkeypatch.delenv("VADPIPE_KEY_FILE")
    call("verify", place, "--without-key")
    call("points", place, code=2)


def test_a_role_that_may_not_delete_backs_up(ceph, bucket, call, machine):
    """radosgw enforces the policy. What runs leave is removed by a prune with the right."""
    boto3 = pytest.importorskip("boto3")
    place = bucket(ceph)
    client = boto3.client("s3", endpoint_url=ceph.endpoint, region_name="us-east-1")
    name = place.removeprefix("s3://").partition("?")[0]
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{name}/*"],
    }

    def stored(prefix):
        return [
            found["Key"] for found in client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", ())
        ]

    call("init", place)
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    client.put_bucket_policy(Bucket=name, Policy=policy)
    content = mixed_content(3 * MiB)
    for _ in range(3):
        call("run", machine(place, content))
    points = ids(call, place)
    assert len(points) == 3
    assert set(stored("runs/")) >= {f"runs/{point}.json" for point in points}
    call("verify", place)
    call("forget", place, points[0], code=EXIT_FAILED)
    client.delete_bucket_policy(Bucket=name)
    call("forget", place, points[0])
    call("prune", place)
    assert stored("runs/") == []
    call("verify", place)
    client.close()
