"""Stand-ins for what cannot be had: they speak the real protocols over real VMDK files.

vcenter   a vCenter over SOAP and TLS, driven by unmodified pyVmomi       certificate   its own
vddk      libvixDiskLib in C, the ABI over VMDK chains; vddk_build        disks         virtual disks with redo logs
vss       VSS manifests as quiescing leaves them                          guest         a VM with real files
witness   digests of disks by an independent reader                       demo          the main job on all of it
"""
