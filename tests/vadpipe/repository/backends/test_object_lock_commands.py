"""`vadpipe object-lock`: a repository is locked, a thief overwrites and deletes it, and it comes back."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline import KiB, MiB
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from tests.vadpipe.repository.backends.test_s3_commands import CONFIG, ids, restored
from tests.vadpipe.repository.repository_kit import mixed_content, random_bytes
from vadpipe.cli.main import _run
from vadpipe.lab.object_stores import ACCESS_KEY, SECRET_KEY
from vadpipe.repository.format.ways import make_key_file

pytestmark = pytest.mark.slow

GOVERNANCE = ("--mode", "governance")
# moto wants a header with each object, which S3 does not want, where new versions are locked by themselves.
LOCKING = ("--days", "1", *GOVERNANCE)

SERVERS = pytest.mark.parametrize("server", ["moto", "ceph"], indirect=True)


@pytest.fixture
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command; returns what it said, and what it said on standard error in `told`."""
    for name in ("REPOSITORY", "KEY_FILE", "PASSPHRASE_FILE", "AGE_IDENTITY"):
        monkeypatch.delenv(f"VADPIPE_{name}", raising=False)

    def call(*arguments, code=EXIT_DONE):
        found = _run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert SECRET_KEY not in said.out + said.err
        assert "Traceback" not in said.err, said.err
        assert code in (found, None), (arguments, said.err, said.out)
        call.told = said.err  # type: ignore[attr-defined]
        return said.out

    return call


class Bucket:
    """A bucket as somebody sees it who has its keys, and vadpipe's name of the repository in it."""

    def __init__(self, url):
        name, _, query = url.removeprefix("s3://").partition("?")
        self.name = f"{name}-locked"
        self.place = f"s3://{self.name}/web?{query}"
        boto3 = pytest.importorskip("boto3")
        self.client = boto3.client(
            "s3",
            endpoint_url=query.removeprefix("endpoint="),
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def names(self, prefix=""):
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=f"web/{prefix}")
        return [each["Key"] for each in found.get("Contents", ())]

    def content(self):
        return {
            name: self.client.get_object(Bucket=self.name, Key=name)["Body"].read() for name in self.names()
        }

    def overwrite(self, name, content=b"paid in bitcoin"):
        self.client.put_object(Bucket=self.name, Key=name, Body=content, ChecksumAlgorithm="SHA256")

    def delete(self, name, **version):
        return self.client.delete_object(Bucket=self.name, Key=name, **version)

    def versions(self, prefix=""):
        found = self.client.list_object_versions(Bucket=self.name, Prefix=f"web/{prefix}")
        return found.get("Versions", [])


@pytest.fixture
def bucket_of(server, bucket):
    made = Bucket(bucket(server))
    yield made
    made.client.close()


@pytest.fixture
def machine(tmp_path):
    def machine(place, content):
        content.tofile(tmp_path / "content")
        config = tmp_path / "nightly.py"
        text = CONFIG.format(content=str(tmp_path / "content"), writes=0, place=place)
        config.write_text(text.replace("incremental_path", "full_path"))
        return config

    return machine


@pytest.fixture
def prepared(request, call, bucket_of):
    """A bucket that can lock versions; Ceph's locks them for a day by itself."""
    locking = LOCKING if "ceph" in request.node.name else ()
    call("object-lock", "prepare", bucket_of.place, "--make", *locking)
    return bucket_of.place


@pytest.fixture
def extend(call, bucket_of):
    """Extends in a way that a test can undo; returns the document."""

    def extend(*arguments, code=EXIT_DONE):
        command = ("object-lock", "extend", bucket_of.place, *arguments, *GOVERNANCE, "--json")
        return json.loads(call(*command, code=code))

    return extend


@pytest.fixture
def filled(call, bucket_of, prepared, machine):
    """A repository of three points in such a bucket, and what each holds."""
    call("init", bucket_of.place)
    contents = [mixed_content(3 * MiB)]
    call("run", machine(bucket_of.place, contents[0]))
    for number in (1, 2):
        changed = contents[-1].copy()
        changed[number * MiB : number * MiB + 64 * KiB] = random_bytes(number, 64 * KiB)
        contents.append(changed)
        call("run", machine(bucket_of.place, changed))
    return dict(zip(ids(call, bucket_of.place), contents, strict=True))


