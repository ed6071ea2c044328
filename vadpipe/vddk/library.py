"""Where VDDK is installed, and the settings file that the library reads when it is initialised."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import ConfigError
from vadpipe.files import state_directory

# libvixDiskLib.so.N of VDDK 9.x, 8.0, 7.0 and 6.x.
GENERATIONS = (9, 8, 7, 6)

# The requests that one session keeps open at the host: 4 of 1 MiB were the best in the vendor's tests
# (KB 313937, release notes of 7.0.3); older libraries ignore the settings.
SESSION = {
    "vixDiskLib.nfcAio.Session.BufSizeIn64KB": "16",
    "vixDiskLib.nfcAio.Session.BufCount": "4",
}

TMP_DIRECTORY = "tmpDirectory"
_OWN = f"Repair or remove it, or set config={{'{TMP_DIRECTORY}': ...}} to a directory of your own."


def find_library(libdir: str | Path) -> Path:
    """The newest libvixDiskLib in `libdir`, the root of the distribution or its `lib64`.

    Raises:
        ConfigError: There is none; the message names the files that were looked for.
    """
    root = Path(libdir)
    names = [f"libvixDiskLib.so.{generation}" for generation in GENERATIONS]
    for place in (root / "lib64", root):
        for name in names:
            if (place / name).is_file():
                return (place / name).absolute()
    cause = "holds no VDDK library" if root.is_dir() else "is not a directory"
    raise ConfigError(
        f"{root} {cause}: looked for lib64/{names[0]} to {names[-1]}.",
        remedy="Set libdir to the vmware-vix-disklib-distrib directory of VDDK 6.5 or later.",
        libdir=str(root),
    )


def distribution_root(library: Path) -> Path:
    """The libDir of InitEx: the library looks for its plugins in lib64 below it."""
    return library.parent.parent if library.parent.name == "lib64" else library.parent


@contextmanager
def settings_file(settings: Mapping[str, str], tmp_directory: Path) -> Iterator[Path]:
    """A file with the defaults and `settings` for InitEx, in the VM's own directory. It holds no secret.

    Removed at the end.
    """
    complete = {**SESSION, **settings, TMP_DIRECTORY: str(tmp_directory)}
    if not os.access(tmp_directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{tmp_directory} is not a directory that this user can write to.", remedy=_OWN)
    with tempfile.NamedTemporaryFile("w", dir=tmp_directory, prefix=".settings-", suffix=".conf") as file:
        file.writelines(f'{name} = "{value}"\n' for name, value in complete.items())
        file.flush()
        yield Path(file.name)


def working_directory(server: str, vm: str) -> Path:
    """The directory where the library keeps its state of a VM, made if it is missing.

    It is the same in every run, so that the library finds what a crashed run left. Each VM has its own, so that
    cleaning up after one run does not touch another's.

    Raises:
        ConfigError: It cannot be made, or is not private to this user.
    """
    root = state_directory() / "vddk"
    directory = root / (quote(f"{server} {vm}", safe=" ") if vm else "local")
    try:
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{root} is not a private directory of this user.", remedy=_OWN)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{directory} cannot be made: {exc.strerror}.", remedy=_OWN) from exc
    return directory
