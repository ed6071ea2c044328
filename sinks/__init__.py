"""Sinks: where bytes end, one file for each sink and for each target of a restore.

restoring    a point back to a target, proved     targets     targets by name, for the command line
restore_job  a restore in a configuration         proving     a disk read back and compared with its point
images       a directory of images                raw         sparse raw images, and standard output
vmdk         VMDK images in four formats          qemu        qcow2 images
ova          a VM and its disks in one file       blocks      an export of an NBD server, a block device
new_vm       a new VM of a vCenter                in_place    the original VM
vddk_disk    a disk that is open for writing      lease       a new VM without VDDK
null         NullSink: keeps nothing, for measuring
replica      a replica of a running VM; its places in replica_places, its proof in replica_proof
migrate      increments into a replica, and the cut-over

The repository lies in `vadpipe.repository`. The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
