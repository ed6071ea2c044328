"""`python -m tests.sinks.new_vm_runs SETTINGS`: a restore into a new VM that tests kill at a known moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from pipeline import Event, Secret, observed
from sinks import NewVm, open_repository
from sinks.restoring import restore
from stages import Vddk
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal


def start(where: dict[str, str], **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.sinks.new_vm_runs", json.dumps(where)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], **options)  # type: ignore[call-overload]


async def run(where: dict[str, str]) -> None:
    def observe(event: Event) -> None:
        if (
            event.kind == "restoring"
            and where["kill_at"]
            and str(event.facts["step"]).startswith(where["kill_at"])
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    vcenter = Vcenter(
        where["host"],
        "backup",
        Secret.from_text("lab"),
        thumbprint=where["thumbprint_sha256"],
        port=int(where["port"]),
        patience_s=5,
    )
    target = NewVm(
        vcenter,
        writer=Vddk(where["libdir"], transports="nbdssl"),
        name="web01-restored",
        journal=Journal(Path(where["journal"])),
    )
    async with open_repository(where["repository"]) as reader:
        with observed(observe):
            await restore(reader, reader.points[-1], target)


if __name__ == "__main__":
    trio.run(run, json.loads(sys.argv[1]))
