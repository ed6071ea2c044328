"""The settings of group [vmbackup] in tools.conf: what an administrator of a guest may say about quiescing.

Sources: services/plugins/vmbackup and tools.conf of open-vm-tools; KB 2146204 (vss.disableAppQuiescing). None of
them excludes a writer: KB 1031200 is said to tell how, its text is not to be had, so nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

Value = bool | int | str

_TRUE, _FALSE = ("true", "1"), ("false", "0")  # GLib's booleans


@dataclass(frozen=True)
class GuestSetting:
    """One key. `guests`: whose VMware Tools read it; `older_call`: only for snapshots by CreateSnapshot_Task."""

    key: str
    kind: type[Value]
    guests: Literal["all", "windows", "linux"]
    older_call: bool
    meaning: str

    def spelt(self, value: Value | None) -> str | None:
        """The value as tools.conf has it; None: not set."""
        if value is None:
            return None
        return str(value).lower() if isinstance(value, bool) else str(value)

    def equals(self, text: str | None, value: Value | None) -> bool:
        """Whether the text in the file says `value`; None: that it is not set."""
        if text is None or value is None:
            return text is None and value is None
        if isinstance(value, bool):
            return text.strip() in (_TRUE if value else _FALSE)
        return text.strip() == str(value).strip()


SETTINGS: Mapping[str, GuestSetting] = {
    setting.key: setting
    for setting in (
        GuestSetting("enableVSS", bool, "windows", False, "whether VSS is used; true when not set"),
        GuestSetting("vss.disableAppQuiescing", bool, "windows", False, "file systems only, no applications"),
        GuestSetting("excludedFileSystems", str, "all", False, "not frozen by file-system quiescing"),
        GuestSetting("enableSyncDriver", bool, "linux", False, "whether file systems are frozen"),
        GuestSetting("enableXmlManifest", bool, "linux", False, "whether a manifest is written"),
        GuestSetting("ignoreFrozenFileSystems", bool, "linux", False, "whether frozen ones are no error"),
        GuestSetting("execScripts", bool, "all", True, "whether freeze and thaw scripts run"),
        GuestSetting("scriptArg", str, "all", True, "argument of the scripts"),
        GuestSetting("timeout", int, "all", True, "time for quiescing"),
        GuestSetting("quiesceApps", bool, "all", True, "whether applications are quiesced"),
        GuestSetting("quiesceFS", bool, "all", True, "whether file systems are quiesced"),
        GuestSetting("allowHWProvider", bool, "windows", True, "whether VSS may use a hardware provider"),
        GuestSetting("enableNullDriver", bool, "all", True, "whether quiescing may do nothing"),
        GuestSetting("vssUseDefault", bool, "windows", True, "whether VSS chooses its own defaults"),
        GuestSetting("forceQuiesce", bool, "all", True, "whether a quiesce that is not possible fails"),
    )
}


def check_settings(wanted: Mapping[str, Value | None]) -> None:
    """Raises ConfigError for a key that VMware Tools do not have, or a value of another kind."""
    for key, value in wanted.items():
        setting = SETTINGS.get(key)
        if setting is None:
            raise ConfigError(
                f"{key!r} is no key of [vmbackup] in tools.conf.",
                remedy=f"Choose from {', '.join(SETTINGS)}.",
            )
        if value is not None and type(value) is not setting.kind:
            raise ConfigError(
                f"{key} is a {setting.kind.__name__}, not {value!r}.",
                remedy="Give such a value, or None for 'not set'.",
            )
