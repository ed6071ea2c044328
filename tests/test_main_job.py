"""The main job as a user sees it: quiesced backups, proved restores, and one clear message for every mistake."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest

from sinks import RepositoryReader
from tests.conftest import NIGHTLY, command
from vadpipe.lab.witness import image_digest
from vadpipe.repository.backends.local import LocalBackend

pytestmark = pytest.mark.slow


def document(done):
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def points(lab):
    return document(lab("points", lab.repository, "--json"))["points"]


def assert_restored(lab, point, digests):
    target = lab.root / "restored" / point["id"]
    receipt = document(lab("restore", lab.repository, point["id"], f"raw:{target}", "--json"))
    assert [image_digest(disk["path"]) for disk in receipt["disks"]] == digests


def test_a_full_and_an_incremental_run_restore_to_what_was_quiesced(small_lab):
    first = small_lab.run("--json")
    assert first.returncode == 0, first.stderr
    [job] = document(first)["jobs"]
    assert job["quiescing"]["asked"] == job["quiescing"]["reached"] == "application"
    assert job["snapshots_left"] == small_lab.snapshots == 0
    assert [disk["mode"] for disk in job["disks"]] == ["full", "full"]

    small_lab.guest.work(seed=7, amount=6 << 20)
    second = small_lab.run("--json")
    assert second.returncode == 0, second.stderr
    [job] = document(second)["jobs"]
    for disk in job["disks"]:
        assert disk["mode"] == "incremental"
        assert disk["read"] <= 1.05 * disk["changed"] + (1 << 20)
        assert disk["read"] == disk["zero_read"] + disk["known"] + disk["new"]

    found = points(small_lab)
    assert [point["quiescing"] for point in found] == ["application", "application"]
    for point, digests in zip(found, small_lab.digests, strict=True):
        assert_restored(small_lab, point, digests)
    assert small_lab("verify", small_lab.repository).returncode == 0


def test_the_manifest_is_kept_with_the_point(small_lab, tmp_path):
    assert small_lab.run().returncode == 0
    shown = small_lab("show", small_lab.repository, "latest", "--extract", tmp_path / "documents", "--json")
    verdict = document(shown)["quiescing"]["verdict"]
    assert verdict["level"] == "application"
    assert "SQL Server" in {writer["application"] for writer in verdict["writers"]}
    assert (tmp_path / "documents" / "vss-manifest.zip").read_bytes().startswith(b"PK")


def test_quiescing_that_left_no_manifest_is_published_as_what_it_is(small_lab):
    """The snapshot's own flag says quiesced; without a manifest nothing shows that it was."""
    small_lab.vcenter._inventory.vms[small_lab.moref].quiescing = "crash"
    small_lab.vcenter.on_snapshot.clear()  # no VSS writers take part
    done = small_lab.run("--json")
    assert done.returncode == 3, done.stderr
    [job] = document(done)["jobs"]
    assert job["quiescing"]["reached"] == "crash"
    assert "Quiescing reached crash, but application was requested." in job["attention"]
    [point] = points(small_lab)
    assert point["quiescing"] == "crash"
    assert small_lab.snapshots == 0


def test_a_vm_that_is_off_is_not_called_quiesced(small_lab):
    small_lab.vcenter._inventory.vms[small_lab.moref].power = "poweredOff"
    done = small_lab.run("--json")
    assert done.returncode == 3, done.stderr
    [job] = document(done)["jobs"]
    assert "The snapshot was taken with 'none' quiescing; 'application' was asked for." in job["attention"]


def one_message(done, code, *parts):
    """Exit code, exactly one line that holds all parts, no traceback."""
    assert done.returncode == code, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stdout
    for part in parts:
        assert re.search(part, line), line


def test_an_unknown_vm_is_named_with_its_likes(small_lab):
    one_message(small_lab.run(VM="web0l"), 1, "web0l", "web01")
    assert small_lab.snapshots == 0


