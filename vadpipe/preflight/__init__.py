"""Find what will go wrong with a VM's backup before the VM is touched, and name the remedy. Changes nothing.

facts       what the rules read: plain values         rules_vm       the VM, its snapshots and datastores
vm          properties and devices of a VM as facts   rules_guest    its guest and VMware Tools
guests      which guest gets which quiescing          rules_devices  its devices
gathering   the facts of any number of VMs            rules_site     servers, hosts, VDDK, this machine
reach       this machine, and the hosts it reaches    privileges     what the account needs; roles
report      preflight of jobs, and its result         rules          all of these in one table
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
