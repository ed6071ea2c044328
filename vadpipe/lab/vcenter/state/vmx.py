"""The VM's own configuration file, so that a VM's directory is complete without its vCenter."""

from __future__ import annotations

from .inventory import Inventory, VmState, controller_and_unit


def vmx_text(inventory: Inventory, vm: VmState) -> str:
    """The `.vmx` of the VM as it runs now: one `key = "value"` per line."""
    values = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": "19",
        "displayName": vm.name,
        "guestOS": vm.guest_id.removesuffix("Guest").replace("_", "-"),
        "firmware": "efi",
        "memSize": "4096",
        "numvcpus": "2",
        "uuid.bios": _spaced(vm.uuid),
        "vc.uuid": _spaced(vm.instance_uuid),
    }
    for key, disk in inventory.disks_of(vm).items():
        bus, unit = controller_and_unit(key)
        values |= {
            f"scsi{bus}.present": "TRUE",
            f"scsi{bus}.virtualDev": "pvscsi",
            f"scsi{bus}:{unit}.present": "TRUE",
            f"scsi{bus}:{unit}.deviceType": "scsi-hardDisk",
            f"scsi{bus}:{unit}.fileName": disk.leaf.name,
            f"scsi{bus}:{unit}.ctkEnabled": "TRUE" if disk.change_id else "FALSE",
        }
    values["ctkEnabled"] = "TRUE" if vm.change_tracking else "FALSE"
    values |= vm.extra_config
    return "".join(f'{key} = "{_escaped(value)}"\n' for key, value in values.items())


def _spaced(uuid: str) -> str:
    """A UUID as .vmx files write it: sixteen bytes with spaces, a dash in the middle."""
    digits = uuid.replace("-", "")
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    return f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"


def _escaped(value: str) -> str:
    """The bytes that the format cannot hold in quotes travel as `|` and two hexadecimal digits."""
    return "".join(f"|{ord(char):02X}" if char in '"|' or char < " " else char for char in value)
