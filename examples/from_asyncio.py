"""Drive vadpipe from a program whose event loop is asyncio: in a thread, and as a guest of the same loop.

python from_asyncio.py /vms/web01
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from pipeline import Job, JobReceipt, blocking
from sinks import Nowhere, NullSink
from stages import AllocatedExtents, LocalVm, MarkZeros, ReadSpans

T = TypeVar("T")


def job_of(directory: str) -> Job[Any, Any]:
    return Job(
        LocalVm(directory),
        lambda disk, point: AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | NullSink(),
        into=Nowhere(),
    )


async def as_guest(function: Callable[[], Awaitable[T]]) -> T:
    """Await a function of trio on the thread of asyncio: both loops take turns, nothing else is needed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    trio.lowlevel.start_guest_run(
        function, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
    )
    result: T = (await done).unwrap()
    return result


async def main(directory: str) -> None:
    in_thread: JobReceipt = await asyncio.to_thread(blocking.run, job_of(directory))
    as_a_guest = await as_guest(job_of(directory).run)
    for way, receipt in (("thread", in_thread), ("guest", as_a_guest)):
        for run in receipt.disks:
            print(
                f"{way}: {run.receipt.key}: {run.receipt.read} bytes read, limited by {run.report.limited_by}"
            )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
