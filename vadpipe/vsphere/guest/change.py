"""Changing tools.conf in a guest to what a job expects, and restoring it.

The text from before the first change is kept in the guest, beside the file. After every step the same command
can be repeated: the copy is written before the change, and removed after the change was undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import SourceError

from .files import GuestFile, GuestFiles
from .scripts import LINUX, WINDOWS
from .tools_conf import SETTINGS, ToolsConfig, Value, put_back

KEPT = ".vadpipe-before"


@dataclass(frozen=True)
class GuestChange:
    """What was done in one guest. `changed`: its tools.conf is different now. `done`: a sentence for each step."""

    vm: str
    changed: bool
    done: Sequence[str]

    def lines(self) -> list[str]:
        return [f"{self.vm}: {sentence}" for sentence in self.done]


def with_settings(config: ToolsConfig, wanted: Mapping[str, Value | None], windows: bool) -> ToolsConfig:
    """`config` with these values in effect. An equal value in another spelling stays."""
    spelt = {
        key: setting.spelt(wanted[key])
        for key, setting in SETTINGS.items()  # in one order, so that it can be restored exactly
        if key in wanted and not setting.equals(config.value(key), wanted[key])
    }
    return config.with_values(spelt, line_end="\r\n" if windows else "\n")


async def apply_settings(files: GuestFiles, wanted: Mapping[str, Value | None]) -> GuestChange:
    """Write these values into the guest's tools.conf, and keep the original beside it.

    Raises:
        ToolsConfigUnreadable: VMware Tools cannot read the present file.
        SourceError: The file differs from what was written, or an error of GuestFiles.
    """
    path = _path(files)
    old = await files.read(path)
    before = ToolsConfig.parse(old.content if old is not None else b"")
    after = with_settings(before, wanted, files.windows)
    if after == before:
        return GuestChange(files.vm.name, False, [f"{path} has these values already."])
    kept = f"{path}{KEPT} holds the file from before the first change."
    if await files.read(path + KEPT) is None:
        await files.replace(path + KEPT, before.content, old)
    await _written(files, path, after, old)
    changed = ", ".join(
        f"{key}={after.value(key)}" if after.value(key) is not None else f"{key} not set"
        for key in SETTINGS
        if after.value(key) != before.value(key)
    )
    return GuestChange(files.vm.name, True, [f"{path} has now: {changed}.", kept])


async def undo_settings(files: GuestFiles) -> GuestChange:
    """Restore the guest's tools.conf, and remove the copy. Changes by others stay. Raises as `apply_settings`."""
    path = _path(files)
    kept = await files.read(path + KEPT)
    if kept is None:
        return GuestChange(files.vm.name, False, [f"There is no {path}{KEPT}: nothing was changed."])
    now = await files.read(path)
    current = ToolsConfig.parse(now.content if now is not None else b"")
    config, whole = put_back(current, ToolsConfig.parse(kept.content), SETTINGS)
    if whole and not kept.content:  # there was no file
        await files.remove(path)
    else:
        await _written(files, path, config, now or kept)
    await files.remove(path + KEPT)
    result = "is as it was." if whole else "has its old settings again. Other changes since then are kept."
    return GuestChange(files.vm.name, config != current, [f"{path} {result}"])


async def _written(files: GuestFiles, path: str, config: ToolsConfig, like: GuestFile | None) -> None:
    await files.replace(path, config.content, like)
    found = await files.read(path)
    if found is None or found.content != config.content:
        raise SourceError(
            f"{path} in the guest of {files.vm.name} differs from what was written.",
            remedy="Check what else changes it, then run again.",
            vm=files.vm.name,
            path=path,
        )


def _path(files: GuestFiles) -> str:
    return (WINDOWS if files.windows else LINUX).tools_conf
