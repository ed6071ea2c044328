"""What goes wrong between a command and the server: exit codes, one message, and a next run that carries on."""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import KiB, MiB
from pipeline.errors import EXIT_DONE, EXIT_FAILED
from pipeline.secrets import blotted
from tests.conftest import command
from tests.vadpipe.repository.backends.s3_kit import SECRET, Trouble, planned_store
from tests.vadpipe.repository.backends.test_s3_commands import CONFIG
from tests.vadpipe.repository.repository_kit import mixed_content, random_bytes
from vadpipe.cli.main import _run
from vadpipe.lab.certificate import create_credentials
from vadpipe.repository.backends import wrappers
from vadpipe.repository.format.ways import make_key_file

pytestmark = pytest.mark.slow

TOKEN = "the-session-token-of-nobody"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("REPOSITORY", "KEY_FILE", "PASSPHRASE_FILE", "AGE_IDENTITY"):
        monkeypatch.delenv(f"VADPIPE_{name}", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setattr(wrappers, "FIRST_WAIT_S", 0.001)  # six attempts take 15 s otherwise


@pytest.fixture
def call(capsys, caplog):
    """Runs a command; returns what it said to people. Nothing that it says or logs is a secret."""
    caplog.set_level(logging.DEBUG, "vadpipe")

    def call(*arguments, code=EXIT_DONE):
        found = _run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        for text in (said.out, said.err, blotted(caplog.text)):
            assert SECRET not in text
            assert TOKEN not in text
        assert "Traceback" not in said.err, said.err
        assert found == code, (arguments, said.err, said.out)
        return said.out + said.err

    return call


@pytest.fixture
def job(tmp_path):
    """Writes a configuration; returns its path."""

    def job(place, content=None):
        content = mixed_content(3 * MiB) if content is None else content
        content.tofile(tmp_path / "content")
        config = tmp_path / "nightly.py"
        config.write_text(CONFIG.format(content=str(tmp_path / "content"), writes=0, place=place))
        return config

    return job


def place_in(store, more=""):
    return f"s3://bucket/web?endpoint={store.endpoint}&cache=none{more}"


def points_in(store):
    return [name for name in store.objects if "/points/" in name]


def packs_in(store):
    return [name for name in store.objects if "/packs/" in name]


REFUSALS = [
    (403, "InvalidAccessKeyId", "access key"),
    (403, "SignatureDoesNotMatch", "secret key is wrong"),
    (403, "AccessDenied", "access is denied"),
    (400, "ExpiredToken", "credentials have expired"),
    (404, "NoSuchBucket", "bucket does not exist"),
    (403, "RequestTimeTooSkewed", "Set the clock"),
]


@pytest.mark.parametrize(("status", "code", "words"), REFUSALS)
def test_a_refusal_is_one_message_of_every_command(call, job, status, code, words):
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        config = job(place)
        before = dict(store.objects)
        store.always = Trouble(status, code)
        assert words in call("plan", config)
        for arguments in (
            ["init", place],
            ["run", config],
            ["points", place],
            ["show", place, "latest"],
            ["verify", place],
            ["verify", place, "--without-key"],
            ["restore", place, "latest", "raw:/nowhere"],
            ["forget", place, "--keep-last", "1"],
            ["prune", place],
            ["repair", place],
            ["stats", place],
            ["diff", place, "a", "b"],
            ["head", place],
            ["hold", place, "latest", "--reason", "x"],
            ["copy", place, "/nowhere"],
        ):
            lines = call(*arguments, code=EXIT_FAILED).splitlines()
            told = [line for line in lines if line.startswith("vadpipe: ")]
            assert len(told) == 1, (arguments, lines)
            assert words in told[0], (arguments, lines)
            assert "s3://bucket/web" in told[0]
        assert store.objects == before


def test_a_server_that_nobody_reaches_is_one_message(call, job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"s3://bucket/web?endpoint=http://127.0.0.1:{taken.getsockname()[1]}&cache=none"
        for arguments in (["init", place], ["run", job(place)], ["points", place], ["verify", place]):
            (line,) = [
                line for line in call(*arguments, code=EXIT_FAILED).splitlines() if "vadpipe: " in line
            ]
            assert "nobody listens" in line


def test_plan_contacts_the_server_only_to_read(call, job):
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        store.requests.clear()
        said = call("plan", job(place))
        assert {method for method, _ in store.requests} <= {"GET", "HEAD"}
        assert f"repository {place.partition('?')[0]}" in said


def test_a_storm_of_503_that_ends_costs_time_only(call, job):
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        storm = Trouble(503, "SlowDown")
        for method in ("GET", "PUT", "HEAD", "POST"):
            first = store.count(method) + 1
            store.plan.update({(method, number): storm for number in range(first, first + 90) if number % 3})
        call("run", job(place))
        assert len(points_in(store)) == 1
        store.plan.clear()
        call("verify", place)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_storm_of_503_that_does_not_end_publishes_nothing(call, job, after):
    """From the begin, or after so many objects were written."""
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        config = job(place)
        first = store.count("PUT") + 1 + after
        store.plan = {("PUT", number): Trouble(503, "SlowDown") for number in range(first, first + 1000)}
        assert "fewer requests" in call("run", config, code=EXIT_FAILED)
        assert points_in(store) == []
        store.plan.clear()
        call("run", config)
        assert len(points_in(store)) == 1
        call("verify", place)
        assert [name for name in store.objects if "/runs/" in name] == []


def commit_of(call, job):
    """Which PUT of a run, from 1, is that of its point; and how many HEAD come before it."""
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        store.requests.clear()
        call("run", job(place))
        commit = next(
            at for at, (method, name) in enumerate(store.requests) if method == "PUT" and "/points/" in name
        )
        before = [method for method, _ in store.requests[:commit]]
        return before.count("PUT") + 1, before.count("HEAD")


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("status", [0, 500])
def test_an_answer_to_the_commit_that_is_lost_makes_one_point(call, job, done, status):
    number, _ = commit_of(call, job)
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        trouble = Trouble(status, "InternalError" if status else "", done=done)
        store.plan = {("PUT", store.count("PUT") + number): trouble}
        call("run", job(place))
        assert len(points_in(store)) == 1
        store.plan.clear()
        call("run", job(place))
        assert len(points_in(store)) == 2
        call("verify", place)


def test_when_nobody_knows_whether_the_point_was_made_the_next_run_does(call, job):
    number, looked = commit_of(call, job)
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        first, heads = store.count("PUT") + number, store.count("HEAD") + looked
        store.plan = {("PUT", first): Trouble(done=True)}
        store.plan |= {("PUT", later): Trouble() for later in range(first + 1, first + 100)}
        store.plan |= {("HEAD", later): Trouble() for later in range(heads + 1, heads + 100)}
        said = call("run", job(place), code=EXIT_FAILED)
        assert "Nothing was published" not in said
        assert "not known" in said
        assert len(points_in(store)) == 1
        store.plan.clear()
        call("run", job(place))
        assert len(points_in(store)) == 2
        call("verify", place)


def test_a_certificate_of_a_private_authority_needs_its_file(call, tmp_path):
    create_credentials(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
    with planned_store(tls=context) as store:
        said = call("init", place_in(store), code=EXIT_FAILED)
        assert "certificate of the server is not trusted" in said
        assert "?ca=FILE" in said
        call("init", place_in(store, f"&ca={tmp_path}/ca-cert.pem"))
        call("points", place_in(store, f"&ca={tmp_path}/ca-cert.pem"))


def test_a_run_that_is_killed_in_an_upload_leaves_nothing(call, job, tmp_path, monkeypatch):
    """And holds no clear text of a sealed repository in a file: neither one with a name nor one without."""
    mark = random_bytes(77, 64 * KiB)
    content = np.tile(mark, 48)
    content[: 2 * MiB] = random_bytes(78, 2 * MiB)
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    with planned_store() as store:
        place = place_in(store).replace("cache=none", f"cache={tmp_path}/cache")
        make_key_file(tmp_path / "key")
        call("init", place, "--new-key-file", tmp_path / "key")
        monkeypatch.setenv("VADPIPE_KEY_FILE", str(tmp_path / "key"))
        config = job(place, content)
        store.plan = {("PUT", store.count("PUT") + 2): Trouble(hang_s=2)}  # after the sign of life: a pack
        wanted = store.count("PUT") + 2
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
        with subprocess.Popen(command("run", config), env=environment, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while store.count("PUT") < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            assert store.count("PUT") >= wanted, process.stderr.read()
            held = [path.read_bytes() for path in open_files(process.pid)]
            process.send_signal(signal.SIGKILL)
            process.wait()
        for text in [
            *held,
            *(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()),
        ]:
            assert mark[: 4 * KiB].tobytes() not in text
            assert content[: 4 * KiB].tobytes() not in text
        assert list((tmp_path / "tmp").iterdir()) == []
        assert points_in(store) == []
        store.plan.clear()
        call("run", config)
        assert len(points_in(store)) == 1
        assert [name for name in store.objects if "/runs/" in name] == []
        assert len({name.rpartition("/")[2][:16] for name in packs_in(store)}) == 1
        call("verify", place)
        for text in store.objects.values():
            assert mark[: 4 * KiB].tobytes() not in text


def open_files(pid):
    """The temporary files that a process has open, by their descriptors."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        place = os.readlink(entry)
        if "(deleted)" in place and not place.startswith("/memfd:"):  # buffers are in memory alone
            found.append(entry)
    return found


def test_the_report_and_the_events_name_no_secret(call, job, tmp_path):
    with planned_store() as store:
        place = place_in(store)
        call("init", place)
        report = call("run", job(place), "--json", "--events", tmp_path / "events.jsonl")
        assert json.loads(report)["ok"]
        assert SECRET not in (tmp_path / "events.jsonl").read_text()
        assert all(SECRET.encode() not in content for content in store.objects.values())


def test_rot_in_the_bucket_is_found_although_the_index_has_copies(call, job, tmp_path):
    with planned_store() as store:
        place = place_in(store).replace("cache=none", f"cache={tmp_path}/cache")
        call("init", place)
        call("run", job(place))
        call("run", job(place))
        assert list((tmp_path / "cache").iterdir())
        (name,) = [name for name in store.objects if "/index/" in name]
        content = bytearray(store.objects[name])
        content[len(content) // 2] ^= 1
        store.objects[name] = bytes(content)
        call("points", place)
        assert name in call("verify", place, code=EXIT_FAILED)
        call("repair", place)
        call("verify", place)
