"""Proxies that are no machine: a registry in a dict, a root in a directory, commands with recorded outputs."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vadpipe.proxy.command import NOT_FOUND
from vadpipe.proxy.linux import LinuxProxy
from vadpipe.proxy.windows import WindowsProxy

MOUNTMGR = r"SYSTEM\CurrentControlSet\Services\mountmgr", "NoAutoMount"
MARK = r"SOFTWARE\vadpipe", "AutomountScrubbed"
RDP = r"SYSTEM\CurrentControlSet\Control\Terminal Server", "fDenyTSConnections"
RDP_POLICY = r"SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "fDenyTSConnections"
SAN = r"SYSTEM\CurrentControlSet\Services\partmgr\Parameters", "SanPolicy"
CLUSTER = r"SYSTEM\CurrentControlSet\Services\ClusSvc", "Start"

# lvm 2.03.16, as Debian 12 configures it; the first line is standard error.
LVMCONFIG = """\
  Configuration node activation/auto_activation_volume_list not found
event_activation=1
use_devicesfile=0
devicesfile="system.devices"
global_filter=["a|.*|"]
"""
# multipath-tools 0.9.4, most of the built-in blacklist left out.
MULTIPATH = """\
defaults {
	verbosity 2
	find_multipaths "strict"
	user_friendly_names "no"
}
blacklist {
	devnode "!^(sd[a-z]|dasd[a-z]|nvme[0-9])"
	device {
		vendor "SGI"
		product "Universal Xport"
	}
}
blacklist_exceptions {
	property "(SCSI_IDENT_|ID_WWN)"
}
devices {
	device {
		vendor "NVME"
		product ".*"
		path_grouping_policy "multibus"
	}
}
overrides {
}
"""
MD_RULES = """\
# This line names mdadm --incremental and does nothing.
ENV{ID_FS_TYPE}=="linux_raid_member", GOTO="md_inc"
LABEL="md_inc"
ACTION=="add|change", IMPORT{program}="/sbin/mdadm --incremental --export $devnode --offroot $env{DEVLINKS}"
"""
LSBLK = """\
{
   "blockdevices": [
      {
         "name": "sda", "fstype": null, "uuid": null, "label": null, "partuuid": null, "partlabel": null,
         "children": [
            {
               "name": "sda1", "fstype": "ext4", "uuid": "0a7f", "label": "root", "partuuid": "11-01",
               "partlabel": null
            },{
               "name": "sda2", "fstype": "swap", "uuid": "be12", "label": null, "partuuid": "11-02",
               "partlabel": null
            }
         ]
      }
   ]
}
"""


@dataclass
class Commands:
    """Answers by the first words of a command; what it does not know is not installed."""

    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, argv, stdin=""):
        self.calls.append(tuple(argv))
        command = " ".join(argv)
        for start, answer in self.answers.items():
            if command.startswith(start):
                return answer
        return NOT_FOUND, f"{argv[0]}: command not found"


class FakeRegistry(dict):
    """(key, name) -> number; `denied`: names that cannot be read, `locked`: that cannot be written."""

    def __init__(self, values=()):
        super().__init__(values)
        self.denied = set()
        self.locked = set()

    def read(self, key, name):
        if name in self.denied:
            raise PermissionError(13, "Access is denied")
        return self.get((key, name))

    def write(self, key, name, value):
        if name in self.locked:
            raise PermissionError(13, "Access is denied")
        if value is None:
            self.pop((key, name), None)
        else:
            self[key, name] = value


class DiskPart:
    """What DiskPart's commands do to the registry; `scripts`: the lines of each script it was given."""

    VALUES = {  # noqa: RUF012
        "automount disable": (MOUNTMGR, 1),
        "automount enable": (MOUNTMGR, 0),
        "san policy=OnlineAll": (SAN, 1),
        "san policy=OfflineShared": (SAN, 2),
    }

    def __init__(self, registry):
        self.registry = registry
        self.scripts = []
        self.fails_at = None

    def __call__(self, argv, stdin=""):
        program, switch, path = argv
        assert program.endswith(r"\System32\diskpart.exe")
        assert switch == "/s"
        text = Path(path).read_bytes().decode("ascii")
        assert text.endswith("\r\n")
        self.scripts.append(text.split("\r\n")[:-1])
        for line in self.scripts[-1]:
            if line == self.fails_at:
                return (
                    1,
                    "Microsoft DiskPart\n\nThe disk management services could not complete the operation.\n",
                )
            if line in self.VALUES:
                place, value = self.VALUES[line]
                self.registry[place] = value
        return 0, "Microsoft DiskPart version 10.0.20348.1\n\nLeaving DiskPart...\n"


@pytest.fixture
def registry():
    """A proxy as it is after installing Windows Server 2022, with remote desktop allowed."""
    return FakeRegistry({MOUNTMGR: 0, RDP: 0, SAN: 2})


@pytest.fixture
def diskpart(registry):
    return DiskPart(registry)


@pytest.fixture
def windows(registry, diskpart):
    return WindowsProxy(registry, diskpart)


@pytest.fixture
def commands():
    """A Linux proxy with everything installed, and everything as its distribution left it."""
    return Commands(
        {
            "lvmconfig": (5, LVMCONFIG),
            "vgs": (0, "  ubuntu-vg\n  data\n"),
            "multipath -t": (0, MULTIPATH.replace('"strict"', '"smart"')),
            "multipathd": (0, "ok\n"),
            "mdadm": (0, ""),
            "udevadm": (0, ""),
            "lsblk": (0, LSBLK),
        }
    )


@pytest.fixture
def root(tmp_path):
    """The root directory of that proxy."""
    files = {
        "etc/debian_version": "12.8\n",
        "etc/fstab": "UUID=0a7f / ext4 defaults 0 1\nUUID=be12 none swap sw 0 0\n",
        "etc/lvm/lvmlocal.conf": "local {\n}\n",
        "etc/mdadm/mdadm.conf": "HOMEHOST <system>\nMAILADDR root\n",
        "lib/udev/rules.d/64-md-raid-assembly.rules": MD_RULES,
        "usr/libexec/udisks2/udisksd": "",
    }
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


@pytest.fixture
def linux(root, commands):
    return LinuxProxy(root, commands)


@pytest.fixture
def tree(root):
    """path -> bytes of every file below the root, when called."""

    def files():
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return files
