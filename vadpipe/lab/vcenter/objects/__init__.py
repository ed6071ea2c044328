"""The managed objects: the inventory, VMs and their snapshots, datastores, and the service's own managers."""
