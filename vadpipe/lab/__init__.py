"""Stand-ins for what the project cannot take along: they speak the real protocols over real VMDK files.

vcenter   a vCenter over SOAP and TLS, driven by unmodified pyVmomi       certificate   its certificate
vddk      libvixDiskLib in C, the ABI over VMDK chains; vddk_build        disks         virtual disks with redo logs
vss       VSS manifests as quiescing leaves them                          guest         a VM with real files
witness   digests of disks by an independent reader                       demo          the main job on all of it
campaigns backups and restores where everything fails                      faults        of repositories
"""

from pathlib import Path

import vadpipe

_INSTALLED = Path(vadpipe.__file__).with_name("examples")

# The example configurations: beside the packages in a checkout, inside `vadpipe` in an installation.
EXAMPLES = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "examples"
