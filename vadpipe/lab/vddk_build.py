"""Build the VDDK stand-in with the machine's compiler, once, into a directory laid out like a VDDK distribution."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent / "vddk"
GENERATIONS = (6, 7, 8, 9)
_LIBRARIES = tuple(f"libvixDiskLib.so.{generation}" for generation in GENERATIONS)
_LINK = "libvixDiskLib.so"


class CompilerMissing(RuntimeError):
    """The stand-in cannot be built here: this machine has no C compiler or no make."""


class CompilationFailed(RuntimeError):
    """The compiler refused the sources; the message ends with its output."""


def build_vddk(out: Path, lacks: Iterable[str] = ()) -> Path:
    """Build the stand-in under `out`, unless it is newer than its sources.

    `out/lib64` then holds libvixDiskLib.so.6 to .9 and the unversioned link. Processes may build at once: each
    builds in a directory of its own and renames its files into place, so a library is never seen half-written.

    Args:
        out: The directory, for one set of libraries.
        lacks: Functions, without their prefix, that the libraries do not export, as older and free ones do not.

    Returns:
        `out`, which is VDDK's libDir.

    Raises:
        CompilerMissing: There is no C compiler or no make.
        CompilationFailed: The compiler refused the sources.
    """
    lib64 = out / "lib64"
    if _is_current(lib64):
        return out
    make = _find("make")
    compiler = _find("cc", "gcc")
    lib64.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as scratch:
        command = [make, "--silent", f"-j{len(GENERATIONS)}", f"OUT={scratch}", f"CC={compiler}"]
        command.append(f"LACKS={' '.join(lacks)}")
        # Without an outer make's flags and job slots.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        built = subprocess.run(
            command,
            cwd=SOURCES,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if built.returncode != 0:
            raise CompilationFailed(
                f"building the VDDK stand-in failed: {' '.join(command)} in {SOURCES}\n{built.stdout}"
            )
        for name in (*_LIBRARIES, _LINK):
            os.replace(Path(scratch, "lib64", name), lib64 / name)
    return out


def _is_current(lib64: Path) -> bool:
    """Whether every library is there and no source file has changed since."""
    if not all((lib64 / name).exists() for name in (*_LIBRARIES, _LINK)):
        return False
    built_s = min((lib64 / name).stat().st_mtime for name in _LIBRARIES)
    return built_s > max(source.stat().st_mtime for source in SOURCES.iterdir())


def _find(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise CompilerMissing(
        f"the VDDK stand-in is written in C, and {' or '.join(names)} is not on the PATH: "
        "install a C compiler and make (Debian: apt install gcc make)"
    )
