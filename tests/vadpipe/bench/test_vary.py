"""Settings by name, and jobs with other values of them."""

from dataclasses import dataclass

import pytest

from pipeline import ConfigError, Job, Secret, Stage
from pipeline.testing.fakes import FakeMachine, PatternDisk
from sinks import Nowhere, NullSink
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    LocalVm,
    MarkZeros,
    Nbd,
    NbdVm,
    Quiesce,
    ReadSpans,
    Vcenter,
    VcenterVm,
    Vddk,
    Zstd,
)
from vadpipe.bench.vary import parse, settings_of, sizes_of, undisturbed, varied


def path(disk, point):
    cut = AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | CutChunks()
    return cut | Digest(point) | Dedupe(point) | Compress(Zstd(1)) | NullSink()


@dataclass(frozen=True)
class Named(Stage):
    """A stage of a user, with a setting that readers have, too."""

    depth: int = 1

    async def run(self, inbox, outbox):
        async for item in inbox:
            await outbox.send(item)


def job_of(machine=None, path=path):
    return Job(machine or FakeMachine([PatternDisk(1 << 20)]), path, into=Nowhere())


def part(job, kind):
    pipeline, _ = job.planned()
    [found] = [part for part in pipeline.parts if isinstance(part, kind)]
    return found


def test_settings_of_stages_codec_machine_and_job_can_be_varied():
    names = [setting.name for setting in settings_of(job_of(LocalVm("/vms/web01")))]
    assert names == [
        "Job.disks_at_once",
        "LocalVm.pool_size",
        "ReadSpans.ahead",
        "Compress.codec",
        "Compress.codec.level",
        "Compress.workers",
    ]


@pytest.mark.parametrize("name", ["level", "Zstd.level", "Compress.level", "compress.codec.LEVEL"])
def test_a_setting_of_a_codec_has_several_names(name):
    job = varied(job_of(), {name: "3"})
    assert part(job, Compress) == Compress(Zstd(3))


def test_other_settings_stay_as_they_are():
    job = varied(job_of(), {"ahead": "5", "workers": "3", "disks_at_once": "4"})
    assert part(job, ReadSpans).ahead == 5
    assert part(job, Compress) == Compress(Zstd(1), workers=3)
    assert job.disks_at_once == 4
    assert part(job_of(), ReadSpans).ahead == 2


def test_a_codec_is_chosen_by_its_name_and_before_its_level():
    assert part(varied(job_of(), {"codec": "raw"}), Compress).codec.name == "raw"
    with pytest.raises(ConfigError, match="has no setting level"):
        varied(job_of(), {"level": "3", "codec": "raw"})


def test_the_pool_of_a_local_vm_takes_a_size_with_a_unit():
    machine = LocalVm("/vms/web01")
    job = varied(job_of(machine), {"pool_size": "32MiB"})
    assert (job.machine.pool_size, machine.pool_size) == (32 << 20, 24 << 20)


def test_settings_of_the_reader_of_a_vm_can_be_varied():
    vcenter = Vcenter("vc01.example.com", user="backup", password=Secret.from_env("PASSWORD"))
    job = job_of(VcenterVm(vcenter, "web01", reader=Vddk("/opt/vddk")))
    machine = varied(job, {"depth": "16", "transports": "hotadd:nbdssl", "unbuffered": "yes"}).machine
    assert isinstance(machine, VcenterVm)
    assert machine.reader == Vddk("/opt/vddk", depth=16, transports="hotadd:nbdssl", unbuffered=True)
    with pytest.raises(ConfigError, match="one of none, zlib, fastlz, skipz"):
        varied(job, {"compression": "gzip"})
    assert not [setting for setting in settings_of(job) if "password" in setting.name]


def test_a_vm_that_is_only_measured_is_not_quiesced_and_its_change_tracking_stays():
    vcenter = Vcenter("vc01.example.com", user="backup", password=Secret.from_env("PASSWORD"))
    reader = Vddk("/opt/vddk")
    machine = undisturbed(VcenterVm(vcenter, "web01", reader=reader, enable_change_tracking=True))
    assert machine == VcenterVm(vcenter, "web01", reader=reader, quiesce=Quiesce.none())
    local = LocalVm("/vms/web01")
    assert undisturbed(local) is local


def test_all_disks_of_an_nbd_vm_get_the_value():
    machine = varied(job_of(NbdVm("web01", {"a": Nbd("one"), "b": Nbd("two")})), {"depth": "2"}).machine
    assert isinstance(machine, NbdVm)
    assert [(nbd.host, nbd.depth) for nbd in machine.disks.values()] == [("one", 2), ("two", 2)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"levle": "1"}, "has no setting levle .* Did you mean level.* There are: Job.disks_at_once, "),
        ({"level": "99"}, "--vary level=99: Zstd has no level 99. Choose one from -7 to 22."),
        ({"level": "high"}, "Compress.codec.level=high is impossible. Its values are whole numbers"),
        ({"workers": "0"}, r"--vary workers=0: Compress\(workers=0\) is impossible"),
        ({"codec": "lzo"}, "names of codecs: raw, zstd"),
        ({"disks_at_once": "0"}, r"Job\(disks_at_once=0\) is impossible"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_what_exists(settings, told):
    with pytest.raises(ConfigError, match=told):
        varied(job_of(), settings)


def test_a_name_that_means_several_settings_is_refused_with_their_names():
    machine = NbdVm("web01", {"a": Nbd("one")})
    job = job_of(machine, lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | Named() | NullSink())
    with pytest.raises(ConfigError, match=r"means several settings: NbdVm.disks.depth, Named.depth"):
        varied(job, {"depth": "2"})
    assert part(varied(job, {"Named.depth": "7"}), Named).depth == 7


def test_a_path_that_shows_no_stages_without_its_disk_cannot_be_varied():
    def by_size(disk, point):
        return path(disk, point) if disk.capacity > 1 else None

    with pytest.raises(ConfigError, match=r"cannot be varied\. The path depends on the disk"):
        varied(job_of(path=by_size), {"level": "1"})


def test_several_options_make_a_grid_in_turns():
    assert parse(["level=1,3", "workers=1, 2"]) == [
        {"level": "1", "workers": "1"},
        {"level": "1", "workers": "2"},
        {"level": "3", "workers": "1"},
        {"level": "3", "workers": "2"},
    ]
    assert parse([]) == [{}]


@pytest.mark.parametrize(
    "texts", [["level"], ["level="], ["=1"], ["level=1,,2"], ["level=1,1"], ["a=1", "a=2"]]
)
def test_a_text_that_is_no_setting_with_values_is_refused(texts):
    with pytest.raises(ConfigError, match="--vary"):
        parse(texts)


def test_sizes_may_have_units():
    assert sizes_of("--sizes", "512, 64KiB,1MiB") == [512, 65536, 1 << 20]
    with pytest.raises(ConfigError, match="--sizes 1,x is no list of sizes"):
        sizes_of("--sizes", "1,x")
