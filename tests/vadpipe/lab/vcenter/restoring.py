"""Specs of VMs and devices, as a client that restores makes them."""

from pyVmomi import vim

KINDS = vim.vm.device
MIB = 1 << 20


def change(device, operation="add", file_operation=None):
    return KINDS.VirtualDeviceSpec(operation=operation, device=device, fileOperation=file_operation)


def controller(kind=KINDS.ParaVirtualSCSIController, bus=0, key=-1000):
    fields = {"sharedBus": "noSharing"} if issubclass(kind, KINDS.VirtualSCSIController) else {}
    return change(kind(key=key, busNumber=bus, **fields))


def disk(size=8 * MIB, at=1000, unit=0, path="[datastore1] ", operation="create", **backing):
    thin = {"thinProvisioned": True, "diskMode": "persistent"} | backing
    device = KINDS.VirtualDisk(
        key=-1,
        controllerKey=at,
        unitNumber=unit,
        capacityInBytes=size,
        capacityInKB=size // 1024,
        backing=KINDS.VirtualDisk.FlatVer2BackingInfo(fileName=path, **thin),
    )
    return change(device, file_operation=operation)


def card(kind=KINDS.VirtualVmxnet3, network="VM Network", backing=None, key=-4000, **fields):
    backing = backing or KINDS.VirtualEthernetCard.NetworkBackingInfo(deviceName=network)
    return change(kind(key=key, backing=backing, **fields))


def config(name="restored1", *changes, path="[datastore1]", **fields):
    return vim.vm.ConfigSpec(
        name=name, files=vim.vm.FileInfo(vmPathName=path), deviceChange=list(changes), **fields
    )


def devices(vm):
    return {device.key: device for device in vm.config.hardware.device}
