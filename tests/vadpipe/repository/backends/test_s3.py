"""What is special about S3: conditions that a server does not keep, answers that are lost, errors that help."""

import base64
import hashlib
import socket
import ssl
import subprocess
import sys
import time

import pytest

from pipeline import ConfigError, MiB, SinkError
from pipeline.secrets import blotted
from tests.vadpipe.repository.backends.s3_kit import SECRET, Trouble, planned_store
from tests.vadpipe.repository.backends.suite import BackendSuite, is_clear, race
from vadpipe.lab.certificate import create_credentials, load_or_create
from vadpipe.repository.backends import s3 as s3_module
from vadpipe.repository.backends.contract import ObjectExists, ObjectMissing
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.backends.s3 import S3Backend
from vadpipe.repository.backends.s3_location import S3Location
from vadpipe.repository.backends.wrappers import Retrying


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def backend_of(store, **options):
    return S3Backend(S3Location("bucket", "repository", store.endpoint, **options))


@pytest.mark.slow
class TestPlannedStore(BackendSuite):
    """The server of these tests passes the suite, so what fails below fails because it was planned."""

    many = 100
    large = 4 * MiB

    @pytest.fixture
    def backend(self):
        with planned_store() as store:
            yield backend_of(store)


def test_the_requests_are_signed_and_the_payload_is_not(monkeypatch):
    with planned_store() as store:
        backend_of(store).put("a", [b"x"])
    (headers,) = store.headers
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=KEYID/")
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert headers["if-none-match"] == "*"
    assert "if-match" not in headers


