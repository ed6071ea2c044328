"""Chunks have the names that their repository gives, or nothing is stored; and the event loop never waits."""

import re
import threading
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import trio
import xxhash

from pipeline import ContractError, Job, MiB, MoverError, TransferFailed
from pipeline.errors import leaves
from pipeline.testing.fakes import FakeCapture, FakeMachine, Items
from stages import AllocatedExtents, Blake3, MemoryIndex, Zstd
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    disk_of,
    files_of,
    framed,
    framed_path,
    full_path,
    random_bytes,
)
from vadpipe.repository import IntoRepository
from vadpipe.repository.format.frames import Kind


@dataclass(frozen=True)
class Xxh3:
    """An identity of somebody's own: fast, and no secret in it."""

    name = "xxh3"

    def digest(self, data: memoryview) -> bytes:
        return xxhash.xxh3_128_digest(data) * 2


def flow_with(disk, identity, index):
    return framed_path(AllocatedExtents(disk), disk, identity, index, Zstd())


@pytest.mark.parametrize(
    ("identity", "problem"),
    [
        (Blake3(), r"Digest names chunks with Blake3\(\), but"),
        (Blake3(bytes(32)), r"Digest names chunks with Blake3\(key=\.\.\.\), but"),
        (Xxh3(), r"Digest names chunks with Xxh3\(\), but"),
        (None, "Refine looks chunks up in MemoryIndex"),
    ],
    ids=["unkeyed", "another key", "another kind", "another index"],
)
async def test_a_path_with_other_names_cannot_be_composed(repository, identity, problem):
    before = files_of(repository.path)
    disk = MemoryDisk(random_bytes(1, 3 * MiB))

    def path(disk, point):
        if identity is None:
            return flow_with(disk, point, MemoryIndex(point.identity)) | IntoRepository(point, disk)
        return flow_with(disk, identity, point) | IntoRepository(point, disk)

    with pytest.raises((MoverError, TransferFailed)) as failed:
        await Job(FakeMachine([disk]), path, repository).run()
    assert any(re.search(problem, str(leaf)) for leaf in leaves(failed.value))
    assert files_of(repository.path) == before


async def framed_elsewhere(disk, identity, label=None):
    """The spans of a path whose index is not the repository's, with what they say of their names."""
    async with flow_with(disk, identity, MemoryIndex(identity)).open() as items:
        return [replace(item, identity=label or identity) async for item in items]


@pytest.mark.parametrize(
    ("identity", "labelled", "problem"),
    [
        (Blake3(), False, r"named by Blake3\(\), but.*Digest\(point\)"),
        (Blake3(bytes(32)), False, r"named by Blake3\(key=\.\.\.\), but"),
        (Xxh3(), False, r"named by Xxh3\(\), but"),
        (Xxh3(), True, "the digests of its chunks are not those of their bytes"),
        (None, False, "was not promised by this point"),
    ],
    ids=["unkeyed", "another key", "another kind", "a wrong label", "another index"],
)
async def test_chunks_that_the_repository_did_not_name_are_refused_before_a_byte_is_stored(
    repository, monkeypatch, identity, labelled, problem
):
    """Whoever feeds the sink by hand meets the same rule."""
    written = []
    monkeypatch.setattr(
        "vadpipe.repository.format.packs.PackWriter.append", lambda *parts: written.append(parts)
    )
    disk = MemoryDisk(random_bytes(1, 3 * MiB))
    async with repository.open() as store, store.begin(MACHINE) as point:
        label = point.identity if labelled else None
        spans = await framed_elsewhere(disk, identity or point.identity, label)
        with pytest.raises(TransferFailed) as failed:
            await (Items(spans) | IntoRepository(point, disk)).run()
        assert failed.group_contains(ContractError, match=problem)
        assert written == []
    assert list(repository.path.glob("points/*/*")) == []
    async with repository.open() as store, store.begin(MACHINE) as point:
        assert point.previous(disk) is None


async def test_known_chunks_of_another_index_are_refused(repository):
    """Its frame numbers mean nothing here, not even those of chunks that came without a frame."""
    disk = MemoryDisk(random_bytes(1, MiB))
    async with repository.open() as store, store.begin(MACHINE) as point:
        spans = [replace(span, frames=[]) for span in await framed_elsewhere(disk, point.identity)]
        with pytest.raises(TransferFailed) as failed:
            await (Items(spans) | IntoRepository(point, disk)).run()
        assert failed.group_contains(ContractError, match="no frame with the number")


def test_the_identity_of_a_planned_point_equals_itself_alone(repository):
    one, other = repository.planned(), repository.planned()
    assert one.identity == one.identity
    assert one.identity != other.identity
    assert one.identity != Blake3()


# --- the event loop ---


def span_of(point):
    return framed(point, 0, random_bytes(1, MiB))


async def sink_a_span(point):
    disk = disk_of(MiB)
    span = await trio.to_thread.run_sync(span_of, point)
    return partial((Items([span]) | IntoRepository(point, disk)).run)


async def store_an_object(point):
    return partial(point.store_object, Kind.MAP, b"page")


async def load_an_object(point):
    digest, _ = await point.store_object(Kind.MAP, b"page")
    return partial(point.are_stored, np.frombuffer(digest, np.uint8).reshape(1, -1))


async def publish(point):
    return partial(point.publish, FakeCapture(MACHINE, []), [], None)


async def back_up(point):
    return partial(full_path(MemoryDisk(random_bytes(2, 2 * MiB)), point).run)


@pytest.mark.parametrize("prepare", [sink_a_span, store_an_object, load_an_object, publish, back_up])
async def test_the_event_loop_goes_on_while_a_thread_holds_the_index(repository, prepare):
    """The lock is given back by the event loop itself; a loop that waited for it would never come to that."""
    async with repository.open() as store, store.begin(MACHINE) as point:
        work = await prepare(point)
        lock, held, let_go = point._run.index.lock, threading.Event(), threading.Event()
        in_time = []

        def hold():
            with lock:
                held.set()
                in_time.append(let_go.wait(10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hold)
            await trio.to_thread.run_sync(held.wait)
            nursery.start_soon(work)
            for _ in range(30):
                await trio.sleep(0.01)
            let_go.set()
        assert in_time == [True]


def test_frame_numbers_of_two_runs_differ(repository):
    """So what was promised by one point cannot be taken for a frame of another."""

    async def numbers():
        found = []
        async with repository.open() as store:
            for _ in range(2):
                async with store.begin(MACHINE) as point:
                    span = span_of(point)
                    found.append(int(span.chunk_frame[0]))
        return found

    one, other = trio.run(numbers)
    assert one != other