def test_a_wrong_password_is_refused(small_lab):
    done = small_lab.run(VC_PASSWORD="not the secret")
    one_message(done, 1, "backup", "(?i)password")
    assert "not the secret" not in done.stderr


def test_a_missing_password_is_a_config_error(small_lab):
    one_message(small_lab.run(VC_PASSWORD=""), 2, "VC_PASSWORD")


def test_a_wrong_thumbprint_shows_both(small_lab):
    wrong = ":".join(["AB"] * 20)
    one_message(small_lab.run(VC_THUMBPRINT=wrong), 1, wrong, small_lab.vcenter.thumbprint)
    assert small_lab.vcenter.calls.get("Login", 0) == 0  # nothing was sent to a server that is not the one


def test_a_missing_vddk_is_named(small_lab, tmp_path):
    one_message(
        small_lab.run(VDDK_LIBDIR=str(tmp_path / "nothing")), 2, "nothing", "libvixDiskLib", "unpacked VDDK"
    )
    assert small_lab.snapshots == 0


def test_a_directory_that_is_no_repository_is_found_before_the_snapshot(small_lab, tmp_path):
    (tmp_path / "other").mkdir()
    one_message(
        small_lab.run(REPOSITORY=str(tmp_path / "other")), 1, "other", "(?i)repository", "vadpipe init"
    )
    assert "CreateSnapshotEx_Task" not in small_lab.vcenter.calls


def test_a_truncated_vmdk_fails_and_publishes_nothing(small_lab):
    flat = next(small_lab.guest.directory.glob("*-flat.vmdk"))
    os.truncate(flat, 1 << 20)
    done = small_lab.run()
    one_message(done, 1, "web01_1-.*vmdk", "truncated: 1048576 bytes")
    assert points(small_lab) == []
    assert small_lab.snapshots == 0


VANISHING = """
import os, runpy
from dataclasses import replace
from pipeline import Flow, Stage

found = runpy.run_path({nightly!r})

class Vanish(Stage):
    async def run(self, inbox, outbox):
        async for window in inbox:
            os.truncate({flat!r}, 1 << 20)
            await outbox.send(window)

def path(disk, point):
    pipeline = found["job"].path(disk, point)
    if disk.key == "scsi0:1":
        pipeline.flow = Flow(pipeline.flow.source, Vanish(), *pipeline.flow.stages)
    return pipeline

job = replace(found["job"], path=path)
"""


def test_a_disk_that_vanishes_mid_read_is_named(small_lab, tmp_path):
    flat = next(small_lab.guest.directory.glob("*-flat.vmdk"))
    config = tmp_path / "vanishing.py"
    config.write_text(VANISHING.format(nightly=str(NIGHTLY), flat=str(flat)))
    one_message(small_lab("run", config), 1, "scsi0:1", r"offset \d+")
    assert points(small_lab) == []
    assert small_lab.snapshots == 0


