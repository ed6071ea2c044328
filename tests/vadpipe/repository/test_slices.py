"""Verifying in slices: every pack is read once in a round, in the order of ids; a missing one is always told."""

import json

import numpy as np
import pytest
import trio
from click.testing import CliRunner

from pipeline import KiB, MiB
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, names, opened, random_bytes
from vadpipe.cli.repository import last_verified, note_verified
from vadpipe.cli.repository import verify as verify_command
from vadpipe.repository import verify
from vadpipe.repository.maintenance.verify import Budget

COUNT = 9


@pytest.fixture
async def packs(anywhere):
    """The ids of nine packs of a repository, ascending."""
    for seed in range(COUNT):
        await backup(anywhere, [MemoryDisk(random_bytes(seed, 96 * KiB + 4 * KiB * seed))])
    return ids(anywhere)


def ids(repository):
    return sorted(name.rpartition("/")[2][:24] for name in names(repository, "packs/"))


async def one_slice(repository, after, budget="25%"):
    async with repository.read() as reader:
        return await verify(reader, budget=Budget(budget, 0), after=after)


async def a_round(repository, budget="25%"):
    """The reports of the slices of a whole round."""
    reports, after = [], ""
    while not reports or reports[-1].covered < 1:
        reports.append(await one_slice(repository, after, budget))
        assert reports[-1].reached > after
        after = reports[-1].reached
    return reports


@pytest.mark.parametrize("budget", ["1B", "10%", "25%", "100%", "150KiB"])
async def test_a_round_reads_every_pack_once(anywhere, packs, budget):
    reports = await a_round(anywhere, budget)
    assert sum(report.packs for report in reports) == COUNT
    async with anywhere.read() as reader:
        whole = await verify(reader)
    assert sum(report.frames for report in reports) == whole.frames
    assert [report.damages for report in reports] == [()] * len(reports)
    reached = [report.reached for report in reports]
    assert reached == sorted(reached)
    assert set(reached) <= set(packs)
    assert reached[-1] == packs[-1]


async def test_a_slice_says_how_far_the_round_came(anywhere, packs):
    objects, _ = opened(anywhere)
    sizes = np.array([objects.size(objects.pack(pack)) for pack in packs])
    reports = await a_round(anywhere)
    for report in reports:
        at = packs.index(report.reached)
        assert report.covered == pytest.approx(sizes[: at + 1].sum() / sizes.sum())
        assert report.unread_packs == COUNT - report.packs
        assert report.seed is None
    assert f"Covered so far: {reports[0].covered:.1%} of the stored bytes." in reports[0].summary()


async def test_damage_is_found_by_the_slice_that_reads_its_pack(anywhere, packs):
    objects, _ = opened(anywhere)
    name = objects.pack(packs[4])
    content = bytearray(objects.backend.read(name))
    content[-200] ^= 1
    objects.backend.replace(name, [bytes(content)])
    reports = await a_round(anywhere, "1B")
    assert [bool(report.damages) for report in reports] == [number == 4 for number in range(COUNT)]


async def test_a_missing_pack_is_told_in_every_slice_and_skips_no_other(anywhere, packs):
    objects, _ = opened(anywhere)
    objects.backend.delete([objects.pack(packs[6])])
    reports = await a_round(anywhere, "1B")
    for report in reports:
        assert objects.place(objects.pack(packs[6])) in {found.file for found in report.damages}
    assert [report.reached for report in reports if report.reached != packs[6]] == [
        pack for number, pack in enumerate(packs) if number != 6
    ]


async def test_a_new_pack_is_read_in_this_round_or_in_the_next(anywhere, packs):
    first = await one_slice(anywhere, "", "50%")
    await backup(anywhere, [MemoryDisk(random_bytes(99, 96 * KiB))])
    (new,) = set(ids(anywhere)) - set(packs)
    rest = await one_slice(anywhere, first.reached, "100%")
    assert rest.covered == 1
    assert rest.packs == len([pack for pack in [*packs, new] if pack > first.reached])
    assert sum(report.packs for report in await a_round(anywhere)) == COUNT + 1


async def test_a_slice_after_the_last_pack_reads_none_and_ends_the_round(anywhere, packs):
    report = await one_slice(anywhere, "f" * 24)
    assert (report.packs, report.covered) == (0, 1)


async def test_the_points_are_checked_in_every_slice(anywhere, packs):
    reports = await a_round(anywhere)
    assert {report.points for report in reports} == {COUNT}


# --- the command remembers where it stopped ---


def verified(repository, *arguments):
    call = [str(repository.path), "--json", *arguments]
    done = CliRunner().invoke(verify_command, call, standalone_mode=False)
    assert done.exception is None
    return json.loads(done.output)


@pytest.fixture
def stored(repository):
    for seed in range(4):
        trio.run(backup, repository, [MemoryDisk(random_bytes(seed, MiB // 4))])
    return repository


def test_the_command_goes_on_where_it_stopped_and_begins_anew_after_a_round(stored):
    expected = ids(stored)
    reached = [verified(stored, "--budget", "1B")["reached"] for _ in range(6)]
    assert reached == [*expected, *expected[:2]]


def test_other_verifications_do_not_move_it(stored):
    _, config = opened(stored)
    verified(stored, "--budget", "1B")
    before = last_verified(config.id)
    assert before == ids(stored)[0]
    for arguments in ((), ("--budget", "50%", "--seed", "3"), ("--point", "latest", "--budget", "50%")):
        verified(stored, *arguments)
        assert last_verified(config.id) == before


def test_what_was_remembered_is_per_repository_and_may_be_lost(stored, tmp_path, monkeypatch):
    note_verified(b"a" * 16, "00")
    note_verified(b"b" * 16, "11")
    assert (last_verified(b"a" * 16), last_verified(b"b" * 16), last_verified(b"c" * 16)) == ("00", "11", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    note_verified(b"a" * 16, "22")
    assert last_verified(b"a" * 16) == ""
    assert verified(stored, "--budget", "1B")["reached"] == ids(stored)[0]
