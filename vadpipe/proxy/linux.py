"""A Linux proxy: its facts, and its settings read and written. All paths are below `root`, for tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import ContractError, MoverError
from vadpipe.files import flush_directory, write_durably

from . import linux_config, lvm
from .command import NOT_FOUND, Run, failure, run_command
from .linux_rules import RULES, LinuxFacts
from .report import Report, Transport, judge_machine
from .settings import LINUX_SETTINGS, MDADM, MDADM_DEBIAN, Setting, TextFile, Value

# Where distributions put its daemon.
UDISKS_DAEMONS = ("usr/libexec/udisks2/udisksd", "usr/lib/udisks2/udisksd")


class LinuxProxy:
    """This machine, by its configuration files and the programs that print what is in force."""

    platform = "linux"
    settings: Mapping[str, Setting] = LINUX_SETTINGS

    def __init__(self, root: Path = Path("/"), run: Run = run_command) -> None:
        self._root = root
        self._run = run

    @property
    def state_directory(self) -> Path:
        return self._root / "var" / "lib" / "vadpipe"

    def judge(self, transport: Transport) -> Report:
        return judge_machine(self.platform, RULES, self.facts(), transport)

    def facts(self) -> LinuxFacts:
        unreadable: list[str] = []
        rules = self._udev_rules(unreadable)
        return LinuxFacts(
            lvm=self._lvm(unreadable),
            multipath=self._multipath(unreadable),
            md=self._md(rules, unreadable),
            udisks_kept_off=linux_config.keeps_udisks_off(rules.values())
            if any((self._root / daemon).exists() for daemon in UDISKS_DAEMONS)
            else None,
            mounts=self._mounts(unreadable),
            unreadable=unreadable,
        )

    def read(self, setting: Setting) -> Value:
        with _errors(setting):
            return _read(self._path(setting))

    def set(self, setting: Setting, value: Value) -> Sequence[str]:
        """Write or remove the file, and make that take effect. Returns remarks. Raises MoverError."""
        path = self._path(setting)
        if isinstance(value, int):
            raise ContractError(f"{path} holds text, not {value}.")
        with _errors(setting):
            if value is None:
                _remove(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, value)
        if setting.afterwards:
            code, output = self._run(setting.afterwards)
            if code:
                problem = failure(setting.afterwards, code, output)
                return [f"{setting.id} takes effect at the next start of the machine: {problem}"]
        return ()

    def _path(self, setting: Setting) -> Path:
        if not isinstance(setting.place, TextFile):
            raise ContractError(f"{setting.id} is no setting of Linux.")
        return self._root / setting.place.path.lstrip("/")

    def _text(self, path: str, unreadable: list[str]) -> str:
        try:
            return _read(self._root / path.lstrip("/")) or ""
        except OSError as exc:
            unreadable.append(f"{path}: {exc.strerror}")
            return ""

    def _lvm(self, unreadable: list[str]) -> lvm.LvmFacts | None:
        code, output = self._run(lvm.CONFIGURATION)
        if code == NOT_FOUND:
            return None
        found = lvm.parse_configuration(output)
        if code not in (0, lvm.NODE_NOT_FOUND) or "global_filter" not in found:
            unreadable.append(failure(lvm.CONFIGURATION, code, output))
            return None
        code, output = self._run(lvm.VOLUME_GROUPS)
        if code:
            unreadable.append(failure(lvm.VOLUME_GROUPS, code, output))
        devices = f"etc/lvm/devices/{found.get('devicesfile', ('system.devices',))[0]}"
        return lvm.LvmFacts(
            event_activation=found.get("event_activation") != ["0"],
            auto_activation=found.get("auto_activation_volume_list"),
            devices_file=found.get("use_devicesfile") == ["1"] and (self._root / devices).exists(),
            global_filter=found["global_filter"],
            volume_groups=None if code else sorted(set(output.split())),
        )

    def _multipath(self, unreadable: list[str]) -> linux_config.MultipathFacts | None:
        code, output = self._run(linux_config.MULTIPATH_CONFIGURATION)
        if code in (0, NOT_FOUND):
            return None if code else linux_config.parse_multipath(output)
        unreadable.append(failure(linux_config.MULTIPATH_CONFIGURATION, code, output))
        return None

    def _md(self, rules: Mapping[str, str], unreadable: list[str]) -> linux_config.MdFacts | None:
        code, active = self._run(linux_config.ACTIVE_ARRAYS)
        if code == NOT_FOUND:
            return None
        if code:
            unreadable.append(failure(linux_config.ACTIVE_ARRAYS, code, active))
            return None
        debian = (self._root / "etc/debian_version").exists()
        paths = [self._path(one) for one in ((MDADM_DEBIAN, MDADM) if debian else (MDADM, MDADM_DEBIAN))]
        path = next((one for one in paths if one.exists()), paths[0])
        name = f"/{path.relative_to(self._root)}"
        # Files of the directory beside it are read after it, in the order of their names.
        names = [
            name,
            *(f"{name}.d/{one.name}" for one in sorted(path.with_name(f"{path.name}.d").glob("*.conf"))),
        ]
        configuration = "\n".join(self._text(one, unreadable) for one in names)
        return linux_config.MdFacts(
            rules=[rule for rule, text in rules.items() if linux_config.assembles_by_rule(text)],
            configuration=name,
            auto=linux_config.auto_policy(configuration),
            unlisted=linux_config.unlisted_arrays(active, configuration),
        )

    def _udev_rules(self, unreadable: list[str]) -> Mapping[str, str]:
        directories = []
        for directory in linux_config.UDEV_DIRECTORIES:
            paths = sorted((self._root / directory).glob("*.rules"))
            directories.append(
                {path.name: self._text(f"/{directory}/{path.name}", unreadable) for path in paths}
            )
        return linux_config.in_force(directories)

    def _mounts(self, unreadable: list[str]) -> linux_config.MountFacts:
        code, output = self._run(linux_config.BLOCK_DEVICES)
        ambiguous: Mapping[str, Sequence[str]] = {}
        if code:
            unreadable.append(failure(linux_config.BLOCK_DEVICES, code, output))
        else:
            ambiguous = linux_config.ambiguous_tags(output)
        return linux_config.MountFacts(
            linux_config.parse_fstab(self._text("/etc/fstab", unreadable)), ambiguous
        )


def _read(path: Path) -> str | None:
    """The text; bytes that are no UTF-8 survive reading and writing back. None: no such file."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(path: Path, text: str) -> None:
    target = path.resolve()  # through a link, the file it names
    content = text.encode("utf-8", "surrogateescape")
    write_durably(target, content, replace=True, prepare=partial(_look_alike, target))


def _look_alike(old: Path, new: Path) -> None:
    """Give the new file the mode, owner and extended attributes of the old one; SELinux keeps its label in one."""
    if not old.exists():
        new.chmod(0o644)
        return
    shutil.copystat(old, new)
    status = old.stat()
    os.chown(new, status.st_uid, status.st_gid)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        flush_directory(path.parent)


@contextmanager
def _errors(setting: Setting) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MoverError(
            f"{setting.place} cannot be changed: {exc.strerror or exc}.",
            remedy="Run it as root.",
            setting=setting.id,
        ) from exc
