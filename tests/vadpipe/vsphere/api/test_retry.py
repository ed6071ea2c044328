"""Retries: growing pauses, an end, and only for transient errors."""

import pytest
import trio

from pipeline.errors import SourceError
from vadpipe.vsphere.api.faults import Busy
from vadpipe.vsphere.api.retry import backoff, retry


async def test_pauses_grow_and_end(autojump_clock):
    taken = []
    for pause_s in backoff(300):
        taken.append(pause_s)
        await trio.sleep(pause_s)
    assert taken[:6] == [1, 2, 4, 8, 16, 32]
    assert sum(taken) == pytest.approx(300)
    assert max(taken) <= 300 / 8
    assert list(backoff(0)) == []


async def test_the_time_limit_begins_at_the_first_failure(autojump_clock):
    calls = 0

    async def slow() -> None:
        nonlocal calls
        calls += 1
        await trio.sleep(200)
        raise Busy("busy")

    with pytest.raises(Busy):
        await retry(slow, 300)
    assert calls == 3  # at 0 s, 201 s and 403 s; the patience ended at 500 s


async def test_an_error_that_is_not_transient_is_raised_at_once(autojump_clock):
    async def broken() -> None:
        raise SourceError("for good")

    begun = trio.current_time()
    with pytest.raises(SourceError):
        await retry(broken, 300)
    assert trio.current_time() == begun
