"""qcow2 images: made by qemu-img, served by qemu-nbd, written over NBD."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from pipeline import BufferPool, ConfigError, Pipeline, SinkError
from vadpipe.nbd import Nbd, NbdDisk
from vadpipe.nbd.client import NbdError
from vadpipe.nbd.writer import NbdWriter, open_for_writing
from vadpipe.repository.format.restore_point import StoredDisk

from .blocks import IntoNbd
from .images import image_name, open_images
from .raw import new_file
from .restoring import Contents, OpenTarget

log = logging.getLogger("vadpipe." + __name__)

_STARTING_S: Final = 30.0
_ENDING_S: Final = 120.0  # it writes its tables
_STOPPING_S: Final = 10.0  # after a failure or a signal
_POLL_S: Final = 0.01

# A qemu-nbd to which nobody has connected yet waits for ever, and holds the lock of its image. So a shell ends it
# when our end of its standard input closes, which happens however this process ends. (The kernel's signal for the
# death of a parent comes when the thread ends that started the child.)
_GUARD: Final = """
exec 3<&0
"$@" 3<&- </dev/null & server=$!
{ read -r _ <&3; kill "$server"; } 2>/dev/null & guard=$!
trap 'kill "$server" 2>/dev/null' TERM
while wait "$server"; code=$?; kill -0 "$server" 2>/dev/null; do :; done
kill "$guard" 2>/dev/null
exit "$code"
"""


def tool(name: str) -> str:
    """The path of one of qemu's tools. Raises ConfigError."""
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is missing, which this target needs.",
            remedy="Install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL).",
        )
    return found


async def run_tool(name: str, *arguments: str) -> None:
    """Run one of qemu's tools to its end. Raises ConfigError, SinkError with what it said."""
    begun = time.monotonic()
    done = await trio.run_process(
        [tool(name), *arguments],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
        stdin=subprocess.DEVNULL,
    )
    log.debug("%s %s: exit code %d, %.2f s.", name, arguments[0], done.returncode, time.monotonic() - begun)
    if done.returncode:
        raise _failed(name, done.stderr)


def _failed(name: str, errors: bytes) -> SinkError:
    said = errors.decode(errors="replace").strip().splitlines()
    return SinkError(f"{name} failed: {said[-1] if said else 'it said nothing'}.".replace("..", "."))


@asynccontextmanager
async def served(
    image: str, form: str, pool: BufferPool | None = None, *, name: str = ""
) -> AsyncIterator[NbdWriter]:
    """An image, open for writing through a qemu-nbd of our own; it is closed and whole after the block.

    `name` names it in messages. Zeros become holes where the image can have them.

    The server ends with the connection, also when this process is killed. Raises ConfigError, SinkError.
    """
    try:
        async with (
            _serving(image, form) as server,
            open_for_writing(
                server, pool, name=name, remedy="Check the free space and the limits there."
            ) as writer,
        ):
            yield writer
    except NbdError as exc:
        raise SinkError(exc.problem, remedy=exc.remedy, **exc.facts) from exc


@asynccontextmanager
async def read_back(
    image: str, form: str, pool: BufferPool | None = None, *, name: str = ""
) -> AsyncIterator[NbdDisk]:
    """An image, open for reading through a qemu-nbd of our own. Raises ConfigError, SinkError, NbdError."""
    async with (
        _serving(image, form, "--read-only") as server,
        server.open(pool=pool, key=name) as disk,
    ):
        yield disk


@asynccontextmanager
async def _serving(image: str, form: str, *options: str) -> AsyncIterator[Nbd]:
    """An image served by a qemu-nbd for one connection, after which it ends. Raises ConfigError, SinkError."""
    program = tool("qemu-nbd")
    with tempfile.TemporaryDirectory(prefix="vadpipe-") as directory, tempfile.TemporaryFile() as errors:
        socket = os.path.join(directory, "nbd")
        command = [
            program,
            f"--socket={socket}",
            f"--format={form}",
            "--cache=writeback",
            "--discard=unmap",  # zeros that are written over data give its space back
            *options,
            image,
        ]
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _GUARD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # the whole group can be ended by force
        )
        try:
            await _wait_ready(socket, process, errors)
            try:
                yield Nbd(socket)
            except (NbdError, SinkError) as exc:  # it listens before it opens the image
                with trio.move_on_after(_POLL_S * 100):
                    await process.wait()
                if process.returncode:
                    raise _failed("qemu-nbd", _text(errors)) from exc
                raise
            with trio.move_on_after(_ENDING_S):
                await process.wait()
            if process.returncode != 0:
                raise _failed("qemu-nbd", _text(errors))
        finally:
            await _stop(process)


async def _stop(process: trio.Process) -> None:
    """End a server that still runs: in order, so that an image which stays has no lost clusters; else by force."""
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(_STOPPING_S, shield=True):
            await process.wait()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    with trio.CancelScope(shield=True):
        await process.wait()
        assert process.stdin is not None
        await process.stdin.aclose()


async def _wait_ready(socket: str, process: trio.Process, errors: IO[bytes]) -> None:
    """Wait until the server listens. A connection that ends before its handshake does not end the server."""
    with trio.move_on_after(_STARTING_S):
        while process.poll() is None:
            try:
                stream = await trio.open_unix_socket(socket)
            except OSError:
                await trio.sleep(_POLL_S)
            else:
                await trio.aclose_forcefully(stream)
                return
    raise _failed("qemu-nbd", _text(errors))


def _text(errors: IO[bytes]) -> bytes:
    errors.seek(0)
    return errors.read(1 << 16)


@dataclass(frozen=True)
class Qcow2Directory:
    """One qcow2 image per disk: DIRECTORY/VM/POINT/scsi0-0.qcow2."""

    directory: Path

    def open(self, contents: Contents) -> AbstractAsyncContextManager[OpenTarget]:
        """Raises ConfigError, SinkError."""
        for name in ("qemu-img", "qemu-nbd"):
            tool(name)

        @asynccontextmanager
        async def write(disk: StoredDisk, path: Path, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
            async with new_file(path, force=contents.force) as file:
                place = f"file:{file.unfinished}"  # whatever its name, it is a file
                await run_tool("qemu-img", "create", "-q", "-f", "qcow2", place, str(disk.capacity))
                async with served(place, "qcow2", pool, name=str(path)) as writer:
                    yield contents.read(disk, pool) | IntoNbd(writer, disk.capacity, fresh=True)
                await file.publish()

        return open_images(self.directory, contents, lambda disk: [f"{image_name(disk.key)}.qcow2"], write)
