"""The restore sheet of a new VM: a CD image beside its configuration file, and on request in a drive of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pyVmomi import vim

from ..api.tasks import wait_for_task
from ..inventory.datastore import put_file
from ..vm.new import sheet_beside
from .finishing import Finished, tried
from .made import MadeVm

_device = vim.vm.device
_Cdrom = _device.VirtualCdrom
_DEVICES = "config.hardware.device"
# Controllers that take CD drives, and how many units each has.
_CONTROLLERS = ((_device.VirtualIDEController, 2), (_device.VirtualSATAController, 30))
_NEW_CONTROLLER = -1


@dataclass(frozen=True)
class Sheet:
    """`image`: makes the CD image when it is needed; `connect`: put it into a drive as well."""

    image: Callable[[], Awaitable[bytes]]
    connect: bool = False


async def put_sheet(made: MadeVm, sheet: Sheet) -> Finished:
    """Lay the sheet beside the VM, and connect it where that is asked for.

    Raises:
        MoverError: The server is away for too long.
    """
    done = Finished()
    await tried(
        made, done, "The sheet for its applications was not laid beside it", partial(_put, made, sheet)
    )
    if sheet.connect and not done.attention:
        failure = "The sheet for its applications is not in a CD drive"
        await tried(made, done, failure, partial(_connect, made))
    return done


async def _put(made: MadeVm, sheet: Sheet) -> str:
    place = sheet_beside(made.vmx)
    await put_file(made.session, place, made.vm.datacenter, await sheet.image())
    return f"What its applications need is in {place}."


async def _connect(made: MadeVm) -> str:
    """Into its first CD drive, else into a new one; unless an earlier attempt did."""
    session, image = made.session, str(sheet_beside(made.vmx))
    devices = (await session.properties(made.reference, [_DEVICES])).get(_DEVICES) or ()
    drives = [one for one in devices if isinstance(one, _Cdrom)]
    if not any(getattr(one.backing, "fileName", None) == image for one in drives):
        spec = vim.vm.ConfigSpec(deviceChange=_changes(devices, drives, image))
        task = await session.call("ReconfigVM_Task", lambda: made.reference.Reconfigure(spec), changes=True)
        await wait_for_task(session, task, "ReconfigVM_Task")
    return "It is in a CD drive of the VM, connected when the VM is switched on."


def _changes(
    devices: Sequence[_device.VirtualDevice], drives: Sequence[_Cdrom], image: str
) -> list[_device.VirtualDeviceSpec]:
    drive = drives[0] if drives else _Cdrom(key=_NEW_CONTROLLER - 1)
    drive.backing = _Cdrom.IsoBackingInfo(fileName=image)
    drive.connectable = _device.VirtualDevice.ConnectInfo(
        startConnected=True, allowGuestControl=True, connected=False
    )
    if drives:
        return [_device.VirtualDeviceSpec(operation="edit", device=drive)]
    added = [_device.VirtualDeviceSpec(operation="add", device=drive)]
    for kind, units in _CONTROLLERS:
        for controller in devices:
            taken = {one.unitNumber for one in devices if one.controllerKey == controller.key}
            if isinstance(controller, kind) and len(taken) < units:
                drive.controllerKey = controller.key
                drive.unitNumber = min(set(range(units)) - taken)
                return added
    drive.controllerKey, drive.unitNumber = _NEW_CONTROLLER, 0
    controller = _device.VirtualAHCIController(key=_NEW_CONTROLLER, busNumber=0)
    return [_device.VirtualDeviceSpec(operation="add", device=controller), *added]
