"""README stays true: its blocks are the tested examples, its commands give the output it shows."""

import html
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from docs import refresh
from tests.conftest import EXAMPLES, vadpipe
from vadpipe.lab.vss.recipe import manifest_zip

README = (EXAMPLES.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHOWN = [text for language, text in BLOCKS if language == ""]


def block(first_line):
    [found] = [text for text in SHOWN if text.startswith(first_line)]
    return found


def test_the_configuration_is_the_example():
    assert (EXAMPLES / "nightly.py").read_text().endswith(PYTHON[0])


def test_the_embedding_is_the_example():
    assert (EXAMPLES / "embed.py").read_text().endswith(PYTHON[1])


def test_the_two_commands_are_targets():
    [shell] = [text for language, text in BLOCKS if language == "sh"]
    targets = re.findall(r"^(\w+):", (EXAMPLES.parent / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in shell.splitlines()] == ["demo", "test"]
    assert {"demo", "test"} <= set(targets)


def shape(text):
    """The words of a report, without its figures, names and times."""
    return [
        re.sub(r"[0-9a-f]{16}|[\d.:T+-]{8,}|[\d.]+ ?(B|KiB|MiB|GiB|s\b)?|(?<=limited by )\w+", "#", line)
        for line in text.splitlines()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("first_line", [refresh.FIRST_BACKUP, refresh.PLAN])
def test_the_commands_print_what_is_shown(first_line, tmp_path):
    """Where this fails after a change of what commands print: run docs/refresh.py."""
    shown = block(first_line)
    assert shape(refresh.played(shown, refresh.prepared(tmp_path / "root"))) == shape(shown)


@pytest.mark.slow
def test_the_many_jobs_of_the_operations_guide_can_be_planned(tmp_path):
    guide = (EXAMPLES.parent / "docs" / "operations.md").read_text()
    [many] = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    settings = PYTHON[0].partition("job = Job(")[0]
    config = tmp_path / "many.py"
    config.write_text(f"{settings}\nfrom stages import EachVm, SelectVms, Vm\n\n{many}")
    done = vadpipe("plan", config)
    assert done.returncode == 0, done.stderr
    assert "Selects on vc01.example.com" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is missing")
def test_the_embedding_prints_what_is_shown(tmp_path):
    (tmp_path / "vm").mkdir()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "embed.py").write_text(PYTHON[1])
    *commands, expected = block("$ qemu-img create").splitlines()
    for command in commands:
        line = command.removeprefix("$ ").replace("python ", f"{shlex.quote(sys.executable)} ")
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.slow
def test_the_configuration_runs_and_reports_as_shown(small_lab, tmp_path):
    config = tmp_path / "nightly.py"
    on_the_lab = """
from dataclasses import replace
from stages.preflight import Preflight

job = replace(job, machine=replace(job.machine, preflight=Preflight(probe_hosts=False)))
"""
    config.write_text(PYTHON[0] + on_the_lab)
    done = small_lab("run", config)
    assert done.returncode == 0, done.stderr

    picture = (EXAMPLES.parent / "docs" / "run.svg").read_text().replace("&#160;", " ")
    seen = shape("\n".join(html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)))
    assert all(line in seen for line in shape(done.stdout)[:3])


@pytest.mark.slow
def test_the_restore_into_a_vm_prints_what_is_shown(small_lab):
    assert small_lab.run().returncode == 0
    command, *expected = block("$ vadpipe restore /srv/nightly").splitlines()
    words = shlex.split(command.removeprefix("$ vadpipe "))
    places = {
        "/srv/nightly": small_lab.repository,
        "vsphere:restore.py": f"vsphere:{EXAMPLES / 'restore.py'}",
    }
    done = small_lab(*(places.get(word, word) for word in words))
    assert done.returncode == 0, done.stderr
    assert shape(done.stdout) == shape("\n".join(expected))


EMBEDDING = re.findall(
    r"^```python\n(.*?)^```$",
    (EXAMPLES.parent / "docs" / "embedding.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
PRINTED = [
    "crash|file-system|application",
    r"web01 1048576 0707\n",
    "web01",
    r"qemu:dirty-bitmap:vadpipe-[0-9a-f-]{36}",
    "1048576 bytes read",
    "web01 1048576 bytes of data",
    r"LimitRate\(mib_per_s=100\)",
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is missing")
@pytest.mark.parametrize(
    ("program", "printed"), list(zip(EMBEDDING, PRINTED, strict=True)), ids=range(len(PRINTED))
)
def test_every_program_of_the_embedding_page_runs(program, printed, tmp_path):
    disk = tmp_path / "web01.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", disk, "1M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", disk], check=True, stdout=subprocess.DEVNULL)
    given = tmp_path
    if "classify_manifest" in program:
        given = tmp_path / "manifest.zip"
        request = SimpleNamespace(
            context="application",
            backup_type=5,
            bootable_system_state=False,
            partial_file_support=False,
            timeout_min=15,
            vm_name="web01",
        )
        given.write_bytes(manifest_zip(request))
    done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout), done.stdout