def days(count):
    return datetime.now(UTC) + timedelta(days=count)


def state(call, place, code=None):
    return json.loads(call("object-lock", "status", place, "--json", code=code))


@SERVERS
def test_a_repository_that_a_thief_overwrote_and_deleted_comes_back(
    call, extend, bucket_of, filled, machine, tmp_path
):
    place = bucket_of.place
    locked = extend("--days", "30")["extended"]
    for version in bucket_of.versions():
        if version["Key"].removeprefix("web/") in locked:
            with pytest.raises(bucket_of.client.exceptions.ClientError, match="AccessDenied"):
                bucket_of.delete(version["Key"], VersionId=version["VersionId"])
    late = next(reversed(filled.values())).copy()
    late[:4096] = 7
    call("run", machine(place, late))  # after the record
    filled = {**filled, ids(call, place)[-1]: late}
    before = bucket_of.content()

    kinds = {name.split("/")[1] for name in before}
    assert {"config.json", "packs", "index", "points", "versions"} <= kinds
    for number, name in enumerate(sorted(before)):  # as a thief would
        if number % 3:
            bucket_of.overwrite(name)
        if number % 3 != 1:
            bucket_of.delete(name)
        if number % 2:
            bucket_of.overwrite(name, random_bytes(number, 1000).tobytes())
    call("points", place, code=EXIT_FAILED)

    dry = call("object-lock", "restore", place, "--dry-run")
    assert "packs/" in dry
    assert "would be put back" in dry
    call("points", place, code=EXIT_FAILED)
    said = call("object-lock", "restore", place)
    assert "Written after the record" in said
    for name in before:
        if "/versions/" not in name and not name.endswith("newest"):
            assert f"{name.removeprefix('web/')}: " in said
    after = bucket_of.content()
    assert {name for name in before if "/versions/" not in name} <= set(after)
    assert all(after[name] == before[name] for name in before if "/versions/" not in name)
    assert call("object-lock", "restore", place).startswith("0 objects put back")
    call("verify", place)
    for point, content in filled.items():
        assert np.array_equal(restored(call, place, point, tmp_path / point), content)
    extend("--days", "31")
    assert not state(call, place)["overwritten"]


@SERVERS
def test_deleted_objects_come_back_without_being_copied(call, extend, bucket_of, filled):
    extend("--days", "2")
    count = len(bucket_of.versions())
    for name in bucket_of.names():
        bucket_of.delete(name)
    found = json.loads(call("object-lock", "restore", bucket_of.place, "--json"))
    assert {step["action"] for step in found["objects"]} == {"undelete"}
    assert len(bucket_of.versions()) == count
    assert set(ids(call, bucket_of.place)) == set(filled)
    call("verify", bucket_of.place)


@SERVERS
def test_what_points_need_is_kept_until_the_last_one(call, extend, bucket_of, filled):
    first, *_, last = filled
    place = bucket_of.place
    dry = extend("--days", "30", "--dry-run")
    assert dry["record"] is None
    assert len(dry["extended"]) == sum(kind["needed"] for kind in dry["kinds"].values())
    assert state(call, place)["last_record"] is None

    extend("--days", "20", "--point", first)
    found = extend("--days", "40", "--point", last)
    assert found["points"].keys() == {last}
    assert f"points/{_machine(bucket_of)}/{last}.json" in found["extended"]
    assert f"points/{_machine(bucket_of)}/{first}.json" not in found["extended"]
    kinds = {kind["kind"]: kind for kind in state(call, place)["kinds"]}
    for kind in ("config", "index"):
        assert datetime.fromisoformat(kinds[kind]["first"]) > days(39)
    ends = {_day(found): count for found, count in kinds["points"]["until"].items()}
    ends.pop(_day(days(1)), None)  # what Ceph locks by itself
    assert ends == {_day(days(20)): 1, _day(days(40)): 1}
    assert datetime.fromisoformat(kinds["packs"]["last"]) > days(39)
    again = extend("--days", "30")
    shorter = [name for name, until in again["extended"].items() if datetime.fromisoformat(until) > days(31)]
    assert shorter == []
    assert f"points/{_machine(bucket_of)}/{last}.json" not in again["extended"]


