"""What follows the data of a new VM: firmware variables, boot order, attributes, tags, change tracking, power.

Each step may be repeated, so a lost answer costs nothing. A step that the server refuses does not take away a VM
whose disks are complete and proved: it is a sentence for the report, and the VM is then left off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pyVmomi import vim

from pipeline.errors import MoverError

from ..api.faults import NotOffered
from ..api.retry import retry
from ..api.tasks import wait_for_task
from ..inventory.datastore import DatastorePath, put_file
from ..inventory.tags import attach_tags, known_tags
from ..plan.values import After, BootEntry
from ..vm.power import came_true, power_on
from .made import MadeVm, step
from .site import attribute_keys

log = logging.getLogger(__name__)

HEARTBEAT_WITHIN_S = 600.0
_DEVICES = "config.hardware.device"
_GUEST = ("guestHeartbeatStatus", "guest.toolsRunningStatus", "runtime.powerState", "runtime.question")


@dataclass
class Finished:
    """`remarks`: what was done; `attention`: what was not, a sentence each."""

    remarks: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)


async def finish(made: MadeVm, after: After, nvram: bytes | None) -> Finished:
    """Complete a VM whose disks are complete; everything but its power.

    Args:
        made: The VM, switched off.
        after: What to do.
        nvram: The saved firmware variables.

    Raises:
        MoverError: The server is away for too long.
    """
    done = Finished()
    if after.nvram and nvram is not None:
        await tried(
            made, done, "The firmware variables (NVRAM) were not restored", partial(_upload, made, nvram)
        )
    if after.boot_order or after.change_tracking:
        await tried(
            made, done, "Boot order and change tracking were not set", partial(_reconfigure, made, after)
        )
    if after.attributes:
        await tried(
            made, done, "Custom attributes were not set", partial(_set_attributes, made, after.attributes)
        )
    if after.tags:
        await tried(made, done, "Tags were not attached", partial(_attach, made, after.tags))
    return done


async def switch_on(made: MadeVm, *, heartbeat_within_s: float = HEARTBEAT_WITHIN_S) -> Finished:
    """Switch the VM on, and wait for the heartbeat of its VMware Tools."""
    done, session, name = Finished(), made.session, made.vm.name
    step(name, "switching on")
    try:
        await retry(partial(power_on, session, made.vm.moref), session.settings.patience_s)
    except MoverError as exc:
        done.attention.append(f"{name} is complete, but could not be switched on: {exc}")
        return done
    step(name, "waiting for the heartbeat of its VMware Tools")
    seen: dict[str, object] = {}

    async def alive() -> bool:
        row = await session.properties(made.reference, _GUEST)
        seen.update({path: row.get(path) for path in _GUEST})
        return seen["guestHeartbeatStatus"] == "green" or seen["runtime.question"] is not None

    try:
        there = await came_true(alive, heartbeat_within_s)
    except MoverError as exc:
        done.attention.append(f"{name} was switched on; its heartbeat could not be asked for: {exc.problem}")
        return done
    if (question := seen.get("runtime.question")) is not None:
        text = str(getattr(question, "text", question)).strip()
        done.attention.append(f"{name} was switched on and waits for an answer to the question {text!r}")
    elif there:
        done.remarks.append(f"{name} is on, and its VMware Tools give a heartbeat.")
    else:
        tools = seen.get("guest.toolsRunningStatus") or "unknown"
        done.attention.append(
            f"{name} was switched on, but its VMware Tools gave no heartbeat within {heartbeat_within_s:g} s "
            f"(Tools: {tools}). Look at its console."
        )
    return done


async def tried(made: MadeVm, done: Finished, failure: str, work: Callable[[], Awaitable[str]]) -> None:
    """Do a step, again where its failure may pass. A refusal is a sentence in `attention`."""
    try:
        sentence = await retry(work, made.session.settings.patience_s)
    except MoverError as exc:
        if exc.transient:
            raise
        log.warning("%s: %s: %s", made.vm.name, failure, exc)
        done.attention.append(f"{failure}: {exc}")
        return
    step(made.vm.name, sentence.rstrip("."))
    done.remarks.append(sentence)


async def _upload(made: MadeVm, nvram: bytes) -> str:
    """Put the firmware variables beside the configuration file, and read them back."""
    session = made.session
    vmx = DatastorePath.parse(made.vmx)
    row = await session.properties(made.reference, ["config.extraConfig"])
    named = [str(one.value) for one in row.get("config.extraConfig") or () if one.key == "nvram"]
    place = vmx.parent.join(named[0] if named and named[0] else f"{vmx.name.removesuffix('.vmx')}.nvram")
    await put_file(session, place, made.vm.datacenter, nvram)
    return f"Its firmware variables (NVRAM, {len(nvram)} bytes) are restored."


async def _reconfigure(made: MadeVm, after: After) -> str:
    session, spec, words = made.session, vim.vm.ConfigSpec(), []
    if after.boot_order:
        devices = (await session.properties(made.reference, [_DEVICES])).get(_DEVICES) or ()
        order = [_bootable(entry, made, devices) for entry in after.boot_order]
        spec.bootOptions = vim.vm.BootOptions(bootOrder=[one for one in order if one is not None])
        words.append("its boot order is set")
    if after.change_tracking:
        spec.changeTrackingEnabled = True
        words.append("change tracking is on; its next backup is full")
    task = await session.call("ReconfigVM_Task", lambda: made.reference.Reconfigure(spec), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")
    sentence = " and ".join(words)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _bootable(
    entry: BootEntry, made: MadeVm, devices: Sequence[vim.vm.device.VirtualDevice]
) -> vim.vm.BootOptions.BootableDevice | None:
    options = vim.vm.BootOptions
    if entry.kind == "disk":
        disk = made.disks.get(entry.key)
        return None if disk is None else options.BootableDiskDevice(deviceKey=disk.device_key)
    if entry.kind == "network":
        cards = [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
        cards.sort(key=lambda card: card.key)
        if entry.number >= len(cards):
            return None
        return options.BootableEthernetDevice(deviceKey=cards[entry.number].key)
    return options.BootableCdromDevice() if entry.kind == "cdrom" else options.BootableFloppyDevice()


async def _set_attributes(made: MadeVm, attributes: Mapping[str, str]) -> str:
    session, manager = made.session, made.session.content.customFieldsManager
    if manager is None:
        raise NotOffered(f"{session.server} has no custom attributes.", server=session.server)
    keys = await attribute_keys(session)
    for name, value in attributes.items():
        if name not in keys:
            raise NotOffered(
                f"{session.server} has no custom attribute {name!r} any more.", server=session.server
            )
        change = partial(manager.SetField, made.reference, keys[name], value)
        await session.call("SetField", change, changes=True)
    return f"Its custom attributes are set: {', '.join(attributes)}."


async def _attach(made: MadeVm, tags: Sequence[tuple[str, str]]) -> str:
    known = await known_tags(made.session)
    missing = ["/".join(tag) for tag in tags if tag not in known]
    if missing:
        raise NotOffered(f"{made.session.server} has no tag {', '.join(missing)} any more.")
    await attach_tags(made.session, made.vm.moref, [known[tag] for tag in tags])
    return f"Its tags are attached: {', '.join('/'.join(tag) for tag in tags)}."
