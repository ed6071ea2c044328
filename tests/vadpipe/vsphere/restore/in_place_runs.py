"""`python -m tests.vadpipe.vsphere.restore.in_place_runs MOMENT SETTINGS`: a restore that tests kill at a moment.

MOMENT: 'marked', before a disk is opened; 'writing', after the first span; 'written', before the proof; 'proven',
before it is completed.
"""

import json
import subprocess
import sys
from pathlib import Path

import trio

from sinks import in_place
from sinks.restoring import restore
from tests.vadpipe.vsphere.lab_runs import vcenter_of
from vadpipe.repository.reader import open_repository
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.restore import in_place as original

MOMENTS = ["marked", "writing", "written", "proven"]


def start(moment: str, where: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.vadpipe.vsphere.restore.in_place_runs", moment, json.dumps(where)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[4], stdout=subprocess.PIPE)


async def hang(*_arguments, **_options) -> None:
    print("now", flush=True)
    await trio.sleep_forever()


def stop_at(moment: str) -> None:
    """Make the moment the last that comes."""
    if moment == "marked":
        in_place._OpenOverVm._writing = HangingBlock
    elif moment == "writing":
        write = in_place._Writing.write

        async def then_hang(self, span) -> None:
            await write(self, span)
            await hang()

        in_place._Writing.write = then_hang
    elif moment == "written":
        in_place._OpenOverVm._prove = hang
    else:
        original.OpenOriginal.finish = hang


class HangingBlock:
    def __init__(self, *_arguments) -> None:
        pass

    async def __aenter__(self) -> None:
        await hang()

    async def __aexit__(self, *_error) -> None:
        pass


async def work(where: dict) -> None:
    reader = Vddk(where["libdir"], transports="nbdssl", end_timeout_s=0.5, restarts=0, restart_pause_s=0)
    target = in_place.OverVm(
        vcenter_of(where), writer=reader, allow=True, journal=Journal(Path(where["journal"]))
    )
    async with open_repository(where["repository"]) as repository:
        await restore(repository, repository.points[0], target)


if __name__ == "__main__":
    stop_at(sys.argv[1])
    trio.run(work, json.loads(sys.argv[2]))