@SERVERS
def test_a_pack_that_no_kept_point_needs_is_not_extended(call, extend, prepared, bucket_of, machine):
    place = bucket_of.place
    call("init", place)
    call("run", machine(place, random_bytes(1, MiB)))
    alone = set(bucket_of.names("packs/"))
    call("run", machine(place, random_bytes(2, MiB)))
    newest = ids(call, place)[-1]
    found = extend("--days", "9", "--point", newest)
    extended = {f"web/{name}" for name in found["extended"]}
    assert alone
    assert not alone & extended
    assert set(bucket_of.names("packs/")) - alone <= extended


@SERVERS
def test_an_overwritten_object_is_told_and_its_first_version_is_locked(call, extend, bucket_of, filled):
    place = bucket_of.place
    pack = bucket_of.names("packs/")[0]
    good = bucket_of.versions(pack.removeprefix("web/"))[0]["VersionId"]
    content = bucket_of.client.get_object(Bucket=bucket_of.name, Key=pack)["Body"].read()
    bucket_of.overwrite(pack, content[:-1] + b"x")
    found = extend("--days", "9", code=EXIT_ATTENTION)
    assert "was overwritten" in found["problems"][0]
    assert "vadpipe object-lock restore" in call.told
    kept = bucket_of.client.head_object(Bucket=bucket_of.name, Key=pack, VersionId=good)
    assert kept["ObjectLockRetainUntilDate"] > days(8)
    assert state(call, place, EXIT_ATTENTION)["overwritten"] == [pack.removeprefix("web/")]


@SERVERS
def test_a_point_that_was_deleted_without_forget_is_told(call, extend, bucket_of, filled):
    place = bucket_of.place
    extend("--days", "9")
    first, second, third = filled
    call("forget", place, first)
    extend("--days", "9")
    bucket_of.delete(f"web/points/{_machine(bucket_of)}/{third}.json")
    extend("--days", "9", code=EXIT_ATTENTION)
    assert third in call.told
    assert first not in call.told
    assert second not in call.told


@SERVERS
def test_what_was_removed_on_purpose_before_the_record_stays_removed(
    call, extend, bucket_of, filled, wait_for_next_second
):
    place = bucket_of.place
    first, *others = filled
    call("forget", place, first)
    call("prune", place)
    wait_for_next_second()
    extend("--days", "9")
    bucket_of.delete(f"web/points/{_machine(bucket_of)}/{others[0]}.json")
    call("object-lock", "restore", place)
    assert set(ids(call, place)) == set(others)


@SERVERS
def test_without_a_record_the_time_decides(call, extend, bucket_of, filled, wait_for_next_second):
    place = bucket_of.place
    first, *others = filled
    call("forget", place, first)
    wait_for_next_second()
    began = datetime.now(UTC)
    bucket_of.delete("web/config.json")
    for name in bucket_of.names("points/"):
        bucket_of.delete(name)
    bucket_of.overwrite("web/removals/0123456789abcdef.json")
    call("object-lock", "restore", place, code=EXIT_USAGE)
    assert "--before" in call.told
    call("object-lock", "restore", place, "--before", began.isoformat(), code=EXIT_ATTENTION)
    call("points", place, code=EXIT_FAILED)  # what the thief added is still there
    said = call("object-lock", "restore", place, "--before", began.isoformat(), "--hide-added")
    assert "removals/0123456789abcdef.json: first written at" in said
    assert set(ids(call, place)) == set(others)
    call("prune", place)
    call("verify", place)


@SERVERS
def test_a_version_that_was_not_locked_and_is_gone_is_told(call, extend, bucket_of, machine, tmp_path):
    place = bucket_of.place
    bucket_of.client.create_bucket(Bucket=bucket_of.name)
    assert "can be removed" in call("object-lock", "prepare", place)
    call("init", place)
    call("run", machine(place, mixed_content(MiB)))
    extend("--days", "1", code=EXIT_FAILED)
    assert "prepare" in call.told
    pack = bucket_of.names("packs/")[0]
    (version,) = bucket_of.versions(pack.removeprefix("web/"))
    bucket_of.delete(pack, VersionId=version["VersionId"])
    bucket_of.overwrite("web/config.json")
    began = days(-1).isoformat()
    said = call("object-lock", "restore", place, "--before", days(1).isoformat())
    assert "config.json: overwritten" in said
    assert call("object-lock", "restore", place, "--before", began, code=EXIT_ATTENTION)
    call("verify", place, code=EXIT_FAILED)


