"""The vCenter of one run: what goes wrong at its calls, events that strike it, and the child that is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline import Secret
from stages import Journal, Vcenter

from ..disks import LabDisk
from ..vcenter.faults.injection import Event
from ..vcenter.server import LabVcenter
from .ending import HANGS_AFTER_S, Ending
from .running import PROCESSES
from .troubles import Moment, Trouble

# Events that stop and start the server must not meet each other.
_EVENTS = threading.Lock()


def new_root(root: Path, identity: Path) -> Path:
    """A new directory for a lab, with the certificate that `identity` has: all runs share one."""
    root.mkdir(parents=True)
    for name in ("server.crt", "server.key"):
        shutil.copy2(identity / name, root / name)
    return root


class CampaignLab:
    """A vCenter in `root`, a directory with its certificate."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vcenter = LabVcenter(root, task_s=0.01)
        self.vcenter.set_guest_ids("otherGuest64", "windows2019srv_64Guest")  # the VMs' own
        self._threads: list[threading.Thread] = []
        self._child: BaseProcess | None = None
        self._child_started = threading.Event()

    @property
    def journal(self) -> Journal:
        return Journal(self.root / "journal")

    def settings(self) -> Vcenter:
        return server_settings(*self.address)

    @property
    def address(self) -> tuple[str, int, str]:
        """Host, port and thumbprint."""
        return self.vcenter.address, self.vcenter.port, self.vcenter.thumbprint

    def arm(self, troubles: Sequence[Trouble], killed: Moment | None) -> None:
        """Set up what goes wrong. `killed`: the call of the vSphere API at which the child dies."""
        events = self.events()
        for one in troubles:
            failure = Event(events[one.failure]) if isinstance(one.failure, str) else one.failure
            self.vcenter.inject(one.method, failure, one.nth, in_task=one.in_task, after=one.after)
        if killed:
            self.vcenter.inject(killed[0], Event(self._kill), killed[1])

    def events(self) -> Mapping[str, Callable[[], None]]:
        """What each event does."""
        return {
            "restart": partial(self._beside, partial(self.vcenter.restart, 0.05)),
            "expire": self.vcenter.expire_sessions,
            "cut": partial(self._beside, self.vcenter.drop_connections),
        }

    def settle(self) -> None:
        """End the trouble, and wait until no host is at work any more."""
        self.vcenter.calm()
        for thread in self._threads:
            thread.join()
        while not self.vcenter.idle:
            time.sleep(0.005)

    def run_killed(
        self, run: Callable[..., None], *args: object, fatal: Callable[[], bool] | None = None
    ) -> Ending:
        """A run in a child, until it ends or is killed; `fatal`: whether it is to be killed now."""
        child = self._child = PROCESSES.Process(target=_in_child, args=(run, *args))
        child.start()
        self._child_started.set()
        deadline = time.monotonic() + HANGS_AFTER_S
        while child.is_alive() and time.monotonic() < deadline:
            if fatal and fatal():
                child.kill()
            child.join(0.02 if fatal else HANGS_AFTER_S)
        if child.exitcode is None:
            child.kill()
            child.join()
            return Ending("hung", [f"the child did not end within {HANGS_AFTER_S:.0f} s"])
        return Ending("killed" if child.exitcode < 0 else "ended before the kill", [])

    def _beside(self, work: Callable[[], None]) -> None:
        """In another thread: the one that answers a call cannot end itself."""
        thread = threading.Thread(target=self._one_at_a_time, args=(work,))
        self._threads.append(thread)
        thread.start()

    def _one_at_a_time(self, work: Callable[[], None]) -> None:
        with _EVENTS:
            work()

    def _kill(self) -> None:
        if self._child is not None:
            self._child_started.wait()
            self._child.kill()


def _in_child(run: Callable[..., None], *args: object) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - how it fails is not asked here
    run(*args)


def server_settings(host: str, port: int, thumbprint: str) -> Vcenter:
    return Vcenter(
        host,
        "backup",
        Secret.from_text("lab"),
        thumbprint=thumbprint,
        port=port,
        patience_s=2,
        keep_alive_s=3600,  # by the clock: its calls would count in no run as in another
    )


def digest_of(disk: LabDisk) -> str:
    """The digest of a whole disk."""
    return hashlib.sha256(disk.read(0, disk.capacity)).hexdigest()
