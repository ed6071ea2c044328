"""The command serve as a user sees it: the lines, signals, and one message for every mistake."""

import json
import signal
import subprocess

import pytest
import trio

from pipeline import ConfigError, KiB, MiB
from tests.conftest import command, vadpipe
from tests.vadpipe.nbd.server_kit import pattern, tool
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, incremental_path
from vadpipe.cli.commands import vadpipe as group

pytestmark = pytest.mark.slow


@pytest.fixture
def disks(repository):
    found = [
        MemoryDisk(pattern(3 * MiB, [(0, 700 * KiB)])),
        MemoryDisk(pattern(MiB, [(0, MiB)], seed=8), "scsi0:1", "Hard disk 2"),
    ]
    trio.run(backup, repository, found, incremental_path)
    return found


class Serving:
    """The command, until a signal."""

    def __init__(self, repository, *arguments):
        words = command("serve", repository.path, "latest", *arguments)
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def lines(self, count):
        found = [self.process.stdout.readline().rstrip() for _ in range(count)]
        assert all(found), self.process.communicate()
        return found

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        assert "Traceback" not in errors, errors
        return output, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process as process:
            process.kill()


def copied(uri, tmp_path):
    place = tmp_path / "copy.raw"
    subprocess.run([tool("nbdcopy"), uri, place], check=True)
    return place.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_disk_has_a_line_and_a_signal_ends_the_command_in_order(repository, disks, tmp_path, number):
    with Serving(repository, "--listen", "127.0.0.1:0") as serving:
        lines = serving.lines(2)
        assert lines[0].startswith("disk scsi0:0: 3.0 MiB at nbd://127.0.0.1:")
        for line, disk in zip(lines, disks, strict=True):
            assert copied(line.rpartition(" ")[2], tmp_path) == disk.content.tobytes()
        _, errors = serving.end(number)
    assert serving.process.returncode == 0, errors
    assert f"Stopping on {number.name}." in errors


def test_a_socket_serves_one_disk_and_is_gone_at_the_end(repository, disks, tmp_path):
    socket = tmp_path / "nbd.sock"
    with Serving(repository, "--socket", socket, "--disk", "scsi0:1", "--json") as serving:
        text = ""
        while not text.endswith("}\n}"):
            text = f"{text}\n{serving.lines(1)[0]}".strip()
            if text.endswith("]\n}"):
                break
        [disk] = json.loads(text)["disks"]
        assert disk == {"key": "scsi0:1", "capacity": MiB, "uri": f"nbd+unix:///scsi0:1?socket={socket}"}
        assert copied(disk["uri"], tmp_path) == disks[1].content.tobytes()
        serving.end()
    assert not socket.exists()


def test_a_signal_ends_the_command_while_a_client_reads(repository, disks, tmp_path):
    socket = tmp_path / "nbd.sock"
    with Serving(repository, "--socket", socket) as serving:
        uri = serving.lines(2)[0].rpartition(" ")[2]
        shell = ["nbdkit", "--foreground", "--unix", tmp_path / "front", "nbd", f"uri={uri}"]
        with subprocess.Popen([tool("nbdkit"), *shell[1:]], stderr=subprocess.DEVNULL) as client:
            while not (tmp_path / "front").exists():
                assert client.poll() is None
            subprocess.run([tool("nbdinfo"), f"nbd+unix:///?socket={tmp_path / 'front'}"], check=True)
            _, errors = serving.end()
            client.kill()
    assert serving.process.returncode == 0, errors


def test_what_clients_wrote_is_kept_as_an_image_over_the_disk(repository, disks, tmp_path):
    socket, kept = tmp_path / "nbd.sock", tmp_path / "kept.qcow2"
    shared = ("--disk", "scsi0:0", "--socket", socket)
    with Serving(repository, *shared, "--writable", "--keep", kept) as serving:
        uri = serving.lines(1)[0].rpartition(" ")[2]
        words = [tool("qemu-io"), "-f", "raw", "-c", "write -P 7 64k 64k", uri]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        serving.end()
    assert serving.process.returncode == 0
    with Serving(repository, *shared) as serving:
        serving.lines(1)
        subprocess.run([tool("qemu-img"), "check", "-q", kept], check=True)
        subprocess.run([tool("qemu-img"), "convert", "-O", "raw", kept, tmp_path / "raw"], check=True)
        serving.end()
    expected = disks[0].content.copy()
    expected[64 * KiB : 128 * KiB] = 7
    assert (tmp_path / "raw").read_bytes() == expected.tobytes()


def test_damage_is_named_on_standard_error_and_in_the_exit_code(repository, disks, tmp_path):
    pack = max(repository.path.rglob("*.pack"), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    for place in range(4 * KiB, len(content) - 4 * KiB, 64 * KiB):
        content[place] ^= 1
    pack.write_bytes(content)
    with Serving(repository, "--socket", tmp_path / "nbd.sock") as serving:
        uri = serving.lines(2)[0].rpartition(" ")[2]
        done = subprocess.run([tool("nbdcopy"), uri, tmp_path / "copy"], check=False, capture_output=True)
        assert done.returncode
        _, errors = serving.end()
    assert serving.process.returncode == 3, errors
    assert "vadpipe: Disk scsi0:0 of point" in errors
    assert ".pack is damaged: its checksum is wrong." in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:0"], "can be reached by other machines"),
        (["--listen", "nonsense:x"], "is no address to listen on"),
        (["--listen", "127.0.0.1", "--socket", "x"], "exclude each other"),
        (["--keep", "x.qcow2"], "Add --writable"),
        (["--writable", "--keep", "x.qcow2"], "2 disks cannot be kept in one file"),
        (["--writable", "--keep", "missing"], "is no directory"),
        (["--tls-certificate", "x"], "TLS needs a certificate and its key"),
        (["--tls-certificate", "x", "--tls-key", "y"], "TLS files cannot be used"),
        (["--tls-psk", "x", "--tls-key", "y"], "excludes certificates"),
        (["--cache", "many"], "is no budget"),
        (["--disk", "sata0:0"], "has no disk 'sata0:0'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_served(repository, disks, arguments, message, capsys):
    with pytest.raises(ConfigError, match=message):
        group.main(["serve", str(repository.path), "latest", *arguments], standalone_mode=False)
    assert capsys.readouterr().out == ""


def test_a_mistake_is_one_line(repository, disks):
    done = vadpipe("serve", repository.path, "latest", "--keep", "x.qcow2")
    assert done.returncode == 2
    assert done.stderr == "vadpipe: --keep keeps what clients write. Add --writable, or leave it out.\n"
    assert done.stdout == ""
