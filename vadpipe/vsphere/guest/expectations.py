"""What a job expects inside a guest, compared with the guest before the snapshot.

A job never changes a guest: a killed run would leave the change behind, and two jobs of one VM would undo each
other's changes. A person changes a guest once, by `vadpipe guest-config --apply` (see `change`). A job with an
account of the guest only reads: tools.conf and the scripts. The policy of its quiescing decides about a
difference: 'require' fails before the snapshot, 'try' continues and reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal

from pipeline.errors import ConfigError, SourceError
from pipeline.secrets import Secret

from ..api.faults import QuiesceFailed
from ..api.retry import retry
from ..api.session import VcenterSession
from ..inventory.lookup import Vm
from ..snapshot.fallback import guest_of
from ..snapshot.quiesce import Quiesce, is_windows
from .files import GuestAccount, GuestFiles
from .scripts import (
    LINUX,
    WINDOWS,
    GuestScripts,
    scripts_in,
)
from .tools_conf import SETTINGS, ToolsConfig, Value, check_settings

# The session waits for a vCenter that is away. A busy guest or an unreachable host is reported sooner.
_PATIENCE_S = 30.0

Scripts = Literal["any", "none", "required"]


@dataclass(frozen=True)
class GuestControl:
    """An account of the guest, and what a job expects there. Optional; settings only.

    Args:
        user: The account, of the guest itself or of its domain.
        password: Its password.
        settings: Keys of [vmbackup] in tools.conf with the value that each must have, None for "not set", e.g.
            {"vss.disableAppQuiescing": True}.
        scripts: Whether freeze and thaw scripts may exist ('any'), must not exist ('none') or must ('required').

    Raises:
        ConfigError: A key, a value or `scripts` is unknown.
    """

    user: str
    password: Secret
    _: KW_ONLY
    settings: Mapping[str, Value | None] = field(default_factory=dict, hash=False)
    scripts: Scripts = "any"

    def __post_init__(self) -> None:
        check_settings(self.settings)
        if self.scripts not in ("any", "none", "required"):
            raise ConfigError(
                f"scripts= must be 'any', 'none' or 'required', not {self.scripts!r}.",
                remedy="Use one of these words.",
            )

    def files(self, session: VcenterSession, vm: Vm, guest_id: str) -> GuestFiles:
        """The files of the guest, through this account."""
        return GuestFiles(session, vm, GuestAccount(self.user, self.password), is_windows(guest_id))


@dataclass(frozen=True)
class GuestState:
    """The tools.conf of a guest (an empty one when it has none) and its scripts."""

    windows: bool
    config: ToolsConfig
    scripts: GuestScripts

    def differences(self, control: GuestControl) -> list[str]:
        """A sentence for each difference from what `control` expects."""
        found = [
            f"{key} is {_shown(self.config.value(key))} in tools.conf, but the job expects {_shown(wanted)}."
            for key, wanted in control.settings.items()
            if not SETTINGS[key].equals(self.config.value(key), wanted)
        ]
        if control.scripts == "none" and self.scripts:
            found.append(f"Scripts would run, but the job allows none: {', '.join(self.scripts.paths)}.")
        if control.scripts == "required" and not self.scripts:
            found.append("There is no freeze or thaw script, but the job requires one.")
        return found

    def obstacles(self, quiesce: Quiesce) -> list[str]:
        """A sentence for each setting of the guest that prevents `quiesce`."""
        if not self.windows:
            return []
        found = []
        if SETTINGS["enableVSS"].equals(self.config.value("enableVSS"), False):
            found.append("tools.conf switches VSS off (enableVSS=false), so VSS cannot quiesce the guest.")
        disabled = SETTINGS["vss.disableAppQuiescing"].equals(
            self.config.value("vss.disableAppQuiescing"), True
        )
        if disabled and quiesce.kind == "application":
            found.append("tools.conf allows file-system quiescing only (vss.disableAppQuiescing=true).")
        return found

    def remarks(self) -> list[str]:
        """Sentences for a report, besides differences."""
        remarks = (
            [f"Scripts that run in the guest at quiescing: {', '.join(self.scripts.paths)}."]
            if self.scripts
            else []
        )
        if set_here := self.config.values():
            shown = ", ".join(f"{key}={value}" for key, value in set_here.items())
            remarks.append(f"tools.conf of the guest has in [vmbackup]: {shown}.")
        if older := [key for key in set_here if key in SETTINGS and SETTINGS[key].older_call]:
            remarks.append(
                f"{', '.join(older)}: VMware Tools apply this to CreateSnapshot_Task only, the call before 6.5."
            )
        return remarks

    def as_dict(self) -> dict[str, object]:
        return {
            "vmbackup": self.config.values(),
            "freeze_scripts": list(self.scripts.freeze),
            "thaw_scripts": list(self.scripts.thaw),
        }


@dataclass(frozen=True)
class GuestFindings:
    """What a run reports of a guest. `inside`: for the restore point; None when nothing was read."""

    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    inside: Mapping[str, object] | None = None


async def look_inside(
    session: VcenterSession, vm: Vm, control: GuestControl | None, quiesce: Quiesce
) -> GuestFindings:
    """Compare a guest with what the job expects, when the job expects something and quiesces a running guest.

    Raises:
        QuiesceFailed: There is a difference, and the quiescing is required.
        VsphereError: The state of the guest cannot be read.
    """
    if control is None or quiesce.kind == "none":
        return GuestFindings()
    guest = await guest_of(session, vm)
    if guest.obstacle:  # the quiescing reports it
        return GuestFindings()
    try:
        look = partial(inside, control.files(session, vm, guest.guest_id))
        found = await retry(look, min(_PATIENCE_S, session.settings.patience_s))
    except SourceError as exc:
        problem = f"The guest of {vm.name} could not be read: {exc.problem}"
        if quiesce.policy == "require" and (control.settings or control.scripts != "any"):
            raise QuiesceFailed(problem, remedy=exc.remedy, **{**exc.facts, "vm": vm.name}) from exc
        return GuestFindings(attention=[problem])
    against = [*found.differences(control), *found.obstacles(quiesce)]
    if against and quiesce.policy == "require":
        raise QuiesceFailed(
            f"The guest of {vm.name} is not as the job expects: {' '.join(against)}",
            remedy="Change the guest ('vadpipe guest-config CONFIG.py --apply' for tools.conf) or the job. With "
            "the policy 'try' the job continues and reports it.",
            vm=vm.name,
            differences=against,
        )
    return GuestFindings(
        [f"In the guest of {vm.name}: {one}" for one in against], found.remarks(), found.as_dict()
    )


async def inside(files: GuestFiles) -> GuestState:
    """Read a guest. Raises the errors of GuestFiles, and ToolsConfigUnreadable."""
    found = await files.read((WINDOWS if files.windows else LINUX).tools_conf)
    config = ToolsConfig.parse(found.content if found is not None else b"")
    return GuestState(files.windows, config, await scripts_in(files))


def _shown(value: Value | None) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
