"""Mistakes in a configuration: one message and exit code 2, from `plan` and `run`, before anything is touched."""

import pytest

from vadpipe.cli.main import main
from vadpipe.repository.store import Repository

CONFIG = """\
from dataclasses import dataclass
from pathlib import Path

from pipeline import Job
from pipeline.testing import FakeMachine, PatternDisk
from sinks import IntoRepository, Nowhere, NullSink, RawFile, Repository
from stages import *

HERE = Path(__file__).parent

class Machine(FakeMachine):
    def capture(self):
        (HERE / "captured").touch()
        return super().capture()

class Checksum:
    name = "checksum"
    def digest(self, data):
        return bytes(32)

class Rot13:
    name = "rot13"
    def encode(self, data):
        return bytes(data)

def path(disk, point):
    return {path}

job = Job(Machine([PatternDisk(5 << 20)]), path, into=Repository(HERE / "repository"){settings})
"""
READ = "AllocatedExtents(disk) | ReadSpans(disk)"
CUT = f"{READ} | MarkZeros() | CutChunks()"
END = "IntoRepository(point, disk)"

PATHS = {
    "no CutChunks": (
        f"{READ} | MarkZeros() | Digest(point) | Dedupe(point) | Compress() | {END}",
        "CutChunks is missing between MarkZeros and Digest: Digest takes CutSpan, gets Span.",
    ),
    "Compress before Dedupe": (
        f"{CUT} | Digest(point) | Compress() | Dedupe(point) | {END}",
        "Dedupe is missing between Digest and Compress: Compress takes DedupedSpan, gets DigestedSpan.",
    ),
    "no Dedupe": (
        f"{CUT} | Digest(point) | Compress() | {END}",
        "Dedupe is missing between Digest and Compress: Compress takes DedupedSpan, gets DigestedSpan.",
    ),
    "no Digest": (
        f"{CUT} | Dedupe(point) | Compress() | {END}",
        "Digest is missing between CutChunks and Dedupe: Dedupe takes DigestedSpan, gets CutSpan.",
    ),
    "nothing between reading and storing": (
        f"{READ} | {END}",
        "CutChunks, Digest, Dedupe and Compress are missing between ReadSpans and IntoRepository: "
        "IntoRepository takes FramedSpan, gets Span.",
    ),
    "no ReadSpans": (
        f"AllocatedExtents(disk) | MarkZeros() | CutChunks() | Digest(point) | {END}",
        "ReadSpans is missing between AllocatedExtents and MarkZeros: MarkZeros takes Span, gets Window.",
    ),
    "MarkZeros after CutChunks": (
        f"{READ} | CutChunks() | MarkZeros() | Digest(point) | Dedupe(point) | Compress() | {END}",
        "MarkZeros cannot follow CutChunks: MarkZeros takes Span, gets CutSpan. "
        "Put MarkZeros directly behind ReadSpans.",
    ),
    "CutChunks twice": (
        f"{CUT} | CutChunks() | Digest(point) | Dedupe(point) | Compress() | {END}",
        "CutChunks stands twice in the path: CutChunks takes Span, gets CutSpan. Remove one of the two.",
    ),
    "Digest and Dedupe twice": (
        f"{CUT} | Digest(point) | Dedupe(point) | Digest(point) | Dedupe(point) | Compress() | {END}",
        "Digest stands twice in the path: Digest takes CutSpan, gets DedupedSpan. Remove one of the two.",
    ),
    "Refine before Digest": (
        f"{CUT} | Refine(point, disk) | Digest(point) | Dedupe(point) | Compress() | {END}",
        "Digest is missing between CutChunks and Refine: Refine takes DigestedSpan, gets CutSpan.",
    ),
    "Refine after Dedupe": (
        f"{CUT} | Digest(point) | Dedupe(point) | Refine(point, disk) | Compress() | {END}",
        "Refine cannot follow Dedupe: Refine takes DigestedSpan, gets DedupedSpan. "
        "Put Refine directly behind Digest.",
    ),
    "Refine without a disk": (
        f"{CUT} | Digest(point) | Refine(point, point) | Dedupe(point) | Compress() | {END}",
        "Refine takes an open disk, not Point('HERE'). "
        "A path gets the disk first and the point second: def path(disk, point).",
    ),
    "Refine with disk and point swapped": (
        f"{CUT} | Digest(point) | Refine(disk, point) | Dedupe(point) | Compress() | {END}",
        "Refine cannot compare with what disk holds. "
        "Write Refine(point, disk), with the point and the disk that the path function is given.",
    ),
    "Refine with an index in memory": (
        f"{CUT} | Digest(point) | Refine(MemoryIndex(point.identity), disk) | Dedupe(point) | Compress() | {END}",
        "Write Refine(point, disk) with the point that is given to Dedupe.",
    ),
    "Refine with another disk": (
        f"{CUT} | Digest(point) | Refine(point, PatternDisk(5 << 20, key='another')) | Dedupe(point) "
        f"| Compress() | {END}",
        "Refine compares with disk another, but IntoRepository stores disk ",
    ),
    "no sink": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress()",
        "The path ends with Compress, which is no sink. Add one, e.g. `| NullSink()`.",
    ),
    "a stage behind the sink": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress() | {END} | MarkZeros()",
        "MarkZeros() stands in a path where nothing, behind the sink IntoRepository, belongs.",
    ),
    "no source": (
        f"ReadSpans(disk) | MarkZeros() | {END}",
        "ReadSpans(disk=disk, ahead=2) stands in a path where a source belongs.",
    ),
    "a class instead of an instance": (
        f"{READ} | MarkZeros | CutChunks() | Digest(point) | Dedupe(point) | Compress() | {END}",
        "MarkZeros is a class. Write MarkZeros(...), with parentheses.",
    ),
    "a source's class": (
        f"AllocatedExtents | ReadSpans(disk) | {END}",
        "AllocatedExtents is a class. Write AllocatedExtents(...), with parentheses.",
    ),
    "an impossible level": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress(Zstd(99)) | {END}",
        'Zstd has no level 99. Choose one from -7 to 22, or "auto".',
    ),
    "a level instead of a codec": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress(3) | {END}",
        "3 is no codec: it has no name. A codec has name, encode(data) and decode(payload, length); "
        "one is Zstd(level=3).",
    ),
    "a codec that cannot decode": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress(Rot13()) | {END}",
        "is no codec: it has no decode. A codec has name, encode(data) and decode(payload, length); "
        "one is Zstd(level=3).",
    ),
    "no workers": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress(workers=0) | {END}",
        "Compress(workers=0) is impossible. workers is a whole number from 1 on.",
    ),
    "fewer than no workers": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress(workers=-3) | {END}",
        "Compress(workers=-3) is impossible. workers is a whole number from 1 on.",
    ),
    "nothing read ahead": (
        f"AllocatedExtents(disk) | ReadSpans(disk, ahead=0) | {END}",
        "ReadSpans(ahead=0) is impossible. ahead is a whole number from 1 on.",
    ),
    "less than nothing read ahead": (
        f"AllocatedExtents(disk) | ReadSpans(disk, ahead=-1) | {END}",
        "ReadSpans(ahead=-1) is impossible. ahead is a whole number from 1 on.",
    ),
    "an index in memory with a repository": (
        f"{CUT} | Digest(point) | Dedupe(MemoryIndex(point.identity)) | Compress() | {END}",
        "Dedupe looks chunks up in MemoryIndex(Blake3(key=...)), but IntoRepository stores them in Point('HERE'). "
        "Write Dedupe(point) with the point that is given to IntoRepository.",
    ),
    "Digest without an argument": (
        f"{CUT} | Digest() | Dedupe(point) | Compress() | {END}",
        "Digest needs to know how chunks are named. Write Digest(point): the point that they are stored in knows.",
    ),
    "the identity without the key": (
        f"{CUT} | Digest(Blake3()) | Dedupe(point) | Compress() | {END}",
        "Digest names chunks with Blake3(), but Dedupe takes only those of its own identity: no others could "
        "be restored. Write Digest(point) with the point that is given to Dedupe.",
    ),
    "an identity of one's own": (
        f"{CUT} | Digest(Checksum()) | Dedupe(point) | Compress() | {END}",
        "but Dedupe takes only those of its own identity: no others could be restored. "
        "Write Digest(point) with the point that is given to Dedupe.",
    ),
    "point and disk swapped": (
        "AllocatedExtents(point) | ReadSpans(point)",
        "AllocatedExtents takes an open disk, not Point('HERE'). "
        "A path gets the disk first and the point second: def path(disk, point).",
    ),
    "point and disk swapped in the sink": (
        f"{CUT} | Digest(point) | Dedupe(point) | Compress() | IntoRepository(disk, point)",
        "IntoRepository takes an open disk, not Point('HERE'). "
        "A path gets the disk first and the point second: def path(disk, point).",
    ),
    "a disk instead of the point": (
        f"{CUT} | Digest(disk) | Dedupe(disk)",
        "Digest cannot name chunks by disk. Write Digest(point): the point that they are stored in knows.",
    ),
    "a sink without the receipt of a disk": (
        f"{READ} | RawFile('disk.raw', 5 << 20)",
        "The sink RawFile returns RawReceipt; a job needs a DiskReceipt. "
        "End the path with a sink such as IntoRepository(point, disk).",
    ),
    "a typo": (
        f"{READ} | MarkZeroes() | {END}",
        "The path failed at line 27 of config.py: NameError: name 'MarkZeroes' is not defined.",
    ),
    "a typo where the path looked at the disk": (
        f"{READ} | MarkZeroes(disk.key) | {END}",
        "The path failed at line 27 of config.py: NameError: name 'MarkZeroes' is not defined.",
    ),
    "None": (
        "None",
        "The path returned None. Let it return the pipeline: `return ... | sink`. To leave a disk out, name it in "
        'the machine\'s exclude, e.g. VcenterVm(..., exclude=["scsi0:1"]).',
    ),
    "no pipeline": ("3", "The path returned 3, which is no pipeline."),
}

