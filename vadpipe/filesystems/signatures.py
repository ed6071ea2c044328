"""What a disk, a partition or a volume begins with: file systems, encryption, volume managers. A kernel.

Source: the magic numbers of util-linux's libblkid, and of the formats' specifications where named.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pipeline.units import KiB

LOOKED_AT: Final = 68 * KiB  # the signature of btrfs stands at 64 KiB + 64


class Signature(NamedTuple):
    """What something is. `why_not`: why no file system can be read here; empty: `name` is a file system."""

    name: str
    why_not: str = ""


EXT: Final = ("ext2", "ext3", "ext4")
FAT: Final = ("FAT12", "FAT16", "FAT32")
NTFS: Final = "NTFS"
XFS: Final = "XFS"
LVM: Final = "LVM2"
# These begin where a partition table stands, and with code that may look like one.
IN_FIRST_SECTOR: Final = (*FAT, NTFS, "exFAT", "ReFS", "BitLocker", "BitLocker To Go")
UNKNOWN: Final = Signature("unknown", "it begins with no signature that is known")

_ENCRYPTED: Final = "it is encrypted, and its key is not in the backup; unlock it in a restored VM"
_MANAGED: Final = "it is a part of a volume that spans disks; read it in a restored VM"

# Offset, bytes, what it is. The first that fits.
_MAGIC: Final = (
    (3, b"-FVE-FS-", Signature("BitLocker", _ENCRYPTED)),
    (0x1A8, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001"), Signature("BitLocker To Go", _ENCRYPTED)),
    (0, b"LUKS\xba\xbe", Signature("LUKS", _ENCRYPTED)),
    (3, b"ReFS\0\0\0\0", Signature("ReFS", "no reader knows ReFS; read it in a restored VM")),
    (3, b"NTFS    ", Signature(NTFS)),
    (3, b"EXFAT   ", Signature("exFAT")),
    (0x218, b"LVM2 001", Signature(LVM)),
    (0x18, b"LVM2 001", Signature(LVM)),
    (0x418, b"LVM2 001", Signature(LVM)),
    (0x618, b"LVM2 001", Signature(LVM)),
    (0, b"SPACEDB ", Signature("Storage Spaces", _MANAGED)),
    (0x1000, b"SPACEDB ", Signature("Storage Spaces", _MANAGED)),
    (0, b"XFSB", Signature(XFS)),
    (0x10040, b"_BHRfS_M", Signature("btrfs")),
    (0x1000, b"\xfc\x4e\x2b\xa9", Signature("Linux RAID", _MANAGED)),
    (0, b"\xfc\x4e\x2b\xa9", Signature("Linux RAID", _MANAGED)),
    (0, b"dmvdo001", Signature("VDO", _MANAGED)),
    (0xFF6, b"SWAPSPACE2", Signature("swap", "it is swap space")),
    (0x20, b"NXSB", Signature("APFS")),
    (0x400, b"H+\0\x04", Signature("HFS+")),
    (0x400, b"HX\0\x05", Signature("HFS+")),
    (0x400, b"\x10\x20\xf5\xf2", Signature("F2FS")),
    (0, b"hsqs", Signature("squashfs")),
    (0x8001, b"CD001", Signature("ISO 9660")),
    (0x200, b"LABELONE", Signature("LVM label", _MANAGED)),
)

# Types of GPT partitions that say more than what they begin with.
_GPT_TYPES: Final = {
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": Signature("Storage Spaces", _MANAGED),
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": Signature("dynamic disk (LDM)", _MANAGED),
    "af9b60a0-1431-4f62-bc68-3311714a69ad": Signature("dynamic disk (LDM)", _MANAGED),
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": Signature("Microsoft reserved", "it holds no file system"),
    "21686148-6449-6e6f-744e-656564454649": Signature("BIOS boot", "it holds no file system"),
    "6a898cc3-1dd2-11b2-99a6-080020736631": Signature("ZFS", _MANAGED),
    "aa31e02a-400f-11db-9590-000c2911d1b8": Signature("VMFS", "it belongs to ESXi"),
}
_MBR_TYPES: Final = {"0x42": Signature("dynamic disk (LDM)", _MANAGED)}

# Features of ext (linux/fs/ext4/ext4.h): those that only ext4 has, and the journal that makes it ext3.
_EXT4_ONLY: Final = 0x40 | 0x80 | 0x200 | 0x400 | 0x1000 | 0x8000 | 0x10000  # incompat
_EXT4_RO_ONLY: Final = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400 | 0x1000  # ro_compat
_HAS_JOURNAL: Final = 0x4


def identify(start: bytes, partition_type: str = "") -> Signature:
    """What begins with these bytes, of which there should be LOOKED_AT.

    Args:
        partition_type: The GUID of a GPT partition in small letters, or the type of an MBR partition as '0x83'.
    """
    known = _GPT_TYPES.get(partition_type) or _MBR_TYPES.get(partition_type)
    if known is not None:
        return known
    for offset, magic, signature in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return signature
    if start[0x438:0x43A] == b"\x53\xef":
        return Signature(_ext(start))
    fat = _fat(start)
    if fat:
        return Signature(fat)
    if not any(start):
        return Signature("empty", "it begins with zeros")
    return UNKNOWN


def _ext(start: bytes) -> str:
    compatible, incompatible, read_only = struct.unpack_from("<3I", start, 0x45C)
    if incompatible & _EXT4_ONLY or read_only & _EXT4_RO_ONLY:
        return "ext4"
    return "ext3" if compatible & _HAS_JOURNAL else "ext2"


def _fat(start: bytes) -> str:
    """The kind of a FAT by its number of clusters (Microsoft's fatgen103), or nothing."""
    if len(start) < 512 or start[510:512] != b"\x55\xaa" or start[0] not in (0xEB, 0xE9):
        return ""
    sector, per_cluster, reserved, fats, entries, small, media, short = struct.unpack_from(
        "<HBHBHHBH", start, 11
    )
    (large,) = struct.unpack_from("<I", start, 32)
    (wide,) = struct.unpack_from("<I", start, 36)
    if (
        sector not in (512, 1024, 2048, 4096)
        or not per_cluster
        or per_cluster & (per_cluster - 1)
        or not reserved
        or fats not in (1, 2)
        or not (media == 0xF0 or media >= 0xF8)
    ):
        return ""
    roots = -(-entries * 32 // sector)
    clusters = ((small or large) - reserved - fats * (short or wide) - roots) // per_cluster
    if clusters <= 0:
        return ""
    return FAT[0] if clusters < 4085 else FAT[1] if clusters < 65525 else FAT[2]
