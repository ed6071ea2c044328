"""vadpipe: a streaming data mover for VMware virtual machines.

Every name of `pipeline`, `stages` and `sinks` is offered here too, loaded when it is used. Beneath lies what stages
and sinks are made of, each room usable alone:

vmdk        VMDK files and VMs read from their own directory      vsphere     VMs on a vCenter or an ESXi host
vddk        disks read through VDDK, in a child process           preflight   what will go wrong, before it does
vss         the VSS manifest: bytes in, verdict out               proxy       whether this machine can be a proxy
repository  deduplicated restore points in a directory            kernels     what the stages compute
nbd         disks of NBD servers, and a server                    serve       points as block devices
filesystems files out of a point                                  boot        a point that runs under QEMU
fleet       which job starts when, within vSphere's limits        replica     what a warm migration remembers
cli         the command                                           lab, bench  stand-ins, and measurements
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
