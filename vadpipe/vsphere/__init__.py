"""VMs on a vCenter or an ESXi host: session, snapshot, change tracking, VSS manifest, clean-up.

Packages, each on the ones before it:

api        session, HTTP, faults as our errors, advice, tasks, retry    inventory  VMs by name, place, tag; hardware
journal    intents: what is about to be done outside, written first     snapshot   quiesced, kept, removed; changes
manifest   the VSS manifest: located, and fetched in four ways          guest      tools.conf and scripts in guests
vm         all of it together: a VM held still; the sweep of what killed runs left
plan       what becomes of each part of a restored VM               restore    a VM made, or written over

The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
