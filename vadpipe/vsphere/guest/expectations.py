"""What a job expects inside a guest, and whether it is so, looked at before the snapshot.

A job never changes a guest: a killed run would leave the change behind, and two jobs of one VM would undo each
other's. Changing is a command of its own (`vadpipe guest-config --apply`, `guest_change`), done once, by a person.
A job that was given an account of the guest only looks: it reads tools.conf, lists the scripts, says what will run,
and takes a difference from what was asked by the policy of its quiescing: 'require' fails before the snapshot, and
'try' goes on and says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal

from pipeline.errors import ConfigError, QuiesceFailed, SourceError
from pipeline.secrets import Secret

from ..api.retry import patiently
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
from .tools_conf import ToolsConfig
from .vmbackup import SETTINGS, Value, check_settings

# The session waits for a vCenter that is away; a busy guest, or a host that cannot be reached, is told soon.
_PATIENCE_S = 30.0

Scripts = Literal["any", "none", "required"]


@dataclass(frozen=True)
class GuestControl:
    """An account of the guest, and what a job expects there. Opt-in, settings only.

    `settings`: keys of [vmbackup] in tools.conf with the value that each must have, None for "not set", e.g.
    {"vss.disableAppQuiescing": True}. `scripts`: whether freeze and thaw scripts may ('any'), must not ('none') or
    must ('required') be there. Raises ConfigError.
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
                f"{self.scripts!r} is no word about scripts.", remedy="Use 'any', 'none' or 'required'."
            )

    def files(self, session: VcenterSession, vm: Vm, guest_id: str) -> GuestFiles:
        """The files of the guest, by this account."""
        return GuestFiles(session, vm, GuestAccount(self.user, self.password), is_windows(guest_id))


@dataclass(frozen=True)
class Inside:
    """What was found in a guest: its tools.conf (an empty one where there is none) and its scripts."""

    windows: bool
    config: ToolsConfig
    scripts: GuestScripts

    def differences(self, control: GuestControl) -> list[str]:
        """A sentence for each thing that is not as `control` asks."""
        found = [
            f"{key} is {_shown(self.config.value(key))} in tools.conf, asked for was {_shown(wanted)}."
            for key, wanted in control.settings.items()
            if not SETTINGS[key].equals(self.config.value(key), wanted)
        ]
        if control.scripts == "none" and self.scripts:
            found.append(f"Scripts would run, and none may: {', '.join(self.scripts.paths)}.")
        if control.scripts == "required" and not self.scripts:
            found.append("No freeze or thaw script is there, and one is required.")
        return found

    def obstacles(self, quiesce: Quiesce) -> list[str]:
        """A sentence for each setting of the guest that stands against `quiesce`."""
        if not self.windows:
            return []
        found = []
        if SETTINGS["enableVSS"].equals(self.config.value("enableVSS"), False):
            found.append("tools.conf switches VSS off (enableVSS=false): the guest cannot be quiesced by it.")
        disabled = SETTINGS["vss.disableAppQuiescing"].equals(
            self.config.value("vss.disableAppQuiescing"), True
        )
        if disabled and quiesce.kind == "application":
            found.append("tools.conf allows file-system quiescing only (vss.disableAppQuiescing=true).")
        return found

    def remarks(self) -> list[str]:
        """What a report should say of the guest, beside differences."""
        said = (
            [f"Runs in the guest when it is quiesced: {', '.join(self.scripts.paths)}."]
            if self.scripts
            else []
        )
        if set_here := self.config.values():
            shown = ", ".join(f"{key}={value}" for key, value in set_here.items())
            said.append(f"tools.conf of the guest has in [vmbackup]: {shown}.")
        if older := [key for key in set_here if key in SETTINGS and SETTINGS[key].older_call]:
            said.append(
                f"{', '.join(older)}: VMware Tools heed that for CreateSnapshot_Task only, the call before 6.5."
            )
        return said

    def as_dict(self) -> dict[str, object]:
        return {
            "vmbackup": self.config.values(),
            "freeze_scripts": list(self.scripts.freeze),
            "thaw_scripts": list(self.scripts.thaw),
        }


@dataclass(frozen=True)
class Looked:
    """What looking into a guest gave a run: for its attention, its remarks, and its point (None: nothing seen)."""

    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    inside: Mapping[str, object] | None = None


async def look_inside(
    session: VcenterSession, vm: Vm, control: GuestControl | None, quiesce: Quiesce
) -> Looked:
    """Compare the guest with what the job expects of it, where the job says something and quiesces a running guest.

    Raises QuiesceFailed where something is not as asked and the quiescing is required; VsphereError.
    """
    if control is None or quiesce.kind == "none":
        return Looked()
    guest = await guest_of(session, vm)
    if guest.obstacle:  # the snapshot reports it
        return Looked()
    try:
        look = partial(inside, control.files(session, vm, guest.guest_id))
        found = await patiently(look, min(_PATIENCE_S, session.settings.patience_s))
    except SourceError as exc:
        problem = f"The guest of {vm.name} could not be looked into: {exc.problem}"
        if quiesce.policy == "require" and (control.settings or control.scripts != "any"):
            raise QuiesceFailed(problem, remedy=exc.remedy, **{**exc.facts, "vm": vm.name}) from exc
        return Looked(attention=[problem])
    against = [*found.differences(control), *found.obstacles(quiesce)]
    if against and quiesce.policy == "require":
        raise QuiesceFailed(
            f"The guest of {vm.name} is not as the job asks: {' '.join(against)}",
            remedy="Change the guest ('vadpipe guest-config CONFIG.py --apply' for tools.conf) or the job; with "
            "the policy 'try' it goes on and says so.",
            vm=vm.name,
            differences=against,
        )
    return Looked([f"In the guest of {vm.name}: {one}" for one in against], found.remarks(), found.as_dict())


async def inside(files: GuestFiles) -> Inside:
    """What a guest has. Raises as GuestFiles, and ToolsConfigUnreadable."""
    found = await files.read((WINDOWS if files.windows else LINUX).tools_conf)
    config = ToolsConfig.parse(found.content if found is not None else b"")
    return Inside(files.windows, config, await scripts_in(files))


def _shown(value: Value | None) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