@SERVERS
def test_a_recorded_version_that_is_gone_is_lost(call, extend, bucket_of, filled):
    place = bucket_of.place
    extend("--days", "1")
    pack = bucket_of.names("packs/")[0]
    (version,) = bucket_of.versions(pack.removeprefix("web/"))
    bucket_of.delete(pack, VersionId=version["VersionId"], BypassGovernanceRetention=True)
    bucket_of.overwrite(pack)
    said = call("object-lock", "restore", place, code=EXIT_ATTENTION)
    assert f"{pack.removeprefix('web/')}: the recorded version was removed; LOST" in said
    assert "1 lost" in said


@SERVERS
def test_a_sealed_repository_comes_back_by_its_sealed_record(
    call, extend, prepared, bucket_of, machine, tmp_path, monkeypatch, wait_for_next_second
):
    place, key = bucket_of.place, tmp_path / "key"
    make_key_file(key)
    call("init", place, "--new-key-file", key)
    content = mixed_content(2 * MiB)
    monkeypatch.setenv("VADPIPE_KEY_FILE", str(key))
    call("run", machine(place, content))
    extend("--days", "9")
    wait_for_next_second()
    bucket_of.overwrite("web/versions/ffffffffffffffff.json")  # a forged record
    for name in bucket_of.names():
        bucket_of.delete(name)
    said = call("object-lock", "restore", place)
    assert "keys/" in said
    assert "--hide-added" not in said
    assert "cannot be believed" in call.told
    assert np.array_equal(restored(call, place, "latest", tmp_path / "restored"), content)


@SERVERS
def test_a_key_is_not_asked_for_where_none_is_needed(call, extend, bucket_of, filled):
    call("object-lock", "status", bucket_of.place, code=None)
    extend("--days", "3")
    text = call("object-lock", "status", bucket_of.place)
    assert "versions are kept" in text
    assert "packs" in text
    call("object-lock", "status", bucket_of.place, "--key-file", "x", code=EXIT_USAGE)


@SERVERS
def test_a_bucket_that_is_prepared_again_keeps_its_mode(call, bucket_of):
    place = bucket_of.place
    call("object-lock", "prepare", place, "--make", "--days", "2", *GOVERNANCE)
    found = json.loads(call("object-lock", "prepare", place, "--days", "3", "--json"))
    assert found["bucket"] == {"versions": True, "lock": True, "mode": "GOVERNANCE", "days": 3}
    call("object-lock", "prepare", place, "--days", "9", "--dry-run")
    assert "for 3 days (governance)" in call("object-lock", "prepare", place, "--days", "9", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "/srv/backup"], "not in a bucket"),
        (["extend", "s3://bucket"], "--until or --days"),
        (["extend", "s3://bucket", "--until", "2020-01-01"], "past"),
        (["extend", "s3://bucket", "--until", "soon"], "is no time"),
        (["extend", "s3://bucket", "--until", "2090-01-01", "--from-creation"], "--days"),
        (["restore", "s3://bucket", "--hide-added"], "--before"),
        (["status", "s3://user:key@bucket"], "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_wrong_command_line_touches_nothing(call, arguments, said):
    call("object-lock", *arguments, code=EXIT_USAGE)
    assert said in call.told


@SERVERS
def test_a_place_without_a_repository_is_told(call, bucket_of):
    call("object-lock", "status", bucket_of.place, code=EXIT_FAILED)
    assert "--make" in call.told
    call("object-lock", "prepare", bucket_of.place, "--make")
    call("object-lock", "status", bucket_of.place, code=EXIT_FAILED)
    assert "has no versions of a repository" in call.told
    call("object-lock", "restore", bucket_of.place, code=EXIT_FAILED)


@pytest.fixture
def wait_for_next_second():
    """Servers tell times in whole seconds."""
    import time

    def wait():
        time.sleep(1.1)

    return wait


def _machine(bucket):
    return bucket.names("points/")[0].split("/")[2]


def _day(when):
    return when if isinstance(when, str) else when.astimezone(UTC).date().isoformat()
