"""Intents: a run's changes at a server, each a small JSON file that is written before the change is made.

An intent is durable, directory entry included, before the call that it stands for, and is removed only after the
change was undone. Whatever a killed run leaves behind at a server is therefore named by a file here, and the next
start removes exactly that. An intent belongs to the process that wrote it as long as that process runs. A pid is
used again after a reboot or a wrap-around, so it is kept together with the start time of the process and the boot
id.

An intent holds no secrets. All functions block: call them from a worker thread.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pipeline.errors import SourceError
from vadpipe.files import flush_directory, state_directory, write_durably

_SUFFIX = ".intent.json"


class IntentKind(StrEnum):
    """Kinds of change, in the order in which they are undone for a VM."""

    HOT_ADD = "hot-added disks"
    SNAPSHOT = "snapshot"
    RELOCATION_LOCK = "relocation lock"
    POWER = "power"
    NEW_VM = "new VM"
    ROLLBACK = "restore in place"


# The phase of a new VM from which on it is complete and proved; before, it is taken away again.
WHOLE = "whole"
# The phase before: a restore sheet may lie beside its configuration file. It is deleted with the VM.
SHEET = "restore sheet"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One change to a VM by this process, with what is needed to undo it. `token` is unique.

    snapshot          its description contains the token
    relocation lock   its identity contains the token; ended through the VDDK in `libdir`
    hot-added disks   detached through the VDDK in `libdir`, which keeps a list of them in `tmp_directory`
    power             the VM was on and was shut down; it has to be powered on
    new VM            it is being restored from `point`, with the UUID `vm_uuid`; a setting of it holds the token.
                      In the phase WHOLE it stays, in any earlier phase it is destroyed. `vm_moref` is empty until
                      it is known. `disks`: the bytes of the disks that it gets, by their keys
    restore in place  cannot be undone, only finished; see `rollback`

    `server_id`: the server's own identity. `vm_uuid`: the VM's instance UUID. `abandoned`: the process that wrote
    it still runs, but has given up undoing the change.
    """

    server: str
    server_id: str
    vm_moref: str
    vm_uuid: str
    vm_name: str
    run: str
    kind: IntentKind = IntentKind.SNAPSHOT  # the default of old files, which have no kind
    libdir: str = ""
    tmp_directory: str = ""
    point: str = ""
    phase: str = ""
    disks: Mapping[str, int] = field(default_factory=dict)
    abandoned: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    process_start: str = field(default_factory=lambda: process_start(os.getpid()) or "")

    @property
    def snapshot_name(self) -> str:
        """The name of its snapshot; empty for other kinds."""
        return f"vadpipe {self.run}" if self.kind is IntentKind.SNAPSHOT else ""

    @property
    def title(self) -> str:
        """The change in words, e.g. "snapshot 'vadpipe 2026...' of web01"."""
        if self.kind is IntentKind.NEW_VM:
            return f"{self.kind} {self.vm_name} (from point {self.point}, {self.phase})"
        name = f" {self.snapshot_name!r}" if self.kind is IntentKind.SNAPSHOT else ""
        return f"{self.kind}{name} of {self.vm_name}"

    @property
    def identity(self) -> str:
        """The identity of a relocation lock. VDDK allows 50 characters."""
        return f"vadpipe {self.token}"

    @property
    def origin(self) -> str:
        """The run and the process that made it, in words."""
        return f"run {self.run} (process {self.pid} on {self.host})"

    @property
    def age_s(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()

    def is_live(self) -> bool:
        """True while its process runs. Always True for another host, whose processes cannot be checked."""
        if self.abandoned:
            return False
        if self.host != socket.gethostname():
            return True
        return process_start(self.pid) == self.process_start


@dataclass(frozen=True)
class Journal:
    """The intents of this machine, in one directory: by default the user's state directory."""

    directory: Path = field(default_factory=state_directory)

    def write(self, intent: Intent) -> None:
        """Write or replace an intent; durable when this returns. Raises SourceError."""
        with self._errors():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(self.path(intent), json.dumps(asdict(intent), indent=1).encode(), replace=True)

    def abandon(self, intent: Intent) -> None:
        """Leave undoing to the next sweep, also to one of this process. Raises SourceError."""
        self.write(replace(intent, abandoned=True))

    def remove(self, intent: Intent) -> None:
        """Remove an intent whose change was undone or never made. Raises SourceError."""
        with self._errors():
            self.path(intent).unlink(missing_ok=True)
            flush_directory(self.directory)

    def intents(self) -> Sequence[Intent]:
        """All intents, oldest first. Raises SourceError for a file that is not a valid intent."""
        paths = sorted(self.directory.glob(f"*{_SUFFIX}"))
        found = [intent for intent in map(_load, paths) if intent is not None]
        return sorted(found, key=lambda intent: (intent.created, intent.token))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise SourceError(
                f"The journal {self.directory} cannot be written: {exc.strerror or exc}.",
                remedy="Make the directory writable, or give another one with Journal(directory).",
                directory=str(self.directory),
            ) from exc

    def path(self, intent: Intent) -> Path:
        """The file of this intent."""
        return self.directory / f"{intent.token}{_SUFFIX}"


def _load(path: Path) -> Intent | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = {item.name: item.default for item in fields(Intent) if item.default is not MISSING}
        missing |= {"disks": {}}
        known = {item.name: {**missing, **document}[item.name] for item in fields(Intent)}
        return Intent(**{**known, "kind": IntentKind(known["kind"])})
    except FileNotFoundError:  # another process removed it just now
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SourceError(
            f"The journal entry {path} cannot be read: {exc}.",
            remedy="It may name a snapshot or a lock that still exists: read the file, undo the change by hand, "
            "then remove the file.",
        ) from exc


def process_start(pid: int) -> str | None:
    """An identity of the process with this pid: boot id and start time. None when there is no such process.

    Without /proc only the pid is known; an intent may then stay until its pid is free, which is the safe side.

    Source: proc(5), field 22 of /proc/PID/stat.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown" if _pid_exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = stat.rpartition(")")[2].split()  # the process name may contain anything
    return None if state in "ZX" else f"{boot}/{numbers[18]}"


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
