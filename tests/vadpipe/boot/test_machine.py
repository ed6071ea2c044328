"""QEMU's command for the hardware of a point."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import GiB, MiB
from vadpipe.boot.machine import BUSES, BootDisk, Choices, Firmware, boot_plan, needs_firmware, shell_lines

GOLDEN = Path(__file__).parent / "golden"

WINDOWS = {
    "guest_id": "windows2019srv_64Guest",
    "firmware": "efi",
    "secure_boot": True,
    "memory": 8 * GiB,
    "cpus": 4,
    "cores_per_socket": 2,
    "controllers": [
        {"key": "scsi0", "type": "VirtualLsiLogicSASController"},
        {"key": "scsi1", "type": "ParaVirtualSCSIController"},
        {"key": "sata0", "type": "VirtualAHCIController"},
        {"key": "nvme0", "type": "VirtualNVMEController"},
    ],
    "nics": [
        {"type": "VirtualVmxnet3", "network": "VM Network", "mac_address": "00:50:56:AB:CD:EF"},
        {"type": "VirtualE1000e", "network": "dmz", "mac_address": None},
    ],
}
LINUX = {
    "guest_id": "debian10_64Guest",
    "firmware": "bios",
    "memory": 512 * MiB,
    "cpus": 3,
    "cores_per_socket": 2,
    "controllers": [
        {"key": "scsi0", "type": "VirtualLsiLogicController"},
        {"key": "ide0", "type": "VirtualIDEController"},
    ],
    "nics": [{"type": "VirtualVmxnet2", "network": "VM Network"}],
}
FILES = {
    "vmx": {
        "displayname": "old",
        "memsize": "256",
        "ide0.present": "TRUE",
        "ide1.present": "TRUE",
        "ethernet0.present": "TRUE",
    }
}
FIRMWARE = Firmware(
    Path("/usr/share/OVMF/CODE.fd"), Path("/usr/share/OVMF/VARS.fd"), Path("/o/efi-variables.fd")
)


def disks(*keys, directory="/o"):
    return [
        BootDisk(key, f"nbd+unix:///{key}?socket=/s/nbd", Path(directory) / f"{key.replace(':', '-')}.qcow2")
        for key in keys
    ]


PLANS = {
    "windows": boot_plan(
        "dc, 01", WINDOWS, disks("scsi0:0", "scsi1:0", "scsi0:9", "sata0:1", "nvme0:0"), Choices(), FIRMWARE
    ),
    "linux": boot_plan("web01", LINUX, disks("scsi0:0", "scsi0:8", "ide0:1"), Choices(network=True), None),
    "files": boot_plan(
        "old", FILES, disks("ide0:0", "ide1:1"), Choices(console=True, emulate=True, memory=GiB), None
    ),
    "other_bus": boot_plan(
        "dc01", WINDOWS, disks("scsi0:0", "scsi1:0"), Choices(bus="sata", further=["-S"]), FIRMWARE
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_command_is_as_recorded(name):
    plan = PLANS[name]
    lines = [*(f"# {note}" for note in plan.notes), *map(" ".join, plan.overlays), *shell_lines(plan.qemu)]
    assert "\n".join(lines) + "\n" == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLANS, *BUSES])
def test_qemu_takes_the_command(name, tmp_path):
    """It starts with every device, and ends by its monitor before the guest runs."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    made = disks("scsi0:0", "scsi0:1", "scsi0:2", directory=tmp_path)
    configuration = {**(WINDOWS if name == "windows" else LINUX), "memory": 64 * MiB}
    bus = name if name in BUSES else None
    keys = [Path(command[-1]) for command in PLANS[name].overlays] if bus is None else []
    if keys:
        original = [path.stem.replace("-", ":") for path in keys]
        made = disks(*original, directory=tmp_path)
    if name == "files":
        configuration = {"vmx": {**FILES["vmx"], "memsize": "64"}}
    choices = Choices(
        bus=bus or ("sata" if name == "other_bus" else None),
        emulate=True,
        further=["-S", "-monitor", "stdio"],
    )
    for disk in made:
        with disk.overlay.open("wb") as file:
            file.truncate(MiB)
    plan = boot_plan("vm", configuration, made, choices, None)
    command = [word.replace("format=qcow2", "format=raw") for word in plan.qemu]
    command += ["-display", "none"]
    done = subprocess.run(command, input="info block\nquit\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Attached to:") == len(made)


def test_efi_needs_firmware_and_bios_does_not():
    assert needs_firmware(WINDOWS)
    assert not needs_firmware(LINUX)
    assert not needs_firmware(json.loads("{}"))
