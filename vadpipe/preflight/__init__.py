"""What will go wrong with a VM's backup, known before the VM is touched, and how to mend it.

facts      what the rules look at: plain values            gathering  the facts of any number of VMs, in one pass
guests     which guest gets which quiescing                vm, devices  the API's properties as facts
rule       what a rule is; judging                         reach      names and ports of hosts
rules      the table: machine, guest, tools, devices,      proxy      the machine we run on
           storage, site, transport                        report     preflight, for people and machines
vddk_versions  VDDK against vSphere
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
