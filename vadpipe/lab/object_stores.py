"""S3 servers for tests, on loopback: moto, a stand-in in Python, and radosgw of Ceph, a real one.

Ceph runs without systemd and without privileges of its own: one monitor, one store of objects in memory and one
gateway. Its processes end with the context.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

ACCESS_KEY: Final = "LABACCESSKEY"
SECRET_KEY: Final = "labsecretkey-of-the-object-store"

CEPH_COMMANDS: Final = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")

_ATTEMPTS: Final = 5
_START_S: Final = 90.0  # measured: moto 1 s, Ceph 13 to 19 s on two cores


T = TypeVar("T")


class ObjectStoreMissing(Exception):
    """The programs of the server are not installed; the text says which."""


@dataclass(frozen=True)
class ObjectStore:
    """A running server."""

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The credentials, as vadpipe reads them."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket. Returns the URL of a repository in it."""
        import boto3  # type: ignore[import-untyped]

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}?endpoint={self.endpoint}"


@contextmanager
def moto_server(directory: Path) -> Iterator[ObjectStore]:
    """moto, which checks no keys, in a process of its own. Raises ObjectStoreMissing."""
    try:
        import moto.server  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401
    except ImportError as exc:
        raise ObjectStoreMissing(f"moto is not installed ({exc.name} is missing)") from exc
    log = directory / "moto.log"
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        running = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
        yield ObjectStore(_wait_for(lambda: running.findall(log.read_text()), process, log)[0])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def radosgw(directory: Path) -> Iterator[ObjectStore]:
    """Ceph with its gateway; what it keeps is in memory, at most 4 GiB. Raises ObjectStoreMissing."""
    missing = [name for name in CEPH_COMMANDS if shutil.which(name) is None]
    if missing:
        raise ObjectStoreMissing(f"Ceph is not installed ({', '.join(missing)} missing)")
    directory.mkdir(parents=True, exist_ok=True)
    monitor, gateway = _free_port(), _free_port()
    cluster = str(uuid.uuid4())
    configuration = directory / "ceph.conf"
    configuration.write_text(_ceph_configuration(directory, cluster, gateway))
    for name in ("mon", "osd", "run"):
        (directory / name).mkdir()
    settings = ["-c", str(configuration)]
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = directory / f"{name}.output"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [name, *settings, "-f", *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        running.append(process)
        return process, log

    try:
        monitors = str(directory / "monmap")
        _call(
            "monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", monitors
        )
        _call("ceph-mon", *settings, "--mkfs", "-i", "a", "--monmap", monitors)
        process, log = start("ceph-mon", "-i", "a")
        storage = str(uuid.uuid4())
        # A monitor that has just started may refuse everything for a moment.
        _wait_for(lambda: _tried("ceph", *settings, "osd", "new", storage) is not None, process, log)
        _call("ceph-osd", *settings, "-i", "0", "--mkfs", "--osd-uuid", storage, "--no-mon-config")
        for attempt in range(_ATTEMPTS):  # its first command may be refused for a wrong cluster, too
            process, log = start("ceph-osd", "-i", "0")
            try:
                _wait_for(lambda: "1 up" in (_tried("ceph", *settings, "osd", "stat") or ""), process, log)
                break
            except RuntimeError:
                if attempt == _ATTEMPTS - 1:
                    raise
        process, log = start("radosgw", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{gateway}"
        _wait_for(lambda: _answers(endpoint), process, log)
        keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]  # of this server alone
        user = ["user", "create", "--uid", "lab", "--display-name", "lab", *keys]
        _wait_for(lambda: _tried("radosgw-admin", *settings, *user) is not None, process, log)
        yield ObjectStore(endpoint)
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _ceph_configuration(directory: Path, cluster: str, gateway: int) -> str:
    """One copy of everything, no authentication between the processes, and space that is free again at once.

    The monitor is named by its map, because that has the id of the cluster: a client that has only the address may
    send its first command without the id, and is refused.
    """
    return f"""
[global]
fsid = {cluster}
monmap = {directory}/monmap
public addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
pid file = {directory}/run/$name.pid
log file = {directory}/$name.log
mon data = {directory}/mon
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd op num shards = 2
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 5
"""


def _call(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_START_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _tried(*command: str) -> str | None:
    """What a command says; None when it fails."""
    try:
        return _call(*command)
    except RuntimeError:
        return None


def _wait_for(asked: Callable[[], T], process: subprocess.Popen[bytes], log: Path) -> T:
    """The first answer that is true. Raises RuntimeError when the process ends, or it takes too long."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        if found := asked():
            return found
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}")


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