SETTINGS = {
    "no disk at once": (
        "disks_at_once=0",
        "Job(disks_at_once=0) is impossible. disks_at_once is a whole number from 1 on.",
    ),
    "a class as a finisher": ("finish=[VssManifest]", "VssManifest is a class. Write VssManifest(...)"),
}


def failure(command, config, capsys):
    """The one line that a command prints before it ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main([command, str(config)])
    shown = capsys.readouterr()
    assert ended.value.code == 2, shown
    [line] = shown.err.splitlines()
    return line


@pytest.fixture
def check(tmp_path, capsys):
    """Asserts that both commands refuse a configuration with this message and that nothing was touched."""
    repository = Repository(tmp_path / "repository")
    repository.init()
    before = sorted(tmp_path.rglob("*"))

    def check(text, message):
        config = tmp_path / "config.py"
        config.write_text(text)
        for command in ("plan", "run"):
            assert message.replace("HERE", str(repository.path)) in failure(command, config, capsys)
        config.unlink()
        assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)) == before

    return check


@pytest.mark.parametrize("mistake", PATHS)
def test_a_mistake_in_the_path_is_one_message_before_anything_is_touched(check, mistake):
    path, message = PATHS[mistake]
    check(CONFIG.replace("{path}", path).replace("{settings}", ""), message)


@pytest.mark.parametrize("mistake", SETTINGS)
def test_an_impossible_setting_of_a_job_is_one_message_before_anything_is_touched(check, mistake):
    setting, message = SETTINGS[mistake]
    check(CONFIG.replace("{path}", "None").replace("{settings}", f", {setting}"), message)


def test_an_async_path_is_refused_before_anything_is_touched(check):
    text = CONFIG.replace("def path", "async def path").replace("{path}", "None").replace("{settings}", "")
    check(text, "The path is an async function. Write `def path(disk, point)` without async.")


PIPELINE = f"{CUT} | Digest(point) | Dedupe(point) | Compress() | {END}"


def test_marking_zeros_may_be_left_out(tmp_path, capsys):
    Repository(tmp_path / "repository").init()
    config = tmp_path / "config.py"
    config.write_text(
        CONFIG.replace("{path}", PIPELINE.replace("MarkZeros() | ", "")).replace("{settings}", "")
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config)])
    assert ended.value.code == 0, capsys.readouterr()


def test_the_key_of_the_point_names_chunks_as_the_point_does(tmp_path, capsys):
    Repository(tmp_path / "repository").init()
    config = tmp_path / "config.py"
    config.write_text(
        CONFIG.replace("{path}", PIPELINE.replace("Digest(point)", "Digest(Blake3(point.key))")).replace(
            "{settings}", ""
        )
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config)])
    assert ended.value.code == 0, capsys.readouterr()


def test_a_path_that_asks_for_its_disk_is_checked_for_the_real_one_before_it_is_read(tmp_path, capsys):
    Repository(tmp_path / "repository").init()
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("{path}", '{"scsi9:9": 1}[disk.key]').replace("{settings}", ""))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(config)])
    assert ended.value.code == 0
    planned = capsys.readouterr().out
    assert "not checked: The path depends on the disk" in planned
    assert "KeyError: 'each disk'" in planned
    line = failure("run", config, capsys)
    assert "The path failed at line 27 of config.py: KeyError: 'scsi0:0'." in line
    assert (tmp_path / "captured").exists()
    assert not list((tmp_path / "repository" / "points").rglob("*.json"))


def test_a_plan_says_that_another_disk_may_travel_otherwise(tmp_path, capsys):
    config = tmp_path / "config.py"
    Repository(tmp_path / "repository").init()
    level = PIPELINE.replace("Compress()", "Compress(Zstd(3 if disk.capacity > GiB else 1))")
    config.write_text(
        CONFIG.replace("{path}", level).replace("{settings}", "").replace("import Job", "import GiB, Job")
    )
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(config)])
    planned = capsys.readouterr().out
    assert ended.value.code == 0
    assert "not checked: The path depends on the disk; shown is that of an empty one." in planned
    assert "Compress(codec=Zstd(level=1), workers=2)" in planned


def test_a_plan_names_what_a_run_would_miss(tmp_path, capsys):
    config = tmp_path / "config.py"
    text = CONFIG.replace("{path}", PIPELINE).replace("{settings}", "")
    config.write_text(text.replace("Machine([PatternDisk(5 << 20)])", 'LocalVm(HERE / "vm")'))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(config)])
    assert ended.value.code == 0
    repository = tmp_path / "repository"
    assert [line for line in capsys.readouterr().out.splitlines() if "MISSING" in line] == [
        f"  MISSING: {tmp_path}/vm: No such file or directory. Name the directory that holds the VM's files.",
        f"  MISSING: {repository} is not a repository: it has no config.json. "
        f"Name a repository, or make one with: vadpipe init {repository}",
    ]
    assert not repository.exists()


def test_a_job_without_a_repository_runs_as_a_benchmark(tmp_path, capsys):
    config = tmp_path / "config.py"
    path = PIPELINE.replace(END, "NullSink()")
    config.write_text(
        CONFIG.replace("{path}", path)
        .replace("{settings}", "")
        .replace('Repository(HERE / "repository")', "Nowhere()")
    )
    for command in ("plan", "run"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(config)])
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown
        assert ("Keeps nothing" if command == "plan" else "disk scsi0:0") in shown.out
