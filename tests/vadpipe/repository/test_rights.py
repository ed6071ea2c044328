"""A role that may not delete: it backs up, and somebody with the right prunes."""

import numpy as np
import pytest
import trio

from pipeline import MiB, SinkError
from pipeline.errors import TransferFailed
from tests.vadpipe.repository import repository_kit as kit
from vadpipe.repository import Repository, verify
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import Forwarding
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.runs import has_ended, unended_runs


class NoDelete(Forwarding):
    """Refuses to delete, as a server does that knows the role."""

    refused = 0

    def delete(self, names):
        kept = tuple(names)
        if kept:
            self.refused += 1
            raise SinkError(
                f"Could not remove {kept[0]}: access is denied (HTTP 403).", remedy="", status=403
            )


@pytest.fixture
def store():
    made = MemoryBackend()
    Repository(made).init()
    return made


def disk(seed=1):
    return kit.MemoryDisk(kit.random_bytes(seed, 3 * MiB))


def pruned(store):
    settings = Repository(store)
    with settings.open_for_maintenance() as (objects, config):
        return prune(objects, config, settings.origin)


async def whole(store, contents):
    async with Repository(store).read() as reader:
        assert not (await verify(reader)).damages
        assert len(reader.points) == len(contents)
        for point, content in zip(reader.points, contents, strict=True):
            assert np.array_equal(await kit.restore(reader, point), content)
        return reader.objects


async def test_backups_need_no_right_to_delete(store):
    """Each leaves its sign of life, which the next one must not stumble over."""
    bare = NoDelete(store)
    first = disk()
    for _ in range(3):
        await kit.backup(Repository(bare), [first], kit.incremental_path)
    objects = await whole(store, [first.content] * 3)
    assert bare.refused
    left = unended_runs(objects)
    assert left
    assert all(has_ended(objects, run) for run in left)


async def test_a_prune_with_the_right_removes_what_runs_left(store):
    first = disk()
    await kit.backup(Repository(NoDelete(store)), [first])
    await trio.to_thread.run_sync(pruned, store)
    objects = await whole(store, [first.content])
    assert unended_runs(objects) == []


async def test_packs_of_failed_runs_are_removed_by_a_prune_with_the_right(store):
    class Full(NoDelete):
        def put(self, name, parts):
            if name.startswith("points/"):
                raise SinkError("The server is full.", remedy="Free space.")
            self.inner.put(name, parts)

    await kit.backup(Repository(NoDelete(store)), [disk(1)])
    with pytest.raises(TransferFailed) as caught:
        await kit.backup(Repository(Full(store)), [disk(2)])
    assert "is full" in repr(caught.value)
    before = len(list(store.list("packs/")))
    again = disk(3)
    await kit.backup(Repository(NoDelete(store)), [again])
    await trio.to_thread.run_sync(pruned, store)
    await trio.to_thread.run_sync(pruned, store)
    objects = await whole(store, [disk(1).content, again.content])
    assert len(list(store.list("packs/"))) == before
    assert unended_runs(objects) == []


async def test_prune_without_the_right_says_so(store):
    await kit.backup(Repository(store), [disk()])
    point = next(found.name for found in store.list("points/"))
    store.delete([point])
    await trio.to_thread.run_sync(pruned, store)
    with pytest.raises(SinkError, match="access is denied"):
        await trio.to_thread.run_sync(pruned, NoDelete(store))
    await trio.to_thread.run_sync(pruned, store)
    assert [found.name for found in store.list("packs/")] == []
