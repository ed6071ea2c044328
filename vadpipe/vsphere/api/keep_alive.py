"""A task beside a block, in a nursery of its own, that leaves no trace in the block's exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from pipeline.errors import MoverError


@asynccontextmanager
async def kept_alive(touch: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Await `touch` every `every_s` seconds while the block runs. The block's own exception comes out bare."""
    host_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_alive, touch, every_s)
            try:
                yield
            except BaseException as exc:  # kept aside, so that the nursery does not wrap it
                host_error = exc
            nursery.cancel_scope.cancel()
    except BaseException:  # nothing but a cancellation from outside
        if host_error is None:
            raise
    if host_error is not None:
        raise host_error


async def _keep_alive(touch: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        # A server that is away for long is the business of the next call that needs it.
        with suppress(MoverError):
            await touch()