@pytest.fixture
def full_file_system(tmp_path):
    """A mounted file system of 8 MiB."""
    place = tmp_path / "full"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system here: {mount.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_file_system_is_named_and_nothing_published(small_lab, full_file_system):
    repository = full_file_system / "repository"
    assert small_lab("init", repository).returncode == 0
    one_message(small_lab.run(REPOSITORY=str(repository)), 1, str(repository), "No space left")
    assert document(small_lab("points", repository, "--json"))["points"] == []
    assert small_lab.snapshots == 0


def test_a_full_target_of_a_restore_leaves_nothing_half_written(small_lab, full_file_system):
    assert small_lab.run().returncode == 0
    done = small_lab("restore", small_lab.repository, "latest", f"raw:{full_file_system}")
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(full_file_system.rglob("*.partial"))


def test_a_damaged_frame_is_named_and_other_disks_can_be_restored(small_lab, tmp_path):
    assert small_lab.run().returncode == 0
    [point] = points(small_lab)
    damage_a_frame_of(small_lab, "scsi0:1")
    target = tmp_path / "restored"
    done = small_lab("restore", small_lab.repository, "latest", f"raw:{target}", "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [error] = document(done)["errors"]
    assert re.search(r"Disk scsi0:1 of point \w+, bytes \d+ to \d+", error)
    assert ".pack" in error
    assert [disk["key"] for disk in document(done)["disks"]] == ["scsi0:0"]
    [restored] = target.rglob("*.*")
    assert restored.name == "scsi0-0.raw"
    assert image_digest(restored) == small_lab.digests[0][0]
    verified = small_lab("verify", small_lab.repository)
    assert verified.returncode == 1
    assert point["id"] in verified.stdout


def damage_a_frame_of(lab, key):
    """Flip a byte in the middle of a frame that no other disk refers to."""
    reader = RepositoryReader.of(LocalBackend(lab.repository))
    [point] = reader.points
    frames = {disk.key: dict(frames_of(reader, point, disk)) for disk in point.disks}
    others = {identity for other, found in frames.items() if other != key for identity in found}
    address = next(address for identity, address in frames[key].items() if identity not in others)
    pack = lab.repository / reader.objects.pack(address.pack)
    content = bytearray(pack.read_bytes())
    content[address.offset + address.size // 2] ^= 1
    pack.write_bytes(content)


def frames_of(reader, point, disk):
    for number, digest in enumerate(reader.page_digests(point, disk)):
        if digest.any():
            page = reader.page(point, disk, number, digest.tobytes())
            for identity, address in zip(page.frame_ids, reader.addresses(page), strict=True):
                yield identity.tobytes(), address


def kill_runs(lab, count, seed):
    """Kill runs at random moments; after each, whole points only."""
    chance = random.Random(seed)
    for _ in range(count):
        with subprocess.Popen(
            command("run", NIGHTLY),
            env={**os.environ, **lab.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(chance.uniform(0.2, 2.5))
            process.send_signal(signal.SIGKILL)
        before = points(lab)
    done = lab.run("--json")
    assert done.returncode == 0, done.stderr
    assert document(done)["jobs"][0]["snapshots_left"] == 0
    assert lab.snapshots == 0
    assert list((lab.root / "locks").iterdir()) == []
    found = points(lab)
    assert len(found) == len(before) + 1
    assert_restored(lab, found[-1], lab.digests[-1])
    assert lab("verify", lab.repository).returncode == 0


def test_a_killed_run_leaves_nothing_that_the_next_does_not_sweep(small_lab):
    kill_runs(small_lab, 3, seed=1)


@pytest.mark.campaign
def test_runs_killed_at_twenty_random_moments(small_lab):
    kill_runs(small_lab, 20, seed=2)


def test_no_secret_is_in_any_output_of_a_run_with_everything_logged(small_lab, tmp_path, monkeypatch):
    """Log, standard output and error, events, repository and state, of a run that ends well and one that fails."""
    sessions = small_lab.vcenter._service.sessions
    opened, open_session = [], sessions.open
    monkeypatch.setattr(
        sessions, "open", lambda session: (opened.append(session.cookie), open_session(session))
    )
    log, events = tmp_path / "run.log", tmp_path / "events.jsonl"
    for changes, code in (({}, 0), ({"VM": "no such VM"}, 1)):
        done = small_lab.run("-vv", "--log-file", log, "--events", events, **changes)
        assert done.returncode == code, done.stderr
        assert_no_secret(done.stdout.encode() + done.stderr.encode(), opened)
        shown = small_lab.run("-vv", **changes)
        assert_no_secret(shown.stdout.encode() + shown.stderr.encode(), opened)
    assert len(opened) >= 4
    for path in (log, events):
        assert path.stat().st_mode & 0o777 == 0o600
    places = [log, events, *small_lab.repository.rglob("*"), *(small_lab.root / "state").rglob("*")]
    for path in places:
        if path.is_file():
            assert_no_secret(path.read_bytes(), opened)
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert kinds.count("job finished") == kinds.count("job failed") == 1


def assert_no_secret(content, cookies):
    for secret in ("a secret of the lab", "a%20secret", *cookies):
        assert secret.encode() not in content, secret