@pytest.mark.parametrize("size", [0, 1, 5 * MiB + 1, 20 * MiB])
def test_an_object_is_one_request_whatever_its_size(size):
    with planned_store() as store:
        upload = backend_of(store).begin("packs/00/1.pack")
        for _ in range(2):
            upload.write([bytes(size // 2)])
        upload.write([bytes(size % 2)])
        assert store.requests == []
        upload.finish()
        assert store.requests == [("PUT", "repository/packs/00/1.pack")]
        assert len(store.objects["repository/packs/00/1.pack"]) == size


def test_an_upload_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(s3_module, "LARGEST_OBJECT", 1000)
    with planned_store() as store:
        upload = backend_of(store).begin("a")
        upload.write([bytes(600)])
        with pytest.raises(SinkError):
            upload.write([bytes(600)])
        assert store.requests == []


# Conditions


def test_a_server_that_keeps_conditions_is_known():
    with planned_store() as store:
        backend = backend_of(store)
        assert backend.probe_conditional() is True
        assert store.objects == {}
        assert store.count("PUT") == 10


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_server_that_does_not_is_known_and_written_without(conditions):
    with planned_store(conditions=conditions) as store:
        backend = backend_of(store)
        assert backend.probe_conditional() is False
        assert store.objects == {}
        backend.put("a", [b"x"])
        assert store.headers[-1].get("if-none-match") is None
        with pytest.raises(ObjectExists):
            backend.put("a", [b"y"])
        assert backend.read("a") == b"x"


def test_a_server_without_conditions_can_be_named_in_the_url():
    with planned_store(conditions="unknown") as store:
        backend = backend_at(f"s3://bucket/repository?endpoint={store.endpoint}&conditional=no")
        backend.put("a", [b"x"])
        with pytest.raises(ObjectExists):
            backend.put("a", [b"x"])


def test_a_backend_is_told_to_write_without_conditions():
    with planned_store(conditions="unknown") as store:
        backend = Retrying(backend_of(store))
        with pytest.raises(SinkError) as caught:
            backend.put("a", [b"x"])
        assert is_clear(caught.value, "501", "conditional=no")
        backend.write_unconditionally()
        backend.put("a", [b"x"])
        assert backend.read("a") == b"x"


def test_a_wrong_key_is_not_taken_for_a_missing_condition():
    with (
        planned_store(always=Trouble(403, "InvalidAccessKeyId")) as store,
        pytest.raises(SinkError) as caught,
    ):
        backend_of(store).probe_conditional()
    assert is_clear(caught.value, "access key", "AWS_ACCESS_KEY_ID")


# Answers that are lost

LOST = [Trouble(done=True), Trouble(500, "InternalError", done=True), Trouble(504, "", done=True)]


@pytest.mark.parametrize("trouble", LOST)
@pytest.mark.parametrize("whole", [True, False])
def test_an_object_whose_answer_was_lost_is_read_back(trouble, whole):
    with planned_store(plan={("PUT", 1): trouble}) as store:
        backend = backend_of(store)
        write(backend, "a", [b"content ", b"in parts"], whole)
        assert store.objects == {"repository/a": b"content in parts"}
        assert store.count("PUT") == 1
        assert backend.read("a") == b"content in parts"


@pytest.mark.parametrize("trouble", LOST)
@pytest.mark.parametrize("taken", [b"other content!!!", b"shorter"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_name_that_another_writer_took_meanwhile_is_taken(trouble, taken, whole):
    with planned_store(plan={("PUT", 1): trouble}) as store:
        store.objects["repository/a"] = taken
        with pytest.raises(ObjectExists):
            write(backend_of(store), "a", [b"content ", b"in parts"], whole)
        assert store.objects == {"repository/a": taken}


@pytest.mark.parametrize("whole", [True, False])
def test_a_request_that_was_lost_before_the_server_can_be_repeated(whole):
    with planned_store(plan={("PUT", 1): Trouble(), ("PUT", 2): Trouble(503, "SlowDown")}) as store:
        waits = []
        backend = Retrying(backend_of(store), sleep=waits.append)
        write(backend, "a", [b"content"], whole)
        assert store.objects == {"repository/a": b"content"}
        assert (store.count("PUT"), waits) == (3, [0.5, 1.0])


@pytest.mark.parametrize("whole", [True, False])
def test_an_object_that_appears_after_it_was_looked_for_is_our_own(whole):
    """The server works on after the connection was lost: the second attempt finds what the first one made."""
    with planned_store(plan={("PUT", 1): Trouble(done=True), ("HEAD", 1): Trouble(404)}) as store:
        backend = Retrying(backend_of(store), sleep=lambda seconds: None)
        write(backend, "a", [b"content"], whole)
        assert store.count("PUT") == 2
        assert store.objects == {"repository/a": b"content"}


@pytest.mark.slow
def test_a_time_out_is_read_back(monkeypatch):
    monkeypatch.setattr(s3_module, "SMALL_REQUEST_S", 0.5)
    with planned_store(plan={("PUT", 1): Trouble(done=True, hang_s=1.5)}) as store:
        backend_of(store).put("a", [b"content"])
        assert store.objects == {"repository/a": b"content"}


@pytest.mark.slow
def test_a_large_object_has_more_time_than_a_small_one(monkeypatch):
    monkeypatch.setattr(s3_module, "SMALL_REQUEST_S", 0.01)
    with planned_store(plan={("PUT", 1): Trouble(503, done=True, hang_s=0.5)}) as store:
        backend_of(store).put("a", [bytes(9 * MiB)])
        assert store.count("PUT") == 1
        assert len(store.objects["repository/a"]) == 9 * MiB


@pytest.mark.parametrize("taken", [True, False])
def test_a_conflict_of_two_writers_did_nothing(taken):
    with planned_store(plan={("PUT", 1): Trouble(409, "ConditionalRequestConflict")}) as store:
        if taken:
            store.objects["repository/a"] = b"content"  # of the other one, although it is the same
            with pytest.raises(ObjectExists):
                backend_of(store).put("a", [b"content"])
        else:
            Retrying(backend_of(store), sleep=lambda seconds: None).put("a", [b"content"])
            assert store.objects == {"repository/a": b"content"}


def test_when_the_object_cannot_be_read_back_the_first_trouble_is_told():
    with planned_store(plan={("PUT", 1): Trouble(), ("HEAD", 1): Trouble(403, "")}) as store:
        with pytest.raises(SinkError) as caught:
            backend_of(store).put("a", [b"x"])
        assert is_clear(caught.value, "the connection was lost", "s3://bucket/repository/a")
        assert caught.value.transient


def test_a_storm_of_503_ends_when_it_ends():
    plan = {
        (method, n): Trouble(503, "SlowDown") for method in ("PUT", "GET", "HEAD", "POST") for n in (1, 2, 3)
    }
    with planned_store(plan=plan) as store:
        backend = Retrying(backend_of(store), sleep=lambda seconds: None)
        backend.put("a", [b"x"])
        assert backend.read("a") == b"x"
        assert backend.size("a") == 1
        backend.replace("b", [b"y"])
        assert [stored.name for stored in backend.list("")] == ["a", "b"]
        backend.delete(["a", "b"])
        assert store.objects == {}


@pytest.mark.slow
def test_a_storm_that_does_not_end_is_told(caplog):
    with planned_store(always=Trouble(503, "SlowDown")) as store, caplog.at_level("INFO"):
        backend = Retrying(backend_of(store), 4, sleep=lambda seconds: None)
        for call in (
            lambda: backend.put("a", [b"x"]),
            lambda: backend.read("a"),
            lambda: backend.size("a"),
            lambda: list(backend.list("")),
            lambda: backend.replace("a", [b"x"]),
            lambda: backend.delete(["a"]),
        ):
            with pytest.raises(SinkError) as caught:
                call()
            assert is_clear(caught.value, "overloaded", "s3://bucket/repository")
            assert caught.value.transient
    assert "attempt 3 of 4 failed" in caplog.text
    assert SECRET not in caplog.text


# Errors that help


@pytest.mark.parametrize(
    ("status", "code", "words", "transient"),
    [
        (403, "AccessDenied", ["access is denied", "rights"], False),
        (403, "InvalidAccessKeyId", ["access key", "AWS_ACCESS_KEY_ID"], False),
        (403, "SignatureDoesNotMatch", ["secret key is wrong", "AWS_SECRET_ACCESS_KEY"], False),
        (401, "", ["access is denied", "AWS_ACCESS_KEY_ID"], False),
        (400, "ExpiredToken", ["expired", "new credentials"], False),
        (403, "RequestTimeTooSkewed", ["clocks", "15 minutes"], False),
        (404, "NoSuchBucket", ["bucket does not exist", "Make the bucket"], False),
        (301, "PermanentRedirect", ["another region", "?region="], False),
        (400, "AuthorizationHeaderMalformed", ["region", "?region="], False),
        (507, "", ["full", "Free space"], False),
        (403, "QuotaExceeded", ["quota", "Raise"], False),
        (400, "EntityTooLarge", ["too large"], False),
        (429, "TooManyRequests", ["HTTP 429", "later"], True),
        (503, "SlowDown", ["fewer requests", "later"], True),
        (500, "InternalError", ["failed", "HTTP 500"], True),
        (418, "Teapot", ["HTTP 418", "Teapot", "log of the server"], False),
    ],
)
@pytest.mark.parametrize("call", ["put", "read", "list", "replace", "delete"])
def test_an_answer_says_what_is_wrong_and_what_to_do(status, code, words, transient, call):
    calls = {
        "put": lambda backend: backend.put("a", [b"x"]),
        "read": lambda backend: backend.read("a"),
        "list": lambda backend: list(backend.list("index/")),
        "replace": lambda backend: backend.replace("a", [b"x"]),
        "delete": lambda backend: backend.delete(["a"]),
    }
    with planned_store(always=Trouble(status, code)) as store, pytest.raises(SinkError) as caught:
        calls[call](backend_of(store))
    assert is_clear(caught.value, "s3://bucket/repository", *words)
    assert caught.value.transient == transient
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert SECRET not in blotted(str(caught.value.__cause__))


def test_a_missing_bucket_is_told_also_where_the_answer_has_no_text():
    with planned_store(always=Trouble(404, "NoSuchBucket")) as store, pytest.raises(SinkError) as caught:
        backend_of(store).size("config.json")
    assert is_clear(caught.value, "bucket does not exist")


def test_nobody_who_listens_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = S3Backend(S3Location("bucket", endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(SinkError) as caught:
            backend.put("a", [b"x"])
    assert is_clear(caught.value, "s3://bucket/a", "nobody listens", "endpoint")
    assert caught.value.transient


def test_a_host_without_an_address_is_told():
    backend = S3Backend(S3Location("bucket", endpoint="https://no-such-host.invalid"))
    with pytest.raises(SinkError) as caught:
        backend.read("a")
    assert is_clear(caught.value, "no address", "endpoint")
    assert caught.value.transient


def test_missing_credentials_are_told(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # no instance of a cloud
    with planned_store() as store:
        with pytest.raises(SinkError) as caught:
            backend_of(store).put("a", [b"x"])
        assert is_clear(caught.value, "no credentials", "AWS_ACCESS_KEY_ID")
        assert store.requests == []


def test_a_server_with_a_certificate_of_a_private_authority_needs_its_file(tmp_path):
    create_credentials(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
    with planned_store(tls=context) as store:
        with pytest.raises(SinkError) as caught:
            backend_of(store).put("a", [b"x"])
        assert is_clear(caught.value, "certificate", "?ca=")
        backend = backend_at(f"s3://bucket/repository?endpoint={store.endpoint}&ca={tmp_path}/ca-cert.pem")
        backend.put("a", [b"x"])
        assert store.objects == {"repository/a": b"x"}


def test_a_server_that_signed_its_own_certificate_is_told(tmp_path):
    certificate = load_or_create(tmp_path, "127.0.0.1")
    with planned_store(tls=certificate.server_context()) as store, pytest.raises(SinkError) as caught:
        backend_of(store, ca=certificate.path).put("a", [b"x"])
    assert is_clear(caught.value, "certificate of an authority", "CA:FALSE")


def test_a_missing_file_of_certificates_is_told(tmp_path):
    backend = S3Backend(S3Location("bucket", endpoint="https://127.0.0.1:9", ca=tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        backend.read("a")


def test_a_server_without_tls_is_told():
    with planned_store() as store:
        backend = S3Backend(S3Location("bucket", endpoint=store.endpoint.replace("http:", "https:")))
        with pytest.raises(SinkError) as caught:
            backend.put("a", [b"x"])
    assert is_clear(caught.value, "does not speak TLS", "endpoint")


# The rest


def test_a_server_that_cannot_delete_many_deletes_one_by_one(caplog):
    with planned_store(bulk=False) as store, caplog.at_level("INFO"):
        backend = backend_of(store)
        for number in range(5):
            backend.put(f"a/{number}", [b"x"])
        backend.delete(f"a/{number}" for number in range(4))
        backend.delete(["a/4", "a/5"])
        assert store.objects == {}
        assert store.count("POST") == 1
    assert "one object at a time" in caplog.text


def test_a_server_that_wants_checksums_gets_them(caplog):
    with planned_store(checksums=True) as store, caplog.at_level("INFO"):
        backend = backend_of(store)
        backend.put("a", [b"x"])
        backend.put("b", [b"y"])
        with pytest.raises(ObjectExists):
            backend.put("b", [b"z"])
        assert store.objects == {"repository/a": b"x", "repository/b": b"y"}
        assert store.count("PUT") == 4  # it was asked for once
        digest = base64.b64encode(hashlib.sha256(b"y").digest()).decode()
        assert store.headers[2]["x-amz-checksum-sha256"] == digest
        assert "x-amz-checksum-sha256" in store.headers[2]["authorization"]  # it is signed
    assert "written with checksums" in caplog.text


def test_keys_of_others_are_not_listed():
    with planned_store() as store:
        backend = backend_of(store)
        backend.put("a/1", [b"x"])
        store.objects |= {
            "repository2/b": b"x",
            "repository/a b": b"x",
            "repository/tmp/x": b"x",
            "other": b"x",
        }
        assert [stored.name for stored in backend.list("")] == ["a/1"]


def test_each_request_is_logged_with_its_duration(caplog):
    with planned_store() as store, caplog.at_level("DEBUG", "vadpipe"):
        backend_of(store).put("a", [b"x"])
    assert "write s3://bucket/repository/a: 0." in caplog.text


def test_many_threads_share_one_backend():
    with planned_store() as store:
        backend = backend_of(store)
        race([lambda n=n: [backend.put(f"{n}/{m}", [b"x"]) for m in range(5)] for n in range(8)])
        assert len(store.objects) == 40


@pytest.mark.slow
def test_obstore_is_loaded_when_it_is_used():
    script = """
import sys
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.backends.s3_location import S3Location
backend_at("/srv/backup")
assert not {"obstore", "boto3"} & set(sys.modules)
sys.modules["obstore"] = None
try:
    backend_at("s3://bucket/prefix")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("ConfigError A repository in S3 needs the library obstore"), done.stderr
    assert "pip install 'vadpipe[s3]'" in done.stdout


def write(backend, name, parts, whole):
    """By one call, or by an upload."""
    if whole:
        backend.put(name, parts)
        return
    upload = backend.begin(name)
    try:
        upload.write(parts)
        upload.finish()
    finally:
        upload.abort()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_missing_bucket_of_a_real_server_is_told(request, bucket, server):
    running = request.getfixturevalue(server)
    bucket(running)
    backend = S3Backend(S3Location("no-such-bucket", "x", running.endpoint))
    for call in (
        lambda: backend.put("a", [b"x"]),
        lambda: backend.read("a"),
        lambda: backend.size("a"),
        lambda: list(backend.list("")),
        lambda: backend.delete(["a"]),
        backend.probe_conditional,
    ):
        with pytest.raises(SinkError) as caught:
            call()
        assert is_clear(caught.value, "bucket does not exist", "s3://no-such-bucket/x")
        assert not caught.value.transient


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "word"), [("AWS_ACCESS_KEY_ID", "access key"), ("AWS_SECRET_ACCESS_KEY", "secret key")]
)
def test_a_wrong_key_of_a_real_server_is_told(ceph, bucket, monkeypatch, variable, word):
    url = bucket(ceph)
    monkeypatch.setenv(variable, "wrong" * 5)
    backend = backend_at(url)
    begin = time.monotonic()
    for call in (lambda: backend.put("a", [b"x"]), lambda: backend.read("a"), lambda: list(backend.list(""))):
        with pytest.raises(SinkError) as caught:
            call()
        assert is_clear(caught.value, word, "AWS_ACCESS_KEY_ID")
    assert time.monotonic() - begin < 30  # nothing is repeated
    with pytest.raises(ObjectMissing):
        monkeypatch.undo()
        bucket(ceph)
        backend_at(url).read("a")
